"""Models of dynamics, imagining, planning and the same tokens as a policy."""

import pytest
import torch
from torch import Tensor

from foretoken.core.batch import Batch
from foretoken.core.errors import ConfigError
from foretoken.core.spec import Spec
from foretoken.core.state import gather
from foretoken.data.windows import WindowSampler
from foretoken.methods.dynamics.base import DynamicsConfig
from foretoken.methods.dynamics.mlp import MLPDynamicsConfig
from foretoken.methods.dynamics.tokens import TokenDynamics, TokenDynamicsConfig, TokenStreamConfig
from foretoken.methods.model_planning import ModelPlanning, ModelPlanningConfig
from foretoken.methods.token_cloning import TokenCloning, TokenCloningConfig
from foretoken.nn.mixers.attention import AttentionConfig
from foretoken.nn.stack import BlockConfig, StackConfig
from foretoken.nn.tokenizers.mu_law import MuLawConfig
from foretoken.nn.tokenizers.uniform import UniformConfig
from foretoken.planning.mppi import MPPIConfig
from foretoken.testing.agreement import perturb
from foretoken.testing.methods import LAWS, Trial
from foretoken.testing.stores import SPECS, random_store

BLOCK = BlockConfig(mixer=AttentionConfig(num_heads=2, positions="rotary"))
BINS = MuLawConfig(bins=32, mu=5.0, largest=8.0)
STREAM = TokenStreamConfig(
    backbone=StackConfig(width=8, num_layers=2, pattern=(BLOCK,)), observation=BINS, action=UniformConfig(bins=16)
)
TOKENS, MLP = TokenDynamicsConfig(stream=STREAM, reward=BINS), MLPDynamicsConfig(width=16, num_layers=2)
PLANNER = MPPIConfig(horizon=3, candidates=4, iterations=1)
SPEC = SPECS["continuous"]


def config(model: DynamicsConfig) -> ModelPlanningConfig:
    return ModelPlanningConfig(model=model, planner=PLANNER, context=3)


def made(model: DynamicsConfig, spec: Spec = SPEC) -> tuple[ModelPlanning, Batch]:
    torch.manual_seed(0)
    method, store = ModelPlanning(config(model), spec), random_store(spec)
    method.fit({"data": store}, "main")
    perturb(method, 0, scale=0.3)
    return method.eval(), WindowSampler(store, method.window).draw(16, seed=0)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("kind", [config(MLP), TokenCloningConfig(stream=STREAM, context=4)])
def test_laws_of_the_rivals(kind: ModelPlanningConfig | TokenCloningConfig, law: str) -> None:
    LAWS[law](Trial(kind, SPEC, compare_forward=False))


@pytest.mark.parametrize("law", ["rows_are_independent", "updates_lower_the_loss", "state_keeps_its_shape"])
@pytest.mark.parametrize("spec", ["scalar", "unbounded"])
def test_other_shapes(spec: str, law: str) -> None:
    LAWS[law](Trial(config(TOKENS), SPECS[spec], compare_forward=False))


def test_actions_carry_no_loss_and_are_never_predicted() -> None:
    method, batch = made(TOKENS)
    model = method.model
    assert isinstance(model, TokenDynamics)
    assert {head.out_features for head in (model.next_token, model.next_reward)} == {32}
    before = method.loss(batch)
    changed = batch.action.clone()  # the last action of each window, whose outcome is not in it
    last = batch.scored & ~torch.cat((batch.valid[:, 1:], torch.zeros_like(batch.valid[:, :1])), dim=1)
    changed[last] = 0.3
    torch.testing.assert_close(method.loss(batch.replace(action=changed)).total, before.total)
    earlier = batch.action.clone()
    earlier[:, 0] = 0.3
    assert not torch.equal(method.loss(batch.replace(action=earlier)).total, before.total)


def test_imagining_with_the_cache_is_reading_anew() -> None:
    """Token by token with copied states, or the whole stream at once: the same likeliest tokens, decoded at bin centres."""
    method, batch = made(TOKENS)
    model = method.model
    assert isinstance(model, TokenDynamics)
    batch = batch.map(lambda leaf: leaf[batch.valid.all(1)][:2])
    seen, earned = method.imagine(batch, 3)
    observation, action = method.vectors(batch.observation, batch.action)
    tokens, done = model.stream.encode(observation, action)
    tokens[:, 3:] = 0
    with torch.no_grad():
        for time in range(3, 6):
            for entry in range(model.stream.n):
                y = model.stream(tokens[:, : time + 1], done[:, : time + 1], batch.valid[:, : time + 1])
                at = y[:, time - 1, -1] if entry == 0 else y[:, time, entry - 1]
                tokens[:, time, entry] = model.next_token(at).argmax(-1)
                if entry == 0:
                    share = model.next_reward(at).softmax(-1)
                    torch.testing.assert_close(earned[:, time - 3], share @ model.reward.centres[0])
            torch.testing.assert_close(seen[:, time - 3], model.stream.observation.decode(tokens[:, time]))


def test_copied_histories_are_histories_of_their_own() -> None:
    method, batch = made(TOKENS)
    observation, action = method.vectors(batch.observation, batch.action)
    with torch.no_grad():
        start = method.model.begin(observation[:2, :3], action[:2, :3], batch.valid[:2, :3])
        rows = torch.tensor([0, 0, 1])
        pushed = torch.tensor([-1.0, 1.0, 1.0])[:, None].expand(-1, 3)
        together, _ = method.model.step(gather(start, rows), pushed)
        for row in range(3):
            alone, _ = method.model.step(gather(start, rows[[row]]), pushed[[row]])
            torch.testing.assert_close(alone, together[[row]])


def test_history_is_seen_and_padding_is_not() -> None:
    method, batch = made(TOKENS)
    observation, action = method.vectors(batch.observation, batch.action)
    valid = torch.ones(4, 3, dtype=torch.bool)
    valid[2:, 0] = False

    def expects(first: Tensor) -> Tensor:
        seen = torch.cat((first[:, None], observation[:4, 1:3]), dim=1)
        with torch.no_grad():
            return method.model.step(method.model.begin(seen, action[:4, :3], valid), action[:4, 2])[0]

    one, other = expects(observation[:4, 0]), expects(-observation[:4, 0])
    assert not torch.equal(one[:2], other[:2])
    torch.testing.assert_close(one[2:], other[2:])


def test_the_mlp_counts_changes_in_the_datas_units() -> None:
    method, batch = made(MLP)
    torch.nn.init.zeros_(method.model.out.weight)
    torch.nn.init.zeros_(method.model.out.bias)
    batch = batch.map(lambda leaf: leaf[batch.valid.all(1)])
    seen, earned = method.imagine(batch, 3)
    drift = method.model.change.mean
    torch.testing.assert_close(seen[:, 1] - seen[:, 0], drift.expand_as(seen[:, 0]))
    torch.testing.assert_close(earned, method.model.reward.mean.expand_as(earned))


@pytest.mark.parametrize("spec", ["discrete", "image", "dict"])
def test_other_spaces_are_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match="dynamics need a Box of numbers as"):
        ModelPlanning(config(TOKENS), SPECS[spec])


def test_a_drawn_action_is_one_of_the_bins() -> None:
    torch.manual_seed(0)
    method, store = TokenCloning(TokenCloningConfig(stream=STREAM, context=4), SPEC), random_store(SPEC)
    method.fit({"data": store}, "main")
    batch = WindowSampler(store, method.window).draw(6, seed=0)
    with torch.no_grad():
        drawn = method.decide(batch.observation, batch.action, batch.valid, torch.arange(6))
        likeliest = method.decide(batch.observation, batch.action, batch.valid)
    assert drawn.shape == likeliest.shape == (6, 3) and not torch.equal(drawn, likeliest)
    assert ((drawn >= -2) & (drawn <= 1)).all()
