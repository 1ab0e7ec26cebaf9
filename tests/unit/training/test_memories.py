"""States before segments: what slides lies once in a line of steps, and every segment finds its own window of it."""

import pytest
import torch

from foretoken.training.memories import Memories

ROWS, SEGMENTS, LENGTH = 2, 5, 3


def states(reach: int) -> list[dict]:
    """The states before each segment: a window of the last `reach` numbers, beside a matrix and a clock that have no past."""
    line = torch.arange(1.0, 1 + ROWS * (reach + SEGMENTS * LENGTH)).view(ROWS, -1, 1).expand(-1, -1, 2)
    made = []
    for number in range(SEGMENTS):
        window = line[:, number * LENGTH : number * LENGTH + reach]
        made.append(
            {"0": {"inputs": window, "held": torch.full((ROWS,), number)}, "1": {"sum": torch.randn(ROWS, 2, 3)}}
        )
    return made


@pytest.mark.parametrize("reach", [1, 2, 3, 4, 7, 20])
def test_every_state_is_given_back_and_what_they_share_is_kept_once(reach):
    told = states(reach)
    memories = Memories(told[0], [("0", "inputs")], segments=SEGMENTS, length=LENGTH)
    for number, state in enumerate(told):
        memories.put(number, state)
    assert memories.rooms["0"]["inputs"].shape == (ROWS, reach + (SEGMENTS - 1) * min(reach, LENGTH), 2)
    assert memories.rooms["1"]["sum"].shape == (ROWS, SEGMENTS, 2, 3)
    chosen = torch.tensor([7, 0, 4, 9, 0])
    found = memories.take(chosen)
    for i, (row, number) in enumerate(divmod(one, SEGMENTS) for one in chosen.tolist()):
        for part, leaves in told[number].items():
            assert all(torch.equal(found[part][name][i], leaf[row]) for name, leaf in leaves.items())
    assert all(leaf.is_contiguous() for part in found.values() for leaf in part.values())
    found["0"]["inputs"].zero_()
    assert torch.equal(memories.take(chosen)["0"]["inputs"][0], told[2]["0"]["inputs"][1])


def test_what_does_not_slide_is_kept_whole():
    told = states(4)
    memories = Memories(told[0], [], segments=SEGMENTS, length=LENGTH)
    for number, state in enumerate(told):
        memories.put(number, {"0": {**state["0"], "inputs": -state["0"]["inputs"] * number}, "1": state["1"]})
    assert memories.rooms["0"]["inputs"].shape == (ROWS, SEGMENTS, 4, 2)
    assert torch.equal(memories.take(torch.tensor([8]))["0"]["inputs"][0], -3 * told[3]["0"]["inputs"][1])
