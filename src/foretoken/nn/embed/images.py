"""Images to features: the convolutions of the Atari DQN (Mnih et al. 2015), for any size and channel order."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foretoken.core.config import Config, configures
from foretoken.core.errors import ConfigError
from foretoken.core.spec import Box


@dataclass(frozen=True, kw_only=True)
class ImageConfig(Config):
    """
    Args:
        channels, kernels, strides: one entry per convolution, each followed by ReLU.
    """

    channels: tuple[int, ...] = (32, 64, 64)
    kernels: tuple[int, ...] = (8, 4, 3)
    strides: tuple[int, ...] = (4, 2, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.channels) == len(self.kernels) == len(self.strides):
            raise ConfigError(
                f"channels, kernels and strides need one entry per layer, got {self.channels}, {self.kernels}, {self.strides}"
            )


@configures(ImageConfig)
class ImageEmbedding(nn.Module):
    """uint8 images (..., C, H, W) or (..., H, W, C) to (..., width); pixels are divided by 255. The smaller outer axis is the channels."""

    def __init__(self, config: ImageConfig, box: Box, width: int) -> None:
        super().__init__()
        self.channels_last = box.shape[2] < box.shape[0]
        size = box.shape if not self.channels_last else (box.shape[2], *box.shape[:2])
        layers: list[nn.Module] = []
        before = size[0]
        for channels, kernel, stride in zip(config.channels, config.kernels, config.strides, strict=True):
            layers += [nn.Conv2d(before, channels, kernel, stride), nn.ReLU()]
            before = channels
        self.convolutions = nn.Sequential(*layers, nn.Flatten())
        try:
            with torch.no_grad():
                flat = self.convolutions(torch.zeros(1, *size)).shape[1]
        except RuntimeError:
            raise ConfigError(
                f"images of {size[1]} x {size[2]} are too small for kernels {config.kernels} and strides {config.strides}"
            ) from None
        self.linear = nn.Linear(flat, width)

    def forward(self, x: Tensor) -> Tensor:
        lead = x.shape[:-3]
        x = x.reshape(-1, *x.shape[-3:])
        x = x.movedim(-1, 1) if self.channels_last else x
        return self.linear(self.convolutions(x.to(self.linear.weight.dtype) / 255)).unflatten(0, lead)
