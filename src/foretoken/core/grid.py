"""The cells of a square grid, numbered row by row, and its pairs of neighbours: what mazes and their readers must agree on."""

import numpy as np


def passages(size: int) -> np.ndarray:
    """(P, 2) int64: the pairs of neighbouring cells of a grid of `size` x `size`, all downward ones first, each row by row."""
    cells = np.arange(size * size).reshape(size, size)
    down, right = (cells[:-1], cells[1:]), (cells[:, :-1], cells[:, 1:])
    return np.concatenate([np.stack(pair, axis=-1).reshape(-1, 2) for pair in (down, right)])
