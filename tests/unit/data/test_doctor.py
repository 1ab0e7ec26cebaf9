"""The doctor finds each planted illness, and nothing in a healthy store."""

import numpy as np
import pytest
import torch

from foretoken.core.spec import Box, Dict, Discrete, Spec
from foretoken.data.doctor import Finding, examine, survey
from foretoken.data.episode import Episode
from foretoken.data.store import Store

SPEC = Spec(observation=Box(shape=(4,)), action=Box(shape=(2,), low=(-1.0,), high=(1.0,)), max_episode_steps=60)


def walk(length, seed):
    """A smooth walk of unit variance from around a usual start."""
    random = np.random.default_rng(seed)
    seen = np.empty((length + 1, 4))
    seen[0] = 1.0 + 0.02 * random.normal(size=4)
    for t in range(length):
        seen[t + 1] = 0.9 * seen[t] + 0.43 * random.normal(size=4)
    return seen.astype(np.float32)


def episode(number, length=None, **changes):
    random = np.random.default_rng(1000 + number)
    length = length or int(random.integers(20, 50))
    ends = np.arange(length) == length - 1
    return {
        "observation": walk(length, number),
        "action": random.uniform(-0.9, 0.9, (length, 2)).astype(np.float32),
        "reward": (0.05 * random.uniform(0, 2) + 0.05 * random.normal(size=length)).astype(np.float32),
        "terminated": ends & (number % 2 == 0),
        "truncated": ends & (number % 2 == 1),
    } | changes


def build(episodes, spec=SPEC):
    store = Store.create(None, spec)
    store.extend(Episode(**one) for one in episodes)
    return store


def healthy(count=40):
    return [episode(number) for number in range(count)]


def codes(store):
    return [one.code for one in examine(store)]


class Tampered:
    """A store that reads differently from what it was given, as a damaged file would."""

    def __init__(self, store, column, change):
        self.store, self.column, self.change = store, column, change

    def __getattr__(self, name):
        return getattr(self.store, name)

    def gather(self, at, columns):
        batch = self.store.gather(at, columns)
        values = batch[self.column].clone()
        self.change(values, torch.as_tensor(at))
        return batch.replace(**{self.column: values})


@pytest.mark.parametrize("size", [64, 100, 65_536])
def test_a_healthy_store_has_no_findings_however_it_is_cut(monkeypatch, size):
    monkeypatch.setattr(survey, "_chunk_rows", lambda store: size)
    assert examine(build(healthy())) == []


def test_findings_do_not_depend_on_the_chunks(monkeypatch):
    store = build(
        [
            *healthy(),
            episode(3),
            episode(60, 1),
            episode(61, 30, truncated=np.zeros(30, bool), terminated=np.zeros(30, bool)),
        ]
    )
    found = []
    for size in (64, 97, 65_536):
        monkeypatch.setattr(survey, "_chunk_rows", lambda store, size=size: size)
        found.append([(one.code, one.detail) for one in examine(store)])
    assert found[0] == found[1] == found[2] and len(found[0]) == 3


def test_an_empty_store_is_an_error():
    assert codes(build([])) == ["empty"]


def test_open_ends():
    store = build([*healthy(), episode(50, 30, terminated=np.zeros(30, bool), truncated=np.zeros(30, bool))])
    (found,) = examine(store)
    assert (found.code, found.severity, found.detail["episodes"]) == (
        "open-ends",
        "error",
        [40],
    ) and "truncated" in found.message


def test_flags_inside():
    store = build(healthy())
    middle = int(store.episodes["start"][7]) + 5
    (found,) = examine(Tampered(store, "truncated", lambda values, at: values.masked_fill_(at == middle, True)))
    assert (found.code, found.severity, found.detail["episodes"]) == ("flags-inside", "error", [7])


def joined(first, second, **changes):
    one, two = episode(first, 25), episode(second, 25)
    whole = {name: np.concatenate([one[name], two[name]]) for name in ("action", "reward", "terminated", "truncated")}
    whole["observation"] = np.concatenate([one["observation"][:-1], two["observation"]])
    whole["terminated"][24] = whole["truncated"][24] = False
    return whole | changes


def test_two_joined_episodes_return_to_the_start_at_once():
    far = joined(70, 71)
    far["observation"][24] = -1.5
    found = examine(build([*healthy(), far]))
    assert (
        [one.code for one in found] == ["unmarked-resets"]
        and found[0].detail["episodes"] == [40]
        and "joined" in found[0].message
    )


def test_observation_jumps():
    jumping = episode(80, 40)
    jumping["observation"][20:] += 9.0
    found = examine(build([*healthy(), jumping]))
    assert "observation-jumps" in [one.code for one in found]
    assert next(one for one in found if one.code == "observation-jumps").detail == {"episodes": [40], "steps": 1}


def test_timeouts_taken_for_terminals_at_the_limit():
    found = examine(build([*healthy(), episode(90, 60)]))
    assert [one.code for one in found] == ["timeouts-as-terminals"] and found[0].detail == {"episodes": 1, "length": 60}
    assert codes(build([*healthy(), episode(91, 60)])) == []  # the same episode, truncated


def test_timeouts_taken_for_terminals_by_their_one_length():
    spec = SPEC.replace(max_episode_steps=0)
    same = [episode(2 * number, 55) for number in range(50, 60)]
    found = examine(build([*healthy(), *same], spec))
    assert [one.code for one in found] == ["timeouts-as-terminals"] and "--max-episode-steps 55" in found[0].message
    assert codes(build([*healthy(), *[episode(2 * number + 1, 55) for number in range(50, 60)]], spec)) == []


def test_constant_dimensions():
    sick = healthy()
    for one in sick:
        one["observation"][:, 2] = 3.0
    (found,) = examine(build(sick))
    assert (found.code, found.detail["dimensions"]) == ("constant-dimensions", [2])


@pytest.mark.parametrize(("factor", "shift"), [(1e3, 0.0), (1.0, 50.0), (1e-3, 0.0)])
def test_unscaled_dimensions(factor, shift):
    sick = healthy()
    for one in sick:
        one["observation"][:, 1] = one["observation"][:, 1] * factor + shift
    (found,) = examine(build(sick))
    assert (found.code, found.detail["dimensions"]) == ("unscaled-dimensions", [1])


@pytest.mark.parametrize(
    ("column", "bad"), [("observation", float("nan")), ("reward", float("inf")), ("action", float("-inf"))]
)
def test_numbers_that_are_not_finite(column, bad):
    store = build(healthy())
    place = int(store.episodes["start"][9]) + 3

    def change(values, at):
        values[at == place] = bad

    with np.errstate(invalid="raise"):
        found = next(one for one in examine(Tampered(store, column, change)) if one.code == "not-finite")
    assert found.severity == "error" and found.detail == {"column": column, "episodes": [9]}


def test_actions_outside_their_bounds():
    sick = healthy()
    sick[5]["action"][3, 1] = 1.37
    (found,) = examine(build(sick))
    assert (found.code, found.severity, found.detail["dimensions"]) == ("actions-outside", "warning", [1])
    assert "1.37" in found.message and "clip" in found.message


def test_choices_outside_their_space():
    spec = SPEC.replace(action=Discrete(n=3))
    fine = build([one | {"action": np.arange(len(one["reward"])) % 3} for one in healthy()], spec)
    assert codes(fine) == []
    (found,) = examine(Tampered(fine, "action", lambda values, at: values.masked_fill_(at == 4, 7)))
    assert (found.code, found.severity) == ("actions-outside", "error")


def test_saturated_actions():
    sick = healthy()
    for one in sick:
        one["action"][:, 0] = np.sign(one["action"][:, 0])
    (found,) = examine(build(sick))
    assert (found.code, found.detail["dimensions"]) == ("actions-saturated", [0]) and found.detail["share"] == 1.0


def test_unbounded_actions():
    assert codes(build(healthy(), SPEC.replace(action=Box(shape=(2,))))) == ["actions-unbounded"]


@pytest.mark.parametrize("factor", [1e4, 1e-5])
def test_reward_scale(factor):
    found = codes(build([one | {"reward": one["reward"] * np.float32(factor)} for one in healthy()]))
    assert "reward-scale" in found and set(found) <= {"reward-scale", "return-scale"}


def test_return_scale():
    (found,) = examine(build([one | {"reward": one["reward"] * 100} for one in healthy()]))
    assert found.code == "return-scale" and 100 <= found.detail["scale"] <= 1000


def test_no_reward():
    assert codes(build([one | {"reward": 0 * one["reward"]} for one in healthy()])) == ["no-reward"]


def test_narrow_returns():
    (found,) = examine(
        build([one | {"reward": np.full(len(one["reward"]), 5 / len(one["reward"]), np.float32)} for one in healthy()])
    )
    assert found.code == "narrow-returns" and "behaviour cloning" in found.message


def test_duplicate_episodes():
    (found,) = examine(build([*healthy(), episode(3), episode(3), episode(8)]))
    assert (found.code, found.detail) == ("duplicate-episodes", {"episodes": 3, "groups": [[3, 40, 41], [8, 42]]})


def test_duplicate_steps():
    twice = [
        {name: np.repeat(values[: len(one["reward"])], 2, axis=0) for name, values in one.items()} for one in healthy()
    ]
    for one in twice:
        one["observation"] = np.concatenate([one["observation"], one["observation"][-1:] + 0.1])
        one["terminated"][-2] = one["truncated"][-2] = False
    found = examine(build(twice, SPEC.replace(max_episode_steps=200)))
    assert [one.code for one in found] == ["duplicate-steps"] and found[0].detail["steps"] == sum(
        len(one["reward"]) for one in twice
    ) // 2


def test_repeated_final_observations():
    sick = healthy()
    for one in sick:
        one["observation"][-1] = one["observation"][-2]
    assert codes(build(sick)) == ["final-repeated"]


def test_short_episodes():
    (found,) = examine(build([*healthy(), episode(44, 1), episode(45, 2)]))
    assert (found.code, found.detail) == ("short-episodes", {"episodes": 2, "shortest": 1})


def test_nested_observations_are_named_by_their_path():
    spec = SPEC.replace(
        observation=Dict(
            spaces={
                "body": Box(shape=(4,)),
                "deep": Dict(spaces={"image": Box(shape=(8, 8, 3), dtype="uint8", low=(0.0,), high=(255.0,))}),
            }
        )
    )
    sick = healthy()
    for one in sick:
        body = one["observation"]
        body[:, 0] = 7.0
        one["observation"] = {"body": body, "deep": {"image": np.zeros((len(body), 8, 8, 3), np.uint8)}}
    (found,) = examine(build(sick, spec))
    assert found.code == "constant-dimensions" and found.detail == {"column": "observation/body", "dimensions": [0]}


def test_a_subset_is_examined_alone():
    store = build([*healthy(), episode(3)])
    assert codes(store) == ["duplicate-episodes"] and codes(store.subset(np.arange(5, 40))) == []


def test_errors_come_first_and_findings_are_plain_json():
    import json

    found = examine(
        build(
            [*healthy(), episode(44, 1), episode(45, 20, terminated=np.zeros(20, bool), truncated=np.zeros(20, bool))]
        )
    )
    assert [one.severity for one in found] == ["error", "note"]
    assert [Finding(**json.loads(json.dumps(one.to_json()))) for one in found] == found
    assert str(found[0]).startswith("error: 1 episode without") and str(found[0]).endswith("[open-ends]")


def test_memory_stays_bounded_by_chunks(monkeypatch):
    monkeypatch.setattr(survey, "_chunk_rows", lambda store: 100)
    largest = []

    class Counting(Tampered):
        def gather(self, at, columns):
            largest.append(np.size(at))
            return self.store.gather(at, columns)

    examine(Counting(build(healthy()), "", None))
    assert max(largest) <= 101
