"""The window of a policy: the newest step last, the oldest forgotten, rows of different ages."""

import torch
from torch.utils._pytree import tree_map

from foretoken.core.spec import Box, Dict, Discrete
from foretoken.core.state import write_rows
from foretoken.methods import history

SPACE = Dict(spaces={"a": Box(shape=(2,), dtype="float64"), "b": Discrete(n=9)})
CPU = torch.device("cpu")


def grown(steps: int, *, rows: int = 2, length: int = 3) -> dict:
    state = history.begin(rows, length, CPU, observation=SPACE, condition=1)
    for t in range(steps):
        state = push(state, t)
    return state


def push(state: dict, t: int) -> dict:
    rows = len(state["seen"])
    observation = {"a": torch.full((rows, 2), float(t)), "b": torch.full((rows,), t)}
    return history.push(
        state, observation=observation, condition=torch.full((rows, 1), 10.0 * t), timestep=torch.full((rows,), t)
    )


def test_keeps_the_last_steps() -> None:
    columns, valid = history.window(grown(5))
    assert columns["timestep"].tolist() == [[2, 3, 4]] * 2 and bool(valid.all())
    assert columns["observation"]["b"].tolist() == [[2, 3, 4]] * 2
    assert columns["observation"]["a"].dtype == torch.float32 and columns["condition"][0, :, 0].tolist() == [
        20.0,
        30.0,
        40.0,
    ]


def test_short_histories_are_trimmed_or_padded_on_the_left() -> None:
    columns, valid = history.window(grown(2))
    assert columns["timestep"].tolist() == [[0, 1]] * 2 and valid.shape == (2, 2) and bool(valid.all())
    columns, valid = history.window(grown(2), trim=False)
    assert columns["timestep"].tolist() == [[0, 0, 1]] * 2 and valid.tolist() == [[False, True, True]] * 2


def test_rows_have_their_own_age() -> None:
    state = write_rows(grown(4), grown(0, rows=1), torch.tensor([0]))
    columns, valid = history.window(push(state, 7))
    assert columns["timestep"].tolist() == [[0, 0, 7], [2, 3, 7]]
    assert valid.tolist() == [[False, False, True], [True, True, True]]


def test_shapes_never_change() -> None:
    def describe(tree: dict) -> dict:
        return tree_map(lambda leaf: (leaf.shape, leaf.dtype), tree)

    assert describe(grown(0)) == describe(grown(1)) == describe(grown(9))
