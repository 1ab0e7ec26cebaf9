"""Settings that several systems share, of one line of published work or of one task: a system's presets say what is its own."""

from foretoken.core.config import Config
from foretoken.evaluation.evaluate import Evaluation
from foretoken.experiment import Experiment
from foretoken.methods.conditioned_cloning import ConditionedCloningConfig
from foretoken.methods.conditions.previous_reward import PreviousRewardConfig
from foretoken.nn.mixers.attention import AttentionConfig
from foretoken.nn.stack import uniform_stack
from foretoken.training.loop import Training
from foretoken.training.optim import AdamW
from foretoken.training.sources import Offline


def locomotion(system: Config) -> Experiment:
    """D4RL locomotion as Decision Transformer published it (arXiv 2106.01345), on hopper-medium-v2 imported with `foretoken import`."""
    return Experiment(
        system=system,
        source=Offline(store="stores/hopper-medium-v2", held_out=0.0),
        training=Training(
            updates=100_000,
            batch_size=64,
            optimiser=AdamW(lr=1e-4, weight_decay=1e-4, warmup=10_000),
            clip=0.25,
            evaluate_every=10_000,
        ),
        evaluation=Evaluation(episodes=100),
    )


def embedded(system: Config, *, batch_size: int = 128) -> Experiment:
    """The embedded Hopper data, a few minutes on two cores."""
    run = locomotion(system)
    return run.replace(
        source=Offline(store="hopper-mixed"),
        training=run.training.replace(
            updates=5_000,
            batch_size=batch_size,
            threads=1,  # beside a simulator, and on a busy machine, one thread is faster than two
            optimiser=AdamW(lr=2e-3, weight_decay=1e-4, warmup=500, schedule="cosine"),
            evaluate_every=2_500,
        ),
        evaluation=Evaluation(episodes=5),
    )


def smoke(run: Experiment, system: Config, *, batch_size: int = 8) -> Experiment:
    """Twenty updates of a small `system`, and one short episode."""
    return run.replace(
        system=system,
        training=run.training.replace(updates=20, batch_size=batch_size, evaluate_every=20, log_every=10),
        evaluation=Evaluation(episodes=1, max_steps=20),
    )


ATARI = AdamW(lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, decay="matrices", schedule="cosine", final_lr=0.1)
"""The optimiser of Decision Transformer on Atari, but for its warmup."""


def histories(source: Offline) -> Experiment:
    """Dark Room 9 x 9 as in corl-team/ad-eps (arXiv 2312.12275): windows of 80 steps of learning histories, 4 layers of width 512.

    Evaluated on held-out goals; the history goes on through the 100 episodes of a trial.
    """
    attention = AttentionConfig(num_heads=4, positions="rotary", dropout=0.5)
    return Experiment(
        system=ConditionedCloningConfig(
            context=84,  # four episodes of 20 steps and their final observations
            backbone=uniform_stack(attention, 512, 4, dropout=0.1, activation="gelu"),
            condition=PreviousRewardConfig(),
            time=None,
            dropout=0.3,
            anchor="full",
            across="history",
        ),
        source=source,
        training=Training(
            updates=300_000,
            batch_size=512,
            optimiser=AdamW(lr=3e-4, betas=(0.9, 0.99), weight_decay=0.0, warmup=30_000, schedule="cosine"),
            evaluate_every=30_000,
        ),
        evaluation=Evaluation(episodes=16, trial=100, tasks="held-out"),
    )


def small_histories(run: Experiment, source: Offline, *, updates: int, **system: object) -> Experiment:
    """`run` on Dark Room 7 x 7 in minutes: width 64, windows of four episodes, one token a step, trials of 20 episodes.

    Without dropout so small a network knows the trained goals only.
    """
    attention = AttentionConfig(num_heads=4, positions="rotary")
    stack = uniform_stack(attention, 64, 2, dropout=0.2, activation="gelu").replace(init_std=64**-0.5)
    return run.replace(
        system=run.system.replace(context=64, backbone=stack, layout="transition", **system),
        source=source,
        training=run.training.replace(
            updates=updates,
            batch_size=32,
            threads=1,
            optimiser=run.training.optimiser.replace(lr=2e-3, warmup=200),
            evaluate_every=updates // 2,
        ),
        evaluation=Evaluation(episodes=10, trial=20, tasks="held-out"),
    )


def smoke_histories(run: Experiment, source: Offline) -> Experiment:
    """Twenty updates of a small network, and two trials of two episodes."""
    backbone = uniform_stack(AttentionConfig(num_heads=2, positions="rotary"), 16, 2)
    return smoke(run.replace(source=source), run.system.replace(context=6, backbone=backbone)).replace(
        evaluation=Evaluation(episodes=2, trial=2, tasks="held-out", max_steps=5)
    )
