"""Evaluating the paper's Decision Transformer on Hopper-v5: decisions per second, MuJoCo included, when 100 episodes are played
for each of three returns asked for. Every loop is the library's own, as under Acting: foretoken plays 64 of the 300 episodes
at once; the others play one after another. Episodes go on after a fall, so that all play 1000 steps, whatever their weights.
"""

from collections.abc import Iterator
from dataclasses import replace
from statistics import median

import torch

from benchmarks import floors
from benchmarks.acting import CONTEXT, mine, peers, rolled, world
from benchmarks.made import SPEC, Data
from benchmarks.report import Job, Table, skipped, time_of
from benchmarks.rounds import Contestant, Settings, compete, now
from foretoken.envs.traced import Engine
from foretoken.systems.offline import decision_transformer

SLOTS, GOAL, EPISODES, LENGTH = 64, 8.0, 300, 1000


def run(data: Data, settings: Settings, *, full: bool) -> Job:
    makers = [*mine(ours), *peers(1, CONTEXT, bare=False, where="hopper")]
    scores = compete(makers, replace(settings, rounds=max(3, settings.rounds // 2)))
    mujoco, own = _alone(), scores[0].median
    floor = floors.acting(SLOTS, CONTEXT)
    whole = own * EPISODES * LENGTH
    note = (
        f"Floor: {1e6 * mujoco:.0f} us of MuJoCo and {1e6 * floor.seconds / SLOTS:.0f} us of matrix products a decision. All "
        f"{EPISODES} episodes take {time_of(whole)}; MuJoCo's share of foretoken's time is {mujoco / own:.0%}."
    )
    per = mujoco + floor.seconds / SLOTS
    table = Table(
        "300 episodes on Hopper-v5", scores, per, "decisions", target=GOAL, note=note, complete=not skipped(makers)
    )
    return Job("Evaluating", __doc__ or "", [table], skipped(makers))


def ours(engine: Engine) -> Iterator[Contestant]:
    torch.manual_seed(0)
    yield rolled(decision_transformer.paper().system.build(SPEC), SLOTS, CONTEXT, engine, "hopper")


def _alone(steps: int = 2000) -> float:
    """Seconds of one step of the environment."""
    environment, times = world("hopper"), []
    action = environment.action_space.sample()
    for _ in range(5):
        environment.reset(seed=0)
        began = now()
        for _ in range(steps // 5):
            environment.step(action)
        times.append((now() - began) / (steps // 5))
    return median(times)
