"""Our DDPM and DDIM step as Hugging Face's schedulers do.

Ours are used because theirs hold one time for a whole batch and draw noise from one generator: rows could not stand at levels
of their own, and what a row draws would depend on its neighbours. Levels count the steps of noise, so their timestep t is our
level t + 1.
"""

import pytest
import torch

from foretoken.diffusion.ddim import DDIMConfig
from foretoken.diffusion.ddpm import DDPMConfig

diffusers = pytest.importorskip("diffusers", reason="needs the package diffusers")

KINDS = {"noise": "epsilon", "sample": "sample", "v": "v_prediction"}
BETAS = {"cosine": "squaredcos_cap_v2", "linear": "linear"}


@pytest.mark.parametrize("steps", [8, 100])
@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("predicts", KINDS)
@pytest.mark.parametrize("kind", ["DDPM", "DDIM"])
def test_step_by_step(kind: str, predicts: str, betas: str, clip: float, steps: int) -> None:
    settings = {"prediction_type": KINDS[predicts], "beta_schedule": BETAS[betas], "clip_sample": bool(clip)}
    theirs = getattr(diffusers, f"{kind}Scheduler")(num_train_timesteps=100, timestep_spacing="leading", **settings)
    make = DDPMConfig if kind == "DDPM" else DDIMConfig
    ours = make(num_levels=100, betas=betas, predicts=predicts, clip=clip).build()
    theirs.set_timesteps(steps)
    path = ours.levels(steps)
    assert path[:-1].tolist() == [float(t) + 1 for t in theirs.timesteps]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 2, generator=generator)
    for time, level, to in zip(theirs.timesteps, path[:-1], path[1:], strict=True):
        prediction = torch.randn(3, 4, 2, generator=generator)
        want = theirs.step(prediction, int(time), x, generator=torch.Generator().manual_seed(int(time))).prev_sample
        noise = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(int(time)))
        got = ours.step(x, prediction, level.expand(3), to.expand(3), noise if to > 0 else None)
        torch.testing.assert_close(got, want, rtol=1e-3, atol=2e-4)
        x = want.clamp(-3, 3)


@pytest.mark.parametrize("predicts", KINDS)
def test_corruption_and_targets(predicts: str) -> None:
    theirs = diffusers.DDPMScheduler(
        num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", prediction_type=KINDS[predicts]
    )
    ours = DDPMConfig(predicts=predicts).build()
    clean, noise, time = torch.randn(5, 4), torch.randn(5, 4), torch.tensor([0, 3, 50, 98, 99])
    level = time.float() + 1
    torch.testing.assert_close(ours.corrupt(clean, noise, level), theirs.add_noise(clean, noise, time), rtol=1e-4, atol=1e-5)  # fmt: skip
    want = {"noise": noise, "sample": clean, "v": theirs.get_velocity(clean, noise, time)}[predicts]
    torch.testing.assert_close(ours.target(clean, noise, level), want, rtol=1e-4, atol=1e-5)
