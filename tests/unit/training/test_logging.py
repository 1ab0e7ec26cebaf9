"""Metrics files, meters and the progress line."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch

from foretoken.core.errors import CheckpointError, MissingExtra
from foretoken.training.logging import Meter, MetricsFile, Progress, TensorBoard, clock, read_metrics


def test_resumed_file_drops_later_lines_and_a_torn_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, 0)
    for update in (10, 20, 30):
        file.write(update, {"train/loss": 0.5})
    file.close()
    with path.open("ab") as out:
        out.write(b'{"update": 35, "train/lo')
    assert [line["update"] for line in read_metrics(path)] == [10, 20, 30]
    again = MetricsFile(path, 20)
    again.write(25, {"train/loss": 0.25})
    again.close()
    assert [line["update"] for line in read_metrics(path)] == [10, 20, 25]


def test_a_full_disk_is_said(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, 0)
    file.write(1, {"a": 1.0})
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    file.close()
    with Path("/dev/full").open("ab", buffering=0) as full:
        file._out = full
        with pytest.raises(CheckpointError, match=r"No space left on device[.] Make room and resume"):
            file.write(2, {"a": 1.0})


def test_not_finite_values_stay_json(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    file.write(1, {"train/loss": float("nan")})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"update": 1, "train/loss": None}


def test_meter_means_over_tensors_and_numbers_and_survives_saving():
    meter = Meter()
    for value in (torch.tensor(1.0, requires_grad=True), 2.0, torch.tensor(6.0, dtype=torch.float64)):
        meter.add("a", value)
    other = Meter()
    other.load(json.loads(json.dumps(meter.state())))
    assert meter.read() == other.read() == {"a": 3.0}
    assert meter.read() == {}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_few_plain_lines():
    out = io.StringIO()
    progress = Progress(1000, 0, out)
    for done in range(1000):
        progress.update(done)
    progress.tell({"train/loss": 0.125, "train/other": 3.0})
    progress.close(1000)
    assert out.getvalue().count("\n") == 1 and "\r" not in out.getvalue()
    assert out.getvalue().startswith("1000/1000 updates") and out.getvalue().endswith("train/loss 0.125\n")


def test_a_terminal_gets_a_bar_with_rate_and_time_left():
    out = Terminal()
    progress = Progress(100, 50, out)
    progress.started -= 10.0
    progress.last -= 10.0
    progress.update(75)
    assert "\r[###############.....] 75/100 updates  2.5/s  0:10 left" in out.getvalue()
    progress.close(75)
    assert out.getvalue().endswith("\n")


def test_what_was_done_before_has_no_speed():
    out = io.StringIO()
    Progress(20, 20, out).close(20)
    assert out.getvalue() == "20/20 updates  done before\n"


def test_clock_shows_hours_only_when_there_are_some():
    assert [clock(5.2), clock(65), clock(3723)] == ["0:05", "1:05", "1:02:03"]


def test_tensorboard_gets_every_metric(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra 'tensorboard'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path, 0)
    board.write(3, {"train/loss": 0.5})
    board.close()
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in events] == [(3, 0.5)]


def test_missing_tensorboard_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtra, match=r"foretoken\[tensorboard\]"):
        TensorBoard(tmp_path, 0)
