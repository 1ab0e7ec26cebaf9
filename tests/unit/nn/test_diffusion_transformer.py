"""The diffusion transformer: starts as nothing, blocks read their own encoder layer, and observations become tokens."""

import pytest
import torch

from foretoken.core.errors import ConfigError
from foretoken.core.spec import Box, Dict, Discrete
from foretoken.nn.diffusion_transformer import adaln_transformer
from foretoken.nn.embed.tokens import ObservationTokensConfig
from foretoken.testing.agreement import perturb
from foretoken.testing.stores import SPECS

VECTOR = Box(shape=(4,))


def built(space=VECTOR, **more):
    torch.manual_seed(0)
    observation = ObservationTokensConfig(fields=(1, 3)) if space == VECTOR else ObservationTokensConfig()
    return adaln_transformer(8, 3, 2, observation=observation, time_features=8, **more).build(space, 2, 5, 3).eval()


def inputs():
    generator = torch.Generator().manual_seed(0)
    observation, sample = (torch.randn(2, *shape, generator=generator) for shape in ((2, 4), (5, 3)))
    return observation, sample, torch.tensor([0.2, 0.9])


@torch.no_grad()
def test_untrained_network_answers_zero_and_its_blocks_are_the_identity() -> None:
    network, (observation, sample, level) = built(), inputs()
    assert torch.equal(network(sample, level, network.encode(observation)), torch.zeros(2, 5, 3))
    x = torch.randn(2, 5, 8)
    for block in network.decoder.layers():
        assert torch.equal(block(x, condition=torch.randn(2, 8)).y, x)
    assert built(zero_init=False)(sample, level, network.encode(observation)).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("paired", [True, False])
def test_blocks_read_their_own_encoder_layer(paired: bool) -> None:
    network, (observation, sample, level) = built(paired=paired), inputs()
    perturb(network, 0)
    known = network.encode(observation)
    assert known["mean"].shape == (2, 3, 8)
    want = network(sample, level, known)
    for layer in range(3):
        changed = known["mean"].clone()
        changed[:, layer] += 1
        differs = not torch.equal(network(sample, level, {"mean": changed}), want)
        assert differs == (paired or layer == 2)


@torch.no_grad()
def test_what_is_kept_of_an_encoder_layer_is_the_mean_of_its_tokens() -> None:
    network, (observation, _, _) = built(), inputs()
    x_BLD, known = network.observation(observation), network.encode(observation)
    for layer, block in enumerate(network.encoder.layers()):
        x_BLD = block(x_BLD).y
        torch.testing.assert_close(known["mean"][:, layer], x_BLD.mean(1))


@torch.no_grad()
@pytest.mark.parametrize("cross", [True, False])
def test_everything_given_is_read(cross: bool) -> None:
    network, (observation, sample, level) = built(cross=cross), inputs()
    perturb(network, 0)
    known = network.encode(observation)
    want = network(sample, level, known)
    other = observation.clone()
    other[:, 0, 1] += 1
    assert (network(sample, level, network.encode(other)) - want).abs().amin((1, 2)).min() > 0
    assert not torch.equal(network(sample, level.flip(0), known), want)
    later = sample.clone()
    later[:, -1] += 1  # no order among the actions of a chunk: the first is denoised in view of the last
    assert not torch.equal(network(later, level, known)[:, 0], want[:, 0])
    turned = network(sample.flip(1), level, known).flip(1)  # and actions know their place in the chunk
    assert not torch.allclose(turned, want, atol=1e-5)
    swapped = network.encode(observation.flip(1))  # but encoder tokens know their place
    assert not torch.allclose(network(sample, level, swapped), want, atol=1e-5)


@torch.no_grad()
def test_tokens_of_a_vector_see_their_own_entries() -> None:
    tokens = ObservationTokensConfig(fields=(1, 3)).build(VECTOR, 8)
    x, other = torch.randn(2, 3, 4), torch.randn(2, 3, 1)
    y = tokens(x).unflatten(1, (3, 2))
    changed = tokens(torch.cat((other, x[..., 1:]), dim=-1)).unflatten(1, (3, 2))
    assert y.shape == (2, 3, 2, 8)
    assert torch.equal(changed[:, :, 1], y[:, :, 1]) and not torch.equal(changed[:, :, 0], y[:, :, 0])


def test_tokens_by_space() -> None:
    for space, observation, count in (
        (SPECS["image"].observation, torch.zeros(2, 3, 3, 36, 36, dtype=torch.uint8), 1),
        (Box(shape=(84, 84, 1), dtype="uint8"), torch.zeros(2, 3, 84, 84, 1, dtype=torch.uint8), 49),
        (Box(shape=()), torch.zeros(2, 3), 1),
        (Dict(spaces={"a": Discrete(n=3), "b": VECTOR}), {"a": torch.zeros(2, 3).long(), "b": torch.zeros(2, 3, 4)}, 2),
    ):
        assert ObservationTokensConfig().build(space, 8)(observation).shape == (2, 3 * count, 8)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"fields must be positive and add up .* got \(1, 2\)"):
        ObservationTokensConfig(fields=(1, 2)).build(VECTOR, 8)
    config = adaln_transformer(8, 2, 2)
    with pytest.raises(ConfigError, match="one depth, got 8 x 3 and 8 x 2"):
        config.replace(encoder=config.encoder.replace(num_layers=3))
    with pytest.raises(ConfigError, match="either cross-attention or condition_width=8"):
        config.replace(decoder=config.encoder)
    with pytest.raises(ConfigError, match="time_features must be even and positive, got 3"):
        config.replace(time_features=3)
