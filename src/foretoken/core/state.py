"""State trees: nested mappings of tensors, row first.

A state's structure, shapes and dtypes never change while acting; clocks are per row; there is no None and no Python
number in it, and complex values are kept as a last axis of 2. So a state can be stored, sliced by rows, exported and
handed between processes without knowing what it means.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

State: TypeAlias = Mapping[str, Any]


def write_rows(state: State, born: State, rows: Tensor) -> State:
    """Out of place: `state` with the rows `rows` (K,) int64 replaced by the K rows of `born`."""
    return tree_map(lambda old, new: old.index_copy(0, rows, new.to(old.dtype)), state, born)


def where_rows(chosen_B: Tensor, yes: State, no: State) -> State:
    """Row by row, `yes` where `chosen_B` is true and `no` elsewhere; the compilable form of `write_rows`."""
    return tree_map(lambda a, b: torch.where(chosen_B.reshape(-1, *[1] * (a.dim() - 1)), a, b), yes, no)


def gather(state: State, rows: Tensor) -> State:
    """Copies of the rows `rows` (K,) int64, repeats allowed: branching, beam search, dropping finished rows."""
    return tree_map(lambda leaf: leaf.index_select(0, rows), state)


def stack(*states: State) -> State:
    """The rows of several states after one another."""
    return tree_map(lambda *leaves: torch.cat(leaves), *states)


def to(state: State, *args: Any, **kwargs: Any) -> State:
    """Every leaf moved by `Tensor.to`."""
    return tree_map(lambda leaf: leaf.to(*args, **kwargs), state)


def detach(state: State) -> State:
    """The same values, cut from the graph: truncated back-propagation through time."""
    return tree_map(lambda leaf: leaf.detach(), state)


def nbytes(state: State) -> int:
    """Bytes held by all leaves."""
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(state))
