"""Imagined beside real: what a model of an environment expects of actions that were carried out, as an exhibit.

From a real history the recorded actions are imagined open-loop, and set against what came of them. Errors are root mean squares
over the entries of an observation, each in its own standard deviation, beside that of expecting no change.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from foretoken.core.batch import Batch
from foretoken.core.errors import DataError
from foretoken.core.exhibit import Exhibit, Line, Lines

See = Callable[[Batch], Tensor]
"""The observations of windows as vectors, (B, T, O)."""

Imagine = Callable[[Batch, int], tuple[Tensor, Tensor]]
"""Of windows (B, T) and how many of their steps are known: the observations (B, T - known, O) that are expected to follow, and
the rewards (B, T - known) of the actions that lead there."""

_PLACES, _STRETCHES, _ENTRIES = 8, 4, 4  # at most: windows of an episode, those drawn one after another, entries drawn


def imagined_and_real(episodes: Sequence[Batch], see: See, imagine: Imagine, known: int, horizon: int) -> Exhibit:
    """The error against the steps ahead, and the first episode's observations and rewards beside those imagined.

    Raises:
        DataError: no episode has the `known` + `horizon` steps that are read and imagined.
    """
    length = known + horizon
    long = [episode for episode in episodes if episode.valid.shape[1] >= length]
    if not long:
        raise DataError(f"no episode has the {length} steps that are read and imagined")
    windows = [_windows(episode, length, _spaced(episode, length)) for episode in long]
    seen_WTO, imagined_WHO = torch.cat([see(w) for w in windows]), torch.cat([imagine(w, known)[0] for w in windows])
    real_WHO = seen_WTO[:, known:]
    scale_O = real_WHO.flatten(0, 1).std(0, correction=0).clamp(min=1e-6)
    miss_WHO, still_WHO = (imagined_WHO - real_WHO) / scale_O, (seen_WTO[:, known - 1 : known] - real_WHO) / scale_O
    growth, mean_H = _growth(_size(miss_WHO), _size(still_WHO))
    worst = miss_WHO.square().mean((0, 1)).topk(min(_ENTRIES, len(scale_O))).indices.sort().values.tolist()
    some = f", the {_ENTRIES} entries imagined worst" if len(scale_O) > _ENTRIES else ""
    says = (
        f"After {known} real step{'s' * (known > 1)} the next {horizon} are imagined under the actions that were carried out, then "
        f"anew from what was real{some}. The error is {mean_H[0]:.2g} standard deviations one step ahead and {mean_H[-1]:.2g} after "
        f"{horizon} (mean of {len(miss_WHO)} places in {len(long)} episode{'s' * (len(long) > 1)})."
    )
    panels = (growth, *_beside(long[0], see, imagine, known, horizon, worst))
    return Exhibit(title="Imagined and real", says=says, panels=panels)


def _size(miss_WHO: Tensor) -> Tensor:
    return miss_WHO.square().mean(-1).sqrt()


def _growth(error_WH: Tensor, still_WH: Tensor) -> tuple[Lines, Tensor]:
    """The curves of errors with the model's 95 % interval over places, and the (H,) means."""
    mean_H = error_WH.mean(0)
    half_H = 1.96 * error_WH.std(0, correction=0) / max(1, len(error_WH) - 1) ** 0.5
    ahead_H = torch.arange(1, len(mean_H) + 1)
    model = Line(label="the model", x=ahead_H, y=mean_H, low=mean_H - half_H, high=mean_H + half_H)
    still = Line(label="no change", x=ahead_H, y=still_WH.mean(0), look="dashed")
    return Lines(x="steps ahead", y="error (standard deviations)", lines=(model, still)), mean_H


def _beside(
    episode: Batch, see: See, imagine: Imagine, known: int, horizon: int, entries: Sequence[int]
) -> tuple[Lines, ...]:
    """Entries of observations, and the reward, over stretches of an episode that are imagined one after another."""
    start_W = torch.arange(0, episode.valid.shape[1] - known - horizon + 1, horizon)[:_STRETCHES]
    imagined_WHO, earned_WH = imagine(_windows(episode, known + horizon, start_W), known)
    end = known + horizon * len(start_W)
    real_TO = see(episode)[0, :end]

    def panel(name: str, real_T: Tensor, guess_WH: Tensor, first: int) -> Lines:
        at_WH = first + torch.arange(guess_WH.numel()).view_as(guess_WH)
        real = Line(label="real", x=torch.arange(known - 1, len(real_T)), y=real_T[known - 1 :])
        guesses = zip(at_WH, guess_WH, strict=True)
        lines = [Line(label="imagined", x=at_H, y=guess_H, look="dashed") for at_H, guess_H in guesses]
        return Lines(x="step", y=name, lines=(real, *lines))

    panels = [panel(f"observation {entry}", real_TO[:, entry], imagined_WHO[..., entry], known) for entry in entries]
    return (*panels, panel("reward", episode.reward[0, : end - 1], earned_WH, known - 1))


def _spaced(episode: Batch, length: int) -> Tensor:
    return torch.linspace(0, episode.valid.shape[1] - length, _PLACES).round().long().unique()


def _windows(episode: Batch, length: int, start_W: Tensor) -> Batch:
    """Windows (W, length, ...) of an episode."""
    at_WT = start_W[:, None] + torch.arange(length)
    return Batch({name: episode[name][0, at_WT] for name in ("observation", "action", "reward", "valid")})
