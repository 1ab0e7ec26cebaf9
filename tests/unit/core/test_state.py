"""State trees: writing, choosing, gathering and joining rows."""

import torch

from foretoken.core import state


def rows(*numbers: int) -> state.State:
    column = torch.tensor(numbers)
    return {"a": column.float()[:, None].expand(-1, 3).clone(), "inner": {"clock": column.clone()}}


def clocks(tree: state.State) -> list[int]:
    assert torch.equal(tree["a"][:, 0].long(), tree["inner"]["clock"])
    return tree["inner"]["clock"].tolist()


def test_write_rows_is_out_of_place() -> None:
    before = rows(0, 1, 2, 3)
    assert clocks(state.write_rows(before, rows(8, 9), torch.tensor([3, 1]))) == [0, 9, 2, 8]
    assert clocks(before) == [0, 1, 2, 3]


def test_where_rows_is_write_rows() -> None:
    chosen = torch.tensor([False, True, False, True])
    assert clocks(state.where_rows(chosen, rows(5, 6, 7, 8), rows(0, 1, 2, 3))) == [0, 6, 2, 8]


def test_gather_copies_with_repeats() -> None:
    before = rows(4, 5, 6)
    branches = state.gather(before, torch.tensor([2, 0, 2]))
    assert clocks(branches) == [6, 4, 6]
    branches["a"][0] = -1
    branches["inner"]["clock"][0] = -1
    assert clocks(before) == [4, 5, 6] and clocks(branches) == [-1, 4, 6]


def test_stack_and_size() -> None:
    joined = state.stack(rows(1), rows(2, 3))
    assert clocks(joined) == [1, 2, 3]
    assert state.nbytes(joined) == 3 * (3 * 4 + 8)
    assert state.to(joined, torch.float64)["a"].dtype == torch.float64


def test_detach_cuts_the_graph() -> None:
    tree = {"a": torch.ones(2, requires_grad=True) * 2}
    assert tree["a"].requires_grad and not state.detach(tree)["a"].requires_grad
    assert state.nbytes({}) == 0
