"""Body Transformer: bodies by name, what a part's motors depend on, arms of one size, and the verdict."""

import numpy as np
import pytest
import torch

from foretoken.core.batch import Batch
from foretoken.core.body import Body, Part, known_body
from foretoken.core.errors import ConfigError, UnknownName
from foretoken.core.spec import Box, Spec
from foretoken.methods.body_cloning import BodyCloning, BodyCloningConfig
from foretoken.nn.body import BodyEncoderConfig, FlatConfig
from foretoken.systems.bodies.body_transformer import adroit, claim, paper, verdict
from foretoken.testing.methods import LAWS, Trial
from foretoken.testing.stores import SPECS

CHEETAH = Spec(
    observation=Box(shape=(17,)), action=Box(shape=(6,), low=(-1.0,), high=(1.0,)), environment="HalfCheetah-v5"
)
SMALL = BodyEncoderConfig(width=8, num_layers=6, num_heads=2, feed_forward=16)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(
    "config",
    [
        BodyCloningConfig(network=SMALL.replace(mask="soft", num_layers=1, positions=True), std=0.1),
        BodyCloningConfig(network=FlatConfig(width=4, hidden=(8,))),
    ],
    ids=["soft", "flat"],
)
def test_method_laws_of_the_other_networks(config, law):
    LAWS[law](Trial(config, CHEETAH))


def test_the_body_is_that_of_the_data_or_the_one_given():
    assert BodyCloningConfig(network=SMALL).build(CHEETAH).body == known_body("HalfCheetah-v5")
    unnamed = CHEETAH.replace(environment="")
    assert BodyCloningConfig(network=SMALL, body_of="Walker2d-v5").build(unnamed).body == known_body("Walker2d-v5")
    whole = Body(parts=(Part(name="all", observation=tuple(range(17)), action=tuple(range(6))),))
    config = BodyCloningConfig(network=SMALL, body=whole)
    assert BodyCloningConfig.from_json(config.to_json()).build(unnamed).body == whole
    with pytest.raises(ConfigError, match='give body, or body_of="star"'):
        BodyCloningConfig(network=SMALL).build(unnamed)
    with pytest.raises(ConfigError, match=r"either body or body_of, got parts \('all',\)"):
        config.replace(body_of="star")
    with pytest.raises(UnknownName, match="body_of_environment makes one"):
        BodyCloningConfig(network=SMALL).build(CHEETAH.replace(environment="MyRobot-v0"))
    with pytest.raises(ConfigError, match="this body has 11 entries of the observation, the data have 17"):
        BodyCloningConfig(network=SMALL, body_of="Hopper-v5").build(CHEETAH)
    with pytest.raises(ConfigError, match="vectors of observations and of actions"):
        BodyCloningConfig(network=SMALL, body_of="star").build(SPECS["discrete"])


@pytest.mark.parametrize("layers", [1, 3, 6])
def test_motors_do_not_hear_of_parts_farther_than_the_layers(layers):
    torch.manual_seed(0)
    method = BodyCloningConfig(network=SMALL).build(CHEETAH).double()
    del method.network.layers[layers:]
    observation = torch.randn(4, 17, dtype=torch.float64, requires_grad=True)
    action, body = method.predict(observation).mode(), method.body
    for i, part in enumerate(body.parts):
        for entry in part.action:
            (grad,) = torch.autograd.grad(action[:, entry].sum(), observation, retain_graph=True)
            heard = [bool(grad[:, list(other.observation)].abs().sum() > 0) for other in body.parts]
            assert heard == [far <= layers for far in body.distances()[i]]


def test_a_fixed_standard_deviation_is_the_squared_error_but_for_a_factor():
    losses = {}
    for std in (0.0, 0.1):
        torch.manual_seed(0)
        method = BodyCloningConfig(network=SMALL, std=std).build(CHEETAH)
        batch = Batch(
            observation=torch.randn(5, 1, 17), action=torch.rand(5, 1, 6), scored=torch.ones(5, 1, dtype=torch.bool)
        )
        loss = method.loss(batch)
        loss.total.backward()
        losses[std] = method.heads.weight.grad
    torch.testing.assert_close(losses[0.1], losses[0.0] * 6 / (2 * 0.1**2), rtol=1e-4, atol=1e-6)


def test_arms_have_as_many_weights():
    sizes = {
        arm: sum(weight.numel() for weight in experiment.system.build(CHEETAH).parameters())
        for arm, experiment in claim().arms.items()
    }
    assert np.ptp(list(sizes.values())) < 0.01 * sizes["hard"], sizes


def test_shows_attention_of_a_masked_and_an_open_layer():
    method = BodyCloningConfig(network=SMALL.replace(mask="mix")).build(CHEETAH)
    assert isinstance(method, BodyCloning)
    with torch.no_grad():
        (shown,) = method.exhibits([Batch(observation=torch.randn(1, 9, 17))])
    masked, unmasked = shown.panels
    assert masked.title == "layer 0, masked" and unmasked.title == "layer 1, open" and "mix mask" in shown.says
    assert np.array_equal(np.array(masked.values) == 0, np.array(masked.hidden))
    assert not BodyCloningConfig(network=FlatConfig(width=4)).build(CHEETAH).exhibits([])


def test_the_papers_depth_fits_the_adroit_hand():
    hand = Spec(observation=Box(shape=(39,)), action=Box(shape=(28,)), environment="AdroitHandDoor-v1")
    method = BodyCloningConfig(network=SMALL.replace(num_layers=10)).build(hand)
    assert len(method.body.parts) == 25 and paper().system.network.num_layers >= method.body.diameter
    assert adroit().system.build(hand).network.config.num_layers == method.body.diameter


def test_verdict_takes_the_arm_that_errs_less():
    def rows(error, earned):
        return [{"held-out error": error, "return": earned}] * 2

    results = {
        "hard": rows(0.10, 5000.0), "mix": rows(0.12, 6000.0), "transformer": rows(0.11, 4500.0),
        "random": rows(0.2, 4000.0), "mlp": rows(0.3, 5000.0),
    }  # fmt: skip
    assert all(verdict(results).values())
    results["transformer"] = rows(0.09, 4600.0)  # "mix" would pass, but "hard" errs less
    assert list(verdict(results).values()) == [False, True, False, True, True]
    results["random"] = rows(0.2, 4501.0)
    assert not verdict(results)["a random mask earns >= 10 % less"]
    for arm, earned in (("hard", -105.0), ("mix", -105.0), ("transformer", -100.0), ("random", -96.0), ("mlp", -300.0)):
        results[arm] = rows(0.1, earned)
    assert list(verdict(results).values()) == [True, True, False, True, False]
