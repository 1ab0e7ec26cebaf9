"""TrXL-PPO: an episode's own past as memory, read by a small Transformer-XL, beside a GRU in the same trainer.

Step t is one token, the observation's encoding. Each block's query is the present step, its keys and values are that block's
inputs at the steps before, as they were when acted: the window slides over the episode and is empty where it began. Training
draws short segments from all over the rollout, each with the memory that was current at its start.

Paper: Pleines, Pallasch, Zimmer, Preuss, "Memory Gym: Towards Endless Tasks to Benchmark Memory Capabilities of Agents", JMLR
2025, arXiv 2309.17207; official code MarcoMeter/episodic-transformer-memory-ppo. The method is `foretoken.methods.recurrent_ppo`.
"""

from collections.abc import Mapping

import numpy as np

from foretoken.core import Card
from foretoken.evaluation.evaluate import Evaluation
from foretoken.evaluation.statistics import seed_means
from foretoken.experiment import Claim, Experiment, Run
from foretoken.methods.recurrent_ppo import RecurrentPPOConfig
from foretoken.nn.feed_forward import MLPConfig
from foretoken.nn.mixer import MixerConfig
from foretoken.nn.mixers.conv import ConvConfig
from foretoken.nn.mixers.gru import GRUConfig
from foretoken.nn.mixers.transformer_xl import TransformerXLConfig
from foretoken.nn.stack import BlockConfig, StackConfig, with_mixer
from foretoken.training.loop import Training
from foretoken.training.optim import AdamW
from foretoken.training.rollouts import Rollouts

CARD = Card(
    key="trxl-ppo",
    title="TrXL-PPO (Memory Gym's baseline)",
    paper="Pleines et al., JMLR 2025, arXiv 2309.17207",
    claim="A Transformer-XL over an episode solves a task whose goals are shown for two steps, as a GRU in the same trainer does.",
    stream="s_t -> a_t, V_t",
    acting="streaming",
    tags=("acts", "online-memory", "continuous", "discrete"),
    deviations=(
        "A minibatch holds short segments instead of single steps; gradients pass from step to step inside them.",
        "The present step is among its own keys and values, so that nothing attends to an empty memory.",
        "Distances count from the query and enter the scores, instead of being added to the memories.",
        "A feed-forward has two layers, one in the paper; advantages are normalised over the rollout.",
        "Truncated episodes are continued by the value of their final observation; the released code counts them as ended.",
        "No observation is reconstructed, as it is in the newest version of the released code.",
        "On the small task gates start nearly closed (a bias of 2), in the released code half open (0).",
        "On the small task memory keeps what a block's norm made of its input when acting; the released code norms it when it is read.",
    ),
)


def paper() -> Experiment:
    """Mortar Mayhem's network (three blocks of width 384, window 118) and schedule.

    Needs `memory-gym`, see docs/memory-tasks.md.
    """
    block = BlockConfig(
        mixer=TransformerXLConfig(num_heads=4, memory=118), feed_forward=MLPConfig(expansion=1.0), order="post"
    )
    return Experiment(
        system=RecurrentPPOConfig(
            segment=16,
            backbone=StackConfig(width=384, num_layers=3, pattern=(block,)),
            previous_action=False,
            previous_reward=False,
            hidden=384,
            discount=0.995,
            clip=0.1,
            value_clip=0.1,
            entropy=1e-4,
            final_entropy=1e-6,
            entropy_updates=72_000,
        ),
        source=Rollouts(environment="MortarMayhem-Grid-v0", num_slots=32, steps=512, epochs=3),
        training=Training(
            updates=72_000,
            batch_size=128,
            clip=0.25,
            optimiser=AdamW(lr=2.5e-4, weight_decay=0.0, schedule="linear", final_lr=0.04),
            evaluate_every=7_200,
        ),
        evaluation=Evaluation(episodes=100),
    )


def cpu() -> Experiment:
    """Less than a minute on one core: the released code's small task, and its settings for it with half the width."""
    run = paper()
    block = BlockConfig(
        mixer=TransformerXLConfig(num_heads=1, memory=32), feed_forward=MLPConfig(expansion=1.0), gate="gru"
    )
    return run.replace(
        system=run.system.replace(
            backbone=StackConfig(width=32, num_layers=2, pattern=(block,), init_std=32**-0.5),
            hidden=32,
            discount=0.99,
            clip=0.2,
            value_clip=0.2,
            entropy=1e-3,
            final_entropy=1e-4,
            entropy_updates=480,
        ),
        source=Rollouts(environment="foretoken/PocMemory-v0", num_slots=16, steps=64, epochs=4),
        training=Training(
            updates=480,
            batch_size=16,
            clip=0.25,
            threads=1,
            log_every=24,
            optimiser=AdamW(lr=1e-3, eps=1e-5, weight_decay=0.0, schedule="linear", final_lr=0.1),
            evaluate_every=480,
        ),
        evaluation=Evaluation(episodes=200),
    )


def smoke() -> Experiment:
    """Seconds: everything runs, nothing is learned."""
    run = cpu()
    backbone = StackConfig(
        width=8, num_layers=2, pattern=(BlockConfig(mixer=TransformerXLConfig(memory=4), gate="gru"),)
    )
    return run.replace(
        system=run.system.replace(segment=8, backbone=backbone),
        source=run.source.replace(num_slots=4, steps=16),
        training=run.training.replace(updates=20, batch_size=4, evaluate_every=20, log_every=10),
        evaluation=Evaluation(episodes=2),
    )


def claim() -> Claim:
    """Acceptance experiment: the released code's small task, 30 rollouts of 16 x 64 steps, 200 episodes of evaluation, three seeds.

    Cheaper than its page, which gives 200 rollouts of 16 x 128 steps to five seeds and a width of 64. The GRU takes the attention's
    place in the same blocks; without memory a scale per feature does.
    """
    run = cpu()

    def arm(mixer: MixerConfig) -> Experiment:
        return run.replace(system=with_mixer(run.system, mixer))

    return Claim(
        says="With both the Transformer-XL and the GRU >= 95 % of 200 episodes end at the good goal in each of three seeds, without "
        "memory <= 60 % do.",
        arms={"trxl": run, "gru": arm(GRUConfig()), "memoryless": arm(ConvConfig(window=1, groups=1))},
        metric=figures,
        seeds=(0, 1, 2),
        holds=verdict,
        minutes=2,
    )


def figures(run: Run) -> Mapping[str, float]:
    """Of one run: the share of episodes that end at the good goal, and the mean return."""
    records = run.evaluations()[-1].records
    return {
        "success": float(np.mean([bool(record.success) for record in records])),
        "return": float(np.mean([record.total for record in records])),
    }


def verdict(results: Mapping[str, list[Mapping[str, float]]]) -> Mapping[str, bool]:
    """The claim's conditions over seeds."""
    return {
        "Transformer-XL >= 95 % in every seed": all(row["success"] >= 0.95 for row in results["trxl"]),
        "GRU >= 95 % in every seed": all(row["success"] >= 0.95 for row in results["gru"]),
        "without memory <= 60 %": seed_means(results)["memoryless"]["success"] <= 0.6,
    }
