"""collect and import."""

import json
from pathlib import Path

import numpy as np
import pytest

from foretoken.data import open_store


def test_collect_makes_a_store_and_says_how_minari_opens_it(store, foretoken) -> None:
    kept = open_store(store)
    assert kept.num_episodes == 4 and kept.spec.environment == "Pendulum-v1"
    answer = foretoken("collect", "CartPole-v1", "--episodes", 3)
    assert answer.code == 0 and "3 episodes" in answer.out and "minari.load_dataset" in answer.out
    assert open_store("stores/CartPole-v1-random").num_episodes == 3


def test_minari_opens_what_collect_wrote(foretoken, monkeypatch) -> None:
    minari = pytest.importorskip("minari", reason="needs the extra 'minari'")
    assert foretoken("collect", "CartPole-v1", "--episodes", 3, "--seed", 5).code == 0
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(Path("stores/CartPole-v1-random/minari").resolve()))
    dataset = minari.load_dataset("CartPole-v1-random-v0")
    kept = open_store("stores/CartPole-v1-random")
    for number, episode in enumerate(dataset.iterate_episodes()):
        np.testing.assert_array_equal(episode.actions, kept.episode(number).action)
        np.testing.assert_array_equal(episode.observations, kept.episode(number).observation)


def test_a_world_of_the_package_is_collected_with_its_copy(foretoken) -> None:
    answer = foretoken("collect", "foretoken/TMaze-Mixed-30-v0", "--episodes", 2, "--out", "maze")
    assert answer.code == 0, answer.err
    assert foretoken("import", "maze/minari/foretoken-TMaze-Mixed-30-v0-random-v0", "--out", "again").code == 0
    assert open_store("again").spec.environment == "foretoken/TMaze-Mixed-30-v0"


def test_minari_can_be_left_out_or_put_elsewhere(foretoken) -> None:
    foretoken("collect", "CartPole-v1", "--episodes", 1, "--out", "a", "--no-minari")
    foretoken("collect", "CartPole-v1", "--episodes", 1, "--out", "b", "--minari", "elsewhere")
    assert not Path("a/minari").exists() and not Path("b/minari").exists()
    assert Path("elsewhere/CartPole-v1-random-v0/data/main_data.hdf5").is_file()


def test_collect_with_a_run_asks_for_a_return(run, foretoken) -> None:
    answer = foretoken(
        "collect",
        "Pendulum-v1",
        "--policy",
        run,
        "--target",
        "-200",
        "--episodes",
        2,
        "--max-steps",
        10,
        "--out",
        "played",
    )
    assert answer.code == 0, answer.err
    assert open_store("played").about["target_return"] == -200.0 and open_store("played").num_actions == 20


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("Pendulm-v1",), "did you mean 'Pendulum-v1'"),
        (("Pendulum-v1", "--policy", "nowhere"), "nowhere is no run"),
        (("Pendulum-v1", "--target", "5"), "--policy RUN"),
        (("Pendulum-v1", "--episodes", "0"), "at least 1, got '0'"),
        (("Pendulum-v1", "--out", "full"), "full exists and is not empty"),
        (("Pendulum-v1", "--minari", "taken"), "taken/Pendulum-v1-random-v0 exists"),
    ],
)
def test_what_collect_refuses(words, told, foretoken) -> None:
    for folder in ("full", "taken/Pendulum-v1-random-v0"):
        Path(folder).mkdir(parents=True)
        (Path(folder) / "file").touch()
    answer = foretoken("collect", "--episodes", 1, *words)
    assert answer.code == 2 and told in answer.err and len(answer.err.splitlines()) <= 3
    assert not Path("stores").exists()


def test_collect_refuses_a_run_of_another_environment(run, foretoken) -> None:
    answer = foretoken("collect", "CartPole-v1", "--policy", run, "--episodes", 1)
    assert answer.code == 2 and "CartPole-v1" in answer.err


def test_import_says_what_it_found(store, foretoken) -> None:
    dataset = store / "minari" / "Pendulum-v1-random-v0"
    answer = foretoken("import", dataset)
    assert answer.code == 0 and "summary" in answer.out and "4 episodes" in answer.out
    assert "stores/Pendulum-v1-random-v0" in answer.out
    assert open_store("stores/Pendulum-v1-random-v0").num_episodes == 4


@pytest.mark.parametrize("inside", ["data", "data/main_data.hdf5"])
def test_import_names_the_store_after_the_dataset(inside, store, foretoken) -> None:
    tree = json.loads(foretoken("import", store / "minari" / "Pendulum-v1-random-v0" / inside, "--json").out)
    assert tree["store"] == "stores/Pendulum-v1-random-v0" and tree["findings"][0]["code"] == "summary"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("nowhere",), "nowhere does not exist"),
        (("file.txt",), "file.txt is of no known format"),
        (("file.txt", "--format", "minary"), "did you mean 'minari'"),
        (("file.txt", "--action-bounds", "1"), "--action-bounds needs a lowest and a highest"),
        (("file.txt", "--action-bounds", "1,-1"), "must be a lowest and a higher action, got (1.0, -1.0)"),
        (("file.txt", "--max-episode-steps", "-5"), "at least 0, got '-5'"),
        (("file.txt", "--out", "full"), "full exists and is not empty"),
        (("file.txt", "--out", "full"), "--overwrite"),
        (("void",), "the folder is empty"),
        (("sets",), "one dataset is needed: give one of sets/a.npz, sets/b/c.hdf5, sets/d"),
    ],
)
def test_what_import_refuses(words, told, foretoken) -> None:
    Path("file.txt").write_text("nothing")
    Path("full").mkdir()
    for file in ("full/file", "sets/a.npz", "sets/b/c.hdf5", "sets/d/data/main_data.hdf5", "void"):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).touch() if file != "void" else Path(file).mkdir()
    answer = foretoken("import", *words)
    assert answer.code == 2 and told in answer.err and not Path("stores").exists()


def test_import_warns_of_an_environment_that_the_data_cannot_be_played_in(store, foretoken) -> None:
    dataset = store / "minari" / "Pendulum-v1-random-v0"
    for name, told in (
        ("Pendulm-v1", "did you mean 'Pendulum-v1'"),
        ("CartPole-v1", "(4,) in CartPole-v1"),
        ("Pendulum-v1", ""),
    ):
        found = json.loads(foretoken("import", dataset, "--environment", name, "--out", name, "--json").out)["findings"]
        warned = [finding["message"] for finding in found if finding["code"] == "environment"]
        assert (len(warned) == 1 and told in warned[0]) if told else not warned


def test_a_store_that_cannot_be_made_is_told(store, foretoken) -> None:
    Path("file").touch()
    answer = foretoken("import", store / "minari" / "Pendulum-v1-random-v0", "--out", "file/store")
    assert answer.code == 2 and "no store can be made at file/store" in answer.err and "another path" in answer.err


def test_import_is_told_what_ends_an_episode(foretoken) -> None:
    import h5py

    place = np.cumsum(np.full((40, 2), 0.1), axis=0)
    place[20:] -= place[20]
    with h5py.File("ant.hdf5", "w") as file:
        rows = {"observations": place, "actions": np.zeros((40, 1)), "rewards": np.zeros(40)}
        for name, values in (rows | {"terminals": np.arange(40) == 5, "timeouts": np.zeros(40, bool)}).items():
            file[name] = values
    assert foretoken("import", "ant.hdf5").code == 0 and open_store("stores/ant").num_episodes == 2
    answer = foretoken("import", "ant.hdf5", "--ends", "timeouts, jumps", "--out", "cut")
    assert answer.code == 0 and "cut-at-jumps" in answer.out and "terminals-inside" in answer.out
    assert open_store("cut").episodes["length"].tolist() == [19, 19]
    refused = foretoken("import", "ant.hdf5", "--ends", "timeout", "--out", "none")
    assert refused.code == 2 and "did you mean 'timeouts'" in refused.err and not Path("none").exists()
