"""Clusters: one token for a whole vector, the number of the nearest centre. What a centre loses is for a head to give back.

Seeding: Arthur and Vassilvitskii, "k-means++", SODA 2007. As an action codec: Shafiullah et al., NeurIPS 2022, arXiv 2206.11251.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from foretoken.core.config import configures
from foretoken.core.errors import ConfigError, DataError
from foretoken.core.spec import Box
from foretoken.nn.fitted import once
from foretoken.nn.tokenizers.base import Tokenizer, TokenizerConfig


@dataclass(frozen=True, kw_only=True)
class KMeansConfig(TokenizerConfig):
    """
    Args:
        clusters: V.
        seed: of the centres to begin with.
        most_iterations: Lloyd's iteration stops when no value changes its cluster, or after so many rounds.
    """

    clusters: int = 64
    seed: int = 0
    most_iterations: int = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clusters < 1 or self.most_iterations < 1:
            came = f"clusters={self.clusters} and most_iterations={self.most_iterations}"
            raise ConfigError(f"clusters and most_iterations must be at least 1, got {came}")


@configures(KMeansConfig)
class KMeans(Tokenizer):
    """Centres by k-means++ and Lloyd's iteration, a function of the data, their order, and the seed.

    A cluster that runs empty begins anew at the value farthest from its centre. Where there are fewer different values than
    clusters, each has its own and the tokens left over are never given. Until fitted, everything decodes to NaN. Distances are
    Euclidean, so the dimensions should have one scale; the bounds of the box are not used.

    Attributes:
        centres: (V, D). Left-over tokens repeat the first centre.
        is_given: (V,) bool, False for left-over tokens.
    """

    centres: Tensor
    is_given: Tensor

    def __init__(self, config: KMeansConfig, box: Box) -> None:
        super().__init__()
        self.config, self.vocabulary, self.num_tokens = config, config.clusters, 1
        self.register_buffer("centres", torch.full((config.clusters, box.size), torch.nan))
        self.register_buffer("is_given", torch.ones(config.clusters, dtype=torch.bool))
        self.register_buffer("bound", torch.full((box.size,), torch.nan))

    @once
    @torch.no_grad()
    def fit(self, values_ND: Tensor) -> None:
        if values_ND.dim() != 2 or values_ND.shape[1] != len(self.bound) or not len(values_ND):
            raise DataError(f"k-means is fitted to values (N, {len(self.bound)}), N >= 1, got {tuple(values_ND.shape)}")
        if not values_ND.isfinite().all():
            raise DataError("k-means is fitted to finite values, got NaN or infinite ones")
        middle = values_ND.double().mean(0)
        x_ND = values_ND.double() - middle
        found = self._lloyd(x_ND, self._plus_plus(x_ND))
        self.centres.copy_(found + middle)
        distinct = self.encode(self.centres).squeeze(-1) == torch.arange(self.vocabulary, device=self.centres.device)
        self.is_given.copy_(distinct)
        self.bound.copy_((self.decode(self.encode(values_ND)) - values_ND).abs().amax(0))

    def _plus_plus(self, x_ND: Tensor) -> Tensor:
        """Centres (V, D): each a value drawn in proportion to its squared distance from those before it."""
        generator = torch.Generator().manual_seed(self.config.seed)
        first = int(torch.randint(len(x_ND), (1,), generator=generator))
        centres, square_N = [x_ND[first]], (x_ND - x_ND[first]).square().sum(1)
        for _ in range(self.vocabulary - 1):
            mass_N = square_N.cumsum(0)
            drawn = torch.rand((), generator=generator, dtype=x_ND.dtype).to(x_ND.device) * mass_N[-1]
            chosen = int(torch.searchsorted(mass_N, drawn, right=True)) if mass_N[-1] > 0 else first
            centres.append(x_ND[min(chosen, len(x_ND) - 1)])
            square_N = torch.minimum(square_N, (x_ND - centres[-1]).square().sum(1))
        return torch.stack(centres)

    def _lloyd(self, x_ND: Tensor, centres_VD: Tensor) -> Tensor:
        """Centres that are the means of the values nearest to them."""
        before = None
        for _ in range(self.config.most_iterations):
            distance_N, token_N = _distance(x_ND, centres_VD).min(1)
            if before is not None and torch.equal(token_N, before):
                break
            before = token_N
            count_V = token_N.bincount(minlength=len(centres_VD))
            total_VD = torch.zeros_like(centres_VD).index_add_(0, token_N, x_ND)
            centres_VD = torch.where(count_V[:, None] > 0, total_VD / count_V[:, None].clamp(min=1), centres_VD)
            empty = (count_V == 0).nonzero().flatten().tolist()
            for token in empty:
                if distance_N.max() > 0:
                    centres_VD[token] = x_ND[distance_N.argmax()]
                    distance_N = torch.minimum(distance_N, _distance(x_ND, centres_VD[token, None]).squeeze(1))
        return centres_VD

    def encode(self, values_ND: Tensor) -> Tensor:
        if values_ND.dim() < 1 or values_ND.shape[-1] != len(self.bound):
            raise DataError(f"this tokenizer takes values (..., {len(self.bound)}), got {tuple(values_ND.shape)}")
        flat_ND = values_ND.reshape(-1, len(self.bound)).to(self.centres.dtype)
        return _distance(flat_ND, self.centres).argmin(1).reshape(*values_ND.shape[:-1], 1)

    def decode(self, tokens_NK: Tensor) -> Tensor:
        return self.centres[tokens_NK.squeeze(-1)]


def _distance(x_ND: Tensor, centres_VD: Tensor) -> Tensor:
    """(N, V), exact where a value is a centre; ties are for the first."""
    return torch.cdist(x_ND, centres_VD, compute_mode="donot_use_mm_for_euclid_dist")
