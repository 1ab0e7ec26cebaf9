"""What the laws do not check: the rivals share all but what they are compared by, and held-out bodies are held out."""

import numpy as np

from foretoken.envs.diagnostic import make_world
from foretoken.systems.worldmodel import transformer_dynamics_model as tdm


def test_arms_share_planner_data_and_budget() -> None:
    arms = tdm.claim().arms
    ours, mlp, policy = (arms[name] for name in ("tdm", "mlp", "policy"))
    assert ours.system.planner == mlp.system.planner and ours.source == mlp.source == policy.source
    assert ours.system.model.stream == policy.system.stream
    budgets = {(arm.training.updates, arm.training.batch_size) for arm in (ours, mlp, policy)}
    assert len(budgets) == 1 and arms["few-tuned"].before[0].training == ours.training
    assert arms["few-tuned"].source == arms["few-alone"].source


def test_bodies_of_the_test_are_not_among_those_of_training() -> None:
    world = make_world("foretoken/Pendulums-v0", 1)
    parts = [{world.task_of(part, number) for number in range(50)} for part in ("train", "held-out")]
    assert [len(part) for part in parts] == [20, 5] and not parts[0] & parts[1]
    assert tdm.claim().arms["tdm"].evaluation.tasks == "held-out"
    assert tdm.cpu().source.recipe.bodies == "train" and tdm.HELD_OUT.bodies == "held-out"


def test_verdict_reads_the_claim() -> None:
    row = {"score": 0.9, "error": 0.1, "error from 1": 0.2}
    results = {"tdm": [row], "mlp": [row | {"error": 0.3, "score": 0.8}], "policy": [{"score": 0.5}]}
    results |= {"few-tuned": [row], "few-alone": [row | {"score": 0.6}]}
    assert all(tdm.verdict(results).values())
    worse = [row | {"score": float(np.nextafter(0.9, 1))}]
    assert not all(tdm.verdict(results | {"mlp": worse}).values())
