"""Cloning of whole chunks of actions by denoising, and acting by them: plan H actions, carry out the first n, plan anew.

    learn   x = corrupt(a_t .. a_(t+H-1), noise, level)            loss = mean over rows of sum over steps of |f(x, level, o) - target|^2
    act     x = noise, denoised step by step by f(., ., o) with o = o_(t-K+1) .. o_t read once; a_t .. a_(t+n-1) are carried out

Actions are scaled to [-1, 1] by the data's range. Steps beyond the end of an episode repeat its last action and are masked in
the loss. Before K observations have been made, the episode's first fills their place. No past action is read.

The noise of a loss follows from a seed per row: in training from the default generator, in evaluation from the row's address in
its store, so that held-out losses compare. Without a schedule the same network regresses chunks by their squared error; it reads
ones in place of a sample.
Chi et al. 2023 (Diffusion Policy), arXiv 2303.04137. K counts observations, H the steps of a chunk.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from foretoken.core import random
from foretoken.core.batch import Batch, Decision, Loss, Step, masked_mean
from foretoken.core.config import Config, configures
from foretoken.core.errors import ConfigError
from foretoken.core.exhibit import Exhibit, Line, Lines
from foretoken.core.method import Context, Method, Policy
from foretoken.core.spec import Box, Spec, Window
from foretoken.core.state import State
from foretoken.core.store import EpisodeStore, joint_statistics
from foretoken.diffusion.base import ScheduleConfig, denoise
from foretoken.diffusion.ddim import DDIMConfig
from foretoken.methods import history
from foretoken.nn.denoiser import DenoiserConfig
from foretoken.nn.diffusion_transformer import adaln_transformer
from foretoken.nn.embed.normalise import ActionScale
from foretoken.nn.heads.base import Prediction


@dataclass(frozen=True, kw_only=True)
class ChunkDiffusionConfig(Config):
    """
    Args:
        context: observations that are read, K.
        horizon: actions of a chunk, H.
        execute: how many of them are carried out before the next plan, n.
        network: the denoiser.
        schedule: how actions are noised and denoised; None regresses them.
        steps: calls of the network per plan.
    """

    context: int = 1
    horizon: int = 16
    execute: int = 8
    network: DenoiserConfig = adaln_transformer(128, 3, 4)
    schedule: ScheduleConfig | None = DDIMConfig()
    steps: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context < 1 or not 1 <= self.execute <= self.horizon or self.steps < 1:
            raise ConfigError(
                "context and steps must be at least 1 and execute in [1, horizon], got "
                f"context={self.context}, steps={self.steps}, execute={self.execute} and horizon={self.horizon}"
            )


@dataclass(frozen=True)
class Drawn(Prediction):
    """First actions of chunks at (B, R) places. Training minimises the method's own loss."""

    plan: Callable[[Tensor], Tensor]
    rows: int
    places: int

    def sample(self, seed_B: Tensor) -> Tensor:
        seeds_BR = seed_B[:, None] + torch.arange(self.places, device=seed_B.device)
        return self.plan(seeds_BR.flatten())[:, 0].unflatten(0, (self.rows, self.places))

    def mode(self) -> Tensor:
        """The draw with seed 0: a denoiser knows no likeliest action."""
        return self.sample(torch.zeros(self.rows, dtype=torch.int64))

    def loss(self, action: Tensor) -> Tensor:
        return (self.mode() - action).square().reshape(self.rows, self.places, -1).mean(-1)


@configures(ChunkDiffusionConfig)
class ChunkDiffusion(Method):
    """See the module. A window teaches the chunk from its first scored step on."""

    def __init__(self, config: ChunkDiffusionConfig, spec: Spec) -> None:
        super().__init__()
        if not isinstance(spec.action, Box) or spec.action.is_image:
            raise ConfigError(f"chunks of actions are denoised for a Box, got {type(spec.action).__name__}")
        self.config, self.spec, self.shape = config, spec, spec.action.shape
        self.scale = ActionScale(Box(shape=self.shape))  # without bounds, so that the data's range is taken
        self.network = config.network.build(spec.observation, config.context, config.horizon, spec.action.size)
        self.schedule = config.schedule.build() if config.schedule else None
        if self.schedule is not None:
            self.schedule.levels(config.steps)  # refuses what it cannot sample
        self.is_static = not any(getattr(part, "data_dependent", False) for part in self.modules())
        back = config.context - 1
        self.window = Window(length=back + config.horizon, back=back, columns=("observation", "action"))

    def fit(self, stores: Mapping[str, EpisodeStore], stage: str) -> None:
        if stores:
            self.network.fit(joint_statistics(stores, "observation"))
            self.scale.fit(joint_statistics(stores, "action")[""])

    # -- learning

    def loss(self, *batches: Batch) -> Loss:
        (batch,) = batches
        at_B = batch.scored.int().argmax(1)
        known = self.network.encode(history.up_to(batch.observation, batch.valid, at_B[:, None], self.config.context))
        clean_BHA, scored_BH = self.chunk(batch, at_B)
        sample, target, level_B = torch.ones_like(clean_BHA), clean_BHA, clean_BHA.new_ones(len(at_B))
        if self.schedule is not None:
            level_seed_B, noise_seed_B = (random.split(self._seeds(batch, at_B), key) for key in (0, 1))
            level_B, noise = self.schedule.draw(level_seed_B), random.normal(noise_seed_B, *clean_BHA.shape[1:])
            sample, target = (part(clean_BHA, noise, level_B) for part in (self.schedule.corrupt, self.schedule.target))
            level_B = level_B / self.schedule.top
        errors_BH = (self.network(sample, level_B, known) - target).square().mean(-1)
        loss, count = masked_mean((errors_BH * scored_BH).sum(1), batch.scored.any(1))
        return Loss(loss, metrics={"per_step": masked_mean(errors_BH, scored_BH)[0]}, weight=count)

    def _seeds(self, batch: Batch, at_B: Tensor) -> Tensor:
        if self.training:
            return torch.randint(2**62, at_B.shape, device=at_B.device)
        return batch.at.gather(1, at_B[:, None]).squeeze(1)

    def chunk(self, batch: Batch, at_B: Tensor) -> tuple[Tensor, Tensor]:
        """The scaled actions (B, H, A) from a step on, and which of them there are, (B, H)."""
        index_BH = at_B[:, None] + torch.arange(self.config.horizon, device=at_B.device)
        last_B1 = (batch.scored.sum(1, keepdim=True) - 1).clamp(min=0) + at_B[:, None]
        rows = torch.arange(len(at_B), device=at_B.device)[:, None]
        actions = self.scale(batch.action[rows, torch.minimum(index_BH, last_B1)])
        return actions.reshape(*index_BH.shape, -1), index_BH <= last_B1

    # -- acting

    def plan(self, states_BK: Any, seed_B: Tensor) -> Tensor:
        """Chunks (B, H, *shape) for the last observations (B, K, ...), which are read once."""
        known, config = self.network.encode(states_BK), self.config
        shape = (config.horizon, self.scale.middle.numel())
        if self.schedule is None:
            blank = self.scale.middle.new_ones(len(seed_B), *shape)
            found = self.network(blank, blank.new_ones(len(seed_B)), known)
        else:
            top = self.schedule.top
            predict = lambda sample, level_B: self.network(sample, level_B / top, known)  # noqa: E731
            found = denoise(self.schedule, predict, seed_B, shape, config.steps)
        return self.scale.inverse(found.reshape(len(seed_B), config.horizon, *self.shape))

    def forward(self, batch: Batch, read: slice = slice(None)) -> Drawn:
        """What is planned at the steps of recorded windows that `read` picks."""
        rows, steps = batch.valid.shape
        index_BR = torch.arange(steps, device=batch.valid.device)[read].expand(rows, -1)
        states = history.up_to(batch.observation, batch.valid, index_BR, self.config.context)
        return Drawn(lambda seed_B: self.plan(states, seed_B.to(batch.valid.device)), rows, index_BR.shape[1])

    @property
    def policy(self) -> Policy:
        return ChunkPolicy(self)

    def exhibits(self, episodes: Sequence[Batch]) -> Sequence[Exhibit]:
        """The first plans of an episode, drawn again, over what it did; of at most three actions, those that vary most."""
        episode, config, most = episodes[0], self.config, 8
        steps = min(int(episode.scored.sum()), (most - 1) * config.execute + config.horizon)
        due_P = torch.arange(0, steps, config.execute, device=episode.valid.device)[:most]
        states = history.up_to(episode.observation, episode.valid, due_P[None], config.context)
        done_TA, radius_A = episode.action[0, :steps].flatten(1), self.scale.radius.flatten()
        plan_PHA = self.plan(states, episode.seed[0, due_P]).flatten(2)
        at_PH = due_P[:, None] + torch.arange(config.horizon, device=due_P.device)
        there_PH, left_PH = at_PH < steps, at_PH >= due_P[:, None] + config.execute
        apart_PHA = (plan_PHA - done_TA[at_PH.clamp(max=steps - 1)]).abs() / (2 * radius_A)
        says = f"Every {config.execute} steps {config.horizon} are planned (from each dot on) and the first {config.execute} carried out."
        if (there_PH & left_PH).any():
            changed = float(apart_PHA[there_PH & left_PH].mean())
            says += f" What the next plan replaced differs from what was done by {changed:.1%} of the actions' range."
        panels = []
        spread_A = done_TA.std(0, correction=0) / radius_A
        for entry in spread_A.topk(min(3, len(spread_A))).indices.sort().values.tolist():
            done = Line(label="carried out", x=torch.arange(steps), y=done_TA[:, entry])
            plans = zip(at_PH, plan_PHA, there_PH, strict=True)
            lines = [Line(label="planned", x=at[is_], y=plan[is_, entry], look="dashed") for at, plan, is_ in plans]
            panels.append(Lines(x="step", y=f"action {entry}", lines=(done, *lines)))
        return (Exhibit(title="Plans and actions", says=says, panels=tuple(panels)),)


class ChunkPolicy:
    """Keeps the last K observations of each row, what is left of its plan, and how much of that is done; rows plan when due."""

    def __init__(self, method: ChunkDiffusion) -> None:
        self.method = method

    def due(self, step: Step, state: State) -> Tensor:
        """(B,) bool: which rows have nothing left to do. Rows out of use and final steps need no plan."""
        return (state["done"] >= self.method.config.execute) & step.valid & ~step.final

    def steady(self, step: Step, state: State) -> bool:
        """Whether `act` does the same operations as at every other such step: all rows plan."""
        return self.method.is_static and bool(self.due(step, state).all())

    def begin(self, rows: int, context: Context) -> State:
        method, device = self.method, self.method.scale.middle.device
        todo = (rows, method.config.execute)
        return {
            "history": history.begin(rows, method.config.context, device, observation=method.spec.observation),
            "chunk": torch.zeros(*todo, *method.shape, device=device),
            "done": torch.full(todo[:1], method.config.execute, device=device),
        }

    def act(self, step: Step, state: State, *, explore: bool = False) -> Decision:
        method, count = self.method, self.method.config.execute
        kept = history.push(state["history"], observation=step.observation, timestep=step.timestep)
        chunk, done, due = state["chunk"], state["done"], self.due(step, state)
        if due.any():
            columns, valid_BK = history.window(kept, trim=False)
            newest_B1 = torch.full_like(kept["timestep"][:, -1:], method.config.context - 1)
            states, seed_B = (
                history.up_to(columns["observation"], valid_BK, newest_B1, method.config.context),
                step.seed,
            )
            if due.all():
                chunk, done = method.plan(states, seed_B)[:, :count], torch.zeros_like(done)
            else:
                rows = due.nonzero().squeeze(1)
                planned = method.plan(tree_map(lambda leaf: leaf[rows], states), seed_B[rows])[:, :count]
                chunk, done = chunk.index_copy(0, rows, planned), done.index_fill(0, rows, 0)
        now = torch.arange(len(done), device=done.device), done.clamp(max=count - 1)
        return Decision(chunk[now], {"history": kept, "chunk": chunk, "done": (done + 1).clamp(max=count)})
