"""Mamba and Mamba-2 beyond the laws of mixers: bad arguments, how they begin, precision, gradients of a long scan."""

import pytest
import torch
from torch.nn import functional as F

from foretoken.core.errors import ConfigError
from foretoken.nn.mixer import MixerConfig, Tokens
from foretoken.nn.mixers.mamba import MambaConfig, selective_scan
from foretoken.nn.mixers.mamba2 import Mamba2Config
from foretoken.nn.stack import BlockConfig, StackConfig

BOTH = pytest.mark.parametrize("config", [MambaConfig(), Mamba2Config()], ids=lambda config: type(config).__name__)


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (MambaConfig, {"state_size": 0}, "state_size must be at least 1, got 0"),
        (MambaConfig, {"rank": -1}, "rank must be at least 0, got -1"),
        (MambaConfig, {"dt_min": 0.2}, "dt_min <= dt_max is needed, got 0.2 and 0.1"),
        (Mamba2Config, {"chunk": 0}, "chunk must be at least 1, got 0"),
        (Mamba2Config, {"num_groups": 3}, "num_groups must divide num_heads, got 3 and 4"),
        (Mamba2Config, {"dt_min": 0.0}, "dt_min <= dt_max is needed, got 0.0 and 0.1"),
    ],
)
def test_bad_settings_are_named(kind: type[MixerConfig], given: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**given)


def test_heads_must_fit_the_width() -> None:
    with pytest.raises(ConfigError, match="got 20 features and num_heads=3"):
        Mamba2Config(num_heads=3).build(10)


@BOTH
def test_a_stack_begins_as_published(config: MixerConfig) -> None:
    torch.manual_seed(0)
    layer = BlockConfig(mixer=config, feed_forward=None, norm="rms")
    mixer = StackConfig(width=64, num_layers=1, pattern=(layer,)).build().layers()[0].mixer
    bias = mixer.dt_proj.bias if isinstance(config, MambaConfig) else mixer.dt_bias
    dt, rates = F.softplus(bias).detach(), mixer.A_log.detach().exp()
    assert float(dt.min()) >= 0.999e-3 and float(dt.max()) <= 0.1001
    if isinstance(config, MambaConfig):
        torch.testing.assert_close(rates, torch.arange(1.0, 17)[:, None].expand(16, 128))
    else:
        assert float(rates.min()) >= 1 and float(rates.max()) <= 16
    assert bool((mixer.D == 1).all())
    assert float(mixer.in_proj.weight.detach().std()) == pytest.approx((3 * 64) ** -0.5, rel=0.05)


@BOTH
@pytest.mark.parametrize("length", [1, 3, 20])
def test_low_precision_keeps_the_state_in_float32(config: MixerConfig, length: int) -> None:
    torch.manual_seed(0)
    mixer = config.build(16)
    x = torch.randn(2, length, 16)
    want, after, _ = mixer(x, mixer.initial_state(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state, _ = mixer(x, mixer.initial_state(2))
        y.float().square().sum().backward()
    torch.testing.assert_close(y.float(), want, rtol=0.05, atol=0.05)
    torch.testing.assert_close(state, after, rtol=0.05, atol=0.05)
    assert {leaf.dtype for leaf in state.values()} == {torch.float32}
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in mixer.parameters())
    half = config.build(16).bfloat16()
    y, state, _ = half(x.bfloat16(), half.initial_state(2), tokens=Tokens(valid=torch.ones(2, length) > 0))
    assert y.dtype == torch.bfloat16
    assert {leaf.dtype for leaf in state.values()} == {torch.float32}


@BOTH
def test_no_rows(config: MixerConfig) -> None:
    mixer = config.build(12)
    for length in (1, 3, 20):
        y, state, _ = mixer(torch.zeros(0, length, 12), mixer.initial_state(0))
        assert y.shape == (0, length, 12)
        assert all(leaf.shape[0] == 0 for leaf in state.values())


@pytest.mark.parametrize("chunk", [1, 4, 16])
def test_gradients_of_the_scan_are_those_of_a_loop(chunk: int) -> None:
    torch.manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
    u, dt, A, b, c, h = (
        draw(2, 9, 3),
        draw(2, 9, 3).exp(),
        -draw(5, 3).exp(),
        draw(2, 9, 5),
        draw(2, 9, 5),
        draw(2, 5, 3),
    )
    inputs = [x.requires_grad_() for x in (u, dt, A, b, c, h)]
    fresh = torch.rand(2, 9) < 0.2

    def scan(u, dt, A, b, c, h):
        return selective_scan(u, dt, A, b, c, state=h, fresh=fresh, chunk=chunk)

    def loop(u, dt, A, b, c, h):
        outputs = []
        for t in range(u.shape[1]):
            h = torch.where(fresh[:, t, None, None], 0, h)
            h = (dt[:, t, None] * A).exp() * h + b[:, t, :, None] * (dt * u)[:, t, None]
            outputs.append((h * c[:, t, :, None]).sum(1))
        return torch.stack(outputs, 1), h

    weights = [torch.randn_like(part) for part in scan(*inputs)]
    results = [(f(*inputs), torch.autograd.grad(f(*inputs), inputs, weights)) for f in (scan, loop)]
    torch.testing.assert_close(*results)
    with torch.no_grad():
        torch.testing.assert_close(scan(*inputs), results[1][0])
