"""Experience replay: the live policy plays while it learns, and batches come from its finished episodes, old and new."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foretoken.core.batch import Batch
from foretoken.core.config import Config, configures
from foretoken.core.errors import CheckpointError, ConfigError, DataError
from foretoken.core.method import Method, Policy
from foretoken.core.spec import Spec, Window, leaves
from foretoken.data.episode import Episode
from foretoken.data.store import Store, open_store
from foretoken.data.windows import WindowSampler
from foretoken.envs.play import acting
from foretoken.envs.slots import Job, Tick
from foretoken.envs.spaces import build_tree, read_leaf
from foretoken.training.drawing import Drawing
from foretoken.training.player import Player


@dataclass(frozen=True, kw_only=True)
class Replay(Config):
    """Episodes that the policy plays while it learns.

    Args:
        environment: Gymnasium id.
        steps: environment steps per update, in all slots together; may be below 1.
        num_slots: episodes played at once.
        warmup_episodes: episodes played before the first update.
        capacity: batches come from the newest episodes that hold so many steps together; 0 = from all. On the disk all are kept.
        target_return: what the policy is asked for while collecting; None asks for nothing.
        max_steps: episodes are truncated after so many actions; 0 leaves that to the environment.
    """

    environment: str
    steps: float = 1.0
    num_slots: int = 8
    warmup_episodes: int = 8
    capacity: int = 0
    target_return: float | None = None
    max_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(num_slots=1, warmup_episodes=1, capacity=0, max_steps=0, steps=0)


@configures(Replay)
class ReplaySource(Drawing):
    """Plays with the live policy (exploring) and draws windows from the finished episodes, which are kept in a growing store.

    `method.annotate` sees each batch when it is drawn. A resumed run cuts the store back to its checkpoint and goes on in
    the middle of the episodes that were being played; `resumes` tells in which grade (see `foretoken.envs.slots`), once
    per resume. Where an environment could not be put back, its episode is dropped and the run is no longer bit-identical.

    Args:
        folder: the run's folder, where the store `replay` is kept; None keeps it in memory, without resuming.
    """

    def __init__(
        self,
        config: Replay,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        folder: Path | None = None,
    ) -> None:
        super().__init__(batch_size, seed, rank, world_size)
        self.config, self.stores = config, {}
        jobs = lambda: (Job(number, target=config.target_return) for number in itertools.count())  # noqa: E731
        self.player = Player("replay", config, jobs, seed=seed, world_size=world_size)
        self.spec = self.player.spec
        self._path = None if folder is None else Path(folder) / "replay"
        self._store: Store | None = None
        self._recordings: dict[int, _Recording] = {}
        self._ended: list[Episode] = []
        self._warm_actions = -1
        self._saved: Mapping[str, Any] | None = None
        self._samplers: dict[Window, WindowSampler] = {}

    @property
    def resumes(self) -> list[dict[str, Any]]:
        """What every resuming brought."""
        return self.player.resumes

    def connect(self, method: Method) -> None:
        """A stage begins: its updates, which count from 0 again, pay for their own steps."""
        super().connect(method)
        self._warm_actions = -1

    def advance(self, update: int) -> Mapping[str, float]:
        """Plays until `steps` per update have been made since the warm-up; returns means over the episodes that ended."""
        if self._method is None:
            raise ConfigError("a Replay source needs a policy; call connect(method) first")
        self.player.attend(self._method)
        if self._saved is not None:
            self._go_back()
        if self._store is None:
            self._store = self._open(0)
        before, slots, policy = self._store.num_episodes, self.player.slots, self._method.policy
        with acting(self._method), torch.no_grad():
            while before + len(self._ended) < self.config.warmup_episodes:
                self._play(policy)
            if self._warm_actions < 0:
                self._warm_actions = slots.num_actions
            while slots.num_actions < self._warm_actions + self.config.steps * (update + 1):
                self._play(policy)
        if not self._ended:
            return {}
        self._store.extend(self._ended)
        self._ended.clear()
        if self.config.capacity:
            self._samplers.clear()
        ended = self._store.episodes
        return {
            "episode_return": float(np.mean(ended["return"][before:])),
            "episode_length": float(np.mean(ended["length"][before:])),
        }

    def _play(self, policy: Policy) -> None:
        """One decision for every slot."""
        if self.player.tick is None:
            self._observe(self.player.start())
        self._observe(self.player.move(self.player.decide(policy, self.player.follow(policy))))

    def _observe(self, tick: Tick) -> None:
        """Notes what the slots show; episodes that ended wait for the end of `advance`, where all go to the disk at once."""
        for row, number in enumerate(tick.number.tolist()):
            self._recordings.setdefault(number, _Recording(self.spec)).add(tick, row)
        for row in tick.ended.tolist():
            self._ended.append(self._recordings.pop(int(tick.number[row])).episode(tick, row))

    def held_out(self, view: str, window: Window, number: int) -> Batch | None:
        return None

    def state_dict(self) -> Mapping[str, Any]:
        """How many episodes the store has, all on the disk by now, and the episodes in progress."""
        if self._saved is not None:
            return self._saved
        if self._store is None or self._path is None:
            return {"episodes": -1 if self._store is not None else 0, "resumes": self.resumes}
        return {
            "episodes": self._store.num_episodes,
            "warm_actions": self._warm_actions,
            **self.player.save(),
            "recordings": {str(number): recording.save() for number, recording in self._recordings.items()},
            "resumes": self.resumes,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self._path is None or state["episodes"] < 0:
            raise CheckpointError(
                "a Replay source that keeps its episodes in memory cannot resume; build it with folder=<run folder>"
            )
        if state["episodes"]:
            self._stored(state["episodes"])
        # Carried out by the next `advance`: when a later stage of the run has a state of its own, it overrides this one,
        # whose shorter store must then not have been cut.
        self._saved = state

    def _go_back(self) -> None:
        """Store, environments and episodes in progress as they were when the state was saved."""
        assert self._saved is not None
        state, self._saved = self._saved, None
        self.player.resumes = list(state["resumes"])
        if "slots" not in state:
            return
        if self._store is not None:
            self._store.close()
        self._store = self._open(state["episodes"])
        self._samplers.clear()
        tick, self._warm_actions = self.player.load(state, episodes=state["episodes"]), state["warm_actions"]
        saved = {int(number): _Recording(self.spec, kept) for number, kept in state["recordings"].items()}
        playing = set(tick.number.tolist())
        self._recordings = {number: recording for number, recording in saved.items() if number in playing}
        for row, number in enumerate(tick.number.tolist()):
            # a dropped episode's slot shows the first step of the next one, which nobody has noted yet
            if number not in saved and not tick.step.final[row]:
                self._recordings[number] = _Recording(self.spec)
                self._recordings[number].add(tick, row)

    def _open(self, episodes: int) -> Store:
        """The store cut back to so many episodes; a new one where there is none."""
        if self._path is None:
            return Store.create(None, self.spec)
        if not episodes and not (self._path / "store.json").is_file():
            about = {"collected_by": "Replay", "environment": self.config.environment, "seed": self.seed}
            return Store.create(self._path, self.spec, about=about)
        store = self._stored(episodes)
        store.truncate(episodes)
        return store

    def _stored(self, episodes: int) -> Store:
        """The store in the run's folder. Raises CheckpointError where it lacks some of the first `episodes`."""
        assert self._path is not None
        if not (self._path / "store.json").is_file():
            raise CheckpointError(
                f"the checkpoint needs {episodes} episodes of the store {self._path}, which does not exist"
            )
        store = open_store(self._path)
        if store.num_episodes < episodes:
            raise CheckpointError(
                f"the checkpoint needs {episodes} episodes of the store {self._path}, which has {store.num_episodes}"
            )
        return store

    def _sampler(self, window: Window) -> WindowSampler:
        if self._store is None or not self._store.num_episodes:
            raise DataError("the replay store is empty; call advance(update) before draw")
        if window not in self._samplers:
            self._samplers[window] = WindowSampler(self._store, window, episodes=self._newest())
        return self._samplers[window]

    def _newest(self) -> np.ndarray | None:
        """Numbers of the newest episodes that hold `capacity` steps together; None for all."""
        assert self._store is not None
        if not self.config.capacity:
            return None
        steps = np.cumsum(np.asarray(self._store.episodes["length"])[::-1])
        count = max(1, int(np.searchsorted(steps, self.config.capacity, side="right")))
        return np.arange(self._store.num_episodes - count, self._store.num_episodes) if count < len(steps) else None


class _Recording:
    """The steps of one episode being played."""

    def __init__(self, spec: Spec, saved: Mapping[str, Any] | None = None) -> None:
        self._observation: dict[str, list[np.ndarray]] = {path: [] for path in leaves(spec.observation)}
        self._action: dict[str, list[np.ndarray]] = {path: [] for path in leaves(spec.action)}
        self._reward: list[float] = []
        if saved is not None:
            self._observation = {path: list(steps) for path, steps in saved["observation"].items()}
            self._action = {path: list(steps) for path, steps in saved["action"].items()}
            self._reward = saved["reward"].tolist()

    def add(self, tick: Tick, row: int) -> None:
        """Notes a step and, beside it, the action and reward that led to it."""
        for kept, tree in ((self._observation, tick.step.observation), (self._action, tick.step.previous_action)):
            for path, steps in kept.items():
                steps.append(read_leaf(tree, path)[row].cpu().numpy())
        self._reward.append(float(tick.reward[row]))

    def save(self) -> dict[str, Any]:
        return {
            "observation": {path: np.stack(steps) for path, steps in self._observation.items()},
            "action": {path: np.stack(steps) for path, steps in self._action.items()},
            "reward": np.array(self._reward),
        }

    def episode(self, tick: Tick, row: int) -> Episode:
        """The episode that ended at this row."""
        length = len(self._reward) - 1
        terminated, truncated = np.zeros(length, bool), np.zeros(length, bool)
        terminated[-1], truncated[-1] = tick.terminated[row], tick.truncated[row]
        return Episode(
            observation=build_tree({path: np.stack(steps) for path, steps in self._observation.items()}),
            action=build_tree({path: np.stack(steps[1:]) for path, steps in self._action.items()}),
            reward=np.array(self._reward[1:], np.float32),
            terminated=terminated,
            truncated=truncated,
            facts={"job": int(tick.number[row])},
        )
