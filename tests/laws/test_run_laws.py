"""Run law: killed at any moment and resumed, a run ends with the same weights bit for bit, and tells the same story.

One fresh process starts all runs as its forks, so that Python and torch are imported once.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUNS = '''
import json, os, random, signal, sys, time
from pathlib import Path

import torch
from torch import nn

from foretoken.core import Batch, Decision, Loss, Method, Window, masked_mean
from foretoken.core.random import categorical
from foretoken.training import AdamW, Training, latest, train
import lightning_fabric

torch.set_num_threads(1)


class Regression(Method):
    """Dropout, and a statistic that changes in training."""

    window = Window(length=4)

    def __init__(self, spec):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 32), nn.Dropout(0.3), nn.Tanh(), nn.Linear(32, 1))
        self.register_buffer("scale", torch.ones(()))

    policy = None

    def loss(self, batch):
        time.sleep(0.002)
        total, weight = masked_mean((self.net(batch.x)[..., 0] - batch.y / self.scale).square(), batch.scored)
        return Loss(total, {"mse": total}, {"size": batch.y.abs().sum()}, weight)

    def after_update(self, objective, notes):
        self.scale.mul_(0.99).add_(0.0001 * notes["size"])


class Toy:
    spec, stores = None, {}

    def __init__(self):
        self.count = 0

    def connect(self, method): ...

    def advance(self, update):
        self.count += 1
        return {"count": float(self.count)} if update % 3 == 0 else {}

    def draw(self, view, window, update, micro=0):
        # from the default generator, which the loop has seeded
        x = torch.randn(8, 4, 3)
        return Batch(x=x, y=x.sum(-1) * self.count, scored=torch.rand(8, 4) < 0.5)

    def held_out(self, view, window, number):
        return None

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


class Chooser(Method):
    """Clones the actions of good steps; acts by chance from its logits, with the last observation as memory."""

    window = Window(length=4)

    def __init__(self, spec):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.1), nn.Tanh(), nn.Linear(16, 2))

    @property
    def policy(self):
        return self

    def begin(self, rows, context):
        return {"last": torch.zeros(rows, 4)}

    def act(self, step, state, *, explore=False):
        logits = self.net(torch.cat([step.observation, state["last"]], -1))
        return Decision(categorical(logits, step.seed), {"last": step.observation.clone()})

    def loss(self, batch):
        time.sleep(0.002)
        last = torch.cat([torch.zeros_like(batch.observation[:, :1]), batch.observation[:, :-1]], 1)
        logits = self.net(torch.cat([batch.observation, last * ~batch.fresh[..., None]], -1))
        nll = nn.functional.cross_entropy(logits.flatten(0, 1), batch.action.flatten(), reduction="none").reshape(batch.action.shape)
        total, weight = masked_mean(nll, batch.scored)
        return Loss(total, weight=weight)


def job(kind, out, resume=True):
    optimiser = AdamW(lr=1e-2, warmup=10, schedule="cosine")
    training = Training(updates=120, batch_size=8, accelerator="cpu", optimiser=optimiser, checkpoint_every=15, log_every=10, threads=1)
    if kind == "toy":
        training = training.replace(accumulate=2, ema=0.9, validate_every=0, evaluate_every=20)
        source = Toy()
    else:
        from foretoken.training.sources import Replay
        replay = Replay(environment="CartPole-v1", steps=6, num_slots=3, warmup_episodes=2, capacity=200)
        source = replay.build(batch_size=8, seed=5, folder=out)
    method = {"toy": Regression, "replay": Chooser}[kind](source.spec)
    evaluate = lambda method, update: {"size": float(sum(p.abs().sum() for p in method.parameters()))}
    train(method, source, training, out, seed=5, evaluate=evaluate, resume=resume, progress=False)


def fork(kind, out):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            job(kind, out)
            code = 0
        except BaseException:
            import traceback; traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


kind, folder, chance = sys.argv[1], Path(sys.argv[2]), random.Random(int(sys.argv[3]))
if kind == "replay":
    import gymnasium, foretoken.training.sources
began = time.monotonic()
assert os.waitpid(fork(kind, folder / "whole"), 0)[1] == 0
whole = time.monotonic() - began
kills = []
for attempt in range(3):
    child = fork(kind, folder / "killed")
    # moments before, during and after the first checkpoints
    time.sleep(whole * chance.uniform(0.1, 0.6))
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    found = latest(folder / "killed")
    kills.append([os.WIFSIGNALED(status), found.update if found else 0])
assert os.waitpid(fork(kind, folder / "killed"), 0)[1] == 0
print(json.dumps(kills))
'''


def story(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


def play(kind: str, folder: Path, seed: int) -> list[list]:
    script = folder / "runs.py"
    script.write_text(RUNS)
    command = [sys.executable, str(script), kind, str(folder), str(seed)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("kind", "seed"), [("toy", 1), ("replay", 2)])
def test_killed_three_times_a_run_ends_with_the_same_bits(kind, seed, tmp_path):
    kills = play(kind, tmp_path, seed)
    assert any(killed for killed, _ in kills), f"no run was killed before its end: {kills}"
    whole, killed = (tmp_path / name / "checkpoints" / "update-00000120" for name in ("whole", "killed"))
    names = {"model.safetensors", "optimiser.safetensors"} | (
        {"ema.safetensors"} if kind == "toy" else {"source.safetensors"}
    )
    assert {path.name for path in whole.iterdir()} == {path.name for path in killed.iterdir()} == names | {"state.json"}
    for name in names:
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), f"{name} differs after kills {kills}"
    assert story(tmp_path / "whole") == story(tmp_path / "killed")
    if kind == "toy":
        best = [(tmp_path / name / "checkpoints" / "best.json").read_bytes() for name in ("whole", "killed")]
        assert best[0] == best[1]
    assert not list((tmp_path / "killed").glob("**/*.partial"))
    if kind == "replay":
        resumes = json.loads((killed / "state.json").read_text())["source"]["map"]["resumes"]
        assert all(
            set(entry["map"]["grades"]["map"]) <= {"replay", "over"} and not entry["map"]["notes"] for entry in resumes
        )


INTERRUPTED = """
import sys
from pathlib import Path
sys.argv = ["runs", "none"]
source = Path(sys.path[0], "runs.py").read_text().split("kind, folder, chance")[0]
exec(source)
print("ready", flush=True)
job("toy", Path(sys.path[0]) / "run")
"""


def test_ctrl_c_saves_says_how_to_go_on_and_resumes_to_the_same_bits(tmp_path):
    import signal
    import time

    (tmp_path / "runs.py").write_text(RUNS)
    (tmp_path / "one.py").write_text(INTERRUPTED)
    command, environment = [sys.executable, str(tmp_path / "one.py")], {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "run").glob("checkpoints/update-*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "stopping after this update" in told and "continue with resume=True (--resume)" in told
    state = json.loads(sorted((tmp_path / "run").glob("checkpoints/update-*/state.json"))[-1].read_text())
    assert f"stopped after update {state['update']}, saved in" in told and state["update"] < 120
    again = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert again.returncode == 0, again.stderr
    assert [line["update"] for line in story(tmp_path / "run")] == list(range(10, 121, 10))
