"""The engines of the scan module: one result each, which is that of the equation taken literally."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from foretoken.core.errors import ConfigError
from foretoken.nn.scan import NEVER, decayed, delta_rule, exponential, linear_scan, passed, scan_engine
from foretoken.testing.agreement import require_equal

B, L, H, N, E = 3, 45, 2, 5, 4  # 45 is no multiple of the chunk
CHUNK = 16
M = 0.7  # the running maximum that `exponential` starts from
MASKS = pytest.mark.parametrize("masks", ["none", "valid", "fresh", "both"])
DECAYS = pytest.mark.parametrize("decays", [False, True], ids=["lasting", "decaying"])


def masks_of(name: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    valid, fresh = torch.rand(B, L, generator=generator) > 0.2, torch.rand(B, L, generator=generator) < 0.1
    valid[1, 8:40] = False  # two chunks' worth of padding
    return {"none": {}, "valid": {"valid": valid}, "fresh": {"fresh": fresh}, "both": {"valid": valid, "fresh": fresh}}[
        name
    ]


def inputs(decays: bool, *, length: int = L, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Leaves that want gradients: q, k of norm 1, v, gates, a start state."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    made = {
        "q": draw(B, length, H, N), "k": F.normalize(draw(B, length, H, N), dim=-1), "v": draw(B, length, H, E),
        "gate": draw(B, length, H), "state": draw(B, H, N, E),
    }  # fmt: skip
    if decays:
        made["log_decay"] = -2 * torch.rand(B, length, H, generator=generator, dtype=torch.float64)
    return {name: x.to(dtype).requires_grad_() for name, x in made.items()}


def run_decayed(x: dict[str, Tensor], **how) -> tuple[Tensor, Tensor]:
    return decayed(x["q"], x["k"], x["v"], x.get("log_decay"), state=x["state"], **how)


def run_delta(x: dict[str, Tensor], **how) -> tuple[Tensor, Tensor]:
    return delta_rule(x["q"], x["k"], x["v"], 2 * x["gate"].sigmoid(), x.get("log_decay"), state=x["state"], **how)


def run_exponential(x: dict[str, Tensor], **how) -> tuple[Tensor, Tensor]:
    """With the running maximum multiplied back in, which these small gates allow."""
    start = (x["state"], x["state"].new_full((B, H), M))
    y, m, (S, last) = exponential(x["q"], x["k"], x["v"], x["gate"], x.get("log_decay"), state=start, **how)
    return y * m.exp()[..., None], S * last.exp()[..., None, None]


def literal(kind: str, x: dict[str, Tensor], valid: Tensor | None = None, fresh: Tensor | None = None):
    """The equation of `kind`, token by token."""
    S = x["state"] * (math.exp(M) if kind == "exponential" else 1)
    eye, outputs = torch.eye(N, dtype=S.dtype), []
    for t in range(x["q"].shape[1]):
        q, k, v, gate = (x[name][:, t] for name in ("q", "k", "v", "gate"))
        if fresh is not None:
            S = S * ~fresh[:, t, None, None, None]
        a = x["log_decay"][:, t].exp() if "log_decay" in x else torch.ones_like(gate)
        kv, kk = torch.einsum("bhn,bhe->bhne", k, v), torch.einsum("bhn,bhm->bhnm", k, k)
        weight = {"decayed": torch.ones_like(gate), "delta": 2 * gate.sigmoid(), "exponential": gate.exp()}[kind]
        turn = eye - weight[..., None, None] * kk if kind == "delta" else eye.expand_as(kk)
        new = a[..., None, None] * (turn @ S) + weight[..., None, None] * kv
        S = new if valid is None else torch.where(valid[:, t, None, None, None], new, S)
        outputs.append(torch.einsum("bhne,bhn->bhe", S, q))
    return torch.stack(outputs, 1), S


RUNS: dict[str, Callable] = {"decayed": run_decayed, "delta": run_delta, "exponential": run_exponential}
KINDS = pytest.mark.parametrize("kind", RUNS)


def with_gradients(result: tuple[Tensor, Tensor], x: dict[str, Tensor], valid: Tensor | None) -> list[Tensor]:
    """Outputs at valid tokens, the last state, and the gradients of a random sum of both."""
    y, S = result
    if valid is not None:
        y = torch.where(valid[..., None, None], y, 0)
    generator = torch.Generator().manual_seed(2)
    weight = lambda like: torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.dtype)  # noqa: E731
    loss = (y * weight(y)).sum() + (S * weight(S)).sum()
    gradients = torch.autograd.grad(loss, list(x.values()), allow_unused=True)
    return [y, S, *(torch.zeros(()) if g is None else g for g in gradients)]


@KINDS
@DECAYS
@MASKS
def test_engines_are_the_literal_equation(kind: str, decays: bool, masks: str) -> None:
    x, given = inputs(decays), masks_of(masks)
    want = with_gradients(literal(kind, x, **given), x, given.get("valid"))
    for engine in ("sequential", "chunked", "auto"):
        got = with_gradients(RUNS[kind](x, engine=engine, chunk=CHUNK, **given), x, given.get("valid"))
        require_equal(got, want, f"{kind} by {engine}", f"L={L}, chunk={CHUNK}, masks={masks}", tolerance=1e-9)


@KINDS
@pytest.mark.parametrize("length", [1, 2, CHUNK, CHUNK + 1])
def test_lengths_around_the_chunk(kind: str, length: int) -> None:
    x = inputs(True, length=length)
    want = with_gradients(literal(kind, x), x, None)
    got = with_gradients(RUNS[kind](x, chunk=CHUNK), x, None)
    require_equal(got, want, kind, f"L={length}", tolerance=1e-9)


@KINDS
@pytest.mark.parametrize("engine", ["auto", "sequential", "chunked"])
def test_no_tokens_leave_the_state_as_it_is(kind: str, engine: str) -> None:
    x = inputs(True, length=0)
    y, S = RUNS[kind](x, engine=engine)
    assert y.shape == (B, 0, H, E)
    require_equal(S, x["state"] * (math.exp(M) if kind == "exponential" else 1), kind, "L=0", tolerance=1e-12)


@KINDS
@pytest.mark.parametrize("engine", ["sequential", "chunked"])
def test_float32_is_accurate(kind: str, engine: str) -> None:
    exact, x = inputs(True, length=301), inputs(True, length=301, dtype=torch.float32)
    with torch.no_grad():
        want, got = RUNS[kind](exact, engine="sequential"), RUNS[kind](x, engine=engine)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() / b.norm() < 2e-6


@KINDS
@DECAYS
@pytest.mark.parametrize("engine", ["sequential", "chunked"])
def test_a_fully_padded_row_keeps_its_state(kind: str, decays: bool, engine: str) -> None:
    x = inputs(decays)
    valid, fresh = torch.ones(B, L, dtype=torch.bool), torch.zeros(B, L, dtype=torch.bool)
    valid[1:], fresh[2, 20] = False, True  # row 2 is padded too, but its memory begins anew at a padded token
    S = with_gradients(RUNS[kind](x, engine=engine, chunk=CHUNK, valid=valid, fresh=fresh), x, valid)
    assert all(part.isfinite().all() for part in S)
    before = x["state"] * (math.exp(M) if kind == "exponential" else 1)
    torch.testing.assert_close(S[1][1], before[1])
    assert not S[1][2].any()


@KINDS
def test_autocast_changes_nothing_and_half_inputs_are_widened(kind: str) -> None:
    x = {name: part.detach() for name, part in inputs(True, dtype=torch.float32).items()}
    want = RUNS[kind](x, chunk=CHUNK)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = RUNS[kind](x, chunk=CHUNK)
    require_equal(got, want, "autocast", kind)
    half = {name: part if name == "state" else part.bfloat16() for name, part in x.items()}
    if kind == "delta":
        half["gate"] = x["gate"]  # its sigmoid is taken here, outside the engine
    widened = {name: part.float() for name, part in half.items()}
    require_equal(RUNS[kind](half, chunk=CHUNK), RUNS[kind](widened, chunk=CHUNK), "bfloat16 inputs", kind)
    assert all(part.dtype == torch.float32 for part in RUNS[kind](half, chunk=CHUNK))


@pytest.mark.parametrize("engine", ["sequential", "chunked"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_exponential_is_softmax_at_score_scale_60(engine: str, dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(3)
    scores = (60 * torch.randn(B, L, H, generator=generator, dtype=torch.float64)).to(dtype)
    v = torch.randn(B, L, H, E, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(B, L, H, E, generator=generator, dtype=torch.float64)
    results = []
    for literally in (True, False):
        s, values = scores.double().requires_grad_(), v.double().requires_grad_()
        if literally:
            after = torch.ones(L, L, dtype=torch.bool).triu(1)[:, :, None]
            attention = s[:, None].expand(-1, L, -1, -1).masked_fill(after, float("-inf")).softmax(2)
            y = torch.einsum("btsh,bshe->bthe", attention, values)
        else:
            one = torch.ones(B, L, H, 1, dtype=dtype)
            columns = F.pad(values.to(dtype), (0, 1), value=1.0)
            y, _, _ = exponential(one, one, columns, s.to(dtype), engine=engine, chunk=CHUNK)
            y = (y[..., :-1] / y[..., -1:]).double()
        results.append((y, torch.autograd.grad((y * weight).sum(), (s, values))))
    require_equal(results[1], results[0], "softmax", f"{engine}, {dtype}", tolerance=tolerance)


def test_exponential_of_nothing_stays_nothing() -> None:
    x = inputs(True)
    valid = torch.zeros(B, L, dtype=torch.bool)
    for engine in ("sequential", "chunked"):
        _, _, (S, m) = exponential(
            x["q"], x["k"], x["v"], x["gate"], x["log_decay"], valid=valid, chunk=CHUNK, engine=engine
        )
        assert not S.any()
        assert (m <= NEVER / 2).all()


def test_unknown_engines_are_refused() -> None:
    x = inputs(False)
    with pytest.raises(ConfigError, match='"auto", "sequential" or "chunked", got \'fast\''):
        decayed(x["q"], x["k"], x["v"], engine="fast")


# -- h_t = a_t h_(t-1) + b_t


def literal_scan(a: Tensor, b: Tensor, start: Tensor | None) -> Tensor:
    a, b = torch.broadcast_tensors(a, b)
    h, outputs = torch.zeros_like(b[:, 0]) if start is None else start, []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        outputs.append(h)
    return torch.stack(outputs, 1)


def factors(length: int, *, is_complex: bool, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    a, b, start = draw(B, length, 7).sigmoid(), draw(B, length, 7), draw(B, 7)
    if is_complex:
        a, b = torch.polar(a, draw(B, length, 7)), torch.complex(b, draw(B, length, 7))
        start, dtype = torch.complex(start, draw(B, 7)), dtype.to_complex()
    return tuple(x.to(dtype).requires_grad_() for x in (a, b, start))  # type: ignore[return-value]


@pytest.mark.parametrize("engine", ["auto", "sequential", "associative", "chunked"])
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("started", [False, True], ids=["from zero", "from a state"])
def test_scans_are_the_literal_equation(engine: str, is_complex: bool, started: bool) -> None:
    for length in (1, 2, 45):
        a, b, start = factors(length, is_complex=is_complex)
        wanted = (a, b, start) if started else (a, b)
        results = []
        for h in (literal_scan(*wanted, *([] if started else [None])), linear_scan(*wanted, engine=engine)):
            weight = torch.randn(h.shape, generator=torch.Generator().manual_seed(5), dtype=h.dtype)
            loss = (h * weight).sum()
            gradients = torch.autograd.grad(loss.real if is_complex else loss, wanted, allow_unused=True)
            parts = [h, *(torch.zeros_like(x) if g is None else g for x, g in zip(wanted, gradients, strict=True))]
            results.append([torch.view_as_real(x) if is_complex else x for x in parts])
        require_equal(results[1], results[0], f"scan by {engine}", f"L={length}", tolerance=1e-10)


@pytest.mark.parametrize("engine", ["sequential", "associative", "chunked"])
def test_factors_broadcast(engine: str) -> None:
    a, b, start = factors(45, is_complex=False)
    for left, right in ((a[:1, :, :1], b), (a, b[:, :1]), (a[:, :1, :1], b)):
        results = []
        for scan in (literal_scan, lambda *given: linear_scan(*given, engine=engine)):
            h = scan(left, right, start)
            weight = torch.randn(h.shape, generator=torch.Generator().manual_seed(5), dtype=h.dtype)
            gradients = torch.autograd.grad((h * weight).sum(), (a, b, start), retain_graph=True)
            results.append((h, gradients))
        require_equal(results[1], results[0], f"broadcast by {engine}", f"{left.shape}, {right.shape}", tolerance=1e-10)


@pytest.mark.parametrize("engine", ["auto", "sequential", "associative", "chunked"])
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_scans_are_accurate_in_float32_and_keep_it_under_autocast(engine: str, is_complex: bool) -> None:
    exact = linear_scan(*factors(501, is_complex=is_complex), engine="sequential")
    given = factors(501, is_complex=is_complex, dtype=torch.float32)
    got = linear_scan(*given, engine=engine)
    assert (got - exact).norm() / exact.norm() < 1e-6
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(linear_scan(*given, engine=engine), got)
    if not is_complex:
        assert linear_scan(*(x.bfloat16() for x in given), engine=engine).dtype == torch.float32


@pytest.mark.parametrize("engine", ["sequential", "associative", "chunked"])
def test_padding_passes_the_state_on_and_fresh_clears_it(engine: str) -> None:
    a, b, start = factors(L, is_complex=False)
    given = masks_of("both")
    h, want, outputs = linear_scan(*passed(a, b, **given), start, engine=engine), start, []
    for t in range(L):
        want = torch.where(given["fresh"][:, t, None], 0, want)
        want = torch.where(given["valid"][:, t, None], a[:, t] * want + b[:, t], want)
        outputs.append(want)
    # a token that is both padded and fresh leaves an empty memory behind
    require_equal(h, torch.stack(outputs, 1), "masks", engine, tolerance=1e-12)


def test_auto_looks_at_sizes_alone() -> None:
    assert scan_engine(torch.Size((2, 15, 8))) == "sequential"
    assert scan_engine(torch.Size((2, 64, 8))) == "chunked"
    assert scan_engine(torch.Size((16, 64, 512))) == "sequential"
