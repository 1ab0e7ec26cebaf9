"""The laws of Mixers: concatenation, causality, clean starts, padding, independence of rows, bounded state, a naive reference.

All laws but the last are checked in float64 with perturbed weights, so that a difference is a fault and not rounding.
"""

import itertools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from foretoken.core.state import gather, nbytes, write_rows
from foretoken.nn.mixer import Mixer, MixerConfig, Tokens, copying_states
from foretoken.testing.agreement import require, require_equal
from foretoken.testing.trial import (
    Reference,
    Trial,
    copied,
    cut,
    cuttings,
    pick,
    reached,
    stream,
    trial_of,
    whole_length,
    within_limit,
)

LENGTHS = (1, 7, 63)


def check_mixer(config: MixerConfig, width: int = 12, *, reference: Reference | None = None, **trial: Any) -> None:
    """Checks every law of a mixer.

    Args:
        config: of the mixer.
        width: D.
        reference: the same layer in plain loops; by default the `reference` of the mixer's own module.
        trial: further fields of `Trial`.

    Raises:
        AssertionError: a law does not hold.
    """
    made = trial_of(config, width, reference=reference, **trial)
    for law in LAWS.values():
        law(made)


def concatenation(trial: Trial) -> None:
    """All at once == any split == step by step, with padding and with memories that begin at different times."""
    mixer = trial.build()
    for length in LENGTHS:
        length = whole_length(mixer, length)
        x, tokens = trial.input(length), trial.tokens(mixer, length)
        more, after = trial.input(whole_length(mixer, 5), purpose=1), Tokens()
        with torch.no_grad():
            want = mixer(x, tokens=tokens).y
            tail = None
            for name, cuts in cuttings(mixer, length).items():
                got, state, _ = stream(mixer, x, tokens, cuts)
                require_equal(got, want, f"concatenation, {name}", trial.sizes(length), tolerance=trial.tolerance)
                y = mixer(more, state, tokens=after).y
                tail = y if tail is None else tail
                require_equal(
                    y, tail, f"concatenation, state after {name}", trial.sizes(length), tolerance=trial.tolerance
                )


def gradients_through_state(trial: Trial) -> None:
    """A sequence cut in two has the gradients of the whole one: state carries them."""
    mixer = trial.build()
    length = whole_length(mixer, 9)
    tokens, weight = trial.tokens(mixer, length), trial.input(length, purpose=1)
    gradients = []
    for cuts in ([], [whole_length(mixer, 4)]):
        x = trial.input(length).requires_grad_()
        (stream(mixer, x, tokens, cuts).y * weight).sum().backward()
        gradients.append(x.grad)
    require_equal(
        gradients[1], gradients[0], "gradients through the state", trial.sizes(length), tolerance=trial.tolerance
    )


def causality(trial: Trial) -> None:
    """Later tokens have no gradient to earlier outputs, and changing them changes no bit of these."""
    mixer = trial.build()
    for length in LENGTHS:
        tokens = trial.tokens(mixer, length)
        at = length // 2
        x = trial.input(length).requires_grad_()
        y = mixer(x, tokens=tokens).y
        (gradient,) = torch.autograd.grad((y * trial.input(length, purpose=1))[:, : at + 1].sum(), x)
        leak = float(gradient[:, at + 1 :].abs().max()) if at + 1 < length else 0.0
        require(
            leak == 0,
            "causality",
            f"gradient of {leak:.3g} from tokens after {at} to outputs up to it ({trial.sizes(length)})",
        )
        with torch.no_grad():
            base = mixer(x, tokens=tokens).y
            later = torch.cat((x[:, : at + 1], trial.input(length, purpose=2, scale=100)[:, at + 1 :]), 1)
            got = mixer(later, tokens=tokens).y
        require_equal(got[:, : at + 1], base[:, : at + 1], "causality, changed future", trial.sizes(length))


def fresh_start(trial: Trial) -> None:
    """A memory that begins is a new start, whatever came before, in a sequence and while streaming, row by row."""
    mixer = trial.build()
    before, length = whole_length(mixer, 21), within_limit(mixer, 9)
    garbage, x = trial.input(before, purpose=1, scale=1e3), trial.input(length)
    begin = torch.arange(trial.rows) % (before - 1) + 1  # how much of each row's garbage is cut off by its own start
    with torch.no_grad():
        want = mixer(x).y
        state = reached(mixer, garbage, Tokens())
        fresh = torch.zeros(trial.rows, length, dtype=torch.bool)
        fresh[:, 0] = True
        for name, cuts in cuttings(mixer, length).items():
            got = stream(mixer, x, Tokens(fresh=fresh), cuts, copied(state)).y
            require_equal(got, want, f"fresh == new start, {name}", trial.sizes(length), tolerance=trial.tolerance)
        born = write_rows(state, gather(mixer.initial_state(trial.rows), torch.tensor([0])), torch.tensor([0]))
        got = stream(mixer, x, Tokens(), [], born).y
        require_equal(got[:1], want[:1], "a reborn row is a new start", trial.sizes(length), tolerance=trial.tolerance)
        if mixer.facts.grain == 1:
            whole = torch.stack(
                [torch.cat((garbage[b, : begin[b]], x[b], garbage[b, begin[b] :])) for b in range(trial.rows)]
            )
            marks = torch.zeros(whole.shape[:2], dtype=torch.bool)
            marks[torch.arange(trial.rows), begin] = True
            y = mixer(whole, tokens=Tokens(fresh=marks)).y
            got = torch.stack([y[b, begin[b] : begin[b] + length] for b in range(trial.rows)])
            require_equal(
                got, want, "fresh == new start, inside one sequence", trial.sizes(length), tolerance=trial.tolerance
            )


def padding(trial: Trial) -> None:
    """Padding on the left, on the right and in between changes no valid output and no returned state; its own output is zero."""
    mixer = trial.build()
    length, pad = within_limit(mixer, 7, 2), whole_length(mixer, 6)
    x, more = trial.input(length), trial.input(within_limit(mixer, 5, 2), purpose=2)
    no, yes = torch.zeros(trial.rows, pad, dtype=torch.bool), torch.ones(trial.rows, length, dtype=torch.bool)
    filler = trial.input(pad, purpose=1, scale=1e3)
    layouts = {
        "left": ((filler, x), (no, yes), slice(pad, None)),
        "right": ((x, filler), (yes, no), slice(0, length)),
    }
    with torch.no_grad():
        want, state, _ = mixer(x, mixer.initial_state(trial.rows))
        after = mixer(more, state).y
        for side, (parts, masks, place) in layouts.items():
            valid = torch.cat(masks, 1)
            for given in (None, mixer.initial_state(trial.rows)):
                y, kept, _ = mixer(torch.cat(parts, 1), given, tokens=Tokens(valid=valid))
                require_equal(
                    y[:, place], want, f"padding on the {side}", trial.sizes(length), tolerance=trial.tolerance
                )
                require_equal(
                    y[~valid], torch.zeros_like(y[~valid]), f"output of padding on the {side}", trial.sizes(length)
                )
            require_equal(
                mixer(more, kept).y,
                after,
                f"state after padding on the {side}",
                trial.sizes(length),
                tolerance=trial.tolerance,
            )
        _, state, _ = mixer(x, mixer.initial_state(trial.rows))
        _, same, _ = mixer(filler, state, tokens=Tokens(valid=no))
        require_equal(
            mixer(more, same).y,
            after,
            "state after nothing but padding",
            trial.sizes(length),
            tolerance=trial.tolerance,
        )
        if mixer.facts.grain == 1:
            _padding_between(trial, mixer)


def _padding_between(trial: Trial, mixer: Mixer) -> None:
    x, tokens = trial.input(31), trial.tokens(mixer, 31, padding=0.4, fresh=0.0)
    assert tokens.valid is not None and tokens.fresh is not None
    y = mixer(x, tokens=tokens._replace(fresh=None)).y
    for b in range(trial.rows):
        kept = tokens.valid[b]
        alone = mixer(x[b : b + 1, kept], tokens=cut(pick(tokens, slice(b, b + 1)), kept)._replace(fresh=None)).y
        require_equal(y[b : b + 1, kept], alone, "padding in between", trial.sizes(31), tolerance=trial.tolerance)


def agreement(trial: Trial) -> None:
    """Values and gradients are those of the naive reference."""
    mixer = trial.build()
    for length in (1, 7, 17):
        length = whole_length(mixer, length)
        tokens, weight = trial.tokens(mixer, length), trial.input(length, purpose=1)
        results = []
        for naive in (True, False):
            x = trial.input(length).requires_grad_()
            if naive:
                y = torch.stack([
                    trial.reference(mixer, x[b], tokens.map(operator.itemgetter(b))) for b in range(trial.rows)
                ])  # fmt: skip
            else:
                y = mixer(x, tokens=tokens).y
            wanted = [x, *mixer.parameters()]
            results.append((y, torch.autograd.grad((y * weight).sum(), wanted, allow_unused=True)))
        (want, want_gradients), (got, got_gradients) = results
        require_equal(got, want, "agreement with the reference", trial.sizes(length), tolerance=trial.tolerance)
        names = ["x", *(name for name, _ in mixer.named_parameters())]
        for name, a, b in zip(names, got_gradients, want_gradients, strict=True):
            a, b = (torch.zeros(()) if g is None else g for g in (a, b))
            require_equal(
                a, b, f"gradient of {name} as in the reference", trial.sizes(length), tolerance=10 * trial.tolerance
            )


def rows_independent(trial: Trial) -> None:
    """Permuting rows permutes results; replacing the other rows changes nothing; in a sequence and while streaming."""
    mixer = trial.build()
    length = whole_length(mixer, 15)
    x, tokens = trial.input(length), trial.tokens(mixer, length)
    other, their = trial.input(length, purpose=3, scale=1e3), trial.tokens(mixer, length, purpose=3)
    order = torch.arange(trial.rows - 1, -1, -1)
    with torch.no_grad():
        for name, cuts in {"a sequence": None, **cuttings(mixer, length)}.items():

            def run(x: Tensor, tokens: Tokens, cuts: list[int] | None = cuts) -> Tensor:
                return (mixer(x, tokens=tokens) if cuts is None else stream(mixer, x, tokens, cuts)).y

            want = run(x, tokens)
            got = run(x[order], pick(tokens, order))[order]
            require_equal(got, want, f"rows permuted, {name}", trial.sizes(length), tolerance=trial.tolerance)
            mixed = torch.cat((x[:1], other[1:]))
            theirs = their.map(torch.clone)
            for old, new in zip(theirs[:4], tokens[:4], strict=True):
                if old is not None and new is not None:
                    old[:1] = new[:1]
            require_equal(
                run(mixed, theirs)[:1],
                want[:1],
                f"other rows replaced, {name}",
                trial.sizes(length),
                tolerance=trial.tolerance,
            )
            alone = run(x[:1], pick(tokens, torch.tensor([0])))
            require_equal(alone, want[:1], f"a row alone, {name}", trial.sizes(length), tolerance=trial.tolerance)


def dropped_continuations(trial: Trial) -> None:
    """With gradients off: dropping a returned state un-does the call, for up to `slack` tokens beyond one."""
    mixer = trial.build()
    grain, before = mixer.facts.grain, whole_length(mixer, 23)
    tries = range(1, trial.slack + 2) if grain == 1 else (grain,)
    prefix, going_on = trial.tokens(mixer, before), trial.tokens(mixer, whole_length(mixer, 9), purpose=1)
    x = trial.input(whole_length(mixer, 9), purpose=1)
    with torch.no_grad():
        state, spare = (reached(mixer, trial.input(before), prefix) for _ in range(2))
        want = stream(mixer, x, going_on, list(range(grain, x.shape[1], grain)), spare).y
        for attempt, length in enumerate([*tries, *tries, *tries]):
            fresh = torch.rand(trial.rows, length, generator=torch.Generator().manual_seed(attempt)) < 0.4 * (
                attempt >= len(tries)
            )
            fresh[0, -1] = attempt >= len(tries)
            tried = trial.input(length, purpose=2 + attempt, scale=10)
            first = mixer(tried, state, tokens=Tokens(fresh=fresh)).y
            again = mixer(tried, state, tokens=Tokens(fresh=fresh)).y
            law = f"a dropped continuation of {length} tokens, repeated"
            require_equal(again, first, law, trial.sizes(length), tolerance=trial.tolerance)
        got = stream(mixer, x, going_on, list(range(grain, x.shape[1], grain)), state).y
    require_equal(got, want, "going on after dropped continuations", trial.sizes(before), tolerance=trial.tolerance)


def branching(trial: Trial) -> None:
    """`gather` with repeats makes branches that do not disturb each other."""
    mixer = trial.build()
    before, length = whole_length(mixer, 11), whole_length(mixer, 6)
    rows = torch.tensor([0, 0, trial.rows - 1])
    cuts = list(range(mixer.facts.grain, length, mixer.facts.grain))
    x = trial.input(length, purpose=1)
    tokens = trial.tokens(mixer, before)
    with torch.no_grad():
        state = reached(mixer, trial.input(before), tokens)
        branches = gather(state, rows)
        many = torch.stack([x[0], 10 * x[0], x[-1]])
        got = stream(mixer, many, Tokens(), cuts, branches).y
        want = stream(mixer, x, Tokens(), cuts, state).y
    require_equal(got[[0, 2]], want[[0, -1]], "branches by gather", trial.sizes(length), tolerance=trial.tolerance)


def storage(trial: Trial) -> None:
    """Writing states in place gives what copying gives, also past the context that the mixer promises."""
    mixer = trial.build()
    length = whole_length(mixer, 40)
    x, tokens = trial.input(length), trial.tokens(mixer, length)
    tokens = tokens._replace(fresh=torch.arange(length).expand(trial.rows, -1) == 33)
    for name, cuts in cuttings(mixer, length).items():
        with torch.no_grad():
            got = stream(mixer, x, tokens, cuts).y
            with copying_states():
                want = stream(mixer, x, tokens, cuts).y
        require_equal(
            got, want, f"states in place == copied states, {name}", trial.sizes(length), tolerance=trial.tolerance
        )


def partial_reads(trial: Trial) -> None:
    """Reading some outputs gives what those outputs are when all are read, and the same state."""
    mixer = trial.build()
    length = whole_length(mixer, 13)
    x, tokens = trial.input(length), trial.tokens(mixer, length)
    more = trial.input(whole_length(mixer, 4), purpose=1)
    with torch.no_grad():
        want = mixer(x, tokens=tokens).y
        after = mixer(more, mixer(x, mixer.initial_state(trial.rows), tokens=tokens).state).y
        for read in (slice(-1, None), slice(2, None, 3), slice(0, 1), slice(1, 7), slice(None)):
            for given in (None, mixer.initial_state(trial.rows)):
                y, state, _ = mixer(x, given, tokens=tokens, read=read)
                require_equal(y, want[:, read], f"reading {read} only", trial.sizes(length), tolerance=trial.tolerance)
            require_equal(
                mixer(more, state).y,
                after,
                f"state after reading {read} only",
                trial.sizes(length),
                tolerance=trial.tolerance,
            )


def visibility(trial: Trial) -> None:
    """A given `visible` that says the causal order changes nothing; one by whole steps streams by whole steps."""
    if not trial.build().facts.takes_visibility:
        return
    plain = trial.build()
    length, kinds = 18, 3
    x = trial.input(length)
    index = torch.arange(length).expand(trial.rows, -1)
    with torch.no_grad():
        causal = trial.build(visible=lambda query, key: query.step[:, :, None] >= key.step[:, None, :])
        got = causal(x, tokens=Tokens(step=index)).y
        require_equal(got, plain(x).y, "visible as the causal order", trial.sizes(length), tolerance=trial.tolerance)
        by_step = Tokens(step=index // kinds, group=index % kinds)
        limit = plain.facts.max_context
        if limit is not None:  # whole steps within what the mixer can look back on
            begins = (index % (limit // kinds * kinds) == 0) if limit >= kinds else index >= 0
            by_step = by_step._replace(fresh=begins)
        want = causal(x, tokens=by_step).y
        if limit is None or limit >= kinds:
            got = stream(causal, x, by_step, list(range(kinds, length, kinds))).y
            require_equal(
                got, want, "visible by steps, streamed by whole steps", trial.sizes(length), tolerance=trial.tolerance
            )


def sliding(trial: Trial) -> None:
    """What is said to slide moves by one place a valid token, and places before a memory's beginning are not read."""
    mixer, length = trial.build(), 24
    names = mixer.facts.sliding
    if not names:
        return
    x, tokens = trial.input(length), trial.tokens(mixer, length)
    assert tokens.valid is not None
    state = mixer.initial_state(trial.rows)
    with torch.no_grad():
        for at in range(length):
            before, told = copied(state), cut(tokens, slice(at, at + 1))
            moved = mixer(x[:, at : at + 1], state, tokens=told).state
            assert moved is not None
            for name, row in itertools.product(names, range(trial.rows)):
                old, new, by = before[name][row], moved[name][row], int(tokens.valid[row, at])
                require_equal(new[: len(new) - by], old[by:], f"{name} slides", trial.sizes(at + 1))
            state = moved
        for count, more in itertools.product((0, 2, 5), (1, length)):
            state = mixer(x[:, :count], mixer.initial_state(trial.rows)).state
            assert state is not None
            noisy = copied(state)
            for name in names:
                noisy[name][:, : max(noisy[name].shape[1] - count, 0)] = 1e3
            law = f"{more} tokens after {count}, whatever was before them"
            want, got = (mixer(x[:, -more:], given).y for given in (state, noisy))
            require_equal(got, want, law, trial.sizes(more))


def bounded_state(trial: Trial, steps: int = 10_000) -> None:
    """State bytes are as the facts state, keep their shapes and dtypes, and stay finite over a long stream; in float32."""
    mixer = trial.build(torch.float32)
    grain = mixer.facts.grain
    state = mixer.initial_state(trial.rows)
    sizes = trial.sizes(steps)
    require(
        nbytes(state) == trial.rows * mixer.facts.state_bytes, "state bytes",
        f"facts state {mixer.facts.state_bytes} a row, a state of {trial.rows} rows holds {nbytes(state)} ({sizes})",
    )  # fmt: skip
    shapes = [(leaf.shape, leaf.dtype) for leaf in tree_leaves(state)]
    require(
        all(leaf.shape[:1] == (trial.rows,) for leaf in tree_leaves(state)), "state row first", f"{shapes} ({sizes})"
    )
    chunk = whole_length(mixer, 250)
    with torch.no_grad():
        for _ in range(steps // chunk):
            y, state, _ = mixer(torch.randn(trial.rows, chunk, trial.width), state)
        for _ in range(100):
            y, state, _ = mixer(torch.randn(trial.rows, grain, trial.width), state)
    got = [(leaf.shape, leaf.dtype) for leaf in tree_leaves(state)]
    require(got == shapes, "state shapes and dtypes", f"{got} after {steps} steps, {shapes} before ({sizes})")
    finite = all(bool(leaf.isfinite().all()) for leaf in [y, *tree_leaves(state)])
    require(finite, "finite over a long stream", f"output or state is not finite after {steps} steps ({sizes})")


LAWS: dict[str, Callable[[Trial], None]] = {
    law.__name__: law
    for law in (
        concatenation, gradients_through_state, causality, fresh_start, padding, agreement, rows_independent,
        dropped_continuations, branching, storage, partial_reads, visibility, sliding, bounded_state,
    )
}  # fmt: skip
