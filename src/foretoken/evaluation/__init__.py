"""Playing episodes to measure: rollouts, score cards, statistics, comparisons, reports and videos."""

from foretoken.envs.collect import collect
from foretoken.evaluation.compare import Comparison, compare
from foretoken.evaluation.evaluate import Evaluated, Evaluation, default_targets, evaluate, read_evaluation
from foretoken.evaluation.rollout import EpisodeResult, rollout
from foretoken.evaluation.scores import ScoreCard, score_card
