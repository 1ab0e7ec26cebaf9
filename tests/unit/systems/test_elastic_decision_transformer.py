"""Elastic Decision Transformer: who sees returns, the search against a loop without padding, the other actors, the losses, the claim."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from foretoken.core.batch import Step
from foretoken.core.errors import ConfigError
from foretoken.data.windows import WindowSampler
from foretoken.methods import elastic_cloning as ec
from foretoken.methods.conditions.return_to_go import ReturnToGoConfig
from foretoken.methods.elastic_cloning import SearchConfig
from foretoken.nn.embed.time import EpisodeTimeConfig, WindowTimeConfig
from foretoken.nn.mixers.mamba2 import Mamba2Config
from foretoken.nn.stack import with_mixer
from foretoken.systems.offline import elastic_decision_transformer as edt
from foretoken.testing.methods import LAWS, Trial
from foretoken.testing.stores import SPECS

SMALL = edt.smoke().system.replace(context=6, returns=ReturnToGoConfig(scale=2.0))


def acting(config=SMALL, spec="continuous"):
    trial = Trial(config, SPECS[spec])
    return trial, trial.acting_method()


def drawn(method, store, rows=24):
    return WindowSampler(store, method.window).draw(rows, 0)


# -- tokens


@pytest.mark.parametrize("seen", ["first", "all"])
def test_estimates_do_not_see_their_own_return_and_actions_do(seen) -> None:
    trial, method = acting(SMALL.replace(seen=seen))
    batch = drawn(method, trial.store)
    full = batch.valid.all(1) & ~batch.final.any(1)
    assert bool(full.any())

    def read(returns):
        _, state, given = method._recorded(batch.replace(return_to_go=returns))
        return method.best(state)[full, :, 0], method.histogram(state)[full], method.head(given).mode()[full]

    base = read(batch.return_to_go)
    for step in range(6):
        changed = batch.return_to_go.clone()
        changed[:, step] += 3
        best, bins, action = read(changed)
        assert torch.equal(best[:, : step + 1], base[0][:, : step + 1])
        assert torch.equal(bins[:, : step + 1], base[1][:, : step + 1])
        assert bool((action[:, step] != base[2][:, step]).any())
        if step < 5:  # what follows sees the window's first return, or all
            assert bool((best[:, step + 1 :] != base[0][:, step + 1 :]).any()) == (seen == "all" or step == 0)


def test_all_returns_seen_lets_any_mixer_in() -> None:
    trial, method = acting(with_mixer(SMALL, Mamba2Config()).replace(seen="all"))
    assert bool(method.loss(drawn(method, trial.store)).total.isfinite())


def test_every_length_of_history_is_trained() -> None:
    trial, method = acting()
    batch = drawn(method, trial.store, rows=200)
    length, timestep = batch.valid.cumsum(1)[batch.scored], batch.timestep[batch.scored]
    assert set(length.tolist()) == {1, 2, 3, 4, 5, 6}
    assert len(timestep[length == 1].unique()) > 6, "short histories begin anywhere in an episode"


def test_losses() -> None:
    trial, method = acting()
    batch = drawn(method, trial.store)
    with torch.no_grad():
        returns, state, given = method._recorded(batch)
        loss, prediction = method.loss(batch), method.head(given)
    miss = returns - method.best(state).squeeze(-1)
    best = torch.where(miss > 0, 0.99, 0.01) * miss.square()
    edges = torch.linspace(batch_low(trial), batch_high(trial), 61)[1:-1]
    bins = F.cross_entropy(method.histogram(state).mT, torch.bucketize(returns * 2, edges), reduction="none")
    statistics = trial.store.statistics("observation")[""]
    observation = (batch.observation - torch.tensor(statistics.mean)) / torch.tensor(statistics.std)
    guess = method.successor(torch.cat((given, prediction.scaled), -1))
    n = batch.scored.sum()
    state_errors = [
        (guess[row, t] - observation[row, t + 1]).square().mean()
        for row, t in batch.scored.nonzero().tolist()
        if t < 5 and batch.valid[row, t + 1]
    ]
    want = {
        "action": prediction.loss(batch.action)[batch.scored].mean(),
        "best": best[batch.scored].mean(),
        "bins": bins[batch.scored].mean(),
        "state": torch.stack(state_errors).sum() / n,
    }
    for name, value in want.items():
        torch.testing.assert_close(loss.metrics[f"{name}_loss"].double(), value.double(), rtol=1e-4, atol=1e-5)
    total = want["action"] + 0.5 * want["best"] + 0.001 * want["bins"] + want["state"]
    torch.testing.assert_close(loss.total.double(), total.double(), rtol=1e-4, atol=1e-5)


def test_choices_are_embedded_one_by_one_and_learn_by_cross_entropy() -> None:
    trial, method = acting(spec="discrete")
    batch, space = drawn(method, trial.store), SPECS["discrete"].action
    with torch.no_grad():
        loss, logits = method.loss(batch), method.head(method._recorded(batch)[2]).logits
        each = method.embed_action(space.start + torch.arange(space.n))
    assert logits.shape[-1] == space.n and len(each.unique(dim=0)) == space.n
    logits, chosen = logits.reshape(*batch.action.shape, -1), (batch.action - space.start).clamp(min=0)
    error = F.cross_entropy(logits.mT, chosen, reduction="none")
    torch.testing.assert_close(loss.metrics["action_loss"], error[batch.scored].mean())


def batch_low(trial):
    return float(trial.store.statistics("return_to_go")[""].low)


def batch_high(trial):
    return float(trial.store.statistics("return_to_go")[""].high)


def test_bins_are_those_of_the_range_and_read_as_minus_one_to_one() -> None:
    config = SMALL.replace(low=-10.0, high=50.0)
    _, method = acting(config)
    raw = torch.tensor([-99.0, -10.0, -9.1, 0.5, 49.9, 99.0])
    bins = method.bin_of(raw / 2)
    assert bins.tolist() == [0, 0, 0, 10, 59, 59]
    read = []
    method.embed_return.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    nothing, rows = torch.zeros(6, 1, 16), torch.ones(6, 1, dtype=torch.bool)
    method.features(nothing, nothing, raw[:, None] / 2, rows.long(), rows)
    middles = (bins - 29.5) / 30  # of the bins, with the ends of the range at -1 and 1
    torch.testing.assert_close(read[0].flatten(), middles)


# -- acting


def play(method, store, episode, target, policy=None):
    """Decisions along a recorded episode, one row."""
    policy = policy or method.policy
    state = policy.begin(1, {"target_return": torch.tensor([target])})
    e = store.episode(episode)
    for t in range(e.length):
        before = torch.as_tensor(e.action[t - 1] if t else np.zeros_like(e.action[0]))[None]
        reward = torch.tensor([float(e.reward[t - 1]) if t else 0.0])
        flags = torch.tensor([t == 0]), torch.tensor([False]), torch.tensor([True])
        observation = torch.as_tensor(e.observation[t])[None]
        step = Step(observation, before, reward, reward * 0, *flags, torch.tensor([t]), torch.tensor([7 * t + episode]))
        with torch.no_grad():
            decision = policy.act(step, state)
        state = decision.state
        yield t, decision


def answer(method, e, start, t, target):
    """Action and estimate at step t with a history from `start` on: two passes, no padding."""
    earned = np.concatenate([[0.0], np.cumsum(e.reward)])[start : t + 1]
    returns = (target - torch.as_tensor(earned, dtype=torch.float32))[None] / method.returns.scale
    actions = torch.as_tensor(e.action[start : t + 1])[None]
    previous = torch.cat((torch.zeros_like(actions[:, :1]), actions[:, :-1]), 1)
    embedded = (
        method.embed_action(previous),
        method.embed_observation(torch.as_tensor(e.observation[start : t + 1])[None]),
    )
    when, valid = torch.arange(start, t + 1)[None], torch.ones(1, t + 1 - start, dtype=torch.bool)
    estimates = method.best(method.features(*embedded, returns, when, valid)[0]).squeeze(-1)
    state, given = method.features(*embedded, estimates, when, valid)
    return method.head(given[:, -1:]).mode()[0, 0], float(method.best(state)[0, -1, 0])


@pytest.mark.parametrize(
    ("time", "spec"),
    [(EpisodeTimeConfig(init_std=0.5), "continuous"), (WindowTimeConfig(), "continuous"), (None, "discrete")],
)
def test_search_takes_the_beginning_with_the_highest_estimate_at_the_present_step(time, spec) -> None:
    trial, method = acting(SMALL.replace(time=time), spec)
    chosen = set()
    with torch.no_grad():
        for episode in (1, 3, 6):
            e = trial.store.episode(episode)
            for t, decision in play(method, trial.store, episode, 4.0):
                starts = range(max(0, t - 5), t + 1, 2)  # 0, 2, 4 steps into the window
                answers = {t + 1 - start: answer(method, e, start, t, 4.0) for start in starts}
                length = int(decision.record["history"])
                assert length in answers
                action, estimate = answers[length]
                assert estimate == pytest.approx(max(value for _, value in answers.values()), abs=1e-4)
                assert float(decision.record["estimate"]) == pytest.approx(estimate, abs=1e-4)
                torch.testing.assert_close(decision.action[0].float(), action.float(), rtol=1e-3, atol=1e-4)
                chosen.add(length)
    assert len(chosen) > 2


def test_all_beginnings_are_tried_as_one_batch_in_two_passes() -> None:
    trial, method = acting()
    passes = []
    method.backbone.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    for t, _ in play(method, trial.store, 3, 4.0):
        tries = min(t, 5) // 2 + 1  # half as many as steps in the window
        assert passes == [tries, tries], t
        passes.clear()


@pytest.mark.parametrize("spec", ["continuous", "discrete"])
def test_a_fixed_length_asked_for_the_target_is_the_forward_pass(spec) -> None:
    config = SMALL.replace(search=SearchConfig(length=6, asked="target"))
    LAWS["acting_is_forward"](Trial(config, SPECS[spec]))


def test_of_one_step_the_history_has_no_effect() -> None:
    trial, method = acting(SMALL.replace(search=SearchConfig(length=1)))
    e = trial.store.episode(3)
    with torch.no_grad():
        for t, decision in play(method, trial.store, 3, 4.0):
            assert int(decision.record["history"]) == 1
            torch.testing.assert_close(decision.action[0], answer(method, e, t, t, 4.0)[0], rtol=1e-3, atol=1e-4)


def test_near_search_tries_neighbours_of_the_last_choice_once_windows_are_full() -> None:
    trial, method = acting(SMALL.replace(search=SearchConfig(delta=1)))
    before, lengths = 6, []
    for t, decision in play(method, trial.store, 3, 4.0):
        length = int(decision.record["history"])
        assert (abs(length - before) <= 1 and 1 <= length <= 6) if t >= 6 else (t + 1 - length) % 2 == 0
        before = length
        lengths.append(length)
    state = method.policy.begin(3, {"target_return": torch.zeros(3)})
    kept = {**state["history"], "seen": torch.tensor([6, 6, 3])}
    tried = method.policy.lengths({**state, "history": kept, "length": torch.tensor([1, 6, 6])})
    rows = [sorted(set(row[row > 0].tolist())) for row in tried]
    assert rows == [[1, 2], [5, 6], [2, 4]]
    assert method.policy.lengths({**state, "history": {**kept, "seen": torch.tensor([6, 6, 6])}}).shape == (3, 3)


SEARCHES = [SearchConfig(delta=1), SearchConfig(asked="draw", optimism=2.0), SearchConfig(length=3)]


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("law", ["rows_are_independent", "tracing_changes_nothing", "state_keeps_its_shape"])
def test_laws_of_other_searches(search, law) -> None:
    LAWS[law](Trial(SMALL.replace(context=3, search=search), SPECS["continuous"]))


def test_draws_are_optimistic_and_leave_out_the_least_likely() -> None:
    logits = torch.zeros(1, 60)
    assert int((ec.optimistic(logits, 0.0, 0.15) > -torch.inf).sum()) == 60, "equal ones are all as likely"
    raised = ec.optimistic(torch.randn(5, 60), 0.0, 0.15)
    assert ((raised > -torch.inf).sum(-1) == 51).all()
    tilted = ec.optimistic(logits, 15.0, 0.15)[0]
    assert tilted.isinf().tolist() == [True] * 9 + [False] * 51
    torch.testing.assert_close(tilted[-1], torch.tensor(15.0))


def test_what_cannot_be_is_refused() -> None:
    image = SPECS["image"]
    with pytest.raises(ConfigError, match="set state_weight=0"):
        SMALL.build(image)
    SMALL.replace(state_weight=0.0).build(image)
    with pytest.raises(ConfigError, match="expectile must lie in"):
        SMALL.replace(expectile=1.0)
    with pytest.raises(ConfigError, match="context must be at least 2, got 1"):
        SMALL.replace(context=1)
    with pytest.raises(ConfigError, match="search length must be at most context, got 7 and 6"):
        SMALL.replace(search=SearchConfig(length=7))
    with pytest.raises(ConfigError, match=r"SearchConfig\.step must be at least 1, got 0"):
        SearchConfig(step=0)
    with pytest.raises(ConfigError, match="dropped"):
        SearchConfig(dropped=1.0)


# -- claim


def test_arms_share_data_and_budget() -> None:
    arms = edt.claim().arms
    for ours, theirs in (("edt", "dt"), ("edt-lander", "dt-lander")):
        mine, other = arms[ours].system, arms[theirs].system
        assert arms[ours].replace(system=other) == arms[theirs]
        assert (mine.context, mine.time, mine.returns) == (other.context, other.time, other.condition)
        assert (mine.backbone.width, mine.backbone.num_layers) == (other.backbone.width, other.backbone.num_layers)


def test_lengths_are_compared_in_full_windows_around_the_first_step_halfway(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SMALL.replace(context=3)
    left = np.array([[10, 10], [9, 9], [8, 9], [7, 9], [6, 9], [5, 9], [6, 9], [5, 9], [4, np.nan], [4, np.nan]], float)
    looked = np.where(np.isnan(left), np.nan, 3.0)
    looked[:3, 0] = (1, 2, 2)
    looked[3:8, 0] = 1  # steps 3 to 7 lie around step 5
    asked = []

    def walk(run, method):
        asked.append(method.config.search)
        return np.array([1.0, 0.0]), left, looked

    monkeypatch.setattr(edt, "walk", walk)
    monkeypatch.setattr(edt, "load", lambda path: config.build(SPECS["continuous"]))
    found = edt.figures(SimpleNamespace(evaluations=list, path=""))
    assert found["history at junction"] == 1.0
    assert found["history elsewhere"] == pytest.approx((2 + 3 + 3) / 3), "the second never came halfway"
    assert found["success"] == found["success of length K as dt"] == 0.5
    assert [(one.length, one.asked) for one in asked] == [
        (0, "estimate"),
        (3, "target"),
        (3, "estimate"),
        (1, "estimate"),
    ]


@pytest.mark.parametrize(
    ("near", "ours", "fails"),
    [(3.0, 200.0, None), (9.0, 200.0, "looks back"), (3.0, 100.0, "LunarLander"), (3.0, 199.0, None)],
)
def test_verdict(near, ours, fails) -> None:
    results = {
        "edt": [{"history at junction": near, "history elsewhere": 8.0}] * 3,
        "edt-lander": [{"return": ours + noise} for noise in (-10, 0, 10)],
        "dt-lander": [{"return": 200.0 + noise} for noise in (-10, 0, 10)],
    }
    broken = [name for name, held in edt.verdict(results).items() if not held]
    assert len(broken) == (fails is not None) and all(fails in name for name in broken)
