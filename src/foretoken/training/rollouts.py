"""On-policy experience: the live policy plays a while, the method learns from that for some epochs, and it is thrown away.

    rollout    every slot makes `steps` decisions, its episodes one after another, final observations being steps of their own
    segment    `window.length` successive steps of one slot, with the policy's state before them as `memory` (see `memories`)
    minibatch  `training.batch_size` whole segments; each epoch goes once through all, in a new order

So a rollout lasts `epochs * num_slots * steps / (window.length * batch_size)` updates.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from foretoken.core.batch import Batch
from foretoken.core.config import Config, configures
from foretoken.core.errors import CheckpointError, ConfigError
from foretoken.core.method import Method, Policy
from foretoken.core.spec import Window
from foretoken.core.state import State
from foretoken.envs.play import acting
from foretoken.envs.slots import Job, Tick
from foretoken.envs.traced import Traced
from foretoken.training.memories import Memories
from foretoken.training.player import Player
from foretoken.training.seeding import mix

TRACE_AFTER = 100  # steady decisions, after which they are replayed by a graph


@dataclass(frozen=True, kw_only=True)
class Rollouts(Config):
    """The live policy's newest steps, and no others.

    Args:
        environment: Gymnasium id.
        num_slots: episodes played at once.
        steps: of every slot in a rollout, final observations included; a multiple of the method's window.
        epochs: how often a rollout is learned from.
        trial: so many episodes of one task are played after one another, with one memory.
        max_steps: episodes are truncated after so many actions; 0 leaves that to the environment.
    """

    environment: str
    num_slots: int = 16
    steps: int = 128
    epochs: int = 4
    trial: int = 1
    max_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(num_slots=1, steps=1, epochs=1, trial=1, max_steps=0)


@configures(Rollouts)
class RolloutSource:
    """Plays with the live policy, which explores, and hands out segments of what it played.

    Besides the columns of every step batch, segments have `previous_action` and `previous_reward`, what the policy recorded
    (`Decision.record`), what `method.annotate` made of the whole rollout, and `memory`, the policy's state at their start.
    `annotate` sees rows of `steps + 1` steps: the last is the one to be decided next, neither scored nor handed out, whose
    value continues the row. A resumed run goes on in the middle of a rollout and of the episodes being played.

    Args:
        batch_size: segments of one draw.
        folder: not used; nothing is kept.
    """

    def __init__(
        self,
        config: Rollouts,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        folder: Path | None = None,
    ) -> None:
        self.config, self.batch_size, self.seed = config, batch_size, seed
        self.stores: Mapping[str, Any] = {}
        jobs = lambda: (Job(number, episodes=config.trial) for number in itertools.count())  # noqa: E731
        self.player = Player("rollouts", config, jobs, seed=seed, world_size=world_size)
        self.spec = self.player.spec
        self._method: Method | None = None
        self._earned = np.zeros(config.num_slots)
        self._segments: Batch | None = None
        self._memories: Memories | None = None
        self._saved: Mapping[str, Any] | None = None

    @property
    def resumes(self) -> list[dict[str, Any]]:
        """What every resuming brought."""
        return self.player.resumes

    def connect(self, method: Method) -> None:
        """Raises ConfigError where the rollout cannot be cut into the method's windows, or these into whole minibatches."""
        self._method, self._length, self._policy = method, method.window.length, Traced(method.policy, TRACE_AFTER)
        steps, count = self.config.steps, self.config.num_slots * (self.config.steps // self._length)
        if steps % self._length:
            raise ConfigError(f"rollouts steps must be a multiple of the method's window {self._length}, got {steps}")
        if count % self.batch_size:
            raise ConfigError(
                f"a rollout has {count} segments of {self._length} steps, which batch_size must divide, got {self.batch_size}"
            )
        self._minibatches = count // self.batch_size
        check = getattr(method, "check_reach", None)
        if check is not None:  # the method knows how long an episode is, but not how many share a memory
            most = min(filter(None, (self.config.max_steps, self.spec.max_episode_steps)), default=0)
            check(self.config.trial * (most + 1))

    def advance(self, update: int) -> Mapping[str, float]:
        """Plays a new rollout where the last one has been learned from; returns means over the episodes that ended in it."""
        if self._method is None:
            raise ConfigError("a Rollouts source needs a policy; call connect(method) first")
        self.player.attend(self._method)
        if self._saved is not None:
            self._go_back()
        if update % (self.config.epochs * self._minibatches):
            return {}
        self._ended: list[dict[str, float]] = []
        self._policy.renew()
        with acting(self._method), torch.no_grad():
            rollout, memories = self._play(self._policy)
            rollout = self._method.annotate(rollout.to(self.player.device)).to("cpu")
        cut = lambda leaf: leaf[:, : self.config.steps].unflatten(1, (-1, self._length)).flatten(0, 1)  # noqa: E731
        self._segments, self._memories = rollout.map(cut), memories
        told = {name: [one[name] for one in self._ended if name in one] for name in ("return", "length", "success")}
        return {f"episode_{name}": float(np.mean(values)) for name, values in told.items() if values}

    def _play(self, policy: Policy) -> tuple[Batch, Memories | None]:
        """What the slots show and the policy answers, (B, steps + 1, ...), and its states before each segment."""
        player, steps, length = self.player, self.config.steps, self._length
        tick = player.tick or self._observe(player.start())
        seen, memories = [], None
        for at in range(steps + 1):
            state = player.follow(policy)
            if at == steps:  # what a state holds may be written in place, and the next rollout goes on from this one
                state = tree_map(torch.clone, dict(state))
            elif at % length == 0:
                memories = memories or self._room(state)
                memories.put(at // length, state)
            decision = player.decide(policy, state)
            seen.append(_noted(tick, decision.action, decision.record))
            if at < steps:
                tick = self._observe(player.move(decision))
        columns = tree_map(lambda *leaves: torch.stack(leaves, 1), *seen)
        for name in ("reward", "terminated", "truncated"):  # a tick tells what the action before it brought
            columns[name] = torch.cat((columns[name][:, 1:], torch.zeros_like(columns[name][:, :1])), dim=1)
        columns["scored"][:, -1] = False
        return Batch(columns), memories

    def _room(self, state: State) -> Memories:
        """For the states before the segments of a rollout."""
        assert self._method is not None
        sliding = getattr(self._method.policy, "sliding", ())
        return Memories(state, sliding, segments=self.config.steps // self._length, length=self._length)

    def _observe(self, tick: Tick) -> Tick:
        """Notes the episodes that end with a tick."""
        self._earned = np.where(tick.step.first.numpy(), 0.0, self._earned) + tick.reward
        for row in tick.ended.tolist():
            told = {"return": self._earned[row], "length": float(tick.step.timestep[row])}
            success = tick.infos[row].get("success")
            self._ended.append(told if success is None else told | {"success": float(success)})
        return tick

    def draw(self, view: str, window: Window, update: int, micro: int = 0) -> Batch:
        """The segments of this update's minibatch, whatever the view."""
        if self._segments is None:
            raise ConfigError("there is no rollout to draw from; call advance(update) first")
        if window.length != self._length or micro:
            raise ConfigError(
                f"rollouts are cut into windows of {self._length} steps, one minibatch per update (accumulate=1), got a window "
                f"of {window.length} and micro-batch {micro}"
            )
        place = update % (self.config.epochs * self._minibatches)
        epoch, part = divmod(place, self._minibatches)
        order = np.random.default_rng(mix(self.seed, "order", update - place, epoch))
        rows = order.permutation(self._minibatches * self.batch_size)[part * self.batch_size :][: self.batch_size]
        chosen = torch.from_numpy(np.sort(rows))
        return self._take(chosen)

    def _take(self, chosen: Tensor) -> Batch:
        """The segments of these numbers (K,), each with the state before it."""
        assert self._segments is not None and self._memories is not None
        found = self._segments.map(lambda leaf: leaf.index_select(0, chosen))
        return found.replace(memory=self._memories.take(chosen))

    def held_out(self, view: str, window: Window, number: int) -> Batch | None:
        return None

    def state_dict(self) -> Mapping[str, Any]:
        """The rollout being learned from, and the episodes being played."""
        if self._saved is not None:
            return self._saved
        return {
            **(self.player.save() if self.player.tick is not None else {"slots": None, "state": None}),
            "earned": self._earned,
            "segments": self._segments,
            "memories": self._memories and self._memories.rooms,
            "resumes": self.resumes,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # carried out by the next `advance`: a later stage's state takes its place
        self._saved = state

    def _go_back(self) -> None:
        """Environments, episodes in progress and rollout as they were when the state was saved."""
        assert self._saved is not None
        state, self._saved = self._saved, None
        self.player.resumes = list(state["resumes"])
        if state["slots"] is None:
            return
        if len(state["slots"]["rows"]) != self.config.num_slots:
            raise CheckpointError(f"the checkpoint has other slots than rollouts num_slots={self.config.num_slots}")
        tick, self._earned = self.player.load(state), np.array(state["earned"])
        self._earned[tick.step.first.numpy()] = 0.0
        if state["segments"] is not None:
            assert self.player.state is not None
            self._segments, self._memories = Batch(state["segments"]), self._room(self.player.state)
            self._memories.rooms = state["memories"]


def _noted(tick: Tick, action: Any, record: Mapping[str, Tensor]) -> dict[str, Any]:
    """What is kept of one moment, (B, ...); reward, terminated and truncated are those of the action before."""
    step = tick.step
    fresh = torch.zeros_like(step.first).index_fill(0, tick.born, True)
    return {
        "observation": dict(step.observation) if isinstance(step.observation, Mapping) else step.observation,
        "previous_action": step.previous_action,
        "previous_reward": step.previous_reward,
        "action": action.cpu() if isinstance(action, Tensor) else tree_map(lambda leaf: leaf.cpu(), action),
        "reward": torch.from_numpy(tick.reward).float(),
        "terminated": torch.from_numpy(tick.terminated),
        "truncated": torch.from_numpy(tick.truncated),
        "timestep": step.timestep,
        "valid": step.valid,
        "scored": ~step.final,
        "first": step.first,
        "final": step.final,
        "fresh": fresh,
        **{name: leaf.cpu() for name, leaf in record.items()},
    }
