"""Who may see which tokens of an answer while the others are predicted: one rank for each token.

A token of rank r is predicted from the prompt and the answer's tokens of lower rank, r > 0. So 0 marks tokens that are given, and
a schedule is a draw of ranks. N counts tokens of an answer, which are padded on the right.

    uniform         each token is hidden with a probability that every answer draws anew from U(0, 1)      (MLM-U)
    fixed           each token is hidden with the probability `rate`                                       (BERT: 0.15)
    multi-forward   everything from a place drawn evenly is hidden
    all-but-last    only the last token is hidden
    next-token      each token is predicted from those before it
    front-back      the same, or each from those after it, by a fair coin
    permutations    each token is predicted from those before it in a random order

Nolte et al. 2024, arXiv 2412.05117. In the released code the backward half of front-back does not see the prompt, and
multi-forward shows what comes after the place it draws.
"""

from typing import Literal

import torch
from torch import Tensor

from foretoken.core import random

Visibility = Literal[
    "uniform", "fixed", "multi-forward", "all-but-last", "next-token", "front-back", "permutations"
]  # fmt: skip


def ranks(schedule: Visibility, valid_BN: Tensor, seed_B: Tensor, rate: float = 0.15) -> Tensor:
    """(B, N) int64 ranks, those of a row depending on its seed and length alone; padding has rank 0.

    Args:
        valid_BN: which tokens there are, the first ones of each row.
        seed_B: int64.
        rate: probability of being hidden, for "fixed".
    """
    place_BN = torch.arange(valid_BN.shape[1], device=valid_BN.device).expand(valid_BN.shape)
    length_B1 = valid_BN.sum(1, keepdim=True)
    # Drawn one by one, so that a token's number does not depend on how far rows are padded.
    of_row_B1, of_token_BN = random.uniform(seed_B, 1), random.uniform(random.split(seed_B, 1), valid_BN.shape[1])
    match schedule:
        case "uniform":
            rank_BN = (of_token_BN < of_row_B1).long()
        case "fixed":
            rank_BN = (of_token_BN < rate).long()
        case "multi-forward":
            rank_BN = (place_BN >= (of_row_B1 * length_B1).long()).long()
        case "all-but-last":
            rank_BN = (place_BN == length_B1 - 1).long()
        case "next-token":
            rank_BN = place_BN + 1
        case "front-back":
            rank_BN = torch.where(of_row_B1 < 0.5, place_BN + 1, length_B1 - place_BN)
        case "permutations":
            rank_BN = torch.where(valid_BN, of_token_BN, 2.0).argsort(1).argsort(1) + 1
    return torch.where(valid_BN, rank_BN, 0)
