"""Recurrent memory tokens around a Stack: long sequences read in segments, a few vectors carried from one to the next.

A segment is what the Stack sees at once:

    [ memory,  x_1 ... x_K,  memory ]  ->  [ -,  y_1 ... y_K,  written ]        memory of the next segment = written

The leading copy is read by every token; the trailing one sees the whole segment, and what the Stack makes of it is carried.
The first memory is learned. Bulatov et al. 2022 (Recurrent Memory Transformer), arXiv 2207.06881; Cherepanov et al. 2023
(RATE), arXiv 2306.09459, adds the memory retention valve: the old memory decides what of the new one it takes,

    memory of the next segment = attention(query = memory, keys and values = ReLU(written)).

Segments are counted per row, in valid tokens since memory began. A token sees its own segment so far, so the Stack streams
through the segment and is cleared where the next one begins: the state is that of the Stack, the memory and a count, and
any split of a sequence, down to single tokens, gives the same result.

Differs from RATE: the first memory vectors are drawn independently (the released code repeats one vector); they pass through
the Stack's final norm when written; no hidden states are cached beside the memory.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foretoken.core.config import Config, configures
from foretoken.core.errors import ConfigError
from foretoken.core.state import State
from foretoken.nn.mixer import Mixed, Tokens
from foretoken.nn.scan import wide
from foretoken.nn.stack import Block, CrossAttentionConfig, Seen, StackConfig


@dataclass(frozen=True, kw_only=True)
class RecurrentMemoryConfig(Config):
    """
    Args:
        backbone: what reads a segment; its mixers must stream exactly over `segment` + 2 `memory_tokens` tokens.
        memory_tokens: vectors carried from segment to segment, M; with 0 every segment stands alone.
        segment: tokens per segment, K.
        valve: RATE's memory retention valve; None carries what was written.
        mutual: the memory tokens of one end see each other, as in the papers, instead of only earlier ones; needs mixers
            that take visibility.
        depth: how many segments in a row gradients pass back at most: they are cut after every (depth + 1)-th segment, counted
            from where memory began. 0 cuts after each, as the released RATE does; -1 nowhere.
    """

    backbone: StackConfig = StackConfig()
    memory_tokens: int = 8
    segment: int = 90
    valve: CrossAttentionConfig | None = None
    mutual: bool = False
    depth: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(memory_tokens=0, segment=1, depth=-1)
        if self.valve is not None and not self.memory_tokens:
            raise ConfigError("a valve needs memory_tokens to choose from, got memory_tokens=0; leave the valve out")

    @property
    def width(self) -> int:
        return self.backbone.width


def _mutual(query: Tokens, key: Tokens) -> Tensor:
    """Causal order of places in the segment, of which all read tokens share one and all write tokens another."""
    assert query.step is not None and key.step is not None
    return query.step[:, :, None] >= key.step[:, None, :]


@configures(RecurrentMemoryConfig)
class RecurrentMemory(nn.Module):
    """A Stack with recurrent memory, used wherever a Stack is; see the module's docstring."""

    data_dependent = True  # where segments begin and end decides what is computed

    def __init__(self, config: RecurrentMemoryConfig) -> None:
        super().__init__()
        self.config, self.width = config, config.backbone.width
        self.backbone = config.backbone.build(_mutual) if config.mutual else config.backbone.build()
        self.memory = nn.Parameter(
            torch.randn(config.memory_tokens, self.width), requires_grad=config.memory_tokens > 0
        )
        self.valve = config.valve.build(self.width) if config.valve else None
        needed = config.segment + 2 * config.memory_tokens
        for i, block in enumerate(self.layers()):
            facts = block.mixer.facts
            if facts.grain > 1 or (facts.streaming == "within_window" and (facts.max_context or 0) < needed):
                raise ConfigError(
                    f"every layer must stream token by token over segment + 2 memory_tokens = {needed} tokens; "
                    f"layer {i} has grain {facts.grain} and looks back on {facts.max_context}"
                )

    def layers(self) -> list[Block]:
        """The blocks of the backbone in order."""
        layers: list[Block] = self.backbone.layers()
        return layers

    def initial_state(self, rows: int) -> State:
        """The state of rows whose memory is empty."""
        zeros = self.memory.new_zeros(rows, *self.memory.shape, dtype=wide(self.memory.dtype))
        count = torch.zeros(rows, dtype=torch.int64, device=self.memory.device)  # tokens since memory began
        return {"backbone": self.backbone.initial_state(rows), "memory": zeros, "count": count}

    def forward(
        self, x_BLD: Tensor, state: State | None = None, *, tokens: Tokens | None = None,
        context: Seen | None = None, condition: Tensor | None = None, read: slice | None = None,
    ) -> Mixed:  # fmt: skip
        """As `Stack.forward`; of `tokens`, the backbone is told which exist and where memory begins."""
        tokens, (rows, length) = tokens or Tokens(), x_BLD.shape[:2]
        if not length:
            return Mixed(x_BLD, state)
        size, place, ended = self.config.segment, None, None
        if state is None and tokens.valid is None and tokens.fresh is None:
            pieces = [_Piece(part) for part in x_BLD.split(size, dim=1)]
        else:
            age, ended = _ages(tokens, x_BLD, None if state is None else state["count"])
            pieces, place = _laid_out(x_BLD, age, size)
        first = self.memory.to(x_BLD.dtype).expand(rows, -1, -1)
        memory, inner = (first, None) if state is None else (state["memory"].to(x_BLD.dtype), state["backbone"])
        outputs, auxes = [], []
        for number, piece in enumerate(pieces):
            if piece.age is not None:  # a row's first segment reads what was learned
                early = ((piece.age >= 0) & (piece.age < size)).any(1)
                memory = torch.where(early[:, None, None], first, memory)
            closes = bool(memory.shape[1]) and piece.closes and (state is not None or number + 1 < len(pieces))
            joined = torch.cat((memory,) * piece.begins + (piece.x,) + (memory,) * closes, dim=1)
            told = self._tokens(piece, closes, streaming=state is not None)
            y, inner, aux = self.backbone(joined, inner, tokens=told, context=context, condition=condition)
            begin = memory.shape[1] * piece.begins
            outputs.append(y[:, begin : begin + piece.x.shape[1]])
            auxes.append(aux)
            if closes:
                after = y[:, -memory.shape[1] :]
                after = after if self.valve is None else self.valve(memory, Seen(F.relu(after)))
                after = self._cut(after, number, piece.age)
                full = None if piece.age is None else _has(piece.age, size - 1, size)[..., None]
                memory = after if full is None else torch.where(full, after, memory)
        y_BLD, at = torch.cat(outputs, dim=1), read or slice(None)
        y_BLD = y_BLD[:, at] if place is None else y_BLD.gather(1, place[:, at, None].expand(-1, -1, self.width))
        y_BLD = y_BLD if tokens.valid is None else y_BLD * tokens.valid[:, at, None]
        aux = {name: torch.stack([each[name] for each in auxes]).mean(0) for name in auxes[0]}
        if state is None:
            return Mixed(y_BLD, None, aux)
        return Mixed(y_BLD, {"backbone": inner, "memory": memory.to(state["memory"].dtype), "count": ended}, aux)

    def _cut(self, after_BMD: Tensor, number: int, age_BW: Tensor | None) -> Tensor:
        """What is carried on, without gradients behind every (depth + 1)-th segment of each row; without ages, that is `number`."""
        period = self.config.depth + 1
        if period < 2:
            return after_BMD.detach() if period else after_BMD
        if age_BW is None:
            return after_BMD if (number + 1) % period else after_BMD.detach()
        last = (age_BW.amax(1) // self.config.segment + 1) % period == 0
        return torch.where(last[:, None, None], after_BMD.detach(), after_BMD)

    def _tokens(self, piece: "_Piece", closes: bool, *, streaming: bool) -> Tokens:
        """What the tokens of a piece, and the memory before and after them, are to the backbone."""
        count, size, (rows, length) = self.config.memory_tokens, self.config.segment, piece.x.shape[:2]

        def around(before: Tensor, here: Tensor, after: Tensor) -> Tensor:
            ends = (part.expand(rows, count) for part in (before, after))
            return torch.cat((next(ends),) * piece.begins + (here,) + (*ends,) * closes, dim=1)

        valid = fresh = step = None
        if piece.age is not None and (piece.begins or closes or not piece.full):
            starts, ends = (_has(piece.age, slot, size) for slot in (0, size - 1))
            valid = around(starts, piece.age >= 0, ends)
            if streaming and piece.begins:
                fresh = F.pad(starts, (0, valid.shape[1] - 1))
        if self.config.mutual:
            slot = torch.arange(length, device=piece.x.device).expand(rows, -1)
            slot = slot if piece.age is None else piece.age % size
            step = around(slot.new_zeros(()), slot + 1, slot.new_full((), size + 1))
        return Tokens(valid=valid, fresh=fresh, step=step)


class _Piece(NamedTuple):
    """Tokens (B, W, D) of which each row's lie in one segment.

    `age` (B, W) is how many tokens each has before it since memory began, -1 where there is no token; None = all exist, and
    memory began with the first piece. `begins`, `closes`: whether a segment begins or closes here in any row; `full`: whether
    all tokens exist.
    """

    x: Tensor
    age: Tensor | None = None
    begins: bool = True
    closes: bool = True
    full: bool = True


def _has(age_BW: Tensor, slot: int, size: int) -> Tensor:
    """(B, 1) Whether a row has the token at a place of its segment."""
    return ((age_BW >= 0) & (age_BW % size == slot)).any(1, keepdim=True)


def _ages(tokens: Tokens, x_BLD: Tensor, count: Tensor | None) -> tuple[Tensor, Tensor]:
    """(B, L) valid tokens before each token since memory began, -1 for padding; (B,) the same after them all."""
    one = torch.ones_like(x_BLD[..., 0], dtype=torch.int64) if tokens.valid is None else tokens.valid.long()
    before = one.cumsum(1) - one
    born = torch.zeros_like(one[:, :1]) if count is None else -count[:, None]
    if tokens.fresh is not None:
        born = torch.where(tokens.fresh, before, born).cummax(1).values
    age = before - born
    return age.masked_fill(one == 0, -1), age[:, -1] + one[:, -1]


def _laid_out(x_BLD: Tensor, age_BL: Tensor, size: int) -> tuple[list[_Piece], Tensor]:
    """The segments in which the tokens of a call lie, all rows beside each other; and where each token came to, (B, L).

    How many segments there are, and whether any begins or closes, is asked of the device once or twice.
    """
    rows, length = age_BL.shape
    exists = age_BL >= 0
    opens = exists & (age_BL % size == 0)
    if length == 1:
        which = torch.stack((opens.any(), _has(age_BL, size - 1, size).any(), exists.all())).tolist()
        return [_Piece(x_BLD, age_BL, *which)], torch.zeros_like(age_BL)
    nth, number, width = exists.cumsum(1) - 1, opens.cumsum(1), min(size, length)
    number = number - number.masked_fill(~exists, length).amin(1, keepdim=True)  # a row's first segment here is 0
    count = max(int(number.max()) + 1, 1)
    place = number * width + nth - torch.where(opens, nth, 0).cummax(1).values
    place = place.masked_fill(~exists, count * width)
    x = x_BLD.new_zeros(rows, count * width + 1, x_BLD.shape[2])
    x = x.scatter(1, place[..., None].expand_as(x_BLD), x_BLD)[:, :-1].unflatten(1, (count, width))
    age = age_BL.new_full((rows, count * width + 1), -1).scatter(1, place, age_BL)[:, :-1].unflatten(1, (count, width))
    happens = [((age >= 0) & (age % size == slot)).any(2).any(0) for slot in (0, size - 1)]
    happens.append((age >= 0).all(2).all(0))
    told = zip(x.unbind(1), age.unbind(1), torch.stack(happens, 1).tolist(), strict=True)
    pieces = [_Piece(each, ages, *which) for each, ages, which in told]
    return pieces, place.clamp(max=count * width - 1)


def reference(module: RecurrentMemory, x_LD: Tensor, tokens: Tokens) -> Tensor:
    """The same for one row, each token from a whole call of the Stack on its segment so far; slow, for tests."""
    memory, segment, closed, outputs = module.memory, list[Tensor](), 0, []
    count = len(memory)
    for i, x in enumerate(x_LD):
        if tokens.fresh is not None and tokens.fresh[i]:
            memory, segment, closed = module.memory, list[Tensor](), 0
        if tokens.valid is not None and not tokens.valid[i]:
            outputs.append(torch.zeros_like(x))
            continue
        segment = [*segment, x]
        step = torch.tensor([0] * count + list(range(1, len(segment) + 1)) + [module.config.segment + 1] * count)
        whole = torch.cat((memory, torch.stack(segment), memory))
        y = module.backbone(whole[None], tokens=Tokens(step=step[None])).y[0]
        outputs.append(y[-count - 1])
        if len(segment) == module.config.segment:
            after = y[len(y) - count :]
            after = after if module.valve is None else module.valve(memory[None], Seen(after[None].relu()))[0]
            closed, period, segment = closed + 1, module.config.depth + 1, list[Tensor]()
            memory = after.detach() if period and closed % period == 0 else after
    return torch.stack(outputs)
