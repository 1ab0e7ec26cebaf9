"""Decision-Pretrained Transformer: name the best action at a query state, given transitions of the same task.

The tokens are  s_q  (s a s' r)_1 ... (s a s' r)_n : the query first, then one token for each transition of the context, and after
every token the best action at s_q is predicted, so that one pass trains contexts of all lengths. The label belongs to an
independent query state and not to the context, whose actions may be random; that is the difference from cloning and from
algorithm distillation. Trained over many tasks the network acts as posterior sampling does: sampled it explores, while its
likeliest action on given data is cautious, and no weight ever changes.

Paper: Lee, Xie, Pacchiano, Chandak, Finn, Nachum, Brunskill, "Supervised Pretraining Can Learn In-Context Reinforcement
Learning", NeurIPS 2023, arXiv 2306.14892; official code jon--lee/decision-pretrained-transformer.
The method is `foretoken.methods.decision_pretraining`.
"""

from collections.abc import Mapping

import numpy as np
import torch

from foretoken import presets
from foretoken.core import Card
from foretoken.core.spec import Spec
from foretoken.envs.diagnostic import make_world
from foretoken.envs.diagnostic.bandit import Bandit
from foretoken.envs.diagnostic.record import Experience, record
from foretoken.envs.learners import LCB, UCB, EmpiricalMean, MixedArms, Thompson, UniformRandom
from foretoken.envs.recipes.roll_ins import RollIns
from foretoken.evaluation.evaluate import Evaluation, evaluate
from foretoken.evaluation.in_context import reference_regrets, reference_returns, regrets, returns_by_episode
from foretoken.evaluation.statistics import seed_means
from foretoken.experiment import Claim, Experiment, Run, Stage, load
from foretoken.methods.decision_pretraining import DecisionPretraining, DecisionPretrainingConfig
from foretoken.nn.heads.base import BySpaceConfig
from foretoken.nn.mixers.attention import AttentionConfig
from foretoken.nn.stack import StackConfig, gpt, uniform_stack
from foretoken.training.loop import Training
from foretoken.training.optim import AdamW
from foretoken.training.sources import Offline

CARD = Card(
    key="dpt",
    title="Decision-Pretrained Transformer",
    paper="Lee et al., NeurIPS 2023, arXiv 2306.14892",
    claim="Unseen bandits are explored with the regret of Thompson sampling and exploited cautiously; unseen rooms are searched once.",
    stream="s_q  (s a s' r)_1 ... (s a s' r)_n -> best a at s_q",
    acting="own",
    tags=("acts", "in-context", "tasks", "continuous", "discrete"),
    deviations=(
        "Windows of long roll-ins are drawn, so a task has many contexts; the official data hold one per task.",
        "The query is the first step of the window, the context the steps after it: independent where roll-ins are.",
        "The prediction before any context is trained too (`empty`); the official code leaves it out.",
        "The cpu presets draw actions at half the temperature, and begin with contexts of 60.",
    ),
)


def paper() -> Experiment:
    """Gaussian bandits as published (official code): 5 arms, 500 pulls, 100,000 tasks, 4 layers of width 32; about 400 epochs."""
    return Experiment(
        system=DecisionPretrainingConfig(
            context=500,
            backbone=uniform_stack(AttentionConfig(), 32, 4, activation="gelu"),
            memory="step",
            reading="stream",
            empty=False,
        ),
        source=Offline(recipe=RollIns(environment="foretoken/Bandit-v0", tasks=100_000, horizon=501), held_out=0.2),
        training=Training(
            updates=500_000,
            batch_size=64,
            optimiser=AdamW(lr=1e-4, weight_decay=1e-4),
            clip=0.0,
            validate_every=10_000,
            evaluate_every=50_000,
        ),
        evaluation=Evaluation(episodes=200, tasks="held-out", num_slots=200),
    )


def paper_dark_room() -> Experiment:
    """Dark Room 10 x 10 as published: 80 goals, contexts of 100 transitions from anywhere, 40 episodes with sampled actions."""
    run = paper()
    return run.replace(
        system=run.system.replace(context=100, memory="episode", reading="window"),
        source=Offline(
            recipe=RollIns(
                environment="foretoken/DarkRoom-10x10-v0", kind="uniform", tasks=80, blocks=100, horizon=1_000
            ),
            held_out=0.0,
        ),
        training=run.training.replace(optimiser=AdamW(lr=1e-3, weight_decay=1e-4), updates=250_000),
        evaluation=Evaluation(episodes=20, trial=40, tasks="held-out"),
    )


def narrow(width: int, dropout: float = 0.0) -> StackConfig:
    """Three layers of four heads; weights begin as large as this width needs, without which learning stays on a plateau."""
    return gpt(width, 3, 4, dropout=dropout).replace(init_std=width**-0.5)


def bandits(pulls: int, tasks: int) -> Offline:
    """Contexts of so many pulls of that many Gaussian bandits."""
    recipe = RollIns(environment="foretoken/Bandit-v0", tasks=tasks, horizon=pulls + 1)
    return Offline(recipe=recipe, held_out=0.05)


def cpu() -> Experiment:
    """Minutes on one core: bandits of 500 pulls, mostly learned from contexts of 60.

    So short a training leaves the posterior too wide, which costs regret for as long as one plays: actions are drawn at half the
    temperature.
    """
    run = paper()

    def training(updates: int, batch_size: int, lr: float) -> Training:
        adam = AdamW(lr=lr, weight_decay=1e-4, warmup=updates // 20, schedule="cosine")
        return run.training.replace(
            updates=updates, batch_size=batch_size, optimiser=adam, threads=1, validate_every=0, evaluate_every=updates
        )

    return run.replace(
        system=run.system.replace(backbone=narrow(32), empty=True, head=BySpaceConfig(temperature=0.5)),
        source=bandits(500, 10_000),
        training=training(300, 16, 1e-3),
        before=(Stage(name="short", training=training(2_000, 64, 3e-3), source=bandits(60, 40_000)),),
    )


def dark_room() -> Experiment:
    """Some minutes on two cores: Dark Room 7 x 7 from a corner, 39 goals, contexts of 100 transitions from anywhere."""
    run = paper_dark_room()
    return run.replace(
        system=run.system.replace(backbone=narrow(64, dropout=0.1), empty=True, head=BySpaceConfig(temperature=0.5)),
        source=Offline(
            recipe=RollIns(environment="foretoken/DarkRoom-7x7-Corner-v0", kind="uniform", tasks=39, blocks=20, horizon=1_000),
            held_out=0.0,
        ),
        training=run.training.replace(
            updates=2_000, batch_size=32, threads=1, evaluate_every=2_000,
            optimiser=AdamW(lr=2e-3, weight_decay=1e-4, warmup=100, schedule="cosine"),
        ),
        evaluation=Evaluation(episodes=10, trial=12, tasks="held-out"),
    )  # fmt: skip


def offline() -> Experiment:
    """As `cpu`, and with its weights, but acting by the likeliest action on a given dataset alone; evaluation gives none.

    `begin` of its policy is told the data (see `ContextPolicy`), in a rollout by `Job(0, context={"prompt_action": ...})`.
    """
    run = cpu()
    return run.replace(system=run.system.replace(memory="never", reading="window", acting="mode"))


def smoke() -> Experiment:
    """Seconds: everything runs, nothing is learned."""
    run = dark_room()
    recipe = RollIns(environment="foretoken/DarkRoom-7x7-v0", kind="uniform", tasks=4, blocks=1, horizon=40)
    system = run.system.replace(context=6, backbone=uniform_stack(AttentionConfig(), 16, 2))
    return presets.smoke(run.replace(source=Offline(recipe=recipe, held_out=0.0)), system).replace(
        evaluation=Evaluation(episodes=2, trial=2, tasks="held-out", max_steps=5)
    )


def claim() -> Claim:
    """Acceptance experiment: 200 unseen bandits of 500 pulls beside the classical players, and 10 unseen goals in a dark room.

    One trained network is judged three ways on the same bandits: sampled, by its likeliest action, and with the rewards of its
    context shuffled. Cheaper than the page, which has 6,000 updates of 128 tasks at 200 pulls; actions are drawn at half the temperature.
    """
    return Claim(
        says="On 200 unseen 5-armed bandits the cumulative regret at 500 is <= 1.15 times Thompson sampling's and below "
        "UCB's; decisions from 50 given pulls lose <= 0.01 more than LCB's; the likeliest action explores worse, and with "
        "shuffled rewards nothing is gained; in unseen rooms episode 10 earns >= 70 % of the best, episode 1 < 30 % (three seeds).",
        arms={"bandits": cpu(), "dark room": dark_room()},
        metric=figures,
        seeds=(0, 1, 2),
        holds=verdict,
        minutes=25,
    )


def figures(run: Run) -> Mapping[str, float]:
    """Of one run: in bandits regrets and what decisions from given data lose, in rooms the return by the number of the episode."""
    last, seed = run.evaluations()[-1], run.experiment.seed
    if "Room" in last.environment:
        returns = returns_by_episode(last)
        best = reference_returns(last.environment, None, trials=len(returns), episodes=1, seed=seed).mean()
        share = returns.mean(0) / best
        named = {f"episode {number}": float(share[number - 1]) for number in (1, 10)}
        return named | {"last 5 episodes": float(share[-5:].mean())}
    method = load(run.path)
    assert isinstance(method, DecisionPretraining) and isinstance(run.spec, Spec)
    greedy = DecisionPretraining(method.config.replace(acting="mode"), run.spec)
    greedy.load_state_dict(method.state_dict())
    likeliest = evaluate(greedy, run.spec, run.experiment.evaluation, seed=seed)
    players = {"Thompson": Thompson(), "UCB": UCB(), "empirical mean": EmpiricalMean(), "uniform": UniformRandom()}
    where, trials = last.environment, len(last.records)
    lost = {name: reference_regrets(where, player, trials=trials, seed=seed) for name, player in players.items()}
    return {
        "regret": float(regrets(last)[:, -1].mean()),
        "regret by mode": float(regrets(likeliest)[:, -1].mean()),
        **{f"regret of {name}": float(curves_NT[:, -1].mean()) for name, curves_NT in lost.items()},
        **offline_losses(method.eval(), where, trials=trials, pulls=50, seed=seed),
    }


def offline_losses(method: DecisionPretraining, where: str, *, trials: int, pulls: int, seed: int) -> dict[str, float]:
    """Mean gap to the best arm of decisions from given pulls of uneven arms: ours, with rewards shuffled, and LCB's."""
    world = make_world(where, trials)
    assert isinstance(world, Bandit)
    task = np.array([world.task_of("held-out", number) for number in range(trials)])
    (played,) = record(world, MixedArms().build(world), task, np.arange(trials) + 1_000_003 * (seed + 1))
    action, reward = played.action[:pulls], played.reward[:pulls]
    cautious = LCB().build(world)
    for a, r in zip(action, reward, strict=True):
        nothing = np.zeros(trials, bool)
        cautious.learn(Experience(world.observe(), a, r, world.observe(), nothing, nothing, ~nothing))

    def chosen(rewards: np.ndarray) -> np.ndarray:
        seen = torch.zeros(trials, pulls, 1)
        actions, earned = torch.from_numpy(action.T.copy()), torch.from_numpy(rewards.T.copy()).float()
        with torch.no_grad():
            context = method.transition(seen, actions, earned, seen)
            best = method.predict(seen[:, 0], context, torch.ones(trials, pulls, dtype=torch.bool), last=True).mode()
        return best[:, 0].numpy()

    means, rows = world.means, np.arange(trials)
    choices = {
        "offline loss": chosen(reward),
        "offline loss, rewards shuffled": chosen(np.random.default_rng(seed).permuted(reward, axis=0)),
        "offline loss of LCB": cautious.act(world),
    }
    lost = {name: float((means.max(1) - means[rows, choice]).mean()) for name, choice in choices.items()}
    return {**lost, "offline loss of any arm": float((means.max(1) - means.mean(1)).mean())}


def verdict(results: Mapping[str, list[Mapping[str, float]]]) -> Mapping[str, bool]:
    """The claim's conditions, on means over seeds."""
    bandits, rooms = seed_means(results).values()
    return {
        "regret <= 1.15 times Thompson's": bandits["regret"] <= 1.15 * bandits["regret of Thompson"],
        "regret below UCB's": bandits["regret"] < bandits["regret of UCB"],
        "offline loss <= LCB's + 0.01": bandits["offline loss"] <= bandits["offline loss of LCB"] + 0.01,
        "the likeliest action explores worse": bandits["regret by mode"] > bandits["regret"],
        "with shuffled rewards nothing is gained": bandits["offline loss, rewards shuffled"]
        >= 0.8 * bandits["offline loss of any arm"],
        "rooms: episode 10 earns >= 70 % of the best": rooms["episode 10"] >= 0.7,
        "rooms: episode 1 earns < 30 %": rooms["episode 1"] < 0.3,
    }
