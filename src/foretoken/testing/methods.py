"""The laws of Methods: acting is the forward pass of training, rows are independent, learning learns and repeats itself.

They run on small random stores; recorded episodes are played through the policy, so that no environment is needed.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from foretoken.core import random
from foretoken.core.batch import Batch, Loss, Step
from foretoken.core.config import Config
from foretoken.core.errors import DataError
from foretoken.core.method import Context, Method, Objective
from foretoken.core.spec import Spec, Window
from foretoken.core.state import write_rows
from foretoken.data.store import Store
from foretoken.data.windows import WindowSampler
from foretoken.envs.traced import Traced
from foretoken.testing.agreement import perturb, require, require_equal
from foretoken.testing.stores import random_store

Specs: TypeAlias = Spec | Mapping[str, Spec]
Asked: TypeAlias = Callable[[np.ndarray, Store], Context]
"""From episode numbers (K,) and their store to the context these episodes are begun with."""


def own_outcome(episodes: np.ndarray, store: Store) -> Context:
    """Asks every episode for the return it had, and the cost where costs are known."""
    known = {"target_return": "return", "target_cost": "cost"}
    columns = {key: store.episodes[name] for key, name in known.items() if name in store.episodes}
    return {key: torch.from_numpy(values[episodes]).float() for key, values in columns.items()}


@dataclass(frozen=True)
class Trial:
    """One method under test.

    Args:
        config: of the method.
        spec: what it is built for; a mapping of Specs where its source joins several.
        acting: "window": the policy sees the last `window.length` steps, as in training; "streaming": the whole episode.
        asked: the context that recorded episodes are begun with.
        tolerance: allowed relative difference in float32.
        seed: of weights, data and draws.
        compare_forward: False for methods without a `forward(batch, read) -> Prediction` that acting could be compared with.
    """

    config: Config
    spec: Specs
    acting: Literal["window", "streaming"] = "window"
    asked: Asked = own_outcome
    tolerance: float = 1e-4
    seed: int = 0
    compare_forward: bool = True

    @cached_property
    def stores(self) -> Mapping[str, Store]:
        specs = {"data": self.spec} if isinstance(self.spec, Spec) else self.spec
        return {name: random_store(spec, seed=self.seed, rich=True) for name, spec in specs.items()}

    @property
    def store(self) -> Store:
        """The store whose episodes are played."""
        return next(iter(self.stores.values()))

    @cached_property
    def plan(self) -> "Plan":
        """Who plays which recorded episode when."""
        return staggered(self.store, getattr(self.build(fit=False), "window", Window(length=1)).across)

    def build(self, seed: int | None = None, *, fit: bool = True) -> Method:
        torch.manual_seed(self.seed if seed is None else seed)
        method: Method = self.config.build(self.spec)
        if fit:
            method.fit(self.stores, "main")
        return method

    def acting_method(self) -> Method:
        """A fitted method whose every weight takes part."""
        method = self.build()
        perturb(method, self.seed, scale=0.1)
        return method.eval()

    def draw(self, method: Method, objective: Objective, rows: int = 12, seed: int = 0) -> list[Batch]:
        """One batch per view; views are drawn from the store that the part of their name before "/" says."""
        with torch.no_grad():
            return [
                method.annotate(WindowSampler(self.stores.get(view.split("/")[0], self.store), window).draw(rows, seed))
                for view, window in objective.reads.items()
            ]

    @property
    def sizes(self) -> str:
        spec = self.spec if isinstance(self.spec, Spec) else next(iter(self.spec.values()))
        return f"{type(self.config).__name__}, actions {spec.action}, observations {spec.observation}"


def check_method(config: Config, spec: Specs, **trial: Any) -> None:
    """Checks every law of a method on a small random store.

    Args:
        config: of the method; small, for example that of `smoke()`.
        spec: what to build it for; `foretoken.testing.stores.SPECS` has one of each kind.
        trial: further fields of `Trial`.

    Raises:
        AssertionError: a law does not hold.
    """
    made = Trial(config, spec, **trial)
    for law in LAWS.values():
        law(made)


# -- playing recorded episodes


@dataclass(frozen=True)
class Plan:
    """Which episode each row plays when: (ticks, rows) arrays of episode numbers and steps, -1 where a row is idle."""

    episode: np.ndarray
    step: np.ndarray

    def pick(self, rows: Sequence[int]) -> "Plan":
        return Plan(self.episode[:, rows], self.step[:, rows])


def runs(store: Store, across: str) -> list[np.ndarray]:
    """The numbers of the episodes that share a memory: each by itself, or those of equal value in the column `across`."""
    numbers = np.arange(store.num_episodes)
    return np.split(numbers, np.flatnonzero(np.diff(store.episodes[across])) + 1 if across else numbers[1:])


def staggered(store: Store, across: str = "", rows: int = 3) -> Plan:
    """Every run of episodes once, dealt to rows that start at different times; a row begins its next right after the last."""
    length = store.episodes["length"]
    lines: list[list[tuple[int, int]]] = [[(-1, -1)] * (2 * row) for row in range(rows)]
    for turn, run in enumerate(runs(store, across)):
        lines[turn % rows] += [(number, step) for number in run for step in range(int(length[number]) + 1)]
    ticks = max(map(len, lines))
    table = np.array([line + [(-1, -1)] * (ticks - len(line)) for line in lines]).transpose(1, 0, 2)
    return Plan(table[..., 0], table[..., 1])


def play(
    method: Method, store: Store, plan: Plan, asked: Asked, *, trace: bool = False
) -> Iterator[tuple[Step, Any, Any]]:
    """Feeds recorded episodes to the policy: per tick the step, the action that the policy answers, and the state after it.

    Seeds are functions of episode and step. Rows are born by writing rows of the state, when their run of episodes begins.
    """
    policy = Traced(method.policy, after=2) if trace else method.policy
    rows = plan.episode.shape[1]
    state = policy.begin(rows, asked(plan.episode.max(0).clip(min=0), store))
    begins = np.array([run[0] for run in runs(store, method.window.across)])
    for episode, step in zip(plan.episode, plan.step, strict=True):
        told = recorded_step(store, episode, step)
        born = np.flatnonzero((step == 0) & np.isin(episode, begins))
        if len(born):
            state = write_rows(state, policy.begin(len(born), asked(episode[born], store)), torch.from_numpy(born))
        with torch.no_grad():
            decision = policy.act(told, state)
        state = decision.state
        yield told, decision.action, state


def recorded_step(store: Store, episode: np.ndarray, step: np.ndarray) -> Step:
    """What a policy is told at these steps of recorded episodes; -1 is an idle row."""
    start = np.where(episode >= 0, store.episodes["start"][episode.clip(min=0)], -1)
    here = store.gather(
        np.where(episode >= 0, start + step, -1), ("observation", "first", "final", "valid", "timestep")
    )
    costs = ("cost",) if "cost" in store.columns else ()
    before = store.gather(np.where(step > 0, start + step - 1, -1), ("action", "reward", *costs))
    cost = before.cost if "cost" in before else torch.zeros_like(before.reward)
    seed = random.split(torch.from_numpy(episode.astype(np.int64)), torch.from_numpy(step.astype(np.int64)))
    told = here.first, here.final, here.valid, here.timestep, seed
    return Step(here.observation, before.action, before.reward, cost, *told)


def actions_of(trial: Trial, method: Method, plan: Plan, *, trace: bool = False) -> Tensor:
    """(ticks, rows, ...) actions; those of idle rows and final steps are zeros, since nothing will be done with them."""
    answers = []
    for told, action, _ in play(method, trial.store, plan, trial.asked, trace=trace):
        used = (told.valid & ~told.final).reshape(-1, *[1] * (action.dim() - 1))
        answers.append(torch.where(used, action, torch.zeros_like(action)))
    return torch.stack(answers)


# -- the laws


def acting_is_forward(trial: Trial) -> None:
    """At every step, `act` answers what the forward pass of training answers on the same history, whoever else shares the batch."""
    if not trial.compare_forward:
        return
    require(
        type(trial.build(fit=False)).forward is not nn.Module.forward, "act == forward",
        f"{trial.sizes}: the method has no forward(batch, read) -> Prediction; compare_forward=False leaves this law out",
    )  # fmt: skip
    method, store = trial.acting_method(), trial.store
    plan = trial.plan
    got = actions_of(trial, method, plan)
    played = (plan.episode >= 0) & (plan.step < store.episodes["length"][plan.episode.clip(min=0)])
    at = (store.episodes["start"][plan.episode.clip(min=0)] + plan.step)[played]
    batch = _histories(trial, method, at)
    seed = random.split(torch.from_numpy(plan.episode[played]), torch.from_numpy(plan.step[played]))
    with torch.no_grad():
        prediction = method(method.annotate(batch), read=slice(-1, None))
        mode, drawn = prediction.mode().squeeze(1), prediction.sample(seed).squeeze(1)
    got = got[torch.from_numpy(played)]
    want = mode if _distance(got, mode) < _distance(got, drawn) else drawn
    require_equal(got, want, "act == forward", trial.sizes, tolerance=trial.tolerance)


def _histories(trial: Trial, method: Method, at: np.ndarray) -> Batch:
    """What the policy sees at these steps, as a batch: windows that end there."""
    store, asked = trial.store, method.window
    length = asked.length if trial.acting == "window" else store.num_steps
    final = int(asked.final)  # then windows end with the successor of the drawn step, which is not known yet
    window = asked.replace(length=length + final, anchor="end", back=0, pad="left")
    batch = WindowSampler(store, window).windows(at)
    return batch.map(lambda leaf: leaf[:, :length]) if final else batch


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().sum())


def rows_are_independent(trial: Trial) -> None:
    """Permuting rows with their seeds permutes actions, and a row alone acts as it does among others."""
    method, plan = trial.acting_method(), trial.plan
    want, order = actions_of(trial, method, plan), [2, 0, 1]
    got = actions_of(trial, method, plan.pick(order))
    require_equal(got, want[:, order], "rows permuted while acting", trial.sizes, tolerance=trial.tolerance)
    for row in range(3):
        alone = actions_of(trial, method, plan.pick([row]))
        require_equal(alone, want[:, [row]], "a row alone while acting", trial.sizes, tolerance=trial.tolerance)


def tracing_changes_nothing(trial: Trial) -> None:
    """Where steps are steady, a traced graph of `act` answers the same to the bit, between episodes that begin and end."""
    method, plan = trial.acting_method(), trial.plan
    want = actions_of(trial, method, plan)
    require_equal(actions_of(trial, method, plan, trace=True), want, "acting by a trace", trial.sizes)


def state_keeps_its_shape(trial: Trial) -> None:
    """Structure, shapes and dtypes of the state never change, and every leaf is a tensor with rows first."""
    method, plan = trial.acting_method(), trial.plan
    describe = lambda tree: tree_map(lambda leaf: (tuple(leaf.shape), leaf.dtype), dict(tree))  # noqa: E731
    begun = method.policy.begin(3, trial.asked(np.arange(3), trial.store))
    bad = [leaf for leaf in tree_leaves(begun) if not isinstance(leaf, Tensor) or leaf.shape[:1] != (3,)]
    require(not bad, "the state is tensors, row first", f"got {bad} ({trial.sizes})")
    want = describe(begun)
    for _, _, state in play(method, trial.store, plan, trial.asked):
        got = describe(state)
        require(got == want, "the state keeps its shape", f"{got}, began as {want} ({trial.sizes})")


def padding_is_unseen(trial: Trial) -> None:
    """What stands in padded steps, and on which side they are, changes no loss."""
    method = trial.acting_method()
    for objective in method.objectives():
        batches = trial.draw(method, objective)
        others = trial.draw(method, objective, seed=1)
        with torch.no_grad():
            want = objective.loss(*batches)
            got = objective.loss(*[_fill_padding(batch, other) for batch, other in zip(batches, others, strict=True)])
        _same_loss(got, want, f"garbage in padding, objective {objective.name!r}", trial)
        sides = {
            view: window.replace(pad="right" if window.pad == "left" else "left")
            for view, window in objective.reads.items()
        }
        turned = Objective(objective.name, objective.loss, objective.trains, sides)
        with torch.no_grad():
            got = objective.loss(*trial.draw(method, turned))
        _same_loss(got, want, f"padding on the other side, objective {objective.name!r}", trial)


def _fill_padding(batch: Batch, other: Batch) -> Batch:
    """The batch with the other one's values in its padded steps, masks and addresses as they were."""
    keep = batch.valid

    def fill(mine: Any, theirs: Any) -> Any:
        if isinstance(mine, Mapping):
            return {name: fill(mine[name], theirs[name]) for name in mine}
        return torch.where(keep.reshape(*keep.shape, *[1] * (mine.dim() - 2)), mine, theirs)

    masks = ("valid", "scored", "first", "final", "fresh", "at")
    return batch.replace(**{name: fill(batch[name], other[name]) for name in batch if name not in masks})


def _same_loss(got: Loss, want: Loss, law: str, trial: Trial) -> None:
    require_equal(got.total, want.total, law, trial.sizes, tolerance=trial.tolerance)
    require_equal(got.weight, want.weight, f"{law}: weight", trial.sizes)


def loss_adds_up(trial: Trial) -> None:
    """However a batch is cut into parts, the mean of their losses by weight is the same."""
    method = trial.acting_method()
    for objective in method.objectives():
        batches = trial.draw(method, objective, rows=9)
        with torch.no_grad():
            whole = objective.loss(*batches)
            parts = [objective.loss(*[_rows(batch, part) for batch in batches]) for part in (slice(0, 2), slice(2, 9))]
        weight = sum(float(part.weight) for part in parts)
        total = sum(float(part.total) * float(part.weight) for part in parts) / weight
        law = f"loss of a batch == weighted mean of its parts, objective {objective.name!r}"
        require_equal(torch.tensor(total), whole.total, law, trial.sizes, tolerance=trial.tolerance)


def _rows(batch: Batch, part: slice) -> Batch:
    return batch.map(lambda leaf: leaf[part])


def learn(trial: Trial, method: Method, updates: int = 12) -> dict[str, tuple[float, float]]:
    """Some updates on one fixed batch per objective; by objective the loss before and after, without dropout."""
    losses = {}
    for objective in method.objectives():
        batches = trial.draw(method, objective)
        before = _evaluate(method, objective, batches)
        parameters = [p for module in objective.trains for p in module.parameters() if p.requires_grad]
        optimiser = torch.optim.Adam(parameters, lr=3e-3)
        method.train()
        for update in range(updates):
            torch.manual_seed(update)
            optimiser.zero_grad()
            loss = objective.loss(*batches)
            loss.total.backward()
            optimiser.step()
            method.after_update(objective.name, loss.notes)
        losses[objective.name] = (before, _evaluate(method, objective, batches))
    return losses


def _evaluate(method: Method, objective: Objective, batches: list[Batch]) -> float:
    method.eval()
    with torch.no_grad():
        return float(objective.loss(*batches).total)


def updates_lower_the_loss(trial: Trial) -> None:
    """A few updates on a fixed batch lower its loss, and change something in every module that is trained."""
    method = trial.build()
    begun = {name: parameter.clone() for name, parameter in method.named_parameters()}
    for name, (before, after) in learn(trial, method).items():
        detail = f"objective {name!r} went from {before:.5g} to {after:.5g} on a fixed batch ({trial.sizes})"
        require(after < before, "updates lower the loss", detail)
    bad = [name for name, parameter in method.named_parameters() if not parameter.isfinite().all()]
    require(not bad, "weights stay finite", f"{bad} ({trial.sizes})")
    idle = [
        name
        for name, parameter in method.named_parameters()
        if parameter.requires_grad and torch.equal(parameter, begun[name])
    ]
    require(
        not idle, "no idle parameters", f"{idle} take part in no loss; leave them out or freeze them ({trial.sizes})"
    )


def same_seed_same_weights(trial: Trial) -> None:
    """Building and training twice from one seed gives the same weights and buffers, bit for bit."""
    results = []
    for _ in range(2):
        method = trial.build()
        learn(trial, method, updates=3)
        results.append(method.state_dict())
    for name, value in results[0].items():
        require_equal(results[1][name], value, f"same seed, same weights: {name}", trial.sizes)


def weights_are_the_policy(trial: Trial) -> None:
    """Weights and buffers saved and loaded into a new, unfitted method give the same actions, bit for bit."""
    method = trial.acting_method()
    learn(trial, method, updates=2)
    method.eval()
    other = trial.build(seed=trial.seed + 1, fit=False)
    other.load_state_dict(load(save({name: value.contiguous() for name, value in method.state_dict().items()})))
    plan = trial.plan
    got, want = actions_of(trial, other.eval(), plan), actions_of(trial, method, plan)
    require_equal(got, want, "saved and loaded, the same actions", trial.sizes)


def nothing_hidden_changes(trial: Trial) -> None:
    """An update and an episode change nothing but parameters and buffers: no attribute carries anything on."""
    method = trial.build()
    before = _attributes(method)
    learn(trial, method, updates=2)
    actions_of(trial, method, trial.plan)
    after = _attributes(method)
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    require(
        not changed,
        "nothing hidden changes",
        f"an update or acting changed {changed}; make them buffers ({trial.sizes})",
    )


def exhibits_are_plain(trial: Trial) -> None:
    """What a method shows of episodes is plain data, the same when asked again, and asking changes nothing."""
    method = trial.acting_method()
    if type(method).exhibits is Method.exhibits:
        return
    episodes = [_whole(trial, number) for number in range(min(4, trial.store.num_episodes))]
    before, drawn = _attributes(method) | _freeze(method.state_dict()), torch.get_rng_state()
    try:
        with torch.no_grad():
            once, again = ([one.to_json() for one in method.exhibits(episodes)] for _ in range(2))
    except DataError:
        return  # these episodes do not serve, which is told
    require(json.loads(json.dumps(once, allow_nan=False)) == again, "exhibits are plain and repeat", trial.sizes)
    after = _attributes(method) | _freeze(method.state_dict())
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    require(not changed, "exhibits change nothing", f"{changed} ({trial.sizes})")
    require(bool((torch.get_rng_state() == drawn).all()), "exhibits draw by the episodes' seeds alone", trial.sizes)


def _whole(trial: Trial, number: int) -> Batch:
    """A recorded episode as `Method.exhibits` is given it."""
    store = trial.store
    at = store.episodes["start"][number] + np.arange(store.episodes["length"][number] + 1)
    names = ("observation", "action", "reward", "terminated", "truncated")
    found = store.gather(at[None], (*names, "timestep", "valid", "first", "final"))
    seed, scored = random.split(torch.full_like(found.timestep, number), found.timestep), found.valid & ~found.final
    return found.replace(seed=seed, scored=scored, fresh=found.first, context=trial.asked(np.array([number]), store))


def _attributes(method: Method) -> dict[str, Any]:
    return {
        f"{path}.{name}".strip("."): _freeze(value)
        for path, module in method.named_modules()
        for name, value in vars(module).items()
        if name not in ("_parameters", "_buffers", "_modules", "training")
    }


def _freeze(value: Any) -> Any:
    """A value that compares by content; what has none is compared by identity."""
    if isinstance(value, Tensor):
        return value.dtype, tuple(value.shape), value.detach().cpu().numpy().tobytes()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, Mapping):
        return {str(key): _freeze(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_freeze(part) for part in value]
    return value if isinstance(value, bool | int | float | str | Config | type(None)) else id(value)


def first_fit_stays(trial: Trial) -> None:
    """What weights are trained for is not measured anew: fitted to a later stage's data, the policy acts as before."""
    method = trial.acting_method()
    before = actions_of(trial, method, trial.plan)
    method.fit(
        {name: random_store(store.spec, seed=trial.seed + 1, rich=True) for name, store in trial.stores.items()}, "main"
    )
    after = actions_of(trial, method, trial.plan)
    require_equal(after, before, "the first fit stays (see nn/fitted.py), the same actions", trial.sizes)


LAWS: dict[str, Callable[[Trial], None]] = {
    law.__name__: law
    for law in (
        acting_is_forward, rows_are_independent, tracing_changes_nothing, state_keeps_its_shape, padding_is_unseen,
        loss_adds_up, updates_lower_the_loss, same_seed_same_weights, weights_are_the_policy, nothing_hidden_changes,
        exhibits_are_plain,
        first_fit_stays,
    )
}  # fmt: skip
