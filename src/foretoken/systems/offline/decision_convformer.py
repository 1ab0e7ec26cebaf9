"""Decision ConvFormer: Decision Transformer with attention replaced by short causal convolutions.

Step t is the tokens  a_(t-1)  R_t  s_t  of Decision Transformer. In a Markov decision process neighbouring tokens say most, and
what is to be taken from them depends on what reads them: every kind of token has a filter of its own, which slides over the
tokens of all kinds, six of them being this step and the one before. Filters work on each feature by itself; features mix in
the MLPs only. Three layers see sixteen tokens, fewer than a window of 8 steps has: `reading="stream"`, which keeps five tokens
a layer, is then the same policy.

Paper: Kim, Lee, Kim, Sung, "Decision ConvFormer: Local Filtering in MetaFormer is Sufficient for Decision Making", ICLR 2024,
arXiv 2310.03022. The method is `foretoken.methods.conditioned_cloning`, the convolution `foretoken.nn.mixers.conv`.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np

from foretoken import presets
from foretoken.core import Card
from foretoken.core.method import Method, Source
from foretoken.evaluation.evaluate import Evaluation
from foretoken.evaluation.statistics import seed_means, standard_error
from foretoken.experiment import Claim, Experiment, Run, build
from foretoken.methods.conditioned_cloning import ConditionedCloningConfig
from foretoken.methods.conditions.return_to_go import ReturnToGoConfig
from foretoken.nn.embed.observations import ObservationConfig
from foretoken.nn.embed.time import EpisodeTimeConfig, WindowTimeConfig
from foretoken.nn.feed_forward import MLPConfig
from foretoken.nn.mixers.attention import AttentionConfig
from foretoken.nn.mixers.conv import ConvConfig
from foretoken.nn.stack import BlockConfig, StackConfig
from foretoken.training.loop import Training
from foretoken.training.optim import AdamW
from foretoken.training.sources import Offline
from foretoken.training.timing import update_seconds

CARD = Card(
    key="dc",
    title="Decision ConvFormer",
    paper="Kim et al., ICLR 2024, arXiv 2310.03022",
    claim="Convolutions over two steps earn what attention earns, with fewer parameters, and train faster for their shorter context.",
    stream="a_(t-1)  R_t  s_t -> a_t",
    acting="window",
    tags=("acts", "offline", "returns", "continuous", "discrete"),
    deviations=(
        "The stream starts with the previous action, which is the paper's R s a stream shifted by one token; predictions are equal.",
        "Padded steps are skipped, which is zero input to the filters; the official code convolves over their embeddings.",
        "The official option to leave actions out of the stream is not offered.",
        "On Atari, the position embedding is one per step of the window instead of one per token.",
        "On Atari, windows of episodes shorter than K are padded instead of reaching into the previous episode.",
        "On Atari, the learning rate falls once over the whole run; the official one is lowest after 6 of 10 epochs, then rises.",
    ),
)


def metaformer(width: int, num_layers: int, *mixers: ConvConfig | AttentionConfig, dropout: float = 0.1) -> StackConfig:
    """Pre-norm blocks that take `mixers` in turn; dropout follows linear layers only, so a bare convolution has none."""

    def block(mixer: ConvConfig | AttentionConfig) -> BlockConfig:
        linear = isinstance(mixer, AttentionConfig) or mixer.project
        mlp = MLPConfig(activation="gelu", dropout=dropout)
        return BlockConfig(mixer=mixer, feed_forward=mlp, dropout=dropout if linear else 0.0)

    return StackConfig(width=width, num_layers=num_layers, pattern=tuple(block(mixer) for mixer in mixers))


def paper() -> Experiment:
    """D4RL locomotion as published (official code, gym/readme-gym.md), for hopper-medium-v2 imported with `foretoken import`.

    Targets of the official code are 1, 2, 10 and 20 times 3600 for hopper, 12000 for halfcheetah and 5000 for walker2d.
    """
    run = presets.locomotion(
        ConditionedCloningConfig(
            context=8,
            backbone=metaformer(256, 3, ConvConfig()),
            condition=ReturnToGoConfig(scale=1000.0),
            time=EpisodeTimeConfig(max_steps=1000),
        )
    )
    return run.replace(evaluation=run.evaluation.replace(targets=(3600.0, 7200.0, 36000.0, 72000.0)))


def paper_atari() -> Experiment:
    """Atari as published (official code, atari/run.sh), for stacked 84 x 84 frames; 10 epochs over 500k transitions.

    For Breakout, Asterix, Gopher and Pong (there with batches of 512). Qbert, Seaquest, Frostbite and Assault take
    `ConvConfig(project=True)`.
    """
    run = paper()
    return run.replace(
        system=run.system.replace(
            backbone=metaformer(128, 6, ConvConfig()),
            condition=ReturnToGoConfig(scale=1.0),
            observation=ObservationConfig(),
            time=WindowTimeConfig(),
            embedding_norm=False,
            embedding_tanh=True,
            anchor="full",
        ),
        training=run.training.replace(
            updates=39_062,
            batch_size=128,
            optimiser=presets.ATARI.replace(warmup=10),
            clip=1.0,
        ),
        evaluation=Evaluation(episodes=10),
    )


def cpu() -> Experiment:
    """A few minutes on two cores, on the embedded data or any other: narrower, and no dropout, which learns faster."""
    return presets.embedded(
        paper().system.replace(
            backbone=metaformer(64, 3, ConvConfig(), dropout=0.0),
            dropout=0.0,
            condition=ReturnToGoConfig(),
            time=EpisodeTimeConfig(init_std=0.05),  # at 1, noise of the steps hides the return for thousands of updates
        )
    )


def hybrid() -> Experiment:
    """`cpu` with attention in the last layer, for tasks that need the farther past (official code, "conv-attn")."""
    run = cpu()
    backbone = metaformer(64, 3, ConvConfig(), ConvConfig(), AttentionConfig(), dropout=0.0)
    return run.replace(system=run.system.replace(backbone=backbone))


def smoke() -> Experiment:
    """Seconds: everything runs, nothing is learned."""
    run = cpu()
    return presets.smoke(run, run.system.replace(context=4, backbone=metaformer(16, 2, ConvConfig(), dropout=0.0)))


BEYOND = 940.0  # three times the best return of the claim's data


def claim() -> Claim:
    """Acceptance experiment: LunarLander driven by its own heuristic with a handicap per episode, 500 episodes.

    Decision Transformer with its own 20 steps and with the 8 of Decision ConvFormer, Decision ConvFormer, and the same with one
    filter for all tokens; one width, depth, activation, data, batch and number of updates. Five targets spread over the data's
    range and one three times above its best return, 20 episodes each, three seeds. Cheaper than the published setting: width
    64, 3,000 updates. Parameters are judged at equal width, speed at each one's published context; that at 8 steps is told.
    """
    run = cpu()
    base = run.replace(
        source=Offline(store="lunar-lander-handicap", held_out=0.0),
        training=run.training.replace(
            updates=3_000,
            batch_size=64,
            optimiser=AdamW(lr=1e-3, weight_decay=1e-4, warmup=500, schedule="cosine"),
            evaluate_every=3_000,
        ),
        evaluation=Evaluation(episodes=20, targets=(280.0, 180.0, 80.0, -20.0, -120.0, BEYOND)),
    )

    def arm(mixer: ConvConfig | AttentionConfig, context: int) -> Experiment:
        system = base.system.replace(context=context, backbone=metaformer(64, 3, mixer), dropout=0.1)
        return base.replace(system=system)

    attention = AttentionConfig(dropout=0.1)
    return Claim(
        says="At its best target in the data DC earns no less than the better of DT with 20 and with 8 steps minus one standard error; "
        "its mixers have >= 20 % fewer parameters; it trains >= 1.5 times as fast as DT with 20 steps; asked for three times the "
        "best return it loses no more than DT does; one shared filter does not earn more by over one standard error (three seeds).",
        arms={
            "dt-20": arm(attention, 20),
            "dt-8": arm(attention, 8),
            "dc": arm(ConvConfig(), 8),
            "dc-shared": arm(ConvConfig(groups=1), 8),
        },
        metric=figures,
        seeds=(0, 1, 2),
        holds=verdict,
        minutes=35,
    )


def figures(run: Run) -> Mapping[str, float]:
    """Of one run: mean return at each target, parameters of all mixers, and how fast it trained.

    "updates per second" is the median of what the run itself wrote; "times as fast as dt-20" (and dt-8) compares whole updates
    of new networks on one thread, taken by turns, so that what else the machine does falls on both.
    """
    last, arms = run.evaluations()[-1], claim().arms
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    own, *others = update_seconds([new(arm) for arm in (run.experiment, arms["dt-20"], arms["dt-8"])])
    mixers = [block.mixer for block in run.experiment.system.build(run.spec).backbone.layers()]
    returns = {f"return at {target:g}": last.returns(target) for target in last.targets if target is not None}
    return {
        **{name: float(values.mean()) for name, values in returns.items()},
        "mixer parameters": float(sum(part.numel() for mixer in mixers for part in mixer.parameters())),
        "updates per second": float(np.median([line["time/updates_per_second"] for line in lines])),
        **{f"times as fast as {arm}": other / own for arm, other in zip(("dt-20", "dt-8"), others, strict=True)},
    }


def new(run: Experiment) -> tuple[Method, Source, Training]:
    """Its network as at the beginning, and what it is trained on."""
    source = run.source.build(batch_size=run.training.batch_size, seed=run.seed)
    return build(run, source), source, run.training


def verdict(results: Mapping[str, list[Mapping[str, float]]]) -> Mapping[str, bool]:
    """The claim's conditions over seeds; DT is the arm of the two that earns more."""
    best, mean = {arm: best_returns(rows) for arm, rows in results.items()}, seed_means(results)
    earned = {arm: float(returns.mean()) for arm, returns in best.items()}
    dt = max(("dt-20", "dt-8"), key=earned.__getitem__)
    drop = {arm: earned[arm] - mean[arm][f"return at {BEYOND:g}"] for arm in ("dc", dt)}
    return {
        "earns no less than DT minus 1 standard error": earned["dc"]
        >= earned[dt] - standard_error(best["dc"], best[dt]),
        ">= 20 % fewer parameters in the mixers": mean["dc"]["mixer parameters"] <= 0.8 * mean[dt]["mixer parameters"],
        ">= 1.5 times as fast in training as DT with 20 steps": mean["dc"]["times as fast as dt-20"] >= 1.5,
        "asked for 3 x the best return, drops no more than DT": drop["dc"] <= drop[dt],
        "one shared filter does not earn more by > 1 standard error": earned["dc-shared"]
        <= earned["dc"] + standard_error(best["dc"], best["dc-shared"]),
    }


def best_returns(rows: Sequence[Mapping[str, float]]) -> np.ndarray:
    """The returns by seed at the target in the data's range whose mean over seeds is highest."""
    names = [name for name in rows[0] if name.startswith("return at ") and name != f"return at {BEYOND:g}"]
    return max((np.array([row[name] for row in rows]) for name in names), key=lambda returns: float(returns.mean()))
