"""Decisions per second of a Decision Transformer that reads every step once and carries the network's state: keys and values of
the last 20, 50 or 200 steps (`systems/offline/streaming_decision_transformer.py`), or a recurrent state.

Peers re-read as many steps at every decision, which is another policy than a rolled cache (see that file); what is compared is
the cost of deciding with as long a context. As under Acting, every loop is the library's own, environments included: foretoken's
is `foretoken.evaluation.rollout`, by ONNX Runtime and by PyTorch, TorchRL's its `rollout`, d3rlpy's
`StatefulTransformerWrapper.predict`, Hugging Face's the loop of its documentation. `policy.act` alone, on ready steps, stands
below for comparison.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from benchmarks import floors
from benchmarks.acting import ASKED, NAMES, ONNX, mine, peers, rolled
from benchmarks.made import ACTION, OBSERVATION, SPEC, Data
from benchmarks.report import Job, Sheet, Table, judged, skipped, time_of
from benchmarks.rounds import Contestant, Maker, Settings, calls, compete, now
from foretoken.core.batch import Step
from foretoken.core.method import Method
from foretoken.envs.traced import Engine, Traced
from foretoken.nn.mixer import MixerConfig
from foretoken.nn.mixers import shelf
from foretoken.nn.stack import uniform_stack
from foretoken.systems.offline.streaming_decision_transformer import banded, paper

WIDTH, LAYERS = 128, 3
GOALS = {(1, 20): 4.0, (1, 50): 7.0, (1, 200): 16.0, (64, 20): 14.0}  # (environments, steps): times the best peer
SHORT, LONG, SPAN = 20, 200, 20  # decisions are timed from step SHORT and from step LONG on, SPAN of each
GROWTH, STEP = 1.2, 250e-6
LSTM, LSTM_3 = "torch.nn.LSTM, one token", "torch.nn.LSTM, three tokens"


def run(data: Data, settings: Settings, *, full: bool) -> Job:
    """Kept keys and values beside the peers, then one row for every recurrent mixer."""
    settings = replace(settings, seconds=settings.seconds / 2)
    tables = [_against_peers(number, context, settings) for number, context in GOALS]
    return Job("Streaming", __doc__ or "", [*tables, _recurrent(settings)], skipped(peers(1, SHORT, bare=False)))


def _against_peers(number: int, context: int, settings: Settings) -> Table:
    makers = [
        *mine(ours, number, context, engines=("onnx", "torch") if number == 1 else ("onnx-int8", "torch", "onnx")),
        *peers(number, context, bare=False),
    ]
    scores = compete(makers, settings)
    floor = floors.streaming(number, context)
    note = (
        f"Floor: {floor.flops / number / 1e6:.1f} MFLOP of matrix products per decision, one step read and the last layer for one "
        f"token, at the {floor.rate / 1e9:.0f} GFLOP/s measured at their sizes."
    )
    return Table(
        f"Keys and values of {context} steps, {number} environment{'s' if number > 1 else ''}",
        scores,
        floor=floor.seconds / number,
        unit="decisions",
        target=GOALS[number, context],
        note=note,
        complete=not skipped(makers),
    )


def ours(number: int, context: int, engine: Engine = "torch") -> Iterator[Contestant]:
    method = _method(banded(context, 1))
    yield rolled(method, number, context, engine)
    name = f"{NAMES[engine]}, policy.act on ready steps"
    yield _ready(name, method, number, context, span=1000 - context, engine=engine)


def _method(mixer: MixerConfig) -> Method:
    torch.manual_seed(0)
    return paper().system.replace(backbone=uniform_stack(mixer, WIDTH, LAYERS, dropout=0.1)).build(SPEC).eval()


def _ready(name: str, method: Method, number: int, begin: int, *, span: int, engine: Engine = "torch") -> Contestant:
    """`policy.act` on made steps, traced as in `rollout`; a turn plays steps `begin` to `begin + span` of an episode again and again."""
    policy = Traced(method.policy, after=2, engine=engine)

    def step(at: int) -> Step:
        return Step(
            observation=torch.randn(number, OBSERVATION),
            previous_action=torch.rand(number, ACTION) * 2 - 1,
            previous_reward=torch.ones(number),
            previous_cost=torch.zeros(number),
            first=torch.full((number,), at == 0),
            final=torch.zeros(number, dtype=torch.bool),
            valid=torch.ones(number, dtype=torch.bool),
            timestep=torch.full((number,), at),
            seed=torch.arange(number),
        )

    with torch.no_grad():
        before = policy.begin(number, {"target_return": torch.full((number,), ASKED)})
        for at in range(begin):
            before = policy.act(step(at), before).state
    steps = [step(at) for at in range(begin, begin + span)]

    @torch.no_grad()
    def turn(count: int) -> float:
        seconds = 0.0
        while count > 0:
            state = tree_map(torch.clone, before)
            began = now()
            for ready in steps[:count]:
                state = policy.act(ready, state).state
            seconds += now() - began
            count -= len(steps)
        return seconds

    return Contestant(name, turn, number, ours=True, note="no environments")


def _recurrent(settings: Settings) -> Sheet:
    """Every mixer in one process, PyTorch's bare LSTM in another."""
    settings = replace(settings, seconds=settings.seconds / 2)
    makers = [Maker(recurrent), Maker(by_onnx, (), ONNX), Maker(lstm)]
    scores = {score.contestant.name: score for score in compete(makers, settings)}
    bare, rows, kept, quick = scores[LSTM], [], {}, {}
    for name in _recurrent_mixers() | {"attention": None}:
        early, late = scores[f"{name} {SHORT}"], scores[f"{name} {LONG}"]
        growth, disturbed = early.over(late)[0], early.disturbed + late.disturbed
        fast = scores.get(f"{name} onnx")
        cells = [
            time_of(early.median),
            time_of(late.median),
            f"{growth:.2f}",
            f"{bare.over(late)[0]:.1f}",
            time_of(fast.median) if fast else "",
            f"{disturbed}",
        ]
        if fast and name != "attention":
            quick[name] = fast.median <= STEP
        if name == "attention":
            name = f"attention, a band of {SHORT} or {LONG} steps"
        else:
            kept[name] = growth <= GROWTH
        rows.append([name, *cells])
    for name in (LSTM, LSTM_3):
        score = scores[name]
        rows.append([name, time_of(score.median), "", "", f"{bare.over(score)[0]:.1f}", "", f"{score.disturbed}"])
    head = [
        "mixer",
        f"after {SHORT} steps",
        f"after {LONG} steps",
        f"{LONG} over {SHORT}",
        "times one step of the LSTM",
        f"after {LONG} steps, engine onnx",
    ]
    note = (
        f"Time of `policy.act` on ready steps of one environment, without one: a decision reads three tokens through "
        f"{LAYERS} layers of width {WIDTH} with their feed-forwards, embeds them and draws the action. The LSTM is the bare module "
        f"of {LAYERS} layers of width {WIDTH} on ready features, its state carried."
    )
    return Sheet(
        "Recurrent states, 1 environment",
        [*head, f"disturbed rounds of {2 * settings.rounds}"],
        rows,
        [
            judged(f"a decision after {LONG} steps at most {GROWTH:g} times one after {SHORT}", kept),
            judged(f"at most {time_of(STEP)} by the faster engine", quick),
            note,
        ],
    )


def _recurrent_mixers() -> dict[str, MixerConfig]:
    """All that keep a state instead of tokens."""
    built = {name: config() for name, config in shelf().items()}
    facts = {name: config.build(WIDTH).facts for name, config in built.items()}
    return {name: built[name] for name, fact in facts.items() if fact.max_context is None and fact.parallel != "full"}


def recurrent() -> Iterator[Contestant]:
    for name, mixer in _recurrent_mixers().items():
        method = _method(mixer)
        for begin in (SHORT, LONG):
            yield _ready(f"{name} {begin}", method, 1, begin, span=SPAN)
    for begin in (SHORT, LONG):
        yield _ready(f"attention {begin}", _method(banded(begin, 1)), 1, begin, span=SPAN)


def by_onnx() -> Iterator[Contestant]:
    for name, mixer in (_recurrent_mixers() | {"attention": banded(LONG, 1)}).items():
        yield _ready(f"{name} onnx", _method(mixer), 1, LONG, span=SPAN, engine="onnx")


def lstm() -> Iterator[Contestant]:
    """The bare module, of one token and of three, as many as a decision reads."""
    network = nn.LSTM(WIDTH, WIDTH, LAYERS, batch_first=True).eval()
    for name, tokens in ((LSTM, 1), (LSTM_3, 3)):
        x, carried = torch.randn(1, tokens, WIDTH), [(torch.zeros(LAYERS, 1, WIDTH),) * 2]

        @torch.no_grad()
        def decide(x: Tensor = x, carried: list = carried) -> None:
            carried[0] = network(x, carried[0])[1]

        yield Contestant(name, calls(decide))
