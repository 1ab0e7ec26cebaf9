"""Transformer-XL attention beyond the laws: the published segment-wise form, initial values, bad settings, precision."""

import pytest
import torch
from torch.nn import functional as F

from foretoken.core.errors import ConfigError
from foretoken.core.state import detach
from foretoken.nn.mixer import Tokens
from foretoken.nn.mixers.transformer_xl import TransformerXL, TransformerXLConfig
from foretoken.nn.stack import BlockConfig, StackConfig
from foretoken.testing.agreement import perturb


def build(width: int = 8, **settings) -> TransformerXL:
    torch.manual_seed(0)
    layer = TransformerXLConfig(**settings).build(width)
    perturb(layer, 0)
    return layer.double().eval()


def segment_wise(layer: TransformerXL, x_LD: torch.Tensor, past_MD: torch.Tensor) -> torch.Tensor:
    """One segment after `past_MD`, by full matrices: every token sees all of the past and the segment up to itself."""
    length, width = x_LD.shape
    window = torch.cat((past_MD, x_LD))
    distance = torch.arange(len(window) - length, len(window))[:, None] - torch.arange(len(window))
    angle = distance[..., None] / 10_000 ** (torch.arange(0, width, 2, dtype=x_LD.dtype) / width)
    r = layer.distance(torch.cat((angle.sin(), angle.cos()), -1))
    heads = []
    for head in range(layer.config.num_heads):
        at = slice(head * layer.head_width, (head + 1) * layer.head_width)
        q, k, v = layer.query(x_LD)[:, at], layer.key(window)[:, at], layer.value(window)[:, at]
        scores = (q + layer.u[head]) @ k.T + torch.einsum("ie,ije->ij", q + layer.v[head], r[..., at])
        scores = (scores / layer.head_width**0.5).masked_fill(distance < 0, -torch.inf)
        heads.append(F.softmax(scores, -1) @ v)
    return layer.out(torch.cat(heads, -1))


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_with_memory_to_spare_it_is_the_published_layer(heads: int) -> None:
    layer = build(num_heads=heads, memory=40)
    x = torch.randn(1, 24, 8, dtype=torch.float64)
    want, state, parts = [], layer.initial_state(1), []
    for at in range(0, 24, 6):
        want.append(segment_wise(layer, x[0, at : at + 6], x[0, :at]))
        y, state, _ = layer(x[:, at : at + 6], state)
        parts.append(y[0])
    torch.testing.assert_close(torch.cat(parts), torch.cat(want))
    torch.testing.assert_close(layer(x).y[0], torch.cat(want))


def test_a_segment_first_token_sees_as_far_as_in_the_paper() -> None:
    layer = build(num_heads=2, memory=5)
    x = torch.randn(1, 12, 8, dtype=torch.float64)
    got = layer(x).y[0]
    torch.testing.assert_close(got[9], segment_wise(layer, x[0, 9:10], x[0, 4:9])[0])
    assert not torch.allclose(got[10], segment_wise(layer, x[0, 9:11], x[0, 4:9])[1])  # the paper's second sees further


@pytest.mark.parametrize("length", [2, 8, 9, 17, 40])
@pytest.mark.parametrize("given", [True, False])
def test_blocks_and_few_queries_give_what_single_steps_give(length: int, given: bool) -> None:
    layer = build(num_heads=2, memory=4)
    x = torch.randn(3, length + 3, 8, dtype=torch.float64)
    tokens = Tokens(fresh=torch.rand(3, length + 3) < 0.1)
    with torch.no_grad():
        state, want = layer.initial_state(3), []
        for at in range(length + 3):
            y, state, _ = layer(x[:, at : at + 1], state, tokens=Tokens(fresh=tokens.fresh[:, at : at + 1]))
            want.append(y)
        first = layer(x[:, :3], layer.initial_state(3), tokens=Tokens(fresh=tokens.fresh[:, :3])).state
        if given:
            got = layer(x[:, 3:], first, tokens=Tokens(fresh=tokens.fresh[:, 3:]))
            torch.testing.assert_close(got.y, torch.cat(want[3:], 1))
            torch.testing.assert_close(got.state["inputs"][:, -1], x[:, -1])
        else:
            torch.testing.assert_close(layer(x, tokens=tokens).y, torch.cat(want, 1))


def test_gradients_reach_the_past_until_they_are_cut() -> None:
    layer = build(memory=4)
    for cut in (False, True):
        past = torch.randn(1, 3, 8, dtype=torch.float64, requires_grad=True)
        state = layer(past, layer.initial_state(1)).state
        y = layer(torch.randn(1, 2, 8, dtype=torch.float64), detach(state) if cut else state).y
        assert (y.requires_grad and y.sum().backward() is None and past.grad is not None) is not cut


def test_a_stack_shares_what_its_layers_need() -> None:
    torch.manual_seed(0)
    stack = StackConfig(width=8, num_layers=3, pattern=(BlockConfig(mixer=TransformerXLConfig(num_heads=2, memory=4)),))
    stack = stack.build().double().eval()
    assert bool(stack.layers()[0].mixer.u.any())
    x, tokens = torch.randn(2, 15, 8, dtype=torch.float64), Tokens(torch.rand(2, 15) < 0.8, torch.rand(2, 15) < 0.2)
    with torch.no_grad():
        want, state, parts = stack(x, tokens=tokens).y, stack.initial_state(2), []
        for at in range(15):
            told = Tokens(tokens.valid[:, at : at + 1], tokens.fresh[:, at : at + 1])
            y, state, _ = stack(x[:, at : at + 1], state, tokens=told)
            parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1)[tokens.valid], want[tokens.valid])


@pytest.mark.parametrize("length", [1, 30])
def test_low_precision_keeps_a_full_memory(length: int) -> None:
    torch.manual_seed(0)
    layer = TransformerXLConfig(num_heads=2, memory=6).build(8).eval()
    x = torch.randn(2, length, 8)
    with torch.no_grad():
        want = layer(x, layer.initial_state(2)).y
        with torch.autocast("cpu", torch.bfloat16):
            y, state, _ = layer(x, layer.initial_state(2))
        assert state["inputs"].dtype == torch.float32
        torch.testing.assert_close(y.float(), want, rtol=0.05, atol=0.02)
        layer.bfloat16()
        y, state, _ = layer(x.bfloat16(), layer.initial_state(2))
        assert (y.dtype, state["inputs"].dtype) == (torch.bfloat16, torch.float32)
        torch.testing.assert_close(y.float(), want, rtol=0.05, atol=0.02)


def test_dropped_weights_keep_the_mean_and_nothing_is_asked_of_nothing() -> None:
    torch.manual_seed(0)
    layer = TransformerXLConfig(num_heads=2, dropout=0.3).build(8)
    x = torch.randn(1, 5, 8)
    with torch.no_grad():
        many = layer(x.expand(4000, -1, -1)).y
        assert float(many.std(0).mean()) > 1e-3
        torch.testing.assert_close(many.mean(0, keepdim=True), layer.eval()(x).y, atol=0.03, rtol=0)
    assert layer(x[:, :0]).y.shape == (1, 0, 8)
    assert layer(x[:0]).y.shape == (0, 5, 8)
    assert layer(x, read=slice(5, None)).y.shape == (1, 0, 8)


def test_bad_settings_are_named() -> None:
    for given, message in (
        ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"memory": 0}, "memory must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            TransformerXLConfig(**given)
    for width, heads in ((10, 4), (9, 3)):
        with pytest.raises(ConfigError, match=f"an even width, got width={width} and num_heads={heads}"):
            TransformerXLConfig(num_heads=heads).build(width)
