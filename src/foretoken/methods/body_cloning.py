"""Cloning of actions by a network over the parts of a body.

Step t is one token per part,  s_t[torso]  s_t[thigh]  s_t[shin] ..., made of the observations that belong to the part by a linear
layer of its own; the part's own entries of the action are read from its token by another. No history is seen.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from foretoken.core.batch import Batch, Decision, Loss, Step, masked_mean
from foretoken.core.body import Body, known_body, star
from foretoken.core.config import Config, configures
from foretoken.core.errors import ConfigError
from foretoken.core.exhibit import Exhibit, Matrix
from foretoken.core.method import Context, Method, Policy
from foretoken.core.spec import Box, Spec, Window
from foretoken.core.state import State
from foretoken.core.store import EpisodeStore, joint_statistics
from foretoken.nn.body import BodyEncoder, BodyEncoderConfig, FlatConfig, PartHeads, PartTokens
from foretoken.nn.embed.normalise import ActionScale, Standardise
from foretoken.nn.heads.base import Prediction
from foretoken.nn.heads.deterministic import Point
from foretoken.nn.heads.gaussian import Normal


@dataclass(frozen=True, kw_only=True)
class BodyCloningConfig(Config):
    """
    Args:
        network: from tokens to tokens.
        body: the parts; None takes them from `body_of`.
        body_of: the environment whose body it is, "" being the one that the data come from; or "star", which fits any vectors: a
            hub that reads everything, and a limb for each entry of the action.
        std: 0 minimises the squared error of actions scaled to [-1, 1]; above, the negative log-likelihood of a Gaussian around
            them with this standard deviation (0.1 in the official code), which is the same but for a factor.
    """

    network: BodyEncoderConfig | FlatConfig = BodyEncoderConfig()
    body: Body | None = None
    body_of: str = ""
    std: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.std < 0:
            raise ConfigError(f"std must not be negative (0 = squared error), got {self.std}")
        if self.body is not None and self.body_of:
            raise ConfigError(f"give either body or body_of, got parts {self.body.names} and body_of={self.body_of!r}")


@configures(BodyCloningConfig)
class BodyCloning(Method):
    """See the module. Serves vectors of observations and of actions; acts by the mean, from the present observation alone."""

    window = Window(length=1, columns=("observation", "action"))

    def __init__(self, config: BodyCloningConfig, spec: Spec) -> None:
        super().__init__()
        if not all(isinstance(space, Box) and len(space.shape) == 1 for space in (spec.observation, spec.action)):
            raise ConfigError(
                "a body needs vectors of observations and of actions, Boxes of one axis, got "
                f"{spec.observation} and {spec.action}"
            )
        assert isinstance(spec.observation, Box) and isinstance(spec.action, Box)
        self.config, self.spec = config, spec
        self.body = self._find_body(spec.environment, spec.observation.size, spec.action.size)
        width = config.network.width
        self.standardise, self.scale = Standardise(spec.observation.shape), ActionScale(spec.action)
        self.tokens = PartTokens([part.observation for part in self.body.parts], spec.observation.size, width)
        self.network = config.network.build(self.body.distances())
        owner = {entry: i for i, part in enumerate(self.body.parts) for entry in part.action}
        self.heads = PartHeads([owner[entry] for entry in range(spec.action.size)], width)

    def _find_body(self, environment: str, observation: int, action: int) -> Body:
        """The body that the config means, for vectors of these sizes."""
        name = self.config.body_of or environment
        if self.config.body_of == "star":
            return star(observation, action)
        if self.config.body is None and not name:
            raise ConfigError('the data name no environment whose body could be known; give body, or body_of="star"')
        found = self.config.body or known_body(name)
        found.check(observation, action)
        return found

    def fit(self, stores: Mapping[str, EpisodeStore], stage: str) -> None:
        if stores:
            self.standardise.fit(joint_statistics(stores, "observation")[""])
            self.scale.fit(joint_statistics(stores, "action")[""])

    def predict(self, observation: Tensor) -> Prediction:
        """Of the actions (..., A) at observations (..., O)."""
        tokens_BPD = self.tokens(self.standardise(observation).flatten(0, -2))
        scaled = self.heads(self.network(tokens_BPD)).unflatten(0, observation.shape[:-1])
        if not self.config.std:
            return Point(scaled, self.scale)
        log_std = scaled.new_tensor(math.log(self.config.std))
        return Normal(scaled, log_std, False, self.scale, self.scale.middle.shape)

    def forward(self, batch: Batch, read: slice = slice(None)) -> Prediction:
        """Predictions of the actions at the steps that `read` picks, (B, T, A)."""
        return self.predict(batch.observation[:, read])

    def loss(self, *batches: Batch) -> Loss:
        (batch,) = batches
        total, weight = masked_mean(self(batch).loss(batch.action), batch.scored)
        return Loss(total, weight=weight)

    def exhibits(self, episodes: Sequence[Batch]) -> Sequence[Exhibit]:
        """Who attends to whom in the middle of an episode: in the first masked layer and the first open one, or the first and last."""
        if not isinstance(self.network, BodyEncoder):
            return ()
        observations = episodes[0].observation[0, :-1]
        middle = observations[len(observations) // 2][None]
        weights = self.network.attention(self.tokens(self.standardise(middle)))
        masked = [self.network.config.is_masked(i) for i in range(len(weights))]
        shown = sorted({masked.index(True), masked.index(False)} if len(set(masked)) == 2 else {0, len(weights) - 1})
        panels = [
            Matrix(
                values=weights[i][0], hidden=~self.network.visible_PP if masked[i] else (), rows=self.body.names,
                columns=self.body.names, x="attends to", y="body part", value="attention weight",
                title=f"layer {i}, {'masked' if masked[i] else 'open'}",
            )
            for i in shown
        ]  # fmt: skip
        says = "Weights of a step in the middle of an episode, mean over heads."
        says += f" Blank: kept apart by the {self.network.config.mask} mask." if any(masked) else ""
        return (Exhibit(title="Attention over the body", says=says, panels=tuple(panels)),)

    @property
    def policy(self) -> Policy:
        return BodyPolicy(self)


class BodyPolicy:
    """Acts by the mean; nothing is carried from step to step."""

    def __init__(self, method: BodyCloning) -> None:
        self.method = method

    def begin(self, rows: int, context: Context) -> State:
        return {}

    def act(self, step: Step, state: State, *, explore: bool = False) -> Decision:
        predicted = self.method.predict(step.observation)
        action = predicted.sample(step.seed) if explore else predicted.mode()
        return Decision(action.to(step.previous_action.dtype), state)

    def steady(self, step: Step, state: State) -> bool:
        return True
