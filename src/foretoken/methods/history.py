"""The last K raw steps of each row, for policies that re-read their window at every decision.

Left-padded as training windows are: the newest step is last, and `seen` counts how many are real.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from foretoken.core.spec import Dict, Space
from foretoken.core.state import State


def zeros_like_space(space: Space, lead: tuple[int, ...], device: torch.device) -> Any:
    """Zeros of shape (*lead, *space.shape), or a mapping of such for a Dict; floats are float32."""
    if isinstance(space, Dict):
        return {name: zeros_like_space(part, lead, device) for name, part in space.spaces.items()}
    dtype = getattr(torch, space.dtype)
    return torch.zeros(*lead, *space.shape, dtype=torch.float32 if dtype == torch.float64 else dtype, device=device)


def begin(rows: int, length: int, device: torch.device, **columns: Any) -> State:
    """An empty history of `length` steps; each column is a Space, the width of a float32 vector, or the dtype of a number."""

    def kept_of(kind: Any) -> Any:
        if isinstance(kind, torch.dtype):
            return torch.zeros(rows, length, dtype=kind, device=device)
        if isinstance(kind, int):
            return torch.zeros(rows, length, kind, device=device)
        return zeros_like_space(kind, (rows, length), device)

    kept = {name: kept_of(kind) for name, kind in columns.items()}
    return {
        **kept,
        "timestep": torch.zeros(rows, length, dtype=torch.int64, device=device),
        "seen": torch.zeros(rows, dtype=torch.int64, device=device),
    }


def push(state: State, **columns: Any) -> State:
    """The history after one more step; the oldest of `length` steps is forgotten."""
    length = state["timestep"].shape[1]

    def shift(kept: Tensor, new: Tensor) -> Tensor:
        return torch.cat((kept[:, 1:], new.unsqueeze(1).to(kept.dtype)), dim=1)

    moved = {
        name: tree_map(shift, state[name], dict(column) if isinstance(column, dict) else column)
        for name, column in columns.items()
    }
    return {**moved, "seen": (state["seen"] + 1).clamp(max=length)}


def window(state: State, *, trim: bool = True) -> tuple[dict[str, Any], Tensor]:
    """The kept columns (B, T, ...) and which of their steps are real, (B, T); trimmed to the longest history among the rows.

    Trimming needs the counts on the host, so exported and compiled policies pass `trim=False`.
    """
    length = state["timestep"].shape[1]
    longest = int(state["seen"].max()) if trim else length
    steps = torch.arange(length - longest, length, device=state["seen"].device)
    columns = {
        name: tree_map(lambda kept: kept[:, length - longest :], kept) for name, kept in state.items() if name != "seen"
    }
    return columns, steps >= length - state["seen"][:, None]


def up_to(column: Any, valid_BT: Tensor, index_BR: Tensor, length: int) -> Any:
    """The `length` steps up to each of some steps of windows, (B * R, length, ...); where there are fewer, the first is repeated."""
    back_K = torch.arange(1 - length, 1, device=valid_BT.device)
    first_B = valid_BT.int().argmax(1)
    index_BRK = torch.maximum(index_BR[..., None] + back_K, first_B[:, None, None])
    rows = torch.arange(len(first_B), device=valid_BT.device)[:, None, None]
    return tree_map(lambda leaf: leaf[rows, index_BRK].flatten(0, 1), column)
