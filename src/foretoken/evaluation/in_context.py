"""In-context learning measured: what is earned episode after episode, or lost pull after pull, on tasks that were held out.

A trial is several episodes of one task played with one memory (`Evaluation(trial=20, tasks="held-out")`). Its curve is the
return by the episode's number, or the cumulative regret by the step in worlds that tell it. Reference learners play the same
tasks here, so that their curves lie on the same axes.
"""

import numpy as np

from foretoken.core.errors import DataError
from foretoken.envs.diagnostic import Part, make_world, world_ids
from foretoken.envs.diagnostic.record import Expert, Recorded, record
from foretoken.envs.learners import (
    UCB,
    BetaThompson,
    EmpiricalMean,
    LearnerConfig,
    LinearThompson,
    LinUCB,
    Thompson,
    UniformRandom,
)
from foretoken.envs.recipes.learning_histories import Histories
from foretoken.envs.slots import reset_seed
from foretoken.evaluation.evaluate import Evaluated


def returns_by_episode(evaluated: Evaluated) -> np.ndarray:
    """(N, E) returns of N trials by the number of the episode in its trial.

    Raises:
        DataError: the evaluation holds no trials of several episodes.
    """
    records = evaluated.records
    length = max((record.index for record in records), default=0) + 1
    if length < 2 or len(records) % length:
        raise DataError("this evaluation holds no trials; evaluate with Evaluation(trial=...) of at least 2 episodes")
    return np.array([record.total for record in records]).reshape(-1, length)


def regrets(evaluated: Evaluated) -> np.ndarray:
    """(N, P) cumulative regret of N episodes at up to 100 evenly spaced steps, the last included.

    Raises:
        DataError: the environment told no regret.
    """
    told = [record.regret for record in evaluated.records if record.regret is not None]
    if not told:
        raise DataError(f"{evaluated.environment or 'the environment'} tells no regret: info['regret'] is missing")
    return np.array(told)


def reference_returns(
    environment: str, learner: LearnerConfig | None, *, trials: int, episodes: int, seed: int, part: Part = "held-out"
) -> np.ndarray:
    """(N, E) returns of a learner that begins anew in each of N trials; None is the scripted player."""
    return np.stack([played.total for played in _played(environment, learner, trials, episodes, seed, part)], axis=1)


def reference_regrets(
    environment: str, learner: LearnerConfig | None, *, trials: int, seed: int, part: Part = "held-out"
) -> np.ndarray:
    """(N, T) cumulative regret of a learner after each step of one episode."""
    (played,) = _played(environment, learner, trials, 1, seed, part)
    return played.info["regret"].cumsum(0).T


def _played(
    environment: str, learner: LearnerConfig | None, trials: int, episodes: int, seed: int, part: Part
) -> list[Recorded]:
    world = make_world(environment, trials)
    player = Expert() if learner is None else learner.build(world)
    task = np.array([world.task_of(part, number) for number in range(trials)])
    seeds = np.array([reset_seed(seed, number) for number in range(trials)])
    return list(record(world, player, task, seeds, episodes=episodes))


def early_and_late(returns_NE: np.ndarray, count: int) -> tuple[float, float]:
    """Mean return of the first and of the last `count` episodes of all trials."""
    return float(returns_NE[:, :count].mean()), float(returns_NE[:, -count:].mean())


def references(environment: str) -> dict[str, LearnerConfig | None]:
    """Who else may be asked to play a world, by name; None is the scripted player, which knows the task."""
    if "LinearBandit" in environment:
        return {"LinUCB": LinUCB(), "Thompson": LinearThompson()}
    if "BernoulliBandit" in environment:
        return {"Thompson": BetaThompson(), "UCB": UCB(), "empirical mean": EmpiricalMean()}
    if "Bandit" in environment:
        return {"Thompson": Thompson(), "UCB": UCB(), "empirical mean": EmpiricalMean()}
    return {"best possible": None, "random": UniformRandom()}


def reference_curves(evaluated: Evaluated, seed: int | None = None) -> dict[str, np.ndarray]:
    """Curves of the references on the tasks of an evaluation, like its own: regrets (N, T), or returns (N, E); {} off our worlds."""
    if evaluated.environment not in world_ids():
        return {}
    length = max(record.index for record in evaluated.records) + 1
    where, trials = evaluated.environment, len(evaluated.records) // length
    seed = evaluated.seed if seed is None else seed
    if evaluated.records[0].regret is not None:
        return {
            name: reference_regrets(where, who, trials=trials, seed=seed) for name, who in references(where).items()
        }
    found = references(where).items()
    return {name: reference_returns(where, who, trials=trials, episodes=length, seed=seed) for name, who in found}


def source_curves(evaluated: Evaluated, recipe: Histories, name: str = "source") -> dict[str, np.ndarray]:
    """Returns (N, E) of who played the histories of a recipe, beginning anew on the tasks of an evaluation of trials; {} off our worlds.

    Under `name` episode after episode, as who learned from the histories plays them; under "..., one episode in k" those that a
    recipe with keep_every=k stores, whose improvement is what was learned. Of several players the first, who plays on where
    a history ends.
    """
    if evaluated.environment not in world_ids():
        return {}
    length, every = max(record.index for record in evaluated.records) + 1, recipe.keep_every
    trials = len(evaluated.records) // length
    returns_NE = reference_returns(
        evaluated.environment,
        recipe.players()[0],
        trials=trials,
        episodes=1 + (length - 1) * every,
        seed=evaluated.seed,
    )
    kept = {f"{name}, one episode in {every}": returns_NE[:, ::every]} if every > 1 else {}
    return {name: returns_NE[:, :length], **kept}


def spread(values_NP: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(P,) means over tasks and the ends of their 95 % intervals, by Student's t."""
    from scipy import stats

    mean, count = values_NP.mean(0), len(values_NP)
    half = stats.t.ppf(0.975, count - 1) * values_NP.std(0, ddof=1) / count**0.5 if count > 1 else np.zeros_like(mean)
    return mean, mean - half, mean + half


def steps(values_NP: np.ndarray, length: int) -> np.ndarray:
    """(P,) the steps, counted from 1, at which a curve over an episode of `length` steps is known."""
    count = values_NP.shape[1]
    return np.arange(1, count + 1) * (length / count)
