"""Where in time a step stands: its index in the episode, or its place in the window."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foretoken.core.config import Config, configures


@dataclass(frozen=True, kw_only=True)
class EpisodeTimeConfig(Config):
    """
    Args:
        max_steps: size of the table; later steps of an episode share its last entry.
        init_std: standard deviation of the table at the start. Next to the other embeddings (of order 1) it decides how
            soon the network tells neighbouring steps apart.
    """

    max_steps: int = 1000
    init_std: float = 1.0


@configures(EpisodeTimeConfig)
class EpisodeTime(nn.Module):
    """A learned embedding of the absolute episode step, the same for all tokens of a step."""

    def __init__(self, config: EpisodeTimeConfig, width: int, length: int) -> None:
        super().__init__()
        self.table = nn.Embedding(config.max_steps, width)
        nn.init.normal_(self.table.weight, std=config.init_std)

    def forward(self, timestep_BT: Tensor, valid_BT: Tensor) -> Tensor:
        return self.table(timestep_BT.clamp(0, self.table.num_embeddings - 1))


@dataclass(frozen=True, kw_only=True)
class WindowTimeConfig(Config):
    """
    Args:
        max_steps: size of the table of first timesteps; later ones share its last entry.
    """

    max_steps: int = 10_000


@configures(WindowTimeConfig)
class WindowTime(nn.Module):
    """A learned embedding of the place in the window, plus one of the window's first timestep (Decision Transformer on Atari)."""

    def __init__(self, config: WindowTimeConfig, width: int, length: int) -> None:
        super().__init__()
        self.place, self.start = nn.Embedding(length, width), nn.Embedding(config.max_steps, width)

    def forward(self, timestep_BT: Tensor, valid_BT: Tensor) -> Tensor:
        place = (valid_BT.cumsum(1) - 1).clamp(min=0)
        begin = torch.where(valid_BT, timestep_BT, timestep_BT.new_full((), 2**62)).amin(1, keepdim=True)
        return self.place(place) + self.start(begin.clamp(0, self.start.num_embeddings - 1))
