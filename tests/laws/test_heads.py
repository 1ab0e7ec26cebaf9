"""The laws of heads, and of stores and tokenizers, which have few enough to share a file."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from foretoken.core.spec import Box, Discrete, MultiBinary, MultiDiscrete, Space
from foretoken.data.store import Store
from foretoken.nn.heads.base import BySpaceConfig, HeadConfig
from foretoken.nn.heads.categorical import CategoricalConfig, Choices
from foretoken.nn.heads.cluster_offset import ClusterOffsetConfig
from foretoken.nn.heads.deterministic import DeterministicConfig
from foretoken.nn.heads.gaussian import GaussianConfig, Normal
from foretoken.nn.tokenizers.kmeans import KMeansConfig
from foretoken.testing import check_head, check_store, check_tokenizer
from foretoken.testing.stores import SPECS, random_store

NARROW = Box(shape=(1,), low=(-3.0,), high=(1.0,))


@pytest.mark.parametrize(
    ("config", "space", "bounded"),
    [
        (CategoricalConfig(), Discrete(n=5, start=-2), True),
        (CategoricalConfig(), MultiDiscrete(nvec=(3, 2, 4)), True),
        (CategoricalConfig(), MultiBinary(n=3), True),
        (BySpaceConfig(), Box(shape=(2,), low=(-1.0, 0.0), high=(3.0, 1.0)), True),
        (BySpaceConfig(), Discrete(n=1), True),
        (GaussianConfig(), NARROW, True),
        (GaussianConfig(), Box(shape=(), low=(-3.0,), high=(1.0,)), True),
        (GaussianConfig(), Box(shape=(1,)), True),
        (GaussianConfig(), Box(shape=(1,), low=(0.0,)), True),
        (GaussianConfig(), Box(shape=(2, 3), low=(-1.0,), high=(1.0,)), True),
        (GaussianConfig(squash=False), Box(shape=(1,)), False),
        (GaussianConfig(squash=False), NARROW, False),
        (DeterministicConfig(), Box(shape=(), low=(0.0,), high=(1.0,)), True),
        (DeterministicConfig(), Box(shape=(2,), low=(0.0, float("-inf")), high=(5.0, float("inf"))), True),
        (DeterministicConfig(tanh=False), Box(shape=(2, 2)), False),
        (ClusterOffsetConfig(clusters=KMeansConfig(clusters=7)), Box(shape=(2, 2)), False),
        (ClusterOffsetConfig(clusters=KMeansConfig(clusters=7), offsets="shared"), NARROW, True),
        (ClusterOffsetConfig(offsets="none"), Box(shape=(), low=(-3.0,), high=(1.0,)), True),
        (ClusterOffsetConfig(clusters=KMeansConfig(clusters=1), focus=0.0), NARROW, True),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_head(config: HeadConfig, space: Space, bounded: bool, seed: int) -> None:
    check_head(config, space, bounded=bounded, seed=seed)


def test_notices_a_density_that_does_not_integrate(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Normal.log_prob
    monkeypatch.setattr(Normal, "log_prob", lambda self, action: right(self, action) + 0.01)
    with pytest.raises(AssertionError, match="integrates to 1"):
        check_head(GaussianConfig(), NARROW)


def test_notices_draws_that_do_not_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Choices.sample

    def biased(self, seed):
        action = right(self, seed).clone()
        action[seed % 20 == 3] = 0
        return action

    monkeypatch.setattr(Choices, "sample", biased)
    with pytest.raises(AssertionError, match="frequencies of draws"):
        check_head(CategoricalConfig(), Discrete(n=4))


def test_notices_shared_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Normal.sample
    monkeypatch.setattr(Normal, "sample", lambda self, seed: right(self, seed[:1].expand(len(seed))))
    with pytest.raises(AssertionError, match="rows permuted with their seeds"):
        check_head(GaussianConfig(), NARROW)


# -- stores


@pytest.mark.parametrize("name", SPECS)
def test_store(name: str, tmp_path: Path) -> None:
    memory = random_store(SPECS[name])
    check_store(memory)
    check_store(memory.subset([3, 1, 4]))
    if name in ("dict", "discrete"):
        folder = Store.create(tmp_path / "store", SPECS[name])
        folder.extend(memory.episode(i) for i in range(memory.num_episodes))
        check_store(folder)


def test_notices_a_wrong_return() -> None:
    store = random_store(SPECS["discrete"])

    class Wrong:
        spec, num_episodes, num_steps = store.spec, store.num_episodes, store.num_steps
        gather, statistics, append = store.gather, store.statistics, store.append

        def __init__(self) -> None:
            self.episodes = {**store.episodes, "return": store.episodes["return"] + 1}

    with pytest.raises(AssertionError, match="return == sum of rewards: off by"):
        check_store(Wrong())


# -- tokenizers


class Bins(nn.Module):
    """64 even bins per entry, over the range of the data."""

    vocabulary = 64

    def fit(self, values_ND: Tensor) -> None:
        self.low, self.width = values_ND.amin(0), (values_ND.amax(0) - values_ND.amin(0)) / self.vocabulary

    def encode(self, values_ND: Tensor) -> Tensor:
        return ((values_ND - self.low) / self.width).long().clamp(0, self.vocabulary - 1)

    def decode(self, tokens_NK: Tensor) -> Tensor:
        return self.low + (tokens_NK + 0.5) * self.width


def test_tokenizer() -> None:
    values = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    bound = (values.amax(0) - values.amin(0)) / 128
    check_tokenizer(Bins(), values, bound=bound)
    with pytest.raises(AssertionError, match="within the bound"):
        check_tokenizer(Bins(), values, bound=bound / 2)
