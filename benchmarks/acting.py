"""Decisions per second of the paper's Decision Transformer that re-reads its last 20 steps at every decision.

Environments cost next to nothing: each answers with the next row of a table. Every loop is the library's own, environments
included: foretoken's is `foretoken.evaluation.rollout`, by ONNX Runtime with weights of eight bits (what that does to returns
stands under Rounding), by ONNX Runtime in float32, and by PyTorch; d3rlpy's and Hugging Face's play one environment at a time,
whatever their number. Below them stand the bare models, called on a whole batch of ready windows.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from benchmarks import floors
from benchmarks.made import ACTION, OBSERVATION, SPEC, Data
from benchmarks.report import Job, Table, skipped
from benchmarks.rounds import Contestant, Maker, Settings, calls, compete, now
from benchmarks.training import LAYERS, LONGEST, WIDTH, huggingface_model, torchrl_actor
from foretoken.core.method import Method
from foretoken.envs.slots import Job as Episode
from foretoken.envs.traced import AFTER, Engine
from foretoken.evaluation.rollout import rollout
from foretoken.systems.offline import decision_transformer

CONTEXT, ASKED = 20, 3600.0
GOALS = {1: 2.0, 8: 6.0, 64: 8.0}  # environments: times the best peer
ONNX = ("onnx", "onnxscript", "onnxruntime")
NAMES = {"onnx-int8": "foretoken, engine onnx-int8", "onnx": "foretoken, engine onnx", "torch": "foretoken"}
NOTES = {
    "onnx": "actions equal PyTorch's within 1e-6; its graph takes some seconds to make, before the clock",
    "onnx-int8": "products with weights in eight bits",
    "torch": "",
}
_TABLE = np.random.default_rng(0).standard_normal((256, OBSERVATION), dtype=np.float32)


class Table11(gymnasium.Env):
    """Hopper's shape; never ends by itself. `clock`, where given, is told of every step."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBSERVATION,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACTION,), np.float32)

    def __init__(self, clock: Callable[[int], object] | None = None) -> None:
        self.at, self.clock = 0, clock

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.at = 0
        return _TABLE[0], {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.at += 1
        if self.clock is not None:
            self.clock(self.at)
        return _TABLE[self.at % 256], 1.0, False, False, {}


def world(name: str, clock: Callable[[int], object] | None = None) -> Any:
    """ "table", or "hopper": MuJoCo's, whose episodes go on after a fall, so that all policies play 1000 steps."""
    return Table11(clock) if name == "table" else Hopper(clock)


class Hopper(gymnasium.Wrapper):
    """Counts steps as `Table11` does."""

    def __init__(self, clock: Callable[[int], object] | None = None) -> None:
        super().__init__(gymnasium.make("Hopper-v5", terminate_when_unhealthy=False).unwrapped)
        self.observation_space, self.action_space = Table11.observation_space, Table11.action_space
        self.at, self.clock = 0, clock

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.at = 0
        observation, info = super().reset(seed=seed, options=options)
        return observation.astype(np.float32), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.at += 1
        if self.clock is not None:
            self.clock(self.at)
        observation, reward, *_ = super().step(action)
        return observation.astype(np.float32), reward, False, False, {}


def run(data: Data, settings: Settings, *, full: bool) -> Job:
    """1, 8 and 64 environments."""
    return Job("Acting", __doc__ or "", [_table(number, settings) for number in GOALS], skipped(_makers(1)))


def _makers(number: int) -> list[Maker]:
    return [*mine(ours, number), *peers(number, CONTEXT, bare=True)]


def mine(
    make: Callable[..., Iterator[Contestant]], *asked: int, engines: Sequence[Engine] = ("onnx-int8", "onnx", "torch")
) -> list[Maker]:
    """Every engine, first the one to take, which is judged."""
    return [Maker(make, (*asked, engine), () if engine == "torch" else ONNX) for engine in engines]


def peers(number: int, context: int, *, bare: bool, where: str = "table") -> list[Maker]:
    """The other libraries' ways of acting for `number` environments; `bare` adds their models without a loop."""
    asked = (number, context, bare, where)
    return [
        Maker(d3rlpy, asked, ("d3rlpy",)),
        Maker(torchrl, asked, ("torchrl", "transformers")),
        Maker(huggingface, asked, ("transformers",)),
    ]


def _table(number: int, settings: Settings) -> Table:
    makers = _makers(number)
    scores = compete(makers, settings)
    floor = floors.acting(number, CONTEXT)
    note = (
        f"Floor: {floor.flops / number / 1e6:.1f} MFLOP of float32 products per decision, the last layer for one token, at the "
        f"{floor.rate / 1e9:.0f} GFLOP/s measured at their sizes."
    )
    name = f"{number} environment{'s' if number > 1 else ''}"
    whole = not skipped(makers)
    return Table(
        name, scores, floor=floor.seconds / number, unit="decisions", target=GOALS[number], note=note, complete=whole
    )


def ours(number: int, engine: Engine = "torch") -> Iterator[Contestant]:
    """The preset's policy, which re-reads its window."""
    torch.manual_seed(0)
    yield rolled(decision_transformer.paper().system.build(SPEC), number, CONTEXT, engine)


def rolled(method: Method, number: int, context: int, engine: Engine, where: str = "table") -> Contestant:
    """`rollout` with a method's policy. The clock runs from the tick at which contexts are full and the policy's graph is in
    use; it is made once in a rollout, in a few tenths of a second, or some seconds with ONNX."""
    begin = context + AFTER + 10

    def turn(count: int) -> float:
        times: dict[int, float] = {}
        made: list[Any] = []

        def environment() -> Any:
            made.append(world(where, None if made else lambda step: times.setdefault(step, now())))
            return made[-1]

        jobs = [Episode(i, target=ASKED) for i in range(number)]
        spec, steps = SPEC if where == "table" else None, begin + count
        rollout(method.policy, environment, jobs, spec=spec, seed=0, num_slots=number, max_steps=steps, engine=engine)
        return times[begin + count] - times[begin]

    return Contestant(NAMES[engine], turn, number, ours=True, note=NOTES[engine])


def d3rlpy(number: int, context: int, bare: bool, where: str) -> Iterator[Contestant]:
    from d3rlpy.algos import DecisionTransformerConfig
    from d3rlpy.models import VectorEncoderFactory

    encoder = VectorEncoderFactory([WIDTH], exclude_last_activation=True)
    sizes = DecisionTransformerConfig(
        context_size=context, max_timestep=LONGEST, num_layers=LAYERS, num_heads=1, encoder_factory=encoder
    )
    algorithm = sizes.create()
    algorithm.create_impl((OBSERVATION,), ACTION)
    actor, environment = algorithm.as_stateful_wrapper(target_return=ASKED), world(where)
    at: list[Any] = [environment.reset()[0], 0.0]

    def decide() -> None:
        if environment.at == LONGEST:
            actor.reset()
            at[:] = [environment.reset()[0], 0.0]
        at[0], at[1], *_ = environment.step(actor.predict(*at))

    for _ in range(context):
        decide()
    yield Contestant("d3rlpy StatefulTransformerWrapper", calls(decide), note="one environment at a time")
    if not bare:
        return
    network = algorithm.impl.modules.transformer.eval()
    window = _window(number, context)
    arguments = (
        window["observation"],
        window["action"],
        window["return_to_go"],
        window["timestep"],
        torch.zeros(number, context),
    )
    yield _bare("d3rlpy", number, lambda: network(*arguments))


def huggingface(number: int, context: int, bare: bool, where: str) -> Iterator[Contestant]:
    """The loop of its documentation: all steps so far are kept, the last `context` are read."""
    model = huggingface_model(context).eval()
    environment = world(where)
    kept: dict[str, Tensor] = {}

    def begin() -> None:
        observation = torch.from_numpy(environment.reset()[0])
        kept["observation"] = observation.reshape(1, OBSERVATION)
        kept["action"], kept["return_to_go"] = torch.zeros(1, ACTION), torch.full((1, 1), ASKED / 1000)
        kept["timestep"] = torch.zeros(1, 1, dtype=torch.long)

    @torch.no_grad()
    def decide() -> None:
        if environment.at == LONGEST - 1:
            begin()
        steps = {name: value[-context:][None] for name, value in kept.items() if name != "timestep"}
        timestep = kept["timestep"][:, -context:]
        short = context - timestep.shape[1]
        mask = torch.cat((torch.zeros(short), torch.ones(context - short))).long()[None]
        steps = {
            name: torch.cat((torch.zeros(1, short, value.shape[-1]), value), dim=1) for name, value in steps.items()
        }
        timestep = torch.cat((torch.zeros(1, short, dtype=torch.long), timestep), dim=1)
        _, actions, _ = model(
            states=steps["observation"],
            actions=steps["action"],
            returns_to_go=steps["return_to_go"],
            timesteps=timestep,
            attention_mask=mask,
            return_dict=False,
        )
        action = actions[0, -1]
        kept["action"][-1] = action
        observation, reward, *_ = environment.step(action.numpy())
        kept["observation"] = torch.cat((kept["observation"], torch.from_numpy(observation).reshape(1, OBSERVATION)))
        kept["action"] = torch.cat((kept["action"], torch.zeros(1, ACTION)))
        kept["return_to_go"] = torch.cat((kept["return_to_go"], kept["return_to_go"][-1:] - reward / 1000))
        kept["timestep"] = torch.cat((kept["timestep"], kept["timestep"][:, -1:] + 1), dim=1)

    begin()
    for _ in range(context):
        decide()
    yield Contestant("Hugging Face, loop of its documentation", calls(decide), note="one environment at a time")
    if not bare:
        return
    window = _window(number, context)
    mask = torch.ones(number, context, dtype=torch.long)
    yield _bare(
        "Hugging Face",
        number,
        lambda: model(
            states=window["observation"],
            actions=window["action"],
            returns_to_go=window["return_to_go"],
            timesteps=window["timestep"],
            attention_mask=mask,
            return_dict=False,
        ),
    )


def torchrl(number: int, context: int, bare: bool, where: str) -> Iterator[Contestant]:
    """Its transforms keep the window, its `rollout` plays; several environments are a SerialEnv, batched for the model."""
    from torchrl.envs import (
        CatFrames,
        Compose,
        GymWrapper,
        SerialEnv,
        TargetReturn,
        TensorDictPrimer,
        TransformedEnv,
        UnsqueezeTransform,
    )
    from torchrl.modules import DecisionTransformerInferenceWrapper

    names = ["observation", "action", "return_to_go"]
    stacked = [f"{name}_cat" for name in names]
    actor = torchrl_actor("_cat").eval()
    policy = DecisionTransformerInferenceWrapper(actor, inference_context=context)
    policy.set_tensor_keys(**dict(zip(names, stacked, strict=True)), out_action="action")
    base = SerialEnv(number, lambda: GymWrapper(world(where))) if number > 1 else GymWrapper(world(where))
    environment = TransformedEnv(
        base,
        Compose(
            TargetReturn(ASKED / 1000, out_keys=["return_to_go"]),
            TensorDictPrimer(action=base.action_spec, expand_specs=False),
            UnsqueezeTransform(-2, in_keys=names, out_keys=stacked),
            CatFrames(N=context, dim=-2, in_keys=stacked, padding="constant"),
        ),
    )

    @torch.no_grad()
    def turn(count: int) -> float:
        began = now()
        environment.rollout(count, policy, break_when_any_done=False)
        return now() - began

    turn(2)
    note = "SerialEnv" if number > 1 else ""
    yield Contestant("TorchRL rollout, DecisionTransformerInferenceWrapper", turn, number, note=note)
    if not bare:
        return
    window = _window(number, context)
    network = actor.get_submodule("module.0.module") if hasattr(actor, "get_submodule") else actor
    yield _bare("TorchRL", number, lambda: network(window["observation"], window["action"], window["return_to_go"]))


def _window(rows: int, context: int) -> dict[str, Tensor]:
    return {
        "observation": torch.randn(rows, context, OBSERVATION),
        "action": torch.rand(rows, context, ACTION) * 2 - 1,
        "return_to_go": torch.rand(rows, context, 1),
        "timestep": torch.arange(context).repeat(rows, 1),
    }


def _bare(library: str, rows: int, forward: Callable[[], Any]) -> Contestant:
    @torch.no_grad()
    def turn(count: int) -> float:
        return calls(forward)(count)

    return Contestant(
        f"{library}, bare model on ready windows", turn, rows, counts=False, note="no environments, no window kept"
    )
