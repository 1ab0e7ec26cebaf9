"""Algorithm Distillation: clone a learner's whole history of learning, and learn in context what it learned by gradients.

Step t is the tokens  a_(t-1)  r_(t-1)  s_t , which is the paper's stream  s a r  shifted; the action is read at s_t. Windows run
on through the episodes of one history, in the order in which they were learned, and never leave it. Because a history gets
better over time, the only way to predict its next action well is to carry its improvement on: on a new task the frozen
network gets better from episode to episode, as long as its memory is kept.

Paper: Laskin et al., "In-context Reinforcement Learning with Algorithm Distillation", ICLR 2023, arXiv 2210.14215. No official
code; sizes and horizons of Dark Room are those of corl-team/ad-eps. The method is `foretoken.methods.conditioned_cloning`.
"""

from collections.abc import Mapping

from foretoken import presets
from foretoken.core import Card
from foretoken.envs.learners import QLearning
from foretoken.envs.recipes.learning_histories import LearningHistories
from foretoken.evaluation.in_context import early_and_late, reference_returns, returns_by_episode
from foretoken.evaluation.statistics import seed_means
from foretoken.experiment import Claim, Experiment, Run
from foretoken.nn.heads.base import BySpaceConfig
from foretoken.training.sources import Offline

CARD = Card(
    key="ad",
    title="Algorithm Distillation",
    paper="Laskin et al., ICLR 2023, arXiv 2210.14215",
    claim="On tasks never seen it gets better from episode to episode, to what its source learned; memory of one episode does not.",
    stream="a_(t-1)  r_(t-1)  s_t -> a_t",
    acting="window",
    tags=("acts", "in-context", "histories", "continuous", "discrete"),
    deviations=(
        "The stream starts with the previous action and reward, which is the paper's s a r stream shifted; predictions are equal.",
        "An episode's final observation is a step of its own, with the last reward; the paper goes on with the next episode.",
        "Positions are rotary; published code uses sinusoidal ones, or rotary (jaehyeon-son/dicp).",
        "The cpu preset has one token a step, as dicp has: the transition just finished, and the state it led to.",
        "The cpu preset draws actions at temperature 0.7.",
    ),
)


def paper() -> Experiment:
    """Dark Room 9 x 9 as in corl-team/ad-eps: 65 tasks, windows of 80 steps, 4 layers of width 512; histories by Q-learning."""
    recipe = LearningHistories(
        environment="foretoken/DarkRoom-v0", learner=QLearning(episodes=200), tasks=65, streams=8, episodes=200
    )
    return presets.histories(Offline(recipe=recipe, held_out=0.0))


def cpu() -> Experiment:
    """Some minutes on two cores: Dark Room 7 x 7; every 16th episode of a history, so that within 20 episodes of its own it goes
    through what took the source 150. As dropout leaves it unsure, actions are drawn at a lower temperature.
    """
    recipe = LearningHistories(
        environment="foretoken/DarkRoom-7x7-v0", learner=QLearning(episodes=150), streams=64, keep_every=16
    )
    source, head = Offline(recipe=recipe, held_out=0.0), BySpaceConfig(temperature=0.7)
    return presets.small_histories(paper(), source, updates=2_500, dropout=0.2, head=head)


def smoke() -> Experiment:
    """Seconds: everything runs, nothing is learned."""
    recipe = LearningHistories(tasks=4, streams=1, episodes=6, learner=QLearning(episodes=6))
    return presets.smoke_histories(cpu(), Offline(recipe=recipe, held_out=0.0))


def claim() -> Claim:
    """Acceptance experiment: Dark Room 7 x 7, 39 goals with Q-learning's histories, 10 goals held out.

    "four episodes" is the system; "one episode" has a window of a single one and is otherwise the same, with the same updates. Its
    window slides, so where an episode begins it still holds the episode before; "forgetful", told and not judged, forgets there.
    The page's thresholds; three seeds.
    """
    run = cpu()
    run = run.replace(training=run.training.replace(evaluate_every=run.training.updates))
    return Claim(
        says="On 10 held-out goals the mean return of episodes 16 to 20 is >= 75 % of the source's last and >= 3 times that of the first "
        "two episodes; with a window of one episode it stays within 1.5 times its own first two (three seeds).",
        arms={
            "four episodes": run,
            "one episode": run.replace(system=run.system.replace(context=16)),
            "forgetful": run.replace(system=run.system.replace(context=16, across="")),
        },
        metric=figures,
        seeds=(0, 1, 2),
        holds=verdict,
        minutes=10,
    )


def histories(run: Experiment) -> LearningHistories:
    """How its data are made."""
    assert isinstance(run.source, Offline) and isinstance(run.source.recipe, LearningHistories)
    return run.source.recipe


def figures(run: Run) -> Mapping[str, float]:
    """Of one run: mean returns on held-out goals early, in episode 4, which fills a window, and late in the trials; what the source
    learned there; the best possible.
    """
    last = run.evaluations()[-1]
    returns_NE = returns_by_episode(last)
    first, late = early_and_late(returns_NE, 2)[0], early_and_late(returns_NE, 5)[1]
    trials, seed, recipe = len(returns_NE), run.experiment.seed, histories(run.experiment)
    source = reference_returns(last.environment, recipe.learner, trials=trials, episodes=recipe.episodes, seed=seed)
    best = reference_returns(last.environment, None, trials=trials, episodes=1, seed=seed)
    return {
        "first two episodes": first,
        "episode 4": float(returns_NE[:, 3].mean()),
        "last five episodes": late,
        "source's last ten episodes": early_and_late(source, 10)[1],
        "source's first two episodes": early_and_late(source, 2)[0],
        "best possible": float(best.mean()),
    }


def verdict(results: Mapping[str, list[Mapping[str, float]]]) -> Mapping[str, bool]:
    """The claim's conditions, on means over seeds."""
    mean = seed_means(results)
    long, short = mean["four episodes"], mean["one episode"]
    return {
        "late >= 75 % of the source's last return": long["last five episodes"]
        >= 0.75 * long["source's last ten episodes"],
        "late >= 3 times the first two episodes": long["last five episodes"] >= 3 * long["first two episodes"],
        "one episode of memory: late <= 1.5 times the first two": short["last five episodes"]
        <= 1.5 * short["first two episodes"],
    }
