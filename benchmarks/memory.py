"""Learning to act from memory: steps of experience per second of recurrent PPO on cart-pole without velocities, everything
included, and what is earned after equally many. All learn by the same settings, those of sb3-contrib where it has a default:
8 environments, rollouts of 128 steps each, 10 epochs of minibatches of 256 steps, gradients through all 128, one thread of torch.

All read the observation alone, by one LSTM of 64 and a tanh layer of 64 each for policy and value. Ours embeds the observation
first and has a residual and layer norms around the LSTM, all of it trained by both losses; sb3-contrib's shared LSTM is trained
by the policy's loss alone, and as shipped it has a second one for the value. The environment is the same Gymnasium class for
all, stepped one by one in one process; the same dynamics as arrays, `foretoken/CartPole-Positions-v0`, stand below.

Ours tells values, which are discounted sums of up to 100 here, in units of 30, by a setting of its value head. For the same
purpose stable-baselines3 has `VecNormalize`, which sb3-contrib's defaults leave out: returns are shown with and without, of both.
"""

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.classic_control import CartPoleEnv

from benchmarks import floors
from benchmarks.floors import Product
from benchmarks.made import Data
from benchmarks.report import Job, Sheet, Table, judged, skipped
from benchmarks.rounds import Contestant, Maker, Settings, compete, now, tell
from foretoken.core.config import configures
from foretoken.methods.recurrent_ppo import RecurrentPPOConfig
from foretoken.nn.heads.value import ScalarValueConfig
from foretoken.nn.mixers.lstm import LSTMConfig
from foretoken.nn.stack import BlockConfig, StackConfig
from foretoken.training.loop import Training, train
from foretoken.training.optim import AdamW
from foretoken.training.rollouts import Rollouts, RolloutSource

DISCOUNT, SCALE = 0.99, 30.0  # the size of usual values: each step earns 1, which adds up to 1 / (1 - DISCOUNT) at most
WIDTH, SLOTS, STEPS, EPOCHS, ROWS = 64, 8, 128, 10, 2  # a minibatch is ROWS segments of STEPS
ROLLOUT, UPDATES = SLOTS * STEPS, EPOCHS * SLOTS // ROWS
MASKED, WORLD = "benchmarks/CartPole-Positions-v0", "foretoken/CartPole-Positions-v0"
LENGTH, SHARE = 50_000, 0.2  # steps of learning, and the last part of them, whose episodes are counted
GOAL = 2.0
PEER = "sb3-contrib RecurrentPPO"


class Positions(CartPoleEnv):
    """Gymnasium's cart-pole without its two velocities; notes the returns of its episodes in `ended`."""

    ended: list[float] = []  # noqa: RUF012  (all instances share it)

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        high = self.observation_space.high[[0, 2]]
        self.observation_space = gymnasium.spaces.Box(-high, high, dtype=np.float32)
        self.earned = 0.0

    def reset(self, **arguments: Any) -> tuple[np.ndarray, dict[str, Any]]:
        if self.earned:
            self.ended.append(self.earned)
        self.earned = 0.0
        observation, info = super().reset(**arguments)
        return observation[[0, 2]], info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        self.earned += float(reward)
        return observation[[0, 2]], reward, terminated, truncated, info


gymnasium.register(MASKED, entry_point=Positions, max_episode_steps=500)


def run(data: Data, settings: Settings, *, full: bool) -> Job:
    """Speed, then returns and where the time goes; `full` takes five seeds."""
    settings, length, seeds = replace(settings, threads=1), LENGTH, range(5 if full else 3)
    makers = [Maker(ours), Maker(sb3, (), ("sb3-contrib",))]
    scores = compete(makers, settings)
    floor = _floor()
    note = (
        f"Floor: {floor.flops / ROLLOUT / 1e6:.1f} MFLOP of matrix products per step, which acts once and is learned from "
        f"{EPOCHS} times, forward and backward, at the {floor.rate / 1e9:.1f} GFLOP/s measured at their sizes."
    )
    missing = skipped(makers)
    table = Table(
        "Speed",
        scores,
        floor=floor.seconds / ROLLOUT,
        unit="steps",
        target=GOAL,
        note=note,
        complete=not missing,
    )
    return Job("Memory", __doc__ or "", [table, _returns(settings, length, seeds, not missing)], missing)


def _floor() -> floors.Floor:
    """The products of one rollout: SLOTS rows at a time while acting, ROWS in the recurrence while learning, the rest at once."""

    def network(rows: int, steps: int) -> list[Product]:
        return [
            Product(rows * steps, 2, WIDTH),
            Product(rows * steps, WIDTH, 4 * WIDTH),
            Product(rows, WIDTH, 4 * WIDTH, count=steps),
            Product(rows * steps, WIDTH, WIDTH, count=2),
        ]

    learning = network(ROWS, STEPS)
    learning += [part for one in learning for part in one.backward()]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return floors.of_products(network(SLOTS, 1) * STEPS + learning * UPDATES)
    finally:
        torch.set_num_threads(threads)


class Learned:
    """What one run of learning noted: of each rollout, when it began, steps and episodes until then; seconds in environments."""

    def __init__(self) -> None:
        self.began: list[tuple[float, int, int]] = []
        self.inside = 0.0

    def begins(self, steps: int) -> None:
        self.began.append((now(), steps, len(Positions.ended)))

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function; its time is added up."""

        def inside(*arguments: Any) -> Any:
            began = now()
            answer = function(*arguments)
            self.inside += now() - began
            return answer

        return inside


def _contestant(name: str, learn: Callable[[int, int], Learned], **more: Any) -> Contestant:
    """A turn learns from new weights; its first rollout is not counted. A call is ROLLOUT steps."""

    def turn(count: int) -> float:
        (began, before, _), *_, (ended, after, _) = learn(1 + count, 0).began[1:]
        return (ended - began) * count * ROLLOUT / (after - before)

    return Contestant(name, turn, ROLLOUT, **more)


# -- ours


def system(scale: float = SCALE) -> RecurrentPPOConfig:
    """One LSTM of 64 that reads the observation, a tanh layer before each head; losses weighted as sb3-contrib weights them."""
    block = BlockConfig(mixer=LSTMConfig(), feed_forward=None)
    return RecurrentPPOConfig(
        segment=STEPS,
        backbone=StackConfig(width=WIDTH, num_layers=1, pattern=(block,), init_std=WIDTH**-0.5),
        previous_action=False,
        previous_reward=False,
        hidden=WIDTH,
        value=ScalarValueConfig(scale=scale),
        discount=DISCOUNT,
        value_clip=None,
        value_weight=1.0,  # ours is half the squared error, sb3's the whole, with a weight of 0.5
        entropy=0.0,
    )


@dataclass(frozen=True, kw_only=True)
class TimedRollouts(Rollouts):
    """Rollouts, with clocks."""


@configures(TimedRollouts)
class TimedRolloutSource(RolloutSource):
    """Notes when each rollout began and how many actions had been taken, and how long environments took."""

    def __init__(self, config: TimedRollouts, **arguments: Any) -> None:
        super().__init__(config, **arguments)
        self.learned = Learned()
        slots = self.player.slots
        slots.advance = self.learned.timed(slots.advance)  # type: ignore[method-assign]

    def advance(self, update: int) -> Mapping[str, float]:
        if update % UPDATES == 0:
            self.learned.begins(self.player.slots.num_actions)
        return super().advance(update)


def learn_ours(environment: str, rollouts: int, seed: int, *, scale: float = SCALE) -> Learned:
    """`foretoken.training.train` itself. Its last update begins one rollout more, which is not counted."""
    config = TimedRollouts(environment=environment, num_slots=SLOTS, steps=STEPS, epochs=EPOCHS)
    source = config.build(batch_size=ROWS, seed=seed)
    torch.manual_seed(seed)
    method = system(scale).build(source.spec)
    training = Training(
        updates=rollouts * UPDATES + 1,
        batch_size=ROWS,
        optimiser=AdamW(lr=3e-4, eps=1e-5, weight_decay=0.0),
        clip=0.5,
        checkpoint_every=0,
        log_every=UPDATES,
        accelerator="cpu",
    )
    with tempfile.TemporaryDirectory() as folder:
        train(method, source, training, Path(folder), seed=seed, progress=False)
    return source.learned


def ours() -> Iterator[Contestant]:
    note = "final observations, which are steps of its rollouts, are not counted as steps"
    yield _contestant("foretoken", partial(learn_ours, MASKED), ours=True, note=note)
    yield _contestant("foretoken, environments as arrays", partial(learn_ours, WORLD), ours=True)


# -- sb3-contrib


def learn_sb3(shared: bool, rollouts: int, seed: int, *, normalised: bool = False) -> Learned:
    """`RecurrentPPO.learn` with its own vector of environments; `normalised` divides rewards by the spread of their sums."""
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    learned = Learned()

    class Begins(BaseCallback):
        def _on_rollout_start(self) -> None:
            learned.begins(self.num_timesteps)

        def _on_step(self) -> bool:
            return True

    environments = make_vec_env(MASKED, n_envs=SLOTS, seed=seed)
    if normalised:
        environments = VecNormalize(environments, norm_obs=False, gamma=DISCOUNT)
    environments.step = learned.timed(environments.step)  # type: ignore[method-assign]
    layers = {"shared_lstm": True, "enable_critic_lstm": False} if shared else {}
    arch = {"pi": [WIDTH], "vf": [WIDTH]} if shared else None
    model = RecurrentPPO(
        "MlpLstmPolicy",
        environments,
        gamma=DISCOUNT,
        n_steps=STEPS,
        batch_size=ROWS * STEPS,
        n_epochs=EPOCHS,
        seed=seed,
        device="cpu",
        policy_kwargs={"lstm_hidden_size": WIDTH, "net_arch": arch, **layers},
    )
    model.learn(rollouts * ROLLOUT, callback=Begins())
    learned.begins(model.num_timesteps)
    return learned


def sb3() -> Iterator[Contestant]:
    note = "MlpLstmPolicy, shared_lstm=True, enable_critic_lstm=False, net_arch of one layer of 64"
    yield _contestant(f"{PEER}, equal network", partial(learn_sb3, True), note=note)
    note = "MlpLstmPolicy with its defaults but for LSTMs of 64: one for the policy and one for the value, two layers of 64 each"
    yield _contestant(f"{PEER}, as shipped", partial(learn_sb3, False), note=note, counts=False)


# -- returns


def _returns(settings: Settings, length: int, seeds: Sequence[int], complete: bool) -> Sheet:
    """What all earn while learning from `length` steps, and how long that takes, each in a process of its own, in turns."""
    arms: dict[str, Callable[[int, int], Learned]] = {
        "foretoken": partial(learn_ours, MASKED),
        "foretoken, values in units of 1": partial(learn_ours, MASKED, scale=1.0),
    }
    if complete:
        for normalised, with_them in ((False, ""), (True, ", rewards normalised")):
            for shared, network in ((True, "equal network"), (False, "as shipped")):
                arms[f"{PEER}, {network}{with_them}"] = partial(learn_sb3, shared, normalised=normalised)
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in arms}
    for seed in seeds:
        for name in list(arms)[:: 1 if seed % 2 == 0 else -1]:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found[name].append(pool.apply(_learned, (arms[name], settings, length, seed)))
        tell(f"  seed {seed} of {list(seeds)}")
    rows = []
    for name, runs in found.items():
        earned, seconds, share = (mean(column) for column in zip(*runs, strict=True))
        each = ", ".join(f"{one[0]:.0f}" for one in runs)
        rows.append([name, f"{earned:.0f} ({each})", f"{seconds:.0f}", f"{share:.0%}"])
    reached = {name: mean(one[0] for one in runs) for name, runs in found.items()}
    goals = [
        judged(f"a return of at least that of {name}", {name: reached["foretoken"] >= theirs})
        for name, theirs in reached.items()
        if name.startswith(PEER)
    ]
    note = (
        f"Mean return of the episodes that ended in the last {SHARE:.0%} of the steps, drawn as in training; in brackets by "
        "seed. The environment notes it itself, alike for all. A rollout of ours has fewer steps by its final observations."
    )
    head = ("", "mean return", "seconds", "share of time in environments")
    return Sheet(f"Return after {length:,} steps, {len(seeds)} seeds", head, rows, [*goals, note])


def _learned(
    learn: Callable[[int, int], Learned], settings: Settings, length: int, seed: int
) -> tuple[float, float, float]:
    """Of one run: mean return at the end, seconds, and the environments' share of them."""
    settings.apply()
    Positions.ended.clear()
    learned = learn(-(-length // ROLLOUT), seed)
    (began, _, _), *_, (ended, _, episodes) = learned.began
    returns, left = list[float](), SHARE * length
    for one in reversed(Positions.ended[:episodes]):
        returns.append(one)
        left -= round(one)
        if left <= 0:
            break
    return mean(returns), ended - began, learned.inside / (ended - began)
