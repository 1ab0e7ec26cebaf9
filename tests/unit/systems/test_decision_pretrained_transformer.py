"""Decision-Pretrained Transformer: deciding from given data, what such decisions lose, the claim's figures and its verdict."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from foretoken.envs.diagnostic import make_world
from foretoken.envs.diagnostic.record import record
from foretoken.envs.learners import UCB, EmpiricalMean, MixedArms, Thompson, UniformRandom
from foretoken.envs.slots import Job
from foretoken.evaluation.evaluate import Evaluated
from foretoken.evaluation.rollout import EpisodeResult, rollout
from foretoken.nn.mixers.attention import AttentionConfig
from foretoken.nn.stack import uniform_stack
from foretoken.systems.incontext import decision_pretrained_transformer as dpt
from foretoken.testing.agreement import perturb

WHERE = "foretoken/Bandit-200-v0"
SMALL = {"context": 12, "backbone": uniform_stack(AttentionConfig(), 16, 1)}


def built(run):
    torch.manual_seed(0)
    method = run.system.replace(**SMALL).build(make_world(WHERE, 1).spec)
    perturb(method, 0)
    return method.eval()


def test_offline_decides_from_the_given_dataset_alone_by_the_likeliest_action() -> None:
    method, generator = built(dpt.offline()), np.random.default_rng(0)
    assert dpt.offline().replace(system=dpt.cpu().system) == dpt.cpu()
    jobs, want = [], []
    for number in range(12):
        action, reward = generator.integers(0, 5, 8), generator.normal(0, 3, 8).astype(np.float32)
        given = {"observation": np.zeros((8, 1), np.float32), "action": action, "reward": reward}
        given["next_observation"] = given["observation"]
        jobs.append(Job(number, context={f"prompt_{name}": values for name, values in given.items()}))
        with torch.no_grad():
            parts = (torch.as_tensor(given[name])[None] for name in ("observation", "action", "reward"))
            seen, done, earned = parts
            context = method.transition(seen, done, earned, seen)
            prediction = method.predict(seen[:, 0], context, torch.ones(1, 8, dtype=torch.bool), last=True)
        want.append(int(prediction.mode()))
    assert len(set(want)) > 1, "data that all say the same"
    played = rollout(method.policy, WHERE, jobs, spec=method.spec, seed=0, max_steps=4, keep_actions=True)
    assert [result.actions.tolist() for result in played] == [[arm] * 4 for arm in want]


def test_offline_takes_the_weights_of_cpu() -> None:
    trained = built(dpt.cpu())
    built(dpt.offline()).load_state_dict(trained.state_dict())


class ByMean:
    """In the method's place: the arm that paid best in the context. Keeps what it was shown."""

    def __init__(self):
        self.shown = []

    def transition(self, observation, action, reward, successor):
        assert observation.shape == successor.shape == (*action.shape, 1) and not observation.any()
        self.shown.append((action.numpy(), reward.numpy()))
        return action, reward

    def predict(self, query, context, valid, *, last):
        assert last and valid.all() and valid.shape == context[0].shape and query.shape == (len(valid), 1)
        arms = torch.nn.functional.one_hot(context[0], 5)
        mean = (arms * context[1][..., None]).sum(1) / arms.sum(1).clamp(min=1)
        return SimpleNamespace(mode=lambda: mean.masked_fill(arms.sum(1) == 0, -9).argmax(-1)[:, None])


def test_offline_losses_are_gaps_to_the_best_arm() -> None:
    trials, pulls, seed = 60, 30, 2
    method = ByMean()
    found = dpt.offline_losses(method, WHERE, trials=trials, pulls=pulls, seed=seed)
    world = make_world(WHERE, trials)
    task = np.array([world.task_of("held-out", number) for number in range(trials)])
    (played,) = record(world, MixedArms().build(world), task, np.arange(trials) + 1_000_003 * (seed + 1))
    (action, reward), (same, mixed) = method.shown
    np.testing.assert_array_equal(action, played.action[:pulls].T)
    np.testing.assert_allclose(reward, played.reward[:pulls].T, rtol=1e-6)
    np.testing.assert_array_equal(same, action)
    assert not np.array_equal(mixed, reward), "shuffled"
    np.testing.assert_array_equal(np.sort(mixed, axis=1), np.sort(reward, axis=1))
    lost = {
        "offline loss": [],
        "offline loss, rewards shuffled": [],
        "offline loss of LCB": [],
        "offline loss of any arm": [],
    }
    for row in range(trials):
        means = world.means_of(task[row : row + 1])[0]

        def by(score, means=means):
            return means.max() - means[int(np.argmax(score))]

        def average(rewards, arms=action[row]):
            return [rewards[arms == arm].mean() if (arms == arm).any() else -9 for arm in range(5)]

        count = np.bincount(action[row], minlength=5)
        careful = [
            mean - 0.8 / np.sqrt(max(n, 1)) if n else -np.inf
            for mean, n in zip(average(reward[row]), count, strict=True)
        ]
        lost["offline loss"].append(by(average(reward[row])))
        lost["offline loss, rewards shuffled"].append(by(average(mixed[row])))
        lost["offline loss of LCB"].append(by(careful))
        lost["offline loss of any arm"].append(means.max() - means.mean())
    assert found == pytest.approx({name: float(np.mean(values)) for name, values in lost.items()})
    assert found["offline loss"] < found["offline loss, rewards shuffled"] < 1.5 * found["offline loss of any arm"]


def test_figures_of_rooms_are_shares_of_the_best_by_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    def reference_returns(environment, player, *, trials, episodes, seed):
        assert (environment, player, trials, episodes, seed) == ("foretoken/DarkRoom-v0", None, 2, 1, 3)
        return np.array([[8.0], [12.0]])

    monkeypatch.setattr(dpt, "reference_returns", reference_returns)
    records = [
        EpisodeResult(target=None, episode=i, reset_seed=i, total=float(index + i), length=1, index=index)
        for i in range(2)
        for index in range(12)
    ]
    last = Evaluated(environment="foretoken/DarkRoom-v0", seed=0, update=1, num_slots=1, records=tuple(records))
    run = SimpleNamespace(evaluations=lambda: [None, last], experiment=dpt.dark_room().replace(seed=3))
    assert dpt.figures(run) == pytest.approx({"episode 1": 0.05, "episode 10": 0.95, "last 5 episodes": 0.95})


def test_figures_of_bandits_are_regrets_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    method, run = built(dpt.cpu()), dpt.cpu().replace(seed=3)

    def evaluated(*regrets):
        records = tuple(
            EpisodeResult(target=None, episode=i, reset_seed=i, total=0.0, length=2, regret=(0.5, end))
            for i, end in enumerate(regrets)
        )
        return Evaluated(environment=WHERE, seed=0, update=1, num_slots=1, records=records)

    def evaluate(greedy, spec, evaluation, *, seed):
        assert greedy.config == method.config.replace(acting="mode") and (evaluation, seed) == (run.evaluation, 3)
        assert all(torch.equal(value, method.state_dict()[name]) for name, value in greedy.state_dict().items())
        return evaluated(7.0, 9.0)

    ends = {Thompson(): 1.0, UCB(): 2.0, EmpiricalMean(): 3.0, UniformRandom(): 4.0}

    def reference_regrets(environment, player, *, trials, seed):
        assert (environment, trials, seed) == (WHERE, 2, 3)
        return np.array([[0.1, ends[player] - 0.5], [0.1, ends[player] + 0.5]])

    def offline_losses(given, environment, *, trials, pulls, seed):
        assert given is method and (environment, trials, pulls, seed) == (WHERE, 2, 50, 3)
        return {"offline loss": 0.1}

    for name, stand_in in (
        ("evaluate", evaluate),
        ("reference_regrets", reference_regrets),
        ("offline_losses", offline_losses),
    ):
        monkeypatch.setattr(dpt, name, stand_in)
    monkeypatch.setattr(dpt, "load", lambda path: method)
    done = SimpleNamespace(
        evaluations=lambda: [evaluated(99.0), evaluated(3.0, 5.0)], experiment=run, spec=method.spec, path=""
    )
    assert dpt.figures(done) == {
        "regret": 4.0,
        "regret by mode": 8.0,
        "regret of Thompson": 1.0,
        "regret of UCB": 2.0,
        "regret of empirical mean": 3.0,
        "regret of uniform": 4.0,
        "offline loss": 0.1,
    }


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        ({}, None),
        ({"regret of Thompson": 8.5}, "regret <= 1.15"),
        ({"regret of UCB": 10.0}, "regret below UCB's"),
        ({"offline loss": 0.115}, "offline loss <= LCB's"),
        ({"offline loss": 0.109}, None),
        ({"regret by mode": 10.0}, "the likeliest action"),
        ({"offline loss, rewards shuffled": 0.23}, "with shuffled rewards"),
        ({"episode 10": 0.69}, "rooms: episode 10"),
        ({"episode 1": 0.3}, "rooms: episode 1 "),
    ],
)
def test_verdict(change, fails) -> None:
    bandits = {"regret": 10.0, "regret by mode": 18.0, "regret of Thompson": 9.0, "regret of UCB": 10.5}
    bandits |= {"offline loss": 0.07, "offline loss of LCB": 0.1, "offline loss of any arm": 0.3}
    bandits |= {"offline loss, rewards shuffled": 0.25}
    rooms = {"episode 1": 0.1, "episode 10": 0.8}
    given = [{name: change.get(name, value) for name, value in row.items()} for row in (bandits, rooms)]
    results = {arm: [row] * 3 for arm, row in zip(dpt.claim().arms, given, strict=True)}
    broken = [name for name, held in dpt.verdict(results).items() if not held]
    assert len(broken) == (fails is not None) and all(name.startswith(fails) for name in broken)


def test_online_play_samples() -> None:
    assert {preset().system.acting for preset in (dpt.paper, dpt.cpu, dpt.paper_dark_room, dpt.dark_room)} == {"sample"}
