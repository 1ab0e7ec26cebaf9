"""One update of the paper's Decision Transformer, drawing the batch included: three layers of width 128 with one head and
three tokens per step, dropout 0.1 everywhere, AdamW, gradients clipped to 0.25. What bfloat16 does to returns stands under
Rounding.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import floors
from benchmarks.machine import has_fast_bf16
from benchmarks.made import ACTION, OBSERVATION, SPEC, Data
from benchmarks.report import Job, Table, skipped
from benchmarks.rounds import Contestant, Maker, Settings, calls, compete, now
from benchmarks.windows import d3rlpy_data, torchrl_buffer
from foretoken.core.config import configures
from foretoken.core.spec import Window
from foretoken.data import WindowSampler
from foretoken.systems.offline import decision_transformer
from foretoken.training.loop import train
from foretoken.training.sources import Offline, OfflineSource

LR, DECAY, CLIP, DROPOUT, WIDTH, LAYERS, LONGEST = 1e-4, 1e-4, 0.25, 0.1, 128, 3, 1000
WARM = 3
GOALS = {False: 1.6, True: 2.2}  # in bfloat16 or not: times the best peer, which is one in float32


@dataclass(frozen=True)
class Setting:
    """Steps of a window, rows of a batch, and arithmetic."""

    context: int
    batch: int
    bf16: bool = False

    def __str__(self) -> str:
        return f"{self.context} steps x {self.batch} windows, {'bfloat16' if self.bf16 else 'float32'}"

    @property
    def wrapped(self) -> str:
        """What a peer's name says of it."""
        return " inside autocast" if self.bf16 else ""

    def autocast(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16) if self.bf16 else nullcontext()


def run(data: Data, settings: Settings, *, full: bool) -> Job:
    """The paper's setting, and in bfloat16; with `full`, longer windows and larger batches too, in fewer rounds."""
    asked = [Setting(20, 64)]
    missing = skipped(_makers(data, asked[0]))
    if has_fast_bf16():
        asked.append(Setting(20, 64, bf16=True))
    else:
        missing.append("bfloat16 was not measured: this processor has no instructions for it")
    tables = [_table(data, setting, settings) for setting in asked]
    if full:
        fewer = replace(settings, rounds=max(3, settings.rounds // 2))
        tables += [_table(data, setting, fewer) for setting in (Setting(20, 256), Setting(50, 64))]
    return Job("Training", __doc__ or "", tables, missing)


def _makers(data: Data, setting: Setting) -> list[Maker]:
    """Peers as they ship, in float32; beside bfloat16 also inside torch's autocast, where they work in it."""
    plain = replace(setting, bf16=False)
    makers = [
        Maker(ours, (data, setting)),
        Maker(torchrl, (data, plain), ("torchrl", "transformers")),
        Maker(huggingface, (data, plain), ("transformers",)),
        Maker(d3rlpy, (data, plain), ("d3rlpy",)),
    ]
    if setting.bf16:
        makers.append(Maker(torchrl, (data, setting), ("torchrl", "transformers")))
        makers.append(Maker(huggingface, (data, setting), ("transformers",)))
    return makers


def _table(data: Data, setting: Setting, settings: Settings) -> Table:
    makers = _makers(data, setting)
    scores = compete(makers, settings)
    dtype = torch.bfloat16 if setting.bf16 else torch.float32
    whole, pruned = (floors.training(setting.batch, setting.context, pruned=p, dtype=dtype) for p in (False, True))
    note = (
        f"Floor: {whole.flops / 1e9:.1f} GFLOP of matrix products at the {whole.rate / 1e9:.0f} GFLOP/s measured at their sizes, "
        f"{1e3 * whole.seconds:.1f} ms; with the last layer only where an action is predicted, as foretoken computes it, "
        f"{pruned.flops / 1e9:.1f} GFLOP and {1e3 * pruned.seconds:.1f} ms."
    )
    return Table(
        f"{setting}",
        scores,
        floor=whole.seconds,
        unit="updates",
        target=GOALS[setting.bf16],
        note=note,
        complete=not skipped(makers),
    )


def ours(data: Data, setting: Setting) -> Iterator[Contestant]:
    """`foretoken.training.train` itself on the paper's preset; the clock runs from one `source.advance` to another."""
    experiment = decision_transformer.paper()
    system = experiment.system.replace(context=setting.context)
    training = experiment.training.replace(
        batch_size=setting.batch,
        checkpoint_every=0,
        evaluate_every=0,
        precision="bf16-mixed" if setting.bf16 else "32-true",
        accelerator="cpu",
    )
    torch.manual_seed(0)
    method = system.build(SPEC)

    def turn(count: int) -> float:
        source = TimedOffline(store=str(data.store.path), held_out=0.0).build(batch_size=setting.batch, seed=0)
        with tempfile.TemporaryDirectory(dir=data.folder) as folder:
            done = train(
                method, source, training.replace(updates=WARM + count + 1), Path(folder), seed=0, progress=False
            )
        assert done.update == WARM + count + 1
        return source.began[WARM + count] - source.began[WARM]

    yield Contestant("foretoken", turn, ours=True, note=parameters(method))


@dataclass(frozen=True, kw_only=True)
class TimedOffline(Offline):
    """Offline, with a clock."""


@configures(TimedOffline)
class TimedOfflineSource(OfflineSource):
    """Notes when each update began."""

    def __init__(self, config: TimedOffline, **arguments: Any) -> None:
        super().__init__(config, **arguments)
        self.began: list[float] = []

    def advance(self, update: int) -> Mapping[str, float]:
        self.began.append(now())
        return super().advance(update)


def d3rlpy(data: Data, setting: Setting) -> Iterator[Contestant]:
    """`DecisionTransformer.update` on `sample_trajectory_batch`, as its `fit` does, without the loggers of `fit`."""
    from d3rlpy.algos import DecisionTransformerConfig
    from d3rlpy.models import VectorEncoderFactory
    from d3rlpy.optimizers import AdamWFactory

    algorithm = DecisionTransformerConfig(
        context_size=setting.context,
        max_timestep=LONGEST,
        batch_size=setting.batch,
        learning_rate=LR,
        encoder_factory=VectorEncoderFactory([WIDTH], exclude_last_activation=True),
        optim_factory=AdamWFactory(weight_decay=DECAY, clip_grad_norm=CLIP),
        num_heads=1,
        num_layers=LAYERS,
        attn_dropout=DROPOUT,
        resid_dropout=DROPOUT,
        embed_dropout=DROPOUT,
    ).create()
    algorithm.create_impl((OBSERVATION,), ACTION)
    buffer = d3rlpy_data(data)

    def update() -> None:
        algorithm.update(buffer.sample_trajectory_batch(setting.batch, setting.context))

    yield Contestant("d3rlpy", calls(update), note=parameters(algorithm.impl.modules.transformer))


def torchrl_actor(suffix: str = "") -> Any:
    """TorchRL's actor with the networks' sizes of the paper; it reads columns whose names end with `suffix`."""
    from tensordict.nn import TensorDictModule
    from torchrl.modules import DTActor, ProbabilisticActor, TanhDelta

    sizes = DTActor.default_config()
    sizes.n_embd, sizes.n_layer, sizes.n_head, sizes.n_inner = WIDTH, LAYERS, 1, 4 * WIDTH
    sizes.n_positions, sizes.resid_pdrop, sizes.attn_pdrop = 1024, DROPOUT, DROPOUT
    actor = DTActor(state_dim=OBSERVATION, action_dim=ACTION, transformer_config=sizes)
    reads = [f"{name}{suffix}" for name in ("observation", "action", "return_to_go")]
    return ProbabilisticActor(
        module=TensorDictModule(actor, in_keys=reads, out_keys=["param"]),
        in_keys=["param"],
        out_keys=["action"],
        distribution_class=TanhDelta,
        distribution_kwargs={"low": -1.0, "high": 1.0},
    )


def torchrl(data: Data, setting: Setting) -> Iterator[Contestant]:
    """`DTLoss` on slices of its own buffer."""
    from torchrl.objectives import DTLoss

    actor = torchrl_actor()
    loss = DTLoss(actor)
    loss.train()
    buffer = torchrl_buffer(data, setting.batch, setting.context)
    weights = list(loss.parameters())
    optimiser = torch.optim.AdamW(weights, lr=LR, weight_decay=DECAY)

    def update() -> None:
        batch = buffer.sample().reshape(setting.batch, setting.context)
        with setting.autocast():
            value = loss(batch)["loss"]
        _step(value, weights, optimiser)

    note = f"{parameters(actor)}; GPT-2's own positions, no time embedding, no padding"
    yield Contestant(f"TorchRL{setting.wrapped}", calls(update), note=note, counts=not setting.bf16)


def huggingface_model(context: int) -> Any:
    """Hugging Face's Decision Transformer with the networks' sizes of the paper."""
    from transformers import DecisionTransformerConfig, DecisionTransformerModel

    sizes = DecisionTransformerConfig(
        state_dim=OBSERVATION,
        act_dim=ACTION,
        hidden_size=WIDTH,
        max_ep_len=LONGEST,
        n_layer=LAYERS,
        n_head=1,
        n_inner=4 * WIDTH,
        n_positions=1024,
        activation_function="relu",
        resid_pdrop=DROPOUT,
        embd_pdrop=DROPOUT,
        attn_pdrop=DROPOUT,
    )
    return DecisionTransformerModel(sizes)


def huggingface(data: Data, setting: Setting) -> Iterator[Contestant]:
    """The model and the loss of its documentation; it ships no sampler, so foretoken's feeds it."""
    model = huggingface_model(setting.context).train()
    sampler = WindowSampler(
        data.store, Window(length=setting.context, columns=("observation", "action", "return_to_go"))
    )
    weights = list(model.parameters())
    optimiser = torch.optim.AdamW(weights, lr=LR, weight_decay=DECAY)
    drawn = iter(range(10**9))

    def update() -> None:
        batch = sampler.draw(setting.batch, next(drawn))
        with setting.autocast():
            _, action, _ = model(
                states=batch.observation,
                actions=batch.action,
                returns_to_go=batch.return_to_go.unsqueeze(-1) / 1000,
                timesteps=batch.timestep,
                attention_mask=batch.valid.long(),
                return_dict=False,
            )
            value = (action - batch.action)[batch.valid].square().mean()
        _step(value, weights, optimiser)

    note = f"{parameters(model)}; fed by foretoken's sampler"
    yield Contestant(f"Hugging Face{setting.wrapped}", calls(update), note=note, counts=not setting.bf16)


def _step(loss: Tensor, weights: list[nn.Parameter], optimiser: torch.optim.Optimizer) -> None:
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(weights, CLIP)
    optimiser.step()


def parameters(module: nn.Module) -> str:
    """How many there are, for the notes."""
    return f"{sum(weight.numel() for weight in module.parameters()) / 1e6:.2f} M parameters"
