"""Recurrent Action Transformer with Memory: a Decision Transformer that reads a long episode in segments and remembers.

Step t is the tokens  a_(t-1)  R_t  s_t  of Decision Transformer; the action is read at s_t. Every K steps make a segment,

    [ memory,  R s a  R s a ... ,  memory ]  ->  the trailing memory, written, is the leading one of the next segment,

and a token sees its own segment so far. The memory retention valve decides what of the old memory survives: the old one is
the query of an attention over what was written. Episodes are trained on whole, gradients pass from segment to segment, and
the first segments of training are single ones. While acting each step is read once; the visible context grows to K steps,
then memory is written and it begins again, so a decision costs the same however long the episode.

Paper: Cherepanov, Staroverov, Yudin, Kovalev, Panov, "Recurrent Action Transformer with Memory", 2023, arXiv 2306.09459.
Memory tokens: Bulatov et al., "Recurrent Memory Transformer", NeurIPS 2022, arXiv 2207.06881, in `foretoken.nn.recurrent_memory`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from foretoken.core import Card
from foretoken.envs.recipes.t_maze_demonstrations import TMazeDemonstrations
from foretoken.evaluation.evaluate import Evaluation, evaluate
from foretoken.evaluation.statistics import seed_means
from foretoken.experiment import Claim, Experiment, Run, Stage, load
from foretoken.methods.conditioned_cloning import ConditionedCloningConfig
from foretoken.methods.conditions.return_to_go import ReturnToGoConfig
from foretoken.nn.embed.observations import ObservationConfig
from foretoken.nn.mixers.attention import AttentionConfig
from foretoken.nn.recurrent_memory import RecurrentMemoryConfig
from foretoken.nn.stack import BlockConfig, CrossAttentionConfig, StackConfig
from foretoken.training.loop import Training
from foretoken.training.optim import AdamW
from foretoken.training.sources import Offline

CARD = Card(
    key="rate",
    title="Recurrent Action Transformer with Memory",
    paper="Cherepanov et al., 2023, arXiv 2306.09459",
    claim="Memory tokens carry a clue through T-mazes four times as long as in training; without them the turn is a guess.",
    stream="a_(t-1)  R_t  s_t -> a_t",
    acting="streaming",
    tags=("acts", "offline", "memory", "returns", "continuous", "discrete"),
    deviations=(
        "The stream starts with the previous action, which is the paper's R s a stream shifted by one token; segments end alike.",
        "Positions within a segment are rotary instead of Transformer-XL's, and heads divide the width.",
        "An update is one step on whole episodes, with gradients through all segments; the released trainer steps after every "
        "segment and cuts gradients there (depth=0).",
        "The first memory tokens are drawn independently; the released code repeats one random vector.",
        "No hidden states are cached beside the memory, as on the paper's T-Maze; its other tasks cache up to 360.",
        "T-Maze: corridors of all lengths up to S K instead of K, 2 K ... S K, and no step may be wasted.",
    ),
)


def memory(
    segment: int, tokens: int, stack: StackConfig, *, valve_heads: int = 2, depth: int = -1
) -> RecurrentMemoryConfig:
    """Recurrent memory of so many tokens around a stack, over segments of so many steps; 0 `valve_heads`: without the valve."""
    return RecurrentMemoryConfig(
        backbone=stack,
        memory_tokens=tokens,
        segment=3 * segment,
        valve=CrossAttentionConfig(num_heads=valve_heads) if valve_heads else None,
        mutual=True,
        depth=depth,
    )


def layers(width: int, count: int, heads: int, *, window: int = 256) -> StackConfig:
    """The paper's layers on T-Maze: attention, and a norm after it, without a feed-forward; over up to `window` tokens."""
    attention = AttentionConfig(num_heads=heads, window=window, positions="rotary")
    block = BlockConfig(mixer=attention, feed_forward=None, order="post", dropout=0.2)
    return StackConfig(width=width, num_layers=count, pattern=(block,), final_norm=False, init_std=width**-0.5)


def runs(world: str, episodes: int = 2000) -> Offline:
    """Winning runs of a T-Maze."""
    return Offline(recipe=TMazeDemonstrations(world=f"foretoken/TMaze-{world}-v0", episodes=episodes), held_out=0.0)


def paper() -> Experiment:
    """T-Maze as published (official code, run_experiments/TMaze.sh): K=50, S=3; 200 epochs of 6000 runs, batch 128."""
    training = Training(
        updates=9_400,
        batch_size=128,
        optimiser=AdamW(lr=3e-4, weight_decay=0.01, warmup=1000, schedule="linear", final_lr=0.01),
        evaluate_every=1_000,
    )
    return Experiment(
        system=ConditionedCloningConfig(
            context=150,
            backbone=memory(50, 15, layers(64, 10, 4)),
            condition=ReturnToGoConfig(scale=1.0),
            observation=ObservationConfig(standardise=False),
            time=None,
            dropout=0.2,
            embedding_norm=False,
            anchor="episode",
            reading="stream",
            acting="mode",
        ),
        source=runs("Mixed-150", 6000),
        training=training,
        evaluation=Evaluation(environment="foretoken/TMaze-150-v0", episodes=100, targets=(1.0,), num_slots=100),
        before=(Stage(name="one-segment", training=training.replace(updates=1_000), source=runs("50")),),
    )


def cpu() -> Experiment:
    """A minute on one core: segments and memory as published, two layers of width 32, and normalised inputs, which learn faster."""
    run = paper()
    training = run.training.replace(
        updates=250,
        batch_size=32,
        optimiser=AdamW(lr=3e-3, weight_decay=0.01, warmup=50, schedule="cosine"),
        threads=1,
        evaluate_every=250,
        log_every=50,
    )
    first = training.replace(updates=200, optimiser=training.optimiser.replace(schedule="constant"))
    return run.replace(
        system=run.system.replace(
            backbone=memory(50, 15, layers(32, 2, 2)), observation=ObservationConfig(), embedding_norm=True
        ),
        source=runs("Mixed-150"),
        training=training,
        before=(Stage(name="one-segment", training=first, source=runs("30")),),
    )


def smoke() -> Experiment:
    """Seconds: everything runs, nothing is learned."""
    run = cpu()
    return run.replace(
        system=run.system.replace(context=30, backbone=memory(5, 2, layers(16, 1, 2))),
        source=runs("30", 100),
        training=run.training.replace(updates=20, batch_size=8, evaluate_every=20, log_every=10),
        evaluation=Evaluation(environment="foretoken/TMaze-30-v0", episodes=2, targets=(1.0,)),
        before=(),
    )


LENGTHS = (50, 150, 300, 600)
"""Steps of the corridors that the claim tests; it trains on up to 150, in segments of 50."""


def claim() -> Claim:
    """Acceptance experiment: T-Maze with scripted winning runs of 2 to 150 steps, read in segments of 50.

    Success in 100 episodes each of 50, 150, 300 and 600 steps, of which only the first fit in one segment. The baselines are
    the same network without memory tokens, and Decision Transformer with the same layers: over a window of 150 steps, which
    holds the longest corridor of the data whole, and of one segment, in batches of as many steps. The long window learns the
    turn and has nothing to go by beyond itself, which is what memory is worth. The short one learns it nowhere, since few of
    its windows show both the clue and the turn, and so is no evidence. Two ablations are told and not judged: no valve, and
    gradients cut after every segment as in the released code. All begin with 200 updates on corridors of 30 steps. Cheaper
    than published: width 32, 2 layers, 450 updates. Sharper than the page: that Decision Transformer solves what it can see.
    """
    base, stack = cpu(), layers(32, 2, 2)

    def arm(**changes: Any) -> Experiment:
        return base.replace(system=base.system.replace(**changes))

    dt = arm(context=50, backbone=stack, anchor="start", reading="window")
    return Claim(
        says="In the mean over three seeds RATE takes the right turn in >= 95 % of corridors of 150 steps, the longest in its data, "
        "and in >= 80 % of 600; without memory tokens, and with Decision Transformer over one segment, it is 50 % within 10 points at "
        "150, 300, 600; Decision Transformer over 150 steps takes it in >= 95 % of 150, and is at 50 % within 10 points at 300, 600.",
        arms={
            "rate": base,
            "no-memory": arm(backbone=memory(50, 0, stack, valve_heads=0)),
            "dt": dt.replace(training=base.training.replace(batch_size=96)),
            "dt-150": arm(backbone=layers(32, 2, 2, window=450), reading="window"),
            "no-valve": arm(backbone=memory(50, 15, stack, valve_heads=0)),
            "cut-gradients": arm(backbone=memory(50, 15, stack, depth=0)),
        },
        metric=figures,
        seeds=(0, 1, 2),
        holds=verdict,
        minutes=30,
    )


def figures(run: Run) -> Mapping[str, float]:
    """Of one run: the share of won episodes by length of the corridor."""
    method, played = load(run.path), run.experiment.evaluation
    assert not isinstance(run.spec, Mapping)
    found = {}
    for length in LENGTHS:
        there = played.replace(environment=f"foretoken/TMaze-{length}-v0")
        found[f"success at {length}"] = evaluate(method, run.spec, there, seed=run.experiment.seed).metrics()["return"]
    return found


def verdict(results: Mapping[str, Sequence[Mapping[str, float]]]) -> Mapping[str, bool]:
    """The claim's conditions on means over seeds."""
    mean = seed_means(results)
    return {
        "RATE: >= 95 % at the trained length, 150": mean["rate"]["success at 150"] >= 0.95,
        "RATE: >= 80 % at four times the trained length, 600": mean["rate"]["success at 600"] >= 0.80,
        "dt-150: >= 95 % within its window, at 150": mean["dt-150"]["success at 150"] >= 0.95,
        **{
            f"{arm}: 50 % within 10 points at {length}": abs(mean[arm][f"success at {length}"] - 0.5) <= 0.1
            for arm, beyond in (("no-memory", LENGTHS[1:]), ("dt", LENGTHS[1:]), ("dt-150", LENGTHS[2:]))
            for length in beyond
        },
    }
