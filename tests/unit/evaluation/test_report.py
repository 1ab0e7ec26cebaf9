import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from foretoken.core import catalogue
from foretoken.core.errors import DataError
from foretoken.envs.recipes.learning_histories import LearningHistories
from foretoken.evaluation import plots
from foretoken.evaluation.evaluate import read_evaluations
from foretoken.evaluation.report import videos, write_report
from foretoken.evaluation.scores import for_card, score_card

EXPERIMENT = {
    "class": "foretoken.experiment:Experiment",
    "system": {
        "class": "foretoken.systems.nowhere.fast:FastThinkerConfig",
        "backbone": {"class": "a:GPTConfig", "width": 64},
    },
    "training": {"class": "foretoken.training.loop:Training", "lr": 1e-4, "name": "<b>&"},
}
RETURNS = {
    (1000, 300.0): [100.0, 140.0],
    (1000, 100.0): [90.0, 70.0],
    (2000, 300.0): [240.0, 200.0],
    (2000, 100.0): [99.0, 121.0],
}


def make_run(folder, returns=None, *, metrics=(), **info):
    """A run folder whose evaluations are `{(update, target): returns}`."""
    facts = {
        "format": "foretoken-run",
        "version": 1,
        "experiment": EXPERIMENT,
        "spec": {"environment": "Tower-v0"},
        "seed": 3,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(facts | {"started": "2026-03-04T05:06:07+00:00"} | info))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    (folder / "evaluations").mkdir(exist_ok=True)
    for update in sorted({update for update, _ in returns or {}}):
        records = [
            {
                "target": target,
                "episode": i,
                "reset_seed": i,
                "return": value,
                "length": 9,
                "success": None,
                "cost": None,
                "terminated": True,
            }
            for (at, target), values in (returns or {}).items()
            for i, value in enumerate(values)
            if at == update
        ]
        about = {
            "format": "foretoken-evaluation",
            "version": 1,
            "environment": "Tower-v0",
            "seed": 0,
            "update": update,
            "num_slots": 2,
        }
        tree = about | {"records": records, "seconds": 1.0, "decisions": 9, "card": {}}
        (folder / "evaluations" / f"update-{update:08d}.json").write_text(json.dumps(tree))
    return folder


def curves(updates=10):
    return [
        {"update": u, "train/loss": 1 / u, "time/updates_per_second": 50.0, "time/seconds": 2.0 * u}
        for u in range(1, updates + 1)
    ]


class Words(HTMLParser):
    """The visible text of a page, the tags left open, and everything it would load."""

    def __init__(self, page):
        super().__init__()
        self.text, self.open, self.loads = "", [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag not in {"meta", "link", "br", "!doctype"}:
            self.open.append(tag)
        self.loads += [
            value for name, value in attrs if name in {"src", "href", "xlink:href", "data"} and value[0] != "#"
        ]

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.text += "" if tag in {"strong", "code", "span"} else " "

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def read(file):
    page = file.read_text(encoding="utf-8")
    words = Words(page)
    assert words.open == []
    assert "nan" not in re.findall(r"\w+", words.text)
    words.text = re.sub(r"\s+", " ", words.text)
    return page, words


def add_video(run, name, size=100, **changes):
    folder = run / "videos"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.mp4").write_bytes(b"\0" * size)
    facts = {
        "update": 2000,
        "episode": 1,
        "reset_seed": 7,
        "target": 300.0,
        "achieved": 240.0,
        "length": 9,
        "shown": 9,
        "seconds": 1,
        "renderer": "opengl",
    }
    index = folder / "index.json"
    videos = json.loads(index.read_text())["videos"] if index.exists() else []
    videos.append({"name": name, "file": f"{name}.mp4"} | facts | changes)
    index.write_text(json.dumps({"format": "foretoken-videos", "version": 1, "videos": videos, "missing": ""}))


def test_the_page_is_whole_and_loads_nothing(tmp_path):
    run = make_run(tmp_path / "run", RETURNS, metrics=curves())
    add_video(run, "best")
    page, words = read(write_report(run, data_returns=np.arange(50.0, 250.0)))
    assert write_report(run) == run / "report.html"
    assert [value[:15] for value in words.loads] == ["data:,", "data:video/mp4;"]
    assert "<script" not in page and "@import" not in page and re.findall(r"url\((?!#)", page) == []
    assert len(re.findall(r'<svg [^>]*aria-hidden="true"', page)) == 5 == page.count('role="img" aria-label="')
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_the_same_run_gives_the_same_bytes(tmp_path):
    run = make_run(tmp_path / "run", RETURNS, metrics=curves())
    one, two = (write_report(run, out=tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert one == two
    assert not list(tmp_path.glob("*.part"))


def test_the_best_number_stands_on_top_with_the_rule_that_made_it(tmp_path):
    _, words = read(write_report(make_run(tmp_path, RETURNS)))
    assert "Fast Thinker on Tower-v0" in words.text
    assert (
        "220 Mean return of 2 episodes, asked for 300, after 2,000 updates. Picked as the best of 2 evaluations times 2 targets"
        in words.text
    )
    assert "the last evaluation at the main target, 300, gives 220." in words.text
    _, words = read(write_report(make_run(tmp_path / "one", {(5, None): [1.0, 3.0]})))
    assert (
        "2 Mean return of 2 episodes, after 5 updates. It is the only evaluation, so nothing was selected."
        in words.text
    )


def play_by_hand(run, name, **changes):
    """Another evaluation of the last update, as `foretoken evaluate` keeps it."""
    tree = json.loads(max((run / "evaluations").glob("update-*.json")).read_text())
    (run / "evaluations" / f"user-{name}.json").write_text(json.dumps(tree | changes))


def test_of_evaluations_by_hand_the_last_counts_as_on_the_card(tmp_path):
    run = make_run(tmp_path / "run", RETURNS, metrics=curves())
    record = {"episode": 0, "reset_seed": 0, "length": 9, "success": None, "cost": None, "terminated": True}
    for played, best in ((1.0, 900.0), (2.0, 210.0)):
        play_by_hand(run, f"{played:g}", records=[record | {"target": 300.0, "return": best}], played=played)
    text = read(write_report(run))[1].text
    assert "900" not in text and "3 evaluations, seed 0." in text
    assert "1 earlier evaluation by foretoken evaluate not counted." in text
    assert "Picked as the best of 5 pairs of evaluation and target" in text and "by target, with the 95" in text
    card = score_card(for_card(read_evaluations(run)))
    assert card.evaluations == 3 and card["last"].value == 210.0 and card["best over training"].value == 220.0


def test_two_evaluations_of_one_update_are_a_choice(tmp_path):
    run = make_run(tmp_path / "run", {(5, None): [1.0, 3.0]})
    play_by_hand(run, "again", played=1.0)
    assert "Picked as the best of 2 evaluations on the very episodes" in read(write_report(run))[1].text


def test_asked_against_achieved_is_told_in_words(tmp_path):
    # Gaps: |220 - 300| and |110 - 100|.
    page, words = read(write_report(make_run(tmp_path, RETURNS), data_returns=np.array([80.0, 150.0, 220.0])))
    assert "Mean absolute gap 45" in words.text and "Spearman correlation +0.89" in words.text
    assert "reach from 80 to 220 (shaded); outside it were asked: 300." in words.text
    assert "25 % of them beat every episode in the data" in words.text
    assert "achieved = asked" in page and "returns in the data" in page and "training data (3 episodes)" in page


def test_the_returns_of_the_data_are_found_in_the_run(tmp_path):
    _, words = read(write_report(make_run(tmp_path, RETURNS, data_returns=[50.0, 400.0])))
    assert "All targets lie within the data's returns (50 to 400, shaded)." in words.text
    _, words = read(write_report(make_run(tmp_path / "other", RETURNS, data_returns=[])))
    assert "The training data's returns are not known" in words.text


def test_an_empty_run_says_what_to_do(tmp_path):
    _, words = read(write_report(make_run(tmp_path / "my run")))
    assert words.text.count("foretoken evaluate 'my run'") >= 2
    assert "foretoken train" in words.text
    assert "foretoken report 'my run' films the best" in words.text


def test_training_without_evaluation_or_held_out_data(tmp_path):
    _, words = read(write_report(make_run(tmp_path, metrics=curves())))
    assert "Loss, 0.1 at the end. No held-out loss; --source.held-out 0.05" in words.text
    assert "Speed, 50 updates/s in the median" in words.text
    assert "training time 0.3 minutes" in words.text


def test_held_out_loss_and_gaps_in_the_metrics(tmp_path):
    lines = [*curves(6), {"update": 7, "train/loss": None, "held_out/loss": 0.5}, {"update": 8, "held_out/loss": 0.75}]
    run = make_run(tmp_path, metrics=lines)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"update": 9, "train/lo')
    page, words = read(write_report(run))
    assert "Held-out episodes: 0.75, lowest at update 7." in words.text
    assert "held-out episodes" in page


def test_only_what_the_system_and_its_source_offer_is_advised(tmp_path):
    trained = EXPERIMENT | {"source": {"class": "foretoken.training.rollouts:Rollouts", "workers": 8}}
    run = make_run(
        tmp_path, {(5, None): [1.0]}, metrics=curves(), experiment=trained, command="foretoken train gtrxl smoke"
    )
    text = read(write_report(run))[1].text
    assert "1 in every episode: the 1 episode" in text
    assert not [words for words in ("Asked and achieved", "--targets", "held-out") if words in text]


def test_one_target_one_episode_and_no_target(tmp_path):
    _, words = read(write_report(make_run(tmp_path / "a", {(1, 10.0): [4.0]})))
    assert "unknown" in words.text and "one target only, so no correlation" in words.text
    _, words = read(write_report(make_run(tmp_path / "b", {(1, None): [4.0, 5.0]})))
    assert "asked for no return" in words.text
    _, words = read(write_report(make_run(tmp_path / "c", {(1, 1.0): [4.0, 4.0], (1, 2.0): [4.0, 4.0]})))
    assert "undefined" in words.text


def test_settings_commands_and_machine_are_listed(tmp_path):
    about = {
        "command": ["/opt/somewhere/bin/foretoken", "train", "fast", "--out", "a b"],
        "commit": "0123456789abcdef",
        "machine": {"cpu": "Loom 9"},
        "versions": {"torch": "2.99"},
    }
    page, words = read(write_report(make_run(tmp_path, **about)))
    assert "foretoken train fast --out 'a b'" in words.text and "/opt" not in page
    for said in (
        "All 6 settings",
        "backbone.width 64",
        "<b>&",
        "Loom 9",
        "2.99",
        "0123456789abcdef",
        "2026-03-04 05:06 UTC",
        "seed 3",
    ):
        assert said in words.text


def test_a_system_trained_by_name_has_the_title_of_its_card(tmp_path, monkeypatch):
    file = tmp_path / "deep_thinker.py"
    file.write_text('CARD = Card(key="dt42", title="Deep Thinker", paper="", claim="", stream="")')
    entry = catalogue.Entry("deep_thinker", "offline", "foretoken.systems.offline.deep_thinker", file)
    monkeypatch.setattr(catalogue, "systems", lambda: {"deep_thinker": entry})
    for command in ("foretoken train deep_thinker cpu", "foretoken train dt42"):
        _, words = read(write_report(make_run(tmp_path / "run", command=command)))
        assert "Deep Thinker on Tower-v0" in words.text
    _, words = read(write_report(make_run(tmp_path / "run", command="python deep_thinker")))
    assert "Fast Thinker on Tower-v0" in words.text


def test_small_videos_are_embedded_and_large_ones_linked(tmp_path, monkeypatch):
    run = make_run(tmp_path / "runs" / "a", RETURNS)
    add_video(run, "old", update=1000)
    add_video(run, "best", shown=4)
    add_video(run, "worst", renderer="sketch")
    _, words = read(write_report(run))
    assert sum(value.startswith("data:video") for value in words.loads) == 2
    assert "best: asked 300, achieved 240 in 9 steps; the first 4 are shown. Episode 1, reset seed 7." in words.text
    assert "Drawn as a sketch" in words.text
    monkeypatch.setattr(videos, "EMBED_LIMIT", 150)
    _, words = read(write_report(run, out=tmp_path / "pages" / "a.html"))
    assert words.loads[1:] == ["../runs/a/videos/best.mp4", "../runs/a/videos/worst.mp4"]
    assert "Too large" in words.text


def test_many_targets_are_thinned_in_the_learning_curve(tmp_path):
    returns = {(update, float(target)): [target + update, target + 2.0] for update in (1, 2) for target in range(9)}
    page, words = read(write_report(make_run(tmp_path, returns)))
    assert "5 of 9 targets" in words.text
    assert len(re.findall(r">asked \d<", page)) == 5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", "{", r"run\.json must hold JSON"),
        (
            "run.json",
            '{"format": "foretoken-run", "version": 9}',
            r"run\.json must be of format 'foretoken-run', version 1, got .* version 9",
        ),
        ("evaluations/update-00001000.json", "[]", r"update-00001000\.json"),
        ("metrics.jsonl", "not json\n{}\n", r"metrics\.jsonl must hold one JSON object a line"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content, message):
    run = make_run(tmp_path, RETURNS)
    (run / name).write_text(content)
    with pytest.raises(DataError, match=message):
        write_report(run)


def test_a_folder_is_no_page(tmp_path):
    with pytest.raises(DataError, match=r"the page needs a file, and .* is a folder; give for example .*report\.html"):
        write_report(make_run(tmp_path / "run"), out=tmp_path)
    assert not list(tmp_path.parent.glob("*.part"))


def test_what_is_no_run_and_no_returns_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a report needs a run folder, which holds run\.json"):
        write_report(tmp_path)
    with pytest.raises(DataError, match=r"data_returns must be finite numbers of shape \(M,\), got shape \(2, 2\)"):
        write_report(make_run(tmp_path), data_returns=np.zeros((2, 2)))


def test_thinning_keeps_the_mean():
    x, y = plots.thin((np.arange(1000.0), np.arange(1000.0) % 7), 10)
    assert len(x) == 10 and y.mean() == pytest.approx((np.arange(1000) % 7).mean())
    assert np.diff(x).min() > 0


def test_colours_follow_the_page():
    svg = plots.speed((np.arange(5.0), np.ones(5)))
    assert re.findall(r"#[0-9a-f]{6}", svg) == []
    assert "var(--ink)" in svg and "var(--series-3)" in svg and "var(--font)" in svg


def mark(run, **facts):
    """Adds facts to the records of every evaluation: one value per record, or a function of (update, number)."""
    for file in (run / "evaluations").glob("*.json"):
        tree = json.loads(file.read_text())
        for number, record in enumerate(tree["records"]):
            record |= {name: fact(tree["update"], number) for name, fact in facts.items()}
        file.write_text(json.dumps(tree))


def test_success_is_drawn_over_training(tmp_path):
    returns = {(update, None): [0.0] * 10 for update in (100, 200)}
    run = make_run(tmp_path, returns)
    assert "Success rate" not in read(write_report(run))[1].text
    mark(run, success=lambda update, number: number < update // 50)
    page, words = read(write_report(run))
    assert "Success rate with its 95 % interval over episodes; at the end: 40 %." in words.text
    assert ">successful episodes<" in page
    by_target = make_run(tmp_path / "targets", RETURNS)
    mark(by_target, success=lambda update, number: update == 2000)
    assert "at the end: asked 300 100 %, asked 100 100 %" in read(write_report(by_target))[1].text


def test_success_is_drawn_against_delay(tmp_path):
    run = make_run(tmp_path, {(1, None): [0.0] * 4, (2, None): [0.0] * 8})
    assert "Memory" not in read(write_report(run))[1].text
    mark(run, success=lambda update, number: number < 6, delay=lambda update, number: 3 * (number // 2))
    page, words = read(write_report(run))
    assert "Success against delay" in words.text and "100 % at 0 steps, 0 % at 9 steps; 8 episodes" in words.text
    assert ">steps to remember<" in page and "delays in training" not in page
    mark(run, delay=lambda update, number: 7)
    told = "All episodes had one delay, 7 steps; foretoken evaluate"
    assert told in read(write_report(run))[1].text


def test_delays_of_our_worlds_are_known(tmp_path):
    run = make_run(tmp_path, {(1, None): [1.0, -0.5]}, spec={"environment": "foretoken/RepeatPrevious-4-v0"})
    (file,) = (run / "evaluations").glob("*.json")
    tree = json.loads(file.read_text())
    for name, back in (("update-00000001", 4), ("user-00000001-seed-0", 32)):
        tree["environment"] = f"foretoken/RepeatPrevious-{back}-v0"
        (run / "evaluations" / f"{name}.json").write_text(json.dumps(tree))
    page, words = read(write_report(run))
    assert "Return against delay" in words.text and "0.25 at 4 steps, 0.25 at 32 steps" in words.text
    assert "4 episodes of 2 evaluations at update 1. Trained with 4 steps." in words.text
    assert "delays in training" in page


def test_exhibits_are_drawn_or_their_absence_told(tmp_path):
    run = make_run(tmp_path, RETURNS)
    line = {"class": "foretoken.core.exhibit:Line", "label": "a & b", "x": [0, 1], "y": [0.5, 1.0]}
    lines = {"class": "foretoken.core.exhibit:Lines", "x": "step", "y": "action 0", "lines": [line]}
    one = {"class": "foretoken.core.exhibit:Exhibit", "title": "Plans", "says": "As made.", "panels": [lines, lines]}
    head = {"format": "foretoken-exhibits", "version": 1, "update": 2000}
    (run / "exhibits").mkdir()
    file = run / "exhibits" / "update-00002000.json"
    file.write_text(json.dumps(head | {"exhibits": [one], "missing": ""}))
    page, words = read(write_report(run))
    assert "Plans As made. Update 2,000." in words.text and ">action 0<" in page
    assert page.count('aria-label="Plans: action 0 against step"') == 2
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    file.write_text(json.dumps(head | {"exhibits": [], "missing": "DataError: <none>"}))
    assert "There is nothing to see: DataError: <none>." in read(write_report(run))[1].text
    file.write_text("[]")
    assert "There is nothing to see" in read(write_report(run))[1].text


def test_pictures_are_of_the_environment_that_is_shown(tmp_path):
    run = make_run(tmp_path, RETURNS)
    line = {"class": "foretoken.core.exhibit:Line", "label": "a", "x": [0, 1], "y": [0.5, 1.0]}
    lines = {"class": "foretoken.core.exhibit:Lines", "x": "step", "y": "action 0", "lines": [line]}
    one = {"class": "foretoken.core.exhibit:Exhibit", "says": "As made.", "panels": [lines]}

    def show(name, title):
        head = {"format": "foretoken-exhibits", "version": 1, "update": 2000, "missing": ""}
        (run / "exhibits").mkdir(exist_ok=True)
        (run / "exhibits" / f"{name}.json").write_text(json.dumps(head | {"exhibits": [one | {"title": title}]}))
        add_video(run, name, evaluation=name)

    def play(name, **changes):
        tree = json.loads((run / "evaluations" / "update-00002000.json").read_text())
        (run / "evaluations" / f"{name}.json").write_text(json.dumps(tree | changes))

    def seen():
        text = read(write_report(run))[1].text
        films = re.findall(r"(\S+): asked 300, achieved", text)
        return [title for title in ("Tower plans", "Bridge plans", "Later plans") if title in text], films, text

    show("update-00002000", "Tower plans")
    assert seen()[:2] == (["Tower plans"], ["update-00002000"])
    play("user-00002000-seed-0", environment="Bridge-v0", played=5.0)
    assert seen()[:2] == ([], [])
    show("user-00002000-seed-0", "Bridge plans")
    assert seen()[:2] == (["Bridge plans"], ["user-00002000-seed-0"])
    # "-2" sorts before ".json", and what was played last has the smaller update
    play("user-00002000-seed-0-2", played=6.0, update=1000)
    titles, films, text = seen()
    assert (titles, films) == (["Tower plans"], ["update-00002000"]) and "2,000, an earlier evaluation." in text
    show("user-00002000-seed-0-2", "Later plans")
    assert seen()[:2] == (["Later plans"], ["user-00002000-seed-0-2"])


def test_routes_are_counted_beside_those_of_the_data(tmp_path):
    run = make_run(tmp_path, {(1, None): [0.0] * 4}, data_routes={"0": 10, "1": 30})
    mark(run, route=lambda update, number: number % 2, success=lambda update, number: True)
    page, words = read(write_report(run))
    assert "0 50 %, 1 50 %. 25 % of the episodes would have to go another way" in words.text and ">data<" in page


def test_routes_are_counted(tmp_path):
    run = make_run(tmp_path, RETURNS)
    assert "Routes taken" not in write_report(run).read_text()
    file = max((run / "evaluations").glob("*.json"))
    tree = json.loads(file.read_text())
    for number, record in enumerate(tree["records"]):
        record |= {"route": number % 4 - 1, "success": number % 4 == 1}
    file.write_text(json.dumps(tree))
    page = write_report(run).read_text()
    assert "Routes taken" in page and re.search(r"none \d+\u00a0%, 0 \d+\u00a0%, 1 \d+\u00a0%, 2 \d+\u00a0%", page)


HEAD = {
    "format": "foretoken-evaluation",
    "version": 1,
    "seed": 0,
    "update": 5,
    "num_slots": 1,
    "seconds": 1.0,
    "decisions": 8,
}


def test_trials_and_regret_are_drawn_beside_the_references(tmp_path):
    def records(count, **more):
        plain = {"target": None, "reset_seed": 0, "return": 1.0, "length": 4, "success": None, "cost": None}
        return [{**plain, "terminated": False, "episode": n, **more} for n in range(count)]

    make_run(tmp_path / "run")
    folder = tmp_path / "run" / "evaluations"
    folder.mkdir(exist_ok=True)
    trials = [record | {"index": index} for record in records(3) for index in range(2)]
    for environment, found, words in (
        ("foretoken/DarkRoom-7x7-v0", trials, ("Return by episode", "best possible", "random")),
        ("foretoken/Bandit-200-v0", records(3, regret=[0.5, 1.0, 1.5, 2.0]), ("Regret", "Thompson", "UCB")),
    ):
        (folder / "update-00000005.json").write_text(json.dumps(HEAD | {"environment": environment, "records": found}))
        page = write_report(tmp_path / "run").read_text()
        assert "Learning in context" in page and all(word in page for word in words), environment


def test_trials_are_drawn_beside_the_learner_that_was_distilled(tmp_path):
    make_run(tmp_path / "run")
    file, folder = tmp_path / "run" / "run.json", tmp_path / "run" / "evaluations"
    folder.mkdir(exist_ok=True)
    plain = {
        "target": None,
        "reset_seed": 0,
        "return": 1.0,
        "length": 15,
        "success": None,
        "cost": None,
        "terminated": False,
    }
    trials = [plain | {"episode": n, "index": index} for n in range(3) for index in range(2)]
    told = HEAD | {"environment": "foretoken/DarkRoom-7x7-v0", "records": trials}
    (folder / "update-00000005.json").write_text(json.dumps(told))
    info = json.loads(file.read_text())
    recipe = LearningHistories(keep_every=16)
    for source, words in (
        ({"recipe": recipe.to_json()}, ["source, one episode in 16"]),
        ({"recipe": {"class": "foretoken.nowhere:Gone"}}, []),
        ({}, []),
    ):
        file.write_text(json.dumps(info | {"experiment": {**(info.get("experiment") or {}), "source": source}}))
        page = write_report(tmp_path / "run").read_text()
        assert "Return by episode" in page and (
            "source" in page.split("Return by episode")[1].split("</figcaption>")[0]
        ) == bool(words)
        assert all(word in page for word in words)
