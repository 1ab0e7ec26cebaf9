"""Autotuned Decision Transformer: the prompt is learned, and the transformer favours what was better than expected.

Decision Transformer seen as two levels: a high level proposes a prompt, a low level acts on it. Step t is the tokens
a_(t-1)  [c_t s_t], prompt and state in one token. Two prompts: V-ADT shows the value of implicit Q-learning, Q(s_t, a_t) of the
data's action in training and V(s_t), computed anew at each step, when acting. G-ADT shows a sub-goal: the state some steps ahead
in the same trajectory in training, and when acting the present state plus the difference that the high actor of HIQL proposes
on the way to the goal. Either way the squared error of each action is weighted by the exponential of its advantage.

Paper: Ma, Xiao, Liang, Hao, "Rethinking Decision Transformer via Hierarchical Reinforcement Learning", ICML 2024,
arXiv 2311.00267. The method is
`foretoken.methods.autotuned_cloning`; HIQL is Park et al., NeurIPS 2023, arXiv 2307.11949.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from foretoken.core import Card
from foretoken.evaluation.evaluate import Evaluation
from foretoken.evaluation.statistics import seed_means
from foretoken.experiment import Claim, Experiment, Run, Stage
from foretoken.methods.autotuned_cloning import AutotunedCloningConfig, GoalPromptConfig, ValuePromptConfig
from foretoken.methods.conditioned_cloning import ConditionedCloningConfig
from foretoken.methods.conditions.return_to_go import ReturnToGoConfig
from foretoken.methods.hierarchical_implicit_q import HierarchicalImplicitQConfig
from foretoken.methods.implicit_q import ImplicitQConfig
from foretoken.nn.embed.observations import ObservationConfig
from foretoken.nn.embed.time import EpisodeTimeConfig
from foretoken.nn.stack import gpt
from foretoken.training.loop import Training
from foretoken.training.optim import AdamW
from foretoken.training.sources import Offline

CARD = Card(
    key="adt",
    title="Autotuned Decision Transformer",
    paper="Ma et al., ICML 2024, arXiv 2311.00267",
    claim="Prompted by learned values or sub-goals and weighted by advantages, the transformer stitches what Decision Transformer cannot.",
    stream="a_(t-1)  [c_t s_t] -> a_t",
    acting="window",
    tags=("acts", "offline", "critic", "continuous", "discrete"),
    deviations=(
        "The stream starts with the previous action, which is the paper's [c s] a stream shifted by one token; predictions are equal.",
        "Weighted errors are averaged over the steps that exist; the official code counts padding as zeros.",
        "The advantage is that of the critics' own values; the official code scales it together with the prompt.",
        "HIQL's low actor, which the transformer replaces, is left out; its high actor says a mean only, by squared error.",
        "HIQL's networks are of one size, and goals of the own trajectory are sought a limited number of steps ahead.",
        "G-ADT's goal is given with the episode, or learned: the mean state in which the data's highest reward was earned.",
    ),
)


def transformer(width: int, layers: int, *, dropout: float = 0.1, **changes: Any) -> ConditionedCloningConfig:
    """Decision Transformer with one head, and its prompt in the state's token."""
    cloning = ConditionedCloningConfig(
        backbone=gpt(width, layers, 1, dropout=dropout), condition=None, layout="prompted", dropout=dropout
    )
    return cloning.replace(**changes)


def critics(updates: int, batch_size: int, lr: float = 3e-4, **training: Any) -> tuple[Stage]:
    """The stage before: Adam without decay or clipping."""
    adam = AdamW(lr=lr, weight_decay=0.0)
    settings = Training(updates=updates, batch_size=batch_size, optimiser=adam, clip=0.0, **training)
    return (Stage(name="critic", training=settings),)


def paper() -> Experiment:
    """V-ADT on D4RL locomotion (official code, configs/dt and configs/iql), for hopper-medium-v2 imported with `foretoken import`."""
    return Experiment(
        system=AutotunedCloningConfig(
            cloning=transformer(128, 3), prompt=ValuePromptConfig(critic=ImplicitQConfig(tau=0.001)), beta=3.0
        ),
        source=Offline(store="stores/hopper-medium-v2", held_out=0.0),
        before=critics(1_000_000, 256),
        training=Training(
            updates=100_000,
            batch_size=4096,
            optimiser=AdamW(lr=8e-4, weight_decay=1e-4, warmup=10_000),
            clip=0.25,
            evaluate_every=10_000,
        ),
        evaluation=Evaluation(episodes=100),
    )


def paper_antmaze() -> Experiment:
    """V-ADT on AntMaze (official code): rewards count steps, a higher expectile and temperature."""
    run = paper()
    critic = ImplicitQConfig(expectile=0.9, reward_shift=-1.0)
    return run.replace(
        system=AutotunedCloningConfig(cloning=transformer(128, 3), prompt=ValuePromptConfig(critic=critic), beta=10.0),
        source=Offline(store="stores/antmaze-medium-play-v2", held_out=0.0),
        training=run.training.replace(
            updates=200_000, batch_size=64, optimiser=AdamW(lr=1e-4, weight_decay=1e-4, warmup=10_000)
        ),
    )


def paper_goals() -> Experiment:
    """G-ADT on AntMaze (official code, configs/hiql): states as they are.

    Its terminals end no trajectory: the file is imported with --ends timeouts,jumps.
    """
    cloning = transformer(128, 3, observation=ObservationConfig(standardise=False))
    critic = HierarchicalImplicitQConfig(width=1024, reach=1000)
    return paper_antmaze().replace(
        system=AutotunedCloningConfig(cloning=cloning, prompt=GoalPromptConfig(critic=critic), beta=1.0),
        before=critics(1_000_000, 1024),
    )


VALUES = ImplicitQConfig(width=128, expectile=0.9, tau=0.01, reward_shift=-1.0)
GOALS = HierarchicalImplicitQConfig(width=128, num_layers=2, way_steps=15, reach=50, tau=0.01, standardise=True)
"""The critics of `cpu` and `cpu_goals`."""


def narrow(prompt: ValuePromptConfig | GoalPromptConfig, beta: float, context: int = 10) -> AutotunedCloningConfig:
    """The systems of `cpu` and the claim: without dropout, which learns faster."""
    time = EpisodeTimeConfig(init_std=0.05)
    cloning = transformer(64, 2, dropout=0.0, context=context, time=time)
    return AutotunedCloningConfig(cloning=cloning, prompt=prompt, beta=beta)


def cpu() -> Experiment:
    """Minutes on two cores: V-ADT on pieces of the way through a maze."""
    run = paper_antmaze()
    return run.replace(
        system=narrow(ValuePromptConfig(critic=VALUES, scale=0.01), beta=10.0),
        source=Offline(store="maze-segments", held_out=0.0),
        before=critics(10_000, 256, lr=1e-3, threads=1, checkpoint_every=0),
        training=run.training.replace(
            updates=3_000,
            threads=1,
            optimiser=AdamW(lr=1e-3, weight_decay=1e-4, warmup=300, schedule="cosine"),
            evaluate_every=3_000,
        ),
        evaluation=Evaluation(episodes=50),
    )


def cpu_goals() -> Experiment:
    """`cpu` with sub-goals."""
    return cpu().replace(system=narrow(GoalPromptConfig(critic=GOALS), beta=1.0))


def smoke() -> Experiment:
    """Seconds: everything runs, nothing is learned."""
    run, few = cpu(), {"updates": 20, "batch_size": 8, "log_every": 10}
    return run.replace(
        system=AutotunedCloningConfig(
            cloning=transformer(16, 1, context=4), prompt=ValuePromptConfig(critic=ImplicitQConfig(width=16))
        ),
        before=critics(**few),
        training=run.training.replace(evaluate_every=20, **few),
        evaluation=Evaluation(episodes=1, max_steps=20),
    )


def claim() -> Claim:
    """Acceptance experiment: a maze of which the data hold no way from start to goal, only pieces of at most half of it.

    Decision Transformer at its best of three targets, V-ADT, G-ADT, V-ADT without the advantage weight; told and not judged, V-ADT
    with the weight and without its prompt; and as a yardstick implicit Q-learning's own policy: the same network and weights
    for single steps, without a prompt. Same width, depth, batch and updates. Cheaper than the page: 10k updates of the critics
    and 3k of the transformers, which is enough on this maze.

    It does not hold as to Decision Transformer, which asked for the goal finds this way by direction alone; so does V-ADT without
    its prompt, so that here the weight does the work. A maze whose way begins against the direction in which it ends did not change
    that (100, 56 and 100 % of its episodes by seed; V-ADT's first 100 %).
    """
    values, hidden = (ValuePromptConfig(critic=VALUES, scale=scale) for scale in (0.01, 0.0))
    base = cpu()
    dt = narrow(values, beta=0.0).cloning.replace(condition=ReturnToGoConfig(), layout="separate")
    asked = Evaluation(episodes=50, targets=(1.0, 0.5, 0.0))
    return Claim(
        says="In success, V-ADT exceeds DT at its best target by >= 15 points and G-ADT V-ADT - 5 points; without the advantage "
        "weight V-ADT loses >= 5 points (three seeds, 50 episodes each).",
        arms={
            "dt": base.replace(system=dt, before=(), evaluation=asked),
            "v-adt": base,
            "g-adt": cpu_goals(),
            "v-adt-unweighted": base.replace(system=narrow(values, beta=0.0)),
            "v-adt-unprompted": base.replace(system=narrow(hidden, beta=10.0)),
            "iql": base.replace(system=narrow(hidden, beta=10.0, context=1)),
        },
        metric=figures,
        seeds=(0, 1, 2),
        holds=verdict,
        minutes=27,
    )


def figures(run: Run) -> Mapping[str, float]:
    """Of one run: the share of episodes that arrive, in percent, at the best of its targets and at each."""
    last = run.evaluations()[-1]
    success = {
        target: 100 * float(np.mean([bool(one.success) for one in last.records if one.target == target]))
        for target in last.targets
    }
    by_target = {f"success at {target:g}": share for target, share in success.items() if target is not None}
    return {"success": max(success.values()), **by_target}


def verdict(results: Mapping[str, list[Mapping[str, float]]]) -> Mapping[str, bool]:
    """The claim's conditions on means over seeds."""
    mean = seed_means(results)
    success = {arm: found["success"] for arm, found in mean.items()}
    dt = max(share for name, share in mean["dt"].items() if name.startswith("success at "))
    return {
        "V-ADT >= DT's best target + 15": success["v-adt"] >= dt + 15,
        "G-ADT >= V-ADT - 5": success["g-adt"] >= success["v-adt"] - 5,
        "without the advantage weight loses >= 5": success["v-adt-unweighted"] <= success["v-adt"] - 5,
    }
