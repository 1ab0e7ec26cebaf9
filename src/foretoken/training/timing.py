"""How long an update takes: measured on networks of their own, by turns, so that what else the machine does falls on all alike."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from foretoken.core.method import Method, Source
from foretoken.training.loop import Training


def update_seconds(
    trained: Sequence[tuple[Method, Source, Training]], rounds: int = 5, updates: int = 16
) -> list[float]:
    """Seconds of one update of each on one thread: medians over rounds in which all take turns, the first not counted.

    An update draws, computes loss and gradient, and steps: the costly part of what the training loop does.
    """
    threads, steppers = torch.get_num_threads(), [_stepper(*one) for one in trained]
    seconds = np.zeros((rounds + 1, len(steppers)))
    torch.set_num_threads(1)
    try:
        for turn, of_turn in enumerate(seconds):
            for i, step in enumerate(steppers):
                began = time.perf_counter()
                for number in range(turn * updates, (turn + 1) * updates):
                    step(number)
                of_turn[i] = (time.perf_counter() - began) / updates
    finally:
        torch.set_num_threads(threads)
    return np.median(seconds[1:], axis=0).tolist()


def _stepper(method: Method, source: Source, training: Training) -> Callable[[int], None]:
    optimiser = training.optimiser.build(method.train().named_parameters())

    def step(number: int) -> None:
        optimiser.zero()
        method.loss(source.draw("data", method.window, number)).total.backward()
        optimiser.step(1.0)

    return step
