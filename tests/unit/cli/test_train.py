"""train: settings, folders, resuming, and everything it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from foretoken.cli import train
from foretoken.experiment import Run
from foretoken.training import loop


def test_a_run_holds_what_was_asked_for(run, store) -> None:
    kept = Run.open(run)
    assert kept.experiment.training.updates == 4 and kept.experiment.source.store == str(store)
    assert kept.experiment.evaluation.targets == (-300.0, -100.0)
    assert kept.about["status"] == "finished" and kept.about["command"].startswith(
        "foretoken train decision_transformer smoke"
    )
    assert [found.update for found in kept.evaluations()] == [2, 4]


def test_the_default_folder_tells_system_and_preset(store, foretoken) -> None:
    answer = foretoken(
        "train",
        "dt",
        "smoke",
        "--source.store",
        store,
        "--training.updates",
        1,
        "--training.evaluate-every",
        0,
        "--quiet",
    )
    assert answer.code == 0 and "%" not in answer.err
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("dt-smoke-2") and f"run: {folder}" in answer.out


def test_any_mixer_can_take_the_place_of_a_preset_s(foretoken) -> None:
    answer = foretoken("train", "decision_transformer", "smoke", "--dry-run", "--mixer", "delta-net")
    pattern = json.loads(answer.out)["system"]["backbone"]["pattern"]
    assert all(block["mixer"]["class"].endswith("DeltaNetConfig") for block in pattern)
    refused = foretoken("train", "decision_transformer", "smoke", "--mixer", "mamba3")
    assert refused.code and "did you mean 'mamba'" in refused.err


def test_dry_run_prints_the_settings_and_the_cost_and_makes_nothing(foretoken) -> None:
    words = ("--system.condition.scale", 3, "--training.updates", 5, "--evaluation.targets", -1, 4, "--seed", 7)
    answer = foretoken("train", "decision_transformer", "smoke", "--dry-run", *words)
    tree = json.loads(answer.out)
    assert tree["system"]["condition"]["scale"] == 3.0 and tree["training"]["updates"] == 5 and tree["seed"] == 7
    assert tree["evaluation"]["targets"] == [-1.0, 4.0] and not Path("runs").exists()
    assert "5 updates of" in answer.err and "GiB of memory" in answer.err
    broken = foretoken("train", "decision_transformer", "smoke", "--dry-run", "--source.store", "nowhere")
    assert broken.code == 0 and "the run would fail" in broken.err and "nowhere" in broken.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "needs a system and a preset"),
        (("decision_transfomer", "cpu"), "did you mean 'decision_transformer'"),
        (("dt",), "smoke"),
        (("dt", "smok"), "did you mean 'smoke'"),
        (("dt", "smoke", "more"), "more"),
        (("dt", "smoke", "--training.update", 5), "did you mean '--training.updates'"),
        (("dt", "smoke", "--training.updates", "many"), "'many'"),
        (("dt", "smoke", "--training.updates", 0), "updates must be at least 1, got 0"),
        (("dt", "smoke", "--training.optimiser.schedule", "cosin"), "cosine"),
        (("dt", "smoke", "--source.store", "nowhere"), "`foretoken import DATASET --out nowhere`"),
        (("dt", "smoke", "--seed", -1), "seed must be at least 0, got -1"),
        (("dt", "smoke", "--system.context", -1), "context must be at least 1, got -1"),
        (("dt", "smoke", "--evaluation.environment", "Hoper-v5"), "did you mean 'Hopper-v5'"),
        (("dt", "smoke", "--training.accelerator", "abacus"), "error: invalid choice 'abacus' for"),
        (("--resume", "nowhere"), "nowhere is no run"),
    ],
)
def test_what_train_refuses(words, told, foretoken) -> None:
    answer = foretoken("train", *words)
    assert answer.code == 2 and told in answer.err, answer.err
    assert answer.err.startswith("foretoken: error: ") and len(answer.err.splitlines()) <= 2
    assert not Path("runs").exists()


def test_an_environment_of_other_spaces_is_refused_before_training(store, foretoken) -> None:
    answer = foretoken(
        "train", "dt", "smoke", "--source.store", store, "--evaluation.environment", "CartPole-v1", "--out", "other"
    )
    assert answer.code == 2 and "(4,) in CartPole-v1" in answer.err and not Path("other").exists()


def test_a_folder_with_something_in_it_is_refused(run, store, foretoken) -> None:
    answer = foretoken("train", "dt", "smoke", "--source.store", store, "--out", run)
    assert answer.code == 2 and f"{run} is not empty" in answer.err and "--resume" in answer.err


def test_a_resumed_run_keeps_its_settings(run, foretoken) -> None:
    for changed in (("--training.updates", 9), ("--out", "new")):
        answer = foretoken("train", "--resume", run, *changed)
        assert answer.code == 2 and str(changed[0]) in answer.err and "new run" in answer.err


def test_a_finished_run_may_be_resumed_and_stays(run, foretoken) -> None:
    before = (run / "checkpoints" / "update-00000004" / "model.safetensors").read_bytes()
    answer = foretoken("train", "decision_transformer", "smoke", "--resume", run)
    assert answer.code == 0, answer.err
    assert (run / "checkpoints" / "update-00000004" / "model.safetensors").read_bytes() == before


def test_an_interrupted_run_says_how_to_go_on_and_goes_on(store, foretoken, monkeypatch) -> None:
    settings = ("--source.store", store, "--training.updates", 6, "--training.evaluate-every", 0, "--quiet")
    foretoken("train", "dt", "smoke", *settings, "--out", "whole")
    asked = loop._Loop._asked_to_stop
    monkeypatch.setattr(loop._Loop, "_asked_to_stop", lambda self: self.done == 3 or asked(self))
    answer = foretoken("train", "dt", "smoke", *settings, "--out", "cut")
    told = f"stopped, saved in {Path('cut/checkpoints/update-00000003')}; continue with: foretoken train --resume cut"
    assert answer == (130, "", f"foretoken: {told}\n")
    monkeypatch.setattr(loop._Loop, "_asked_to_stop", asked)
    assert foretoken("train", "--resume", "cut", "--quiet").code == 0
    last = "checkpoints/update-00000006/model.safetensors"
    assert (Path("cut") / last).read_bytes() == (Path("whole") / last).read_bytes()


@pytest.mark.parametrize(
    ("every", "told"), [(1, "last saved in cut/checkpoints/update-0000000"), (0, "nothing was saved yet")]
)
def test_stopped_at_once_says_what_is_kept(every, told, store, foretoken, monkeypatch) -> None:
    def stop(self):
        if self.done == 3:
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(loop._Loop, "_asked_to_stop", stop)
    settings = ("--training.evaluate-every", 0, "--training.checkpoint-every", every, "--quiet", "--out", "cut")
    answer = foretoken("train", "dt", "smoke", "--source.store", store, *settings)
    assert answer.code == 130 and f"stopped at once, {told}" in answer.err and "train --resume cut" in answer.err


def test_help_of_a_preset_shows_its_defaults(foretoken) -> None:
    answer = foretoken("train", "dt", "smoke", "--help")
    assert answer.code == 0 and "--training.updates INT" in answer.out and "(default: 20)" in answer.out


def test_data_without_an_environment_are_told_how_to_be_played(run) -> None:
    kept = Run.open(run)
    told = train._told(replace(kept, spec=kept.spec.replace(environment="")))
    assert "nothing was played" in told and "--environment ID" in told
