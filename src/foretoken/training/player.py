"""The live policy at play in its slots: what sources of its experience share, resuming included."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch.utils._pytree import tree_map

from foretoken.core import state as state_trees
from foretoken.core.batch import Decision
from foretoken.core.errors import ConfigError
from foretoken.core.method import Method, Policy
from foretoken.core.state import State
from foretoken.envs.slots import Job, Slots, Tick, follow
from foretoken.training.seeding import mix

log = logging.getLogger(__name__)


class Played(Protocol):
    """What a source's config says of its slots."""

    @property
    def environment(self) -> str: ...
    @property
    def num_slots(self) -> int: ...
    @property
    def max_steps(self) -> int: ...


class Player:
    """Slots, what they show now, and the policy's state; all of it can be saved in the middle of episodes.

    Args:
        name: of the source, from which its seeds follow.
        config: its settings.
        jobs: makes the episodes to play, which never run out.
        seed: of the run.
        world_size: processes; more than one are refused.

    Attributes:
        tick: what the slots show; None before the first decision.
        state: the policy's, for this tick once `follow` was called at it.
        resumes: what every resuming brought: the slots by grade, and a note for each episode that was lost.
    """

    def __init__(
        self,
        name: str,
        config: Played,
        jobs: Callable[[], Iterable[Job]],
        *,
        seed: int,
        world_size: int,
    ) -> None:
        if world_size > 1:
            raise ConfigError(
                f"a {name.capitalize()} source works in one process, got {world_size}; set training.devices=1"
            )
        self.name = name
        self._make = lambda: Slots(
            config.environment, jobs(), num_slots=config.num_slots, seed=mix(seed, name), max_steps=config.max_steps
        )
        self.slots: Slots = self._make()
        self.spec = self.slots.spec
        self.device = torch.device("cpu")
        self.tick: Tick | None = None
        self.state: State | None = None
        self.resumes: list[dict[str, Any]] = []

    def attend(self, method: Method) -> None:
        """Steps are put where the method's weights are."""
        self.device = next((parameter.device for parameter in method.parameters()), self.device)

    def start(self) -> Tick:
        """Shows the first tick."""
        self.tick = self.slots.start()
        assert self.tick is not None, "jobs never run out"
        return self.tick

    def follow(self, policy: Policy) -> State:
        """The policy's state for this tick, rows that begin now included; may be called again at the same tick."""
        assert self.tick is not None, "call start first"
        self.state = follow(self.state, self.tick, policy.begin, self.device)
        return self.state

    def decide(self, policy: Policy, state: State) -> Decision:
        """What the policy, exploring, answers to this tick."""
        assert self.tick is not None, "call start first"
        step = self.tick.step
        if self.device.type != "cpu":
            step = tree_map(lambda leaf: leaf.to(self.device), step)
        return policy.act(step, state, explore=True)

    def move(self, decision: Decision) -> Tick:
        """Carries a decision out, and shows what it brought."""
        self.state = decision.state
        self.tick = self.slots.advance(decision.action)
        assert self.tick is not None, "jobs never run out"
        return self.tick

    def save(self) -> dict[str, Any]:
        return {"slots": self.slots.save(), "state": self.state}

    def load(self, saved: Mapping[str, Any], **facts: Any) -> Tick:
        """Environments and episodes in progress as they were when saved; `facts` are noted in `resumes` too."""
        self.slots.close()
        self.slots = self._make()
        restored = self.slots.load(saved["slots"])
        assert restored.tick is not None
        self.tick, self.state = restored.tick, state_trees.to(saved["state"], self.device)
        grades = dict(Counter(restored.grades))
        self.resumes.append({**facts, "grades": grades, "notes": list(restored.notes)})
        log.info("%s resumed; slots by grade: %s", self.name, grades)
        return restored.tick
