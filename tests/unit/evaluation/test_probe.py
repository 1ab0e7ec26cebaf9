"""The probe: tasks against slow loops, solvers at the best score, records that continue, the table, the command line."""

import json
from itertools import permutations

import numpy as np
import pytest
import torch

from foretoken.core.errors import ConfigError, DataError, ForetokenError, UnknownName
from foretoken.evaluation import probe
from foretoken.evaluation.probe import TASKS, run, tasks
from foretoken.evaluation.probe.page import BEGIN, END
from foretoken.nn.mixers import shelf
from foretoken.nn.mixers.attention import AttentionConfig

ATTENTION = run.probed(AttentionConfig)
COSTS = {
    "step_us": 10.0,
    "lstm_cell_us": 5.0,
    "step_ratio": 2.0,
    "train_ms": 3.0,
    "plain_attention_ms": 2.0,
    "train_ratio": 1.5,
}


@pytest.fixture(autouse=True)
def _few_rows(monkeypatch) -> None:
    monkeypatch.setattr(run, "JUDGED_ROWS", 48)


def drawn(name: str, *, rows: int = 6, length: int | None = None, seed: int = 0) -> tasks.Problem:
    task = TASKS[name]
    return task.draw(torch.Generator().manual_seed(seed), rows, length or task.length)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("times", [1, 2])
def test_a_problem_is_as_stated_and_its_solver_is_perfect(name, times) -> None:
    task = TASKS[name]
    problem = drawn(name, rows=32, length=times * task.length)
    assert problem.x_BLF.shape == (32, times * task.length, task.features) and problem.x_BLF.dtype == torch.float32
    assert problem.target_BL.dtype == (torch.int64 if task.classes else torch.float32)
    assert problem.scored_BL[:, problem.scored_BL.shape[1] // 2 :].any()
    assert task.score(task.solve(problem.x_BLF), problem) == 1.0
    for one, same in zip(problem, drawn(name, rows=32, length=times * task.length), strict=True):
        assert torch.equal(one, same)
    assert not torch.equal(problem.x_BLF, drawn(name, rows=32, length=times * task.length, seed=1).x_BLF)


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.classes])
def test_guessing_earns_chance(name) -> None:
    task, problem = TASKS[name], drawn(name, rows=4000)
    guess = torch.randint(task.classes, problem.target_BL.shape, generator=torch.Generator().manual_seed(2))
    assert task.score(guess, problem) == pytest.approx(task.chance, abs=0.04)


def test_copy_asks_for_what_was_shown_a_delay_ago() -> None:
    x, target, scored = drawn("copy")
    for b in range(len(x)):
        for at in range(x.shape[1]):
            assert scored[b, at] == (at >= tasks.DELAY)
            if scored[b, at]:
                assert x[b, at - tasks.DELAY, target[b, at]] == 1


def test_recall_asks_for_the_last_value_of_a_key_that_was_written() -> None:
    x, target, scored = drawn("recall", rows=20)
    overwritten = 0
    for b in range(len(x)):
        written: dict[int, list[int]] = {}
        for at in range(x.shape[1]):
            key, told = int(x[b, at, : tasks.KEYS].argmax()), x[b, at, tasks.KEYS :]
            if scored[b, at]:
                assert not told.any() and target[b, at] == written[key][-1]
                overwritten += len(written[key]) > 1
            else:
                written.setdefault(key, []).append(int(told.argmax()))
        assert len(written) <= x.shape[1] // 4
    assert overwritten > 100


def test_tmaze_scores_the_junction_by_the_first_sign() -> None:
    x, target, scored = drawn("tmaze", rows=200)
    assert (scored.sum(1) == 1).all()
    for b in range(len(x)):
        junction = int(scored[b].nonzero())
        assert x[b, junction].tolist() == [0, 0, 0, 1] and x[b, 0, 2] == 1 and x[b, 1:, 2].sum() == 0
        assert x[b, 0, target[b, junction]] == 1
    assert len(set(scored.nonzero()[:, 1].tolist())) > 30


def test_regression_solver_is_ridge_on_the_answers_told_before() -> None:
    x, y, scored = drawn("regression")
    answer = tasks.solve_regression(x)
    for b in range(len(x)):
        seen_x, seen_y = np.zeros((0, tasks.INPUTS)), np.zeros(0)
        for at in range(x.shape[1]):
            point = x[b, at, : tasks.INPUTS].double().numpy()
            if scored[b, at]:
                assert x[b, at, tasks.INPUTS :].tolist() == [0, 0]
                ridge = seen_x.T @ seen_x + tasks.NOISE**2 * tasks.INPUTS * np.eye(tasks.INPUTS)
                assert float(answer[b, at]) == pytest.approx(
                    point @ np.linalg.solve(ridge, seen_x.T @ seen_y), abs=1e-4
                )
            else:
                assert x[b, at, tasks.INPUTS] == y[b, at] and torch.equal(
                    x[b, at, : tasks.INPUTS], x[b, at - 1, : tasks.INPUTS]
                )
                seen_x, seen_y = np.vstack((seen_x, point)), np.append(seen_y, float(y[b, at]))
    zero = TASKS["regression"].score(torch.zeros_like(y), drawn("regression"))
    assert zero == 0.0


def test_tracking_is_the_product_of_the_moves_so_far() -> None:
    x, target, scored = drawn("tracking")
    group = np.array([np.eye(3)[list(p)] for p in permutations(range(3))])  # (P e_i): row i is e_p(i)
    assert scored.all()
    for b in range(len(x)):
        state = np.eye(3)
        for at in range(x.shape[1]):
            state = state @ group[int(x[b, at].argmax())]  # by rows: first the state, then the move
            assert np.array_equal(group[int(target[b, at])], state)


def test_what_has_heads_gets_four_and_what_offers_rotary_positions_gets_them() -> None:
    assert AttentionConfig(num_heads=4, positions="rotary") == ATTENTION
    for config in map(run.probed, shelf().values()):
        assert getattr(config, "num_heads", run.HEADS) == run.HEADS
        config.build(run.WIDTH)


def test_a_record_is_written_continued_and_started_over(tmp_path, monkeypatch) -> None:
    trained: list[tuple[str, int]] = []
    train = run.train

    def counted(config, task, seed, updates):
        trained.append((task.name, seed))
        return train(config, task, seed, updates)

    monkeypatch.setattr(run, "train", counted)
    monkeypatch.setattr(run, "measure_costs", lambda config: dict(COSTS))
    file, config = tmp_path / "deep" / "attention.json", ATTENTION
    before = torch.random.get_rng_state()
    first = probe.probe("attention", config, file, tasks=("tmaze", "regression"), seeds=(0,), updates=2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert probe.read_record(file) == first and json.loads(file.read_text())["key"] == "attention"
    assert first["facts"]["state_bytes"] > 0 and first["tasks"]["tmaze"]["trained"]["sd"] is None
    more = probe.probe("attention", config, file, tasks=("tmaze",), seeds=(0, 1), updates=2, about={"date": "today"})
    assert trained == [("tmaze", 0), ("regression", 0), ("tmaze", 1)]
    assert more["tasks"]["regression"] == first["tasks"]["regression"] and more["date"] == "today"
    assert more["tasks"]["tmaze"]["runs"]["0"] == first["tasks"]["tmaze"]["runs"]["0"]
    values = [one["twice"] for one in more["tasks"]["tmaze"]["runs"].values()]
    assert more["tasks"]["tmaze"]["twice"] == {"mean": np.mean(values), "sd": pytest.approx(np.std(values, ddof=1))}
    other = probe.probe("attention", config, file, tasks=("tmaze",), seeds=(0,), updates=3)
    assert list(other["tasks"]) == ["tmaze"] and list(other["tasks"]["tmaze"]["runs"]) == ["0"]
    again = probe.probe("attention", config, file, tasks=("tmaze",), seeds=(0,), updates=3, again=True)
    same = ("trained", "twice", "loss")
    assert len(trained) == 5
    assert [again["tasks"]["tmaze"]["runs"]["0"][name] for name in same] == [
        other["tasks"]["tmaze"]["runs"]["0"][name] for name in same
    ]
    file.write_text("{}")
    with pytest.raises(DataError, match="foretoken-probe"):
        probe.probe("attention", config, file)


def test_a_task_can_be_learnt() -> None:
    """Untrained, the T-maze is a coin; fifty updates later attention finds the cue."""
    figures = run.train(ATTENTION, TASKS["tmaze"], 0, 50)
    assert figures["trained"] > 0.95


def test_costs_are_measured_beside_yardsticks() -> None:
    threads = torch.get_num_threads()
    costs = run.measure_costs(ATTENTION, steps=100, length=16, rows=2, seconds=0.0)
    assert torch.get_num_threads() == threads
    assert costs["step_ratio"] == pytest.approx(costs["step_us"] / costs["lstm_cell_us"], rel=0.01)
    assert costs["train_ratio"] == pytest.approx(costs["train_ms"] / costs["plain_attention_ms"], rel=0.02)


def record(key: str, mean: float, **more: object) -> dict:
    scores = {"mean": mean, "sd": 0.012}
    return {
        "format": run.FORMAT, "version": run.VERSION, "key": key, "mixer": {}, "protocol": {},
        "facts": {"state_bytes": 4096, "streaming": "within_window", "max_context": 1024, "parallel": "chunk"},
        "costs": COSTS, "tasks": {"copy": {"trained": scores, "twice": {"mean": mean / 2, "sd": None}, "runs": {}}},
        "date": "2025-01-02", "commit": "abc", "machine": {"cpu": "A CPU"}, "versions": {"torch": "2.11"}, **more,
    }  # fmt: skip


def test_the_table_replaces_the_old_one_and_nothing_else(tmp_path) -> None:
    page = tmp_path / "mixers.md"
    page.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    for _ in range(2):
        probe.fill(page, [record("zed", 0.5), record("alpha", 0.98765)])
    text = page.read_text()
    assert text.startswith(f"before\n\n{BEGIN}\n") and text.endswith(f"\n{END}\n\nafter\n") and "old" not in text
    assert "| alpha | 0.99 ± 0.01 / 0.49 | - | - | - | - |" in text
    assert "| zed | 10 µs | 2.0 x | 3.0 ms | 1.5 x | 4,096 B | by chunks | within window of 1024 |" in text
    assert text.index("| alpha") < text.index("| zed") and "A CPU, torch 2.11; 2025-01-02, commit abc" in text
    page.write_text("no marks")
    with pytest.raises(DataError, match="must hold the lines"):
        probe.fill(page, [record("zed", 0.5)])


def test_the_command_probes_and_draws(tmp_path, monkeypatch, capsys) -> None:
    from foretoken.cli import probe as command

    monkeypatch.setattr(run, "measure_costs", lambda config: dict(COSTS))
    words = ["--out", str(tmp_path), "--seeds", "0", "--updates", "2"]
    assert command.main(["attention", "--tasks", "tmaze", *words]) == 0
    told = capsys.readouterr()
    assert "tmaze" in told.out and "seed 0" in told.err
    kept = probe.read_record(tmp_path / "attention.json")
    assert {"commit", "date", "machine", "versions"} <= set(kept) and list(kept["tasks"]) == ["tmaze"]
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    assert command.main(["--table", "--out", str(tmp_path), "--page", str(page)]) == 0
    assert "| attention |" in page.read_text()


@pytest.mark.parametrize(
    ("words", "kind", "told"),
    [
        (["atention"], UnknownName, "did you mean 'attention'"),
        (["attention", "--tasks", "recal"], UnknownName, "did you mean 'recall'"),
        ([], ConfigError, "needs a mixer or `all`"),
        (["attention", "--table"], ConfigError, "leave one of them out"),
        (["--table"], DataError, "foretoken probe all"),
    ],
)
def test_bad_words_are_refused(words, kind, told, tmp_path) -> None:
    from foretoken.cli import probe as command

    with pytest.raises(kind, match=told) as problem:
        command.main([*words, "--out", str(tmp_path)])
    assert isinstance(problem.value, ForetokenError) and not list(tmp_path.iterdir())
