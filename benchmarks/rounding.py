"""What rounding costs in returns. Decision Transformer of the paper's width, layers, context and dropout learns from the embedded
Hopper data, in float32 and with products in bfloat16, by equal seeds; every network is then played by the engines of
`foretoken evaluate`, from equal initial states, for five returns asked for.
"""

import tempfile
from pathlib import Path
from statistics import fmean

from benchmarks.made import Data
from benchmarks.report import Job, Sheet, judged
from benchmarks.rounds import Settings, tell
from foretoken.envs.traced import Engine
from foretoken.evaluation.evaluate import Evaluated, Evaluation, evaluate
from foretoken.evaluation.statistics import paired_difference
from foretoken.experiment import Run, load
from foretoken.experiment import run as run_experiment
from foretoken.systems.offline import decision_transformer

UPDATES, SEEDS, EPISODES, LEAST = 1_000, (0, 1, 2), 10, 0.01
FLOAT, BFLOAT = "float32, PyTorch", "bfloat16, PyTorch"
WAYS: dict[str, tuple[str, Engine]] = {
    FLOAT: ("32-true", "torch"),
    "float32, onnx": ("32-true", "onnx"),
    "float32, onnx-int8": ("32-true", "onnx-int8"),
    BFLOAT: ("bf16-mixed", "torch"),
}


def run(data: Data, settings: Settings, *, full: bool) -> Job:
    played: dict[str, list[Evaluated]] = {name: [] for name in WAYS}
    for precision in dict.fromkeys(precision for precision, _ in WAYS.values()):
        for seed in SEEDS:
            with tempfile.TemporaryDirectory(dir=data.folder) as folder:
                tell(f"  learning in {precision}, seed {seed}")
                learned = _learn(precision, seed, Path(folder))
                for name, (own, engine) in WAYS.items():
                    if own == precision:
                        played[name].append(_play(learned, engine, seed))
    return Job("Rounding", __doc__ or "", [_sheet(played)])


def _learn(precision: str, seed: int, folder: Path) -> Run:
    experiment, network = decision_transformer.cpu(), decision_transformer.paper().system
    system = experiment.system.replace(context=network.context, backbone=network.backbone, dropout=network.dropout)
    training = experiment.training.replace(
        updates=UPDATES, batch_size=64, evaluate_every=0, precision=precision, threads=0
    )
    return run_experiment(experiment.replace(system=system, training=training, seed=seed), folder, progress=False)


def _play(learned: Run, engine: Engine, seed: int) -> Evaluated:
    config = Evaluation(episodes=EPISODES, num_slots=64, engine=engine)
    assert not isinstance(learned.spec, dict)
    return evaluate(load(learned.path), learned.spec, config, seed=seed, data_returns=learned.data_returns())


def _sheet(played: dict[str, list[Evaluated]]) -> Sheet:
    targets = played[FLOAT][0].targets
    span = max(targets) - min(targets)
    rows, near = [], {}
    for name, found in played.items():
        learned = BFLOAT if name.startswith("bfloat16") else FLOAT
        gap = paired_difference(_totals(played[learned]), _totals(found), strata=_asked(found)).interval
        if name != learned:
            near[name] = gap.low <= 0 <= gap.high or max(abs(gap.low), abs(gap.high)) <= LEAST * span
        rows.append([
            name,
            *(f"{min(means):,.0f} to {max(means):,.0f}" for means in (_by_seed(found, target) for target in targets)),
            "" if name == learned else f"{gap.low / span:+.1%} to {gap.high / span:+.1%}",
        ])  # fmt: skip
    within = {
        BFLOAT: all(_within(*(_by_seed(played[way], target) for way in (FLOAT, BFLOAT)), span) for target in targets)
    }
    return Sheet(
        "Returns",
        ("learned in, played by", *(f"asked {target:,.0f}" for target in targets), "difference over the span"),
        rows,
        [
            judged(
                "that an engine's returns are PyTorch's: the 95 % interval of the difference, paired by episode, holds zero or "
                f"stays within {LEAST:.0%} of the span of the returns asked for",
                near,
            ),
            judged(
                "that learning in bfloat16 earns what learning in float32 does: for every return asked for, means over seeds "
                f"differ by no more than float32's own seeds, or by {LEAST:.0%} of the span",
                within,
            ),
            f"Lowest and highest of the means of {len(SEEDS)} seeds, {EPISODES} episodes each, after {UPDATES:,} updates on 64 "
            "windows of 20 steps.",
        ],
    )


def _by_seed(found: list[Evaluated], target: float | None) -> list[float]:
    return [float(one.returns(target).mean()) for one in found]


def _within(plain: list[float], other: list[float], span: float) -> bool:
    return abs(fmean(plain) - fmean(other)) <= max(max(plain) - min(plain), LEAST * span)


def _asked(found: list[Evaluated]) -> list[float | None]:
    return [record.target for one in found for record in one.records]


def _totals(found: list[Evaluated]) -> list[float]:
    return [record.total for one in found for record in one.records]
