"""Autotuned cloning: a transformer whose prompt is learned by critics, and whose actions are weighted by their advantage.

    a_(t-1)  [c_t s_t]  ->  a_t        with errors weighted by exp(beta * advantage of a_t)

In a stage named "critic" the prompt learns: the value of implicit Q-learning (V-ADT), or the sub-goal of a hierarchical one
(G-ADT). In later stages it is frozen, and the transformer learns. Ma et al., ICML 2024, arXiv 2311.00267.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from foretoken.core.batch import Batch, Loss, Step, masked_mean
from foretoken.core.config import Config, configures
from foretoken.core.errors import ConfigError
from foretoken.core.method import Condition, Context, Method, Objective, Policy
from foretoken.core.spec import Spec, Window
from foretoken.core.state import State
from foretoken.core.store import EpisodeStore
from foretoken.methods.conditioned_cloning import ConditionedCloning, ConditionedCloningConfig, shifted
from foretoken.methods.hierarchical_implicit_q import HierarchicalImplicitQ, HierarchicalImplicitQConfig, ends, pick
from foretoken.methods.implicit_q import ImplicitQ, ImplicitQConfig
from foretoken.nn.heads.base import Prediction
from foretoken.objectives.implicit_q import advantage_weights


class Prompt(Condition):
    """A condition that critics say, learned in a stage before and frozen then. Abstract: what is asked for, the subclass says."""

    critic: ImplicitQ | HierarchicalImplicitQ

    window: Window
    """What `recorded` reads."""

    @abstractmethod
    def recorded(self, batch: Batch) -> tuple[Batch, Tensor]:
        """Windows (B, K, ...) with the column `prompt` (B, K, C), and the advantage of their actions (B, K)."""

    @abstractmethod
    def ask(self, observation: Any, state: State) -> Tensor:
        """(B, T, C) what is asked for at observations (B, T, ...)."""

    def hindsight(self, batch: Batch) -> Tensor:
        """The prompt that `recorded` put beside the steps."""
        return batch.prompt

    def begin(self, rows: int, context: Context) -> State:
        return {}

    def carry(self, step: Step, state: State) -> tuple[Tensor, State]:
        """What is asked for at the present state alone, whatever was asked for or earned before."""
        observation = dict(step.observation) if isinstance(step.observation, Mapping) else step.observation
        return self.ask(tree_map(lambda leaf: leaf.unsqueeze(1), observation), state).squeeze(1), state


@dataclass(frozen=True, kw_only=True)
class ValuePromptConfig(Config):
    """V-ADT.

    Args:
        critic: Q and V.
        scale: values are multiplied by it to be read as a prompt; 0 hides them.
    """

    critic: ImplicitQConfig = ImplicitQConfig()
    scale: float = 1.0


@configures(ValuePromptConfig)
class ValuePrompt(Prompt):
    """Q(s, a) of the recorded action, V(s) when acting: the low level is told how good the action is, and asked for the best."""

    width = 1
    critic: ImplicitQ

    def __init__(self, config: ValuePromptConfig, spec: Spec, cloning: ConditionedCloningConfig) -> None:
        super().__init__()
        self.scale, self.critic = config.scale, config.critic.build(spec)
        self.window = Window(length=cloning.context, columns=("observation", "action"), anchor=cloning.anchor)

    def recorded(self, batch: Batch) -> tuple[Batch, Tensor]:
        action_values = self.critic.action_values(batch.observation, batch.action)
        prompt = (self.scale * action_values).unsqueeze(-1)
        return batch.replace(prompt=prompt), action_values - self.critic.values(batch.observation)

    def ask(self, observation: Any, state: State) -> Tensor:
        return (self.scale * self.critic.values(observation)).unsqueeze(-1)


@dataclass(frozen=True, kw_only=True)
class GoalPromptConfig(Config):
    """G-ADT.

    Args:
        critic: V(s, g) and the high actor.
    """

    critic: HierarchicalImplicitQConfig = HierarchicalImplicitQConfig()


@configures(GoalPromptConfig)
class GoalPrompt(Prompt):
    """The state `way_steps` ahead in the trajectory, or its last; when acting s + high(s, g), the goal being the episode's or learned."""

    critic: HierarchicalImplicitQ

    def __init__(self, config: GoalPromptConfig, spec: Spec, cloning: ConditionedCloningConfig) -> None:
        super().__init__()
        if cloning.anchor != "start":
            raise ConfigError(f'sub-goals lie ahead of windows: cloning.anchor must be "start", got {cloning.anchor!r}')
        self.critic, self.context, self.ahead = config.critic.build(spec), cloning.context, config.critic.way_steps
        self.width = self.critic.size
        self.window = Window(length=self.context + self.ahead, columns=("observation", "action"), final=True)

    def recorded(self, batch: Batch) -> tuple[Batch, Tensor]:
        first, last = ends(batch.valid)
        steps, last = first[:, None] + torch.arange(self.context, device=first.device), last[:, None]
        states = self.critic.standardise(batch.observation)
        now, after, way = (pick(states, torch.minimum(steps + more, last)) for more in (0, 1, self.ahead))
        kept = batch.map(lambda column: pick(column, torch.minimum(steps, last)))
        exists = kept.scored & (steps <= last)
        return kept.replace(prompt=way, valid=exists, scored=exists), self.critic.advantage(now, after, way)

    def ask(self, observation: Any, state: State) -> Tensor:
        now = self.critic.standardise(observation)
        return self.critic.subgoal(now, state["goal"].unsqueeze(1).expand_as(now))

    def begin(self, rows: int, context: Context) -> State:
        """`context["goal"]` (rows, O) is a state to reach; without it, the one that the data reward most."""
        goal = self.critic.goal
        if "goal" in context:
            goal = self.critic.standardise(torch.as_tensor(context["goal"], device=goal.device))
        return {"goal": goal.expand(rows, self.width).clone()}


@dataclass(frozen=True, kw_only=True)
class AutotunedCloningConfig(Config):
    """
    Args:
        cloning: the transformer; its condition is None, for the prompt takes the place. layout="separate" gives the prompt a
            token of its own.
        prompt: what the high level is.
        beta: inverse temperature of the advantage; 0 weighs all actions alike.
        limit: the largest weight.
    """

    cloning: ConditionedCloningConfig = ConditionedCloningConfig(condition=None, layout="prompted")
    prompt: ValuePromptConfig | GoalPromptConfig = ValuePromptConfig()
    beta: float = 3.0
    limit: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cloning.condition is not None or self.cloning.across:
            given = f"condition={self.cloning.condition} and across={self.cloning.across!r}"
            raise ConfigError(
                f"cloning needs condition=None, as the prompt is the condition, and across='', got {given}"
            )
        if self.beta < 0 or self.limit <= 0:
            raise ConfigError(
                f"beta must not be negative and limit be above 0, got beta={self.beta} and limit={self.limit}"
            )


@configures(AutotunedCloningConfig)
class AutotunedCloning(Method):
    """Learns the prompt in a stage named "critic", and in others the transformer on the frozen prompt."""

    learns_prompt: Tensor

    def __init__(self, config: AutotunedCloningConfig, spec: Spec) -> None:
        super().__init__()
        self.config = config
        self.cloning = ConditionedCloning(config.cloning, spec, config.prompt.build(spec, config.cloning))
        self.window = self.cloning.window
        self.register_buffer("learns_prompt", torch.tensor(False))

    @property
    def prompt(self) -> Prompt:
        return cast(Prompt, self.cloning.condition)

    def fit(self, stores: Mapping[str, EpisodeStore], stage: str) -> None:
        """What the prompt measures is measured in its own stage only: later data do not change its scales."""
        self.learns_prompt.fill_(stage == "critic")
        if self.learns_prompt:
            self.prompt.critic.fit(stores)
        else:
            self.cloning.fit(stores, stage)

    def objectives(self) -> tuple[Objective, ...]:
        """That of the present stage; everything that it does not train is frozen."""
        low = tuple(part for part in self.cloning.children() if part is not self.prompt)
        cloning = Objective("loss", self.loss, low, {"data": self.prompt.window})
        objective = self.prompt.critic.objective() if self.learns_prompt else cloning
        self.requires_grad_(False)
        for part in objective.trains:
            part.requires_grad_(True)
        return (objective,)

    def after_update(self, objective: str, notes: Mapping[str, Tensor]) -> None:
        if self.learns_prompt:
            self.prompt.critic.after_update()

    def loss(self, *batches: Batch) -> Loss:
        """The weighted loss of the actions, given the recorded prompts."""
        with torch.no_grad():
            batch, advantage = self.prompt.recorded(batches[0])
            weight = advantage_weights(advantage, self.config.beta, self.config.limit)
        found = self.cloning.loss(batch, weight=weight)
        told = {"advantage": masked_mean(advantage, batch.scored)[0], "weight": masked_mean(weight, batch.scored)[0]}
        return found._replace(metrics={**found.metrics, **told})

    def forward(self, batch: Batch, read: slice = slice(None)) -> Prediction:
        """Predictions of the actions of recorded windows at the steps that `read` picks, prompted as when acting."""
        prompt = self.prompt.ask(batch.observation, self.prompt.begin(len(batch.valid), {}))
        previous = shifted(batch.action)
        return self.cloning.predict(batch.observation, previous, prompt, batch.timestep, batch.valid, read)[0]

    @property
    def policy(self) -> Policy:
        return self.cloning.policy
