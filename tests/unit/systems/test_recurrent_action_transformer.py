"""Recurrent Action Transformer: memory tokens that begin apart, the claim's figures and its verdict."""

from types import SimpleNamespace

import pytest
import torch

from foretoken.envs.diagnostic import make_world
from foretoken.systems.offline import recurrent_action_transformer as rate


def test_memory_tokens_begin_apart() -> None:
    """The released code repeats one random vector."""
    torch.manual_seed(0)
    memory = rate.memory(5, 15, rate.layers(64, 1, 4)).build().memory.detach()
    assert memory.shape == (15, 64) and torch.linalg.matrix_rank(memory) == 15
    assert torch.corrcoef(memory).fill_diagonal_(0).abs().max() < 0.6


def test_figures_are_the_wins_in_corridors_of_each_length(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, method = [], object()

    def evaluate(given, spec, evaluation, *, seed):
        assert given is method and spec == "spec"
        asked.append((evaluation.environment, evaluation.episodes, evaluation.targets, seed))
        length = int(evaluation.environment.split("-")[1])
        return SimpleNamespace(metrics=lambda: {"return": length / 1000, "length": 9.0})

    monkeypatch.setattr(rate, "load", lambda path: method)
    monkeypatch.setattr(rate, "evaluate", evaluate)
    run = SimpleNamespace(path="", spec="spec", experiment=rate.cpu().replace(seed=4))
    assert rate.figures(run) == {f"success at {length}": length / 1000 for length in (50, 150, 300, 600)}
    assert asked == [(f"foretoken/TMaze-{length}-v0", 100, (1.0,), 4) for length in (50, 150, 300, 600)]


@pytest.mark.parametrize(
    ("arm", "length", "success", "fails"),
    [
        ("rate", 50, 0.0, None),
        ("rate", 150, 0.94, "RATE: >= 95 %"),
        ("rate", 300, 0.0, None),
        ("rate", 600, 0.79, "RATE: >= 80 %"),
        ("no-memory", 50, 1.0, None),
        ("dt", 50, 1.0, None),
        ("dt-150", 50, 0.0, None),
        ("dt-150", 150, 0.94, "dt-150: >= 95 % within its window"),
        *[
            (arm, length, success, f"{arm}: 50 % within 10 points at {length}")
            for arm in ("no-memory", "dt", "dt-150")
            for length, success in ((150, 0.61), (300, 0.39), (600, 0.61))
            if (arm, length) != ("dt-150", 150)
        ],
    ],
)
def test_verdict(arm, length, success, fails) -> None:
    results = {name: [dict.fromkeys(map("success at {}".format, rate.LENGTHS), 0.5)] * 3 for name in rate.claim().arms}
    results["rate"] = [{f"success at {each}": 0.95 + noise for each in rate.LENGTHS} for noise in (-0.02, 0.01, 0.02)]
    results["dt-150"] = [row | {"success at 150": 0.96} for row in results["dt-150"]]
    assert all(rate.verdict(results).values())
    results[arm] = [row | {f"success at {length}": success} for row in results[arm]]
    broken = [name for name, held in rate.verdict(results).items() if not held]
    assert len(broken) == (fails is not None) and all(name.startswith(fails) for name in broken)


def test_arms_differ_in_what_remembers_alone() -> None:
    arms = rate.claim().arms
    base, ablated = arms["rate"], ("no-memory", "no-valve", "cut-gradients")
    for arm in (*ablated, "dt-150"):
        changed = arms[arm].system.replace(backbone=base.system.backbone, reading=base.system.reading)
        assert arms[arm].replace(system=changed) == base
    stack = base.system.backbone.backbone
    assert {arms[arm].system.backbone.backbone for arm in ablated} == {stack}
    assert arms["cut-gradients"].system.backbone.depth == 0 and base.system.backbone.depth == -1
    (block,) = arms["dt-150"].system.backbone.pattern
    wide = block.replace(mixer=block.mixer.replace(window=stack.pattern[0].mixer.window))
    assert arms["dt-150"].system.backbone.replace(pattern=(wide,)) == stack
    steps = {arm: arms[arm].training.batch_size * arms[arm].system.context for arm in arms}
    assert len(set(steps.values())) == 1, "as many steps a batch"


def test_the_long_window_shows_the_longest_corridor_of_the_data_whole() -> None:
    arm = rate.claim().arms["dt-150"]
    (block,) = arm.system.backbone.pattern
    horizon = make_world(arm.source.recipe.world, 1).spec.max_episode_steps
    assert arm.system.context == horizon == 150 and block.mixer.window == 3 * horizon
