"""Aaren, GaLiTe, AGaLiTe and the convolution per token group, beyond the laws of mixers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from foretoken.core.errors import ConfigError
from foretoken.nn.mixer import Tokens
from foretoken.nn.mixers.aaren import AarenConfig
from foretoken.nn.mixers.agalite import AGaLiTeConfig, GaLiTeConfig
from foretoken.nn.mixers.conv import ConvConfig
from foretoken.nn.stack import BlockConfig, StackConfig

ALL = (AarenConfig(), AGaLiTeConfig(), GaLiTeConfig(), ConvConfig())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AarenConfig(num_heads=0), "num_heads must be at least 1, got 0"),
        (lambda: AarenConfig(num_heads=5).build(12), "width=12 and num_heads=5"),
        (lambda: AarenConfig(engine="fast"), "engine"),
        (lambda: AGaLiTeConfig(eta=0), "eta must be at least 1, got 0"),
        (lambda: AGaLiTeConfig(rank=0), "rank must be at least 1, got 0"),
        (lambda: AGaLiTeConfig(frequencies="whole"), "frequencies"),
        (lambda: GaLiTeConfig(eps=0.0), "eps must be positive, got 0.0"),
        (lambda: GaLiTeConfig(num_heads=5).build(12), "or give head_width; got width=12 and num_heads=5"),
        (lambda: ConvConfig(window=0), "window must be at least 1, got 0"),
        (lambda: ConvConfig(groups=0), "groups must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_named(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("config", ALL, ids=str)
def test_nothing_in_nothing_out(config) -> None:
    layer = config.build(12)
    for rows, length in ((2, 0), (0, 5)):
        y, state, _ = layer(torch.randn(rows, length, 12), layer.initial_state(rows))
        assert y.shape == (rows, length, 12)
        assert all(len(leaf) == rows for leaf in tree_leaves(state))


@pytest.mark.parametrize("config", ALL, ids=str)
def test_states_stay_wide_under_autocast(config) -> None:
    torch.manual_seed(0)
    layer = config.build(12)
    x = torch.randn(2, 9, 12)
    want = layer(x).y
    state = layer.initial_state(2)
    dtypes = [leaf.dtype for leaf in tree_leaves(state)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for piece in (x[:, :5], x[:, 5:6], x[:, 6:]):
            y, state, _ = layer(piece, state)
    assert [leaf.dtype for leaf in tree_leaves(state)] == dtypes
    torch.testing.assert_close(y.float(), want[:, 6:], rtol=0.1, atol=0.1)


@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_aaren_is_a_cumulative_softmax_at_any_scale_of_scores(scale: float) -> None:
    torch.manual_seed(0)
    layer = AarenConfig(num_heads=2).build(8)
    with torch.no_grad():
        layer.query.mul_(scale)
    x = torch.randn(2, 1024, 8, requires_grad=True)
    y = layer(x).y
    y.square().sum().backward()
    assert x.grad.isfinite().all()
    scores = (layer.key(x).view(2, -1, 2, 4) * layer.query).sum(-1).double() / 2  # (B, L, H)
    table = (
        scores.transpose(1, 2)[:, :, None]
        .expand(-1, -1, 1024, -1)
        .masked_fill(torch.ones(1024, 1024).triu(1) > 0, -torch.inf)
    )
    averages = table.softmax(-1) @ layer.value(x).double().view(2, -1, 2, 4).transpose(1, 2)
    want = layer.out(averages.transpose(1, 2).flatten(2).float())
    torch.testing.assert_close(y, want, rtol=0, atol=1e-5)


def test_aaren_forgets_higher_scores_of_earlier_memories() -> None:
    torch.manual_seed(0)
    layer = AarenConfig().build(8)
    with torch.no_grad():
        layer.query.mul_(1e3)
    x = torch.randn(1, 40, 8)
    x[:, :20] *= 1e3
    fresh = torch.arange(40)[None] == 20
    torch.testing.assert_close(layer(x, tokens=Tokens(fresh=fresh)).y[:, 20:], layer(x[:, 20:]).y)


def test_agalite_nears_galite_as_its_rank_grows() -> None:
    torch.manual_seed(0)
    exact = GaLiTeConfig(num_heads=2).build(8).double()
    x = torch.randn(3, 12, 8, dtype=torch.float64)
    want, errors = exact(x).y.detach(), []
    for rank in (4, 16, 64):
        layer = AGaLiTeConfig(num_heads=2, rank=rank, frequencies="half").build(8).double()
        layer.load_state_dict(exact.state_dict())
        y = layer(x).y.detach()
        errors.append(float((y * (y * want).sum() / y.square().sum() - want).norm() / want.norm()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.1


def test_published_frequencies_of_rank_two_are_one() -> None:
    twice, once = (AGaLiTeConfig(rank=rank, eps=1e-12).build(8).double() for rank in (2, 1))
    once.load_state_dict(twice.state_dict())
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(twice(x).y, once(x).y)


@pytest.mark.parametrize("config", [AGaLiTeConfig(rank=5, frequencies="half"), AGaLiTeConfig(rank=3)], ids=str)
def test_the_clock_of_agalite_may_run_for_ever(config) -> None:
    layer = config.build(8).double()
    x, state = torch.randn(2, 4, 8, dtype=torch.float64), layer.initial_state(2)
    late = {**state, "clock": state["clock"] + 10**15 * 2 * (config.rank - 1)}
    torch.testing.assert_close(layer(x, late).y, layer(x, state).y)


@pytest.mark.parametrize("config", [AGaLiTeConfig(), GaLiTeConfig()], ids=str)
def test_features_that_are_all_off_read_nothing(config) -> None:
    layer = config.build(8)
    with torch.no_grad():
        layer.input.bias.fill_(-50)
    x = torch.randn(2, 6, 8, requires_grad=True)
    y = layer(x).y
    y.square().sum().backward()
    torch.testing.assert_close(y, layer.out.bias.expand_as(y))
    assert x.grad.isfinite().all()


def test_a_stack_leaves_agalite_orthogonal() -> None:
    stack = StackConfig(width=16, num_layers=1, pattern=(BlockConfig(mixer=AGaLiTeConfig(head_width=8)),)).build()
    mixer = stack.blocks[0].mixer
    k, q, p1, p2, v, e, c, p3 = mixer.input.weight.split((32, 32, 16, 16, 32, 32, 32, 16))
    for part in (torch.cat((k, q, v, e, c)), torch.cat((p1, p2, p3))):
        torch.testing.assert_close(part.T @ part, 2 * torch.eye(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(mixer.out.weight @ mixer.out.weight.T, 2 * torch.eye(16), atol=1e-5, rtol=0)


def three_convolutions(layer: nn.Module, x_BLD: torch.Tensor) -> torch.Tensor:
    """Every third output of three depthwise convolutions over the whole sequence, as Decision ConvFormer is published."""
    _, window, width = layer.weight.shape
    y, padded = torch.empty_like(x_BLD), F.pad(x_BLD, (0, 0, window - 1, 0)).transpose(1, 2)
    for g in range(3):
        conv = nn.Conv1d(width, width, window, groups=width).double()
        conv.load_state_dict({"weight": layer.weight[g].T[:, None], "bias": layer.bias[g]})
        y[:, g::3] = conv(padded).transpose(1, 2)[:, g::3]
    return y


@pytest.mark.parametrize("length", [3, 8, 31])
def test_each_kind_of_token_has_its_convolution(length: int) -> None:
    torch.manual_seed(0)
    layer = ConvConfig().build(8).double()
    x, group = torch.randn(2, length, 8, dtype=torch.float64), torch.arange(length).expand(2, -1)
    want = three_convolutions(layer, x)
    torch.testing.assert_close(layer(x, tokens=Tokens(group=group % 3)).y, want)
    torch.testing.assert_close(layer(x, tokens=Tokens(group=group)).y, want, msg="groups count modulo the filters")


@pytest.mark.parametrize("length", [5, 17])
def test_tokens_without_a_group_take_the_first_filter(length: int) -> None:
    layer, shared = ConvConfig().build(8), ConvConfig(groups=1).build(8)
    shared.load_state_dict({"weight": layer.weight[:1], "bias": layer.bias[:1]})
    x, group = torch.randn(2, length, 8), torch.arange(length).expand(2, -1)
    want = shared(x).y
    torch.testing.assert_close(layer(x).y, want)
    torch.testing.assert_close(shared(x, tokens=Tokens(group=group)).y, want)


def test_convolutions_start_as_those_of_pytorch() -> None:
    torch.manual_seed(0)
    layer = StackConfig(width=64, num_layers=1, pattern=(BlockConfig(mixer=ConvConfig()),)).build().blocks[0].mixer
    for part in (layer.weight, layer.bias):
        assert 0.35 < float(part.detach().abs().max()) <= 6**-0.5


def test_padding_between_tokens_is_skipped_by_every_filter() -> None:
    torch.manual_seed(0)
    layer = ConvConfig().build(8)
    x, group = torch.randn(1, 30, 8), torch.arange(30)[None] % 3
    valid = torch.rand(1, 30) > 0.3
    y = layer(x, tokens=Tokens(valid=valid, group=group)).y
    torch.testing.assert_close(y[valid][None], layer(x[valid][None], tokens=Tokens(group=group[valid][None])).y)
    assert (y[~valid] == 0).all()
