"""Acting by ONNX Runtime: what it answers is the policy's own within rounding, and what it cannot do is left to PyTorch."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn

from foretoken.core.errors import MissingExtra
from foretoken.envs import onnx_graph
from foretoken.envs.make import make
from foretoken.envs.onnx_graph import OnnxGraph
from foretoken.envs.slots import Job
from foretoken.envs.spaces import to_spec
from foretoken.envs.traced import Engine, Traced
from foretoken.evaluation.rollout import rollout
from foretoken.methods.conditioned_cloning import ConditionedCloningConfig
from foretoken.nn.mixers.attention import AttentionConfig
from foretoken.nn.mixers.mamba import MambaConfig
from foretoken.nn.stack import BlockConfig, StackConfig

installed = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")), reason="needs the extra onnx"
)
BANDED = AttentionConfig(window=9, slack=2, positions="rotary")


class Ring(nn.Module):
    """Writes one input in place, hands another through twice, and answers something new."""

    def forward(self, at, value, ring, same):
        return value @ value.mT, ring.index_copy_(0, at, value), same, same


@installed
def test_what_is_written_in_place_stays_where_it_was():
    at, value, same = torch.tensor([1]), torch.randn(1, 3), torch.randn(2)
    graph = OnnxGraph(Ring(), [at, value, torch.zeros(4, 3), same])
    for slot in range(3):
        ring, at = torch.zeros(4, 3), torch.tensor([slot])
        new, written, first, second = graph(at, value, ring, same)
        assert written is ring and torch.equal(ring[slot], value[0]) and ring.count_nonzero() == 3
        assert torch.allclose(new, value @ value.mT) and torch.equal(first, same) and torch.equal(second, same)
    kept = new.clone()
    graph(at, 2 * value, ring, same)
    assert torch.equal(new, kept)  # answers are no buffers that the next call overwrites


@installed
@pytest.mark.parametrize(
    ("reading", "mixer"), [("stream", BANDED), ("window", AttentionConfig()), ("stream", MambaConfig())]
)
def test_episodes_are_the_same_within_rounding(reading, mixer):
    backbone = StackConfig(width=8, num_layers=2, pattern=(BlockConfig(mixer=mixer),))
    config = ConditionedCloningConfig(context=3, reading=reading, backbone=backbone)
    method = config.build(to_spec(make("Pendulum-v1"))).eval()
    jobs = [Job(number, target=-200.0) for number in range(3)]
    played = {
        engine: rollout(
            method.policy, "Pendulum-v1", jobs, seed=0, num_slots=2, max_steps=130, engine=engine, keep_actions=True
        )
        for engine in ("torch", "onnx")
    }
    for one, other in zip(played["torch"], played["onnx"], strict=True):
        assert one.length == other.length and abs(one.total - other.total) < 0.05
        assert abs(one.actions - other.actions).max() < 1e-3


class Product(nn.Module):
    """A product with weights, one with a product of them, one with two matrices of them, and one of two inputs."""

    def __init__(self):
        super().__init__()
        self.weight, self.several = nn.Parameter(torch.randn(64, 64)), nn.Parameter(torch.randn(2, 64, 64))

    def forward(self, x):
        return x @ self.weight, x @ (self.weight @ self.weight), x @ self.several, x @ x.mT


@installed
def test_products_with_weights_are_rounded_to_eight_bits():
    module, x = Product().requires_grad_(False), torch.randn(5, 64)
    by_weight, by_both, several, by_input = (
        float((one - other).abs().max() / one.abs().max())
        for one, other in zip(module(x), OnnxGraph(module, [x], rounded=True)(x), strict=True)
    )
    assert 1e-4 < by_weight < 0.03 and 1e-4 < by_both < 0.03 and several < 1e-5 and by_input < 1e-5


@installed
def test_a_rounded_graph_is_used_if_it_stays_near(caplog):
    backbone = StackConfig(width=32, num_layers=1)
    policy = ConditionedCloningConfig(context=3, backbone=backbone).build(to_spec(make("Pendulum-v1"))).eval().policy
    engines: tuple[Engine, ...] = ("torch", "onnx-int8")
    plain, rounded = (
        rollout(
            policy, "Pendulum-v1", [Job(0, target=-200.0)], seed=0, max_steps=130, keep_actions=True, engine=engine
        )[0]
        for engine in engines
    )
    assert "without a graph" not in caplog.text and 0 < abs(plain.actions - rounded.actions).max() < 0.2


class Rare(nn.Module):
    def forward(self, x):
        return (torch.special.airy_ai(x),)


@installed
def test_what_onnx_cannot_do_is_told():
    with pytest.raises(RuntimeError):
        OnnxGraph(Rare(), [torch.ones(3)])


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(onnx_graph, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'foretoken\[onnx\]'"):
        Traced(object(), engine="onnx")
