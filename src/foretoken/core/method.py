"""The contracts of learning and acting: Method, Objective, Policy, Condition, Source."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from foretoken.core.batch import Batch, Decision, Loss, Step
from foretoken.core.exhibit import Exhibit
from foretoken.core.spec import Spec, Window
from foretoken.core.state import State
from foretoken.core.store import EpisodeStore

Context = Mapping[str, Any]
"""What an episode is begun with, one entry per row: target_return (B,), goal, prompt, ... Keys a policy does not know are ignored."""


class Policy(Protocol):
    """How a method acts. It has no hidden memory: rows are born and reset one by one, by writing rows of the state."""

    def begin(self, rows: int, context: Context) -> State:
        """The state of `rows` episodes about to start; whatever conditions them is encoded once, here."""

    def act(self, step: Step, state: State, *, explore: bool = False) -> Decision:
        """One decision per row. `step.seed` is the only randomness."""


@dataclass(frozen=True)
class Objective:
    """One loss, the modules it trains, and the views of the data it reads; `loss(*batches)` receives them in the order of `reads`."""

    name: str
    loss: Callable[..., Loss]
    trains: tuple[nn.Module, ...]
    reads: Mapping[str, Window]
    every: int = 1


class Method(nn.Module, ABC):
    """How a system learns and acts. Only `loss`, `window` and `policy` must be written; the rest has defaults.

    Whatever is learned or measured from data (weights, normalisers, bins) is a parameter or buffer: a checkpoint is a
    whole policy. Constructed as `Owner(config, spec)`, where `spec` is a Spec, or a mapping of Specs when its source joins several.
    """

    window: Window
    """What the default objective reads, under the view name "data"."""

    asks: tuple[str, ...] = ()
    """Keys of the context without which its policy cannot begin, for example "target_return"."""

    @property
    @abstractmethod
    def policy(self) -> Policy:
        """How the method acts with its present weights."""

    @abstractmethod
    def loss(self, *batches: Batch) -> Loss: ...

    def fit(self, stores: Mapping[str, EpisodeStore], stage: str) -> None:
        """Before a stage's first gradient: normalisers, bins, clusters, indexes, from the stores by part ({} when data are generated).

        What weights are trained for stays as the first stage, or the run they come from, found it: see `foretoken.nn.fitted`.
        """

    def annotate(self, batch: Batch) -> Batch:
        """Once per piece of experience, without gradient: advantages, learned rewards."""
        return batch

    def objectives(self) -> tuple[Objective, ...]:
        return (Objective("loss", self.loss, trains=(self,), reads={"data": self.window}),)

    def after_update(self, objective: str, notes: Mapping[str, Tensor]) -> None:
        """After an objective's optimiser step, with the notes of its losses summed over micro-batches and processes."""

    def exhibits(self, episodes: Sequence[Batch]) -> Sequence[Exhibit]:
        """What there is to see of episodes that its policy played, for a report: plans, imagined steps, attention, ...

        Called in evaluation mode and without gradients; must change nothing and draw no random numbers but from `seed`.

        Args:
            episodes: one to four, each a Batch of one row (1, T + 1, ...) with observation, action, reward, terminated,
                truncated, timestep and the masks; its last step is the final observation. `seed` (1, T + 1) int64 is what the
                policy was given at each step, `context` a mapping of what the episode was begun with. Long ones are cut.
        """
        return ()


class Condition(nn.Module, ABC):
    """What a policy is asked for: return, cost, goal, ...

    Law: on a recorded episode, asked for its own first hindsight value, `carry` reproduces the `hindsight` column.
    """

    width: int
    """C, entries per step."""

    looks_back: bool = False
    """Whether it speaks of the step before, so that there is none where an episode or a window begins."""

    columns: tuple[str, ...] = ()
    """Store columns that `hindsight` reads."""

    asks: tuple[str, ...] = ()
    """Context keys that `begin` needs."""

    @property
    def parts(self) -> "tuple[Condition, ...]":
        """What is told apart, each with `width` of the entries in this order; a sequence network may give each a token."""
        return (self,)

    def fit(self, stores: Mapping[str, EpisodeStore]) -> None:
        """Before a stage's first gradient: scales and the like, from the stores ({} when data are generated), once."""

    @abstractmethod
    def hindsight(self, batch: Batch) -> Tensor:
        """(B, T, C): what each recorded step turned out to achieve."""

    @abstractmethod
    def begin(self, rows: int, context: Context) -> State: ...

    @abstractmethod
    def carry(self, step: Step, state: State) -> tuple[Tensor, State]:
        """The condition for this step, (B, C), given what the last action earned."""


class Source(Protocol):
    """Where batches come from. Offline data, replay, on-policy rollouts and self-play differ only here; the loop never asks which."""

    spec: Spec | Mapping[str, Spec]
    stores: Mapping[str, EpisodeStore]

    def connect(self, method: Method) -> None:
        """Hands over the live policy weights and `method.annotate`."""

    def advance(self, update: int) -> Mapping[str, float]:
        """Before each update: act, append, refresh, start a round, or nothing. Returns metrics."""

    def draw(self, view: str, window: Window, update: int, micro: int = 0) -> Batch:
        """A batch for one micro-batch of one update, a pure function of its arguments and the data: drawing again gives the same batch."""

    def held_out(self, view: str, window: Window, number: int) -> Batch | None:
        """The number-th batch of held-out data (fixed for a run), or None where there is none."""

    def state_dict(self) -> Mapping[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
