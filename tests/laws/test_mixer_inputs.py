"""What every mixer makes of unusual inputs: nothing at all, other precisions, wrong sizes, settings out of range, saved weights.

Found by discovery, beside `test_mixers.py`, which holds the laws of what a mixer computes.
"""

import copy
import dataclasses
import importlib
import json
import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from foretoken.core.errors import ConfigError
from foretoken.nn.mixer import Mixer, MixerConfig, Tokens
from foretoken.nn.mixers import shelf

pytestmark = pytest.mark.filterwarnings("ignore:DeltaNet without its short convolution")

WIDTH = 12
SHELF = shelf()
ANY_SIGN = {"forget_bias", "input_bias"}  # numbers with no bad values
KEEPS_TOKENS = {"attention", "blockwise", "transformer_xl"}  # states of past keys and values, as narrow as the weights

LOOSE = 0.1
"""Allowed error of bfloat16, in root mean squares of the output: eight bits of mantissa, a few roundings one after another."""


def settings() -> list[Any]:
    """Every mixer's defaults, and the settings that its module says take other paths."""
    found = []
    for name, kind in SHELF.items():
        variants = getattr(importlib.import_module(kind.__module__), "VARIANTS", ())
        for config in (kind(), *(config for config in variants if type(config) is kind)):
            found.append(pytest.param(config, id=f"{name}-{config}"))
    return found


def fields_of(*kinds: Any) -> list[tuple[type[MixerConfig], str]]:
    """(config class, field name) of every mixer's fields of these types; Literal stands for any choice of words."""
    return [
        (config, name)
        for config in SHELF.values()
        for name, kind in get_type_hints(config).items()
        if name in {field.name for field in dataclasses.fields(config)} and (get_origin(kind) or kind) in kinds
    ]


def built(config: MixerConfig, seed: int = 0) -> Mixer:
    torch.manual_seed(seed)
    mixer: Mixer = config.build(WIDTH).eval()
    return mixer


def inputs(rows: int = 2, length: int = 9, width: int = WIDTH) -> Tensor:
    return torch.randn(rows, length, width, generator=torch.Generator().manual_seed(length))


def marks(rows: int, length: int) -> Tokens:
    """Row 0 is padded here and there, row 1 begins its memory anew."""
    valid, fresh = torch.ones(rows, length, dtype=torch.bool), torch.zeros(rows, length, dtype=torch.bool)
    valid[:1, 1::3], fresh[1:2, 2::4] = False, True
    return Tokens(valid=valid, fresh=fresh, group=torch.arange(length).expand(rows, -1) % 3)


def pieces(x: Tensor, tokens: Tokens) -> Iterator[tuple[Tensor, Tokens]]:
    """Five tokens, one, and the rest."""
    for at in (slice(5), slice(5, 6), slice(6, None)):
        yield x[:, at], tokens.map(lambda part, at=at: part[:, at])


def streamed(mixer: Mixer, x: Tensor, tokens: Tokens) -> tuple[Tensor, Any]:
    state, outputs = mixer.initial_state(len(x)), []
    for piece, told in pieces(x, tokens):
        y, state, _ = mixer(piece, state, tokens=told)
        outputs.append(y)
    return torch.cat(outputs, 1), state


def forms(state: Any) -> list[tuple[torch.Size, torch.dtype]]:
    return [(leaf.shape, leaf.dtype) for leaf in tree_leaves(state)]


def error_of(got: Tensor, want: Tensor) -> float:
    """The largest difference, in root mean squares of what is wanted; infinite where there is a NaN."""
    error = (got.double() - want.double()).abs().max() / want.double().square().mean().sqrt()
    return float(error.nan_to_num(nan=torch.inf))


# -- nothing at all


@pytest.mark.parametrize("config", settings())
@pytest.mark.parametrize("gradients", [False, True])
def test_no_tokens_change_no_state(config: MixerConfig, gradients: bool) -> None:
    mixer = built(config)
    for tokens in (None, Tokens(), marks(2, 0)):
        with torch.set_grad_enabled(gradients):
            y, state, _ = mixer(inputs(2, 0), tokens=tokens)
            assert y.shape == (2, 0, WIDTH)
            assert state is None
            state = mixer(inputs(), mixer.initial_state(2)).state
            before = tree_map(torch.clone, state)
            for read in (None, slice(-1, None)):
                y, state, _ = mixer(inputs(2, 0), state, tokens=tokens, read=read)
                assert y.shape == (2, 0, WIDTH)
                assert forms(state) == forms(before)
                assert all(map(torch.equal, tree_leaves(state), tree_leaves(before)))


@pytest.mark.parametrize("config", settings())
@pytest.mark.parametrize("gradients", [False, True])
def test_no_rows_give_no_rows(config: MixerConfig, gradients: bool) -> None:
    mixer = built(config)
    with torch.set_grad_enabled(gradients):
        for length in (0, 1, 3, 9):
            for tokens in (None, marks(0, length)):
                y, state, _ = mixer(inputs(0, length), tokens=tokens)
                assert y.shape == (0, length, WIDTH)
                assert state is None
                y, state, _ = mixer(inputs(0, length), mixer.initial_state(0), tokens=tokens, read=slice(-1, None))
                assert y.shape == (0, min(length, 1), WIDTH)
                assert forms(state) == forms(mixer.initial_state(0))


# -- precisions


@pytest.mark.parametrize("config", settings())
def test_double_weights_and_inputs_stay_double(config: MixerConfig) -> None:
    mixer, x, tokens = built(config).double(), inputs().double(), marks(2, 9)
    with torch.no_grad():
        y, state = streamed(mixer, x, tokens)
        assert y.dtype == mixer(x, tokens=tokens).y.dtype == torch.float64
    assert {leaf.dtype for leaf in tree_leaves(state) if leaf.is_floating_point()} <= {torch.float64}
    assert forms(state) == forms(mixer.initial_state(2))


@pytest.mark.parametrize("config", settings())
def test_narrow_weights_and_inputs_keep_a_wide_state(config: MixerConfig) -> None:
    mixer, x, tokens = built(config).bfloat16(), inputs().bfloat16(), marks(2, 9)
    wide = copy.deepcopy(mixer).float()
    with torch.no_grad():
        got, state = streamed(mixer, x, tokens)
        want, _ = streamed(wide, x.float(), tokens)
        whole, want_whole = mixer(x, tokens=tokens).y, wide(x.float(), tokens=tokens).y
    assert got.dtype == whole.dtype == torch.bfloat16
    assert forms(state) == forms(mixer.initial_state(2))
    if type(config) not in {SHELF[name] for name in KEEPS_TOKENS}:
        assert {leaf.dtype for leaf in tree_leaves(state) if leaf.is_floating_point()} <= {torch.float32}
    assert error_of(got, want) < LOOSE
    assert error_of(whole, want_whole) < LOOSE


@pytest.mark.parametrize("config", settings())
def test_narrow_training_has_finite_gradients(config: MixerConfig) -> None:
    mixer = built(config).bfloat16().train()
    x = inputs().bfloat16().requires_grad_()
    mixer(x, tokens=marks(2, 9)).y.float().square().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in mixer.parameters() if p.grad is not None)


@pytest.mark.parametrize("config", settings())
def test_autocast_is_close_and_keeps_the_state(config: MixerConfig) -> None:
    mixer, x, tokens = built(config), inputs(), marks(2, 9)
    with torch.no_grad():
        want, want_whole = streamed(mixer, x, tokens)[0], mixer(x, tokens=tokens).y
        with torch.autocast("cpu", dtype=torch.bfloat16):
            whole = mixer(x, tokens=tokens).y
            got, state = streamed(mixer, x, tokens)
    assert forms(state) == forms(mixer.initial_state(2))
    assert error_of(got, want) < LOOSE
    assert error_of(whole, want_whole) < LOOSE


# -- settings out of range


def refusal(kind: type[MixerConfig], **given: Any) -> str:
    """The message of the ConfigError that these settings raise, when made or when built."""
    with pytest.raises(ConfigError) as caught:
        kind(**given).build(WIDTH)
    return str(caught.value)


@pytest.mark.parametrize(("kind", "name"), [pair for pair in fields_of(int, float) if pair[1] not in ANY_SIGN])
def test_a_number_below_zero_is_refused_by_name(kind: type[MixerConfig], name: str) -> None:
    message = refusal(kind, **{name: -3})
    assert name in message
    assert "-3" in message


@pytest.mark.parametrize(("kind", "name"), fields_of(int, float))
def test_a_zero_is_refused_by_name_or_works(kind: type[MixerConfig], name: str) -> None:
    try:
        mixer = built(kind(**{name: 0}))
    except ConfigError as problem:
        message = str(problem)
    else:
        assert mixer(inputs()).y.isfinite().all()
        return
    assert name in message
    assert re.search(r"got.*\b0", message)


@pytest.mark.parametrize(("kind", "name"), fields_of(Literal))
def test_an_unknown_choice_is_refused_with_the_known_ones(kind: type[MixerConfig], name: str) -> None:
    message = refusal(kind, **{name: "fastest"})
    assert name in message
    assert "'fastest'" in message
    assert all(word in message for word in get_args(get_type_hints(kind)[name]))


@pytest.mark.parametrize(("kind", "name"), fields_of(int, float, bool, Literal))
def test_a_wrong_type_is_refused_by_name(kind: type[MixerConfig], name: str) -> None:
    assert name in refusal(kind, **{name: [3]})
    assert name in refusal(kind, **{name: "3"})


@pytest.mark.parametrize("kind", [kind for kind, name in fields_of(int) if name == "num_heads"])
def test_heads_that_do_not_divide_the_width_are_refused(kind: type[MixerConfig]) -> None:
    message = refusal(kind, num_heads=7)
    assert "num_heads" in message
    assert "7" in message


# -- wrong inputs


@pytest.mark.parametrize("config", settings())
@pytest.mark.parametrize("width", [WIDTH + 1, 1])
def test_inputs_of_another_width_are_refused(config: MixerConfig, width: int) -> None:
    mixer = built(config)
    for length in (1, 9):
        for state in (None, mixer.initial_state(2)):
            with pytest.raises((RuntimeError, ValueError), match=r"shape|size|dimension|width"), torch.no_grad():
                mixer(inputs(2, length, width), state)


# -- saved and loaded


@pytest.mark.parametrize("config", settings())
def test_settings_survive_json(config: MixerConfig) -> None:
    text = json.dumps(config.to_json())
    assert MixerConfig.from_json(json.loads(text)) == config
    assert type(config).from_json(json.loads(text)) == config


@pytest.mark.parametrize("config", settings())
def test_calls_write_nothing_into_the_mixer(config: MixerConfig) -> None:
    mixer, x, tokens = built(config).train(), inputs(), marks(2, 9)
    held = {**dict(mixer.named_parameters()), **dict(mixer.named_buffers())}
    before = {name: tensor.detach().clone() for name, tensor in held.items()}
    mixer(x, tokens=tokens).y.sum().backward()
    mixer.eval()
    with torch.no_grad():
        first = streamed(mixer, x, tokens)
        again = streamed(mixer, x, tokens)
    assert all(map(torch.equal, tree_leaves(first), tree_leaves(again)))
    after = {**dict(mixer.named_parameters()), **dict(mixer.named_buffers())}
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("config", settings())
def test_loaded_weights_are_the_whole_mixer(config: MixerConfig) -> None:
    mixer, x, tokens = built(config), inputs(), marks(2, 9)
    other = built(config, seed=1)
    with torch.no_grad():
        want = mixer(x, tokens=tokens).y, *streamed(mixer, x, tokens)
        streamed(other, x, tokens)  # what it may have kept of its old weights is of no use any more
        other.load_state_dict(mixer.state_dict())
        for loaded in (other, copy.deepcopy(mixer)):
            got = loaded(x, tokens=tokens).y, *streamed(loaded, x, tokens)
            assert all(map(torch.equal, tree_leaves(got), tree_leaves(want)))


@pytest.mark.parametrize("config", settings())
def test_streams_in_inference_mode_and_trains_after(config: MixerConfig) -> None:
    mixer, x, tokens = built(config), inputs(), marks(2, 9)
    with torch.inference_mode():
        got, _ = streamed(mixer, x, tokens)
    with torch.no_grad():
        want, _ = streamed(mixer, x, tokens)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    y, _ = streamed(mixer.train(), x, tokens)  # nothing made in inference mode is met again
    y.square().sum().backward()
    assert any(p.grad is not None for p in mixer.parameters())
