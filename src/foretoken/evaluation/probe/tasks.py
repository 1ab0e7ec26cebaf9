"""The five tasks of the probe: small pure generators, each with a solver that shows what the best score is.

A problem is one tensor of features with what is to be said at each token; everything a task is about lies in the tokens.
Scores are read in the second half of a sequence. So what counts always lies behind something to remember, and at twice the
trained length nothing that counts lies where training has been.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

DELAY, SYMBOLS = 8, 8
KEYS, VALUES = 64, 8
INPUTS, NOISE = 4, 0.1
GROUP = list(permutations(range(3)))


class Problem(NamedTuple):
    """B sequences of L tokens.

    Args:
        x_BLF: features, float32.
        target_BL: what is to be said: a class (int64) or a number (float32).
        scored_BL: where something is to be said.
    """

    x_BLF: Tensor
    target_BL: Tensor
    scored_BL: Tensor


@dataclass(frozen=True)
class Task:
    """
    Args:
        name: how it is asked for; `title`: how a table calls it.
        draw: `(generator, rows, length) -> Problem`.
        solve: the best possible answers, (B, L), from the features alone.
        features: F.
        classes: number of classes; 0 where the answer is a number.
        chance: the score of guessing.
        length: tokens of a training sequence, even.
        updates: the budget of a training; `lr`: its highest learning rate.
    """

    name: str
    title: str
    draw: Callable[[Generator, int, int], Problem]
    solve: Callable[[Tensor], Tensor]
    features: int
    classes: int
    chance: float
    length: int
    updates: int
    lr: float

    def score(self, answer_BL: Tensor, problem: Problem) -> float:
        """Of the answers in the second half: the share that is right, or where numbers are asked the share of what ridge
        regression gains on answering zero. 1 is the solver, 0 is zero; it has no lower end."""
        late = slice(problem.target_BL.shape[1] // 2, None)
        counts = problem.scored_BL[:, late]
        answer, target = answer_BL[:, late][counts], problem.target_BL[:, late][counts]
        if self.classes:
            return float((answer == target).double().mean())
        best = self.solve(problem.x_BLF)[:, late][counts]
        error = lambda said: float((said.double() - target.double()).square().mean())  # noqa: E731
        nothing = error(torch.zeros_like(target))
        return (nothing - error(answer)) / (nothing - error(best))


def copy(generator: Generator, rows: int, length: int) -> Problem:
    """Delayed copy: at every token, the symbol of `DELAY` tokens ago.

    A sliding memory of 8 x 3 bits in which every symbol is needed once, in order. At twice the length the delay is the same.
    """
    symbol_BL = torch.randint(SYMBOLS, (rows, length), generator=generator)
    scored_BL = (torch.arange(length) >= DELAY).expand(rows, -1)
    return Problem(F.one_hot(symbol_BL, SYMBOLS).float(), symbol_BL.roll(DELAY, 1), scored_BL)


def solve_copy(x_BLF: Tensor) -> Tensor:
    """A queue."""
    return x_BLF.argmax(-1).roll(DELAY, 1)


def recall(generator: Generator, rows: int, length: int) -> Problem:
    """Multi-query associative recall with overwriting: what was last written under this key?

    A token writes a value under a key, or asks for a key that was written before; half of the later touches write. Each
    sequence has `length / 4` keys of its own among `KEYS`, so twice the length is twice the load.
    """
    live = min(length // 4, KEYS)
    index = torch.arange(length)
    slot_BL = torch.randint(live, (rows, length), generator=generator)
    named = torch.rand(rows, KEYS, generator=generator).argsort(-1)[:, :live]
    value_BL = torch.randint(VALUES, (rows, length), generator=generator)
    touched_BLS = F.one_hot(slot_BL, live)
    first_BL = touched_BLS.cumsum(1).gather(2, slot_BL[..., None])[..., 0] == 1
    writes_BL = first_BL | (torch.rand(rows, length, generator=generator) < 0.5)
    when_BLS = torch.where((touched_BLS * writes_BL[..., None]).bool(), index[:, None], 0).cummax(1).values
    target_BL = value_BL.gather(1, when_BLS.gather(2, slot_BL[..., None])[..., 0])
    told = F.one_hot(value_BL, VALUES) * writes_BL[..., None]
    x_BLF = torch.cat((F.one_hot(named.gather(1, slot_BL), KEYS), told), -1).float()
    return Problem(x_BLF, target_BL, ~writes_BL)


def solve_recall(x_BLF: Tensor) -> Tensor:
    """A dictionary per row."""
    key_BL, told = x_BLF[..., :KEYS].argmax(-1), x_BLF[..., KEYS:]
    written_BL, value_BL = told.any(-1), told.argmax(-1)
    answer_BL = torch.zeros_like(key_BL)
    for b, row in enumerate(zip(key_BL.tolist(), written_BL.tolist(), value_BL.tolist(), strict=True)):
        memory: dict[int, int] = {}
        for at, (key, writes, value) in enumerate(zip(*row, strict=True)):
            if writes:
                memory[key] = value
            answer_BL[b, at] = memory[key]
    return answer_BL


def tmaze(generator: Generator, rows: int, length: int) -> Problem:
    """T-maze: a cue at the first token, a corridor of misleading signs, and at its end, the junction: left or right?

    Only the junction is scored. Corridors are of any length that fits, so a score is that of the longer half.
    """
    sign_BL = torch.randint(2, (rows, length), generator=generator)
    junction_B1 = torch.randint(1, length, (rows, 1), generator=generator)
    at_junction_BL = torch.arange(length) == junction_B1
    at_start_BL = (torch.arange(length) == 0).expand(rows, -1)
    sign = F.one_hot(sign_BL, 2) * ~at_junction_BL[..., None]
    x_BLF = torch.cat((sign, at_start_BL[..., None], at_junction_BL[..., None]), -1).float()
    return Problem(x_BLF, sign_BL[:, :1].expand(-1, length), at_junction_BL)


def solve_tmaze(x_BLF: Tensor) -> Tensor:
    """Remembers the sign of the first token."""
    return x_BLF[:, :1, :2].argmax(-1).expand(-1, x_BLF.shape[1])


def regression(generator: Generator, rows: int, length: int) -> Problem:
    """In-context linear regression: a question x, then the same x with its answer y = w.x + noise, and again, w new per row.

    x is standard normal with `INPUTS` entries and w normal with variance 1 / `INPUTS`, so that y has variance 1 beside the
    noise. Question and answer are told in one token each, so one layer can pair them.
    """
    pairs = -(-length // 2)
    x = torch.randn(rows, pairs, INPUTS, generator=generator)
    w = torch.randn(rows, INPUTS, 1, generator=generator) / INPUTS**0.5
    y = (x @ w)[..., 0] + NOISE * torch.randn(rows, pairs, generator=generator)
    x_BLI, y_BL = x.repeat_interleave(2, 1)[:, :length], y.repeat_interleave(2, 1)[:, :length]
    told_BL = (torch.arange(length) % 2 == 1).expand(rows, -1)
    return Problem(torch.cat((x_BLI, (y_BL * told_BL)[..., None], told_BL[..., None]), -1), y_BL, ~told_BL)


def solve_regression(x_BLF: Tensor) -> Tensor:
    """Ridge regression on the answers so far: with these variances, the mean of w given all that was told."""
    x_BLI, y_BL, told_BL = x_BLF[..., :INPUTS].double(), x_BLF[..., INPUTS].double(), x_BLF[..., INPUTS + 1].double()
    known = x_BLI * told_BL[..., None]
    square = (known[..., :, None] * known[..., None, :]).cumsum(1)
    moment = (known * y_BL[..., None]).cumsum(1)
    w = torch.linalg.solve(square + NOISE**2 * INPUTS * torch.eye(INPUTS, dtype=torch.float64), moment)
    return (w * x_BLI).sum(-1).float()


def tracking(generator: Generator, rows: int, length: int) -> Problem:
    """State tracking: each token permutes three things; which of the six orders are they in now?

    The word problem of the group S3: the smallest in which the order of the moves matters, and parity is part of it.
    """
    move_BL = torch.randint(len(GROUP), (rows, length), generator=generator)
    after, state, states = product_table(), torch.zeros(rows, dtype=torch.int64), []
    for move in move_BL.unbind(1):
        state = after[move, state]
        states.append(state)
    return Problem(
        F.one_hot(move_BL, len(GROUP)).float(), torch.stack(states, 1), torch.ones(rows, length, dtype=torch.bool)
    )


def product_table() -> Tensor:
    """(6, 6): the number of the permutation `a after b`."""
    return torch.tensor([[GROUP.index(tuple(a[i] for i in b)) for b in GROUP] for a in GROUP])


def solve_tracking(x_BLF: Tensor) -> Tensor:
    """Moves three things about."""
    answer_BL = torch.zeros(x_BLF.shape[:2], dtype=torch.int64)
    for b, moves in enumerate(x_BLF.argmax(-1).tolist()):
        state = GROUP[0]
        for at, move in enumerate(moves):
            state = tuple(GROUP[move][i] for i in state)
            answer_BL[b, at] = GROUP.index(state)
    return answer_BL


TASKS = {
    task.name: task
    for task in (
        Task("copy", "delayed copy", copy, solve_copy, SYMBOLS, SYMBOLS, 1 / SYMBOLS, 32, 300, 3e-3),
        Task("recall", "recall", recall, solve_recall, KEYS + VALUES, VALUES, 1 / VALUES, 48, 300, 3e-3),
        Task("tmaze", "T-maze", tmaze, solve_tmaze, 4, 2, 1 / 2, 48, 200, 3e-3),
        Task("regression", "regression", regression, solve_regression, INPUTS + 2, 0, 0.0, 32, 300, 3e-3),
        Task("tracking", "state tracking", tracking, solve_tracking, 6, 6, 1 / 6, 16, 300, 1e-2),
    )
}
