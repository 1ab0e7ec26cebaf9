"""What every head answers: a Prediction over actions."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from foretoken.core.config import Config
from foretoken.core.errors import ConfigError
from foretoken.core.spec import Box, Discrete, MultiBinary, MultiDiscrete, Space


class Prediction(ABC):
    """A prediction at (...) places. `loss` and `log_prob` come as (...), actions as (..., *shape)."""

    @abstractmethod
    def mode(self) -> Tensor:
        """The likeliest action."""

    @abstractmethod
    def sample(self, seed_B: Tensor) -> Tensor:
        """One draw per row; row b depends on `seed_B[b]` alone."""

    @abstractmethod
    def loss(self, action: Tensor) -> Tensor:
        """What training minimises: the negative log-likelihood, or a squared error where there is no likelihood."""

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-probability (density) of an action."""
        raise NotImplementedError(f"{type(self).__name__} has no likelihood")

    def entropy(self) -> Tensor:
        """Entropy in nats."""
        raise NotImplementedError(f"{type(self).__name__} has no entropy")


@dataclass(frozen=True, kw_only=True)
class HeadConfig(Config):
    """Base of head configs; `build(space, width)` makes the head."""


@dataclass(frozen=True, kw_only=True)
class BySpaceConfig(HeadConfig):
    """The usual head of a space: tanh-deterministic for a Box, categorical for choices, bits for MultiBinary.

    Args:
        temperature: logits of choices are divided by it when sampling; 0 takes the mode.
    """

    temperature: float = 1.0

    def build(self, space: Space, width: int) -> object:
        from foretoken.nn.heads.categorical import CategoricalConfig
        from foretoken.nn.heads.deterministic import DeterministicConfig

        match space:
            case Box(is_image=False):
                return DeterministicConfig().build(space, width)
            case Discrete() | MultiDiscrete() | MultiBinary():
                return CategoricalConfig(temperature=self.temperature).build(space, width)
            case _:
                raise ConfigError(
                    f"no head is known for actions of {type(space).__name__}; Box, Discrete, MultiDiscrete and MultiBinary have one"
                )
