"""Streaming Decision Transformer: each step is read once, and the network's state is carried to the next.

Step t is the tokens  a_(t-1)  R_t  s_t  of Decision Transformer; the action is read at s_t. Decision Transformer re-reads its
last K steps at every decision. This one keeps keys and values (attention), or a recurrent state, so that a decision costs the
same however long the episode. The two are different policies once the window has rolled: with L layers, kept keys and values
still hold what they saw of steps that left the window, so the field of view grows to L windows. Each acts as it was trained:
here by windows much longer than the band of attention, in which every token sees as far back as it will while acting.

Base: Chen et al., "Decision Transformer", NeurIPS 2021, arXiv 2106.01345. Kept keys and values under a band are those of
Transformer-XL (Dai et al., ACL 2019, arXiv 1901.02860), positions are rotary (Su et al. 2021, arXiv 2104.09864), the recurrent
preset is S5 (Smith et al., ICLR 2023, arXiv 2208.04933). The method is `foretoken.methods.conditioned_cloning`.
"""

from collections.abc import Mapping

import numpy as np

from foretoken import presets
from foretoken.core import Card
from foretoken.evaluation.evaluate import Evaluation
from foretoken.evaluation.statistics import spearman, standard_error
from foretoken.experiment import Claim, Experiment, Run
from foretoken.methods.conditioned_cloning import ConditionedCloningConfig
from foretoken.methods.conditions.return_to_go import ReturnToGoConfig
from foretoken.nn.embed.time import EpisodeTimeConfig
from foretoken.nn.mixers.attention import AttentionConfig
from foretoken.nn.mixers.s5 import S5Config
from foretoken.nn.stack import uniform_stack

CARD = Card(
    key="dt-stream",
    title="Streaming Decision Transformer",
    paper="after Chen et al., NeurIPS 2021, arXiv 2106.01345, and Dai et al., ACL 2019, arXiv 1901.02860",
    claim="Carrying keys and values, or a recurrent state, earns what re-reading the window earns, at a fraction of the cost.",
    stream="a_(t-1)  R_t  s_t -> a_t",
    acting="streaming",
    tags=("acts", "offline", "returns", "continuous", "discrete"),
    deviations=(
        "Attention sees a band of K steps and is trained on longer windows; Decision Transformer sees the window it is given.",
        "Rotary positions tell how far back a token is, beside the embedding of the episode's step.",
        "All deviations of Decision Transformer.",
    ),
)


def banded(steps: int, heads: int, *, dropout: float = 0.1) -> AttentionConfig:
    """Attention over the last `steps` steps of three tokens, kept while streaming; a step's tokens are written at once."""
    return AttentionConfig(num_heads=heads, window=3 * steps, slack=2, positions="rotary", dropout=dropout)


def paper() -> Experiment:
    """Decision Transformer's published setting with a band of its 20 steps, trained on windows of 60; for hopper-medium-v2."""
    return presets.locomotion(
        ConditionedCloningConfig(
            context=60,
            backbone=uniform_stack(banded(20, 1), 128, 3, dropout=0.1),
            condition=ReturnToGoConfig(scale=1000.0),
            time=EpisodeTimeConfig(max_steps=1000),
            reading="stream",
        )
    )


def cpu() -> Experiment:
    """A few minutes on two cores, on the embedded data: a band of 5 steps, windows of 40, as many steps a batch as `dt cpu`."""
    system = paper().system.replace(
        context=40,
        backbone=uniform_stack(banded(5, 1, dropout=0.0), 64, 3, dropout=0.0),
        dropout=0.0,
        condition=ReturnToGoConfig(),
        time=EpisodeTimeConfig(init_std=0.05),
    )
    return presets.embedded(system, batch_size=16)


def recurrent() -> Experiment:
    """`cpu` with a recurrent state in place of keys and values: S5 in every layer, the cheapest here to train and to step."""
    run = cpu()
    return run.replace(system=run.system.replace(backbone=uniform_stack(S5Config(), 64, 3, dropout=0.0)))


def smoke() -> Experiment:
    """Seconds: everything runs, nothing is learned."""
    run = cpu()
    return presets.smoke(
        run,
        run.system.replace(context=6, backbone=uniform_stack(banded(2, 1, dropout=0.0), 16, 2, dropout=0.0)),
        batch_size=4,
    )


def claim() -> Claim:
    """Acceptance experiment on the embedded Hopper data: window, kept keys and values, and recurrent state, same data and budget.

    Every arm sees 640 steps an update for 5,000 updates. Four targets spread over the data's range, 10 episodes each, three
    seeds. The window arm is Decision Transformer as its `cpu` preset sets it: 5 steps, no positions but the episode's step.
    It did not hold: two of three seeds of the cache earn what the window earns, one does not at the top target, and the
    recurrent state earns less at the upper two. An update of the streamed arms holds 16 long windows, that of the window arm
    128 short ones, so fewer places of the data at once. Tried after the claim, and not part of it: windows of 10 steps in
    batches of 64 earned 3228 and 3173 at the top target for the cache's seeds 0 and 1 (1765 and 3222 before).
    """
    run = cpu()
    base = run.replace(
        source=run.source.replace(held_out=0.0),
        training=run.training.replace(evaluate_every=5_000),
        evaluation=Evaluation(episodes=10, targets=(3200.0, 2400.0, 1600.0, 800.0)),
    )
    attention = AttentionConfig(num_heads=1)
    window = base.system.replace(context=5, backbone=uniform_stack(attention, 64, 3, dropout=0.0), reading="window")
    arms = {
        "window": base.replace(system=window, training=base.training.replace(batch_size=128)),
        "cache": base,
        "recurrent": base.replace(system=recurrent().system),
    }
    return Claim(
        says="The cache and the recurrent state each earn at the top target at least 95 % of what the window earns, or no less than "
        "it minus one standard error, and follow four targets with Spearman >= 0.8 in the mean over three seeds.",
        arms=arms,
        metric=figures,
        seeds=(0, 1, 2),
        holds=verdict,
        minutes=25,
    )


def figures(run: Run) -> Mapping[str, float]:
    """Of one run: mean return at each target, the mean distance from what was asked, and the rank correlation."""
    last = run.evaluations()[-1]
    earned = {target: float(last.returns(target).mean()) for target in last.targets if target is not None}
    miss = float(np.mean([abs(value - target) for target, value in earned.items()]))
    by_target = {f"return at {target:g}": value for target, value in earned.items()}
    return {
        "return": earned[max(earned)],
        "miss": miss,
        "spearman": spearman(list(earned), list(earned.values())),
        **by_target,
    }


def verdict(results: Mapping[str, list[Mapping[str, float]]]) -> Mapping[str, bool]:
    """The claim's conditions over seeds."""
    earned = {arm: np.array([row["return"] for row in rows]) for arm, rows in results.items()}
    window, conditions = earned["window"], {}
    for arm in ("cache", "recurrent"):
        error = standard_error(window, earned[arm])
        least = min(0.95 * float(window.mean()), float(window.mean()) - error)
        conditions[f"{arm}: earns what the window earns"] = float(earned[arm].mean()) >= least
        rank = float(np.mean([row["spearman"] for row in results[arm]]))
        conditions[f"{arm}: Spearman >= 0.8 in the mean over seeds"] = round(rank, 9) >= 0.8
    return conditions
