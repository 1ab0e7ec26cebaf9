"""In seconds, Decision Transformer learns what needs both its memory and its condition.

Every step shows a cue of +1 or -1 and pays for the action that fits the cue of the step *before*: `action * cue`. The data
come from players who fit it or do the opposite, one or the other for a whole episode. So an action can only be predicted
from the earlier cue (memory) and from the return still to come (condition); cloning without the condition is a coin toss.
(A context of two steps, because from three a clone could tell the player by an earlier action.)
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from foretoken.core.batch import Step
from foretoken.core.method import Method
from foretoken.core.spec import Box, Discrete, Spec
from foretoken.data.episode import Episode
from foretoken.data.store import Store
from foretoken.methods.conditioned_cloning import ConditionedCloningConfig
from foretoken.methods.conditions.return_to_go import ReturnToGoConfig
from foretoken.nn.stack import gpt
from foretoken.training.loop import Training, train
from foretoken.training.optim import AdamW
from foretoken.training.sources import Offline

LENGTH, ROWS = 6, 64
SPECS = {
    "continuous": Spec(observation=Box(shape=(1,)), action=Box(shape=(1,), low=(-2.0,), high=(2.0,))),
    "discrete": Spec(observation=Box(shape=(1,)), action=Discrete(n=2)),
}


def worth(action: np.ndarray) -> np.ndarray:
    """What an action counts, in [-1, 1]."""
    return 2.0 * action - 1.0 if action.dtype == np.int64 else action[..., 0] / 2


def make_store(spec: Spec, folder: Path) -> str:
    generator = np.random.default_rng(0)
    store = Store.create(folder, spec)
    episodes = []
    for _ in range(300):
        cue = generator.choice([-1.0, 1.0], LENGTH + 1)
        wanted = np.concatenate(([0.0], cue[: LENGTH - 1])) * generator.choice([-1.0, 1.0])
        wanted[0] = generator.choice([-1.0, 1.0])
        action = (wanted > 0).astype(np.int64) if isinstance(spec.action, Discrete) else np.float32(2 * wanted[:, None])
        reward = worth(action) * np.concatenate(([0.0], cue[: LENGTH - 1]))
        end = np.arange(LENGTH) == LENGTH - 1
        episodes.append(Episode(np.float32(cue[:, None]), action, np.float32(reward), end, np.zeros(LENGTH, bool)))
    store.extend(episodes)
    return str(folder)


def earned(method: Method, spec: Spec, asked: float) -> float:
    """Mean return over rows that are all asked for one return, of at most LENGTH - 1."""
    method.eval()
    cue = torch.tensor(np.random.default_rng(1).choice([-1.0, 1.0], (LENGTH, ROWS, 1)), dtype=torch.float32)
    policy, total = method.policy, torch.zeros(ROWS)
    state = policy.begin(ROWS, {"target_return": torch.full((ROWS,), asked)})
    action = torch.zeros(ROWS, dtype=torch.int64) if isinstance(spec.action, Discrete) else torch.zeros(ROWS, 1)
    reward = torch.zeros(ROWS)
    for t in range(LENGTH):
        flag = torch.full((ROWS,), t == 0)
        seed = 1000 * t + torch.arange(ROWS)
        flags = flag, torch.zeros_like(flag), torch.ones_like(flag)
        step = Step(cue[t], action, reward, torch.zeros_like(reward), *flags, torch.full((ROWS,), t), seed)
        with torch.no_grad():
            action, state, _ = policy.act(step, state)
        reward = torch.tensor(worth(action.numpy()), dtype=torch.float32) * (cue[t - 1, :, 0] if t else 0.0)
        total += reward
    return float(total.mean())


def learned(config: ConditionedCloningConfig, spec: Spec, folder: Path) -> Method:
    source = Offline(store=make_store(spec, folder / "store"), held_out=0.0).build(batch_size=64, seed=0)
    torch.manual_seed(0)
    method = config.build(spec)
    training = Training(
        updates=160, batch_size=64, optimiser=AdamW(lr=5e-3, warmup=10), accelerator="cpu", log_every=100
    )
    train(method, source, training, folder / "run", seed=0, progress=False)
    return method


@pytest.mark.parametrize("actions", SPECS)
def test_learns_what_needs_memory_and_condition(actions: str, tmp_path: Path) -> None:
    spec, best = SPECS[actions], float(LENGTH - 1)
    config = ConditionedCloningConfig(
        context=2, backbone=gpt(32, 2, 2, activation="relu"), condition=ReturnToGoConfig(scale=best), dropout=0.0
    )
    torch.manual_seed(0)
    untrained = config.build(spec)
    assert abs(earned(untrained, spec, best)) < 0.3 * best
    conditioned = learned(config, spec, tmp_path / "dt")
    assert earned(conditioned, spec, best) > 0.75 * best
    assert earned(conditioned, spec, -best) < -0.75 * best
    cloning = learned(config.replace(condition=None), spec, tmp_path / "bc")
    assert abs(earned(cloning, spec, best)) < 0.6 * best
    forgetful = learned(config.replace(context=1), spec, tmp_path / "short")
    assert abs(earned(forgetful, spec, best)) < 0.4 * best
