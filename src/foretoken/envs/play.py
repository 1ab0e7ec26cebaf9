"""The loop in which a policy acts in slots, and the uniformly random policy."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from foretoken.core.batch import Decision, Step
from foretoken.core.method import Policy
from foretoken.core.random import normal, split, uniform
from foretoken.core.spec import Box, Discrete, MultiDiscrete, Spec, Tokens, leaves
from foretoken.core.state import State
from foretoken.envs.slots import Slots, Tick, follow
from foretoken.envs.spaces import build_tree
from foretoken.envs.traced import Engine, Traced


@contextmanager
def acting(policy: Any) -> Iterator[None]:
    """Evaluation mode for a policy that is a module or holds modules; afterwards every module's own mode is restored."""
    held = (
        [policy]
        if isinstance(policy, nn.Module)
        else [part for part in _attributes(policy) if isinstance(part, nn.Module)]
    )
    modes = [(module, module.training) for part in held for module in part.modules()]
    for part in held:
        part.eval()
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def _attributes(holder: Any) -> list[Any]:
    slots = [getattr(holder, name, None) for cls in type(holder).__mro__ for name in getattr(cls, "__slots__", ())]
    return [*getattr(holder, "__dict__", {}).values(), *slots]


def play(
    slots: Slots, policy: Policy, *, explore: bool = False, trace: bool = False, engine: Engine = "torch"
) -> Iterator[tuple[Tick, Decision]]:
    """Plays every job of new slots, yielding each tick with the decision taken at it, before that is carried out.

    Rows are born, once per job, by `policy.begin` with the jobs' contexts, and dropped when jobs run out. The policy acts without
    gradients and in evaluation mode. `trace` lets it act by a traced graph of this engine where it can, which its weights
    must not change under; see `Traced`.
    """
    with acting(policy):
        policy = Traced(policy, engine=engine) if trace else policy
        tick, state = slots.start(), None
        while tick is not None:
            # not inference_mode: what a network caches while acting must stay usable in training
            with torch.no_grad():
                state = follow(state, tick, policy.begin, slots.device)
                decision = policy.act(tick.step, state, explore=explore)
            yield tick, decision
            state, tick = decision.state, slots.advance(decision.action)


class RandomPolicy:
    """Actions drawn evenly from the action space: between the bounds of a Box (standard normal where it has none), among choices else."""

    def __init__(self, spec: Spec) -> None:
        self._parts = leaves(spec.action)

    def begin(self, rows: int, context: Mapping[str, Any]) -> State:
        return {}

    def act(self, step: Step, state: State, *, explore: bool = False) -> Decision:
        actions = {
            path: _draw(part, split(step.seed, number)) for number, (path, part) in enumerate(self._parts.items())
        }
        return Decision(build_tree(actions), state)


def _draw(part: Any, seed_B: Tensor) -> Tensor:
    if isinstance(part, Box):
        low, high = (
            torch.tensor(b, device=seed_B.device).expand(part.size).reshape(part.shape) for b in (part.low, part.high)
        )
        bounded = low.isfinite() & high.isfinite()
        span = torch.where(bounded, high - low, 0.0)
        drawn = torch.where(bounded, low + uniform(seed_B, *part.shape) * span, normal(seed_B, *part.shape))
        return drawn.to(getattr(torch, part.dtype))
    start = part.start if isinstance(part, Discrete) else 0
    count = torch.tensor(_counts(part), device=seed_B.device)
    return start + (uniform(seed_B, *part.shape) * count).long().minimum(count - 1)


def _counts(part: Any) -> Any:
    if isinstance(part, MultiDiscrete):
        return part.nvec
    if isinstance(part, Tokens):
        return part.vocabulary
    return part.n if isinstance(part, Discrete) else 2
