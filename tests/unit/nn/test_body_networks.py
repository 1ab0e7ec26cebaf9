"""Part by part against plain loops; who hears of whom; masks of one density."""

import pytest
import torch

from foretoken.core.body import known_body
from foretoken.core.errors import ConfigError
from foretoken.nn.body import BodyEncoderConfig, FlatConfig, PartHeads, PartTokens, random_mask

CHEETAH = known_body("HalfCheetah-v5")
DISTANCES = CHEETAH.distances()
SMALL = BodyEncoderConfig(width=8, num_layers=6, num_heads=2, feed_forward=16)


def test_tokens_are_a_linear_layer_for_each_part():
    torch.manual_seed(0)
    reads = [(0, 3), (1,), (), (3, 1, 2)]  # entries 1 and 3 are read by two parts
    tokens, x_BO = PartTokens(reads, 4, 5), torch.randn(6, 4)
    assert tokens.weight.shape == (2 + 1 + 0 + 3 + 3, 5)  # an entry a row, and a bias for each part that reads
    got, row = tokens(x_BO), 0
    for i, part in enumerate(reads):
        own = tokens.weight[row : row + len(part) + 1]
        want = x_BO[:, list(part)] @ own[:-1] + own[-1] if part else torch.zeros(6, 5)
        torch.testing.assert_close(got[:, i], want)
        row += len(part) + bool(part)


def test_heads_are_a_linear_layer_for_each_entry():
    heads, y_BPD = PartHeads([2, 0, 2], 5), torch.randn(6, 3, 5)
    want = torch.stack([y_BPD[:, p] @ heads.weight[a] + heads.bias[a] for a, p in enumerate([2, 0, 2])], dim=1)
    torch.testing.assert_close(heads(y_BPD), want)


@pytest.mark.parametrize("layers", range(1, 7))
def test_news_travels_one_joint_a_layer(layers):
    torch.manual_seed(0)
    network = SMALL.build(DISTANCES).double()
    del network.layers[layers:]
    x_BPD = torch.randn(3, 7, 8, dtype=torch.float64, requires_grad=True)
    y_BPD = network(x_BPD)
    for i in range(7):
        (grad,) = torch.autograd.grad((y_BPD[:, i] * torch.randn(8)).sum(), x_BPD, retain_graph=True)
        heard = grad.abs().sum((0, 2)) > 0
        assert heard.tolist() == [far <= layers for far in DISTANCES[i]]


def test_mix_hears_all_in_two_layers_in_its_order():
    for first in (0, 1):
        network = SMALL.replace(mask="mix", num_layers=2, first_hard_layer=first).build(DISTANCES)
        closed = [(part == 0).any().item() for part in network.attention(torch.randn(1, 7, 8))]
        assert closed == [first == 0, first == 1]
        assert [network.bias(i) is not None for i in range(2)] == closed


def test_random_mask_is_as_dense_and_sees_itself():
    torch.manual_seed(0)
    distance_PP = torch.tensor(DISTANCES)
    masks = [random_mask(distance_PP) for _ in range(20)]
    assert all(mask.sum() == (distance_PP < 2).sum() and mask.diagonal().all() for mask in masks)
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) > 15
    network, other = (SMALL.replace(mask="random").build(DISTANCES) for _ in range(2))
    other.load_state_dict(network.state_dict())
    assert torch.equal(other.visible_PP, network.visible_PP)  # the mask is part of the policy


def test_soft_bias_is_a_number_per_distance():
    network = SMALL.replace(mask="soft").build(DISTANCES)
    assert network.strength.shape == (7,)
    with torch.no_grad():
        network.strength.copy_(torch.tensor([0.0, 0.0, *[-1e4] * 5]))
    hard = SMALL.build(DISTANCES)
    hard.load_state_dict(network.state_dict(), strict=False)
    x_BPD = torch.randn(3, 7, 8)
    torch.testing.assert_close(network(x_BPD), hard(x_BPD))


@pytest.mark.parametrize("mask", ["hard", "mix", "soft", "random", "none"])
def test_attention_that_is_shown_is_the_one_that_is_used(mask):
    torch.manual_seed(0)
    network = SMALL.replace(mask=mask, num_heads=1, positions=True).build(DISTANCES)
    x_BPD = torch.randn(3, 7, 8)
    weights, layer = network.attention(x_BPD)[0], network.layers[0]
    x_BPD = x_BPD + network.place
    mixed = layer.norm_attention(x_BPD + layer.out(weights @ layer.heads(x_BPD)[2][:, 0]))
    want = layer.norm(mixed + layer.down(layer.up(mixed).relu()))
    torch.testing.assert_close(want, layer(x_BPD, network.bias(0)))


@pytest.mark.parametrize("mask", ["hard", "mix", "soft", "none"])
def test_layers_are_those_of_torch_under_a_mask(mask):
    torch.manual_seed(0)
    network, x_BPD = SMALL.replace(mask=mask).build(DISTANCES), torch.randn(3, 7, 8)
    distance_PP, want = torch.tensor(DISTANCES), x_BPD
    names = {
        "self_attn.in_proj_": "qkv.", "self_attn.out_proj.": "out.", "norm1.": "norm_attention.",
        "linear1.": "up.", "linear2.": "down.", "norm2.": "norm.",
    }  # fmt: skip
    for i, layer in enumerate(network.layers):
        theirs = torch.nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, dropout=0.0, batch_first=True)
        ours = layer.state_dict()
        theirs.load_state_dict({a + end: ours[b + end] for a, b in names.items() for end in ("weight", "bias")})
        apart = None if mask == "none" or (mask == "mix" and i % 2) else distance_PP >= 2
        want = theirs(want, src_mask=network.strength[distance_PP] if mask == "soft" else apart)
    torch.testing.assert_close(network(x_BPD), want)


def test_what_a_mask_could_save_is_counted():
    dense = SMALL.build(DISTANCES)
    assert dense.products() - dense.products(skip=True) == 6 * 2 * (49 - 19) * 8
    assert SMALL.replace(mask="none").build(DISTANCES).products(skip=True) == dense.products()


def test_flat_is_an_mlp_over_all_tokens():
    flat = FlatConfig(width=8, hidden=(5, 6)).build(DISTANCES)
    assert flat(torch.randn(3, 7, 8)).shape == (3, 7, 8)
    assert [part.in_features for part in flat.layers if hasattr(part, "in_features")] == [56, 5, 6]


def test_refuses_what_cannot_hear_or_divide():
    with pytest.raises(ConfigError, match=r"longest path of the body, 6 joints.*got 5"):
        SMALL.replace(num_layers=5).build(DISTANCES)
    with pytest.raises(ConfigError, match="got 1"):
        SMALL.replace(mask="mix", num_layers=1).build(DISTANCES)
    with pytest.raises(ConfigError, match="num_heads must divide width, got 8, 6, 3 and 16"):
        SMALL.replace(num_heads=3)
