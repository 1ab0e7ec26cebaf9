"""AGaLiTe: GTrXL with a gated linear recurrence in the place of attention: memory of one size, no window.

Step t is one token, e(s_t) + e(a_(t-1)) + e(r_(t-1)). Each layer keeps sums of its past keys and values, which gates let fade
feature by feature; r oscillating copies of both stand in for the matrix of their products, so that a state is a few vectors
however long the episode, and a step costs the same. Layer norms, ReLUs and GRU gates stand as in GTrXL.

Paper: Pramanik, Elelimy, Machado, White, "AGaLiTe: Approximate Gated Linear Transformers for Online Reinforcement Learning",
TMLR 2024, arXiv 2310.15719; official code subho406/agalite. The layer is `foretoken.nn.mixers.agalite`, the method
`foretoken.methods.recurrent_ppo`.
"""

import statistics
import time
from collections.abc import Mapping, Sequence

import torch

from foretoken.core import Card
from foretoken.core.batch import Step
from foretoken.core.state import nbytes
from foretoken.evaluation.evaluate import Evaluation
from foretoken.evaluation.statistics import seed_means
from foretoken.experiment import Claim, Experiment, Run
from foretoken.methods.recurrent_ppo import RecurrentPPO, RecurrentPPOConfig
from foretoken.nn.feed_forward import MLPConfig
from foretoken.nn.mixer import MixerConfig
from foretoken.nn.mixers.agalite import AGaLiTeConfig
from foretoken.nn.mixers.transformer_xl import TransformerXLConfig
from foretoken.nn.stack import BlockConfig, StackConfig, with_mixer
from foretoken.training.loop import Training
from foretoken.training.optim import AdamW
from foretoken.training.rollouts import Rollouts

CARD = Card(
    key="agalite",
    title="AGaLiTe",
    paper="Pramanik et al., TMLR 2024, arXiv 2310.15719",
    claim="It remembers further than GTrXL's window, with less than half of the memory and time per step of one that reaches as far.",
    stream="[s_t a_(t-1) r_(t-1)] -> a_t, V_t",
    acting="streaming",
    tags=("acts", "online-memory", "continuous", "discrete"),
    deviations=(
        "The clock of the oscillations restarts with memory, where the published one runs on through episodes.",
        "Frequencies lie in [0, pi], no two of them equal in effect; the published ones are symmetric.",
        "PPO on the T-maze too, where the paper takes A2C.",
        "The T-maze is the package's: corridors of mixed length, one clue, a reward only for the right turn.",
    ),
)


def gated(mixer: MixerConfig, width: int, num_layers: int) -> StackConfig:
    """GTrXL's blocks around any mixer: norm, mixer, ReLU, gate; norm, feed-forward of the same width, ReLU, gate."""
    block = BlockConfig(mixer=mixer, feed_forward=MLPConfig(expansion=1.0), gate="gru")
    return StackConfig(width=width, num_layers=num_layers, pattern=(block,), init_std=width**-0.5)


def paper() -> Experiment:
    """The published network and PPO settings (those of Mystery Path), on the longest mixed T-maze."""
    mixer = AGaLiTeConfig(num_heads=4, head_width=64, eta=4, rank=2, frequencies="half")
    return Experiment(
        system=RecurrentPPOConfig(segment=128, backbone=gated(mixer, 128, 4), entropy=3e-4),
        source=Rollouts(environment="foretoken/TMaze-Mixed-150-v0", num_slots=128, steps=128, epochs=3),
        training=Training(
            updates=220_000,
            batch_size=16,
            clip=5.0,
            optimiser=AdamW(lr=2.5e-4, eps=1e-5, weight_decay=0.0),
            evaluate_every=22_000,
        ),
        evaluation=Evaluation(episodes=100),
    )


def cpu() -> Experiment:
    """About two minutes on one core: T-mazes of 2 to 12 steps, two layers of width 32."""
    run = paper()
    mixer = AGaLiTeConfig(num_heads=2, eta=4, rank=2, frequencies="half")
    return run.replace(
        system=run.system.replace(segment=64, backbone=gated(mixer, 32, 2), entropy=0.01),
        source=Rollouts(environment="foretoken/TMaze-Mixed-12-v0", num_slots=16, steps=64, epochs=3),
        training=Training(
            updates=1_200,
            batch_size=4,
            clip=0.5,
            threads=1,
            log_every=60,
            optimiser=AdamW(lr=2e-3, eps=1e-5, weight_decay=0.0, schedule="linear", final_lr=0.1),
            evaluate_every=1_200,
        ),
        evaluation=Evaluation(episodes=200),
    )


def smoke() -> Experiment:
    """Seconds: everything runs, nothing is learned."""
    run = cpu()
    return run.replace(
        system=run.system.replace(segment=8, backbone=gated(AGaLiTeConfig(num_heads=2, frequencies="half"), 8, 2)),
        source=run.source.replace(num_slots=4, steps=16),
        training=run.training.replace(updates=20, batch_size=4, evaluate_every=20, log_every=10),
        evaluation=Evaluation(episodes=2),
    )


def claim() -> Claim:
    """Acceptance experiment: T-mazes of 2 to 12 steps, 100,000 steps of experience, three seeds, in the same gated blocks.

    Cheaper than its page: corridors are shorter and of mixed length, so that GTrXL's windows are too: two layers that each see 2
    steps back reach 4 of 11, and 64 steps the whole episode. Cost is that of the same network at the page's width
    of 64, for 128 environments at once: in smaller ones the calls of single operations outweigh arithmetic.
    """
    run = cpu()

    def attention(memory: int) -> Experiment:
        return run.replace(system=with_mixer(run.system, TransformerXLConfig(num_heads=2, memory=memory)))

    return Claim(
        says="On T-mazes of 2 to 12 steps AGaLiTe turns the right way in >= 90 % of 200 episodes in each of three seeds, and more often "
        "than GTrXL with a short window; its state takes <= 50 % of the bytes, a decision <= 60 % of the time of GTrXL with a window "
        "of 64.",
        arms={"agalite": run, "gtrxl-2": attention(2), "gtrxl-64": attention(64)},
        metric=figures,
        seeds=(0, 1, 2),
        holds=verdict,
        minutes=5,
    )


def figures(run: Run) -> Mapping[str, float]:
    """Of one run: the share of episodes won; at width 64, bytes of state per environment, milliseconds to decide for 128, and
    both as shares of GTrXL's with windows of 64, 128 and 256; times by turns, so that what else the machine does falls on all.
    """
    won = [bool(record.success) for record in run.evaluations()[-1].records]
    system = run.experiment.system
    assert isinstance(system, RecurrentPPOConfig)
    wide = system.replace(backbone=system.backbone.replace(width=64))
    others = {memory: with_mixer(wide, TransformerXLConfig(num_heads=2, memory=memory)) for memory in (64, 128, 256)}
    own, *found = costs([config.build(run.spec).eval() for config in (wide, *others.values())], rows=128)
    return {
        "success": sum(won) / len(won),
        "state bytes": own[0],
        "milliseconds": 1e3 * own[1],
        **{f"share of gtrxl-{memory}'s bytes": own[0] / each[0] for memory, each in zip(others, found, strict=True)},
        **{f"share of gtrxl-{memory}'s time": own[1] / each[1] for memory, each in zip(others, found, strict=True)},
    }


@torch.no_grad()
def costs(
    methods: Sequence[RecurrentPPO], rows: int, full: int = 256, decisions: int = 100
) -> list[tuple[float, float]]:
    """Of each method: bytes of state per row, and the median seconds of a decision.

    On one thread, by turns, after the `full` decisions that fill the memory.
    """
    spec = methods[0].spec
    seen, zeros = torch.zeros(rows, *spec.observation.shape), torch.zeros(rows)  # type: ignore[union-attr]
    on, taken = torch.ones(rows, dtype=torch.bool), torch.zeros(rows, dtype=torch.int64)
    step = Step(seen, taken, zeros, zeros, ~on, ~on, on, taken, torch.arange(rows))
    policies = [method.policy for method in methods]
    states = [policy.begin(rows, {}) for policy in policies]
    spent: list[list[float]] = [[] for _ in policies]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(full + decisions):
        for number, policy in enumerate(policies):
            began = time.process_time()
            states[number] = policy.act(step, states[number]).state
            spent[number].append(time.process_time() - began)
    torch.set_num_threads(threads)
    return [(nbytes(state) / rows, statistics.median(each[full:])) for state, each in zip(states, spent, strict=True)]


def verdict(results: Mapping[str, list[Mapping[str, float]]]) -> Mapping[str, bool]:
    """The claim's conditions over seeds."""
    mean = seed_means(results)
    linear, whole = mean["agalite"], mean["gtrxl-64"]
    return {
        "AGaLiTe >= 90 % in every seed": all(row["success"] >= 0.9 for row in results["agalite"]),
        "more often than GTrXL with a short window": linear["success"] > mean["gtrxl-2"]["success"],
        "state <= 50 % of GTrXL-64's": linear["state bytes"] <= 0.5 * whole["state bytes"],
        "decisions <= 60 % of GTrXL-64's time": linear["share of gtrxl-64's time"] <= 0.6,
    }
