"""Networks over the parts of a body: a tokenizer and a head of its own for each part, and attention along the body's joints.

Legend: B rows, P parts, D width, O entries read, A entries decided, K entries of one part, H heads, E head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foretoken.core.config import Config, configures
from foretoken.core.errors import ConfigError

Distances = Sequence[Sequence[int]]
"""(P, P): joints on the shortest path between two parts."""


class PartTokens(nn.Module):
    """token_i = W_i x[reads_i] + b_i, each part with weights of its own; zero for a part that reads nothing.

    The weights are rows of one table, an entry of a part being a row and its bias the row of a constant 1; one batched product
    over padded parts serves all, whatever their sizes. Starts as `nn.Linear` does.
    """

    entry_PK: Tensor
    row_PK: Tensor

    def __init__(self, reads: Sequence[Sequence[int]], size: int, width: int) -> None:
        """`reads`: for each part the entries of a vector of `size` numbers that it sees; parts may share entries."""
        super().__init__()
        # After the vector come the constant 1 of the biases and the zero of the padding.
        entries = [[*part, size] if part else [] for part in reads]
        most, rows = max(map(len, entries)), sum(map(len, entries))
        order = iter(range(rows))
        self.register_buffer("entry_PK", torch.tensor([part + [size + 1] * (most - len(part)) for part in entries]))
        table = [[next(order) for _ in part] + [rows] * (most - len(part)) for part in entries]
        self.register_buffer("row_PK", torch.tensor(table))
        spread = torch.tensor([len(part) ** -0.5 for part in reads for _ in range(len(part) + 1) if part])
        self.weight = nn.Parameter((2 * torch.rand(rows, width) - 1) * spread[:, None])

    def forward(self, x_BO: Tensor) -> Tensor:
        """(B, P, D)."""
        ends = x_BO.new_tensor((1.0, 0.0)).expand(len(x_BO), 2)
        x_PBK = torch.cat((x_BO, ends), dim=1)[:, self.entry_PK].transpose(0, 1)
        return torch.bmm(x_PBK, F.pad(self.weight, (0, 0, 0, 1))[self.row_PK]).transpose(0, 1)


class PartHeads(nn.Module):
    """Entry a is w_a y[owner_a] + b_a: each part decides its own entries from its own token, with weights of its own."""

    owner_A: Tensor

    def __init__(self, owners: Sequence[int], width: int) -> None:
        super().__init__()
        self.register_buffer("owner_A", torch.tensor(owners))
        self.weight = nn.Parameter((2 * torch.rand(len(owners), width) - 1) * width**-0.5)
        self.bias = nn.Parameter((2 * torch.rand(len(owners)) - 1) * width**-0.5)

    def forward(self, y_BPD: Tensor) -> Tensor:
        """(B, A)."""
        return (y_BPD[:, self.owner_A] * self.weight).sum(-1) + self.bias


@dataclass(frozen=True, kw_only=True)
class BodyEncoderConfig(Config):
    """
    Args:
        width: D.
        num_layers: with mask="hard" at least as many as the longest path of the body has joints.
        num_heads: must divide the width.
        feed_forward: width of the hidden layer.
        mask: whom a part sees. "hard": itself and the parts it is joined to, in every layer. "mix": the same in every other layer,
            all parts in the rest. "soft": all parts, with a learned number per distance added to the logits, the same in all
            layers and heads. "random": itself and as many others in all as "hard", drawn at random once. "none": all parts.
        first_hard_layer: with mask="mix", whether layer 0 or layer 1 is the first that is masked.
        positions: adds a learned vector to each part's token.
    """

    width: int = 64
    num_layers: int = 6
    num_heads: int = 4
    feed_forward: int = 256
    mask: Literal["hard", "mix", "soft", "random", "none"] = "hard"
    first_hard_layer: Literal[0, 1] = 0
    positions: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.width, self.num_layers, self.num_heads, self.feed_forward) < 1 or self.width % self.num_heads:
            raise ConfigError(
                "an encoder needs width, num_layers, num_heads and feed_forward >= 1, and num_heads must divide width, got "
                f"{self.width}, {self.num_layers}, {self.num_heads} and {self.feed_forward}"
            )

    def is_masked(self, layer: int) -> bool:
        return self.mask in ("hard", "random") or (self.mask == "mix" and layer % 2 == self.first_hard_layer)


class _Layer(nn.Module):
    """Attention and an MLP with ReLU, normalised after each residual (Vaswani et al. 2017); starts as torch's own layer does."""

    def __init__(self, config: BodyEncoderConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv, self.out = nn.Linear(config.width, 3 * config.width), nn.Linear(config.width, config.width)
        self.up, self.down = nn.Linear(config.width, config.feed_forward), nn.Linear(config.feed_forward, config.width)
        self.norm_attention, self.norm = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def heads(self, x_BPD: Tensor) -> Tensor:
        """Queries, keys and values, (3, B, H, P, E)."""
        return self.qkv(x_BPD).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)

    def forward(self, x_BPD: Tensor, bias_PP: Tensor | None) -> Tensor:
        q, k, v = self.heads(x_BPD)
        y_BHPE = F.scaled_dot_product_attention(q, k, v, bias_PP)
        x_BPD = self.norm_attention(x_BPD + self.out(y_BHPE.transpose(1, 2).flatten(2)))
        return self.norm(x_BPD + self.down(F.relu(self.up(x_BPD))))


@configures(BodyEncoderConfig)
class BodyEncoder(nn.Module):
    """Tokens (B, P, D) to tokens; see BodyEncoderConfig."""

    visible_PP: Tensor
    distance_PP: Tensor

    def __init__(self, config: BodyEncoderConfig, distances: Distances) -> None:
        super().__init__()
        self.config = config
        distance_PP = torch.tensor(distances)
        diameter = int(distance_PP.max())
        never_open = config.mask in ("hard", "mix") and all(map(config.is_masked, range(config.num_layers)))
        if never_open and config.num_layers < diameter:
            raise ConfigError(
                f"with every layer masked num_layers must be at least the longest path of the body, {diameter} joints, or its "
                f'ends never hear of each other; got {config.num_layers} (mask="mix" needs 2)'
            )
        self.register_buffer("distance_PP", distance_PP)
        self.register_buffer("visible_PP", random_mask(distance_PP) if config.mask == "random" else distance_PP < 2)
        self.strength = nn.Parameter(torch.randn(diameter + 1)) if config.mask == "soft" else None
        self.place = nn.Parameter(torch.randn(len(distance_PP), config.width)) if config.positions else None
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_layers))

    def bias(self, layer: int) -> Tensor | None:
        """What is done to a layer's logits: (P, P) bool, who is seen; (P, P) numbers to add; or None."""
        if self.strength is not None:
            return self.strength[self.distance_PP]
        return self.visible_PP if self.config.is_masked(layer) else None

    def forward(self, x_BPD: Tensor) -> Tensor:
        x_BPD = x_BPD if self.place is None else x_BPD + self.place
        for i, layer in enumerate(self.layers):
            x_BPD = layer(x_BPD, self.bias(i))
        return x_BPD

    def attention(self, x_BPD: Tensor) -> list[Tensor]:
        """Of each layer, how much each part attends to each, (B, P, P): means over heads."""
        x_BPD, found = x_BPD if self.place is None else x_BPD + self.place, []
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, _Layer)
            q, k, _ = layer.heads(x_BPD)
            logits, bias_PP = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, self.bias(i)
            if bias_PP is not None:
                logits = logits.masked_fill(~bias_PP, -torch.inf) if bias_PP.dtype == torch.bool else logits + bias_PP
            found.append(logits.softmax(-1).mean(1))
            x_BPD = layer(x_BPD, bias_PP)
        return found

    def products(self, *, skip: bool = False) -> int:
        """Multiply-adds of matrix products per row; `skip`: if pairs that are not visible were left out, which no kernel here does."""
        parts, width = len(self.distance_PP), self.config.width
        tokenwise = parts * width * (4 * width + 2 * self.config.feed_forward)
        seen = [
            int(self.visible_PP.sum()) if skip and self.config.is_masked(i) else parts**2
            for i in range(len(self.layers))
        ]
        return sum(tokenwise + 2 * pairs * width for pairs in seen)


def random_mask(distance_PP: Tensor) -> Tensor:
    """(P, P) bool: every part sees itself, and as many others in all as are joined, drawn evenly by torch's default generator."""
    parts, joined = len(distance_PP), int((distance_PP == 1).sum())
    others = torch.rand(parts, parts).fill_diagonal_(-1).flatten().argsort(descending=True)[:joined]
    return torch.eye(parts, dtype=torch.bool).flatten().index_fill(0, others, True).view(parts, parts)


@dataclass(frozen=True, kw_only=True)
class FlatConfig(Config):
    """
    Args:
        width: D of the tokens.
        hidden: widths of the hidden layers.
    """

    width: int = 64
    hidden: tuple[int, ...] = (256, 256)


@configures(FlatConfig)
class Flat(nn.Module):
    """Tokens (B, P, D) to tokens by an MLP with ReLU over all of them as one vector: a body without a structure."""

    def __init__(self, config: FlatConfig, distances: Distances) -> None:
        super().__init__()
        self.config = config
        sizes = [len(distances) * config.width, *config.hidden]
        inner = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
        self.layers = nn.Sequential(nn.Flatten(), *inner, nn.Linear(sizes[-1], sizes[0]))

    def forward(self, x_BPD: Tensor) -> Tensor:
        return self.layers(x_BPD).view_as(x_BPD)
