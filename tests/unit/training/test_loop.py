"""The loop: gradients however the batch is cut, refusals, schedules, averages, and what it leaves in the run's folder."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from foretoken.core import Batch, Loss, Method, Objective, Window, masked_mean
from foretoken.core.errors import CheckpointError, ConfigError, DataError, NonFiniteLoss
from foretoken.training import AdamW, Interrupted, Part, Training, checkpoint, launch, train
from foretoken.training.logging import read_metrics


class Regression(Method):
    """Fits y = net(x) over the scored steps."""

    window = Window(length=4)

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(dropout), nn.Tanh(), nn.Linear(8, 1))
        self.register_buffer("seen", torch.zeros(()))

    @property
    def policy(self):
        return self

    def loss(self, batch):
        error_BT = (self.net(batch.x)[..., 0] - batch.y).square()
        total, weight = masked_mean(error_BT, batch.scored)
        return Loss(total, {"mse": total}, notes={"rows": torch.tensor(float(len(batch.y)))}, weight=weight)

    def after_update(self, objective, notes):
        self.seen += notes["rows"]


class Toy:
    """Rows of one drawn table, cut into `cuts` micro-batches of different sizes."""

    spec, stores = None, {}

    def __init__(self, cuts: tuple[int, ...] = (16,), poison: int = -1) -> None:
        self.cuts, self.poison, self.drawn, self.asked = cuts, poison, [], []

    def connect(self, method): ...

    def advance(self, update):
        self.asked.append(update)
        return {"asked": float(update)}

    def draw(self, view, window, update, micro=0):
        self.drawn.append((view, update, micro))
        generator = torch.Generator().manual_seed(update)
        x = torch.randn(16, 4, 3, generator=generator)
        columns = {"x": x, "y": x.sum(-1), "scored": torch.rand(16, 4, generator=generator) < 0.5}
        if update == self.poison:
            columns["x"][3, 2, 1] = torch.nan
        begin = sum(self.cuts[:micro])
        return Batch({name: value[begin : begin + self.cuts[micro]] for name, value in columns.items()})

    def held_out(self, view, window, number):
        return self.draw(view, window, 10_000 + number) if number < 2 else None

    def state_dict(self):
        return {}

    def load_state_dict(self, state): ...


def run(
    out, method=None, source=None, *, seed=1, evaluate=None, resume=False, progress=False, stage="main", **training
):
    method, source = method or Regression(), source or Toy()
    settings = {
        "updates": 12,
        "accelerator": "cpu",
        "optimiser": AdamW(lr=1e-2),
        "log_every": 4,
        "validate_every": 0,
    } | training
    trained = train(
        method, source, Training(**settings), Path(out), seed=seed, stage=stage, evaluate=evaluate, resume=resume,
        progress=progress,
    )  # fmt: skip
    return method, trained


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


class TestLearning:
    def test_loss_falls_and_matches_a_plain_loop_bit_for_bit(self, tmp_path):
        method, trained = run(tmp_path, clip=0.0)
        plain, source = Regression(), Toy()
        optimiser = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=1e-4, fused=True)
        for update in range(12):
            optimiser.zero_grad()
            plain.loss(source.draw("data", plain.window, update)).total.backward()
            optimiser.step()
        assert all(torch.equal(a, b) for a, b in zip(method.parameters(), plain.parameters(), strict=True))
        lines = read_metrics(tmp_path / "metrics.jsonl")
        assert [line["update"] for line in lines] == [4, 8, 12]
        assert lines[-1]["train/loss"] < lines[0]["train/loss"]
        assert trained.update == 12 and trained.metrics["train/lr"] == 1e-2

    def test_uneven_micro_batches_give_the_whole_batch_gradient(self, tmp_path):
        whole, _ = run(tmp_path / "a", clip=0.3)
        cut, _ = run(tmp_path / "b", source=Toy((9, 1, 6)), accumulate=3, clip=0.3)
        for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
        first, second = (read_metrics(tmp_path / name / "metrics.jsonl")[-1] for name in "ab")
        assert first["train/mse"] == pytest.approx(second["train/mse"], abs=1e-6)

    def test_notes_are_summed_over_micro_batches(self, tmp_path):
        method, _ = run(tmp_path, source=Toy((9, 1, 6)), accumulate=3)
        assert method.seen == 12 * 16

    def test_clip_bounds_the_whole_gradient(self, tmp_path):
        method = Regression()
        run(tmp_path, method, clip=1e-3)
        norms = [p.grad.norm() for p in method.parameters()]
        assert torch.stack(norms).norm().item() == pytest.approx(1e-3, rel=1e-4)

    def test_same_seed_same_weights_and_other_generators_do_not_matter(self, tmp_path):
        first, _ = run(tmp_path / "a", Regression(0.5))

        def disturb(method, update):
            torch.rand(1000 + update)
            return {"return": 0.0}

        second, _ = run(tmp_path / "b", Regression(0.5), evaluate=disturb, evaluate_every=1)
        other, _ = run(tmp_path / "c", Regression(0.5), seed=2)
        assert same(first, second) and not same(first, other)

    def test_bfloat16_arithmetic_keeps_float32_weights(self, tmp_path):
        method, trained = run(tmp_path, precision="bf16-mixed")
        assert method.net[0].weight.dtype == torch.float32 and trained.metrics["train/loss"] > 0


class Pair(Regression):
    """Two objectives with parts and views of their own; the second is due every third update."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Linear(3, 1)
        self.unused = nn.Linear(2, 2)

    def criticise(self, a, b):
        return Loss((self.critic(a.x) - self.net(b.x)).square().mean(), notes={"rows": torch.zeros(())})

    def objectives(self):
        return (
            Objective("actor", self.loss, trains=(self.net,), reads={"data": self.window}),
            Objective(
                "critic",
                self.criticise,
                trains=(self.critic,),
                reads={"data": self.window, "other": self.window},
                every=3,
            ),
        )


class TestObjectives:
    def test_each_trains_its_own_part_when_due(self, tmp_path):
        source, method = Toy(), Pair()
        alone, _ = run(tmp_path / "a")
        before = method.unused.weight.clone()
        run(tmp_path / "b", method, source)
        assert same(alone.net, method.net), "the second objective must not disturb the first"
        assert torch.equal(before, method.unused.weight)
        assert [update for view, update, _ in source.drawn if view == "other"] == [0, 3, 6, 9]
        assert source.asked == list(range(12))
        line = read_metrics(tmp_path / "b" / "metrics.jsonl")[-1]
        assert {"train/actor", "train/critic", "train/actor/mse", "train/critic/gradient_norm"} <= line.keys()

    def test_settings_by_module(self, tmp_path):
        method = Regression()
        before = method.net[0].weight.clone()
        run(tmp_path, method, optimiser=AdamW(lr=1e-2, parts=(Part(prefix="net.0", lr=0.0),)))
        assert torch.equal(before, method.net[0].weight) and method.seen > 0

    def test_nothing_to_train_is_refused(self, tmp_path):
        method = Regression()
        method.requires_grad_(False)
        with pytest.raises(ConfigError, match="objective 'loss' must train parameters of Regression"):
            run(tmp_path, method)

    def test_a_loss_that_is_not_reduced_is_refused(self, tmp_path):
        method = Regression()
        method.loss = lambda batch: Loss(method.net(batch.x).square())
        with pytest.raises(
            DataError, match=r"objective 'loss' must return a scalar Loss.total, got shape \(16, 4, 1\)"
        ):
            run(tmp_path, method)


class TestNotFinite:
    def test_names_update_metric_and_column_saves_the_batch_and_keeps_the_weights(self, tmp_path):
        method = Regression()
        with pytest.raises(
            NonFiniteLoss, match="update 7: train/loss, train/gradient_norm, train/mse not finite"
        ) as caught:
            run(tmp_path, method, Toy(poison=7), checkpoint_every=3)
        assert "not finite in data/x" in str(caught.value) and "update-00000006" in str(caught.value)
        assert all(p.isfinite().all() for p in method.parameters())
        saved = checkpoint.read_tensors(tmp_path / "nan-update-00000007.safetensors")
        assert saved["data/x"].isnan().sum() == 1 and saved["data/y"].shape == (16, 4)

    def test_finite_batch_with_infinite_gradient_is_refused_too(self, tmp_path):
        method = Regression()
        method.loss = lambda batch: Loss((method.net[0].weight.sum() - method.net[0].weight.sum().detach()).sqrt())
        with pytest.raises(NonFiniteLoss, match=r"train/gradient_norm not finite. All batch columns are finite"):
            run(tmp_path, method)


class TestAverage:
    def test_evaluation_sees_averaged_weights_and_training_goes_on_with_its_own(self, tmp_path):
        seen = []

        def look(method, update):
            seen.append((update, method.training, method.net[0].weight.detach().clone()))
            return {"return": 1.0}

        method, _ = run(tmp_path, ema=0.9, evaluate=look, evaluate_every=6)
        plain, _ = run(tmp_path / "plain")
        assert same(method.net, plain.net)
        assert [(update, training) for update, training, _ in seen] == [(6, False), (12, False)]
        assert not torch.equal(seen[-1][2], method.net[0].weight)
        kept = checkpoint.latest(tmp_path).tensors("ema")
        assert torch.equal(kept["net.0.weight"], seen[-1][2]) and kept["seen"] == method.seen

    def test_recursion(self, tmp_path):
        lengths, weights = (1, 2), []
        for updates in lengths:
            method, _ = run(tmp_path / str(updates), updates=updates, ema=0.15)
            weights.append(method.net[0].weight.detach())
        kept = [checkpoint.latest(tmp_path / str(n)).tensors("ema")["net.0.weight"] for n in lengths]
        start = Regression().net[0].weight.detach()
        torch.testing.assert_close(kept[0], 0.1 * start + 0.9 * weights[0])
        torch.testing.assert_close(kept[1], 0.15 * kept[0] + 0.85 * weights[1])


class TestFolder:
    def test_keeps_the_newest_and_the_best(self, tmp_path):
        returns = {3: 1.0, 6: 5.0, 9: 2.0, 12: 3.0}
        run(
            tmp_path,
            evaluate=lambda method, update: {"return": returns[update]},
            evaluate_every=3,
            checkpoint_every=2,
            keep_last=2,
        )
        names = [path.name for path in checkpoint.checkpoints(tmp_path)]
        assert names == ["update-00000006", "update-00000010", "update-00000012"]
        assert json.loads((tmp_path / "checkpoints" / "best.json").read_text())["metric"] == "eval/return"
        assert checkpoint.best(tmp_path).update == 6

    def test_held_out_loss_decides_without_evaluation(self, tmp_path):
        run(tmp_path, validate_every=4)
        line = read_metrics(tmp_path / "metrics.jsonl")[-1]
        assert line["held_out/loss"] == line["held_out/mse"] > 0
        assert json.loads((tmp_path / "checkpoints" / "best.json").read_text())["metric"] == "-held_out/loss"

    def test_an_unmeasured_best_is_refused_with_what_there_is(self, tmp_path):
        with pytest.raises(ConfigError, match=r"best='eval/retrun' is not measured; there are \['eval/return'"):
            run(tmp_path, evaluate=lambda method, update: {"return": 1.0}, evaluate_every=3, best="eval/retrun")

    def test_nothing_is_overwritten(self, tmp_path):
        run(tmp_path)
        with pytest.raises(CheckpointError, match="already holds a run; use resume=True"):
            run(tmp_path)

    def test_another_seed_or_network_cannot_resume(self, tmp_path):
        run(tmp_path)
        with pytest.raises(CheckpointError, match="belongs to a run with seed 1, cannot resume it with seed 2"):
            run(tmp_path, seed=2, resume=True, updates=14)
        with pytest.raises(CheckpointError, match=r"lacks critic.weight"):
            run(tmp_path, Pair(), resume=True, updates=14)

    def test_a_finished_run_resumes_to_itself_and_can_be_prolonged(self, tmp_path):
        first, _ = run(tmp_path)
        again, trained = run(tmp_path, Regression(), resume=True)
        assert same(first, again) and trained.update == 12
        longer, _ = run(tmp_path, Regression(), resume=True, updates=15)
        whole, _ = run(tmp_path / "whole", updates=15)
        assert same(longer, whole)


def test_fit_runs_once_before_the_first_gradient_and_not_when_resuming(tmp_path):
    calls = []

    class Fitted(Regression):
        def fit(self, stores, stage):
            calls.append((stage, [p.grad for p in self.parameters()], torch.rand(()).item()))

    run(tmp_path, Fitted())
    run(tmp_path, Fitted(), resume=True, updates=14)
    run(tmp_path / "again", Fitted())
    assert [(stage, set(gradients)) for stage, gradients, _ in calls] == [("main", {None})] * 2
    assert calls[0][2] == calls[1][2], "fit is seeded too"


def test_a_resumed_stage_goes_on_with_its_own_objectives(tmp_path):
    class Staged(Regression):
        """Its first stage learns from signs."""

        def __init__(self):
            super().__init__()
            self.register_buffer("early", torch.tensor(False))

        def fit(self, stores, stage):
            self.early.fill_(stage == "early")

        def objectives(self):
            loss = self.of_signs if self.early else self.loss
            return (Objective("signs" if self.early else "loss", loss, (self,), {"data": self.window}),)

        def of_signs(self, batch):
            return self.loss(batch.replace(y=batch.y.sign()))

    whole, _ = run(tmp_path / "whole", Staged(), stage="early")
    run(tmp_path / "cut", Staged(), stage="early", updates=5)
    assert same(whole, run(tmp_path / "cut", Staged(), stage="early", resume=True)[0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"updates": 0}, "updates must be at least 1, got 0"),
        ({"clip": -1.0}, "clip must not be negative"),
        ({"ema": 1.0}, r"ema must lie in \[0, 1\)"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(ConfigError, match=words):
        Training(**settings)


def test_training_survives_json():
    training = Training(optimiser=AdamW(schedule="cosine", parts=(Part(prefix="net", lr=1e-5),)))
    assert Training.from_json(json.loads(json.dumps(training.to_json()))) == training


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is one here")
def test_an_accelerator_that_is_not_here_is_refused():
    with pytest.raises(ConfigError, match=r"training needs 1 x 'mps', which is not here.*accelerator='auto'"):
        launch(Training(accelerator="mps"))


class TestInterrupt:
    def test_finishes_the_update_saves_and_says_how_to_go_on(self, tmp_path, caplog):
        source = Toy()
        advance = source.advance

        def stop_at(update):
            if update == 5:
                os.kill(os.getpid(), signal.SIGINT)
            return advance(update)

        source.advance = stop_at
        before = signal.getsignal(signal.SIGINT)
        with (
            caplog.at_level(logging.WARNING),
            pytest.raises(Interrupted, match=r"stopped after update 6.*--resume") as caught,
        ):
            run(tmp_path, source=source)
        assert caught.value.checkpoint == checkpoint.latest(tmp_path).folder
        assert "stopped" not in caplog.text and signal.getsignal(signal.SIGINT) is before
        resumed, _ = run(tmp_path, Regression(), resume=True)
        whole, _ = run(tmp_path / "whole")
        assert same(resumed, whole)
        assert stripped(tmp_path) == stripped(tmp_path / "whole")

    def test_works_outside_the_main_thread(self, tmp_path):
        thread = threading.Thread(target=run, args=(tmp_path,))
        thread.start()
        thread.join()
        assert checkpoint.latest(tmp_path).update == 12


def stripped(out: Path) -> list[dict]:
    return [
        {key: value for key, value in line.items() if not key.startswith("time/")}
        for line in read_metrics(out / "metrics.jsonl")
    ]


def test_progress_in_a_pipe_is_one_plain_line(tmp_path, capsys):
    run(tmp_path, progress=True)
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("12/12 updates")


TWO_PROCESSES = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from test_loop import AdamW, Pair, Toy, Training, train
from foretoken.training import launch
class Part(Toy):
    def __init__(self, rank, world, accumulate):
        super().__init__()
        self.rank, self.world, self.accumulate = rank, world, accumulate
    def draw(self, view, window, update, micro=0):
        part = micro * self.world + self.rank
        return super().draw(view, window, update).map(lambda leaf: leaf.tensor_split(self.world * self.accumulate)[part])
training = Training(updates=12, accelerator="cpu", optimiser=AdamW(lr=1e-2), clip=0.3, devices=2, accumulate=2, threads=1, log_every=4)
fabric = launch(training)
method = Pair()
source = Part(fabric.global_rank, fabric.world_size, 2)
train(method, source, training, Path(sys.argv[2]), seed=1, fabric=fabric, progress=False)
total = sum(p.detach().double().sum() for p in method.parameters())
sys.stdout.write(f"seen {float(method.seen)} {float(total)}\\n")
"""


def test_two_processes_give_the_weights_of_one(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(Path(__file__).parent), str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith("seen")]
    assert len(told) == 2 and len(set(told)) == 1, "both processes end with the same weights"
    one, _ = run(tmp_path / "one", Pair(), clip=0.3)
    two = checkpoint.latest(tmp_path / "two").tensors("model")
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two[name], value, atol=1e-6, rtol=0)
    lines = [read_metrics(tmp_path / name / "metrics.jsonl")[-1] for name in ("one", "two")]
    assert lines[0]["train/actor/mse"] == pytest.approx(lines[1]["train/actor/mse"], abs=1e-5)
