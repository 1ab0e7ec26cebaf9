"""One mixer under test: its weights, its inputs, and pieces of both."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from foretoken.core.state import State
from foretoken.nn.mixer import Mixed, Mixer, MixerConfig, Tokens
from foretoken.testing.agreement import perturb

Reference = Callable[[Any, Tensor, Tokens], Tensor]


@dataclass(frozen=True)
class Trial:
    """One mixer under test.

    Args:
        config, width: what is built.
        reference: the same layer for one row in plain loops, `(mixer, x (L, D), tokens) -> (L, D)`.
        rows: B of the inputs.
        slack: tokens beyond one that may be tried and dropped while streaming in place.
        tolerance: allowed relative difference in float64.
        seed: of weights and inputs.
    """

    config: MixerConfig
    width: int
    reference: Reference
    rows: int = 3
    slack: int = 0
    tolerance: float = 1e-9
    seed: int = 0

    def build(self, dtype: torch.dtype = torch.float64, **kwargs: Any) -> Mixer:
        torch.manual_seed(self.seed)
        mixer: Mixer = self.config.build(self.width, **kwargs)
        perturb(mixer, self.seed)
        return mixer.eval().to(dtype)

    def input(self, length: int, *, purpose: int = 0, scale: float = 1.0) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * self.seed + 10 * length + purpose)
        return scale * torch.randn(self.rows, length, self.width, generator=generator, dtype=torch.float64)

    def tokens(
        self, mixer: Mixer, length: int, *, padding: float = 0.2, fresh: float = 0.08, purpose: int = 0
    ) -> Tokens:
        """Random padding, and memories that begin at different times in different rows, none longer than the mixer promises."""
        generator = torch.Generator().manual_seed(7 + 1000 * self.seed + 10 * length + purpose)
        valid = torch.rand(self.rows, length, generator=generator) >= padding
        begins = torch.rand(self.rows, length, generator=generator) < fresh
        limit = mixer.facts.max_context
        if mixer.facts.streaming == "within_window" and limit is not None:
            for row in range(self.rows):
                age = row  # rows differ in when they reach the limit
                for at in range(length):
                    age = 0 if begins[row, at] else age
                    age += int(valid[row, at])
                    if age > limit:
                        begins[row, at], age = True, int(valid[row, at])
        step = torch.arange(length).expand(self.rows, -1)
        return Tokens(valid=valid, fresh=begins, step=step, group=step % 3)

    def sizes(self, length: int) -> str:
        return f"{self.config}, width={self.width}, rows={self.rows}, length={length}"


def trial_of(config: MixerConfig, width: int, *, reference: Reference | None = None, **trial: Any) -> Trial:
    """The trial of a mixer, with the `reference` of its own module unless one is given."""
    if reference is None:
        reference = getattr(sys.modules[type(config).__module__], "reference", None)
        if reference is None:
            raise AssertionError(
                f"{type(config).__module__} offers no reference(mixer, x_LD, tokens); every mixer needs one"
            )
    return Trial(config, width, reference, **({"slack": getattr(config, "slack", 0)} | trial))


def cut(tokens: Tokens, part: slice | Tensor) -> Tokens:
    """The tokens of a slice of the sequence, or of a mask (L,)."""
    return tokens.map(lambda leaf: leaf[:, part])


def pick(tokens: Tokens, rows: Tensor | slice) -> Tokens:
    """The tokens of some rows."""
    return tokens.map(lambda leaf: leaf[rows])


def stream(mixer: Mixer, x: Tensor, tokens: Tokens, cuts: list[int], state: State | None = None) -> Mixed:
    """The outputs of the pieces between `cuts`, joined, and the state after them."""
    state = mixer.initial_state(len(x)) if state is None else state
    outputs = []
    for begin, end in zip([0, *cuts], [*cuts, x.shape[1]], strict=True):
        if begin < end:
            y, state, _ = mixer(x[:, begin:end], state, tokens=cut(tokens, slice(begin, end)))
            outputs.append(y)
    return Mixed(torch.cat(outputs, 1), state)


def copied(state: State) -> State:
    """A copy, for use beside a state that may be written in place."""
    return tree_map(torch.clone, state)


def reached(mixer: Mixer, x: Tensor, tokens: Tokens) -> State:
    """The state after a whole sequence."""
    state = stream(mixer, x, tokens, []).state
    assert state is not None
    return state


def whole_length(mixer: Mixer, length: int) -> int:
    """`length` as a multiple of the mixer's grain."""
    return -(-length // mixer.facts.grain) * mixer.facts.grain


def within_limit(mixer: Mixer, length: int, calls: int = 1) -> int:
    """A whole length of which `calls` stay within what the mixer promises."""
    limit = mixer.facts.max_context if mixer.facts.streaming == "within_window" else None
    return whole_length(mixer, length) if limit is None else min(whole_length(mixer, length), max(1, limit // calls))


def cuttings(mixer: Mixer, length: int) -> dict[str, list[int]]:
    """Ways to cut a sequence into calls, by name."""
    grain = mixer.facts.grain
    generator = torch.Generator().manual_seed(length)
    places = list(range(grain, length, grain))
    some = [place for place in places if torch.rand((), generator=generator) < 0.15]
    return {"one call": [], "one cut": places[len(places) // 2 :][:1], "some cuts": some, "step by step": places}
