"""S4D, S5 and LMU beyond the laws of mixers: what they start from, how they discretise, engines, precision, bad settings."""

import numpy as np
import pytest
import torch
from scipy.linalg import block_diag
from scipy.signal import cont2discrete
from torch import Tensor

from foretoken.core.errors import ConfigError
from foretoken.nn.mixer import MixerConfig, Tokens
from foretoken.nn.mixers.lmu import LMUConfig, legendre
from foretoken.nn.mixers.s4d import S4DConfig
from foretoken.nn.mixers.s5 import S5Config
from foretoken.nn.state_space import hippo, power_less_one, powers

MIXERS = (S4DConfig(chunk=8), S4DConfig(engine="fft"), S5Config(), LMUConfig(order=16, chunk=8))


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (S4DConfig, {"state_size": 5}, "state_size must be even and at least 2, got 5"),
        (S4DConfig, {"dt_min": 0.2}, "0 < dt_min <= dt_max, got 0.2 and 0.1"),
        (S4DConfig, {"chunk": 0}, "chunk must be at least 1, got 0"),
        (S5Config, {"num_blocks": 0}, "num_blocks at least 1, got 0 and 0"),
        (S5Config, {"dt_min": 0.0}, "0 < dt_min <= dt_max, got 0.0 and 0.1"),
        (LMUConfig, {"theta": 0.5}, "theta must be at least 1, got 0.5"),
        (LMUConfig, {"channels": 0}, "channels must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_named(kind: type[MixerConfig], given: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**given)


def test_s5_blocks_must_fit_its_states() -> None:
    with pytest.raises(ConfigError, match="state_size=12 and num_blocks=4"):
        S5Config(num_blocks=4).build(12)


# -- what they start from


def legs(size: int) -> np.ndarray:
    """The matrix of HiPPO-LegS: memory of all the past on Legendre polynomials."""
    n = np.arange(size)
    below = -np.sqrt(2 * n + 1)[:, None] * np.sqrt(2 * n + 1)
    return np.tril(below, -1) - np.diag(n + 1.0)


def test_hippo_without_its_rank_one_part_is_normal_and_diagonal() -> None:
    size = 16
    root = np.sqrt(np.arange(size) + 0.5)
    normal = legs(size) + root[:, None] * root
    assert np.allclose(normal @ normal.T, normal.T @ normal)
    frequencies, v = (part.numpy() for part in hippo(size))
    half = (v * (-0.5 + 1j * frequencies)) @ v.conj().T
    assert np.allclose(half + half.conj(), normal)
    assert (frequencies > 0).all()


@pytest.mark.parametrize(("init", "first"), [("lin", [0, np.pi]), ("inv", [8 / np.pi * 7, 8 / np.pi * (8 / 3 - 1)])])
def test_s4d_starts_as_published(init, first) -> None:
    mixer = S4DConfig(state_size=8, init=init).build(3)
    assert np.allclose(mixer.frequency[:, :2].detach(), np.tile(first, (3, 1)))
    assert torch.allclose(mixer.log_decay.exp(), torch.tensor(0.5))
    dt = mixer.log_dt.exp()
    assert ((dt >= 0.001) & (dt <= 0.1)).all()


def test_s5_starts_as_real_blocks_of_hippo_in_their_eigenvectors() -> None:
    torch.manual_seed(0)
    mixer = S5Config(state_size=8, num_blocks=2, gate="none").build(6).double()
    a = torch.complex(-mixer.log_decay.exp(), mixer.frequency).detach().numpy()
    v = block_diag(*[hippo(4)[1].numpy()] * 2)
    b = torch.complex(mixer.b[:, 0], mixer.b[:, 1]).detach().numpy()
    b_real = v @ b + (v @ b).conj()
    assert np.allclose(v.conj().T @ b_real, b)  # B came from real numbers
    root = np.sqrt(np.arange(4) + 0.5)
    whole = (v * a) @ v.conj().T
    assert np.allclose(whole + whole.conj(), block_diag(*[legs(4) + root[:, None] * root] * 2), atol=1e-5)


# -- discretisation


def test_zero_order_hold_is_scipys() -> None:
    torch.manual_seed(0)
    mixer = S5Config(state_size=6).build(6).double()
    mixer.requires_grad_(False)
    a_bar, held = mixer._discretise()
    for p in range(3):
        rate, turn = float(mixer.log_decay[p].exp()), float(mixer.frequency[p])
        a, b = np.array([[-rate, -turn], [turn, -rate]]), np.array([[1.0], [0.0]])
        a_want, b_want, *_ = cont2discrete((a, b, np.eye(2), np.zeros((2, 1))), float(mixer.log_dt[p].exp()), "zoh")
        assert np.allclose(a_want[:, 0], [a_bar[p].real.item(), a_bar[p].imag.item()])
        assert np.allclose(b_want[:, 0], [held[p].real.item(), held[p].imag.item()])


def test_power_less_one_keeps_digits_near_zero() -> None:
    rate, angle = torch.tensor([-5e-7]), torch.tensor([1e-6])
    want = torch.complex(rate.double(), angle.double()).expm1()
    assert torch.allclose(power_less_one(rate, angle).to(want.dtype), want, rtol=1e-6, atol=0)


def test_powers_keep_digits_over_many_turns() -> None:
    rate, angle, steps = torch.tensor([-1e-4]), torch.tensor([130.7]), torch.tensor([1000])
    want = (steps * torch.complex(rate.double(), angle.double())).exp()
    got = torch.view_as_complex(powers(rate, angle, steps))
    assert torch.allclose(got.to(want.dtype), want, atol=1e-6)


@pytest.mark.parametrize("order", [1, 6, 64])
def test_legendre_memory_is_discretised_as_by_scipy(order) -> None:
    i = np.arange(order)
    sign = np.where(i[:, None] < i, -1.0, (-1.0) ** (i[:, None] - i + 1))
    a, b = (2 * i + 1)[:, None] / 50 * sign, ((2 * i + 1) / 50 * (-1.0) ** i)[:, None]
    a_want, b_want, *_ = cont2discrete((a, b, np.eye(order), np.zeros((order, 1))), 1.0, "zoh")
    a_got, b_got = legendre(order, 50.0)
    assert np.allclose(a_got, a_want, atol=1e-12)
    assert np.allclose(b_got, b_want[:, 0], atol=1e-12)
    assert np.abs(np.linalg.eigvals(a_got.numpy())).max() < 1


def test_legendre_memory_holds_the_delayed_signal() -> None:
    order, theta, length = 24, 100.0, 400
    a, b = (part.numpy() for part in legendre(order, theta))
    time = np.arange(length)
    signal = np.sin(time / 17) + 0.5 * np.cos(time / 41 + 1)
    m = np.zeros(order)
    for u in signal:
        m = a @ m + b * u
    for delay in (0, 25, 50, 99):  # the last step ends now, so a delay of s steps lies s + 1/2 back
        weights = np.polynomial.legendre.legvander(np.array([2 * (delay + 0.5) / theta - 1]), order - 1)[0]
        assert abs(weights @ m - signal[-1 - delay]) < 0.02


# -- engines and precision


def outputs(mixer, x: Tensor, tokens: Tokens | None = None) -> tuple[Tensor, Tensor]:
    y, state, _ = mixer(x, mixer.initial_state(len(x)), tokens=tokens)
    return y, state["h"]


@pytest.mark.parametrize("length", [5, 64, 131])
@pytest.mark.parametrize("kind", ["plain", "padded", "fresh"])
def test_fft_gives_what_chunks_give(length, kind) -> None:
    torch.manual_seed(0)
    mark = torch.rand(3, length) < 0.2
    tokens = {"plain": Tokens(), "padded": Tokens(valid=~mark), "fresh": Tokens(fresh=mark)}[kind]
    chunked = S4DConfig(state_size=16, chunk=16).build(4).double()
    fft = S4DConfig(state_size=16, engine="fft").build(4).double()
    fft.load_state_dict(chunked.state_dict())
    x = torch.randn(3, length, 4, dtype=torch.float64)
    gradients = []
    for mixer in (chunked, fft):
        y, h = outputs(mixer, x, tokens)
        gradients.append([y, h, *torch.autograd.grad((y * x).sum() + h.square().sum(), list(mixer.parameters()))])
        assert torch.allclose(mixer(x, tokens=tokens).y, y, rtol=0, atol=1e-12)
    for got, want in zip(*gradients, strict=True):
        assert torch.allclose(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("engine", ["chunked", "fft"])
def test_a_sequence_is_its_steps_over_a_thousand_tokens_in_float32(engine) -> None:
    torch.manual_seed(0)
    mixer = S4DConfig(engine=engine).build(8)
    x = torch.randn(1, 1000, 8)
    with torch.no_grad():
        want, h = outputs(mixer, x)
        state, steps = mixer.initial_state(1), []
        for t in range(1000):
            y, state, _ = mixer(x[:, t : t + 1], state)
            steps.append(y)
    scale = max(1.0, float(want.abs().max()))
    assert (torch.cat(steps, 1) - want).abs().max() < 1e-4 * scale
    assert torch.allclose(state["h"], h, rtol=1e-3, atol=1e-3 * float(h.abs().max()))


@pytest.mark.parametrize("config", [S4DConfig(chunk=8), S5Config(), LMUConfig(chunk=8)], ids=str)
def test_without_masks_no_bit_comes_from_the_future(config) -> None:
    mixer = config.build(12)
    x = torch.randn(2, 40, 12, requires_grad=True)
    (gradient,) = torch.autograd.grad(mixer(x).y[:, :20].square().sum(), x)
    assert not gradient[:, 20:].any()
    later = torch.cat((x[:, :20], 100 * torch.randn(2, 20, 12)), 1)
    assert torch.equal(mixer(x).y[:, :20], mixer(later).y[:, :20])


@pytest.mark.parametrize("config", MIXERS, ids=str)
def test_padding_may_hold_anything(config) -> None:
    mixer = config.build(12)
    valid = torch.rand(2, 20, generator=torch.Generator().manual_seed(0)) < 0.6
    x = torch.randn(2, 20, 12)
    want = mixer(x, tokens=Tokens(valid=valid)).y
    hostile = torch.where(valid[..., None], x, 1e30)
    assert torch.equal(mixer(hostile, tokens=Tokens(valid=valid)).y[valid], want[valid])


@pytest.mark.parametrize("config", MIXERS, ids=str)
@pytest.mark.parametrize("length", [1, 3, 30])
def test_states_stay_float32_around_bf16(config, length) -> None:
    mixer = config.build(12)
    x = torch.randn(2, length, 12)
    want = mixer(x, mixer.initial_state(2))
    with torch.autocast("cpu", torch.bfloat16):
        got = mixer(x, mixer.initial_state(2))
    half = mixer.to(torch.bfloat16)
    low = half(x.bfloat16(), half.initial_state(2))
    for y, state, _ in (got, low):
        assert all(leaf.dtype == torch.float32 for leaf in state.values())
        assert torch.allclose(y.float(), want.y, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("config", MIXERS, ids=str)
@pytest.mark.parametrize("shape", [(2, 0), (0, 1), (0, 9)])
def test_nothing_in_nothing_out(config, shape) -> None:
    mixer = config.build(12)
    state = mixer.initial_state(shape[0])
    for given in (None, state):
        y, after, _ = mixer(torch.randn(*shape, 12), given, tokens=Tokens(valid=torch.ones(shape, dtype=torch.bool)))
        assert y.shape == (*shape, 12)
        if given is not None:
            assert all(torch.equal(after[name], leaf) for name, leaf in state.items())


@pytest.mark.parametrize("config", [S4DConfig(), S5Config()], ids=str)
def test_a_step_notices_changed_weights_however_they_were_written(config) -> None:
    mixer = config.build(12)
    x, state = torch.randn(1, 1, 12), mixer.initial_state(1)
    with torch.no_grad():
        before = mixer(x, state).y
        mixer.log_dt.data.add_(1.0)
        after = mixer(x, state).y
    assert not torch.allclose(before, after)
    assert torch.allclose(mixer(x, state).y, after)
