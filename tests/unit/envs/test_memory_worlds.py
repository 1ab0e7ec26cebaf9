"""What the worlds of the online-memory systems promise beside the laws of all worlds."""

import gymnasium
import numpy as np

from foretoken.envs.diagnostic import make_world


def begun(id, rows):
    world = make_world(id, rows)
    world.begin(np.arange(rows), np.zeros(rows, np.int64), np.arange(rows))
    return world


def test_cart_pole_moves_as_gymnasiums():
    world, environment = begun("foretoken/CartPole-v0", 1), gymnasium.make("CartPole-v1").unwrapped
    environment.reset(seed=3)
    world.body[0] = environment.state
    for action in np.random.default_rng(0).integers(0, 2, 60):
        observation, reward, terminated, _, _ = environment.step(int(action))
        outcome = world.step(np.array([action]))
        np.testing.assert_allclose(world.observe()[0], observation, rtol=1e-6)
        assert (outcome.reward[0], outcome.terminated[0]) == (reward, terminated)
        if terminated:
            break
    assert terminated


def test_hidden_velocities_are_not_shown():
    whole, hidden = begun("foretoken/CartPole-v0", 5), begun("foretoken/CartPole-Positions-v0", 5)
    for _ in range(5):
        assert np.array_equal(hidden.observe(), whole.observe()[:, [0, 2]])
        for world in (whole, hidden):
            world.step(np.ones(5, np.int64))


def test_the_suit_of_k_cards_ago_is_asked_for():
    world = begun("foretoken/RepeatPrevious-4-v0", 300)
    seen, total = [], 0.0
    for step in range(52):
        seen.append(world.observe().copy())
        before = world.expert()
        assert step < 4 or np.array_equal(before, seen[step - 4])
        outcome = world.step(np.where(np.arange(300) < 100, before, 0))
        assert (outcome.reward == 0).all() == (step < 4)
        total += outcome.reward
    assert outcome.terminated.all() and np.allclose(total[:100], 1) and abs(total[100:].mean() + 0.5) < 0.05
    assert (np.stack([np.bincount(row) for row in np.array(seen).T]) == 13).all()
    assert len({tuple(row) for row in np.array(seen).T}) == 300
