"""K-means, and the head that corrects its clusters."""

import pytest
import torch

from foretoken.core.errors import ConfigError, DataError
from foretoken.core.spec import Box, Discrete
from foretoken.nn.heads.cluster_offset import ClusterOffsetConfig
from foretoken.nn.tokenizers.kmeans import KMeansConfig

BOX = Box(shape=(2,), low=(-1.0,), high=(1.0,))


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def made(clusters=5, data=None, **changes):
    torch.manual_seed(0)
    head = ClusterOffsetConfig(clusters=KMeansConfig(clusters=clusters), **changes).build(BOX, 4)
    head.fit_actions((normal(200, 2) / 3).clamp(-1, 1) if data is None else data)
    return head


def test_finds_separate_clusters_whatever_the_seed() -> None:
    where = torch.tensor([[-9.0, 0.0], [0.0, 0.0], [0.0, 8.0], [7.0, 7.0]])
    data = (where[:, None] + 0.1 * normal(4, 50, 2)).reshape(-1, 2)
    for seed in range(10):
        codec = KMeansConfig(clusters=4, seed=seed).build(BOX)
        codec.fit(data)
        again = KMeansConfig(clusters=4, seed=seed).build(BOX)
        again.fit(data)
        assert torch.equal(codec.centres, again.centres)
        assert torch.cdist(where, codec.centres).amin(1).max() < 0.1
        assert len(set(codec.encode(where).flatten().tolist())) == 4


def test_centres_are_the_means_of_what_is_nearest() -> None:
    data, codec = normal(300, 2), KMeansConfig(clusters=7).build(BOX)
    codec.fit(data)
    tokens = codec.encode(data).squeeze(-1)
    for token in range(7):
        torch.testing.assert_close(codec.centres[token], data[tokens == token].mean(0))


def test_left_over_clusters_are_never_drawn() -> None:
    head = made(clusters=8, data=torch.tensor([[0.5, 0.5], [0.5, 0.5], [-0.5, 0.0]]), offsets="none")
    assert int(head.codec.is_given.sum()) == 2
    drawn = head(normal(500, 4)).sample(torch.arange(500))
    assert {tuple(action) for action in drawn.tolist()} == {(0.5, 0.5), (-0.5, 0.0)}


def test_a_cluster_that_runs_empty_begins_anew_at_the_farthest_value() -> None:
    """The third centre is nearest to nothing: left where it is, two clusters would have to serve three groups."""
    groups = torch.tensor([[0.0, 0.0], [10.0, 0.0], [13.0, 0.0]])
    data = groups.repeat_interleave(4, 0).double()
    begun = torch.tensor([[0.0, 0.0], [11.5, 0.0], [99.0, 0.0]], dtype=torch.float64)
    found = KMeansConfig(clusters=3).build(BOX)._lloyd(data, begun)
    assert sorted(found[:, 0].tolist()) == [0, 10, 13]


def test_lloyds_iteration_that_empties_a_cluster_still_ends_with_all_of_them() -> None:
    """Of these values one of the centres that k-means++ draws loses all of its own after a round."""
    data = torch.tensor([[0.0, 5.0], [2.0, 3.0], [3.0, 6.0], [4.0, 0.0], [9.0, 4.0], [11.0, 3.0]])
    codec = KMeansConfig(clusters=3).build(BOX)
    codec.fit(data)
    tokens = codec.encode(data).squeeze(-1)
    assert codec.is_given.all() and tokens.unique().tolist() == [0, 1, 2]
    for token in range(3):
        torch.testing.assert_close(codec.centres[token], data[tokens == token].mean(0))


def test_the_class_is_drawn_by_the_seed_as_often_as_it_is_likely() -> None:
    head, rows = made(offsets="none"), 6000
    x = normal(1, 4).expand(rows, -1)
    drawn = head.codec.encode(head(x).sample(torch.arange(rows))).squeeze(-1)
    share = head(x[:1]).logits[0].softmax(-1)
    assert share.max() < 0.9, "nothing to draw"
    torch.testing.assert_close(drawn.bincount(minlength=5) / rows, share, atol=0.02, rtol=0)
    again = head.codec.encode(head(x).sample(torch.arange(rows))).squeeze(-1)
    assert torch.equal(again, drawn)
    one, other = drawn[0], drawn[(drawn != drawn[0]).int().argmax()]
    assert one != other, "two seeds, two classes"


def test_one_cluster_is_the_squared_error() -> None:
    head, x, action = made(clusters=1, offset_weight=3.0), normal(6, 4), (normal(6, 2) / 3).clamp(-1, 1)
    prediction = head(x)
    want = 3 * (action - head.codec.centres[0] - head.linear(x)[:, 1:]).square().mean(-1)
    torch.testing.assert_close(prediction.loss(action), want)
    assert torch.equal(prediction.mode(), prediction.sample(torch.arange(6)))


def test_the_loss_does_not_ask_in_which_unit_actions_come() -> None:
    """The offset weight is meant for actions scaled to [-1, 1], so it needs no other value where they are small."""
    x, action, found = normal(6, 4), (normal(6, 2) / 3).clamp(-1, 1), {}
    for unit in (1.0, 0.01):
        torch.manual_seed(0)
        box = Box(shape=(2,), low=(-unit,), high=(unit,))
        head = ClusterOffsetConfig(clusters=KMeansConfig(clusters=5)).build(box, 4)
        head.fit_actions(unit * (normal(200, 2) / 3).clamp(-1, 1))
        found[unit] = head(x).loss(unit * action), head(x).mode() / unit
    torch.testing.assert_close(found[0.01], found[1.0])


def test_without_focus_it_is_the_cross_entropy() -> None:
    head, x, action = made(focus=0.0, offsets="none"), normal(6, 4), (normal(6, 2) / 3).clamp(-1, 1)
    tokens = head.codec.encode(action).squeeze(-1)
    want = torch.nn.functional.cross_entropy(head.linear(x), tokens, reduction="none")
    torch.testing.assert_close(head(x).loss(action), want)
    log_p = -want
    torch.testing.assert_close(made(offsets="none")(x).loss(action), -((1 - log_p.exp()) ** 2) * log_p)


def test_only_the_true_clusters_offset_is_trained() -> None:
    head = made()
    action = head.codec.centres[3:4] + 0.01
    head(normal(1, 4)).loss(action).backward()
    touched = head.linear.weight.grad[5:].reshape(5, 2, 4).abs().sum((1, 2)) > 0
    assert touched.tolist() == [False, False, False, True, False]


@pytest.mark.parametrize("offsets", ["own", "shared"])
def test_an_action_is_a_centre_and_its_offset(offsets: str) -> None:
    head, x = made(offsets=offsets), normal(3, 4)
    y = head.linear(x)
    chosen = y[:, :5].argmax(-1)
    table = y[:, 5:].reshape(3, -1, 2).expand(3, 5, 2)
    want = head.codec.centres[chosen] + table[torch.arange(3), chosen]
    torch.testing.assert_close(head(x).mode(), want.clamp(-1, 1))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="clusters=0"):
        KMeansConfig(clusters=0)
    with pytest.raises(ConfigError, match=r"focus=-1"):
        ClusterOffsetConfig(focus=-1)
    with pytest.raises(ConfigError, match="needs a Box of actions, got Discrete"):
        ClusterOffsetConfig().build(Discrete(n=3), 4)
    for wrong in (torch.zeros(3, 5), torch.zeros(0, 2)):
        with pytest.raises(DataError, match=r"values \(N, 2\)"):
            KMeansConfig().build(BOX).fit(wrong)
    with pytest.raises(DataError, match="NaN"):
        KMeansConfig().build(BOX).fit(torch.full((3, 2), torch.nan))
