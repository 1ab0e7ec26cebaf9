"""Linear attention beyond the laws of mixers: bad settings, feature maps, precision."""

import pytest
import torch
from torch.nn import functional as F

from foretoken.core.errors import ConfigError
from foretoken.nn.mixers.linear_attention import LinearAttentionConfig, feature_map


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
        ({"eps": 0.0}, "eps must be positive, got 0.0"),
        ({"features": "elo"}, "did you mean 'elu'"),
    ],
)
def test_bad_settings_are_named(given: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LinearAttentionConfig(**given)


def test_heads_must_fit_the_width() -> None:
    with pytest.raises(ConfigError, match="width=10 and num_heads=4"):
        LinearAttentionConfig(num_heads=4).build(10)


def test_the_elu_feature_map_is_elu_plus_one_and_never_zero() -> None:
    x = torch.cat((torch.linspace(-6, 6, 101), torch.zeros(1))).double().requires_grad_()
    for order in range(2):
        got, want = feature_map(x, "elu"), F.elu(x) + 1
        if order:
            got, want = (torch.autograd.grad(y.sum(), x)[0] for y in (got, want))
        torch.testing.assert_close(got, want)
    assert feature_map(torch.tensor(-60.0), "elu") > 0


def test_state_stays_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    mixer, x = LinearAttentionConfig(num_heads=2).build(8), torch.randn(2, 70, 8)
    with torch.no_grad():
        want = mixer(x, mixer.initial_state(2))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = mixer(x, mixer.initial_state(2))
    assert got.state["memory"].dtype == torch.float32
    torch.testing.assert_close(got.state["memory"], want.state["memory"], rtol=0.03, atol=0.3)
    assert mixer.bfloat16()(x.bfloat16()).y.dtype == torch.bfloat16


def test_no_rows_and_no_tokens() -> None:
    mixer = LinearAttentionConfig().build(8)
    assert mixer(torch.randn(0, 7, 8)).y.shape == (0, 7, 8)
    assert mixer(torch.randn(2, 0, 8), mixer.initial_state(2)).y.shape == (2, 0, 8)
