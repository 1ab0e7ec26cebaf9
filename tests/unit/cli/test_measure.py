"""evaluate, compare and report."""

import json
import shutil

import pytest

from foretoken.core.exhibit import Exhibit, Line, Lines
from foretoken.evaluation import read_evaluation
from foretoken.methods.conditioned_cloning import ConditionedCloning


def files(run):
    return sorted(file.name for file in (run / "evaluations").glob("user-*"))


def test_evaluate_prints_the_card_and_keeps_the_episodes(run, foretoken) -> None:
    before = files(run)
    answer = foretoken("evaluate", run, "--episodes", 2, "--targets", "-100,50", "--seed", 3)
    assert answer.code == 0, answer.err
    assert "asked against achieved" in answer.out and "best over training" in answer.out
    (new,) = set(files(run)) - set(before)
    kept = read_evaluation(run / "evaluations" / new)
    assert kept.targets == (-100.0, 50.0) and kept.seed == 3 and kept.update == 4 and len(kept.records) == 4


def test_the_report_has_the_numbers_of_the_card(run, tmp_path, foretoken) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for seed in (3, 4):
        card = foretoken("evaluate", copy, "--episodes", 1, "--seed", seed).out
    assert foretoken("report", copy, "--no-videos").code == 0
    page = (copy / "report.html").read_text()
    made = card.splitlines()[0].split(", ", 1)[1]
    assert made == "3 evaluations, seeds 0 and 4" and f"{made}." in page and "earlier evaluation" in page
    best = next(line for line in card.splitlines() if line.startswith("best over training"))
    assert best.split("  ")[-1].strip() in page


def test_evaluating_again_overwrites_nothing(run, foretoken) -> None:
    names = [
        json.loads(foretoken("evaluate", run, "--episodes", 1, "--seed", 9, "--json").out)["file"] for _ in range(2)
    ]
    assert names[0] != names[1] and {name.rsplit("/", 1)[1] for name in names} <= set(files(run))


def test_the_best_checkpoint_can_be_asked_for(run, foretoken) -> None:
    best = json.loads((run / "checkpoints" / "best.json").read_text())["update"]
    answer = foretoken("evaluate", run, "--best", "--episodes", 1, "--json")
    assert json.loads(answer.out)["update"] == best


def test_the_number_of_slots_changes_nothing(run, foretoken) -> None:
    one, many = (
        json.loads(foretoken("evaluate", run, "--episodes", 3, "--num-slots", slots, "--json").out)["records"]
        for slots in (1, 6)
    )
    assert [record["reset_seed"] for record in one] == [record["reset_seed"] for record in many]
    assert [record["return"] for record in one] == pytest.approx([record["return"] for record in many], rel=1e-4)


def test_a_run_without_checkpoint_says_how_to_go_on(run, tmp_path, foretoken) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(run / "run.json", bare)
    answer = foretoken("evaluate", bare)
    assert answer.code == 2 and "no checkpoint" in answer.err and f"train --resume {bare}" in answer.err
    assert "no best checkpoint" in foretoken("evaluate", bare, "--best").err
    assert "no evaluation" in foretoken("compare", bare, bare).err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--targets", "-100;50"), "'-100;50'"),
        (("--targets", "5,5"), "differ from one another"),
        (("--seed", "-1"), "needs a whole number of at least 0, got '-1'"),
        (("--targets", ""), "needs numbers separated by commas, got ''"),
        (("--costs", "5"), "is asked for no limit of cost, so it takes no --costs"),
        (("--device", "gpu"), "--device gpu cannot be used here"),
        (("--environment", "CartPole-v1"), "CartPole-v1"),
        (("--environment", "Pendulm-v1"), "did you mean 'Pendulum-v1'"),
    ],
)
def test_what_evaluate_refuses(words, told, run, foretoken) -> None:
    answer = foretoken("evaluate", run, *words)
    assert answer.code == 2 and told in answer.err and "Traceback" not in answer.err


@pytest.mark.parametrize("verb", ["evaluate", "report"])
def test_what_is_no_run_is_refused(verb, store, foretoken) -> None:
    answer = foretoken(verb, store)
    assert answer.code == 2 and f"{store} is no run" in answer.err


def test_compare_pairs_episodes(run, foretoken) -> None:
    first, second = (run / "evaluations" / f"update-{update:08d}.json" for update in (2, 4))
    tree = json.loads(foretoken("compare", first, second, "--json").out)
    a, b = read_evaluation(first), read_evaluation(second)
    gap = sum(two.total - one.total for one, two in zip(a.records, b.records, strict=True)) / len(a.records)
    assert tree["pairs"] == len(a.records) and tree["difference"]["value"] == pytest.approx(gap)
    assert "mean return" in foretoken("compare", first, second).out


def test_a_run_equals_itself(run, foretoken) -> None:
    answer = foretoken("compare", run, run)
    assert answer.code == 0 and "equal" in answer.out


def test_report_writes_the_page_and_the_films(run, foretoken) -> None:
    answer = foretoken("report", run)
    assert answer.code == 0 and str(run / "report.html") in answer.out.splitlines()
    assert "<html" in (run / "report.html").read_text().lower()
    assert (run / "videos" / "index.json").is_file()


def test_report_without_films(run, tmp_path, foretoken) -> None:
    answer = foretoken("report", run, "--no-videos", "--out", tmp_path / "page.html")
    assert answer.out.splitlines() == [str(tmp_path / "page.html")] and (tmp_path / "page.html").is_file()


def test_a_report_reads_the_checkpoint_only_for_what_has_to_be_played(run, tmp_path, foretoken, monkeypatch) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(run, bare)
    line = Line(label="one", x=(0.0,), y=(1.0,))
    exhibit = Exhibit(title="Its plans", says="As made.", panels=(Lines(x="step", y="action", lines=(line,)),))
    with monkeypatch.context() as patch:
        patch.setattr(ConditionedCloning, "exhibits", lambda self, episodes: [exhibit])
        assert "exhibits" in foretoken("report", bare, "--no-videos").out
        shutil.rmtree(bare / "checkpoints")
        answer = foretoken("report", bare, "--no-videos")
        assert answer == (0, f"{bare / 'report.html'}\n", "") and "Its plans" in (bare / "report.html").read_text()
        answer = foretoken("report", bare)
        assert answer.code == 0 and "no checkpoint" in answer.err and "Its plans" in (bare / "report.html").read_text()
    shutil.rmtree(bare / "exhibits")
    assert foretoken("report", bare, "--no-videos").err == ""


def test_a_report_of_a_broken_evaluation_is_one_error(run, tmp_path, foretoken) -> None:
    shutil.copytree(run, tmp_path / "bare")
    (tmp_path / "bare" / "evaluations" / "update-00000004.json").write_text("{")
    answer = foretoken("report", tmp_path / "bare")
    assert answer.code == 2 and "update-00000004.json is no evaluation" in answer.err and answer.err.count("\n") == 1


def test_no_evaluation_overwrites_another(run, tmp_path, foretoken) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(run, bare)
    for name in ("user-00000004-seed-1", "user-00000004-seed-1-3", "user-00000004-seed-10"):
        (bare / "evaluations" / f"{name}.json").write_text("{}")
    file = json.loads(foretoken("evaluate", bare, "--episodes", 1, "--seed", 1, "--json").out)["file"]
    assert file.endswith("user-00000004-seed-1-2.json")
