"""Forward and backward passes of sequence layers: long sequences through two layers beside Hugging Face's GPT-2, and single
layers beside the published PyTorch code of the same layer, at the sizes and the dtype (float32) of the other.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import peak_memory
from benchmarks.made import Data
from benchmarks.report import Job, Sheet, judged, megabytes, skipped, time_of
from benchmarks.rounds import Contestant, Maker, Score, Settings, calls, compete
from foretoken.core.config import configures
from foretoken.core.state import State
from foretoken.nn.mixer import Facts, Mixed, Mixer, MixerConfig, Tokens
from foretoken.nn.mixers.attention import AttentionConfig
from foretoken.nn.mixers.delta_net import DeltaNetConfig
from foretoken.nn.mixers.gru import GRUConfig
from foretoken.nn.mixers.linear_attention import LinearAttentionConfig
from foretoken.nn.mixers.lstm import LSTMConfig
from foretoken.nn.mixers.mamba import MambaConfig
from foretoken.nn.mixers.mamba2 import Mamba2Config
from foretoken.nn.mixers.mlstm import MLSTM7BConfig, MLSTMConfig
from foretoken.nn.stack import BlockConfig, StackConfig

WIDTH, LAYERS, HEADS, LONG = 128, 2, 4, 8192
GPT2 = {"Hugging Face GPT-2 (sdpa)": "gelu_new", "Hugging Face GPT-2 (sdpa) with ReLU": "relu"}
ALONE, ATTENTION = "the feed-forwards alone", "attention"
FASTER, ABOVE = 4.0, 2.5  # times Hugging Face's attention; times the feed-forwards alone
ROWS, LENGTHS, CHUNK = 4, (128, 1024), 64
LONGEST_MAMBA = 256


@dataclass(frozen=True, kw_only=True)
class NothingConfig(MixerConfig):
    """No mixing at all: the floor under every mixer."""


@configures(NothingConfig)
class Nothing(Mixer):
    """Answers what it is given."""

    facts = Facts()

    def __init__(self, config: NothingConfig, width: int) -> None:
        super().__init__()

    def initial_state(self, rows: int) -> State:
        return {}

    def forward(
        self, x_BLD: Tensor, state: State | None = None, *, tokens: Tokens | None = None, read: slice | None = None
    ) -> Mixed:
        return Mixed(x_BLD if read is None else x_BLD[:, read], state)


LINEAR: Mapping[str, MixerConfig] = {
    "linear attention": LinearAttentionConfig(num_heads=HEADS),
    "Mamba-2": Mamba2Config(num_heads=HEADS),
    "DeltaNet": DeltaNetConfig(num_heads=HEADS),
    "mLSTM": MLSTMConfig(num_heads=HEADS),
    "mLSTM of xLSTM 7B": MLSTM7BConfig(num_heads=HEADS),
}
STACKS = {**LINEAR, ATTENTION: AttentionConfig(num_heads=HEADS), ALONE: NothingConfig()}


def run(data: Data, settings: Settings, *, full: bool) -> Job:
    """One long sequence, then layers at two lengths."""
    long, short = (replace(settings, seconds=settings.seconds / part) for part in (2, 4))
    sheets = [_long(long), *(_layers(length, short) for length in LENGTHS)]
    return Job("Mixers", __doc__ or "", sheets, skipped([Maker(gpt2, needs=("transformers",))]))


def _long(settings: Settings) -> Sheet:
    """Each in a process of its own, so that the peak of its memory is its own."""
    makers = [*(Maker(stack, (name,)) for name in STACKS), *(Maker(gpt2, (name,), ("transformers",)) for name in GPT2)]
    scores = {score.contestant.name: score for score in compete(makers, settings)}
    alone, peers = scores[ALONE], [scores[name] for name in GPT2 if name in scores]
    rows = [_long_row(score, alone, peers) for score in scores.values()]
    above = {name: alone.over(scores[name])[0] <= ABOVE for name in LINEAR}
    note = (
        f"Pre-norm layers with feed-forwards of {4 * WIDTH} units and ReLU, {HEADS} heads, no dropout, batch 1, gradients of input "
        "and weights. GPT-2 comes with gelu_new, which is made of several operations; with ReLU it does the same work as ours. "
        "Memory is the high-water mark of three passes over what the process held before them, after a short pass."
    )
    return Sheet(
        f"One sequence of {LONG} tokens, {LAYERS} layers of width {WIDTH}",
        ["", "time of a pass", "most memory over the start", *(f"times as fast as {peer.contestant.name}" for peer in peers),
         f"times {ALONE}", f"disturbed rounds of {settings.rounds}"],
        rows,
        [
            *(sentence for peer in peers for sentence in _beside(peer, scores)),
            judged(f"at most {ABOVE:g} times the time of {ALONE} for linear mixers", above),
            note,
        ],
    )  # fmt: skip


def _long_row(score: Score, alone: Score, peers: list[Score]) -> list[str]:
    faster = [f"{score.over(peer)[0]:.2f}x" for peer in peers]
    memory, times = megabytes(score.contestant.memory), f"{alone.over(score)[0]:.1f}"
    return [score.contestant.name, time_of(score.median), memory, *faster, times, f"{score.disturbed}"]


def _beside(peer: Score, scores: Mapping[str, Score]) -> Iterator[str]:
    """The goals against one peer."""
    name, memory = peer.contestant.name, peer.contestant.memory
    faster = {linear: scores[linear].over(peer)[0] >= FASTER for linear in LINEAR}
    yield judged(f"{FASTER:g} times the speed of {name} for linear mixers", faster)
    yield judged(f"at least the speed of {name} for attention", {ATTENTION: scores[ATTENTION].over(peer)[0] >= 1})
    if memory:
        lighter = {linear: scores[linear].contestant.memory <= memory for linear in LINEAR}
        yield judged(f"no more memory than {name} for linear mixers", lighter)
        yield judged(
            f"half the memory of {name} for attention", {ATTENTION: scores[ATTENTION].contestant.memory <= memory / 2}
        )


def stack(name: str) -> Iterator[Contestant]:
    torch.manual_seed(0)
    network = StackConfig(width=WIDTH, num_layers=LAYERS, pattern=(BlockConfig(mixer=STACKS[name]),)).build()
    yield _measured(name, network, lambda x: network(x).y, ours=True)


def gpt2(name: str) -> Iterator[Contestant]:
    """Its blocks on ready features."""
    from transformers import GPT2Config, GPT2Model

    sizes = GPT2Config(
        vocab_size=1, n_positions=LONG, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, activation_function=GPT2[name],
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, attn_implementation="sdpa",
    )  # fmt: skip
    network = GPT2Model(sizes).train()
    yield _measured(name, network, lambda x: network(inputs_embeds=x).last_hidden_state)


def _measured(name: str, network: nn.Module, forward: Callable[[Tensor], Tensor], *, ours: bool = False) -> Contestant:
    """Memory is measured now, before anything else happens in this process."""
    _both_ways(network, forward, 1, 256)()
    both = _both_ways(network, forward, 1, LONG)
    memory = peak_memory(lambda: [both() for _ in range(3)])
    return Contestant(name, calls(both), ours=ours, memory=memory)


def _both_ways(network: nn.Module, forward: Callable[[Tensor], Tensor], rows: int, length: int) -> Callable[[], None]:
    """A call that runs forward and backward on the same random input."""
    x, gradient = torch.randn(rows, length, WIDTH, requires_grad=True), torch.randn(rows, length, WIDTH)

    def both() -> None:
        x.grad = None
        network.zero_grad()
        forward(x).backward(gradient)

    return both


@dataclass(frozen=True)
class Pair:
    """A layer of ours and the published one."""

    ours: MixerConfig
    library: str
    published: str


PAIRS: Mapping[str, Pair] = {
    "mamba": Pair(MambaConfig(), "transformers", "Hugging Face MambaMixer"),
    "mamba2": Pair(Mamba2Config(num_heads=HEADS, chunk=CHUNK), "transformers", "Hugging Face Mamba2Mixer"),
    "mlstm7b": Pair(MLSTM7BConfig(num_heads=HEADS, chunk=CHUNK), "transformers", "Hugging Face xLSTMLayer"),
    "gru": Pair(GRUConfig(), "torch", "torch.nn.GRU"),
    "lstm": Pair(LSTMConfig(), "torch", "torch.nn.LSTM"),
}


def _layers(length: int, settings: Settings) -> Sheet:
    makers = [Maker(layers, (length,)), *(Maker(published, (lib, length), (lib,)) for lib in ("transformers", "torch"))]
    scores = {score.contestant.name: score for score in compete(makers, settings)}
    rows, met, spread = [], {}, []
    for name, pair in PAIRS.items():
        score, peer = scores[f"foretoken {name}"], scores.get(pair.published)
        cells, disturbed = [f"{name}, {_length(name, length)} tokens", time_of(score.median)], score.disturbed
        if peer:
            middle, low, high = score.over(peer)
            met[name] = middle >= 1
            if low < 1 <= high:
                spread.append(name)
            cells += [f"{pair.published}, {time_of(peer.median)}", f"{middle:.2f}x ({low:.2f} to {high:.2f})"]
            disturbed += peer.disturbed
        rows.append([*cells, *[""] * (4 - len(cells)), f"{disturbed}"])
    shorter = f" Mamba stops at {LONGEST_MAMBA} tokens: the published loop's time grows with their square."
    either = f" Rounds disagree about which is the faster for {', '.join(spread)}." if spread else ""
    return Sheet(
        f"Single layers, {ROWS} sequences of {length} tokens",
        [
            "layer",
            "foretoken",
            "published",
            "times as fast (over rounds)",
            f"disturbed rounds of {2 * settings.rounds}",
        ],
        rows,
        [
            judged("at least as fast as the published layer", met) + either,
            f"Width {WIDTH}; no feed-forward, norm or residual but the layer's own. Hugging Face's layers run their PyTorch code, for "
            f"their kernels need a GPU; chunks of {CHUNK} tokens on both sides where there are any."
            + (shorter if length > LONGEST_MAMBA else ""),
        ],
    )


def _length(name: str, length: int) -> int:
    return min(length, LONGEST_MAMBA) if name == "mamba" else length


def layers(length: int) -> Iterator[Contestant]:
    torch.manual_seed(0)
    for name, pair in PAIRS.items():
        mixer = pair.ours.build(WIDTH)
        both = _both_ways(mixer, lambda x, mixer=mixer: mixer(x).y, ROWS, _length(name, length))
        yield Contestant(f"foretoken {name}", calls(both), ours=True)


def published(library: str, length: int) -> Iterator[Contestant]:
    for name, pair in PAIRS.items():
        if pair.library != library:
            continue
        layer = _hugging_face(name) if library == "transformers" else _torch(name)
        first = (lambda y: y) if "mamba" in name else (lambda y: y[0])
        forward = lambda x, layer=layer, first=first: first(layer(x))  # noqa: E731
        yield Contestant(pair.published, calls(_both_ways(layer, forward, ROWS, _length(name, length))))


def _torch(name: str) -> nn.Module:
    return {"gru": nn.GRU, "lstm": nn.LSTM}[name](WIDTH, WIDTH, batch_first=True)


def _hugging_face(name: str) -> nn.Module:
    import transformers
    from transformers.models.mamba.modeling_mamba import MambaMixer
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
    from transformers.models.xlstm.modeling_xlstm import xLSTMLayer

    one: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": 1, "vocab_size": 2}
    if name == "mamba":
        return MambaMixer(transformers.MambaConfig(state_size=16, **one), 0).train()
    if name == "mamba2":
        sizes = {
            "state_size": 64,
            "num_heads": HEADS,
            "head_dim": 2 * WIDTH // HEADS,
            "n_groups": 1,
            "chunk_size": CHUNK,
        }
        return Mamba2Mixer(transformers.Mamba2Config(**sizes, **one), 0).train()
    config = transformers.xLSTMConfig(
        num_heads=HEADS, mode="train", chunk_size=CHUNK, autocast_kernel_dtype="float32", **one
    )
    return xLSTMLayer(config).train()
