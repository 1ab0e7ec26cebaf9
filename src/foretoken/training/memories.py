"""The policy's states before the segments of a rollout, what they have in common kept once.

What slides (`Facts.sliding`) holds the last M steps, so the windows of successive segments overlap wherever M is longer than a
segment. They are laid into one line of steps per row, in which every segment finds its own. All else is kept as it was.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from foretoken.core.state import State


class Memories:
    """Room on the CPU for the states of all rows before each segment.

    Args:
        state: of all rows; says what there is to keep.
        sliding: paths of the leaves (B, M, ...) that a step moves by one place, the newest last.
        segments: of a row.
        length: steps of a segment.

    Attributes:
        rooms: the state's tree: (B, M + (segments - 1) min(M, length), ...) for what slides, (B, segments, ...) for the rest.
    """

    def __init__(self, state: State, sliding: Iterable[tuple[str, ...]], *, segments: int, length: int) -> None:
        self.segments = segments
        self._reach = _reach(state, frozenset(sliding))
        self._step = tree_map(lambda reach: min(reach, length), self._reach)
        self.rooms = tree_map(self._room, dict(state), self._reach, self._step)

    def _room(self, leaf: Tensor, reach: int, step: int) -> Tensor:
        shape = (reach + (self.segments - 1) * step, *leaf.shape[2:]) if reach else (self.segments, *leaf.shape[1:])
        return torch.empty(len(leaf), *shape, dtype=leaf.dtype)

    def put(self, number: int, state: State) -> None:
        """Keeps the states before every row's segment of this number; to be called for all of them in order."""

        def put(room: Tensor, leaf: Tensor, reach: int, step: int) -> None:
            if not reach:
                room[:, number] = leaf
            else:
                new, end = step if number else reach, reach + number * step
                room[:, end - new : end] = leaf[:, -new:]

        tree_map(put, self.rooms, dict(state), self._reach, self._step)

    def take(self, chosen: Tensor) -> State:
        """Copies of the states before some segments (K,) int64, which are counted through all of a row and then the next.

        Before a memory's beginning its windows show what the row held then, which nobody reads.
        """
        row, number = chosen // self.segments, chosen % self.segments

        def take(room: Tensor, reach: int, step: int) -> Tensor:
            first = row * room.shape[1] + number * max(step, 1)
            at = first[:, None] + torch.arange(max(reach, 1))
            found = room.flatten(0, 1).index_select(0, at.flatten()).unflatten(0, at.shape)
            return found if reach else found.squeeze(1)

        state: State = tree_map(take, self.rooms, self._reach, self._step)
        return state


def _reach(state: Any, sliding: frozenset[tuple[str, ...]], path: tuple[str, ...] = ()) -> Any:
    """The state's tree, with M for what slides and 0 for the rest."""
    if isinstance(state, Tensor):
        return state.shape[1] if path in sliding else 0
    return {name: _reach(part, sliding, (*path, name)) for name, part in state.items()}
