"""Blockwise attention beyond the laws: Attention itself at every size, dropout that can be drawn again, precision."""

import pytest
import torch

from foretoken.core.errors import ConfigError
from foretoken.nn.mixer import Tokens
from foretoken.nn.mixers.attention import AttentionConfig
from foretoken.nn.mixers.blockwise import BlockwiseAttentionConfig


@pytest.mark.parametrize("inner", [
    AttentionConfig(num_heads=2), AttentionConfig(num_heads=2, window=20, positions="rotary"),
])  # fmt: skip
@pytest.mark.parametrize("blocks", [(16, 16), (7, 30), (500, 3)])
@pytest.mark.parametrize("told", [True, False])
def test_it_is_attention(inner: AttentionConfig, blocks: tuple[int, int], told: bool) -> None:
    torch.manual_seed(0)
    config = BlockwiseAttentionConfig(attention=inner, query_block=blocks[0], key_block=blocks[1])
    layer, x = config.build(8).double(), torch.randn(2, 70, 8, dtype=torch.float64)
    tokens = Tokens(torch.rand(2, 70) < 0.8, torch.rand(2, 70) < 0.05) if told else Tokens()
    weight = torch.randn_like(x)
    for read in (None, slice(3, None, 3), slice(-1, None)):
        found = []
        for run in (layer.attention, layer):
            leaf = x.clone().requires_grad_()
            y = run(leaf, tokens=tokens, read=read).y
            found.append(
                (y, *torch.autograd.grad((y * weight[:, read or slice(None)]).sum(), [leaf, *layer.parameters()]))
            )
        torch.testing.assert_close(*found)


def test_visibility_may_reach_ahead() -> None:
    torch.manual_seed(0)
    config = BlockwiseAttentionConfig(query_block=4, key_block=5)
    layer = config.build(8, visible=lambda query, key: query.step[:, :, None] >= key.step[:, None, :]).double()
    x, tokens = torch.randn(2, 21, 8, dtype=torch.float64), Tokens(step=torch.arange(21).expand(2, -1) // 3)
    want = layer.attention(x, tokens=tokens).y
    torch.testing.assert_close(layer(x, tokens=tokens).y, want)
    assert not torch.allclose(want, config.build(8).double()(x).y)


def test_dropped_weights_are_the_same_in_the_backward_pass() -> None:
    torch.manual_seed(0)
    layer = BlockwiseAttentionConfig(attention=AttentionConfig(num_heads=2, dropout=0.4), query_block=3, key_block=2)
    layer = layer.build(4).double()

    def run(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return layer(x).y

    assert torch.autograd.gradcheck(run, torch.randn(2, 7, 4, dtype=torch.float64, requires_grad=True))
    with torch.no_grad():
        x = torch.randn(1, 7, 4, dtype=torch.float64)
        many = layer(x.expand(4000, -1, -1)).y
        assert float(many.std(0).mean()) > 1e-3
        torch.testing.assert_close(many.mean(0, keepdim=True), layer.eval()(x).y, atol=0.03, rtol=0)


def test_low_precision_adds_up_in_full() -> None:
    torch.manual_seed(0)
    layer = BlockwiseAttentionConfig(query_block=4, key_block=4).build(8)
    x = torch.randn(2, 30, 8, requires_grad=True)
    want = layer(x).y
    (gradient,) = torch.autograd.grad(want.square().sum(), x)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x).y
    assert y.dtype == torch.bfloat16
    (low,) = torch.autograd.grad(y.float().square().sum(), x)
    torch.testing.assert_close(y.float(), want, rtol=0.05, atol=0.02)
    torch.testing.assert_close(low, gradient, rtol=0.1, atol=0.05)


def test_empty_and_bad_settings() -> None:
    layer = BlockwiseAttentionConfig().build(8)
    assert layer(torch.zeros(2, 0, 8)).y.shape == (2, 0, 8)
    assert layer(torch.zeros(0, 3, 8)).y.shape == (0, 3, 8)
    assert layer(torch.zeros(2, 3, 8), read=slice(3, None)).y.shape == (2, 0, 8)
    with pytest.raises(ConfigError, match="key_block must be at least 1, got 0"):
        BlockwiseAttentionConfig(key_block=0)
