"""Decision Transformer: offline reinforcement learning as conditional sequence modelling.

Step t is the tokens  a_(t-1)  R_t  s_t : the previous action, the return still to come, the state. A causal transformer
reads the last K steps and predicts a_t at the state token, by supervised learning only. To act, one asks for a return and
counts it down by the rewards earned.

Paper: Chen, Lu, Rajeswaran, Lee, Grover, Laskin, Abbeel, Srinivas, Mordatch, "Decision Transformer: Reinforcement Learning
via Sequence Modeling", NeurIPS 2021, arXiv 2106.01345. The method is `foretoken.methods.conditioned_cloning`.
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
from foretoken.nn.embed.observations import ObservationConfig
from foretoken.nn.embed.time import EpisodeTimeConfig, WindowTimeConfig
from foretoken.nn.stack import gpt
from foretoken.training.optim import AdamW
from foretoken.training.sources import Offline

CARD = Card(
    key="dt",
    title="Decision Transformer",
    paper="Chen et al., NeurIPS 2021, arXiv 2106.01345",
    claim="Asked for different returns it earns them in order, beats cloning of mixed data, and equals cloning of its best tenth.",
    stream="a_(t-1)  R_t  s_t -> a_t",
    acting="window",
    tags=("acts", "offline", "returns", "continuous", "discrete"),
    deviations=(
        "The stream starts with the previous action, which is the paper's R s a stream shifted by one token; predictions are equal.",
        "The heads for next state and return, which carry no loss in the official code, are left out.",
        "Padding of actions is hidden from attention instead of marked by -10.",
        "On Atari, the position embedding is one per step of the window instead of one per token.",
        "On Atari, windows of episodes shorter than K are padded instead of reaching into the previous episode.",
    ),
)


def paper() -> Experiment:
    """D4RL locomotion as published (official code, gym/experiment.py), for hopper-medium-v2 imported with `foretoken import`.

    Targets of the paper: hopper 3600 and 1800, halfcheetah 12000 and 6000, walker2d 5000 and 2500; context 5 for reacher.
    """
    return presets.locomotion(
        ConditionedCloningConfig(
            context=20,
            backbone=gpt(128, 3, 1, dropout=0.1, activation="relu"),
            condition=ReturnToGoConfig(scale=1000.0),
            time=EpisodeTimeConfig(max_steps=1000),
        )
    )


def paper_atari() -> Experiment:
    """Atari as published (official code, atari/run_dt_atari.py), for stacked 84 x 84 frames; 5 epochs over 500k transitions."""
    run = paper()
    return run.replace(
        system=run.system.replace(
            context=30,
            backbone=gpt(128, 6, 8, dropout=0.1),
            condition=ReturnToGoConfig(scale=1.0),
            observation=ObservationConfig(),
            time=WindowTimeConfig(),
            embedding_norm=False,
            embedding_tanh=True,
            anchor="full",
        ),
        training=run.training.replace(
            updates=19_531,
            batch_size=128,
            optimiser=presets.ATARI.replace(warmup=3),  # 10,240 tokens of actions
            clip=1.0,
        ),
        evaluation=Evaluation(episodes=10),
    )


def cpu() -> Experiment:
    """A few minutes on two cores, on the embedded data or any other: narrower, a shorter context, and no dropout, which learns faster."""
    return presets.embedded(
        paper().system.replace(
            context=5,
            backbone=gpt(64, 3, 1, activation="relu"),
            dropout=0.0,
            condition=ReturnToGoConfig(),
            time=EpisodeTimeConfig(init_std=0.05),  # at 1, noise of the steps hides the return for thousands of updates
        )
    )


def smoke() -> Experiment:
    """Seconds: everything runs, nothing is learned."""
    run = cpu()
    return presets.smoke(run, run.system.replace(context=4, backbone=gpt(16, 1, 1, dropout=0.1, activation="relu")))


def claim() -> Claim:
    """Acceptance experiment: LunarLander driven by its own heuristic with a handicap per episode, 500 episodes.

    Five targets spread over the data's range, 20 episodes each, three seeds; behaviour cloning of everything and of the best
    tenth are the same code without the return token.
    """
    run = cpu()
    base = run.replace(
        system=run.system.replace(context=10, backbone=gpt(64, 3, 1, dropout=0.1, activation="relu"), dropout=0.1),
        source=Offline(store="lunar-lander-handicap", held_out=0.0),
        training=run.training.replace(
            updates=6_000,
            batch_size=64,
            optimiser=AdamW(lr=1e-3, weight_decay=1e-4, warmup=500, schedule="cosine"),
            evaluate_every=6_000,
        ),
        evaluation=Evaluation(episodes=20, targets=(280.0, 180.0, 80.0, -20.0, -120.0)),
    )
    cloning = base.replace(system=base.system.replace(condition=None), evaluation=Evaluation(episodes=100, targets=()))
    arms = {"dt": base, "bc": cloning, "bc-best-10%": cloning.replace(source=cloning.source.replace(best_fraction=0.1))}
    return Claim(
        says="Spearman of asked and achieved mean return >= 0.8 over five targets; the top target earns >= 1 standard deviation of the "
        "data over its mean, >= 40 more than BC, and no less than BC of the best tenth minus one standard error (three seeds).",
        arms=arms,
        metric=figures,
        seeds=(0, 1, 2),
        holds=verdict,
        minutes=25,
    )


def figures(run: Run) -> Mapping[str, float]:
    """Of one run: mean return at the top target (all episodes without targets), rank correlation, and what the data earned."""
    last = run.evaluations()[-1]
    by_target = {target: float(last.returns(target).mean()) for target in last.targets}
    asked = [target for target in by_target if target is not None]
    data = run.data_returns()
    rank = {"spearman": spearman(asked, [by_target[target] for target in asked])} if asked else {}
    top = by_target[max(asked)] if asked else float(np.mean(list(by_target.values())))
    targets = {f"return at {target:g}": by_target[target] for target in asked}
    return {"return": top, "data mean": float(data.mean()), "data sd": float(data.std()), **rank, **targets}


def verdict(results: Mapping[str, list[Mapping[str, float]]]) -> Mapping[str, bool]:
    """The claim's conditions over seeds."""
    earned = {arm: np.array([row["return"] for row in rows]) for arm, rows in results.items()}
    top, best = earned["dt"], earned["bc-best-10%"]
    data = results["dt"][0]
    error = standard_error(top, best)
    return {
        "controllable: Spearman >= 0.8 in the mean over seeds": float(
            np.mean([row["spearman"] for row in results["dt"]])
        )
        >= 0.8,
        "above the data's mean by >= 1 sd": float(top.mean()) >= data["data mean"] + data["data sd"],
        "beats BC by >= 40": float(top.mean()) >= float(earned["bc"].mean()) + 40,
        "within 1 standard error of BC on the best 10%, or above": float(top.mean()) >= float(best.mean()) - error,
    }
