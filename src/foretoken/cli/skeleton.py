"""My System: clones the recorded behaviour from the present observation alone. (Say here what the system's idea is.)

Step t is the token  s_t ; a network reads it and predicts a_t, by supervised learning only. To act, it looks at the present
observation. (Say here what one step of the sequence is made of, what is predicted, and how the system acts.)

Paper: name the authors, the title, the venue and year, and the arXiv number.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils._pytree import tree_map

from foretoken.core import Batch, Card, Config, Context, Decision, EpisodeStore, Loss, Method, Spec, State, Step, Window
from foretoken.core.batch import masked_mean
from foretoken.core.config import configures
from foretoken.core.store import joint_statistics
from foretoken.evaluation.evaluate import Evaluation
from foretoken.experiment import Claim, Experiment, Run
from foretoken.nn.embed.observations import ObservationConfig
from foretoken.nn.heads.base import BySpaceConfig, HeadConfig, Prediction
from foretoken.training.loop import Training
from foretoken.training.optim import AdamW
from foretoken.training.sources import Offline

CARD = Card(
    key="my-system",
    title="My System",
    paper="Authors, venue year, arXiv number",
    claim="Trained, it earns more than untrained. (One checkable sentence: what the paper claims.)",
    stream="s_t -> a_t",
    acting="stateless",
    tags=("acts", "offline", "continuous", "discrete"),
    deviations=("Name here every difference from the paper.",),
)


@dataclass(frozen=True, kw_only=True)
class MySystemConfig(Config):
    """
    Args:
        width: of the hidden layers.
        observation: how observations are read.
        head: the distribution over actions; the usual one of the action space by default.
    """

    width: int = 128
    observation: ObservationConfig = ObservationConfig()
    head: HeadConfig = BySpaceConfig()


@configures(MySystemConfig)
class MySystem(Method):
    """`a_t = head(f(s_t))`; every recorded step counts the same."""

    window = Window(length=8, columns=("observation", "action"))

    def __init__(self, config: MySystemConfig, spec: Spec) -> None:
        super().__init__()
        width = config.width
        self.embed = config.observation.build(spec.observation, width)
        self.body = nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = config.head.build(spec.action, width)

    def fit(self, stores: Mapping[str, EpisodeStore], stage: str) -> None:
        """Takes the statistics of the data into buffers, so that a checkpoint is a whole policy."""
        if stores:
            self.embed.fit(joint_statistics(stores, "observation"))
            self.head.fit(joint_statistics(stores, "action"))

    def predict(self, observation: Any) -> Prediction:
        """Predictions for observations of any leading shape."""
        return self.head(self.body(self.embed(observation)))

    def forward(self, batch: Batch, read: slice = slice(None)) -> Prediction:
        """Predictions of the actions of recorded windows, at the steps that `read` picks."""
        return self.predict(tree_map(lambda leaf: leaf[:, read], batch.observation))

    def loss(self, *batches: Batch) -> Loss:
        (batch,) = batches
        total, count = masked_mean(self(batch).loss(batch.action).float(), batch.scored)
        return Loss(total, metrics={"loss": total}, weight=count)

    @property
    def policy(self) -> "MySystemPolicy":
        return MySystemPolicy(self)


class MySystemPolicy:
    """Remembers nothing: its state is empty."""

    def __init__(self, method: MySystem) -> None:
        self.method = method

    def begin(self, rows: int, context: Context) -> State:
        return {}

    def act(self, step: Step, state: State, *, explore: bool = False) -> Decision:
        prediction = self.method.predict(step.observation)
        return Decision(prediction.sample(step.seed) if explore else prediction.mode(), state)


def paper() -> Experiment:
    """The published setting. (Name the table or the file of the official code that it is taken from.)"""
    return Experiment(
        system=MySystemConfig(width=256),
        source=Offline(store="hopper-mixed"),
        training=Training(updates=100_000, batch_size=256, optimiser=AdamW(lr=3e-4), evaluate_every=10_000),
        evaluation=Evaluation(episodes=10),
    )


def cpu() -> Experiment:
    """Minutes on two cores: a narrower network, fewer updates."""
    run = paper()
    return run.replace(
        system=run.system.replace(width=64),
        training=run.training.replace(updates=3_000, batch_size=64, optimiser=AdamW(lr=1e-3), evaluate_every=3_000),
        evaluation=run.evaluation.replace(episodes=5),
    )


def smoke() -> Experiment:
    """Seconds: everything runs, nothing is learned."""
    run = cpu()
    return run.replace(
        system=run.system.replace(width=16),
        training=run.training.replace(updates=20, batch_size=8, evaluate_every=20, log_every=10),
        evaluation=run.evaluation.replace(episodes=1, max_steps=20),
    )


def claim() -> Claim:
    """The paper's claim, at a size that two cores can run: arms of the same code, a metric, and what must hold."""
    run = cpu()
    return Claim(
        says="After training it earns more than after one update, in the mean over three seeds.",
        arms={"trained": run, "untrained": run.replace(training=run.training.replace(updates=1, evaluate_every=1))},
        metric=figures,
        seeds=(0, 1, 2),
        holds=verdict,
        minutes=5,
    )


def figures(run: Run) -> Mapping[str, float]:
    """Of one run: the mean return of its last evaluation."""
    return {"return": run.evaluations()[-1].metrics()["return"]}


def verdict(results: Mapping[str, list[Mapping[str, float]]]) -> Mapping[str, bool]:
    """The claim's conditions over seeds."""
    mean = {arm: sum(row["return"] for row in rows) / len(rows) for arm, rows in results.items()}
    return {"trained earns more than untrained": mean["trained"] > mean["untrained"]}
