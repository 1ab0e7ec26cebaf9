"""new and claim: a system started from the skeleton, in a package of one's own, trains, passes its laws and tests its claim."""

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from foretoken.cli import new, skeleton
from foretoken.core import catalogue
from foretoken.testing import check_method, check_system
from foretoken.testing.stores import SPECS


@pytest.fixture
def own_package(tmp_path, monkeypatch) -> Iterator[Path]:
    """A package `own_systems` that counts as installed, with its entry point."""
    about = tmp_path / "own_systems-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: own-systems\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text("[foretoken.systems]\nown_systems = own_systems\n")
    (tmp_path / "own_systems").mkdir()
    (tmp_path / "own_systems" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "own_systems"
    for name in [name for name in sys.modules if name.split(".")[0] == "own_systems"]:
        del sys.modules[name]


def test_new_writes_a_system_that_trains(own_package, store, foretoken) -> None:
    answer = foretoken("new", "offline", "quick_cloner", "--into", own_package)
    assert answer.code == 0 and str(own_package / "offline" / "quick_cloner.py") in answer.out
    assert "Quick Cloner" in foretoken("show", "quick-cloner").out
    settings = ("--source.store", store, "--training.updates", 2, "--training.evaluate-every", 2)
    answer = foretoken("train", "quick_cloner", "smoke", *settings, "--out", "run")
    assert answer.code == 0, answer.err
    assert foretoken("evaluate", "run", "--episodes", 1).code == 0
    answer = foretoken("evaluate", "run", "--targets", "5")
    assert answer.code == 2 and "takes no --targets" in answer.err


@pytest.mark.parametrize("kind", SPECS)
def test_the_skeleton_passes_the_laws_of_methods(kind) -> None:
    check_method(skeleton.smoke().system, SPECS[kind], acting="streaming")


def test_the_skeleton_passes_the_laws_of_systems(own_package, foretoken) -> None:
    told = foretoken("new", "offline", "quick_cloner", "--into", own_package).out.splitlines()[-1]
    assert told.startswith('python -c "from foretoken')
    exec(shlex.split(told)[2], {})
    check_system(catalogue.find("quick_cloner"))


def test_names_follow_the_name() -> None:
    text = new.skeleton("quick_2_cloner")
    assert 'title="Quick 2 Cloner"' in text and 'key="quick-2-cloner"' in text and "class Quick2Cloner(Method)" in text
    assert "My" not in text.split("CARD")[0] and "MySystem" not in text
    compile(text, "quick_2_cloner.py", "exec")


def test_in_a_checkout_it_goes_to_the_catalogue(tmp_path, monkeypatch, foretoken) -> None:
    systems = tmp_path / "src" / "foretoken" / "systems"
    systems.mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(new.catalogue, "__file__", str(systems.parent / "core" / "catalogue.py"))
    answer = foretoken("new", "memory", "recaller")
    assert answer.code == 0 and (systems / "memory" / "recaller.py").is_file()
    assert (systems / "memory" / "__init__.py").is_file() and "pyproject.toml" not in answer.out


def test_elsewhere_it_goes_to_a_package_and_says_how_to_install_it(foretoken) -> None:
    answer = foretoken("new", "memory", "recaller")
    assert Path("my_systems/memory/recaller.py").is_file()
    assert 'my_systems = "my_systems"' in answer.out and "pip install -e ." in answer.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("ofline", "x"), "did you mean 'offline'"),
        (("offline", "Big Name"), "'Big Name'"),
        (("offline", "class"), "'class'"),
        (("offline", "2fast"), "'2fast'"),
        (("offline", "decision_transformer"), "taken by"),
        (("offline", "dt"), "taken by"),
        (("offline",), "name"),
    ],
)
def test_what_new_refuses(words, told, foretoken) -> None:
    answer = foretoken("new", *words)
    assert answer.code == 2 and told in answer.err and not any(Path().iterdir())


def test_new_overwrites_nothing(foretoken) -> None:
    assert foretoken("new", "offline", "recaller").code == 0
    answer = foretoken("new", "offline", "recaller")
    assert answer.code == 2 and "exists" in answer.err


@pytest.fixture
def tiny_claim(own_package, store, foretoken) -> str:
    """A system whose claim takes seconds."""
    foretoken("new", "offline", "quick_cloner", "--into", own_package)
    file = own_package / "offline" / "quick_cloner.py"
    text = file.read_text().replace('Offline(store="hopper-mixed")', f'Offline(store="{store}")')
    head, tail = text.split("def claim()")
    tail = tail.replace("run = cpu()", "run = smoke()").replace("seeds=(0, 1, 2)", "seeds=(0, 1)")
    file.write_text(
        head.replace("updates=20,", "updates=2,").replace("evaluate_every=20", "evaluate_every=2")
        + "def claim()"
        + tail
    )
    return "quick_cloner"


def test_claim_makes_the_same_of_runs_side_by_side(tiny_claim, tmp_path, foretoken) -> None:
    words = ("claim", tiny_claim, "--seeds", "1", "--quiet", "--json")
    one, two = (
        foretoken(*words, "--workers", workers, "--out", tmp_path / f"{workers}-at-a-time") for workers in (1, 2)
    )
    assert (one.code, two.code) == (0, 0), two.err
    first, second = json.loads(one.out), json.loads(two.out)
    assert first["arms"] == second["arms"] and (first["workers"], second["workers"]) == (1, 2)
    assert second["wall_minutes"] is not None
    begun, ended = (line for line in two.err.splitlines() if "arm trained, seed 1" in line)
    assert begun.endswith("seed 1") and ended.endswith(" minutes")


def test_claim_records_its_verdict_and_goes_on_where_it_stopped(tiny_claim, tmp_path, foretoken) -> None:
    answer = foretoken("claim", tiny_claim, "--seeds", "1", "--quiet", "--workers", 1)
    assert answer.code == 0, answer.err
    record = json.loads((tmp_path / "results" / "quick-cloner.json").read_text())
    assert record["verdict"] in ("holds", "does not hold") and f"Claim: {record['verdict']}" in answer.out
    assert set(record["arms"]) == {"trained", "untrained"} and record["arms"]["trained"]["seeds"] == [1]
    assert foretoken("list").out.count(record["verdict"]) >= 1
    answer = foretoken("claim", tiny_claim, "--quiet", "--json", "--workers", 1)
    assert json.loads(answer.out)["arms"]["trained"]["seeds"] == [0, 1]
    assert "seed 1 (done before)" in answer.err and "seed 0 (done before)" not in answer.err
    run_file = next(tmp_path.rglob("trained/seed-1/run.json"))
    run_file.write_text(run_file.read_text().replace('"updates": 2', '"updates": 3'))
    answer = foretoken("claim", tiny_claim, "--quiet")
    assert answer.code == 2 and "other settings" in answer.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("decision_transfomer",), "did you mean"),
        (("dt", "--seeds", "a"), "'a'"),
        (("dt", "--seeds", ","), "needs whole numbers separated by commas, got ','"),
    ],
)
def test_what_claim_refuses(words, told, foretoken) -> None:
    answer = foretoken("claim", *words)
    assert answer.code == 2 and told in answer.err


def test_a_system_without_claim_is_told_so(own_package, foretoken) -> None:
    (own_package / "offline").mkdir()
    (own_package / "offline" / "bare.py").write_text(
        'from foretoken.core import Card\n\nCARD = Card(key="bare", title="Bare", paper="", claim="", stream="")\n'
    )
    assert catalogue.find("bare").name == "bare"
    answer = foretoken("claim", "bare")
    assert answer.code == 2 and "bare has no claim" in answer.err
