"""What the laws of mixers do not say of mLSTM and sLSTM: how they start, precision, extremes, bad configs."""

import pytest
import torch

from foretoken.core.errors import ConfigError
from foretoken.nn.mixer import MixerConfig
from foretoken.nn.mixers.mlstm import MLSTM7BConfig, MLSTMConfig
from foretoken.nn.mixers.slstm import SLSTMConfig
from foretoken.nn.stack import BlockConfig, StackConfig
from foretoken.testing.agreement import perturb

ALL = (MLSTMConfig(), MLSTM7BConfig(), SLSTMConfig())
each = pytest.mark.parametrize("config", ALL, ids=lambda config: type(config).__name__)


def in_a_stack(config: MixerConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    return StackConfig(width=64, num_layers=1, pattern=(BlockConfig(mixer=config),)).build().blocks[0].mixer


def test_gates_start_as_published() -> None:
    paper, large, scalar = (in_a_stack(config) for config in ALL)
    assert paper.memory.bias[4:].tolist() == [3, 4, 5, 6]
    assert paper.memory.bias[:4].abs().max() < 0.5
    assert not paper.gates.weight.any()
    assert large.memory.bias[2:].tolist() == [3, 6]
    assert (large.memory.bias[:2] + 10).abs().max() < 0.5
    assert not large.into.weight[-4:].any()
    assert paper.up.weight.std().item() == pytest.approx((2 / (5 * 64)) ** 0.5, rel=0.1)
    assert not scalar.recurrent.any()
    i, f, z, o = scalar.bias.chunk(4, dim=-1)
    assert not (i.any() or z.any() or o.any())
    assert (f[:, 0].tolist(), f[:, -1].tolist()) == ([5] * 4, [-7] * 4)


@each
def test_streaming_without_masks_is_the_sequence(config: MixerConfig) -> None:
    mixer = config.build(12).double().eval()
    perturb(mixer, 0)
    x, state, outputs = torch.randn(2, 9, 12, dtype=torch.float64), mixer.initial_state(2), []
    for t in range(9):
        y, state, _ = mixer(x[:, t : t + 1], state)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), mixer(x).y, rtol=1e-9, atol=1e-9)


@each
def test_autocast_keeps_state_in_float32(config: MixerConfig) -> None:
    mixer = config.build(16)
    x = torch.randn(2, 40, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for length in (40, 1):
            y, state, _ = mixer(x[:, :length], mixer.initial_state(2))
            assert y.isfinite().all()
            assert {leaf.dtype for leaf in state.values()} == {torch.float32}
    y, state, _ = mixer.bfloat16()(x.bfloat16(), mixer.initial_state(2))
    assert y.dtype == torch.bfloat16
    assert {leaf.dtype for leaf in state.values()} == {torch.float32}


@each
@pytest.mark.parametrize("size", [(2, 0), (0, 5), (0, 1)])
def test_nothing_in_nothing_out(config: MixerConfig, size: tuple[int, int]) -> None:
    mixer = config.build(12)
    y, state, _ = mixer(torch.zeros(*size, 12), mixer.initial_state(size[0]))
    assert y.shape == (*size, 12)
    assert {name: leaf.shape for name, leaf in state.items()} == {
        name: leaf.shape for name, leaf in mixer.initial_state(size[0]).items()
    }


@each
@pytest.mark.parametrize("gate", [-300.0, 300.0])
def test_extreme_gates_stay_finite(config: MixerConfig, gate: float) -> None:
    mixer = config.build(12)
    bias = mixer.bias if isinstance(config, SLSTMConfig) else mixer.memory.bias
    with torch.no_grad():
        bias[..., : bias.shape[-1] // (4 if isinstance(config, SLSTMConfig) else 2)] = gate
    x = torch.randn(2, 40, 12, requires_grad=True)
    y, state, _ = mixer(x, mixer.initial_state(2))
    y.square().sum().backward()
    assert all(tensor.isfinite().all() for tensor in (y, x.grad, *state.values()))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: MLSTMConfig(num_heads=0), "num_heads >= 1"),
        (lambda: MLSTMConfig(expansion=0.0), "expansion > 0"),
        (lambda: MLSTMConfig(block=5).build(12), "block=5 and an inner width of 24"),
        (lambda: MLSTMConfig(num_heads=5).build(12), "num_heads must divide the width of keys, got 24 and 5"),
        (lambda: MLSTM7BConfig(num_heads=4).build(12), "num_heads must divide the width of keys, got 6 and 4"),
        (lambda: MLSTM7BConfig(key_factor=0.0).build(12), "key_factor must be positive"),
        (lambda: SLSTMConfig(conv=-1), "conv >= 0"),
        (lambda: SLSTMConfig(num_heads=5).build(12), "width=12 and num_heads=5"),
    ],
)
def test_bad_configs_are_refused(make, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make()
