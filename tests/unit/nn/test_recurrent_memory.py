"""Recurrent memory around a Stack: any split is the whole, clean starts, rows, padding, gradients, a naive reference."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from foretoken.core.errors import ConfigError
from foretoken.nn.mixer import Tokens
from foretoken.nn.mixers.attention import AttentionConfig
from foretoken.nn.mixers.linear_attention import LinearAttentionConfig
from foretoken.nn.recurrent_memory import RecurrentMemory, RecurrentMemoryConfig, reference
from foretoken.nn.stack import BlockConfig, CrossAttentionConfig, StackConfig
from foretoken.testing.agreement import perturb
from foretoken.testing.trial import cut, pick


def stack(mixer) -> StackConfig:
    return StackConfig(width=8, num_layers=2, pattern=(BlockConfig(mixer=mixer),))


ATTENTION = stack(AttentionConfig(num_heads=2, capacity=20))
CONFIGS = {
    "plain": RecurrentMemoryConfig(backbone=ATTENTION, memory_tokens=2, segment=5),
    "valve, mutual": RecurrentMemoryConfig(
        backbone=ATTENTION, memory_tokens=3, segment=4, valve=CrossAttentionConfig(num_heads=2), mutual=True
    ),
    "a recurrent backbone": RecurrentMemoryConfig(backbone=stack(LinearAttentionConfig()), memory_tokens=2, segment=5),
    "segments of one token": RecurrentMemoryConfig(backbone=ATTENTION, memory_tokens=1, segment=1),
    "cut gradients": RecurrentMemoryConfig(backbone=ATTENTION, memory_tokens=2, segment=5, depth=0),
    "gradients through one segment": RecurrentMemoryConfig(backbone=ATTENTION, memory_tokens=2, segment=3, depth=1),
    "no memory": RecurrentMemoryConfig(backbone=ATTENTION, memory_tokens=0, segment=5),
}
LENGTH, ROWS = 17, 3


def build(name: str) -> RecurrentMemory:
    torch.manual_seed(0)
    module = CONFIGS[name].build()
    perturb(module, 0)
    return module.double().eval()


def drawn(seed: int = 1) -> tuple[torch.Tensor, Tokens]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, LENGTH, 8, generator=generator, dtype=torch.float64)
    valid = torch.rand(ROWS, LENGTH, generator=generator) < 0.8
    return x, Tokens(valid=valid, fresh=torch.rand(ROWS, LENGTH, generator=generator) < 0.1)


def streamed(module: RecurrentMemory, x: torch.Tensor, tokens: Tokens, sizes: list[int], state=None) -> tuple:
    state, parts, at = module.initial_state(len(x)) if state is None else state, [], 0
    for size in sizes:
        y, state, _ = module(x[:, at : at + size], state, tokens=cut(tokens, slice(at, at + size)))
        parts.append(y)
        at += size
    return torch.cat(parts, 1), state


SPLITS = {"one call": [17], "in two": [7, 10], "here and there": [1, 6, 2, 8], "step by step": [1] * 17}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("plain", [True, False])
def test_any_split_is_the_whole_and_the_reference(name: str, plain: bool) -> None:
    module = build(name)
    x, tokens = drawn()
    tokens = Tokens() if plain else tokens
    with torch.no_grad():
        want = module(x, tokens=tokens).y
        rows = (Tokens(*(None if leaf is None else leaf[b] for leaf in tokens)) for b in range(ROWS))
        naive = torch.stack([reference(module, x[b], row) for b, row in enumerate(rows)])
        torch.testing.assert_close(want, naive)
        after = None
        for split, sizes in SPLITS.items():
            got, state = streamed(module, x, tokens, sizes)
            torch.testing.assert_close(got, want, msg=lambda text, split=split: f"{split}: {text}")
            tail = module(x, state).y
            after = tail if after is None else after
            torch.testing.assert_close(tail, after, msg=lambda text, split=split: f"after {split}: {text}")
        for read in (slice(-1, None), slice(2, None, 3), slice(0, 0)):
            torch.testing.assert_close(module(x, tokens=tokens, read=read).y, want[:, read])
            torch.testing.assert_close(module(x, module.initial_state(ROWS), tokens=tokens, read=read).y, want[:, read])


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_those_of_the_reference_however_split(name: str) -> None:
    module = build(name)
    x, tokens = drawn()
    weight = torch.randn_like(x)
    found = []
    for way in ("reference", "whole", "in two", "step by step"):
        leaf = x.clone().requires_grad_()
        if way == "reference":
            rows = (pick(tokens, torch.tensor([b])) for b in range(ROWS))
            y = torch.stack(
                [reference(module, leaf[b], Tokens(row.valid[0], row.fresh[0])) for b, row in enumerate(rows)]
            )
        else:
            y = module(leaf, tokens=tokens).y if way == "whole" else streamed(module, leaf, tokens, SPLITS[way])[0]
        parameters = [part for part in module.parameters() if part.requires_grad]
        found.append(torch.autograd.grad((y * weight).sum(), [leaf, *parameters]))
    for gradients in found[1:]:
        torch.testing.assert_close(gradients, found[0])


@pytest.mark.parametrize(
    ("name", "back"),
    [
        ("plain", 0),
        ("valve, mutual", 0),
        ("cut gradients", 15),
        ("gradients through one segment", 12),
        ("no memory", 15),
    ],
)
def test_memory_reaches_across_segments_and_gradients_as_deep_as_asked(name: str, back: int) -> None:
    module = build(name)
    x = torch.randn(1, 17, 8, dtype=torch.float64, requires_grad=True)
    y = module(x).y
    (gradient,) = torch.autograd.grad((y[:, -1] * torch.randn(8)).sum(), x)
    assert (gradient[0].abs().sum(-1) > 1e-9).tolist() == [t >= back for t in range(17)]
    with torch.no_grad():
        moved = not torch.allclose(module(torch.cat((-x[:, :1], x[:, 1:]), 1)).y[:, -1], y[:, -1])
        assert moved is (name != "no memory")
        torch.testing.assert_close(module(torch.cat((x[:, :-1], x[:, -1:] + 9), 1)).y[:, :-1], y[:, :-1])  # never back


def test_a_fresh_memory_is_a_new_start_and_rows_do_not_meet() -> None:
    module = build("plain")
    x, tokens = drawn()
    with torch.no_grad():
        want = module(x).y
        state = streamed(module, 100 * torch.randn_like(x), tokens, [17])[1]
        fresh = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
        fresh[:, 0] = True
        for sizes in SPLITS.values():
            torch.testing.assert_close(streamed(module, x, Tokens(fresh=fresh), sizes, state)[0], want)
        padding = Tokens(
            valid=torch.zeros(ROWS, 2, dtype=torch.bool), fresh=torch.tensor([[False, True]]).expand(ROWS, 2)
        )
        empty = module(x[:, :2], state, tokens=padding)
        assert not empty.y.any()
        torch.testing.assert_close(module(x, empty.state).y, want)
        order = torch.tensor([2, 0, 1])
        got, _ = streamed(module, x[order], pick(tokens, order), SPLITS["here and there"])
        torch.testing.assert_close(got[order.argsort()], streamed(module, x, tokens, SPLITS["here and there"])[0])
        torch.testing.assert_close(
            module(x[:1], tokens=pick(tokens, torch.tensor([0]))).y, module(x, tokens=tokens).y[:1]
        )


def test_the_first_memory_tokens_are_drawn_independently() -> None:
    """Not one random vector for all of them, as in RATE's released code: different, of one size, and in no relation."""
    torch.manual_seed(0)
    wide = StackConfig(width=64, num_layers=1, pattern=ATTENTION.pattern)
    memory = RecurrentMemoryConfig(backbone=wide, memory_tokens=8, segment=2).build().memory.detach()
    alike = torch.corrcoef(memory) - torch.eye(8)
    assert alike.abs().max() < 0.5 and torch.linalg.matrix_rank(memory) == 8
    assert abs(float(memory.std()) - 1) < 0.1


def test_a_row_begins_with_the_learned_memory_whoever_is_beside_it() -> None:
    """One row is in its third segment when another begins; that one answers as it does alone, and as any other would there."""
    module = build("valve, mutual")
    x, _ = drawn()
    with torch.no_grad():
        alone = streamed(module, x[:1], Tokens(), [17])[0]
        _, late = streamed(module, 3 * x, Tokens(), [9])
        fresh = torch.tensor([[False], [True], [False]])
        beside, state = x[[1, 0, 2]], late
        parts = []
        for t in range(17):
            told = Tokens(fresh=fresh if t == 0 else torch.zeros_like(fresh))
            y, state, _ = module(beside[:, t : t + 1], state, tokens=told)
            parts.append(y)
        got = torch.cat(parts, 1)
        torch.testing.assert_close(got[1:2], alone)
        after = streamed(module, torch.cat((3 * x[:, :9], beside), 1), Tokens(), [9] + [1] * 17)[0][:, 9:]
        torch.testing.assert_close(got[[0, 2]], after[[0, 2]])


def test_state_keeps_its_shape_and_nothing_is_asked_of_an_empty_sequence() -> None:
    module = build("valve, mutual")
    x, tokens = drawn()
    state = module.initial_state(ROWS)
    shapes = [(leaf.shape, leaf.dtype) for leaf in tree_leaves(state)]
    with torch.no_grad():
        _, after = streamed(module, x, tokens, SPLITS["here and there"], state)
        assert [(leaf.shape, leaf.dtype) for leaf in tree_leaves(after)] == shapes
        assert module(x[:, :0], state).y.shape == (ROWS, 0, 8)
        assert module(x[:0]).y.shape == (0, LENGTH, 8)


def test_bad_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="segment must be at least 1, got 0"):
        RecurrentMemoryConfig(segment=0)
    with pytest.raises(ConfigError, match="depth must be at least -1, got -2"):
        RecurrentMemoryConfig(depth=-2)
    with pytest.raises(ConfigError, match="a valve needs memory_tokens"):
        RecurrentMemoryConfig(memory_tokens=0, valve=CrossAttentionConfig())
    with pytest.raises(ConfigError, match=r"segment \+ 2 memory_tokens = 25 tokens; layer 0 .* looks back on 20"):
        RecurrentMemoryConfig(backbone=ATTENTION, memory_tokens=10, segment=5).build()
