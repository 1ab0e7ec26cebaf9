"""The Mixer contract: how a token sees earlier tokens, whatever the mechanism.

Law: `f(cat(a, b), s) == cat(f(a, s), f(b, state after a))`, split anywhere (at multiples of `facts.grain`). A mixer is pure
as a value: given the same arguments it returns the same results, and dropping a returned state un-does the call.
Storage: with gradients off, a state may be written in place at slots counted per row; entries at or beyond a state's
own count are invisible, so the older state stays true after a discarded continuation of up to `slack` tokens. One
continuation is alive at a time; `core.state.gather` branches.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from foretoken.core.config import Config
from foretoken.core.state import State

Made = TypeVar("Made")


class Tokens(NamedTuple):
    """What each token is; all (B, L), absent means the default.

    valid: the token exists; a padded token changes no state, is seen by nobody, and its output is zero (default: all).
    fresh: memory begins here, cleared before the token is consumed (default: nowhere but at a new state).
    step: the environment step it belongs to; group: which kind of token of the step it is; position: the position that
    position encodings see (default: valid tokens since memory began).
    shared: where the layers of one call keep what they all need, by key; see `once`. None computes it anew.
    """

    valid: Tensor | None = None
    fresh: Tensor | None = None
    step: Tensor | None = None
    group: Tensor | None = None
    position: Tensor | None = None
    shared: dict[Hashable, Any] | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> "Tokens":
        """The same with `function` applied to every tensor, and nothing shared."""
        changed: dict[str, Any] = {
            name: function(part) for name, part in self._asdict().items() if isinstance(part, Tensor)
        }
        return Tokens(**changed)

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """`make()`, or what an earlier layer of the same call made under the same key."""
        if self.shared is None:
            return make()
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]


class Mixed(NamedTuple):
    """What a mixer, block or stack answers. `state` is None when none was given; `aux` holds extra losses and statistics."""

    y: Tensor
    state: State | None = None
    aux: Mapping[str, Tensor] = {}


Visible: TypeAlias = Callable[[Tokens, Tokens], Tensor]
"""Who sees whom: (query tokens, key tokens) -> (B, Lq, Lk) bool, besides validity and memory boundaries. Fixed at construction."""


@dataclass(frozen=True)
class Facts:
    """What a mixer promises.

    Args:
        streaming: "exact": splitting never changes anything; "within_window": only while no more than `max_context`
            tokens have passed since memory began; "by_chunk": only at multiples of `grain`.
        grain: tokens per lawful split.
        takes_visibility: whether it accepts a `visible` function.
        max_context: tokens it can look back on, None when unbounded.
        state_bytes: bytes of float32 state per row.
        sliding: leaves of the state, (B, M, ...), that every valid token moves by one place, the newest last; of a memory n tokens
            old only the last n places are read.
        parallel: how training goes over the tokens of a sequence: "full" (all at once), "chunk" (chunks in matrix products),
            "scan" (an elementwise recurrence), "sequential" (one by one).
    """

    streaming: str = "exact"
    grain: int = 1
    takes_visibility: bool = False
    max_context: int | None = None
    state_bytes: int = 0
    sliding: tuple[str, ...] = ()
    parallel: Literal["full", "chunk", "scan", "sequential"] = "full"


class Mixer(nn.Module, ABC):
    """Abstract; constructed as `Owner(config, width)` or, where it takes one, `Owner(config, width, visible=...)`."""

    facts: Facts

    @abstractmethod
    def initial_state(self, rows: int) -> State:
        """The state of rows whose memory is empty, on the mixer's device."""

    @abstractmethod
    def forward(
        self, x_BLD: Tensor, state: State | None = None, *, tokens: Tokens | None = None, read: slice | None = None
    ) -> Mixed:
        """Outputs at all tokens, or only at `read` (a slice of L), and the state after them if one was given."""


class MixerConfig(Config):
    """Base of all mixer configs; `build(width, visible=None)` makes the mixer."""


_COPY_ALWAYS = False


@contextmanager
def copying_states() -> Iterator[None]:
    """A testing mode in which no state is ever written in place; results must be equal with and without it."""
    global _COPY_ALWAYS
    before, _COPY_ALWAYS = _COPY_ALWAYS, True
    try:
        yield
    finally:
        _COPY_ALWAYS = before


def may_write_in_place() -> bool:
    """Whether a state may be written in place just now: gradients are off and the testing mode is not on."""
    return not torch.is_grad_enabled() and not _COPY_ALWAYS
