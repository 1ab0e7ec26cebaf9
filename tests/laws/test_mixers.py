"""The laws of every mixer in `foretoken.nn.mixers`, found by discovery."""

import dataclasses
import importlib

import pytest
import torch
from torch import nn

from foretoken.nn.mixer import Mixed, MixerConfig
from foretoken.nn.mixers import shelf
from foretoken.nn.mixers.attention import Attention, AttentionConfig
from foretoken.nn.mixers.transformer_xl import TransformerXL, TransformerXLConfig
from foretoken.testing import check_mixer
from foretoken.testing.mixers import LAWS
from foretoken.testing.trial import trial_of


def discovered() -> list[MixerConfig]:
    """Every mixer's defaults, and the settings that its module says take other paths."""
    found: list[MixerConfig] = []
    for kind in shelf().values():
        variants = getattr(importlib.import_module(kind.__module__), "VARIANTS", ())
        found += [kind(), *(config for config in variants if type(config) is kind)]
    return found


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("config", discovered(), ids=str)
def test_mixer_law(config: MixerConfig, law: str) -> None:
    LAWS[law](trial_of(config, 12))


# -- the laws notice what they are for


class Peeking(Attention):
    """Its output holds a trace of the next token."""

    def forward(self, x, state=None, **kwargs):
        y, state, aux = super().forward(x, state, **kwargs)
        return Mixed(y + 1e-6 * torch.roll(x, -1, 1) if x.shape[1] == y.shape[1] > 1 else y, state, aux)


class Batchwise(Attention):
    """Normalised over the rows of the batch."""

    def forward(self, x, state=None, **kwargs):
        return super().forward(x - 0.01 * x.mean(0, keepdim=True), state, **kwargs)


class Forgetful(Attention):
    """Ignores where memory begins."""

    def forward(self, x, state=None, *, tokens=None, read=None):
        tokens = None if tokens is None else tokens._replace(fresh=None)
        return super().forward(x, state, tokens=tokens, read=read)


class Leaky(Attention):
    """Its padding is heard."""

    def forward(self, x, state=None, *, tokens=None, read=None):
        tokens = None if tokens is None else tokens._replace(valid=None)
        return super().forward(x, state, tokens=tokens, read=read)


class Understated(Attention):
    """Holds more than its facts state."""

    def initial_state(self, rows):
        return {**super().initial_state(rows), "more": torch.zeros(rows, 1)}

    def forward(self, x, state=None, **kwargs):
        y, after, aux = super().forward(x, state, **kwargs)
        return Mixed(y, after if after is None else {**after, "more": state["more"]}, aux)


class Ring(Attention):
    """Says that what lies at slots in turn slides."""

    def __init__(self, config, width):
        super().__init__(config, width)
        self.facts = dataclasses.replace(self.facts, sliding=("keys",))


class Zeros(TransformerXL):
    """Reads the zeros before its memory begins."""

    def initial_state(self, rows):
        state = super().initial_state(rows)
        return {**state, "held": state["held"] + self.config.memory}


@pytest.mark.parametrize(
    ("owner", "law"),
    [
        (Peeking, "causality"),
        (Peeking, "concatenation"),
        (Batchwise, "rows_independent"),
        (Forgetful, "fresh_start"),
        (Forgetful, "agreement"),
        (Leaky, "padding"),
        (Understated, "bounded_state"),
        (Ring, "sliding"),
    ],
)
def test_laws_notice_faults(monkeypatch: pytest.MonkeyPatch, owner: type[nn.Module], law: str) -> None:
    monkeypatch.setattr(AttentionConfig, "owner", owner)
    with pytest.raises(AssertionError, match="width=12"):
        LAWS[law](trial_of(AttentionConfig(window=5), 12))


def test_the_law_of_sliding_notices_who_reads_an_empty_past(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TransformerXLConfig, "owner", Zeros)
    with pytest.raises(AssertionError, match="1 tokens after 0, whatever was before them"):
        LAWS["sliding"](trial_of(TransformerXLConfig(memory=4), 12))


def test_check_mixer_needs_a_reference() -> None:
    class Lonely(MixerConfig):
        pass

    with pytest.raises(AssertionError, match="reference"):
        check_mixer(Lonely(), 12)


def test_check_mixer_runs_every_law() -> None:
    check_mixer(AttentionConfig(num_heads=2, window=3), 4, rows=2)
