"""The one residual stack under every system: norm order, feed-forward, cross-attention, conditioning, per-layer pattern."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foretoken.core.config import Config, configures
from foretoken.core.errors import ConfigError
from foretoken.core.state import State
from foretoken.nn.dropout import dropout
from foretoken.nn.feed_forward import Activation, FeedForwardConfig, MLPConfig
from foretoken.nn.mixer import Mixed, MixerConfig, Tokens, Visible
from foretoken.nn.mixers.attention import AttentionConfig

AnyConfig = TypeVar("AnyConfig", bound=Config)


class Seen(NamedTuple):
    """What a block may cross-attend to: `keys` (B, M, D) and which of them exist, (B, M) bool."""

    keys: Tensor
    valid: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class CrossAttentionConfig(Config):
    """
    Args:
        num_heads: must divide the width.
        context_width: width of what is attended to; 0 = the stack's own.
    """

    num_heads: int = 1
    context_width: int = 0


@configures(CrossAttentionConfig)
class CrossAttention(nn.Module):
    """Attention from the tokens to a given context; rows whose context is empty receive nothing."""

    def __init__(self, config: CrossAttentionConfig, width: int) -> None:
        super().__init__()
        if width % config.num_heads:
            raise ConfigError(f"num_heads must divide width, got width={width} and num_heads={config.num_heads}")
        self.num_heads = config.num_heads
        self.q, self.kv = nn.Linear(width, width), nn.Linear(config.context_width or width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BLD: Tensor, context: Seen) -> Tensor:
        split = lambda t: t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # noqa: E731
        k, v = map(split, self.kv(context.keys).chunk(2, dim=-1))
        valid = (
            context.valid
            if context.valid is not None
            else torch.ones(context.keys.shape[:2], dtype=torch.bool, device=x_BLD.device)
        )
        some = valid.any(1)
        mask = (valid | ~some[:, None])[:, None, None, :]
        y = F.scaled_dot_product_attention(split(self.q(x_BLD)), k, v, mask)
        return self.out(y.transpose(1, 2).flatten(2)) * some[:, None, None]


@dataclass(frozen=True, kw_only=True)
class BlockConfig(Config):
    """One layer: a mixer, then a feed-forward, each in a residual.

    Args:
        mixer: how tokens see earlier ones.
        feed_forward: token-wise part; None leaves it out.
        cross: attention to a context between the two; None leaves it out.
        order: "pre" normalises what enters a part, "post" what leaves the residual.
        parallel: mixer and feed-forward read one norm and their outputs are added together (GPT-J; Zhong et al. 2022, arXiv
            2212.06011). A norm for each would be the same functions, for its scale and shift are those of the next linear layer.
        gate: "none" adds a part's output y to the stream x; "gru" lets a GRU's gates choose between x and relu(y) (GTrXL).
        gate_bias: how far such gates are closed at the start: at 2 a part takes 0.12 of the stream's place, at 0 half of it.
        norm: "layer" or "rms".
        norm_eps: added to the variance.
        dropout: on the mixer's output.
        condition_width: features of an adaptive-norm condition (adaLN, Peebles and Xie 2023, arXiv 2212.09748); 0 = none.
    """

    mixer: MixerConfig = AttentionConfig()
    feed_forward: FeedForwardConfig | None = MLPConfig()
    cross: CrossAttentionConfig | None = None
    order: Literal["pre", "post"] = "pre"
    parallel: bool = False
    gate: Literal["none", "gru"] = "none"
    gate_bias: float = 2.0
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-5
    dropout: float = 0.0
    condition_width: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parallel and (self.feed_forward is None or self.cross is not None):
            raise ConfigError(
                f"parallel=True needs a feed_forward and no cross, got feed_forward={self.feed_forward} and cross={self.cross}"
            )
        if self.gate == "gru" and (self.order == "post" or self.condition_width):
            raise ConfigError(
                f'gate="gru" needs order="pre" and no condition, got order={self.order!r} and condition_width={self.condition_width}'
            )


class GRUGate(nn.Module):
    """out = (1 - z) x + z tanh(W_n y + U_n (r x)) with r, z = sigmoid(W y + U x), the bias of z starting at -bias.

    Parisotto et al. 2020 (GTrXL, arXiv 1910.06764): with a bias of 2 and small weights out is 0.88 x at the start, so that
    learning begins from a nearly reactive policy.
    """

    def __init__(self, width: int, bias: float = 2.0) -> None:
        super().__init__()
        self.choose = nn.Linear(2 * width, 2 * width, bias=False)  # r and z of x and y
        self.propose = nn.Linear(2 * width, width, bias=False)  # of r x and y
        self.closed = nn.Parameter(torch.full((width,), bias))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        r, z = self.choose(torch.cat((x, y), dim=-1)).chunk(2, dim=-1)
        new = self.propose(torch.cat((r.sigmoid() * x, y), dim=-1)).tanh()
        return torch.lerp(x, new.to(x.dtype), (z - self.closed).sigmoid().to(x.dtype))


class _Residual(nn.Module):
    """x + part(x), or a gate between them, with its norm before or after, optionally modulated by a condition."""

    def __init__(self, config: BlockConfig, width: int) -> None:
        super().__init__()
        kind = nn.LayerNorm if config.norm == "layer" else nn.RMSNorm
        self.norm, self.before = kind(width, eps=config.norm_eps), config.order == "pre"
        self.gate = GRUGate(width, config.gate_bias) if config.gate == "gru" else None
        self.modulation = nn.Linear(config.condition_width, 3 * width) if config.condition_width else None
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)  # adaLN-zero: every layer starts as the unconditioned one
            nn.init.zeros_(self.modulation.bias)

    def enter(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x = self.norm(x) if self.before else x
        if self.modulation is None or condition is None:
            return x, None
        shift, scale, share = self.modulation(F.silu(condition)).unsqueeze(-2).chunk(3, dim=-1)
        return x * (1 + scale) + shift, share

    def leave(self, x: Tensor, y: Tensor, share: Tensor | None) -> Tensor:
        if self.gate is not None:
            return self.gate(x, F.relu(y))
        x = x + (y if share is None else y * share)
        return x if self.before else self.norm(x)


@configures(BlockConfig)
class Block(nn.Module):
    """One layer of a Stack; see BlockConfig."""

    def __init__(self, config: BlockConfig, width: int, visible: Visible | None = None) -> None:
        super().__init__()
        self.mixer = config.mixer.build(width) if visible is None else config.mixer.build(width, visible=visible)
        self.around_mixer, self.dropout = _Residual(config, width), config.dropout
        self.cross = config.cross.build(width) if config.cross else None
        self.around_cross = _Residual(config, width) if config.cross else None
        self.feed_forward = config.feed_forward.build(width) if config.feed_forward else None
        alone = config.feed_forward and not config.parallel
        self.around_feed_forward = _Residual(config, width) if alone else None

    def forward(
        self, x: Tensor, state: State | None = None, *, tokens: Tokens | None = None,
        context: Seen | None = None, condition: Tensor | None = None, read: slice | None = None,
    ) -> Mixed:  # fmt: skip
        entered, share = self.around_mixer.enter(x, condition)
        mixed = self.mixer(entered, state, tokens=tokens, read=read)
        y, aux = dropout(mixed.y, self.dropout, self.training), mixed.aux
        if read is not None:
            x, entered, tokens = x[:, read], entered[:, read], _read(tokens, read)
        if self.feed_forward is not None and self.around_feed_forward is None:
            fed = self.feed_forward(entered, tokens)
            y, aux = y + fed.y, _joined(aux, fed.aux)
        x = self.around_mixer.leave(x, y, share)
        if self.cross is not None and self.around_cross is not None and context is not None:
            entered, share = self.around_cross.enter(x, condition)
            x = self.around_cross.leave(x, self.cross(entered, context), share)
        if self.feed_forward is not None and self.around_feed_forward is not None:
            entered, share = self.around_feed_forward.enter(x, condition)
            fed = self.feed_forward(entered, tokens)
            x, aux = self.around_feed_forward.leave(x, fed.y, share), _joined(aux, fed.aux)
        return Mixed(x, mixed.state, aux)


def _read(tokens: Tokens | None, read: slice) -> Tokens | None:
    """What a feed-forward must know of the tokens that are read."""
    return None if tokens is None or tokens.valid is None else Tokens(valid=tokens.valid[:, read])


def _joined(of_mixer: Mapping[str, Tensor], of_feed_forward: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if not of_feed_forward:
        return of_mixer
    return {**of_mixer, **{f"feed_forward/{name}": value for name, value in of_feed_forward.items()}}


@dataclass(frozen=True, kw_only=True)
class StackConfig(Config):
    """
    Args:
        width: D.
        num_layers: layers in all.
        pattern: configs of the layers; layer i takes `pattern[i % len(pattern)]`, so one entry makes all layers alike
            and (a, b) alternates.
        final_norm: normalise the last layer's output.
        init_std: standard deviation of weights at the start; biases are zero.
    """

    width: int = 128
    num_layers: int = 3
    pattern: tuple[BlockConfig, ...] = (BlockConfig(),)
    final_norm: bool = True
    init_std: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < 1 or self.num_layers < 1 or not self.pattern:
            raise ConfigError(
                f"a stack needs width >= 1, num_layers >= 1 and a pattern, got {self.width}, {self.num_layers}, {len(self.pattern)}"
            )


def uniform_stack(
    mixer: MixerConfig, width: int, num_layers: int, *, dropout: float = 0.0, activation: Activation = "relu"
) -> StackConfig:
    """Pre-norm layers that are all alike: a mixer, and an MLP of four times the width; one rate of dropout on both outputs."""
    feed_forward = MLPConfig(activation=activation, dropout=dropout)
    block = BlockConfig(mixer=mixer, feed_forward=feed_forward, dropout=dropout)
    return StackConfig(width=width, num_layers=num_layers, pattern=(block,))


def gpt(
    width: int, num_layers: int, num_heads: int, *, dropout: float = 0.0, activation: Activation = "gelu"
) -> StackConfig:
    """GPT-2's blocks as most papers use them: pre-norm, biases everywhere, one dropout rate, no positions of their own."""
    mixer = AttentionConfig(num_heads=num_heads, dropout=dropout)
    return uniform_stack(mixer, width, num_layers, dropout=dropout, activation=activation)


@configures(StackConfig)
class Stack(nn.Module):
    """Blocks one after another. Its state maps layer names to layer states; callers never look inside."""

    def __init__(self, config: StackConfig, visible: Visible | None = None) -> None:
        super().__init__()
        layers = [config.pattern[i % len(config.pattern)] for i in range(config.num_layers)]
        self.width = config.width
        self.blocks = nn.ModuleList(layer.build(config.width, visible) for layer in layers)
        last = layers[-1]
        kind = nn.LayerNorm if last.norm == "layer" else nn.RMSNorm
        self.norm = kind(config.width, eps=last.norm_eps) if config.final_norm else nn.Identity()
        initialise(self, config.init_std)

    def layers(self) -> list[Block]:
        """The blocks in order; a room may zip over them."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def initial_state(self, rows: int) -> State:
        """The state of rows whose memory is empty."""
        return {str(i): block.mixer.initial_state(rows) for i, block in enumerate(self.layers())}

    def sliding(self) -> list[tuple[str, str]]:
        """The paths of those leaves of its state that slide, see `Facts`."""
        return [(str(i), name) for i, block in enumerate(self.layers()) for name in block.mixer.facts.sliding]

    def forward(
        self, x_BLD: Tensor, state: State | None = None, *, tokens: Tokens | None = None,
        context: Seen | None = None, condition: Tensor | None = None, read: slice | None = None,
    ) -> Mixed:  # fmt: skip
        """
        Args:
            x_BLD: (B, L, D) token features.
            state: what `initial_state` or an earlier call returned; None when nothing is to be carried.
            tokens: what each token is.
            context: what blocks with cross-attention see besides.
            condition: (B, condition_width), for blocks with adaptive norms.
            read: the tokens whose outputs are wanted; the last layer computes only those.
        """
        tokens = (tokens or Tokens())._replace(shared={})
        carried, aux = {}, {}
        for i, block in enumerate(self.blocks):
            last = i == len(self.blocks) - 1
            mixed = block(
                x_BLD, None if state is None else state[str(i)], tokens=tokens,
                context=context, condition=condition, read=read if last else None,
            )  # fmt: skip
            x_BLD, carried[str(i)] = mixed.y, mixed.state
            aux.update({f"{i}/{name}": value for name, value in mixed.aux.items()})
        return Mixed(self.norm(x_BLD), None if state is None else carried, aux)


def initialise(module: nn.Module, std: float) -> None:
    """Normal weights of linear and embedding layers, zero biases; mixers that start otherwise define `start()`."""
    for part in reversed(list(module.modules())):  # parts before wholes
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
            if isinstance(part, nn.Linear) and part.bias is not None:
                nn.init.zeros_(part.bias)
        if isinstance(part, _Residual) and part.modulation is not None:
            nn.init.zeros_(part.modulation.weight)
        if isinstance(part, Block):
            start = getattr(part.mixer, "start", None)
            if start is not None:
                start()


def with_mixer(config: AnyConfig, mixer: MixerConfig) -> AnyConfig:
    """A config with `mixer` in every block of it, however deep: `with_mixer(cpu(), Mamba2Config())`.

    Raises:
        ConfigError: there is no block in it.
    """
    changed = _swapped(config, mixer)
    if changed is config:
        raise ConfigError(f"{type(config).__name__} holds no BlockConfig whose mixer could be swapped")
    return changed


def _swapped(value: Any, mixer: MixerConfig) -> Any:
    if isinstance(value, BlockConfig):
        return value.replace(mixer=mixer)
    if isinstance(value, tuple):
        parts = tuple(_swapped(part, mixer) for part in value)
        return parts if any(new is not old for new, old in zip(parts, value, strict=True)) else value
    if not isinstance(value, Config):
        return value
    swapped = {entry.name: _swapped(getattr(value, entry.name), mixer) for entry in fields(value) if entry.init}
    new = {name: part for name, part in swapped.items() if part is not getattr(value, name)}
    return value.replace(**new) if new else value
