"""Q-Transformer: Q-learning in which every dimension of an action is a step of its own.

A decision is the tokens  s_(t-K+1) ... s_t  b_1 ... b_(d-1) : K states, then the bins chosen for the first dimensions of the
action. A causal transformer reads off the values of the next dimension's bins. Inside an action a bin is worth what the best
next bin is worth; a Monte-Carlo bound lifts values that bootstrapping has not reached yet, and a conservative term draws what
the data do not hold down to the lowest possible return.

Paper: Chebotar et al., "Q-Transformer: Scalable Offline Reinforcement Learning via Autoregressive Q-Functions", CoRL 2023,
arXiv 2309.10150. Heads: Farebrother et al., "Stop Regressing", ICML 2024, arXiv 2403.03950. The method, with its formulas, is
`foretoken.methods.autoregressive_q`.
"""

from collections.abc import Mapping

import numpy as np

from foretoken import presets
from foretoken.core import Card
from foretoken.core.spec import Spec
from foretoken.envs.recipes.noisy_maze import NoisyMaze
from foretoken.envs.slots import Job
from foretoken.evaluation.evaluate import Evaluation
from foretoken.evaluation.rollout import rollout
from foretoken.evaluation.statistics import seed_means, standard_error
from foretoken.experiment import Claim, Experiment, Run, load
from foretoken.methods.autoregressive_q import AutoregressiveQ, AutoregressiveQConfig, CloningConfig, QLearningConfig
from foretoken.nn.heads.value import HLGaussConfig
from foretoken.nn.stack import gpt
from foretoken.nn.tokenizers.uniform import UniformConfig
from foretoken.training.loop import Training
from foretoken.training.optim import AdamW
from foretoken.training.sources import Offline

CARD = Card(
    key="q-transformer",
    title="Q-Transformer",
    paper="Chebotar et al., CoRL 2023, arXiv 2309.10150",
    claim="From mostly failed episodes, values with a conservative term and a Monte-Carlo bound reach goals that cloning does not.",
    stream="s_(t-K+1) .. s_t  b_1 .. b_(d-1) -> Q of the bins of b_1 .. b_d",
    acting="window",
    tags=("acts", "offline", "value", "continuous", "discrete"),
    deviations=(
        "States are embedded by kind of space; the paper reads images and instructions through FiLM-EfficientNet and TokenLearner.",
        "The conservative term is the mean over the other bins, dimensions and steps, in the loss of the value head.",
        "Before K steps have passed, the episode's first state fills the history.",
        "The Monte-Carlo bound sums the rewards of `horizon` steps; later ones count as the lowest possible.",
        "Acting reads the decision's few tokens anew for every dimension instead of keeping keys and values; the values are equal.",
    ),
)


def paper() -> Experiment:
    """Bins, discount and conservative weight of the paper; sizes, optimiser and 3 steps of the state-based re-implementation
    (2M-kotb/Q-Transformer). The paper's robot data are not public: noisy walks through a maze take their place.
    """
    return Experiment(
        system=AutoregressiveQConfig(
            context=6, backbone=gpt(128, 2, 8, dropout=0.1), objective=QLearningConfig(steps=3, tau=0.005)
        ),
        source=Offline(recipe=NoisyMaze(), held_out=0.0),
        training=Training(
            updates=100_000,
            batch_size=512,
            optimiser=AdamW(lr=3e-4, weight_decay=0.0),
            clip=20.0,
            evaluate_every=10_000,
        ),
        evaluation=Evaluation(episodes=50),
    )


def cpu() -> Experiment:
    """A minute or two on one core: 21 bins, two states, targets of one step."""
    run = paper()
    return run.replace(
        system=run.system.replace(
            context=2, backbone=gpt(64, 2, 2), bins=UniformConfig(bins=21), objective=QLearningConfig()
        ),
        training=run.training.replace(
            updates=2_000,
            batch_size=128,
            threads=1,
            optimiser=AdamW(lr=1e-3, weight_decay=0.0, warmup=100, schedule="cosine"),
            evaluate_every=500,
        ),
    )


def smoke() -> Experiment:
    """Seconds: everything runs, nothing is learned."""
    run = cpu()
    return presets.smoke(run, run.system.replace(backbone=gpt(16, 1, 1), objective=QLearningConfig(steps=2, horizon=4)))


FEWEST = 24  # steps to the goal: 12 for 1.25 cells east from standing, 5 more for 1 cell north, 7 for 1.05 west, at top speed


def claim() -> Claim:
    """Acceptance experiment: a maze whose goal pays once, 500 noisy walks of which 30 % arrive, 21 bins for each of two dimensions.

    Five arms of one network, batch and number of updates: cloning; no conservative term; no Monte-Carlo bound; all of it with
    the squared error; all of it with HL-Gauss. 50 episodes, three seeds, evaluated every 100 updates. Cheaper than the page: 2
    layers and 2,000 updates. Sharper: cloning counts by the better of its likeliest and its drawn actions, and without the
    conservative term the best value at the start must exceed what no policy can, arrival after `FEWEST` steps (the scripted
    player arrives after 39, worth 0.46). A run that never arrives at last is taken to reach 80 % after its last update: without
    the bound that is likely, because the conservative term takes a share of the value at every backup, where data are noisy.
    The likeliest actions of cloning linger at the start, as most steps there do; after 100 updates they do not yet, and succeed
    in three episodes of four.
    """
    run = cpu()

    def arm(objective: QLearningConfig | CloningConfig) -> Experiment:
        training = run.training.replace(evaluate_every=100)
        return run.replace(system=run.system.replace(objective=objective), training=training)

    return Claim(
        says="Q-Transformer succeeds at least 20 points more often than cloning and more often than without its conservative term, "
        "without which the best value at the start exceeds the true optimum; without the Monte-Carlo bound it needs more updates "
        "to 80 % of its final success; HL-Gauss succeeds as often as the squared error minus one standard error (three seeds).",
        arms={
            "bc": arm(CloningConfig()),
            "alpha-0": arm(QLearningConfig(conservative=0.0)),
            "no-bound": arm(QLearningConfig(horizon=0)),
            "full": arm(QLearningConfig()),
            "full-hl-gauss": arm(QLearningConfig(value=HLGaussConfig(low=-0.04, high=1.04, bins=54, start=0.0))),
        },
        metric=figures,
        seeds=(0, 1, 2),
        holds=verdict,
        minutes=15,
    )


def figures(run: Run) -> Mapping[str, float]:
    """Of one run: success at last, updates to 80 % of it, and the mean best value where episodes begin (for cloning, a logit).

    Cloning also has the success of actions drawn from it, in the same episodes.
    """
    curve = {done.update: done.metrics()["success"] for done in run.evaluations()}
    last, method = curve[max(curve)], load(run.path)
    assert isinstance(method, AutoregressiveQ) and isinstance(run.spec, Spec)
    reached = [update for update, success in curve.items() if 0 < 0.8 * last <= success]
    store = NoisyMaze().open()
    begun = store.gather(store.episodes["start"][:, None], ("observation", "valid"))
    found = {
        "success": last,
        "updates to 80 %": float(min(reached, default=max(curve))),
        "best value at the start": float(method(begun).values[:, 0, 0].detach().amax(-1).mean()),
    }
    if isinstance(method.config.objective, CloningConfig):
        jobs = [Job(episode) for episode in range(run.experiment.evaluation.episodes)]
        drawn = rollout(method.policy, run.spec.environment, jobs, seed=run.experiment.seed, explore=True)
        found["success of drawn actions"] = float(np.mean([bool(result.success) for result in drawn]))
    return found


def verdict(results: Mapping[str, list[Mapping[str, float]]]) -> Mapping[str, bool]:
    """The claim's conditions over seeds."""
    mean = seed_means(results)
    full, histogram = (np.array([row["success"] for row in results[arm]]) for arm in ("full", "full-hl-gauss"))
    cloned = max(mean["bc"]["success"], mean["bc"]["success of drawn actions"])
    return {
        "20 points above cloning": mean["full"]["success"] >= cloned + 0.2 - 1e-9,
        "above alpha = 0": mean["full"]["success"] > mean["alpha-0"]["success"],
        "alpha = 0 values the start above the true optimum": mean["alpha-0"]["best value at the start"]
        > QLearningConfig().discount ** (FEWEST - 1),
        "without the bound, more updates to 80 % of the final success": mean["no-bound"]["updates to 80 %"]
        > mean["full"]["updates to 80 %"],
        "HL-Gauss no less than the squared error minus 1 standard error": float(histogram.mean())
        >= float(full.mean()) - standard_error(full, histogram),
    }
