"""Environment steps per second of the diagnostic worlds, 256 rows on one thread: `World.step` and `observe` alone, and driven by
`foretoken.envs.slots.Slots`, which shows every tick as tensors and begins each next episode. Where episodes last some ten
steps, as cart-pole's under one action, two thirds of the time in slots go to beginning the next ones. No library is a peer here.
"""

from collections.abc import Callable
from statistics import median

import numpy as np
import torch

from benchmarks.made import Data
from benchmarks.report import Job, Sheet, judged
from benchmarks.rounds import Settings, now
from foretoken.envs.diagnostic import make_world, world_ids
from foretoken.envs.slots import Slots

ROWS, STEPS, GOAL = 256, 400, 1e6


def run(data: Data, settings: Settings, *, full: bool) -> Job:
    """Every registered world."""
    alone, driven = ({id: _rate(make(id), settings.rounds) for id in world_ids()} for make in (_alone, _driven))
    rows = [[id.partition("/")[2], f"{alone[id] / 1e6:.1f}", f"{driven[id] / 1e6:.2f}"] for id in world_ids()]
    verdicts = [
        judged(f"1 million steps/s {how}", {id.partition("/")[2]: rate >= GOAL for id, rate in rates.items()})
        for how, rates in (("by itself", alone), ("in slots", driven))
    ]
    sheet = Sheet(f"{ROWS} rows", ("world", "million steps/s by itself", "million steps/s in slots"), rows, verdicts)
    return Job("Worlds", __doc__ or "", [sheet], [])


def _rate(turn: Callable[[], None], rounds: int) -> float:
    """Steps per second, the median over rounds after one that is not counted."""
    turn()
    seconds = []
    for _ in range(rounds):
        began = now()
        turn()
        seconds.append(now() - began)
    return ROWS * STEPS / median(seconds)


def _alone(id: str) -> Callable[[], None]:
    world = make_world(id, ROWS)
    rows = np.arange(ROWS)
    world.begin(rows, np.array([world.task_of("train", row) for row in rows]), rows)
    action = world.expert()

    def turn() -> None:
        for _ in range(STEPS):
            world.step(action)
            world.observe()

    return turn


def _driven(id: str) -> Callable[[], None]:
    slots = Slots(id, range(1 << 40), num_slots=ROWS, seed=0)
    assert slots.start() is not None
    action = torch.from_numpy(np.zeros_like(make_world(id, ROWS).expert()))

    def turn() -> None:
        for _ in range(STEPS):
            slots.advance(action)

    return turn
