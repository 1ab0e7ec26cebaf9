"""Attention beyond the laws of mixers: bad arguments, the ring past its capacity, dropout of weights."""

import pytest
import torch

from foretoken.core.errors import ConfigError
from foretoken.nn.mixer import Tokens
from foretoken.nn.mixers.attention import AttentionConfig


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"window": -1}, "window must be at least 0, got -1"),
        ({"capacity": 0}, "capacity must be at least 1, got 0"),
        ({"slack": -2}, "slack must be at least 0, got -2"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"positions": "rotory"}, "did you mean 'rotary'"),
    ],
)
def test_bad_settings_are_named(given: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AttentionConfig(**given)


def test_heads_must_fit_the_width() -> None:
    with pytest.raises(ConfigError, match="width=10 and num_heads=4"):
        AttentionConfig(num_heads=4).build(10)
    with pytest.raises(ConfigError, match="even head width, got 3"):
        AttentionConfig(num_heads=2, positions="rotary").build(6)


@pytest.mark.parametrize("positions", ["none", "rotary"])
def test_past_its_capacity_a_stream_is_a_sliding_window(positions) -> None:
    torch.manual_seed(0)
    ring = AttentionConfig(capacity=5, positions=positions).build(8).double()
    window = AttentionConfig(window=5, positions=positions).build(8).double()
    window.load_state_dict(ring.state_dict())
    x = torch.randn(2, 23, 8, dtype=torch.float64)
    with torch.no_grad():
        want = window(x).y
        for size in (1, 2, 7, 23):
            state, parts = ring.initial_state(2), []
            for piece in x.split(size, dim=1):
                y, state, _ = ring(piece, state)
                parts.append(y)
            torch.testing.assert_close(torch.cat(parts, 1), want)


@pytest.mark.parametrize(("num_heads", "bias", "window"), [(2, True, 0), (4, False, 5)])
def test_few_queries_attend_as_all_do(monkeypatch, num_heads, bias, window) -> None:
    torch.manual_seed(0)
    mixer = AttentionConfig(num_heads=num_heads, bias=bias, window=window).build(64).double()
    if bias:
        torch.nn.init.normal_(mixer.qkv.bias)
    x, valid = torch.randn(3, 19, 64, dtype=torch.float64), torch.arange(19) >= torch.tensor([[0], [4], [17]])
    tokens, read = Tokens(valid=valid, fresh=torch.arange(19).eq(8).expand(3, -1)), slice(2, None, 6)
    assert mixer._folds(3)
    few = mixer(x, tokens=tokens, read=read).y
    monkeypatch.setattr(mixer, "_folded", None)
    torch.testing.assert_close(few, mixer(x, tokens=tokens).y[:, read])


@pytest.mark.parametrize(("bias", "dropout"), [(True, 0.0), (True, 0.3), (False, 0.3)])
def test_one_head_attends_without_keys_as_with_them(monkeypatch, bias, dropout) -> None:
    torch.manual_seed(0)
    mixer = AttentionConfig(bias=bias, dropout=dropout, window=7).build(8).double().train()
    if bias:
        torch.nn.init.normal_(mixer.qkv.bias)
        torch.nn.init.normal_(mixer.out.bias)
    x, valid = torch.randn(3, 19, 8, dtype=torch.float64), torch.arange(19) >= torch.tensor([[0], [4], [17]])
    tokens, read = Tokens(valid=valid, fresh=torch.arange(19).eq(9).expand(3, -1)), slice(2, None, 2)
    assert mixer._merges(valid.numel()) and not mixer._folds(9)
    learnt, found = [x.requires_grad_(), *mixer.parameters()], []
    for merges in (True, False):
        monkeypatch.setattr(mixer, "_merges", lambda count, merges=merges: merges)
        torch.manual_seed(1)  # the same weights are dropped
        y = mixer(x, tokens=tokens, read=read).y
        found.append((y, *torch.autograd.grad(y.square().sum(), learnt)))
    rounding = 1e-5 if dropout else 1e-9  # weights that are dropped from are float32
    torch.testing.assert_close(*found, atol=rounding, rtol=rounding)


def test_positions_are_relative_to_the_start_of_memory() -> None:
    torch.manual_seed(0)
    layer = AttentionConfig(positions="rotary").build(8).double()
    x = torch.randn(1, 6, 8, dtype=torch.float64)
    want = layer(x).y
    shifted = layer(x, tokens=Tokens(position=torch.arange(6)[None] + 1000)).y
    torch.testing.assert_close(shifted, want)
    stretched = layer(x, tokens=Tokens(position=3 * torch.arange(6)[None])).y
    assert not torch.allclose(stretched, want)


def test_dropped_weights_keep_the_mean() -> None:
    torch.manual_seed(0)
    layer = AttentionConfig(num_heads=2, dropout=0.3).build(8)
    x = torch.randn(1, 5, 8)
    layer.eval()
    want = layer(x).y
    layer.train()
    with torch.no_grad():
        many = layer(x.expand(4000, -1, -1)).y
        masked = layer(x.expand(4000, -1, -1), tokens=Tokens(valid=torch.ones(4000, 5, dtype=torch.bool))).y
    for drawn in (many, masked):
        assert float(drawn.std(0).mean()) > 0.01
        torch.testing.assert_close(drawn.mean(0, keepdim=True), want, atol=0.03, rtol=0)
