"""Optimiser settings, schedules and saved states."""

import pytest
import torch
from torch import nn

from foretoken.core.errors import CheckpointError, ConfigError
from foretoken.training.optim import AdamW, Part


class TestSchedule:
    def test_warms_up_and_stays(self):
        config = AdamW(warmup=4)
        assert [config.factor(u, 100) for u in (0, 1, 3, 4, 99)] == [0.25, 0.5, 1.0, 1.0, 1.0]

    def test_cosine_falls_from_one_to_the_final_share(self):
        config = AdamW(warmup=10, schedule="cosine", final_lr=0.1)
        assert config.factor(10, 110) == 1.0
        assert config.factor(60, 110) == pytest.approx(0.55)
        assert config.factor(110, 110) == pytest.approx(0.1)

    def test_linear_is_half_way_in_the_middle(self):
        assert AdamW(schedule="linear").factor(50, 100) == pytest.approx(0.5)

    def test_refuses_negative_settings_by_name(self):
        with pytest.raises(ConfigError, match="lr must not be negative, got -1"):
            AdamW(lr=-1.0)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"trunk": nn.Linear(3, 3), "head": nn.Linear(3, 1)})


class TestParts:
    def test_longest_prefix_wins_and_vectors_may_be_spared(self):
        parts = (Part(prefix="head", lr=1.0), Part(prefix="head.bias", lr=2.0))
        config = AdamW(lr=0.5, weight_decay=0.1, decay="matrices", parts=parts)
        optimiser = config.build(network().named_parameters())
        found = {
            (g["lr"], g["weight_decay"], tuple(p.shape)) for g in optimiser.inner.param_groups for p in g["params"]
        }
        assert found == {(0.5, 0.1, (3, 3)), (0.5, 0.0, (3,)), (1.0, 0.1, (1, 3)), (2.0, 0.0, (1,))}

    def test_unknown_prefix_is_named_with_the_nearest(self):
        with pytest.raises(ConfigError, match=r"'heat' is no module.*did you mean 'head'"):
            AdamW(parts=(Part(prefix="heat"),)).check(network())

    def test_no_part_covers_a_name_that_only_begins_alike(self):
        assert not Part(prefix="head").covers("header.weight")


def advance(module: nn.Module, optimiser, steps: int) -> None:
    for step in range(steps):
        optimiser.zero()
        module["head"](module["trunk"](torch.ones(2, 3) * step)).square().mean().backward()
        optimiser.step(1.0)


def test_loaded_state_goes_on_bit_for_bit():
    first = network()
    optimiser = AdamW(lr=0.1).build(first.named_parameters())
    advance(first, optimiser, 3)
    second = network()
    second.load_state_dict(first.state_dict())
    other = AdamW(lr=0.1).build(second.named_parameters())
    other.load({name: value.clone() for name, value in optimiser.state().items()})
    advance(first, optimiser, 2)
    advance(second, other, 2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_state_of_another_network_is_refused_by_name():
    optimiser = AdamW().build(network().named_parameters())
    with pytest.raises(CheckpointError, match=r"'haed.weight'.*did you mean 'head.weight'"):
        optimiser.load({"haed.weight/step": torch.ones(())})
    with pytest.raises(CheckpointError, match=r"'head.weight/exp_avg' has shape \(2, 2\)"):
        optimiser.load({"head.weight/exp_avg": torch.ones(2, 2)})
