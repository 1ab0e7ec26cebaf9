"""Learners as sources of data and as baselines: many rows at once, in numpy, a row being a stream of learning of its own."""

from foretoken.envs.learners.bandits import LCB, UCB, BetaThompson, EmpiricalMean, MixedArms, Thompson
from foretoken.envs.learners.base import LearnerConfig, Noisy, UniformRandom
from foretoken.envs.learners.labelers import Trained, ValueIteration
from foretoken.envs.learners.lin_ucb import LinearThompson, LinUCB
from foretoken.envs.learners.ppo import PPO
from foretoken.envs.learners.q_learning import QLearning

__all__ = [
    "LCB",
    "PPO",
    "UCB",
    "BetaThompson",
    "EmpiricalMean",
    "LearnerConfig",
    "LinUCB",
    "LinearThompson",
    "MixedArms",
    "Noisy",
    "QLearning",
    "Thompson",
    "Trained",
    "UniformRandom",
    "ValueIteration",
]
