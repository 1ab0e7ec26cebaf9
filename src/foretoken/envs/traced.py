"""Acting by a graph, for policies whose steps come to be the same operations again and again.

At small batches most of a decision's time goes to Python between operations. A graph replays them without it: PyTorch's own
trace, bit for bit, or one of ONNX operators, faster and equal within `TOLERANCES`.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from itertools import repeat
from typing import Any, Literal

import torch
from torch import Tensor, nn

from foretoken.core.batch import Decision, Step
from foretoken.core.method import Policy
from foretoken.core.state import State
from foretoken.envs.onnx_graph import OnnxGraph

log = logging.getLogger(__name__)
AFTER, TRIALS = 100, 3
_END = torch.iinfo(torch.int64).max
Engine = Literal["torch", "onnx", "onnx-int8"]
"""What runs the graph: PyTorch, or ONNX Runtime (extra "onnx"), which takes some seconds to make it; "onnx-int8" with what enters
products with weights rounded to eight bits."""

TOLERANCES: dict[Engine, float] = {"torch": 0.0, "onnx": 1e-4, "onnx-int8": 0.1}
"""How far numbers may differ, against the largest of their tensor; of whole numbers, how many may."""


class Traced:
    """Answers what `policy` answers; begins, ends and changes of shape go through the policy itself.

    Only for policies with `steady(step, state)`, which says whether the operations of `act` depend on shapes alone at that
    step. After `after` such steps of equal shapes they are traced on the CPU, and the trace is used if it agrees with the
    policy in `TRIALS` trials, within `TOLERANCES`; operations that ONNX lacks leave PyTorch's trace. After a change of weights
    call `renew`.

    Raises:
        MissingExtra: the engine is not installed.
    """

    def __init__(self, policy: Policy, after: int = AFTER, engine: Engine = "torch") -> None:
        if engine != "torch":
            OnnxGraph.require()
        self.policy, self.after, self.engine = policy, after, engine
        self._graphs: dict[Any, _Graph | None] = {}
        self._seen: dict[Any, int] = {}
        self._last: tuple[State, list[Tensor], bool, _Graph] | None = None
        self._doubted: set[Any] = set()

    def renew(self) -> None:
        """Graphs must agree with the policy once more before they are used: what was computed from weights may be a constant in them."""
        if self.engine != "torch":  # all weights are
            self._graphs = {}
        self._last, self._doubted = None, {key for key, graph in self._graphs.items() if graph is not None}

    def begin(self, rows: int, context: Any) -> State:
        return self.policy.begin(rows, context)

    def act(self, step: Step, state: State, *, explore: bool = False) -> Decision:
        steady = getattr(self.policy, "steady", None)
        if steady is None or step.first.device.type != "cpu" or not steady(step, state):
            return self.policy.act(step, state, explore=explore)
        if self._last is not None and self._last[0] is state and self._last[2] == explore:
            _, kept, _, graph = self._last  # going on from what the graph answered: nothing to look up
        else:
            kept = _leaves(state)
            found = self._graph(step, state, kept, explore)
            if found is None:
                return self.policy.act(step, state, explore=explore)
            graph = found
        action, after, record = graph.run([*_leaves(step), *kept])
        self._last = after, graph.kept, explore, graph
        return Decision(action, after, record)

    def _graph(self, step: Step, state: State, kept: list[Tensor], explore: bool) -> "_Graph | None":
        leaves = [*_leaves(step), *kept]
        key = (explore, *[(leaf.shape, leaf.dtype) for leaf in leaves])
        if key not in self._graphs:
            self._seen[key] = self._seen.get(key, 0) + 1
            if self._seen[key] < self.after:
                return None
            self._graphs[key] = self._made(_Act(self.policy, (step, state), explore), leaves)
        graph = self._graphs[key]
        if key in self._doubted and graph is not None:
            self._doubted.remove(key)
            if not graph.agrees(leaves):
                self._graphs[key] = None
        return self._graphs[key]

    def _made(self, act: "_Act", leaves: list[Tensor]) -> "_Graph | None":
        engines: list[Engine] = [self.engine, "torch"]
        for engine in dict.fromkeys(engines):
            try:
                return _Graph(act, leaves, engine)
            except RuntimeError as problem:
                level, why = logging.DEBUG if engine == "torch" else logging.WARNING, str(problem).split("\n", 1)[0]
                log.log(level, "%s acts without a graph of the engine %s: %s", type(self.policy).__name__, engine, why)
        return None


class _Graph:
    """A trace of `act` that was seen to agree with it. Raises RuntimeError where there is none."""

    def __init__(self, act: "_Act", leaves: list[Tensor], engine: Engine) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing warns of every number that is read from a tensor
            self._replay = (
                _traced(act, leaves) if engine == "torch" else OnnxGraph(act, leaves, rounded=engine == "onnx-int8")
            )
        self._act, self._tolerance = act, TOLERANCES[engine]
        for _ in range(TRIALS):  # a graph is optimised in its first runs
            if not self.agrees(leaves):
                raise RuntimeError("the trace answers otherwise")
        self._shape = act.shape
        self.kept: list[Tensor] = []

    def agrees(self, leaves: list[Tensor]) -> bool:
        """Whether it answers what the policy does."""
        pairs = zip(self._act(*_copies(leaves)), self._replay(*_copies(leaves)), strict=True)
        return all(_near(a, b, self._tolerance) for a, b in pairs)

    def run(self, leaves: list[Tensor]) -> Any:
        """Action, state and record; the state's tensors are in `kept`."""
        answers = iter(self._replay(*leaves))
        action = _filled(self._shape[0], answers)
        self.kept = []
        state = _filled(self._shape[1], answers, self.kept)
        return action, state, _filled(self._shape[2], answers)


class _Act(nn.Module):
    """`policy.act` from tensors to tensors; its modules are registered, so that weights are no constants of the graph."""

    def __init__(self, policy: Policy, example: Any, explore: bool) -> None:
        super().__init__()
        self.policy, self.example, self.explore = policy, example, explore
        self.shape: Any = None
        self.held = nn.ModuleList(part for part in vars(policy).values() if isinstance(part, nn.Module))
        self.train(False)

    def forward(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        given = iter(leaves)
        step, state = Step(*(_filled(part, given) for part in self.example[0])), _filled(self.example[1], given)
        decision = self.policy.act(step, state, explore=self.explore)
        answers = (decision.action, decision.state, decision.record)
        self.shape = tuple(_filled(part, repeat(None)) for part in answers)
        return tuple(_leaves(answers))


def _traced(act: _Act, leaves: list[Tensor]) -> Any:
    """PyTorch's trace, without the slices that keep everything: indexing with `None` leaves them, a fifth of all operations."""
    traced = torch.jit.trace(act, tuple(_copies(leaves)), check_trace=False)
    torch._C._jit_pass_inline(traced.graph)
    for node in traced.graph.findAllNodes("aten::slice"):
        whole, _, *bounds = node.inputs()
        if any(bound.node().kind() != "prim::Constant" for bound in bounds):
            continue  # computed, so that its value is not known here
        begin, end, step = (bound.toIValue() for bound in bounds)
        if begin in (None, 0) and end in (None, _END) and step == 1:
            node.output().replaceAllUsesWith(whole)
            node.destroy()
    return traced


def _near(a: Tensor, b: Tensor, tolerance: float) -> bool:
    if not tolerance or a.shape != b.shape:
        return torch.equal(a, b)
    if not a.is_floating_point():
        return bool((a != b).float().mean() <= tolerance)
    return torch.allclose(a, b, rtol=0.0, atol=tolerance * max(1.0, float(a.abs().max())))


def _copies(leaves: list[Tensor]) -> list[Tensor]:
    return [leaf.clone() for leaf in leaves]


def _leaves(tree: Any) -> list[Tensor]:
    """The tensors of nested mappings and tuples, in order; PyTorch's own pytree takes longer than a layer."""
    if isinstance(tree, Tensor):
        return [tree]
    return [leaf for part in (tree.values() if isinstance(tree, Mapping) else tree) for leaf in _leaves(part)]


def _filled(shape: Any, leaves: Iterator[Any], kept: list[Tensor] | None = None) -> Any:
    """The next leaves in the shape of a tree, and noted in `kept`."""
    if shape is not None and not isinstance(shape, Tensor):  # asking whether it is a Mapping takes longer
        return {name: _filled(part, leaves, kept) for name, part in shape.items()}
    leaf = next(leaves)
    if kept is not None:
        kept.append(leaf)
    return leaf
