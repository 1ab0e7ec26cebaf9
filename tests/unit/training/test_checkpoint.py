"""Checkpoints: whole or not at all, read without running code, refused with a reason."""

import errno
import json
import pickle
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from foretoken.core.errors import CheckpointError
from foretoken.training import checkpoint

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(True)}


def save(run, update, **more):
    return checkpoint.save(run, update, {"model": WEIGHTS}, {"seed": 0}, **more)


def test_round_trip_of_tensors_and_source_state(tmp_path):
    source = {
        "count": 3,
        "none": None,
        "parts": [{"": np.arange(4, dtype=np.int16)}, torch.ones(0, 2)],
        "flag": np.bool_(True),
    }
    folder = save(tmp_path, 5, source=source)
    found = checkpoint.latest(tmp_path)
    assert found.folder == folder and found.update == 5 and found.state["seed"] == 0
    assert torch.equal(found.tensors("model")["a"], WEIGHTS["a"])
    back = found.source()
    assert back["count"] == 3 and back["none"] is None and back["flag"] is True
    assert back["parts"][0][""].dtype == np.int16 and back["parts"][0][""].tolist() == [0, 1, 2, 3]
    assert back["parts"][1].shape == (0, 2)


def test_scalar_arrays_keep_their_shape(tmp_path):
    save(tmp_path, 1, source={"x": np.array(2.5)})
    assert checkpoint.latest(tmp_path).source()["x"].shape == ()


def test_what_cannot_be_saved_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="object at '/x/0'"):
        save(tmp_path, 1, source={"x": [object()]})


def test_tied_weights_are_saved_and_loaded(tmp_path):
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    net["b"].weight = net["a"].weight
    checkpoint.save_weights(net, tmp_path / "w.safetensors")
    before = net["a"].weight.detach().clone()
    nn.init.zeros_(net["a"].weight)
    checkpoint.load_weights(net, tmp_path / "w.safetensors")
    assert torch.equal(net["b"].weight, before)


class TestIncomplete:
    def test_latest_passes_over_what_is_broken(self, tmp_path):
        good = save(tmp_path, 1)
        cut, lacking, no_state = (save(tmp_path, n) for n in (2, 3, 4))
        with (cut / "model.safetensors").open("r+b") as file:
            file.truncate(10)
        (lacking / "model.safetensors").unlink()
        (no_state / "state.json").unlink()
        (tmp_path / "checkpoints" / ".update-00000009.partial").mkdir()
        assert checkpoint.latest(tmp_path).folder == good
        told = (
            (cut, "half-written: model.safetensors has 10 bytes"),
            (lacking, "lacks model"),
            (no_state, "lacks state.json"),
        )
        for folder, words in told:
            with pytest.raises(CheckpointError, match=words):
                checkpoint.verify(folder)

    def test_one_changed_byte_is_found(self, tmp_path):
        folder = save(tmp_path, 1)
        with (folder / "model.safetensors").open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"\x7f")
        with pytest.raises(CheckpointError, match=r"damaged: model.safetensors"):
            checkpoint.verify(folder)

    def test_torn_state_and_other_versions_are_told_apart(self, tmp_path):
        folder = save(tmp_path, 1)
        state = json.loads((folder / "state.json").read_text())
        for text, words in (
            ('{"format": ', "no whole JSON"),
            (json.dumps(state | {"version": 99}), "has version 99, this foretoken reads version 1"),
            (json.dumps(state | {"format": "x"}), "no checkpoint of foretoken"),
        ):
            (folder / "state.json").write_text(text)
            with pytest.raises(CheckpointError, match=words):
                checkpoint.verify(folder)

    def test_a_run_with_only_broken_checkpoints_is_an_error_and_one_without_is_none(self, tmp_path, caplog):
        assert checkpoint.latest(tmp_path) is None
        (save(tmp_path, 1) / "model.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"lacks model.*no older one is whole: .*trains from the start"):
            checkpoint.latest(tmp_path)
        assert not caplog.records, "what the error says is not said twice"


class Boom:
    def __reduce__(self):
        return (sys.exit, ("the pickle ran",))


class TestPickles:
    @pytest.mark.parametrize("name", ["model.pt", "model.pkl", "model.safetensors"])
    def test_pickles_are_refused_unopened(self, tmp_path, name):
        (tmp_path / name).write_bytes(pickle.dumps(Boom()))
        with pytest.raises(CheckpointError, match="is a pickle, which can run any code"):
            checkpoint.read_tensors(tmp_path / name)

    def test_torch_zip_under_a_false_name_is_refused(self, tmp_path):
        torch.save({"a": torch.ones(1)}, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match="is a pickle"):
            checkpoint.read_tensors(tmp_path / "model.safetensors")

    def test_a_pickle_in_place_of_the_weights_is_mentioned(self, tmp_path):
        folder = save(tmp_path, 1)
        (folder / "model.safetensors").rename(folder / "model.pt")
        with pytest.raises(CheckpointError, match=r"model.pt beside it is a pickle"):
            checkpoint.verify(folder)

    def test_noise_is_no_safetensors_file(self, tmp_path):
        (tmp_path / "x.safetensors").write_bytes(b"abc" * 10)
        with pytest.raises(CheckpointError, match="no whole safetensors file"):
            checkpoint.read_tensors(tmp_path / "x.safetensors")


class TestFullDisk:
    @pytest.mark.parametrize("fatal", [1, 2])
    def test_leaves_the_old_checkpoint_and_no_rest(self, tmp_path, monkeypatch, fatal):
        old = save(tmp_path, 1)
        calls, write = [], checkpoint.write_file

        def full(file, data):
            calls.append(file)
            if len(calls) == fatal:
                write(file, data[:5])
                raise OSError(errno.ENOSPC, "No space left on device")
            write(file, data)

        monkeypatch.setattr(checkpoint, "write_file", full)
        words = "update-00000002.*No space left on device.*Make room.*earlier checkpoints are untouched"
        with pytest.raises(CheckpointError, match=words):
            save(tmp_path, 2)
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["update-00000001"]
        assert checkpoint.latest(tmp_path).folder == old

    def test_by_a_true_limit_of_the_system(self, tmp_path):
        old = save(tmp_path, 1)
        script = (
            "import resource, signal, sys, torch\n"
            "from foretoken.training import checkpoint\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
            "try:\n    checkpoint.save(sys.argv[1], 2, {'model': {'w': torch.ones(100_000)}}, {})\n"
            "except checkpoint.CheckpointError as problem:\n    print(problem)\n"
        )
        assert hasattr(resource, "RLIMIT_FSIZE")
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120
        )
        assert "could not save checkpoint update-00000002" in done.stdout and "it takes about 0.4 MB" in done.stdout, (
            done.stderr
        )
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["update-00000001"]
        assert checkpoint.latest(tmp_path).folder == old


def test_prune_keeps_the_newest_and_the_best(tmp_path):
    for update in (1, 2, 3, 4):
        save(tmp_path, update)
    checkpoint.mark_best(tmp_path, {"folder": "update-00000002", "metric": "eval/return", "value": 1.0, "update": 2})
    checkpoint.prune(tmp_path, 1, {"update-00000002"})
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["update-00000002", "update-00000004"]
    assert checkpoint.best(tmp_path).update == 2
    assert not list((tmp_path / "checkpoints").glob(".*"))


class TestWeights:
    def test_moves_a_part_to_another_place(self, tmp_path):
        old, new = (
            nn.ModuleDict({"trunk": nn.Linear(2, 2)}),
            nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 1)}),
        )
        checkpoint.save_weights(old, tmp_path / "w.safetensors")
        checkpoint.load_weights(new, tmp_path / "w.safetensors", from_prefix="trunk", to_prefix="body")
        assert torch.equal(old["trunk"].weight, new["body"].weight)

    def test_prefers_averaged_weights_of_a_run(self, tmp_path):
        net = nn.Linear(1, 1)
        last, averaged = ({"weight": torch.full((1, 1), x), "bias": torch.full((1,), x)} for x in (0.0, 1.0))
        tensors = {"model": last, "ema": averaged}
        folder = checkpoint.save(tmp_path, 1, tensors, {})
        for path in (tmp_path, folder, folder / "ema.safetensors"):
            checkpoint.load_weights(net, path)
            assert net.weight.item() == 1.0

    def test_differences_are_named(self, tmp_path):
        checkpoint.save_weights(nn.ModuleDict({"trunk": nn.Linear(2, 3)}), tmp_path / "w.safetensors")
        with pytest.raises(
            CheckpointError,
            match=r"lacks trunc.bias.*has trunk.bias, which the method lacks \(did you mean 'trunc.bias'",
        ):
            checkpoint.load_weights(nn.ModuleDict({"trunc": nn.Linear(2, 3)}), tmp_path / "w.safetensors")
        with pytest.raises(CheckpointError, match=r"trunk.weight has shape \(3, 2\), the method needs \(3, 5\)"):
            checkpoint.load_weights(nn.ModuleDict({"trunk": nn.Linear(5, 3)}), tmp_path / "w.safetensors")
        with pytest.raises(CheckpointError, match=r"no tensors below 'trnk'.*did you mean 'trunk'"):
            checkpoint.load_weights(nn.Linear(2, 3), tmp_path / "w.safetensors", from_prefix="trnk")
        with pytest.raises(CheckpointError, match=r"no module 'trnk'.*did you mean 'trunk'"):
            checkpoint.load_weights(
                nn.ModuleDict({"trunk": nn.Linear(2, 3)}), tmp_path / "w.safetensors", to_prefix="trnk"
            )

    def test_a_missing_file_or_an_empty_run_is_said(self, tmp_path):
        with pytest.raises(CheckpointError, match="does not exist"):
            checkpoint.load_weights(nn.Linear(1, 1), tmp_path / "nothing.safetensors")
        (tmp_path / "checkpoints").mkdir()
        with pytest.raises(CheckpointError, match="no checkpoint yet"):
            checkpoint.load_weights(nn.Linear(1, 1), tmp_path)
