"""Recurrent Action Transformer: memory tokens that begin apart, the claim's figures and its verdict."""

from types import SimpleNamespace

import pytest
import torch

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
        *[
            (arm, length, success, f"{arm}: 50 % within 10 points at {length}")
            for arm in ("no-memory", "dt")
            for length, success in ((150, 0.61), (300, 0.39), (600, 0.61))
        ],
    ],
)
def test_verdict(arm, length, success, fails) -> None:
    results = {name: [dict.fromkeys(map("success at {}".format, rate.LENGTHS), 0.5)] * 3 for name in rate.claim().arms}
    results["rate"] = [{f"success at {each}": 0.95 + noise for each in rate.LENGTHS} for noise in (-0.02, 0.01, 0.02)]
    assert all(rate.verdict(results).values())
    results[arm] = [row | {f"success at {length}": success} for row in results[arm]]
    broken = [name for name, held in rate.verdict(results).items() if not held]
    assert len(broken) == (fails is not None) and all(name.startswith(fails) for name in broken)
