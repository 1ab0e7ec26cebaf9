"""DeltaNet beyond the laws of mixers: bad settings, how decay starts, precision, and that writing twice keeps the last value."""

import pytest
import torch

from foretoken.core.errors import ConfigError
from foretoken.nn.mixer import Tokens
from foretoken.nn.mixers.delta_net import DeltaNet, DeltaNetConfig
from foretoken.nn.scan import delta_rule
from foretoken.nn.stack import BlockConfig, StackConfig
from foretoken.testing.mixers import LAWS
from foretoken.testing.trial import trial_of

GATED = DeltaNetConfig(decay=True, output_gate=True, expand_k=0.75, expand_v=1.5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"conv": -1}, "conv must be at least 0, got -1"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
        ({"expand_k": 0.0}, "expand_k must be positive, got 0.0"),
        ({"norm_eps": -1.0}, "norm_eps must be positive, got -1.0"),
        ({"engine": "fast"}, "engine"),
    ],
)
def test_bad_settings_are_named(given: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DeltaNetConfig(**given)


def test_heads_must_fit_the_widths() -> None:
    with pytest.raises(ConfigError, match=r"width \* expand_k, got width=10, expand_k=1.0 and num_heads=4"):
        DeltaNetConfig().build(10)
    with pytest.raises(ConfigError, match=r"width \* expand_v, got width=8, expand_v=0.3 and num_heads=4"):
        DeltaNetConfig(expand_v=0.3).build(8)


@pytest.mark.parametrize("law", ["concatenation", "agreement", "bounded_state"])
def test_without_its_convolution_it_warns_and_keeps_the_laws(law: str) -> None:
    with pytest.warns(UserWarning, match="short convolution"):
        LAWS[law](trial_of(DeltaNetConfig(conv=0), 12))


def test_decay_starts_within_the_published_range_also_in_a_stack() -> None:
    torch.manual_seed(0)
    layer = BlockConfig(mixer=DeltaNetConfig(num_heads=64, decay=True))
    mixer = StackConfig(width=64, num_layers=1, pattern=(layer,)).build().layers()[0].mixer
    assert isinstance(mixer, DeltaNet)
    assert mixer.decay_log_rate is not None and mixer.decay_bias is not None
    rate = mixer.decay_log_rate.detach().exp()
    step = torch.nn.functional.softplus(mixer.decay_bias.detach())
    assert 0.01 <= float(rate.min()) < 4 < 12 < float(rate.max()) <= 16
    assert 0.9e-3 < float(step.min()) < 3e-3
    assert 3e-2 < float(step.max()) < 0.11
    assert (mixer.norm == 1).all()


@pytest.mark.parametrize("config", [DeltaNetConfig(), GATED], ids=["plain", "gated"])
def test_state_and_gates_stay_in_float32_under_autocast(config: DeltaNetConfig) -> None:
    torch.manual_seed(0)
    mixer, x = config.build(16), torch.randn(2, 40, 16)
    with torch.no_grad():
        want = mixer(x, mixer.initial_state(2))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            whole = mixer(x, mixer.initial_state(2))
            state = mixer.initial_state(2)
            for piece in x.split(1, dim=1):
                y, state, _ = mixer(piece, state)
    for got in (whole.state, state):
        assert got is not None
        assert {name: part.dtype for name, part in got.items()} == {"inputs": torch.float32, "memory": torch.float32}
        assert (got["memory"] - want.state["memory"]).norm() < 0.03 * want.state["memory"].norm()
    torch.testing.assert_close(y, whole.y[:, -1:], rtol=0.05, atol=0.05)
    assert config.build(16).bfloat16()(x.bfloat16()).y.dtype == torch.bfloat16


@pytest.mark.parametrize("config", [DeltaNetConfig(), GATED], ids=["plain", "gated"])
def test_no_rows_no_tokens_and_rows_of_nothing_but_padding(config: DeltaNetConfig) -> None:
    torch.manual_seed(0)
    mixer = config.build(16)
    assert mixer(torch.randn(0, 7, 16)).y.shape == (0, 7, 16)
    assert mixer(torch.randn(2, 0, 16), mixer.initial_state(2)).y.shape == (2, 0, 16)
    x = torch.randn(2, 40, 16, requires_grad=True)
    valid = torch.tensor([[True], [False]]).expand(-1, 40)
    y = mixer(x, tokens=Tokens(valid=valid)).y
    y.square().sum().backward()
    assert x.grad is not None
    assert not y[1].any() and not x.grad[1].any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())


def test_the_delta_rule_keeps_the_latest_value_of_a_key() -> None:
    torch.manual_seed(0)
    keys = torch.linalg.qr(torch.randn(8, 8))[0]  # orthonormal: eight slots
    order = torch.randint(8, (200,))
    k, v = keys[order][None, :, None], torch.randn(1, 200, 1, 5)
    _, S = delta_rule(k, k, v, torch.ones(1, 200, 1))
    for slot in range(8):
        latest = v[0, int((order == slot).nonzero().max()), 0]
        torch.testing.assert_close(S[0, 0].T @ keys[slot], latest, rtol=0, atol=1e-5)


def test_memory_never_expands_with_negative_eigenvalues() -> None:
    torch.manual_seed(0)
    k, zero = torch.nn.functional.normalize(torch.randn(1, 3000, 2, 6), dim=-1), torch.zeros(1, 3000, 2, 4)
    start = torch.randn(1, 2, 6, 4)
    _, S = delta_rule(k, k, zero, torch.full((1, 3000, 2), 2.0), state=start)  # reflections
    torch.testing.assert_close(S.norm(), start.norm(), rtol=1e-4, atol=0)
