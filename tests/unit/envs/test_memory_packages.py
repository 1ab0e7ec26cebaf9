"""POPGym and Memory Gym, where they are installed: their tasks are found by id, trained on, and put back where they were."""

from importlib.util import find_spec

import pytest
import torch

from foretoken.core.errors import MissingExtra
from foretoken.core.spec import Box, Dict, Discrete
from foretoken.envs.make import make
from foretoken.envs.slots import Slots
from foretoken.envs.spaces import to_spec
from foretoken.experiment import run
from foretoken.systems.memory import gated_transformer_xl, trxl_ppo

POPGYM = pytest.mark.skipif(find_spec("popgym") is None, reason="needs the extra 'memory'")
MEMORY_GYM = pytest.mark.skipif(
    find_spec("memory_gym") is None, reason="needs `pip install --no-deps memory-gym pygame-ce`"
)
IDS = [
    pytest.param("popgym-RepeatPreviousEasy-v0", marks=POPGYM),
    pytest.param("popgym-AutoencodeEasy-v0", marks=POPGYM),
    pytest.param("MortarMayhem-Grid-v0", marks=MEMORY_GYM),
]


@POPGYM
def test_tuples_become_dicts():
    spec = to_spec(make("popgym-AutoencodeEasy-v0"))
    assert spec.observation == Dict(spaces={"0": Discrete(n=2), "1": Discrete(n=4)})
    seen, _ = make("popgym-AutoencodeEasy-v0").reset(seed=0)
    assert set(seen) == {"0", "1"}


@MEMORY_GYM
def test_mortar_mayhem_is_seen_as_an_image():
    spec = to_spec(make("MortarMayhem-Grid-v0"))
    assert isinstance(spec.observation, Box) and spec.observation.is_image and spec.observation.shape == (84, 84, 3)


@pytest.mark.parametrize("id", IDS)
def test_closing_one_leaves_the_others(id):
    one, other = make(id), make(id)
    one.close()
    seen, _ = other.reset(seed=0)
    assert seen in other.observation_space


@pytest.mark.parametrize("id", IDS)
def test_episodes_are_resumed_in_their_middle(id):
    def slots():
        return Slots(id, range(100), num_slots=2, seed=0)

    one, other = slots(), slots()
    tick = one.start()
    for step in range(20):
        tick = one.advance(torch.full((2,), step % 4))
    restored = other.load(one.save())
    assert not restored.notes and torch.equal(restored.tick.step.timestep, tick.step.timestep)
    for step in range(20):
        ticks = [played.advance(torch.full((2,), step % 4)) for played in (one, other)]
        assert (ticks[0].reward == ticks[1].reward).all()


@pytest.mark.parametrize("system", [gated_transformer_xl, trxl_ppo])
@pytest.mark.parametrize("id", IDS)
def test_a_few_updates(id, system, tmp_path):
    experiment = system.smoke()
    training = experiment.training.replace(updates=4, evaluate_every=4, log_every=4)
    done = run(
        experiment.replace(source=experiment.source.replace(environment=id), training=training),
        tmp_path / "run",
        progress=False,
    )
    assert len(done.evaluations()[-1].records) == 2


@pytest.mark.parametrize(
    ("module", "id", "way_out"),
    [
        ("popgym", "popgym-AutoencodeEasy-v0", r"pip install foretoken\[memory\]"),
        ("memory_gym", "MortarMayhem-v0", "pip install --no-deps memory-gym"),
    ],
)
def test_what_is_missing_is_told(module, id, way_out):
    if find_spec(module) is not None:
        pytest.skip(f"{module} is installed")
    with pytest.raises(MissingExtra, match=way_out):
        make(id)
