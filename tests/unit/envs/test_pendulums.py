"""Pendulums are Gymnasium's, bodies differ, and swings are recorded with all of them."""

import gymnasium
import numpy as np

from foretoken.data.store import open_store
from foretoken.envs.diagnostic import make_world
from foretoken.envs.diagnostic.pendulums import DAMPING, LENGTH, MASS, bodies
from foretoken.envs.recipes.pendulum_swings import PendulumSwings


def test_one_body_is_gymnasiums_with_actions_held_for_two_steps() -> None:
    world, env = make_world("foretoken/Pendulum-v0", 1), gymnasium.make("Pendulum-v1").unwrapped
    world.begin(np.array([0]), np.array([0]), np.array([5]))
    env.reset(seed=0)
    env.state = np.array([world.angle[0], world.velocity[0]])
    for torque in (-3.0, 2.0, 1.3, -0.4, 2.0, 2.0, 2.0, 0.0):
        outcome = world.step(np.array([[torque]], np.float32))
        steps = [env.step(np.array([torque], np.float32)) for _ in range(2)]
        np.testing.assert_allclose(outcome.reward[0], sum(step[1] for step in steps), rtol=1e-6)
        np.testing.assert_allclose(world.observe()[0], steps[-1][0], rtol=1e-5, atol=1e-5)


def test_bodies_differ_and_answer_differently() -> None:
    found = bodies(np.arange(25))
    for values, (low, high) in zip(found.T, (MASS, LENGTH, DAMPING), strict=True):
        assert len(np.unique(values)) == 25 and low <= values.min() and values.max() <= high
    world = make_world("foretoken/Pendulums-v0", 25)
    world.begin(np.arange(25), np.arange(25), np.zeros(25, np.int64))
    assert len(np.unique(world.observe(), axis=0)) == 1
    world.step(np.full((25, 1), 2.0))
    assert len(np.unique(world.observe(), axis=0)) == 25


def test_swings_are_of_the_part_they_name(tmp_path) -> None:
    worlds, stores = make_world("foretoken/Pendulums-v0", 1), {}
    for part, count in (("train", 40), ("held-out", 10)):
        PendulumSwings(bodies=part, episodes=count).write(tmp_path / part)
        stores[part] = open_store(tmp_path / part)
        named = {worlds.task_of(part, number) for number in range(count)}
        assert set(stores[part].episodes["task"].tolist()) == named and len(named) == count // 2
    rate = stores["train"].episodes["rate"]
    assert 0.3 < (rate == 1).mean() < 0.7 and rate[rate < 1].std() > 0.2
    assert stores["train"].episodes["return"][rate < 0.5].mean() > stores["train"].episodes["return"][rate == 1].mean()
