"""Return-to-go: the undiscounted sum of rewards from a step to its episode's end; zero at the final step."""

from collections.abc import Mapping

import numpy as np

from foretoken.data.transforms.derived import Derived


def return_to_go(columns: Mapping[str, np.ndarray], bounds: np.ndarray) -> np.ndarray:
    """(M,) float32 from reward (M,), summed in float64.

    Each episode is summed on its own, from its end: differences of one running sum over many episodes would lose the
    digits of small returns beside large ones.
    """
    reward = columns["reward"].astype(np.float64)
    result = np.empty(len(reward), np.float32)
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        result[start:stop] = np.cumsum(reward[start:stop][::-1])[::-1]
    return result


RETURN_TO_GO = Derived(reads=("reward",), compute=return_to_go)
