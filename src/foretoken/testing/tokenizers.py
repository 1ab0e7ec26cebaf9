"""The laws of tokenizers: numbers to tokens and back within a stated bound."""

from typing import Protocol

import torch
from torch import Tensor

from foretoken.testing.agreement import require, require_equal


class Tokenizer(Protocol):
    """What a tokenizer must offer; values are (N, D) floats, tokens (N, K) int64 below `vocabulary`."""

    vocabulary: int

    def fit(self, values_ND: Tensor) -> object: ...
    def encode(self, values_ND: Tensor) -> Tensor: ...
    def decode(self, tokens_NK: Tensor) -> Tensor: ...


def check_tokenizer(tokenizer: Tokenizer, values_ND: Tensor, *, bound: float | Tensor) -> None:
    """Fits the tokenizer to the values and checks its laws on them.

    Args:
        tokenizer: not yet fitted.
        values_ND: (N, D) floats.
        bound: largest allowed |decode(encode(x)) - x| on the fitted values, one number or (D,).

    Raises:
        AssertionError: a law does not hold.
    """
    tokenizer.fit(values_ND)
    sizes = f"{type(tokenizer).__name__}, values {tuple(values_ND.shape)}, vocabulary {tokenizer.vocabulary}"
    tokens = tokenizer.encode(values_ND)
    detail = f"got {tokens.dtype} {tuple(tokens.shape)} ({sizes})"
    require(tokens.dtype == torch.int64 and tokens.dim() == 2, "tokens are (N, K) int64", detail)
    low, high = int(tokens.min()), int(tokens.max())
    require(low >= 0 and high < tokenizer.vocabulary, "tokens below the vocabulary", f"got {low} .. {high} ({sizes})")
    back = tokenizer.decode(tokens)
    require(back.shape == values_ND.shape, "decoded shape", f"{tuple(back.shape)} ({sizes})")
    excess = float(((back - values_ND).abs() - bound).max())
    require(excess <= 1e-6, "decode(encode(x)) within the bound", f"off by {excess:.3g} more than {bound} ({sizes})")
    require_equal(tokenizer.encode(back), tokens, "tokens survive decode and encode", sizes)
    order = torch.arange(len(values_ND) - 1, -1, -1)
    require_equal(tokenizer.encode(values_ND[order]), tokens[order], "values are encoded one by one", sizes)
    require_equal(tokenizer.decode(tokens[order]), back[order], "tokens are decoded one by one", sizes)
    far = tokenizer.encode(1e3 * values_ND)
    require(
        int(far.min()) >= 0 and int(far.max()) < tokenizer.vocabulary,
        "values beyond the data have tokens too",
        f"({sizes})",
    )
