"""AdamW with settings by module prefix and a learning rate that is a function of the update number."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from foretoken.core.config import Config, configures
from foretoken.core.errors import CheckpointError, ConfigError
from foretoken.core.names import nearest


@dataclass(frozen=True, kw_only=True)
class Part(Config):
    """Settings of the parameters below one module.

    Args:
        prefix: the module's name in the method, as in `named_modules()`; the longest matching prefix wins.
        lr: their learning rate; None takes the optimiser's.
        weight_decay: their weight decay; None takes the optimiser's.
    """

    prefix: str
    lr: float | None = None
    weight_decay: float | None = None

    def covers(self, name: str) -> bool:
        """Whether the parameter `name` is or lies below the prefix."""
        return name == self.prefix or name.startswith(f"{self.prefix}.")


@dataclass(frozen=True, kw_only=True)
class AdamW(Config):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    Args:
        lr: learning rate after warm-up.
        betas: decay of the running means of gradient and squared gradient.
        eps: added to the root of the squared gradient's mean.
        weight_decay: fraction of lr by which decayed weights shrink in each update.
        decay: "all" decays every parameter, "matrices" only those with two or more axes (no biases, no norm scales).
        warmup: updates over which the learning rate rises linearly from 0.
        schedule: what follows the warm-up: "constant", or "cosine" or "linear" down to `final_lr` at the last update.
        final_lr: fraction of lr left at the end of a cosine or linear schedule.
        parts: settings for single modules, by prefix.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-4
    decay: Literal["all", "matrices"] = "all"
    warmup: int = 0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    final_lr: float = 0.0
    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lr", "eps", "weight_decay", "warmup", "final_lr"):
            if getattr(self, name) < 0:
                raise ConfigError(f"AdamW {name} must not be negative, got {getattr(self, name)}")

    def factor(self, update: int, updates: int) -> float:
        """What the learning rate is multiplied by in update number `update` (from 0) of `updates`."""
        if update < self.warmup:
            return (update + 1) / self.warmup
        if self.schedule == "constant":
            return 1.0
        share = min(1.0, (update - self.warmup) / max(1, updates - self.warmup))
        fall = (1 + math.cos(math.pi * share)) / 2 if self.schedule == "cosine" else 1 - share
        return self.final_lr + (1 - self.final_lr) * fall

    def settings(self, name: str, parameter: Tensor) -> tuple[float, float]:
        """Learning rate and weight decay of one parameter."""
        part = max((part for part in self.parts if part.covers(name)), key=lambda part: len(part.prefix), default=None)
        lr = self.lr if part is None or part.lr is None else part.lr
        decay = self.weight_decay if part is None or part.weight_decay is None else part.weight_decay
        return lr, decay if self.decay == "all" or parameter.dim() >= 2 else 0.0

    def check(self, module: nn.Module) -> None:
        """Raises ConfigError where a part's prefix names nothing in `module`."""
        names = [name for name, _ in module.named_modules() if name] + [name for name, _ in module.named_parameters()]
        for part in self.parts:
            if part.prefix not in names:
                near = nearest(part.prefix, names)
                raise ConfigError(
                    f"optimiser part {part.prefix!r} is no module or parameter of {type(module).__name__}{near}"
                )


@configures(AdamW)
class Optimiser:
    """AdamW over named parameters, whose state is saved and loaded by name."""

    def __init__(self, config: AdamW, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        self.config = config
        self.named = dict(named)
        self.parameters = list(self.named.values())
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.named.items():
            groups.setdefault(config.settings(name, parameter), []).append(parameter)
        self.base = [lr for lr, _ in groups]
        self.inner = torch.optim.AdamW(
            [{"params": members, "lr": lr, "weight_decay": decay} for (lr, decay), members in groups.items()],
            betas=config.betas,
            eps=config.eps,
            # The fused kernel is several times faster than the others on small networks, on the CPU too.
            fused=all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in self.parameters),
        )

    def step(self, factor: float) -> None:
        """One step with every learning rate multiplied by `factor`; parameters without a gradient stay as they are."""
        for group, lr in zip(self.inner.param_groups, self.base, strict=True):
            group["lr"] = lr * factor
        self.inner.step()

    def zero(self) -> None:
        """Drops the gradients of its parameters."""
        for parameter in self.parameters:
            parameter.grad = None

    def gradients(self) -> list[Tensor]:
        """The gradients there are, in parameter order."""
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def state(self) -> dict[str, Tensor]:
        """Running means and step counts as `parameter name/key`; parameters that never had a gradient have none."""
        kept = self.inner.state
        return {f"{name}/{key}": value for name, p in self.named.items() if p in kept for key, value in kept[p].items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what `state()` gave. Raises CheckpointError for parameters that do not exist or differ in shape."""
        slots: dict[str, dict[str, Any]] = {}
        for path, value in state.items():
            name, _, key = path.rpartition("/")
            if name not in self.named:
                raise CheckpointError(
                    f"the saved optimiser knows a parameter {name!r} that is not trained here{nearest(name, self.named)}"
                )
            if key != "step" and value.shape != self.named[name].shape:
                shape = tuple(self.named[name].shape)
                raise CheckpointError(
                    f"the saved optimiser's {path!r} has shape {tuple(value.shape)}, the parameter has {shape}"
                )
            slots.setdefault(name, {})[key] = value
        self.inner.state.clear()
        for name, values in slots.items():
            parameter = self.named[name]
            # `step` lives where torch's fused kernel wants it: beside the parameter.
            self.inner.state[parameter] = {key: value.to(parameter.device) for key, value in values.items()}
