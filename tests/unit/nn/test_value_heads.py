"""Value heads: one contract, three losses."""

import math

import pytest
import torch
from torch import Tensor, nn

from foretoken.core.config import Config
from foretoken.core.errors import ConfigError, DataError
from foretoken.nn.heads.value import HLGaussConfig, ScalarValueConfig, TwoHotConfig, ValueHeadConfig

HEADS = {
    "scalar": ScalarValueConfig(),
    "bounded": ScalarValueConfig(low=-1, high=3),
    "huber": ScalarValueConfig(huber=1.0),
    "scaled": ScalarValueConfig(huber=1.0, scale=5.0),
    "two-hot": TwoHotConfig(bins=41, low=-1, high=3),
    "hl-gauss": HLGaussConfig(bins=41, low=-1, high=3),
}


@pytest.fixture(params=HEADS)
def config(request: pytest.FixtureRequest) -> ValueHeadConfig:
    return HEADS[request.param]


def features(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_contract(config: ValueHeadConfig) -> None:
    torch.manual_seed(0)
    head, x = config.build(8, 5), features(2, 3, 8)
    target = torch.linspace(-0.9, 2.9, 30).view(2, 3, 5)
    prediction = head(x)
    for part in (prediction.value, prediction.loss(target), prediction.clipped(target)):
        assert part.shape == (2, 3, 5) and part.dtype == torch.float32
    index = torch.tensor([[0, 4, 2], [1, 1, 3]])
    one, own = prediction.select(index), target.take_along_dim(index[..., None], -1).squeeze(-1)
    torch.testing.assert_close(one.value, prediction.value.take_along_dim(index[..., None], -1).squeeze(-1))
    torch.testing.assert_close(one.loss(own), prediction.loss(target).take_along_dim(index[..., None], -1).squeeze(-1))
    torch.testing.assert_close(head(x[0, :1]).value, prediction.value[0, :1])  # any leading shape, places on their own
    assert Config.from_json(config.to_json()) == config


def test_targets_carry_no_gradient(config: ValueHeadConfig) -> None:
    head, target = config.build(4), torch.zeros(3, 1, requires_grad=True)
    head(features(3, 4)).loss(target).sum().backward()
    assert target.grad is None
    assert all(weight.grad is not None and bool(weight.grad.isfinite().all()) for weight in head.parameters())


def test_learns_the_mean_of_noisy_targets(config: ValueHeadConfig) -> None:
    """Half of the targets are 0, half 2, of one and the same feature; Huber's linear part meets the mean here too."""
    torch.manual_seed(0)
    head, x, target = config.build(4), torch.ones(2, 4), torch.tensor([[0.0], [2.0]])
    optimiser = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(400):
        optimiser.zero_grad()
        head(x).loss(target).mean().backward()
        optimiser.step()
    torch.testing.assert_close(head(x).value, torch.ones(2, 1), atol=0.03, rtol=0)


@pytest.mark.parametrize("start", [-0.5, 0.0, 1.0, 2.7])
def test_starts_where_asked(config: ValueHeadConfig, start: float) -> None:
    head = config.replace(start=start).build(8, 3)
    torch.testing.assert_close(head(10 * features(5, 8)).value, torch.full((5, 3), start), atol=1e-5, rtol=0)
    before = head(features(1, 8)).value
    optimiser = torch.optim.SGD(head.parameters(), lr=0.5)
    head(features(1, 8)).loss(before + 0.2).sum().backward()
    optimiser.step()
    assert bool((head(features(1, 8)).value > before).all())  # nothing is saturated


def test_starts_near_an_end() -> None:
    for kind in (TwoHotConfig, HLGaussConfig, ScalarValueConfig):
        value = kind(low=0, high=1, start=0).build(4)(features(2, 4)).value.detach()
        assert float(value.min()) > 0 and float(value.max()) < 0.016


@pytest.mark.parametrize("kind", [TwoHotConfig, HLGaussConfig])
def test_a_range_from_data(kind: type[TwoHotConfig | HLGaussConfig]) -> None:
    head, x = kind(bins=21, start=0.5).build(4), features(3, 4)
    assert bool(head(x).value.isnan().all())  # noticed, not wrong
    head.fit(0.0, 8.0)
    assert float(head.points[0]) == 0 and float(head.points[-1]) == 8
    torch.testing.assert_close(head(x).value, torch.full((3, 1), 0.5), atol=1e-5, rtol=0)
    assert head(x).clipped(torch.tensor([[-0.1], [8.0], [9.0]])).flatten().tolist() == [1, 0, 1]
    nn.init.normal_(head.linear.weight)
    trained = head(x).value
    head.fit(-100.0, 100.0)
    torch.testing.assert_close(head(x).value, trained)  # the first range stays
    fresh = kind(bins=21, start=0.5).build(4)
    fresh.load_state_dict(head.state_dict())
    torch.testing.assert_close(fresh(x).value, trained)
    given = kind(bins=21, low=-1, high=1).build(4)
    given.fit(0.0, 8.0)
    assert float(given.points[-1]) == 1


def test_only_what_has_a_range_clips() -> None:
    target = torch.tensor([[-1.5], [0.0], [3.5]])
    for name, clips in (("scalar", 0), ("huber", 0), ("bounded", 2), ("scaled", 0), ("two-hot", 2), ("hl-gauss", 2)):
        assert float(HEADS[name].build(4)(features(3, 4)).clipped(target).sum()) == clips


def test_losses_of_numbers() -> None:
    head = ScalarValueConfig(start=1.0).build(4)
    torch.testing.assert_close(head(features(1, 4)).loss(torch.tensor([[4.0]])), torch.tensor([[4.5]]))
    huber = ScalarValueConfig(start=1.0, huber=2.0).build(4)
    torch.testing.assert_close(huber(features(1, 4)).loss(torch.tensor([[4.0]])), torch.tensor([[2.0 * (3.0 - 1.0)]]))
    scaled = ScalarValueConfig(start=1.0, huber=0.5, scale=3.0).build(4)
    torch.testing.assert_close(scaled(features(1, 4)).loss(torch.tensor([[4.0]])), torch.tensor([[0.5 * (1.0 - 0.25)]]))
    bounded = ScalarValueConfig(low=0, high=1).build(4)
    assert bool(((value := bounded(1e4 * features(9, 4)).value) >= 0).all()) and bool((value <= 1).all())


def test_a_scale_is_another_unit_of_values_and_targets() -> None:
    one, other = ScalarValueConfig().build(4), ScalarValueConfig(scale=8.0).build(4)
    other.load_state_dict(one.state_dict())
    x, target = features(5, 4), features(5, 1)
    torch.testing.assert_close(other(x).value, 8 * one(x).value, rtol=0, atol=0)
    torch.testing.assert_close(other(x).loss(8 * target), one(x).loss(target), rtol=0, atol=0)


def test_best_loss_is_the_entropy_of_the_target() -> None:
    head, y = HLGaussConfig(bins=9, low=0, high=9).build(4), torch.tensor([[4.5]])
    goal = head.config.target(y, head.points)
    with torch.no_grad():
        head.linear.weight.zero_()
        head.linear.bias.copy_(goal.clamp(min=1e-30).log().flatten())
    want = -sum(p * math.log(p) for p in goal.flatten().tolist() if p > 0)
    assert float(head(features(1, 4)).loss(y).detach()) == pytest.approx(want, abs=1e-5)
    assert float(head(features(1, 4)).value.detach()) == pytest.approx(4.5, abs=1e-3)


def test_in_bfloat16_values_and_losses_are_float32() -> None:
    head = HEADS["hl-gauss"].build(8, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = head(features(3, 8))
        loss = prediction.loss(torch.zeros(3, 2))
    assert prediction.value.dtype == loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TwoHotConfig(low=1, high=0), "low and high must be finite and in order, got low=1.0 and high=0.0"),
        (lambda: TwoHotConfig(high=float("inf")), "must be finite"),
        (lambda: HLGaussConfig(low=0, high=1, start=2), r"start must lie in \[low, high\], got 2.0 and \[0.0, 1.0\]"),
        (lambda: HLGaussConfig(bins=1), "bins must be at least 2, got 1"),
        (lambda: HLGaussConfig(sigma_ratio=0), "sigma_ratio must be above 0, got 0.0"),
        (lambda: ScalarValueConfig(huber=0), "huber must be above 0, or None"),
        (lambda: ScalarValueConfig(scale=0), "scale must be positive and finite, got 0.0"),
        (lambda: ScalarValueConfig(high=1, scale=2), r"a range or a scale, got \[0.0, 1.0\] and scale=2.0"),
    ],
)
def test_refuses_configs(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]


def test_refuses_a_target_that_would_broadcast(config: ValueHeadConfig) -> None:
    with pytest.raises(DataError, match=r"needs the value's shape \(3, 1\), got \(3,\)"):
        config.build(4)(features(3, 4)).loss(torch.zeros(3))


def test_refuses_a_range_without_width() -> None:
    with pytest.raises(DataError, match=r"low < high, got \[3.0, 3.0\]: set the config's low and high"):
        TwoHotConfig().build(4).fit(3.0, 3.0)
