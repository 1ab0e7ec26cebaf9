"""Networks that predict an answer's tokens from a prompt and from some of the answer: by position queries, or from left to right.

    rank        0 for the prompt and what is given of the answer; a token of rank r > 0 is predicted from tokens of lower rank
    PositionQueries     e = encoder(tokens), where a token sees those up to its own rank
                        logits_n = decoder(query + position n; e at lower ranks) . embedding^T
    NextToken           logits_n = stack(tokens)_(n-1) . embedding^T, causal: ranks rise from left to right

A hidden token is no key, neither in the encoder nor in the decoder: nothing stands in its place, its position alone is asked for.
Tokens are sums of W words. L counts tokens, N those of the answer, which are the last ones. Nolte et al. 2024, arXiv 2412.05117,
call the first network PAST.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from foretoken.core.config import Config, configures
from foretoken.core.errors import ConfigError
from foretoken.nn.embed.rotary import rotate, turn
from foretoken.nn.feed_forward import FeedForwardConfig, MLPConfig
from foretoken.nn.mixer import Tokens
from foretoken.nn.mixers.attention import AttentionConfig
from foretoken.nn.stack import Stack, StackConfig, initialise, uniform_stack


class TokenNetwork(nn.Module, ABC):
    """Abstract; constructed as `Owner(config, vocabulary)`. Its head is the embedding of the words."""

    embed: nn.Embedding

    @abstractmethod
    def forward(self, tokens_BLW: Tensor, rank_BL: Tensor, valid_BL: Tensor, count: int) -> Tensor:
        """(B, N, V) logits of the last `count` tokens. Padding may stand anywhere; positions count valid tokens."""


@dataclass(frozen=True, kw_only=True)
class TokenNetworkConfig(Config):
    """Base of the networks' configs; `build(vocabulary)` makes the network.

    Attributes:
        any_order: whether ranks may be any; otherwise they rise from left to right.
    """

    any_order: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class NextTokenConfig(TokenNetworkConfig):
    """
    Args:
        backbone: a causal stack that knows positions itself.
    """

    backbone: StackConfig = uniform_stack(AttentionConfig(num_heads=4, positions="rotary"), 128, 6, activation="gelu")


@configures(NextTokenConfig)
class NextToken(TokenNetwork):
    """See the module."""

    def __init__(self, config: NextTokenConfig, vocabulary: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, config.backbone.width)
        nn.init.normal_(self.embed.weight, std=config.backbone.init_std)
        self.backbone = config.backbone.build()

    def forward(self, tokens_BLW: Tensor, rank_BL: Tensor, valid_BL: Tensor, count: int) -> Tensor:
        x_BLD = self.embed(tokens_BLW[:, :-1]).sum(2)
        y_BND = self.backbone(x_BLD, tokens=Tokens(valid=valid_BL[:, :-1]), read=slice(-count, None)).y
        return F.linear(y_BND, self.embed.weight)


def up_to_rank(query: Tokens, key: Tokens) -> Tensor:
    """Visibility by rank, which the tokens carry as their group."""
    assert query.group is not None and key.group is not None
    return key.group[:, None, :] <= query.group[:, :, None]


@dataclass(frozen=True, kw_only=True)
class PositionQueriesConfig(TokenNetworkConfig):
    """
    Args:
        encoder: reads the tokens; its mixers take a rule of visibility.
        num_layers: of the decoder.
        num_heads: of the decoder's attention; must divide the width.
        feed_forward: of the decoder's layers.
        rotary_base: of the decoder's positions.
    """

    any_order: ClassVar[bool] = True

    encoder: StackConfig = NextTokenConfig().backbone
    num_layers: int = 6
    num_heads: int = 4
    feed_forward: FeedForwardConfig = MLPConfig(activation="gelu")
    rotary_base: float = 10_000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_layers < 1 or self.encoder.width % (2 * self.num_heads):
            raise ConfigError(
                f"num_layers must be at least 1 and num_heads must divide half the width, got num_layers={self.num_layers}, "
                f"num_heads={self.num_heads} and width={self.encoder.width}"
            )


@configures(PositionQueriesConfig)
class PositionQueries(TokenNetwork):
    """See the module."""

    def __init__(self, config: PositionQueriesConfig, vocabulary: int) -> None:
        super().__init__()
        self.config, width = config, config.encoder.width
        self.encoder: Stack = config.encoder.build(up_to_rank)
        self.decoder = nn.ModuleList(_Reader(config, width) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width)
        self.embed, self.query = nn.Embedding(vocabulary, width), nn.Embedding(1, width)
        for part in (self.decoder, self.embed, self.query):
            initialise(part, config.encoder.init_std)

    def forward(self, tokens_BLW: Tensor, rank_BL: Tensor, valid_BL: Tensor, count: int) -> Tensor:
        told = Tokens(valid=valid_BL, group=rank_BL)
        e_BLD = self.encoder(self.embed(tokens_BLW).sum(2), tokens=told).y
        seen_BNL = valid_BL[:, None, :] & (rank_BL[:, None, :] < rank_BL[:, -count:, None])
        seen_BNL = seen_BNL | ~seen_BNL.any(2, keepdim=True)  # padding that would see nobody; its logits are not read
        head_width = e_BLD.shape[2] // self.config.num_heads
        turned = turn(valid_BL.cumsum(1) - 1, head_width, self.config.rotary_base, e_BLD.dtype)
        x_BND = self.query.weight.expand(len(e_BLD), count, -1)
        for reader in self.decoder:
            x_BND = reader(x_BND, e_BLD, turned, seen_BNL[:, None])
        return F.linear(self.norm(x_BND), self.embed.weight)


class _Reader(nn.Module):
    """A decoder layer: cross-attention with rotary positions, then a feed-forward. Queries do not see one another."""

    def __init__(self, config: PositionQueriesConfig, width: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.before_attention, self.before_feed_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.feed_forward = config.feed_forward.build(width)

    def forward(self, x_BND: Tensor, e_BLD: Tensor, turned: tuple[Tensor, Tensor], seen_B1NL: Tensor) -> Tensor:
        split = lambda part: part.unflatten(-1, (self.num_heads, -1))  # noqa: E731
        q = split(self.q(self.before_attention(x_BND)))
        k, v = map(split, self.kv(e_BLD).chunk(2, dim=-1))
        q, k = rotate(q, *(part[:, -q.shape[1] :] for part in turned)), rotate(k, *turned)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, seen_B1NL).transpose(1, 2).flatten(2)
        x_BND = x_BND + self.out(y)
        return x_BND + self.feed_forward(self.before_feed_forward(x_BND)).y
