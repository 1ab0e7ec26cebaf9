"""The Tokenizer contract, and what tokenizers with bins per dimension share.

Laws (`foretoken.testing.check_tokenizer`): `|decode(encode(x)) - x| <= bound` on the values it was fitted to, tokens survive
decoding and encoding, values go one by one, and values outside what was seen have tokens too.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from foretoken.core.config import Config
from foretoken.core.errors import DataError
from foretoken.nn.fitted import Fitted


class Tokenizer(Fitted, ABC):
    """Abstract; constructed as `Owner(config, box)` for values that are the D = box.size numbers of a Box, as a vector.

    What is learned from data lies in buffers. Leading shapes are free: N stands for any.
    """

    vocabulary: int
    """V: tokens are below it."""

    num_tokens: int
    """K: tokens of one item."""

    bound: Tensor
    """(D,): the largest error of decode(encode(x)) on the values it was fitted to, or inside known bounds."""

    @abstractmethod
    def fit(self, values_ND: Tensor) -> None:
        """Learns from values (N, D), without gradient, once: fitting anew would change what tokens mean."""

    @abstractmethod
    def encode(self, values_ND: Tensor) -> Tensor:
        """Tokens (N, K) int64 of values (N, D); what lies outside goes to the nearest."""

    @abstractmethod
    def decode(self, tokens_NK: Tensor) -> Tensor:
        """Values (N, D) of tokens (N, K)."""


class TokenizerConfig(Config):
    """Base of tokenizer configs; `build(box)` makes the tokenizer."""


@dataclass(frozen=True, kw_only=True)
class BinsConfig(TokenizerConfig):
    """
    Args:
        bins: per dimension, V.
    """

    bins: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(bins=1)


class Bins(Tokenizer, ABC):
    """One token per dimension: the number of edges at or below the value. A token stands for its bin's centre.

    Until edges are known, all values are token 0 and decode to NaN.
    """

    edges: Tensor  # (D, V - 1), rising, infinite where a dimension has fewer bins
    centres: Tensor  # (D, V)

    def __init__(self, dims: int, bins: int) -> None:
        super().__init__()
        self.vocabulary, self.num_tokens = bins, dims
        self.register_buffer("edges", torch.full((dims, bins - 1), torch.inf))
        self.register_buffer("centres", torch.full((dims, bins), torch.nan))
        self.register_buffer("bound", torch.full((dims,), torch.nan))

    def encode(self, values_ND: Tensor) -> Tensor:
        self._check(values_ND)
        values_DN = values_ND.reshape(-1, self.num_tokens).T.to(self.edges.dtype).contiguous()
        return torch.searchsorted(self.edges, values_DN, right=True).T.reshape(values_ND.shape)

    def decode(self, tokens_NK: Tensor) -> Tensor:
        return self.centres[torch.arange(self.num_tokens, device=tokens_NK.device), tokens_NK]

    def expectation(self, probability_NKV: Tensor) -> Tensor:
        """The mean value (N, D) under the probabilities of tokens, float32 or better."""
        return (probability_NKV.to(self.centres.dtype) * self.centres).sum(-1)

    def _check(self, values_ND: Tensor) -> None:
        if values_ND.dim() < 1 or values_ND.shape[-1] != self.num_tokens:
            raise DataError(f"this tokenizer takes values (..., {self.num_tokens}), got {tuple(values_ND.shape)}")

    def _check_data(self, values_ND: Tensor) -> None:
        self._check(values_ND)
        if values_ND.dim() != 2 or not len(values_ND) or not values_ND.isfinite().all():
            raise DataError(
                f"a tokenizer is fitted to finite values (N, {self.num_tokens}) with N of at least 1, got {tuple(values_ND.shape)}"
                + ("" if values_ND.isfinite().all() else " with NaN or infinite ones")
            )
