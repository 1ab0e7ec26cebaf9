"""Planning in a learned model: of many sequences of actions, the model says which earns most, and its first action is taken.

A model of dynamics (`methods.dynamics`) is trained on recorded windows of `context` + `horizon` steps. At every step it reads
the last `context` of them, a planner (`planning`) searches `horizon` steps ahead in it, and what is left of the plan is where
the next search begins (model predictive control). With a proposal, a policy that is cloned from the same data, a search begins
with what that would do in the model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foretoken.core.batch import Batch, Decision, Loss, Step
from foretoken.core.config import Config, configures
from foretoken.core.exhibit import Exhibit
from foretoken.core.method import Context, Method, Objective, Policy
from foretoken.core.spec import Spec, Window
from foretoken.core.state import State, gather
from foretoken.core.store import EpisodeStore, joint_statistics
from foretoken.methods import history
from foretoken.methods.dynamics.base import DynamicsConfig, Vectors, box
from foretoken.methods.dynamics.tokens import TokenDynamicsConfig
from foretoken.methods.imagined import imagined_and_real
from foretoken.methods.token_cloning import TokenCloning, TokenCloningConfig
from foretoken.planning.base import PlannerConfig
from foretoken.planning.cem import CEMConfig


@dataclass(frozen=True, kw_only=True)
class ModelPlanningConfig(Config):
    """
    Args:
        model: of what actions lead to.
        planner: how it is searched.
        context: steps of history that the model reads, the present one among them.
        proposal: a policy, whose actions in the model are where a search begins; None begins with the rest of the last plan.
    """

    model: DynamicsConfig = TokenDynamicsConfig()
    planner: PlannerConfig = CEMConfig()
    context: int = 8
    proposal: TokenCloningConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(context=1)


@configures(ModelPlanningConfig)
class ModelPlanning(Method):
    """See the module. Serves vectors of observations and of actions, which are scaled to [-1, 1] for model and planner."""

    def __init__(self, config: ModelPlanningConfig, spec: Spec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        self.vectors = Vectors(spec)
        steps = config.context + config.planner.horizon
        self.model = config.model.build(spec, steps)
        self.planner = config.planner.build(box(spec, "action").size)
        self.proposal: TokenCloning | None = config.proposal.build(spec) if config.proposal else None
        self.window = Window(length=steps, final=True)

    def fit(self, stores: Mapping[str, EpisodeStore], stage: str) -> None:
        if stores:
            self.vectors.scale.fit(joint_statistics(stores, "action")[""])
            self.model.fit(stores)
        if self.proposal:
            self.proposal.fit(stores, stage)

    def loss(self, *batches: Batch) -> Loss:
        (batch,) = batches
        found: Loss = self.model.loss(batch, *self.vectors(batch.observation, batch.action))
        return found

    def objectives(self) -> tuple[Objective, ...]:
        if not self.proposal:
            return super().objectives()
        return (
            Objective("model", self.loss, trains=(self.model,), reads={"data": self.window}),
            Objective("proposal", self.proposal.loss, trains=(self.proposal,), reads={"data": self.proposal.window}),
        )

    def propose(self, start: State, observation: Tensor, action: Tensor, valid_BT: Tensor) -> Tensor:
        """(B, horizon, A): what the proposal does in the model after a left-padded history, whose last action is still to be chosen."""
        assert self.proposal is not None
        keep = slice(-self.proposal.config.context, None)
        state, plan = gather(start, torch.arange(len(valid_BT), device=valid_BT.device)), []
        for _ in range(self.config.planner.horizon):
            observation, action, valid_BT = observation[:, keep], action[:, keep], valid_BT[:, keep]
            chosen = self.proposal.decide(observation, action, valid_BT)[:, None]
            plan.append(self.vectors(observation[:, -1:], chosen)[1][:, 0])
            _, state = self.model.step(state, plan[-1])
            seen = self.model.observation(state).reshape(observation[:, :1].shape)
            observation = torch.cat((observation, seen.to(observation.dtype)), dim=1)
            action = torch.cat((action[:, :-1], chosen.to(action.dtype), action[:, -1:]), dim=1)
            valid_BT = torch.cat((valid_BT, torch.ones_like(valid_BT[:, :1])), dim=1)
        return torch.stack(plan, dim=1)

    @torch.no_grad()
    def imagine(self, batch: Batch, known: int, back: int = 0, seed_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the model expects of the recorded actions that follow the first `known` steps of windows (B, T).

        Args:
            back: how many of the known steps it reads; 0 reads them all.
            seed_B: (B,) int64 draws what follows, each row by its own, as often as the model holds it for likely; None takes
                the likeliest. Several draws of one window show how unsure the model is.

        Returns:
            Observations (B, T - known, O) of the steps that follow, and rewards (B, T - known) of the actions that led there.
        """
        observation, action = self.vectors(batch.observation, batch.action)
        read = slice(known - back if back else 0, known)
        state = self.model.begin(observation[:, read], action[:, read], batch.valid[:, read], seed_B)
        seen, earned = [], []
        for time in range(known - 1, batch.valid.shape[1] - 1):
            reward, state = self.model.step(state, action[:, time])
            seen.append(self.model.observation(state))
            earned.append(reward)
        return torch.stack(seen, dim=1), torch.stack(earned, dim=1)

    @property
    def policy(self) -> Policy:
        return PlanningPolicy(self)

    def exhibits(self, episodes: Sequence[Batch]) -> Sequence[Exhibit]:
        """What the model expects of the actions that were carried out, beside what came, and how its error grows."""
        see = lambda batch: self.vectors(batch.observation, batch.action)[0]  # noqa: E731
        return (imagined_and_real(episodes, see, self.imagine, self.config.context, self.config.planner.horizon),)


class PlanningPolicy:
    """Keeps the last steps and the rest of the last plan."""

    def __init__(self, method: ModelPlanning) -> None:
        self.method = method

    def begin(self, rows: int, context: Context) -> State:
        method, config = self.method, self.method.config
        device = method.vectors.scale.middle.device
        kept = history.begin(
            rows, config.context, device, observation=method.spec.observation, before=method.spec.action
        )
        plan = torch.zeros(rows, config.planner.horizon, method.planner.dims, device=device)
        return {"history": kept, "plan": plan}

    def act(self, step: Step, state: State, *, explore: bool = False) -> Decision:
        method = self.method
        kept = history.push(
            state["history"], observation=step.observation, before=step.previous_action, timestep=step.timestep
        )
        columns, valid_BT = history.window(kept)
        action = torch.roll(columns["before"], -1, dims=1)  # the last one is not read
        start = method.model.begin(*method.vectors(columns["observation"], action), valid_BT)
        told = columns["observation"], action, valid_BT
        begin_BTA = method.propose(start, *told) if method.proposal else state["plan"]
        plan_BTA = method.planner.plan(method.model.step, start, step.seed, begin_BTA).actions
        chosen = method.vectors.action(plan_BTA[:, 0])
        rest = torch.cat((plan_BTA[:, 1:], torch.zeros_like(plan_BTA[:, :1])), dim=1)
        return Decision(chosen.to(step.previous_action.dtype), {"history": kept, "plan": rest})
