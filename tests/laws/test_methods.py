"""The laws of every method: that of each system's smallest preset on the specs its tags name, and variants of the shared ones."""

import dataclasses

import numpy as np
import pytest
import torch

from foretoken.core.catalogue import systems
from foretoken.core.config import Config
from foretoken.core.errors import DataError
from foretoken.core.exhibit import Exhibit, Line, Lines
from foretoken.core.spec import Window
from foretoken.data.windows import WindowSampler
from foretoken.methods.conditioned_cloning import ConditionedCloning, ConditionedCloningConfig, WindowPolicy
from foretoken.methods.conditions.base import ConditionConfig
from foretoken.methods.conditions.both import BothConfig
from foretoken.methods.conditions.cost_to_go import CostToGoConfig
from foretoken.methods.conditions.previous_reward import PreviousRewardConfig
from foretoken.methods.conditions.return_to_go import ReturnToGoConfig
from foretoken.nn.embed.time import WindowTimeConfig
from foretoken.nn.heads.gaussian import GaussianConfig
from foretoken.nn.mixers.attention import AttentionConfig
from foretoken.nn.stack import BlockConfig, StackConfig
from foretoken.testing import check_condition, check_method
from foretoken.testing.methods import LAWS, Trial
from foretoken.testing.stores import SPECS, random_store
from foretoken.testing.systems import fitting_specs

SMALL = ConditionedCloningConfig(context=4, backbone=StackConfig(width=8, num_layers=2))
BANDED = BlockConfig(mixer=AttentionConfig(num_heads=2, positions="rotary", window=7, slack=2))
STREAM = SMALL.replace(reading="stream", backbone=StackConfig(width=8, num_layers=2, pattern=(BANDED,)))
BOTH = BothConfig(of=(ReturnToGoConfig(), CostToGoConfig(), PreviousRewardConfig()))
STREAMING: dict[str, tuple[Config, str]] = {
    **{f"streaming on {name}": (STREAM, name) for name in SPECS},
    "streaming without condition": (STREAM.replace(condition=None), "discrete"),
    "streaming across episodes": (STREAM.replace(across="history", condition=PreviousRewardConfig()), "discrete"),
    "streaming transitions": (STREAM.replace(across="history", condition=None, layout="transition"), "dict"),
    "streaming without actions": (STREAM.replace(layout="observed"), "discrete"),
    "streaming joined tokens": (STREAM.replace(layout="joined", condition=BOTH), "continuous"),
}
SHARED: dict[str, tuple[Config, str]] = {
    **{f"cloning on {name}": (SMALL, name) for name in SPECS},
    "without condition, window time, mode": (
        SMALL.replace(condition=None, time=WindowTimeConfig(), acting="mode"),
        "discrete",
    ),
    "gaussian": (SMALL.replace(head=GaussianConfig(), anchor="end"), "continuous"),
    "across episodes": (SMALL.replace(across="history", condition=None, anchor="full"), "continuous"),
    "prompted, across": (
        SMALL.replace(across="history", condition=None, layout="prompted", time=None),
        "multi-discrete",
    ),
    "algorithm distillation": (
        SMALL.replace(across="history", condition=PreviousRewardConfig(), time=None, context=7),
        "discrete",
    ),
    "joined tokens": (
        SMALL.replace(across="history", condition=PreviousRewardConfig(), layout="joined", context=7),
        "discrete",
    ),
    "transitions": (SMALL.replace(across="history", condition=PreviousRewardConfig(), layout="transition"), "dict"),
    "prompted": (SMALL.replace(layout="prompted", condition=BOTH), "multi-discrete"),
    "without actions": (SMALL.replace(layout="observed", condition=None, time=WindowTimeConfig(max_steps=1)), "dict"),
    "returns and costs": (SMALL.replace(condition=BOTH), "dict"),
    "atari": (
        SMALL.replace(time=WindowTimeConfig(), embedding_tanh=True, embedding_norm=False, anchor="full"),
        "image",
    ),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", SHARED)
def test_shared_method_law(name: str, law: str) -> None:
    config, spec = SHARED[name]
    LAWS[law](Trial(config, SPECS[spec]))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", STREAMING)
def test_streaming_method_law(name: str, law: str) -> None:
    config, spec = STREAMING[name]
    LAWS[law](Trial(config, SPECS[spec], acting="streaming"))


@pytest.mark.parametrize(
    ("system", "spec"), [(name, spec) for name, entry in systems().items() for spec in fitting_specs(entry.load())]
)
def test_method_of_system(system: str, spec: str) -> None:
    module = systems()[system].load()
    acting = "streaming" if module.CARD.acting == "streaming" else "window"
    check_method(module.smoke().system, SPECS[spec], acting=acting, compare_forward=module.CARD.acting != "own")


# -- conditions


@pytest.mark.parametrize(
    "config", [ReturnToGoConfig(), ReturnToGoConfig(scale=7.0), CostToGoConfig(), PreviousRewardConfig(), BOTH]
)
def test_condition_while_acting_is_hindsight(config: ConditionConfig) -> None:
    store = random_store(SPECS["continuous"], rich=True)
    condition = config.build()
    condition.fit({"data": store})
    check_condition(condition, store)


def test_costs_that_were_not_recorded_are_missed() -> None:
    store = random_store(SPECS["continuous"])
    with pytest.raises(DataError, match="needs the cost of each episode, which this data lacks"):
        CostToGoConfig().build().fit({"data": store})
    with pytest.raises(DataError, match="'cost_to_go' is computed from 'cost', which the store's steps do not have"):
        WindowSampler(store, Window(length=2, columns=("cost_to_go",)))


def test_delayed_return_to_go_stays() -> None:
    store = random_store(SPECS["discrete"], lengths=())
    for episode in map(random_store(SPECS["discrete"]).episode, range(5)):
        late = np.where(np.arange(episode.length) == episode.length - 1, 3.0, 0.0)
        store.append(dataclasses.replace(episode, reward=late.astype(np.float32)))
    check_condition(ReturnToGoConfig(delayed=True).build(), store)
    check_condition(ReturnToGoConfig().build(), store)


def test_condition_law_notices_a_wrong_count() -> None:
    with pytest.raises(AssertionError, match="carry == hindsight at step 1"):
        check_condition(ReturnToGoConfig(delayed=True).build(), random_store(SPECS["discrete"]))


# -- the laws notice what they are for


class SeesPadding(ConditionedCloning):
    def predict(self, observation, previous_action, condition, timestep, valid, read, *rest):
        everything = torch.ones_like(valid)
        return super().predict(observation, previous_action, condition, timestep, everything, read, *rest)


class Batchwise(ConditionedCloning):
    def predict(self, observation, *rest):
        return super().predict(observation - observation.mean(0, keepdim=True), *rest)


class ActsOtherwise(ConditionedCloning):
    """Counts the return down one step late."""

    @property
    def policy(self):
        class Late(WindowPolicy):
            def act(self, step, state, *, explore=False):
                return super().act(step._replace(previous_reward=torch.zeros_like(step.previous_reward)), state)

        return Late(self)


class Counts(ConditionedCloning):
    calls = 0

    def loss(self, *batches):
        self.calls += 1
        return super().loss(*batches)


class FitsAside(ConditionedCloning):
    """Keeps a statistic outside its buffers."""

    shift = 0.0

    def fit(self, stores, stage):
        super().fit(stores, stage)
        self.shift = 0.5

    def predict(self, observation, *rest):
        return super().predict(observation + self.shift, *rest)


class Idle(ConditionedCloning):
    def __init__(self, config, spec):
        super().__init__(config, spec)
        self.unused = torch.nn.Linear(2, 2)


class ShowsAnything(ConditionedCloning):
    """Draws what it shows."""

    def exhibits(self, episodes):
        line = Line(label="anything", x=(0.0, 1.0, 2.0), y=torch.rand(3))
        return (Exhibit(title="Draws", says="Something.", panels=(Lines(x="step", y="number", lines=(line,)),)),)


@pytest.mark.parametrize(
    ("owner", "law"),
    [
        (SeesPadding, "padding_is_unseen"),
        (Batchwise, "rows_are_independent"),
        (Batchwise, "loss_adds_up"),
        (ActsOtherwise, "acting_is_forward"),
        (Counts, "nothing_hidden_changes"),
        (FitsAside, "weights_are_the_policy"),
        (Idle, "updates_lower_the_loss"),
        (ShowsAnything, "exhibits_are_plain"),
    ],
)
def test_laws_notice_faults(monkeypatch: pytest.MonkeyPatch, owner: type, law: str) -> None:
    monkeypatch.setattr(ConditionedCloningConfig, "owner", owner)
    with pytest.raises(AssertionError, match="ConditionedCloningConfig, actions Box"):
        LAWS[law](Trial(SMALL, SPECS["continuous"]))
