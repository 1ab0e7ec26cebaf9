"""GRU, LSTM and minGRU: parity with torch on copied weights, starting weights, precision, empty input, bad settings."""

import pytest
import torch
from torch import nn

from foretoken.core.errors import ConfigError
from foretoken.nn.mixer import Tokens
from foretoken.nn.mixers.gru import GRUConfig
from foretoken.nn.mixers.lstm import LSTMConfig, _alike, _in_pieces, _Run
from foretoken.nn.mixers.min_gru import MinGRUConfig
from foretoken.nn.stack import BlockConfig, StackConfig

TORCH = {GRUConfig: nn.GRU, LSTMConfig: nn.LSTM}
ALL = (*TORCH, MinGRUConfig)


def twins(config, width: int = 8):
    """A mixer and torch's own layer with the same weights."""
    torch.manual_seed(0)
    mixer, layer = config().build(width).double(), TORCH[config](width, width, batch_first=True).double()
    layer.load_state_dict({f"{name}_l0": value for name, value in mixer.cell.state_dict().items()})
    return mixer, layer


def gradients(y: torch.Tensor, weight: torch.Tensor, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad((y * weight).sum(), inputs)


@pytest.mark.parametrize("config", TORCH)
@pytest.mark.parametrize("marked", [False, True])
def test_torch_has_the_same_values_and_gradients(config, marked: bool) -> None:
    mixer, layer = twins(config)
    x, weight = (torch.randn(3, 20, 8, dtype=torch.float64) for _ in range(2))
    x.requires_grad_()
    # Marks that change nothing make the mixer take its own path where the one without them is torch's.
    tokens = Tokens(valid=torch.ones(3, 20, dtype=torch.bool)) if marked else None
    got, want = mixer(x, tokens=tokens).y, layer(x)[0]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    results = gradients(got, weight, [x, *mixer.cell.parameters()]), gradients(want, weight, [x, *layer.parameters()])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("share", [0.0, 0.03, 0.3, 1.0])
@pytest.mark.parametrize(("rows", "length"), [(1, 2), (3, 40), (7, 64)])
def test_between_boundaries_of_memory_the_fast_kernel_does_what_the_plain_loop_does(rows, length, share) -> None:
    mixer, _ = twins(LSTMConfig)
    cell, kind = mixer.cell, {"dtype": torch.float64, "requires_grad": True}
    weights = (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    inputs = [torch.randn(rows, length, 8, **kind), torch.randn(rows, 8, **kind), torch.randn(rows, 8, **kind)]
    fresh = torch.rand(rows, length) < share
    given = nn.functional.linear(inputs[0], weights[0], weights[2] + weights[3])
    answers = _in_pieces(*inputs, weights, fresh), _Run.apply(given, *inputs[1:], weights[1], None, fresh)
    torch.testing.assert_close(*answers, rtol=1e-12, atol=1e-12)
    of_y, of_c = torch.randn(rows, length, 8, dtype=torch.float64), torch.randn(rows, 8, dtype=torch.float64)
    results = [torch.autograd.grad((y * of_y).sum() + (c * of_c).sum(), (*inputs, *weights)) for y, c in answers]
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


def test_in_single_precision_it_is_the_fast_kernel_that_runs(monkeypatch) -> None:
    mixer, x, fresh = LSTMConfig().build(8), torch.randn(3, 40, 8), torch.rand(3, 40) < 0.2
    fast = mixer(x, mixer.initial_state(3), tokens=Tokens(fresh=fresh))
    monkeypatch.setattr("foretoken.nn.mixers.lstm._in_pieces", None)
    plain = mixer.double()(x.double(), mixer.initial_state(3), tokens=Tokens(fresh=fresh))
    torch.testing.assert_close(fast.y.double(), plain.y, rtol=1e-5, atol=1e-6)
    for name in "hc":
        torch.testing.assert_close(fast.state[name].double(), plain.state[name], rtol=1e-5, atol=1e-6)


def test_pieces_of_like_lengths_go_together() -> None:
    sizes = sorted([100, 99, 90, *[10] * 40, *[9] * 200, 1], reverse=True)
    groups = _alike(sizes)
    assert [i for group in groups for i in range(group.start, group.stop)] == list(range(len(sizes)))
    padded = [sum(sizes[group.start] - size for size in sizes[group]) for group in groups]
    assert max(padded) <= 128 and len(groups) == 3 and _alike([7]) == [slice(0, 1)]


@pytest.mark.parametrize("config", TORCH)
def test_torch_has_the_same_states(config) -> None:
    mixer, layer = twins(config)
    x = torch.randn(3, 21, 8, dtype=torch.float64)
    with torch.no_grad():
        state, carried = mixer.initial_state(3), None
        for part in (x[:, :10], x[:, 10:11], x[:, 11:13], x[:, 13:]):
            y, state, _ = mixer(part, state)
            want, carried = layer(part, carried)
            torch.testing.assert_close(y, want)
    carried = carried if config is LSTMConfig else (carried,)
    torch.testing.assert_close(tuple(state[name] for name in "hc" if name in state), tuple(t[0] for t in carried))


@pytest.mark.parametrize("config", TORCH)
def test_the_stack_leaves_the_cells_their_own_start(config) -> None:
    torch.manual_seed(0)
    block = BlockConfig(mixer=config(expansion=2), feed_forward=None)
    mixer = StackConfig(width=32, num_layers=1, pattern=(block,)).build().layers()[0].mixer
    assert abs(float(mixer.cell.weight_hh.detach().abs().max()) - 64**-0.5) < 1e-3
    assert 0.015 < float(mixer.out.weight.detach().std()) < 0.025
    if config is LSTMConfig:
        forget = (mixer.cell.bias_ih + mixer.cell.bias_hh).detach().chunk(4)[1]
        assert abs(float(forget.mean()) - 1) < 0.1
        assert float(LSTMConfig(forget_bias=0.0).build(8).cell.bias_ih.detach().abs().max()) < 8**-0.5


@pytest.mark.parametrize("config", ALL)
@pytest.mark.parametrize("autocast", [False, True])
def test_states_stay_in_full_precision(config, autocast: bool) -> None:
    torch.manual_seed(0)
    mixer, x = config(expansion=1.5).build(8), torch.randn(2, 33, 8)
    with torch.no_grad():
        want = mixer(x).y
        if not autocast:
            mixer, x = mixer.bfloat16(), x.bfloat16()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            y, state, _ = mixer(x[:, :32], mixer.initial_state(2))
            last, state, _ = mixer(x[:, 32:], state)
            marked = mixer(x, tokens=Tokens(fresh=torch.zeros(2, 33, dtype=torch.bool))).y
    assert {leaf.dtype for leaf in state.values()} == {torch.float32}
    for got in (torch.cat((y, last), 1), marked):
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.float(), want, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("config", ALL)
@pytest.mark.parametrize(("rows", "length"), [(2, 0), (0, 5), (0, 1)])
def test_nothing_gives_nothing(config, rows: int, length: int) -> None:
    mixer = config().build(8)
    for tokens in (Tokens(), Tokens(valid=torch.ones(rows, length, dtype=torch.bool))):
        state = mixer.initial_state(rows)
        y, after, _ = mixer(torch.randn(rows, length, 8), state, tokens=tokens)
        assert y.shape == (rows, length, 8)
        torch.testing.assert_close(after, state)


def test_min_gru_is_the_papers_recurrence() -> None:
    mixer, x = MinGRUConfig().build(4), torch.randn(1, 6, 4)
    gate, candidate = mixer.gate_candidate(x)[0].chunk(2, -1)
    h = torch.zeros(4)
    for z, c in zip(gate.sigmoid(), torch.where(candidate >= 0, candidate + 0.5, candidate.sigmoid()), strict=True):
        h = (1 - z) * h + z * c
    torch.testing.assert_close(mixer(x).y[0, -1], h)


@pytest.mark.parametrize("config", ALL)
def test_bad_settings_are_named(config) -> None:
    with pytest.raises(ConfigError, match=r"expansion must be positive, got 0.0"):
        config(expansion=0)
