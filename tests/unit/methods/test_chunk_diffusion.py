"""Chunks by denoising: every law of methods, plans carried out and made anew row by row, padding at the end, errors."""

import pytest
import torch

from foretoken.core import random
from foretoken.core.errors import ConfigError
from foretoken.data.windows import WindowSampler
from foretoken.diffusion.ddim import DDIMConfig
from foretoken.diffusion.ddpm import DDPMConfig
from foretoken.diffusion.flow import FlowConfig
from foretoken.methods import history
from foretoken.methods.chunk_diffusion import ChunkDiffusionConfig
from foretoken.nn.diffusion_transformer import adaln_transformer
from foretoken.nn.embed.tokens import ObservationTokensConfig
from foretoken.testing.methods import LAWS, Trial, play
from foretoken.testing.stores import SPECS

TINY = adaln_transformer(8, 2, 2, time_features=16)
SMALL = ChunkDiffusionConfig(context=2, horizon=5, execute=1, network=TINY, schedule=DDIMConfig(num_levels=10), steps=3)
CASES = {
    "continuous": SMALL.replace(network=adaln_transformer(8, 2, 2, observation=ObservationTokensConfig(fields=(2, 3)))),
    "unbounded": SMALL.replace(schedule=DDPMConfig(num_levels=10), context=1),
    "scalar": SMALL.replace(schedule=FlowConfig()),
    "dict": SMALL.replace(network=adaln_transformer(8, 2, 2, cross=True, time_features=16)),
}


@pytest.mark.parametrize("law", LAWS)
def test_laws(law: str) -> None:
    LAWS[law](Trial(CASES["continuous"], SPECS["continuous"]))


@pytest.mark.parametrize("law", ["acting_is_forward", "padding_is_unseen", "loss_adds_up", "updates_lower_the_loss"])
@pytest.mark.parametrize("spec", ["unbounded", "scalar", "dict"])
def test_laws_of_other_spaces_and_schedules(spec: str, law: str) -> None:
    LAWS[law](Trial(CASES[spec], SPECS[spec]))


@pytest.mark.parametrize("law", ["rows_are_independent", "tracing_changes_nothing", "state_keeps_its_shape"])
def test_laws_of_longer_plans(law: str) -> None:
    LAWS[law](Trial(SMALL.replace(execute=3), SPECS["continuous"]))


@pytest.mark.parametrize("law", ["acting_is_forward", "padding_is_unseen", "updates_lower_the_loss"])
def test_laws_of_regression(law: str) -> None:
    LAWS[law](Trial(SMALL.replace(schedule=None), SPECS["continuous"]))


def test_rows_carry_out_their_plans_and_plan_anew() -> None:
    """Every third step of an episode is planned as the forward pass plans it; what lies between is the rest of that plan."""
    trial = Trial(SMALL.replace(execute=3), SPECS["continuous"])
    method = trial.acting_method()
    plans, checked = {}, 0
    make, calls = method.plan, []
    method.plan = lambda states, seeds: calls.append(len(seeds)) or make(states, seeds)
    start = trial.store.episodes["start"]
    for number, (told, action, _) in enumerate(play(method, trial.store, trial.plan, trial.asked)):
        for row in range(3):
            episode, step = int(trial.plan.episode[number, row]), int(trial.plan.step[number, row])
            if episode < 0 or told.final[row]:
                continue
            if step % 3 == 0:
                window = method.window.replace(anchor="end", back=0)
                batch = WindowSampler(trial.store, window).windows([start[episode] + step])
                index = torch.tensor([[window.length - 1]])
                states = history.up_to(batch.observation, batch.valid, index, method.config.context)
                plans[row] = make(states, told.seed[[row]])[0]
            torch.testing.assert_close(action[row], plans[row][step % 3], rtol=1e-4, atol=1e-5)
            checked += 1
    lengths = trial.store.episodes["length"]
    assert checked == int(lengths.sum())
    assert sum(calls) == int((-(-lengths // 3)).sum()), "a plan was made that was not due"


def test_observations_are_read_once_per_plan() -> None:
    trial = Trial(SMALL, SPECS["continuous"])
    method, calls = trial.acting_method(), {"encode": 0, "forward": 0}
    for name in calls:
        inner = getattr(method.network, name)
        counted = lambda *given, name=name, inner=inner: (calls.update({name: calls[name] + 1}), inner(*given))[1]  # noqa: E731
        setattr(method.network, name, counted)
    method.plan(torch.zeros(4, 2, 5), torch.arange(4))
    assert calls == {"encode": 1, "forward": 3}


def test_padding_at_the_end_is_masked_and_rows_are_summed() -> None:
    trial = Trial(SMALL, SPECS["continuous"])
    method, start = trial.build().eval(), trial.store.episodes["start"]
    lengths = trial.store.episodes["length"]
    long = int(lengths.argmax())
    batch = WindowSampler(trial.store, method.window).windows([start[long], start[long] + lengths[long] - 2])
    at_B = batch.scored.int().argmax(1)
    clean, scored = method.chunk(batch, at_B)
    assert scored.sum(1).tolist() == [5, 2]
    assert torch.equal(clean[1, 2:], clean[1, 1:2].expand(3, -1))
    assert clean.abs().max() <= 1 + 1e-6
    loss = method.loss(batch)  # an untrained network answers 0, so each step's error is the square of its noise
    seeds_B = random.split(method._seeds(batch, at_B), 1)
    noise = random.normal(seeds_B, *clean.shape[1:]).square().mean(-1)
    assert float(loss.weight) == 2
    assert loss.total.item() == pytest.approx(float((noise[0].sum() + noise[1, :2].sum()) / 2), rel=1e-5)


def test_actions_are_scaled_by_the_data() -> None:
    trial = Trial(SMALL, SPECS["continuous"])
    method, found = trial.build(), trial.store.statistics("action")[""]
    torch.testing.assert_close(method.scale(torch.from_numpy(found.high).float()), torch.ones(3))
    assert {"scale.middle", "scale.radius"} <= set(method.state_dict())


def test_bad_settings_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"execute in \[1, horizon\], got context=2, steps=3, execute=6 and horizon=5"
    ):
        SMALL.replace(execute=6)
    with pytest.raises(ConfigError, match="denoised for a Box, got Discrete"):
        SMALL.build(SPECS["discrete"])
    with pytest.raises(ConfigError, match="between 1 and 10 steps, got 11"):
        SMALL.replace(steps=11).build(SPECS["continuous"])
