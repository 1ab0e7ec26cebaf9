"""Q-Transformer: targets against a loop, the shift, histories, the order of dimensions, exploring, the claim's verdict."""

import dataclasses

import numpy as np
import pytest
import torch

from foretoken.core.batch import Step
from foretoken.core.errors import ConfigError
from foretoken.core.spec import Box
from foretoken.data.windows import WindowSampler
from foretoken.methods import history
from foretoken.methods.autoregressive_q import CloningConfig, QLearningConfig
from foretoken.nn.heads.value import HLGaussConfig, ScalarValueConfig, TwoHotConfig
from foretoken.nn.target import Target
from foretoken.objectives.conservative import conservative_loss
from foretoken.systems.value import q_transformer as qt
from foretoken.testing.agreement import perturb
from foretoken.testing.stores import SPECS, random_store

OPEN = ScalarValueConfig()


def made(spec="continuous", objective=None, **changes):
    """A fitted method in float64 whose weights and slow copy are random, and its store."""
    torch.manual_seed(0)
    objective = objective or QLearningConfig(discount=0.9, steps=2, horizon=4, value=OPEN)
    method = qt.smoke().system.replace(objective=objective, **changes).build(SPECS[spec])
    store = random_store(SPECS[spec])
    method.fit({"data": store}, "main")
    perturb(method, 0, scale=0.3)
    return method.double().eval(), store


def drawn(method, store, rows=24):
    batch = WindowSampler(store, method.window).draw(rows, 0)
    at = batch.scored.int().argmax(1)
    states = history.up_to(batch.observation, batch.valid, at[:, None], method.config.context)
    return batch, at, states, method.actions.encode(batch.action[torch.arange(rows), at])


@pytest.mark.parametrize("spec", ["continuous", "discrete"])
@pytest.mark.parametrize(("steps", "horizon"), [(1, 0), (3, 0), (1, 5), (3, 50)])
def test_targets_equal_a_loop_over_episodes(spec: str, steps: int, horizon: int) -> None:
    config = QLearningConfig(discount=0.9, steps=steps, horizon=horizon, value=OPEN)
    method, store = made(spec, config)
    batch, at, states, taken = drawn(method, store)
    got = method.targets(config, batch, at, states, taken)
    shift, K = float(method.shift), method.config.context
    assert shift == pytest.approx(max(0.0, -float(store.statistics("reward")[""].low)), rel=1e-6) and shift > 0
    seen = set()

    def history(observation, t):
        return torch.stack([torch.from_numpy(observation[max(0, t - k)]) for k in range(K - 1, -1, -1)])[None]

    def best(states, chosen):
        return float(method.target(states, chosen).value[0, -1].max())

    for row, address in enumerate(batch.at[torch.arange(len(at)), at].tolist()):
        number = int(np.searchsorted(store.episodes["start"], address, side="right")) - 1
        episode, t = store.episode(number), address - int(store.episodes["start"][number])
        terminated = bool(episode.terminated.any())

        def earned(count, rest, episode=episode, t=t, terminated=terminated):
            """Rewards up to the end; then what is over earns the shift for ever, and what is not the value `rest(t)`."""
            total, end = 0.0, min(t + count, len(episode.reward))
            for step in range(t, end):
                total += 0.9 ** (step - t) * (float(episode.reward[step]) + shift)
            over = terminated and end == len(episode.reward)
            seen.add((over, end == len(episode.reward)))
            return total + 0.9 ** (end - t) * (shift / (1 - 0.9) if over else rest(end))

        last = earned(steps, lambda end, episode=episode: best(history(episode.observation, end), taken[:1, :0]))
        inside = [
            best(history(episode.observation, t), taken[row : row + 1, : i + 1]) for i in range(taken.shape[1] - 1)
        ]
        bound = earned(horizon, lambda end: 0.0) if horizon else -np.inf
        want = torch.tensor([max(value, bound) for value in (*inside, last)])
        torch.testing.assert_close(got[row], want, rtol=1e-5, atol=1e-5, check_dtype=False)
    assert {(True, True), (False, True), (False, False)} <= seen, "termination, truncation and neither"


def test_the_shift_keeps_the_order_of_policies() -> None:
    """Whole terminated episodes, short or long, are worth their true return and one constant."""
    config = QLearningConfig(discount=0.9, horizon=50, value=OPEN)
    method, store = made(objective=config)
    batch, at, _, _ = drawn(method, store, rows=64)
    earned, share, _ = method.ahead(config, batch, at, 50)
    constant = float(method.shift) / (1 - 0.9)
    over = (batch.terminated & batch.valid).any(1)
    rewards = torch.where(batch.scored, batch.reward, 0.0).double()
    since = (torch.arange(rewards.shape[1]) - at[:, None]).clamp(min=0)
    true = (rewards * 0.9**since).sum(1)
    torch.testing.assert_close(earned[over], true[over] + constant, rtol=1e-5, atol=1e-5, check_dtype=False)
    assert bool((share[over] == 0).all()) and bool((share[~over] > 0).all())
    assert bool((earned >= 0).all()), "0 is the lowest possible return"


def test_the_loss_is_half_the_squared_errors_and_alpha_halves_the_others() -> None:
    config = QLearningConfig(discount=0.9, conservative=0.7, horizon=3, value=OPEN)
    method, store = made(objective=config)
    batch, at, states, taken = drawn(method, store)
    value = method.values(states, taken[:, :-1]).value
    target = method.targets(config, batch, at, states, taken)
    own = value.gather(2, taken[..., None])[..., 0]
    want = 0.5 * (own - target).square().mean() + 0.7 / 2 * conservative_loss(value, taken).mean()
    torch.testing.assert_close(method.loss(batch).total, want, check_dtype=False)


def test_targets_have_no_gradient_and_the_slow_copy_follows() -> None:
    method, store = made(objective=QLearningConfig(tau=0.25, horizon=3, value=OPEN))
    batch, *_ = drawn(method, store)
    method.loss(batch).total.backward()
    assert all(parameter.grad is None for parameter in method.target.parameters())
    before = [parameter.clone() for parameter in method.target.parameters()]
    method.after_update("loss", {})
    for old, slow, fast in zip(before, method.target.parameters(), method.values.parameters(), strict=True):
        torch.testing.assert_close(slow, torch.lerp(old, fast, 0.25))


@pytest.mark.parametrize(
    "value", [ScalarValueConfig(low=0, high=60), ScalarValueConfig(huber=1.0), TwoHotConfig(), HLGaussConfig(bins=31)]
)
def test_every_value_head_learns_the_same_targets(value) -> None:
    """Without bootstrapping or a conservative term: what is earned in four steps, by any head."""
    method, store = made(objective=QLearningConfig(discount=0.5, conservative=0.0, horizon=4, tau=0.0, value=value))
    method = method.float().train()
    method.target = Target(method.values)
    batch, at, states, taken = drawn(method, store)
    optimiser = torch.optim.Adam(method.values.parameters(), lr=1e-2)
    target = method.targets(method.config.objective, batch, at, states, taken)
    for _ in range(150):
        optimiser.zero_grad()
        method.loss(batch).total.backward()
        optimiser.step()
    got = method.values(states, taken[:, :-1]).select(taken).value.detach()
    assert float((got - target).abs().mean()) < 0.35 * float((target - target.mean()).abs().mean())


def test_a_histogram_takes_its_range_from_the_data() -> None:
    method, store = made(objective=QLearningConfig(discount=0.9, value=TwoHotConfig()))
    shift, data = float(method.shift), store.episodes
    low, high = method.values.head.points[0], method.values.head.points[-1]
    assert float(low) == 0 and float(high) <= float((data["return"] + shift * data["length"]).max()) + 10 * shift + 1e-3
    batch, *_ = drawn(method, store)
    earned = method.ahead(method.config.objective, batch, batch.scored.int().argmax(1), 50)[0]
    assert float(earned.max()) <= float(high)


def test_the_greedy_bins_are_the_best_under_the_values_of_training() -> None:
    method, store = made(context=3)
    _, _, states, _ = drawn(method, store)
    found = method.decide(states)
    tokens = method.actions.encode(found.action)
    value = method.values(states, tokens[:, :-1]).value
    torch.testing.assert_close(found.values, value)
    torch.testing.assert_close(value.argmax(-1), tokens)


def test_a_history_shorter_than_k_repeats_its_first_state_and_older_ones_are_not_seen() -> None:
    method, store = made(context=3)
    batch = WindowSampler(store, method.window.replace(anchor="end", back=0)).draw(16, 0)
    places = torch.arange(batch.valid.shape[1])
    states = history.up_to(
        batch.observation, batch.valid, places[None].expand(16, -1), method.config.context
    ).unflatten(0, (16, -1))
    first = batch.valid.int().argmax(1)
    for row in range(16):
        for place in range(int(first[row]), len(places)):
            want = [batch.observation[row, max(int(first[row]), place - k)] for k in (2, 1, 0)]
            assert torch.equal(states[row, place], torch.stack(want))


def test_the_order_of_dimensions_decides_which_is_told_of_which() -> None:
    plain, store = made()
    other, _ = made(order=(2, 0, 1))
    action = random_store(SPECS["continuous"]).episode(3).action
    tokens = plain.actions.encode(torch.from_numpy(action))
    assert torch.equal(other.actions.encode(torch.from_numpy(action)), tokens[:, [2, 0, 1]])
    torch.testing.assert_close(other.actions.decode(tokens[:, [2, 0, 1]]), plain.actions.decode(tokens))
    _, _, states, taken = drawn(other, store)
    changed = taken.clone()
    changed[:, 0] = (changed[:, 0] + 1) % other.actions.vocabulary  # the third dimension of the action
    moved = (other.values(states, changed[:, :-1]).value != other.values(states, taken[:, :-1]).value).any(0).any(1)
    assert moved.tolist() == [False, True, True]


def test_exploring_draws_bins_by_the_seed_of_each_row() -> None:
    method, store = made(objective=QLearningConfig(epsilon=0.5, value=OPEN))
    _, _, states, _ = drawn(method, store, rows=200)
    seed = torch.arange(200)
    best, tried = (method.actions.encode(method.decide(states, s).action) for s in (None, seed))
    same = float((best == tried)[:, 0].float().mean())
    assert 0.4 < same < 0.65
    order = torch.randperm(200)
    assert torch.equal(method.actions.encode(method.decide(states[order], seed[order]).action), tried[order])
    timid = dataclasses.replace(method.config.objective, epsilon=0.0)
    method.config = method.config.replace(objective=timid)
    assert torch.equal(method.actions.encode(method.decide(states, seed).action), best)


def test_cloning_explores_by_its_softmax_and_needs_no_target() -> None:
    method, store = made("discrete", CloningConfig())
    assert not hasattr(method, "target") and method.window.length == method.config.context
    batch, _, states, taken = drawn(method, store)
    value = method.values(states, taken[:, :-1]).value
    want = torch.nn.functional.cross_entropy(value[:, 0], taken[:, 0])
    torch.testing.assert_close(method.loss(batch).total, want)
    counts = torch.bincount(method.decide(states[:1].expand(4000, -1, -1), torch.arange(4000)).action - 2, minlength=4)
    torch.testing.assert_close(counts / 4000, value[0, 0].softmax(-1), atol=0.04, rtol=0, check_dtype=False)


def test_the_policy_explores_only_when_asked() -> None:
    method, _ = made(objective=QLearningConfig(epsilon=1.0, value=OPEN))
    zeros, no = torch.zeros(64), torch.zeros(64, dtype=torch.bool)
    step = Step(
        torch.zeros(64, 5), torch.zeros(64, 3), zeros, zeros, ~no, no, ~no, torch.zeros(64).long(), torch.arange(64)
    )
    policy = method.policy
    with torch.no_grad():
        calm, wild = (policy.act(step, policy.begin(64, {}), explore=explore).action for explore in (False, True))
    assert len(calm.unique(dim=0)) == 1 and len(wild.unique(dim=0)) > 32


def test_bad_settings_are_refused() -> None:
    config = qt.smoke().system
    with pytest.raises(ConfigError, match=r"each of the 3 dimensions of actions once, got \(0, 0, 1\)"):
        config.replace(order=(0, 0, 1)).build(SPECS["continuous"])
    with pytest.raises(ConfigError, match="Box or Discrete actions, got MultiDiscrete"):
        config.build(SPECS["multi-discrete"])
    with pytest.raises(ConfigError, match="discount must lie"):
        QLearningConfig(discount=1.0)
    with pytest.raises(ConfigError, match="steps must be at least 1"):
        QLearningConfig(steps=0)
    with pytest.raises(ConfigError, match="context must be at least 1, got 0"):
        config.replace(context=0)


def test_actions_of_any_shape_have_tokens() -> None:
    for box in (Box(shape=(2, 2), low=(-1,), high=(1,)), SPECS["scalar"].action):
        method = qt.smoke().system.build(dataclasses.replace(SPECS["continuous"], action=box))
        action = 2 * torch.rand(7, *box.shape) - 1
        tokens = method.actions.encode(action)
        assert tokens.shape == (7, max(box.size, 1))
        assert float((method.actions.decode(tokens) - action).abs().max()) <= 1 / 21 + 1e-6


def test_arms_differ_in_their_objective_only() -> None:
    arms = qt.claim().arms
    system = arms["full"].system
    for arm in arms.values():
        assert arm.replace(system=arm.system.replace(objective=system.objective)) == arms["full"]


def rows(success, updates=300.0, value=0.1, **more):
    return [
        {"success": success + noise, "updates to 80 %": updates, "best value at the start": value, **more}
        for noise in (-0.02, 0.0, 0.02)
    ]


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        ({}, None),
        ({"bc": rows(0.6, **{"success of drawn actions": 0.85})}, "cloning"),
        ({"bc": rows(0.8, **{"success of drawn actions": 0.2})}, "cloning"),
        ({"alpha-0": rows(0.97, value=0.9)}, "above alpha"),
        ({"alpha-0": rows(0.1, value=0.6)}, "true optimum"),
        ({"no-bound": rows(0.9, updates=300.0)}, "without the bound"),
        ({"full-hl-gauss": rows(0.9)}, "HL-Gauss"),
    ],
)
def test_verdict(change, fails: str | None) -> None:
    fine = {
        "bc": rows(0.6, **{"success of drawn actions": 0.3}),
        "alpha-0": rows(0.1, value=0.9),
        "no-bound": rows(0.5, updates=900.0),
        "full": rows(0.95),
        "full-hl-gauss": rows(0.94),
    }
    broken = [name for name, held in qt.verdict({**fine, **change}).items() if not held]
    assert len(broken) == (fails is not None) and all(fails in name for name in broken if fails)
