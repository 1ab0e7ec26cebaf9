"""Models of dynamics, imagining, planning and the same tokens as a policy."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from foretoken.core import random
from foretoken.core.batch import Batch, Step
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
from foretoken.planning.base import Plan
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


def test_the_loss_is_that_of_every_next_token_from_those_before_it_alone() -> None:
    """Read anew for each token, all later ones replaced; the reward is told where the last action stands."""
    method, batch = made(TOKENS)
    model, stream = method.model, method.model.stream
    assert isinstance(model, TokenDynamics)
    batch = batch.map(lambda leaf: leaf[:4])
    assert not batch.valid.all(), "no padding in sight"
    seen, done = stream.encode(*method.vectors(batch.observation, batch.action))
    earned = model.reward.encode(batch.reward[..., None])[..., 0]
    of_observation, of_reward = [], []
    for row, time in (batch.scored[:, :-1] & batch.valid[:, 1:]).nonzero().tolist():
        one, later = slice(row, row + 1), torch.arange(seen.shape[1])[:, None] > time
        for entry in range(stream.n):
            hidden = later & ((torch.arange(stream.n) >= entry) | (torch.arange(seen.shape[1])[:, None] > time + 1))
            with torch.no_grad():
                y = stream(seen[one].masked_fill(hidden, 0), done[one].masked_fill(later, 0), batch.valid[one])
                at = y[0, time, -1] if entry == 0 else y[0, time + 1, entry - 1]
                of_observation.append(F.cross_entropy(model.next_token(at), seen[row, time + 1, entry]))
                if entry == 0:
                    of_reward.append(F.cross_entropy(model.next_reward(at), earned[row, time]))
    found, want = method.loss(batch), [torch.stack(errors).mean() for errors in (of_observation, of_reward)]
    torch.testing.assert_close([found.metrics["observation"], found.metrics["reward"]], want)
    torch.testing.assert_close(found.total, want[0] + want[1] / stream.n)
    assert found.weight == len(of_reward)


def test_the_rivals_loss_is_that_of_the_actions_it_would_decide() -> None:
    """Every action token from those before it alone; the same logits decide."""
    torch.manual_seed(0)
    method, store = TokenCloning(TokenCloningConfig(stream=STREAM, context=4), SPEC), random_store(SPEC)
    method.fit({"data": store}, "main")
    perturb(method, 0, scale=0.3)
    stream, batch = method.eval().stream, WindowSampler(store, method.window).draw(4, seed=0)
    seen, done = stream.encode(*method.vectors(batch.observation, batch.action))
    errors = []

    @torch.no_grad()
    def logits(row: int, time: int, before: list[Tensor]) -> Tensor:
        """Of the next entry of an action, after these of its tokens; the others, as yet unknown, are replaced."""
        told = done[row, : time + 1].clone()
        told[time] = 0
        for entry, token in enumerate(before):
            told[time, entry] = token
        y = stream(seen[row, : time + 1][None], told[None], batch.valid[row, : time + 1][None])
        return method.next_token(y[0, time, stream.n - 1 + len(before)])

    for row, time in batch.scored.nonzero().tolist():
        best: list[Tensor] = []
        for entry in range(stream.m):
            errors.append(F.cross_entropy(logits(row, time, list(done[row, time, :entry])), done[row, time, entry]))
            best.append(logits(row, time, best).argmax())
        with torch.no_grad():
            decided = method.decide(
                *(leaf[row, : time + 1][None] for leaf in (batch.observation, batch.action, batch.valid))
            )
        torch.testing.assert_close(decided, method.vectors.action(stream.action.decode(torch.stack(best)[None])))
    found = method.loss(batch)
    torch.testing.assert_close(found.total, torch.stack(errors).mean())
    assert found.weight == batch.scored.sum()


@pytest.mark.parametrize("back", [0, 2, 1])
@pytest.mark.parametrize("seed", [None, 5])
def test_imagining_with_the_cache_is_reading_anew(back: int, seed: int | None) -> None:
    """Token by token with copied states, or the whole stream at once from the first step that is read: the same tokens, the
    likeliest or those that seeds draw, decoded at bin centres.
    """
    method, batch = made(TOKENS)
    model, begin = method.model, 3 - back if back else 0
    assert isinstance(model, TokenDynamics)
    batch = batch.map(lambda leaf: leaf[batch.valid.all(1)][:2])
    seed_B = None if seed is None else torch.tensor([seed, seed + 1])
    seen, earned = method.imagine(batch, 3, back, seed_B)
    observation, action = method.vectors(batch.observation, batch.action)
    tokens, done = model.stream.encode(observation, action)
    tokens[:, 3:] = 0
    with torch.no_grad():
        for time in range(3, 6):
            for entry in range(model.stream.n):
                y = model.stream(*(part[:, begin : time + 1] for part in (tokens, done, batch.valid)))
                at = y[:, -2, -1] if entry == 0 else y[:, -1, entry - 1]
                logits = model.next_token(at)
                tokens[:, time, entry] = (
                    logits.argmax(-1) if seed_B is None else random.categorical(logits, random.split(seed_B, entry))
                )
                if entry == 0:
                    share = model.next_reward(at).softmax(-1)
                    torch.testing.assert_close(earned[:, time - 3], share @ model.reward.centres[0])
            torch.testing.assert_close(seen[:, time - 3], model.stream.observation.decode(tokens[:, time]))
            seed_B = None if seed_B is None else random.split(seed_B, model.stream.n)


def test_data_leave_weights_and_bins_of_the_model_as_they_were() -> None:
    """Companding is fixed for all bodies, never by the statistics of one."""
    method = ModelPlanning(config(TOKENS), SPEC)
    before = {name: value.clone() for name, value in method.model.state_dict().items()}
    method.fit({"data": random_store(SPEC)}, "main")
    after = method.model.state_dict()
    assert {"stream.observation.centres", "reward.edges"} <= set(after)
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_steps_before_those_that_are_read_change_nothing() -> None:
    method, batch = made(TOKENS)
    batch = batch.map(lambda leaf: leaf[batch.valid.all(1)])
    other = batch.replace(observation=torch.cat((-batch.observation[:, :1], batch.observation[:, 1:]), dim=1))
    for back, same in ((2, True), (3, False), (0, False)):
        assert torch.equal(method.imagine(batch, 3, back)[0], method.imagine(other, 3, back)[0]) is same


def test_drawn_futures_come_as_often_as_they_are_likely() -> None:
    """Each row's by its own seed; the planner's model takes the likeliest."""
    method, batch = made(TOKENS)
    model = method.model
    assert isinstance(model, TokenDynamics)
    one = batch.map(lambda leaf: leaf[batch.valid.all(1)][:1, :4])
    rows = 4000
    many, seed = one.map(lambda leaf: leaf.expand(rows, *leaf.shape[1:])), torch.arange(rows)
    drawn, earned = method.imagine(many, 3, seed_B=seed)
    with torch.no_grad():
        tokens, done = model.stream.encode(*method.vectors(one.observation, one.action))
        share = model.next_token(model.stream(tokens, done, one.valid)[0, 2, -1]).softmax(-1)
    found = model.stream.observation.encode(drawn[:, 0])[:, 0].bincount(minlength=len(share)) / rows
    torch.testing.assert_close(found, share, atol=0.03, rtol=0)
    assert share.max() < 0.9, "nothing to draw"
    likeliest, expected = method.imagine(one, 3)
    torch.testing.assert_close(earned, expected.expand(rows, -1))
    alone, _ = method.imagine(one, 3, seed_B=seed[7:8])
    assert torch.equal(alone[0], drawn[7]) and not torch.equal(drawn, likeliest.expand_as(drawn))
    certain, batch = made(MLP)
    assert torch.equal(certain.imagine(batch, 3, seed_B=torch.arange(16))[0], certain.imagine(batch, 3)[0])


def test_history_is_read_once_per_decision_and_not_once_per_candidate() -> None:
    """Of K steps with G tokens each, all but the last observation's last token and its action; then a step at a time."""
    method, batch = made(TOKENS)
    rows, (n, m) = 2, (5, 3)
    state, read = method.policy.begin(rows, {}), []
    inner = method.model.stream.backbone
    inner.register_forward_pre_hook(lambda module, given: read.append(tuple(given[0].shape[:2])))
    zeros = torch.zeros(rows)
    for t in range(4):
        read.clear()
        flags = (zeros.bool() | (t == 0), zeros.bool(), ~zeros.bool())
        told = batch.observation[:rows, t], batch.action[:rows, t], zeros, zeros, *flags
        step = Step(*told, torch.full((rows,), t), torch.arange(rows))
        with torch.no_grad():
            state = method.policy.act(step, state).state
        known = (min(t + 1, 3) - 1) * (n + m) + n - 1
        candidates = rows * PLANNER.candidates
        assert read == [(rows, known)] + [(candidates, m + 1), *[(candidates, 1)] * (n - 1)] * PLANNER.horizon, t


def test_plans_are_made_with_the_likeliest_tokens_and_go_on_where_the_last_one_ended(monkeypatch) -> None:
    method, batch = made(TOKENS)
    told, search = [], method.planner.plan

    def plan(model, start, seed, warm):
        told.append((start, warm, search(model, start, seed, warm)))
        return told[-1][2]

    monkeypatch.setattr(method.planner, "plan", plan)
    zeros, no = torch.zeros(2), torch.zeros(2, dtype=torch.bool)
    state = method.policy.begin(2, {})
    for t in range(2):
        seen = batch.observation[:2, t], batch.action[:2, t], zeros, zeros, no | (t == 0), no, ~no
        decision = method.policy.act(Step(*seen, torch.full((2,), t), torch.arange(2)), state)
        state, found = decision.state, told[-1][2].actions
        torch.testing.assert_close(decision.action, method.vectors.action(found[:, 0]))
    assert all("seed" not in start for start, _, _ in told), "seeds would draw tokens"
    assert not told[0][1].any() and torch.equal(told[1][1][:, :-1], told[0][2].actions[:, 1:])


PROPOSING = config(TOKENS).replace(proposal=TokenCloningConfig(stream=STREAM, context=2))


@pytest.mark.parametrize("law", ["rows_are_independent", "updates_lower_the_loss", "weights_are_the_policy"])
def test_laws_with_a_proposal(law: str) -> None:
    LAWS[law](Trial(PROPOSING.replace(model=MLP), SPEC, compare_forward=False))


def test_a_search_begins_with_what_the_proposal_does_in_the_model(monkeypatch) -> None:
    """Its likeliest action, the observation that the model expects of it, and so on; the planner's first candidate."""
    torch.manual_seed(0)
    method, store = ModelPlanning(PROPOSING, SPEC), random_store(SPEC)
    method.fit({"data": store}, "main")
    perturb(method, 0, scale=0.3)
    batch, model, policy = WindowSampler(store, method.window).draw(16, seed=0), method.eval().model, method.proposal
    assert policy is not None
    batch = batch.map(lambda leaf: leaf[batch.valid.all(1)][:3, :4])
    seen, done, valid = batch.observation, batch.action.clone(), batch.valid
    with torch.no_grad():
        start = model.begin(*method.vectors(seen, done), valid)
        plan = method.propose(start, seen, done, valid)
        again = method.propose(start, seen, done, valid)
        assert torch.equal(plan, again), "the start is not written into"
        state = start
        for time in range(PLANNER.horizon):
            chosen = policy.decide(seen[:, -2:], done[:, -2:], valid[:, -2:])
            _, vector = method.vectors(seen[:, -1:], chosen[:, None])
            torch.testing.assert_close(plan[:, time], vector[:, 0])
            done[:, -1] = chosen
            _, state = model.step(gather(state, torch.arange(3)), vector[:, 0])
            seen = torch.cat((seen, model.observation(state)[:, None]), dim=1)
            done, valid = torch.cat((done, done[:, :1]), dim=1), torch.cat((valid, valid[:, :1]), dim=1)
    warm = []
    monkeypatch.setattr(
        method.planner, "plan", lambda model, start, seed, begin: warm.append(begin) or Plan(begin, seed)
    )
    zeros, no = torch.zeros(3), torch.zeros(3, dtype=torch.bool)
    step = Step(batch.observation[:, 0], batch.action[:, 0], zeros, zeros, ~no, no, ~no, zeros.long(), torch.arange(3))
    with torch.no_grad():
        acted = method.policy.act(step, method.policy.begin(3, {})).action
        want = policy.decide(batch.observation[:, :1], batch.action[:, :1], ~no[:, None])
    torch.testing.assert_close(acted, want)


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
