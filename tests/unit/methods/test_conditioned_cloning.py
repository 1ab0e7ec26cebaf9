"""Conditioned cloning: who sees what, partial reads, the condition's context, refused spaces."""

import pytest
import torch

from foretoken.core.errors import ConfigError
from foretoken.core.spec import Box, Dict, Discrete, Spec
from foretoken.data.windows import WindowSampler
from foretoken.methods.conditioned_cloning import ConditionedCloningConfig
from foretoken.methods.conditions.return_to_go import ReturnToGoConfig
from foretoken.nn.embed.time import WindowTimeConfig
from foretoken.nn.feed_forward import MixtureOfExpertsConfig
from foretoken.nn.stack import BlockConfig, StackConfig
from foretoken.testing.agreement import perturb
from foretoken.testing.stores import SPECS, random_store

SMALL = ConditionedCloningConfig(context=5, backbone=StackConfig(width=8, num_layers=2))


def fitted(config: ConditionedCloningConfig = SMALL, spec: str = "continuous"):
    torch.manual_seed(0)
    store = random_store(SPECS[spec])
    method = config.build(SPECS[spec])
    method.fit({"data": store}, "main")
    perturb(method, 0, scale=0.1)
    return method.eval(), WindowSampler(store, method.window).draw(6, 0)


def test_an_action_sees_all_but_itself_and_what_follows() -> None:
    method, batch = fitted()
    base = method(batch).mode()
    known = batch.valid.all(1)
    assert bool(known.any())
    for name, first in (("action", 4), ("return_to_go", 3), ("observation", 3)):
        changed = batch[name].clone()
        changed[:, 3] += 1
        moved = (method(batch.replace(**{name: changed})).mode() != base).flatten(2).any(2)[known]
        assert not bool(moved[:, :first].any()), name
        assert bool(moved[:, first].all()), name


def test_the_first_previous_action_of_a_window_is_hidden() -> None:
    method, batch = fitted()
    previous = torch.randn(6, 5, 3)
    condition = method.condition.hindsight(batch)

    def ask(action: torch.Tensor) -> torch.Tensor:
        return method.predict(batch.observation, action, condition, batch.timestep, batch.valid, slice(None))[0].mode()

    begins = batch.valid & ~torch.cat((torch.zeros(6, 1, dtype=torch.bool), batch.valid[:, :-1]), 1)
    torch.testing.assert_close(
        ask(torch.where(begins[..., None], 1e3, previous))[batch.valid], ask(previous)[batch.valid]
    )


@pytest.mark.parametrize("read", [slice(-1, None), slice(1, 3), slice(0, None, 2), slice(2, None)])
def test_partial_reads(read: slice) -> None:
    method, batch = fitted()
    torch.testing.assert_close(method(batch, read=read).mode(), method(batch).mode()[:, read])


def test_tokens_carry_their_own_time() -> None:
    """A previous action has the time of the step it was taken in, whichever kind of time there is."""
    method, batch = fitted(SMALL.replace(time=WindowTimeConfig()), "discrete")
    method.embed_time.place.weight.data.zero_()
    method.embed_time.place.weight.data[1] = 5.0  # only what belongs to the second step is moved
    seen = []
    method.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    method.norm = torch.nn.Identity()
    whole = batch.map(lambda leaf: leaf[batch.valid.all(1)])
    method(whole)
    method.embed_time.place.weight.data.zero_()
    method(whole)
    moved = (seen[0] - seen[1]).abs().amax((0, 2)) > 1
    assert moved.nonzero().flatten().tolist() == [
        3,
        4,
        5,
    ]  # R_1, s_1, a_1: the first, hidden token is left out


def test_scaled_returns_come_from_the_data() -> None:
    method, batch = fitted()
    largest = abs(random_store(SPECS["continuous"]).episodes["return"]).max()
    assert float(method.condition.scale) == pytest.approx(float(largest))
    torch.testing.assert_close(method.condition.hindsight(batch)[..., 0], batch.return_to_go / method.condition.scale)
    fixed, _ = fitted(SMALL.replace(condition=ReturnToGoConfig(scale=123.0)))
    assert float(fixed.condition.scale) == 123.0


def test_a_target_must_be_asked_for() -> None:
    method, _ = fitted()
    with pytest.raises(ConfigError, match="begin its episodes with a target_return"):
        method.policy.begin(2, {})
    assert method.policy.begin(3, {"target_return": 5.0, "unknown": 1})["condition"]["asked"].tolist() == [5.0] * 3
    cloning, _ = fitted(SMALL.replace(condition=None))
    assert "condition" not in cloning.policy.begin(2, {})
    with pytest.raises(ConfigError, match="scale must be positive"):
        ReturnToGoConfig(scale=-1.0)


def test_only_scored_steps_count() -> None:
    method, batch = fitted()
    one = torch.zeros_like(batch.scored)
    one[0, -1] = True
    loss = method.loss(batch.replace(scored=one & batch.valid))
    want = method(batch).loss(batch.action)[0, -1]
    torch.testing.assert_close(loss.total, want)
    assert float(loss.weight) == 1


def test_dict_actions_are_refused() -> None:
    spec = Spec(observation=Box(shape=(2,)), action=Dict(spaces={"a": Discrete(n=2)}))
    with pytest.raises(ConfigError, match="Dict space are not supported"):
        SMALL.build(spec)


def test_losses_of_the_backbone_are_added() -> None:
    block = BlockConfig(feed_forward=MixtureOfExpertsConfig(num_experts=3))
    config = SMALL.replace(backbone=StackConfig(width=8, num_layers=2, pattern=(block,)))
    method, batch = fitted(config)
    asleep = method.loss(batch)
    assert asleep.total is asleep.metrics["loss"]
    loss = method.train().loss(batch)
    own = [value for name, value in loss.metrics.items() if name.endswith(("balance_loss", "z_loss"))]
    assert len(own) == 4 and all(value > 0 for value in own)
    torch.testing.assert_close(loss.total, loss.metrics["loss"] + sum(own))
