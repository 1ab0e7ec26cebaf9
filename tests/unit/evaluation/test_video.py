import logging
import os
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import gymnasium
import numpy as np
import pytest

from foretoken.core.errors import DataError
from foretoken.evaluation import video
from foretoken.evaluation.rollout import EpisodeResult
from foretoken.evaluation.video import CannotRender, choose, read_index, record_episode, write_video, write_videos

av = pytest.importorskip("av")
pytest.importorskip("mujoco")


class Counter(gymnasium.Env):
    """Rewards the action; ends after five steps; has no picture."""

    observation_space = gymnasium.spaces.Box(0, 9, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        return np.full(1, self.count, np.float32), float(action[0]), self.count == 5, False, {}


class Striped(Counter):
    """The same with pictures of an odd size, 30 a second, 120 steps a second."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 120}  # noqa: RUF012

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def render(self):
        picture = np.zeros((91, 121, 3), np.uint8)
        picture[:, : 20 * (self.count + 1)] = 255
        return picture


def played(environment, seed, steps=6):
    """An episode of random actions: (actions, return)."""
    env = gymnasium.make(environment)
    env.action_space.seed(seed)
    env.reset(seed=seed)
    actions = [env.action_space.sample() for _ in range(steps)]
    return np.stack(actions), sum(float(env.step(action)[1]) for action in actions)


def frames_of(file):
    with av.open(str(file)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("environment", ["HalfCheetah-v5", "Hopper-v5", "Ant-v5", "Reacher-v5"])
def test_a_sketch_needs_no_opengl_and_shows_motion(environment):
    actions, total = played(environment, 3, 12)
    taken = record_episode(environment, 3, actions, expected=total, renderer="sketch", size=(240, 160))
    assert taken.renderer == "sketch"
    assert taken.frames.shape[1:] == (160, 240, 3) and taken.frames.dtype == np.uint8
    assert taken.length == 12 and taken.total == pytest.approx(total)
    assert len(np.unique(taken.frames[0].reshape(-1, 3), axis=0)) > 5
    assert (taken.frames[0] != taken.frames[-1]).any()


def test_opengl_pictures_where_they_can_be_had():
    actions, total = played("HalfCheetah-v5", 1, 3)
    try:
        taken = record_episode("HalfCheetah-v5", 1, actions, expected=total, renderer="opengl", size=(160, 120))
    except CannotRender as problem:
        pytest.skip(f"no OpenGL here: {problem}")
    assert taken.frames.shape == (4, 120, 160, 3) and taken.fps == 20
    assert taken.frames.std() > 10


def test_a_broken_driver_falls_back_to_the_sketch():
    script = (
        "import numpy as np; from foretoken.evaluation.video import record_episode\n"
        "taken = record_episode('Hopper-v5', 0, np.zeros((2, 3), np.float32), size=(96, 64)); print(taken.renderer)"
    )
    surroundings = os.environ | {"MUJOCO_GL": "no-such-backend"}
    done = subprocess.run([sys.executable, "-c", script], env=surroundings, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "sketch", done.stderr


def test_an_environment_without_pictures_says_so():
    with pytest.raises(CannotRender, match=r"Counter cannot be drawn here.*only MuJoCo"):
        record_episode(Counter, 0, np.ones((5, 1)))
    with pytest.raises(CannotRender, match="Counter cannot be drawn here: the sketch was asked for"):
        record_episode(Counter, 0, np.ones((5, 1)), renderer="sketch")


def test_a_world_that_draws_nothing_says_so():
    with pytest.raises(CannotRender, match="foretoken/TMaze-Mixed-30-v0 draws no pictures"):
        record_episode("foretoken/TMaze-Mixed-30-v0", 0, np.ones(5, int))


def test_another_return_than_the_recorded_one_is_refused():
    with pytest.raises(DataError, match="reset seed 7 must earn the recorded return 4, got 5"):
        record_episode(Striped, 7, np.ones((5, 1)), expected=4.0)


def test_a_function_may_choose_the_actions():
    taken = record_episode(Striped, 0, lambda observation: observation)
    assert taken.total == 0 + 1 + 2 + 3 + 4 and taken.length == 5


def test_frames_keep_real_time_and_films_are_cut():
    # 120 steps a second become 30 frames a second: the start, step 4 and the last step.
    whole = record_episode(Striped, 0, np.ones((5, 1)))
    assert whole.fps == 30 and len(whole.frames) == 3 and whole.shown == 5
    cut = record_episode(Striped, 0, np.ones((5, 1)), seconds=0.04)
    assert len(cut.frames) == 1 and cut.shown == 0 and cut.total == 5


def test_videos_play_back_and_are_the_same_every_time(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (5, 63, 101, 3)).astype(np.uint8)
    one, two = (write_video(tmp_path / name, frames, Fraction(125, 4), "asked 10") for name in ("a.mp4", "b.mp4"))
    assert one.read_bytes() == two.read_bytes()
    assert frames_of(one).shape == (5, 62, 100, 3)
    with av.open(str(one)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == Fraction(125, 4)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_the_caption_is_drawn_at_the_top(tmp_path):
    frames = np.full((2, 120, 160, 3), 240, np.uint8)
    plain, told = (
        frames_of(write_video(tmp_path / "a.mp4", frames, 10)),
        frames_of(write_video(tmp_path / "b.mp4", frames, 10, "x" * 200)),
    )
    assert plain[0, :12].mean() > 200 > told[0, :12].mean()
    assert told[0, -60:].mean() > 200


def test_what_are_no_frames_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"uint8, got \(2, 8, 8\) float64"):
        write_video(tmp_path / "a.mp4", np.zeros((2, 8, 8)), 10)


def result(episode, pay, target=None):
    """A five-step episode whose actions are all `pay`."""
    actions = np.full((5, 1), pay)
    return EpisodeResult(
        target=target, episode=episode, reset_seed=episode, total=float(actions.sum()), length=5, actions=actions
    )


def test_best_median_and_worst_are_chosen_without_repeats():
    def names(*pays):
        return {name: chosen.total / 5 for name, chosen in choose([result(0, pay) for pay in pays]).items()}

    assert names(3.0, 1.0, 2.0, 5.0, 4.0) == {"best": 5.0, "median": 3.0, "worst": 1.0}
    assert names(3.0, 1.0) == {"best": 3.0, "worst": 1.0}
    assert names(3.0) == {"best": 3.0}
    assert names() == {}


def test_the_index_keeps_other_updates_and_replaces_its_own(tmp_path):
    results = [result(0, 0.0, 9.0), result(1, 1.0, 9.0), result(2, 0.5, 9.0)]
    write_videos(tmp_path, Striped, results, update=10)
    videos = write_videos(tmp_path, Striped, results, update=20)
    write_videos(tmp_path, Striped, results, update=20)
    assert [(v.name, v.episode, v.achieved) for v in videos] == [
        ("best", 1, 5.0),
        ("median", 2, 2.5),
        ("worst", 0, 0.0),
    ]
    index = read_index(tmp_path)
    assert [(v["update"], v["file"]) for v in index["videos"][:4]] == [
        (10, "update-00000010-best.mp4"),
        (10, "update-00000010-median.mp4"),
        (10, "update-00000010-worst.mp4"),
        (20, "update-00000020-best.mp4"),
    ]
    assert len(index["videos"]) == 6
    assert all((tmp_path / entry["file"]).exists() for entry in index["videos"])


def test_videos_never_end_a_run(tmp_path, caplog):
    good = result(0, 1.0)
    with caplog.at_level(logging.WARNING, logger=video.__name__):
        assert write_videos(tmp_path, Counter, [good], update=1) == []
        assert write_videos(tmp_path, Striped, [replace(good, actions=None)], update=2) == []
        assert write_videos(tmp_path, Striped, [replace(good, total=3.0)], update=3) == []
    assert "only MuJoCo" in caplog.text and "keep_actions=True" in caplog.text
    assert "recorded return 3" in read_index(tmp_path)["missing"]


def test_a_foreign_index_is_refused(tmp_path):
    (tmp_path / "index.json").write_text('{"format": "something"}')
    with pytest.raises(DataError, match=r"index.json must be a foretoken-videos file of version 1, got 'something'"):
        read_index(tmp_path)
