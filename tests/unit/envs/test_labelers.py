"""Who says the best action where nobody told it: planned in a known model, or learned on each task before."""

import numpy as np
import pytest

from foretoken.core.errors import ConfigError
from foretoken.data.store import open_store
from foretoken.envs.diagnostic import make_world
from foretoken.envs.learners import QLearning, Trained, ValueIteration
from foretoken.envs.recipes.roll_ins import RollIns

ROOM = "foretoken/DarkRoom-7x7-v0"


def values(task, discount=0.9):
    """(49, 5) by hand: staying on the goal earns 1 a step for ever, what is k moves away k - 1 steps later."""
    place, goal = np.stack(np.divmod(np.arange(49), 7), 1), np.array(divmod(task, 7))
    moves = np.array([[-1, 0], [1, 0], [0, -1], [0, 1], [0, 0]])
    away = np.abs(np.clip(place[:, None] + moves, 0, 6) - goal).sum(-1)
    return discount ** np.maximum(away, 0) / (1 - discount)


def test_planned_values_are_those_by_hand():
    player = ValueIteration(discount=0.9).build(make_world(ROOM, 1))
    for task in (0, 24, 33):
        np.testing.assert_allclose(player.solve(ROOM, task), values(task), atol=1e-6)


def test_a_plan_arrives_from_anywhere_by_the_shortest_way():
    world = make_world(ROOM, 98)
    player = ValueIteration(discount=0.9).build(world)
    world.begin(np.arange(98), np.arange(98) % 49, np.arange(98))
    world.put(np.arange(98)[::-1] // 2)
    away, earned = np.abs(world.place - world.goal).sum(1), np.zeros(98)
    for _ in range(15):
        earned += world.step(player.act(world)).reward
    np.testing.assert_array_equal(earned, 15 - np.maximum(away - 1, 0))


def test_who_has_learned_a_task_before_plays_it_from_the_first_step():
    world, rows = make_world(ROOM, 49), np.arange(49)
    player, earned = Trained(learner=QLearning(episodes=150), episodes=150).build(world), np.zeros(49)
    world.begin(rows, rows, rows)
    for _ in range(15):
        earned += world.step(player.act(world)).reward
    assert earned.mean() > 0.9 * world.best_return(rows).mean()
    world.begin(rows, rows[::-1].copy(), rows)  # other tasks are learned anew
    goals = [world.step(player.act(world)).reward for _ in range(15)]
    assert np.sum(goals, 0).mean() > 0.9 * world.best_return(rows).mean()


def test_rows_of_a_labeler_do_not_know_each_other():
    for labeler in (ValueIteration(discount=0.9), Trained(learner=QLearning(episodes=20), episodes=20)):
        told = []
        for rows in (np.arange(6), np.array([4, 1])):
            world = make_world(ROOM, len(rows))
            player = labeler.build(world)
            world.begin(np.arange(len(rows)), rows * 3, rows + 7)
            actions = []
            for _ in range(4):
                actions.append(player.act(world))
                world.step(np.full(len(rows), 1))
            told.append(np.stack(actions))
        np.testing.assert_array_equal(told[0][:, [4, 1]], told[1])


def labels(tmp_path, **changes):
    """(B, T) optimal actions, the cells (B, T) they are for, tasks (B,), and the transitions."""
    recipe = RollIns(environment=ROOM, kind="uniform", tasks=5, horizon=60, **changes)
    recipe.write(tmp_path / str(len(list(tmp_path.iterdir()))))
    store = open_store(tmp_path / str(len(list(tmp_path.iterdir())) - 1))
    at = store.episodes["start"][:, None] + np.arange(60)
    batch = store.gather(at, ("observation", "optimal_action", "action", "next_observation", "reward"))
    cell = batch.observation.numpy() @ [7, 1]
    return batch.optimal_action.numpy(), cell, store.episodes["task"], batch


def test_the_labeler_of_roll_ins_names_the_label_and_leaves_the_data(tmp_path):
    said = labels(tmp_path)
    for labeler in (ValueIteration(discount=0.9), Trained(learner=QLearning(episodes=2), episodes=2)):
        best, cell, task, batch = labels(tmp_path, labeler=labeler)
        for name in ("observation", "action", "next_observation", "reward"):
            assert batch[name].equal(said[3][name]), name
        lost = np.stack(
            [(values(t).max(1, keepdims=True) - values(t))[c, a] for t, c, a in zip(task, cell, best, strict=True)]
        )
        if isinstance(labeler, ValueIteration):
            assert lost.max() < 1e-9 and (best != said[0]).any(), "others of equal ones than the scripted player's"
        else:
            assert lost.max() > 0.01, "who learned little says so"


def test_what_cannot_be_planned_or_learned_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="has no cells to be put in, which value iteration needs"):
        RollIns(environment="foretoken/Bandit-200-v0", tasks=2, horizon=3, labeler=ValueIteration()).write(
            tmp_path / "out"
        )
    with pytest.raises(ConfigError, match=r"discount must lie in \[0, 1\), got 1"):
        ValueIteration(discount=1.0)
    with pytest.raises(ConfigError, match=r"Trained\.episodes must be at least 1, got 0"):
        Trained(learner=QLearning(), episodes=0)
