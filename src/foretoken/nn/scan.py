"""Recurrences over tokens, each by several engines with one result: step by step, by scanning, or by chunks.

    linear_scan     h_t = a_t h_(t-1) + b_t                                            elementwise, real or complex
    decayed         S_t = a_t S_(t-1) + k_t v_t^T,                  y_t = S_t^T q_t    one decay per head (SSD, linear attention)
    delta_rule      S_t = a_t (I - beta_t k_t k_t^T) S_(t-1) + beta_t k_t v_t^T,  y_t = S_t^T q_t
    exponential     S_t = e^f S_(t-1) + e^i k_t v_t^T  with the running maximum of the exponents taken out (mLSTM, softmax)

`valid` and `fresh` (B, L) are those of `Tokens`: a padded token passes the state on, a fresh one clears it first. Everything
here runs in float32 or better whatever the precision around it; decays come as logarithms <= 0, and no cumulative product is
ever divided by. Engines agree to rounding; "auto" picks by sizes and by whether gradients are on, never by a clock, so that
the same run takes the same path every day.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from foretoken.core.errors import ConfigError

ScanEngine = Literal["auto", "sequential", "associative", "chunked"]
ChunkEngine = Literal["auto", "sequential", "chunked"]

NEVER = -1e30
"""The running maximum of exponents of a memory that has seen nothing; finite, so that differences stay finite."""

P = ParamSpec("P")
R = TypeVar("R")


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype that states, decays and normalisers of inputs of `dtype` are kept in: float32 or better."""
    return dtype if dtype in (torch.float64, torch.complex64, torch.complex128) else torch.float32


_NARROW = (torch.bfloat16, torch.float16)


def in_full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Runs a function outside autocast with its floating tensors in `wide` dtypes."""

    def widen(value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) and value.dtype in _NARROW else value

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        wider = [widen(value) for value in args]
        named = {name: widen(value) for name, value in kwargs.items()}
        device = next(value for value in wider if isinstance(value, Tensor)).device.type
        if not torch.is_autocast_enabled(device):  # entering the context costs as much as a step while streaming
            return function(*wider, **named)
        with torch.autocast(device, enabled=False):
            return function(*wider, **named)

    return run


def passed(a: Tensor, b: Tensor, valid: Tensor | None = None, fresh: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The factors of `linear_scan` with padding passing the state on and memory beginning where it is fresh."""

    def like(mask: Tensor, x: Tensor) -> Tensor:
        return mask.reshape(*mask.shape, *[1] * (x.dim() - 2))

    if valid is not None:
        a, b = torch.where(like(valid, a), a, 1), torch.where(like(valid, b), b, 0)
    if fresh is not None:
        a = torch.where(like(fresh, a), 0, a)
    return a, b


# -- h_t = a_t h_(t-1) + b_t


@in_full_precision
def linear_scan(a: Tensor, b: Tensor, start: Tensor | None = None, *, engine: ScanEngine = "auto") -> Tensor:
    """All h_t of h_t = a_t h_(t-1) + b_t.

    Args:
        a, b: (B, L, ...), of shapes that broadcast; complex allowed.
        start: (B, ...) h before the first token; zeros by default.
        engine: how; see `scan_engine` for what "auto" takes.

    Returns:
        (B, L, ...) in the broadcast shape.
    """
    if a.shape[1] == b.shape[1] == 1:  # one step while streaming
        return b.expand(torch.broadcast_shapes(a.shape, b.shape)) if start is None else b + a * start[:, None]
    if start is not None and a.dtype == b.dtype == start.dtype and engine in ("auto", "sequential"):
        length = max(a.shape[1], b.shape[1])
        if b.shape[1] and _few(length):
            h, states = start, []
            steps = (x.unbind(1) if x.shape[1] == length else x.unbind(1) * length for x in (a, b))
            for a_t, b_t in zip(*steps, strict=True):
                h = torch.addcmul(b_t, a_t, h)
                states.append(h)
            return torch.stack(states, 1)
    shape = torch.broadcast_shapes(a.shape, b.shape)
    dtype = torch.promote_types(a.dtype, b.dtype)
    if start is not None:
        dtype = torch.promote_types(dtype, start.dtype)
    a, b = a.to(dtype), b.to(dtype)
    if start is not None and shape[1]:
        first = b[:, :1] + a[:, :1] * start.to(dtype)[:, None]
        b = torch.cat((first.expand(-1, 1, *shape[2:]), b.expand(shape)[:, 1:]), dim=1)
    if engine == "auto":
        engine = scan_engine(shape)
    return _Scan.apply(a.expand(shape), b.expand(shape), engine)


def scan_engine(shape: torch.Size) -> ScanEngine:
    """What "auto" takes: steps large enough to fill a core go one by one, smaller ones in chunks side by side."""
    length, volume = shape[1], shape.numel() // max(1, shape[1])
    return "sequential" if length < 16 or volume >= 8192 else "chunked"


class _Scan(torch.autograd.Function):
    """The gradient of a scan is a scan backwards: g_t = y_t + conj(a_(t+1)) g_(t+1), db_t = g_t, da_t = g_t conj(h_(t-1))."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, engine: str) -> Tensor:
        h = _ENGINES[engine](a, b)
        ctx.save_for_backward(a, h)
        ctx.engine = engine
        return h

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None]:
        a, h = ctx.saved_tensors
        back = torch.cat((torch.zeros_like(a[:, :1]), a[:, 1:].conj().flip(1)), dim=1)
        g = _ENGINES[ctx.engine](back, gradients[0].flip(1)).flip(1)
        if not ctx.needs_input_grad[0]:
            return None, g, None
        da = torch.zeros_like(g)
        torch.mul(g[:, 1:], h[:, :-1].conj(), out=da[:, 1:])
        return da, g, None


def _sequential(a: Tensor, b: Tensor) -> Tensor:
    h = b.clone(memory_format=torch.contiguous_format)
    for before, at, after in zip(h.unbind(1), a.unbind(1)[1:], h.unbind(1)[1:], strict=False):
        after.addcmul_(at, before)
    return h


def _associative(a: Tensor, b: Tensor) -> Tensor:
    """Log-depth: (a1, b1) then (a2, b2) is (a2 a1, a2 b1 + b2)."""
    distance = 1
    while distance < b.shape[1]:
        b = torch.cat((b[:, :distance], torch.addcmul(b[:, distance:], a[:, distance:], b[:, :-distance])), dim=1)
        a = torch.cat((a[:, :distance], a[:, distance:] * a[:, :-distance]), dim=1)
        distance *= 2
    return b.contiguous()


def _chunked(a: Tensor, b: Tensor) -> Tensor:
    """Chunks of about sqrt(L) tokens side by side, then one pass that hands the ends on."""
    length = b.shape[1]
    size = max(1, round(length**0.5))
    count = -(-length // size)
    if count * size != length:
        missing = count * size - length
        a, b = (torch.cat((x, x.new_zeros(x.shape[0], missing, *x.shape[2:])), dim=1) for x in (a, b))
    a, h = a.unflatten(1, (count, size)), b.unflatten(1, (count, size)).clone()
    whole = a.clone(memory_format=torch.contiguous_format)
    for j in range(1, size):
        h[:, :, j].addcmul_(a[:, :, j], h[:, :, j - 1])
        whole[:, :, j].mul_(whole[:, :, j - 1])
    for i in range(1, count):
        h[:, i].addcmul_(whole[:, i], h[:, i - 1, -1:])
    return h.flatten(1, 2)[:, :length]


_ENGINES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sequential": _sequential,
    "associative": _associative,
    "chunked": _chunked,
}


# -- matrix states: (B, H, N, E), q and k (B, L, H, N), v (B, L, H, E), gates (B, L, H)


class _Chunks:
    """A sequence cut in chunks: everything per token as (B, H, n, C, ...), padded at the end with tokens that do nothing."""

    def __init__(self, length: int, chunk: int, valid: Tensor | None, fresh: Tensor | None) -> None:
        self.length, self.size = length, min(chunk, length)
        self.count = -(-length // self.size)
        self.missing = self.count * self.size - length
        self.valid, self.fresh = valid, fresh

    def cut(self, x_BLHX: Tensor, masked: bool = False, fill: float = 0.0) -> Tensor:
        """(B, L, H, ...) -> (B, H, n, C, ...); `masked` zeroes padded tokens; `fill` lies after the end."""
        if masked and self.valid is not None:
            x_BLHX = torch.where(self.valid.reshape(*self.valid.shape, *[1] * (x_BLHX.dim() - 2)), x_BLHX, 0)
        if self.missing:
            x_BLHX = F.pad(x_BLHX, (0, 0) * (x_BLHX.dim() - 2) + (0, self.missing), value=fill)
        return x_BLHX.unflatten(1, (self.count, self.size)).movedim(3, 1)

    def join(self, y_BHnCE: Tensor) -> Tensor:
        """(B, H, n, C, E) -> (B, L, H, E)."""
        return y_BHnCE.movedim(1, 3).flatten(1, 2)[:, : self.length]

    def memories(self, like: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Same memory and not later (1 or B, 1, n or 1, C, C); still the memory of the chunk's start; still that of its end."""
        causal = torch.ones(self.size, self.size, dtype=torch.bool, device=like.device).tril()
        if self.fresh is None:
            return causal[None, None, None], None, None
        marks = F.pad(self.fresh, (0, self.missing)).unflatten(1, (self.count, self.size))
        memory = marks.cumsum(-1)[:, None]
        same = (memory[..., :, None] == memory[..., None, :]) & causal
        return same, memory == 0, memory == memory[..., -1:]


def _decays(chunks: _Chunks, log_decay: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Decay from key to query (.., C, C), from the chunk's start to each token, from each token to the chunk's end; None = 1."""
    same, of_start, of_end = chunks.memories(like)
    if log_decay is None:
        start, end = (None if part is None else part.to(like.dtype) for part in (of_start, of_end))
        return same.to(like.dtype), start, end
    total = chunks.cut(log_decay, masked=True).cumsum(-1)
    within = torch.where(same, total[..., :, None] - total[..., None, :], float("-inf")).exp()
    start, end = total.exp(), (total[..., -1:] - total).exp()
    return within, start if of_start is None else start * of_start, end if of_end is None else end * of_end


def _times(x: Tensor, factor: Tensor | None) -> Tensor:
    return x if factor is None else x * factor[..., None]


def _begin(state: Tensor | None, k: Tensor, v: Tensor) -> Tensor:
    return k.new_zeros(k.shape[0], k.shape[2], k.shape[3], v.shape[3]) if state is None else state


def _cleared(state: Tensor, fresh: Tensor | None, t: int) -> Tensor:
    return state if fresh is None else torch.where(fresh[:, t].reshape(-1, *[1] * (state.dim() - 1)), 0, state)


def _kept(new: Tensor, old: Tensor, valid: Tensor | None, t: int) -> Tensor:
    return new if valid is None else torch.where(valid[:, t].reshape(-1, *[1] * (new.dim() - 1)), new, old)


def _few(length: int) -> bool:
    """The few tokens of one step while streaming."""
    return length <= 4 and not torch.is_grad_enabled()


def _stepwise(engine: ChunkEngine, length: int) -> bool:
    if engine not in ("auto", "sequential", "chunked"):
        raise ConfigError(f'engine must be "auto", "sequential" or "chunked", got {engine!r}')
    return length == 1 or engine == "sequential" or (engine == "auto" and _few(length))


def _steps(*parts: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Token by token; one call for all tokens costs a stream less than an index for each."""
    return zip(*(part.unbind(1) for part in parts), strict=True)


@in_full_precision
def decayed(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None = None, *, state: Tensor | None = None,
    valid: Tensor | None = None, fresh: Tensor | None = None, chunk: int = 64, engine: ChunkEngine = "auto",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """S_t = a_t S_(t-1) + k_t v_t^T and y_t = S_t^T q_t, with a = exp(log_decay) per head (1 where None).

    Args:
        q, k: (B, L, H, N); v: (B, L, H, E); log_decay: (B, L, H), <= 0; state: (B, H, N, E), zeros by default.
        valid, fresh: (B, L) bool.
        chunk: tokens that are handled as one matrix product.

    q and k may have one head where v has H, if a state is given.

    Returns:
        y (B, L, H, E), of no meaning at padded tokens, and the state after the last token.
    """
    S = _begin(state, k, v)
    if not q.shape[1]:
        return v, S
    if _stepwise(engine, q.shape[1]):
        outputs = []
        decays = None if log_decay is None else log_decay.exp()[..., None, None].unbind(1)
        for t, (q_t, k_t, v_t) in enumerate(_steps(q[..., None, :], k[..., None], v[..., None, :])):
            before = S = _cleared(S, fresh, t)
            S = torch.addcmul(S if decays is None else S * decays[t], k_t, v_t)
            S = _kept(S, before, valid, t)
            outputs.append(q_t @ S)
        return torch.stack(outputs, 1).squeeze(-2), S
    chunks = _Chunks(q.shape[1], chunk, valid, fresh)
    q, k, v = chunks.cut(q), chunks.cut(k, masked=True), chunks.cut(v)
    within, from_start, to_end = _decays(chunks, log_decay, q)
    y = ((q @ k.transpose(-1, -2)) * within) @ v
    added = _times(k, to_end).transpose(-1, -2) @ v
    starts, S = _hand_on(added, None if from_start is None else from_start[..., -1], S)
    return chunks.join(y + _times(q, from_start) @ starts), S


def _hand_on(added: Tensor, decay: Tensor | None, S: Tensor) -> tuple[Tensor, Tensor]:
    """The states before each chunk (B, H, n, N, E) and after the last one."""
    factors = torch.ones_like(added[:, :, :, :1, :1]) if decay is None else decay[..., None, None]
    factors = factors.expand(*added.shape[:3], 1, 1)
    after = linear_scan(factors.movedim(2, 1), added.movedim(2, 1), S).movedim(1, 2)
    return torch.cat((S[:, :, None], after[:, :, :-1]), dim=2), after[:, :, -1]


@in_full_precision
def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None = None, *, state: Tensor | None = None,
    valid: Tensor | None = None, fresh: Tensor | None = None, chunk: int = 32, engine: ChunkEngine = "auto",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """S_t = a_t (I - beta_t k_t k_t^T) S_(t-1) + beta_t k_t v_t^T and y_t = S_t^T q_t.

    Yang et al. 2024 (arXiv 2406.06484), and with decay Yang et al. 2025 (arXiv 2412.06464). Inside a chunk the corrections
    u_t = beta_t (v_t - a_t S_(t-1)^T k_t) solve one triangular system.

    Args:
        q, k: (B, L, H, N), k of norm about 1; v: (B, L, H, E); beta: (B, L, H) in [0, 2]; log_decay: (B, L, H), <= 0.
        state, valid, fresh, chunk: as in `decayed`.

    Returns:
        y (B, L, H, E), of no meaning at padded tokens, and the state after the last token.
    """
    S = _begin(state, k, v)
    if not q.shape[1]:
        return v, S
    if _stepwise(engine, q.shape[1]):
        outputs = []
        decays = None if log_decay is None else log_decay.exp()[..., None, None].unbind(1)
        of_tokens = _steps(q[..., None, :], k[..., None, :], k[..., None], v[..., None, :], beta[..., None, None])
        for t, (q_t, row, column, v_t, beta_t) in enumerate(of_tokens):
            before = S = _cleared(S, fresh, t)
            S = S if decays is None else S * decays[t]
            S = _kept(torch.addcmul(S, column, beta_t * (v_t - row @ S)), before, valid, t)
            outputs.append(q_t @ S)
        return torch.stack(outputs, 1).squeeze(-2), S
    chunks = _Chunks(q.shape[1], chunk, valid, fresh)
    q, k, v, beta = chunks.cut(q), chunks.cut(k, masked=True), chunks.cut(v), chunks.cut(beta, masked=True)
    within, from_start, to_end = _decays(chunks, log_decay, q)
    system = torch.tril((k * beta[..., None]) @ k.transpose(-1, -2) * within, -1)
    right = torch.cat((v, _times(k, from_start)), dim=-1) * beta[..., None]
    system = system + torch.eye(chunks.size, dtype=system.dtype, device=system.device)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    own, of_state = solved.split((v.shape[-1], k.shape[-1]), dim=-1)
    late = _times(k, to_end).transpose(-1, -2)
    scores, early = (q @ k.transpose(-1, -2)) * within, _times(q, from_start)
    # Unbound, not indexed: backwards, an index in a loop fills a whole tensor every time.
    keep = None if from_start is None else from_start[..., -1, None, None].unbind(2)
    parts = (part.unbind(2) for part in (own, of_state, scores, early, late))
    outputs = []
    for i, (own_i, of_state_i, scores_i, early_i, late_i) in enumerate(zip(*parts, strict=True)):
        u = own_i - of_state_i @ S
        outputs.append(scores_i @ u + early_i @ S)
        S = late_i @ u + (S if keep is None else S * keep[i])
    return chunks.join(torch.stack(outputs, 2)), S


@in_full_precision
def exponential(
    q: Tensor, k: Tensor, v: Tensor, log_input: Tensor, log_forget: Tensor | None = None, *,
    state: tuple[Tensor, Tensor] | None = None, valid: Tensor | None = None, fresh: Tensor | None = None,
    chunk: int = 64, engine: ChunkEngine = "auto",
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:  # fmt: skip
    """S_t = e^f_t S_(t-1) + e^i_t k_t v_t^T and y_t = S_t^T q_t, all divided by e^m_t, m_t the largest exponent so far.

    What is wanted must not depend on m: a ratio of two columns of y, or y over max(., e^-m). m carries no gradient.

    Args:
        q, k: (B, L, H, N); v: (B, L, H, E); log_input i: (B, L, H), any size; log_forget f: (B, L, H), <= 0, 0 where None.
        state: S e^-m (B, H, N, E) and m (B, H); zeros and `NEVER` by default.
        valid, fresh, chunk: as in `decayed`.

    Returns:
        y e^-m (B, L, H, E) and m (B, L, H), of no meaning at padded tokens, and the state after the last token.
    """
    S, m = (_begin(None, k, v), k.new_full((k.shape[0], k.shape[2]), NEVER)) if state is None else state
    if not q.shape[1]:
        return v, log_input, (S, m)
    if q.shape[1] == 1 and valid is None and fresh is None:  # what a stream does, in as few operations as can be
        f, i = m if log_forget is None else log_forget[:, 0] + m, log_input[:, 0]
        m = torch.maximum(f, i).detach()
        k_t = k[:, 0] * (i - m).exp()[..., None]
        S = torch.addcmul(S * (f - m).exp()[..., None, None], k_t[..., None], v[:, 0, :, None])
        return (q.transpose(1, 2) @ S).transpose(1, 2), m[:, None], (S, m)
    if _stepwise(engine, q.shape[1]):
        outputs, maxima, tops, kept = [], [], [], []
        forgets = torch.zeros_like(log_input) if log_forget is None else log_forget
        for t, (i, f) in enumerate(_steps(log_input, forgets)):
            m = m if fresh is None else torch.where(fresh[:, t, None], NEVER, m)
            kept.append(f + m)
            tops.append(torch.maximum(kept[-1], i).detach())
            m = _kept(tops[-1], m, valid, t)
            maxima.append(m)
        top = torch.stack(tops, 1)
        decay, k = (torch.stack(kept, 1) - top).exp(), k * (log_input - top).exp()[..., None]
        of_tokens = _steps(q[..., None, :], k[..., None], v[..., None, :], decay[..., None, None])
        for t, (q_t, k_t, v_t, decay_t) in enumerate(of_tokens):
            S = _cleared(S, fresh, t)
            S = _kept(torch.addcmul(S * decay_t, k_t, v_t), S, valid, t)
            outputs.append(q_t @ S)
        return torch.stack(outputs, 1).squeeze(-2), torch.stack(maxima, 1), (S, m)
    chunks = _Chunks(q.shape[1], chunk, valid, fresh)
    never = torch.full((), 2 * NEVER, dtype=q.dtype, device=q.device)  # its exponential is 0 even beside NEVER
    i = log_input if valid is None else torch.where(valid[..., None], log_input, never)
    q, k, v, i = chunks.cut(q), chunks.cut(k, masked=True), chunks.cut(v), chunks.cut(i, fill=2 * NEVER)
    same, of_start, of_end = chunks.memories(q)
    total = torch.zeros_like(i) if log_forget is None else chunks.cut(log_forget, masked=True).cumsum(-1)
    own = i - total  # the exponent from key j to query t is total_t + own_j
    with torch.no_grad():  # the largest exponents: of each token in its own chunk, then of what each chunk starts from
        largest = total + torch.where(same, own[..., None, :], never).amax(-1)
        first = []
        for c in range(chunks.count):
            first.append(m)
            m = total[:, :, c, -1] + m
            m = m if of_start is None else torch.where(of_start[:, :, c, -1], m, never)
            m = torch.maximum(m, largest[:, :, c, -1]).clamp_min(NEVER)
    carried = total + torch.stack(first, 2)[..., None]
    carried = carried if of_start is None else torch.where(of_start, carried, never)
    top = torch.maximum(carried, largest).clamp_min(NEVER).detach()
    weights = torch.where(same, (total - top)[..., None] + own[..., None, :], never).exp()
    late = total[..., -1:] - top[..., -1:] + own
    to_end = (late if of_end is None else torch.where(of_end, late, never)).exp()
    from_start = (carried - top).exp()
    added = _times(k, to_end).transpose(-1, -2) @ v
    starts = []
    for decay, more in zip(from_start[..., -1].unbind(2), added.unbind(2), strict=True):
        starts.append(S)
        S = torch.addcmul(more, decay[..., None, None], S)
    y = ((q @ k.transpose(-1, -2)) * weights) @ v + _times(q, from_start) @ torch.stack(starts, 2)
    return chunks.join(y), chunks.join(top[..., None]).squeeze(-1), (S, m)
