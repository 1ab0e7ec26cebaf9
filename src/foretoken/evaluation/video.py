"""Videos of evaluated episodes: replayed from reset seed and recorded actions, checked, written as MP4.

Evaluation runs without rendering, so an episode is played again for its video. That the replay earns the recorded return
is checked; a film of something else is refused. Without OpenGL, MuJoCo environments are drawn by `evaluation/sketch.py`;
others have no video, and the index says why. Videos never end a run.

    evaluations/update-00005000.json    the episodes
    videos/update-00005000-best.mp4, ...-median.mp4, ...-worst.mp4
    videos/index.json    {"format": "foretoken-videos", "version": 1, "videos": [...], "missing": "why there are none"}
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from fractions import Fraction
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import gymnasium
import numpy as np

from foretoken.core.errors import DataError, ForetokenError
from foretoken.evaluation.sketch import Sketch

if TYPE_CHECKING:
    from foretoken.evaluation.rollout import EpisodeResult

Renderer = Literal["auto", "opengl", "sketch"]
_FORMAT, _VERSION = "foretoken-videos", 1
_MAX_FPS = 32
_log = logging.getLogger(__name__)


class CannotRender(ForetokenError, RuntimeError):
    """No picture of this environment can be made on this machine; the message says what would mend it."""


@dataclass(frozen=True)
class Recording:
    """A replayed episode: `frames` (N, height, width, 3) uint8 at `fps`, and what the whole replay came to."""

    frames: np.ndarray
    fps: Fraction
    total: float
    length: int
    renderer: str
    shown: int
    """Steps that the frames cover; fewer than `length` where the film was cut."""


@dataclass(frozen=True)
class Video:
    """One line of `index.json`. `file` is relative to the index, `evaluation` the name of the file it is of, `seconds` its length."""

    name: str
    file: str
    evaluation: str
    update: int
    episode: int
    reset_seed: int
    target: float | None
    achieved: float
    length: int
    shown: int
    seconds: float
    renderer: str


def record_episode(
    environment: str | Callable[..., gymnasium.Env],
    reset_seed: int,
    actions: Sequence[Any] | np.ndarray | Callable[[Any], Any],
    *,
    expected: float | None = None,
    seconds: float = 15.0,
    renderer: Renderer = "auto",
    size: tuple[int, int] = (480, 320),
) -> Recording:
    """Plays one episode again and films it.

    Args:
        environment: Gymnasium id, or a function that makes the environment (called with `render_mode="rgb_array"` if it takes it).
        reset_seed: the seed the episode was reset with.
        actions: the recorded actions (n, ...), or a function from observation to action, asked until the episode ends.
        expected: return that the replay must earn (relative tolerance 1e-4); None leaves it unchecked.
        seconds: longest film. The rest of the episode is played, and counted, unseen.
        renderer: "opengl" (the environment's own pictures), "sketch" (lines; MuJoCo only), or "auto", the first that works.
        size: width and height of MuJoCo frames in pixels; other environments keep their own.

    Raises:
        CannotRender: no picture can be made here.
        DataError: the replay does not earn `expected`.
    """
    env, camera, used = _open(environment, reset_seed, renderer, size)
    rate = int(env.metadata.get("render_fps") or 30)
    stride = max(1, round(rate / _MAX_FPS))
    shots = max(1, int(seconds * rate / stride))
    frames, total, length = [camera()], 0.0, 0
    try:
        for reward, over in _play(env, reset_seed, actions):
            total, length = total + reward, length + 1
            if (length % stride == 0 or over) and len(frames) < shots:
                frames.append(camera())
    finally:
        _close(env)
    if expected is not None and not np.isclose(total, expected, rtol=1e-4, atol=1e-4):
        raise DataError(
            f"the replay from reset seed {reset_seed} must earn the recorded return {expected:.6g}, got {total:.6g}; "
            "the environment depends on more than its seed and actions, or its version changed since"
        )
    return Recording(
        np.stack(frames), Fraction(rate, stride), total, length, used, min(length, (len(frames) - 1) * stride)
    )


def write_video(path: Path, frames: np.ndarray, fps: Fraction | float, caption: str = "") -> Path:
    """Writes (N, height, width, 3) uint8 frames as H.264 in MP4 that browsers play; odd sides lose a pixel. Replaces `path` whole."""
    import av

    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise DataError(
            f"a video needs frames of shape (N >= 1, height, width, 3) and dtype uint8, got {frames.shape} {frames.dtype}"
        )
    height, width = (side // 2 * 2 for side in frames.shape[1:3])
    plate = _caption_plate(caption, width) if caption else None
    part = path.with_suffix(".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(part), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # One thread: the same frames always give the same file.
        stream.options = {"crf": "24", "preset": "veryfast", "threads": "1"}
        for frame in frames:
            picture = _with_plate(frame[:height, :width], plate)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())
    os.replace(part, path)
    return path


def write_videos(
    out: Path,
    environment: str | Callable[..., gymnasium.Env],
    results: "Sequence[EpisodeResult]",
    *,
    update: int,
    evaluation: str = "",
    renderer: Renderer = "auto",
    seconds: float = 15.0,
) -> list[Video]:
    """Films the best, the median and the worst episode of one evaluation into the folder `out`.

    Args:
        out: the run's `videos` folder; its `index.json` is extended, videos of the same evaluation are replaced.
        results: the evaluation's episodes, played with `keep_actions=True`.
        update: the update that was evaluated.
        evaluation: the name of the evaluation's file, without suffix; "" is that of training at this update.

    Returns:
        What was written. Where nothing could be filmed, [] and the reason in `index.json` and in the log.
    """
    evaluation = evaluation or f"update-{update:08d}"
    videos: list[Video] = []
    missing = ""
    for name, result in choose(results).items():
        file = out / f"{evaluation}-{name}.mp4"
        try:
            videos.append(_film(file, name, evaluation, environment, result, update, renderer, seconds))
        except ForetokenError as problem:
            missing = str(problem)
            _log.warning("no video of the %s episode: %s", name, problem)
            if isinstance(problem, CannotRender):
                break
    _write_index(out, evaluation, videos, missing)
    return videos


def choose(results: "Sequence[EpisodeResult]") -> "dict[str, EpisodeResult]":
    """Best, median (the lower of two) and worst by return, none twice; ties go to the earlier one."""
    order = sorted(results, key=lambda result: -result.total)
    picks = {"best": order[:1], "worst": order[-1:], "median": order[len(order) // 2 :][:1]}
    chosen: dict[str, EpisodeResult] = {}
    for name, found in picks.items():
        if found and not any(found[0] is other for other in chosen.values()):
            chosen[name] = found[0]
    return {name: chosen[name] for name in ("best", "median", "worst") if name in chosen}


def read_index(out: Path) -> dict[str, Any]:
    """The folder's `index.json`; an empty one where there is none."""
    path = out / "index.json"
    if not path.exists():
        return {"format": _FORMAT, "version": _VERSION, "videos": [], "missing": ""}
    index = json.loads(path.read_text(encoding="utf-8"))
    if index.get("format") != _FORMAT or index.get("version") != _VERSION:
        raise DataError(
            f"{path} must be a {_FORMAT} file of version {_VERSION}, got {index.get('format')!r} {index.get('version')!r}"
        )
    for video in index["videos"]:
        video.setdefault("evaluation", f"update-{video['update']:08d}")  # older files kept one evaluation of an update
    return index


def _film(
    file: Path,
    name: str,
    evaluation: str,
    environment: str | Callable[..., gymnasium.Env],
    result: "EpisodeResult",
    update: int,
    renderer: Renderer,
    seconds: float,
) -> Video:
    if result.actions is None:
        raise DataError("a video needs the episode's actions, and there are none; play it with keep_actions=True")
    seed, target = result.reset_seed, result.target
    taken = record_episode(environment, seed, result.actions, expected=result.total, seconds=seconds, renderer=renderer)
    told = f"achieved {result.total:,.1f}" if target is None else f"asked {target:,.0f}, achieved {result.total:,.0f}"
    cut = f" (first {taken.shown} of {taken.length} steps)" if taken.shown < taken.length else ""
    write_video(file, taken.frames, taken.fps, f"{name}: {told}{cut}")
    return Video(
        name=name,
        file=file.name,
        evaluation=evaluation,
        update=update,
        episode=result.episode,
        reset_seed=seed,
        target=target,
        achieved=result.total,
        length=taken.length,
        shown=taken.shown,
        seconds=round(float(len(taken.frames) / taken.fps), 2),
        renderer=taken.renderer,
    )


def _write_index(out: Path, evaluation: str, videos: list[Video], missing: str) -> None:
    kept = [video for video in read_index(out)["videos"] if video["evaluation"] != evaluation]
    index = {
        "format": _FORMAT,
        "version": _VERSION,
        "videos": kept + [asdict(video) for video in videos],
        "missing": missing,
    }
    out.mkdir(parents=True, exist_ok=True)
    part = out / "index.json.part"
    part.write_text(json.dumps(index, indent=1), encoding="utf-8")
    os.replace(part, out / "index.json")


def _open(
    environment: str | Callable[..., gymnasium.Env], reset_seed: int, renderer: Renderer, size: tuple[int, int]
) -> tuple[gymnasium.Env, Callable[[], np.ndarray], str]:
    """The environment, reset, a function that takes a picture of it, and which renderer that is."""
    reason = "the sketch was asked for"
    if renderer in ("auto", "opengl"):
        try:
            with _gl_backend():
                return (*_open_native(environment, reset_seed, size), "opengl")
        # A missing driver shows as anything: ImportError, AttributeError, GLError, FatalError.
        except Exception as problem:
            reason = f"its own renderer failed with {type(problem).__name__}: {problem}"
            if renderer == "opengl":
                raise CannotRender(f"{_title(environment)}: {reason}") from problem
    with _mujoco_without_gl():
        env = _make(environment, None)
    env.reset(seed=reset_seed)
    if not _is_mujoco(env):
        _close(env)
        if isinstance(environment, str) and "rgb_array" not in (env.metadata.get("render_modes") or ()):
            raise CannotRender(f"{environment} draws no pictures, and only MuJoCo environments can be sketched without")
        raise CannotRender(
            f"{_title(environment)} cannot be drawn here: {reason}; only MuJoCo environments can be sketched without it. "
            "Install what the environment's renderer needs (for OpenGL on a bare machine: libegl1, libgl1)"
        )
    inner: Any = env.unwrapped
    return env, Sketch(inner.model, inner.data, size).render, "sketch"


def _open_native(
    environment: str | Callable[..., gymnasium.Env], reset_seed: int, size: tuple[int, int]
) -> tuple[gymnasium.Env, Callable[[], np.ndarray]]:
    """The environment with its own renderer, proven by one picture."""
    env = _make(environment, "rgb_array")
    try:
        if _is_mujoco(env):
            _set_cheap_quality(env.unwrapped, size)
        env.reset(seed=reset_seed)
        picture = np.asarray(env.render())
        if picture.ndim != 3 or picture.shape[-1] != 3:
            raise CannotRender(f"render() must give (height, width, 3), got shape {picture.shape}")
    except BaseException:
        _close(env)
        raise
    return env, lambda: np.asarray(env.render(), dtype=np.uint8)


def _make(environment: str | Callable[..., gymnasium.Env], render_mode: str | None) -> gymnasium.Env:
    if isinstance(environment, str):
        from foretoken.envs.make import make

        return make(environment, render_mode=render_mode)
    takes = signature(environment).parameters
    if "render_mode" in takes or any(entry.kind is Parameter.VAR_KEYWORD for entry in takes.values()):
        return environment(render_mode=render_mode)
    return environment()


def _title(environment: str | Callable[..., gymnasium.Env]) -> str:
    return environment if isinstance(environment, str) else getattr(environment, "__name__", "the environment")


def _is_mujoco(env: gymnasium.Env) -> bool:
    return hasattr(getattr(env.unwrapped, "model", None), "geom_rbound")


def _set_cheap_quality(inner: Any, size: tuple[int, int]) -> None:
    """Frame size, and neither shadows nor mirrors: in software OpenGL they take six seventies of the time."""
    inner.model.vis.quality.offsamples, inner.model.vis.quality.shadowsize = 4, 0
    inner.model.mat_reflectance[:] = 0
    screen = inner.model.vis.global_
    screen.offwidth, screen.offheight = max(screen.offwidth, size[0]), max(screen.offheight, size[1])
    if hasattr(inner, "mujoco_renderer"):
        inner.mujoco_renderer.width, inner.mujoco_renderer.height = size


def _play(
    env: gymnasium.Env, reset_seed: int, actions: Sequence[Any] | np.ndarray | Callable[[Any], Any]
) -> Iterator[tuple[float, bool]]:
    """Reward and whether the episode is over, step by step, from an environment that was just reset."""
    observation, _ = env.reset(seed=reset_seed)
    step = 0
    while callable(actions) or step < len(actions):
        action = actions(observation) if callable(actions) else actions[step]
        observation, reward, terminated, truncated, _ = env.step(action)
        step += 1
        yield float(reward), bool(terminated or truncated)
        if terminated or truncated:
            return


def _close(env: gymnasium.Env) -> None:
    # A context whose driver failed half-way also fails to close.
    with suppress(Exception):
        env.close()


@contextmanager
def _gl_backend() -> Iterator[None]:
    """EGL, where nobody chose a backend and there is no display."""
    chosen = os.environ.get("MUJOCO_GL")
    bare = sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    with _environment(MUJOCO_GL="egl" if not chosen and bare else chosen):
        yield


@contextmanager
def _mujoco_without_gl() -> Iterator[None]:
    """MuJoCo refuses to be imported when the chosen OpenGL library is missing; physics needs none."""
    imported = "mujoco" in sys.modules
    with _environment(MUJOCO_GL=os.environ.get("MUJOCO_GL") if imported else "disable"):
        yield


@contextmanager
def _environment(**values: str | None) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    _set_environment(values)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _caption_plate(caption: str, width: int) -> np.ndarray:
    """The caption in white on black, (height, width, 3) uint8, small enough to fit."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    # Matplotlib's own font: Pillow's default cannot be scaled in older versions and lacks most letters.
    file = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    points = 15
    while points > 8 and ImageFont.truetype(file, points).getlength(caption) > width - 16:
        points -= 1
    plate = Image.new("RGB", (width, points + 11))
    ImageDraw.Draw(plate).text((8, 4), caption, font=ImageFont.truetype(file, points), fill="white")
    return np.asarray(plate)


def _with_plate(frame: np.ndarray, plate: np.ndarray | None) -> np.ndarray:
    """The frame with a darkened band and the caption along its upper edge."""
    if plate is None or len(plate) > len(frame):
        return frame
    picture = frame.copy()
    band = picture[: len(plate)]
    picture[: len(plate)] = np.maximum(band // 3, plate)
    return picture
