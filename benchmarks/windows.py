"""Windows of 20 steps out of recorded episodes, in batches of 64: how many per second each library draws.

A batch holds observation, action, reward, return to go and timestep of every step, as far as the library gives them.
"""

import os
import tempfile
from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import torch

from benchmarks import floors
from benchmarks.made import ACTION, OBSERVATION, Data
from benchmarks.report import Job, Table, skipped
from benchmarks.rounds import Contestant, Maker, Settings, calls, compete
from foretoken.core.spec import Window
from foretoken.data import WindowSampler
from foretoken.training.sources import Offline

CONTEXT, BATCH, BLOCK = 20, 64, 16
COLUMNS = ("observation", "action", "reward", "return_to_go")
STEP_BYTES = 4 * (OBSERVATION + ACTION + 2) + 8  # the four columns, and the timestep


def run(data: Data, settings: Settings, *, full: bool) -> Job:
    """The whole job."""
    makers = [
        Maker(ours, (data,)),
        Maker(torchrl, (data,), ("torchrl",)),
        Maker(d3rlpy, (data,), ("d3rlpy",)),
        Maker(minari, (data,), ("minari",)),
    ]
    scores = compete(makers, settings)
    rate = floors.copy_rate()
    note = f"Floor: {CONTEXT * STEP_BYTES} bytes per window at {rate / 1e9:.1f} GB/s, copied by one thread from memory to memory."
    table = Table(
        "Batches of 64",
        scores,
        floor=CONTEXT * STEP_BYTES / rate,
        unit="windows",
        target=10.0,
        note=note,
        complete=not skipped(makers),
    )
    return Job("Windows", __doc__ or "", [table], skipped(makers))


def ours(data: Data) -> Iterator[Contestant]:
    """One batch per call out of the source, as the training loop draws them; then the bare sampler, one batch a call and many."""
    window, seeds = Window(length=CONTEXT, columns=COLUMNS), count()
    source = Offline(store=str(data.store.path), held_out=0.0).build(batch_size=BATCH, seed=0)
    batch = source.draw("data", window, next(seeds))
    assert batch.observation.shape == (BATCH, CONTEXT, OBSERVATION) and batch.return_to_go.shape == (BATCH, CONTEXT)
    yield Contestant("foretoken", calls(lambda: source.draw("data", window, next(seeds))), BATCH, ours=True)
    sampler = WindowSampler(data.store, window)
    single = calls(lambda: sampler.draw(BATCH, next(seeds)))
    yield Contestant("foretoken, any seed, nothing drawn ahead", single, BATCH, ours=True)
    blocked = calls(lambda: sampler.draw_block(BATCH, [next(seeds) for _ in range(BLOCK)]))
    yield Contestant(f"foretoken, {BLOCK} batches per call", blocked, BATCH * BLOCK, ours=True)


def torchrl_buffer(data: Data, batch: int, context: int) -> Any:
    """TorchRL's memory-mapped storage with slices of `context` steps, which knows the ends of episodes beforehand."""
    from tensordict import TensorDict
    from torchrl.data import LazyMemmapStorage, SliceSampler, TensorDictReplayBuffer

    flat = {name: torch.from_numpy(column) for name, column in data.arrays.items()}
    steps = len(flat["reward"])
    table = TensorDict(
        {
            "observation": flat["observation"],
            "action": flat["action"],
            "return_to_go": flat["return_to_go"][:, None] / 1000,
            "timestep": flat["timestep"],
            "next": {"reward": flat["reward"][:, None], "done": flat["done"][:, None]},
        },
        batch_size=[steps],
    )
    buffer = TensorDictReplayBuffer(
        storage=LazyMemmapStorage(steps, scratch_dir=tempfile.mkdtemp(dir=data.folder)),
        sampler=SliceSampler(slice_len=context, end_key=("next", "done"), cache_values=True),
        batch_size=batch * context,
    )
    buffer.extend(table)
    return buffer


def torchrl(data: Data) -> Iterator[Contestant]:
    buffer = torchrl_buffer(data, BATCH, CONTEXT)
    sample = buffer.sample()
    assert sample["observation"].shape == (BATCH * CONTEXT, OBSERVATION)
    note = "slices never reach the end of an episode padded, so short windows are not drawn"
    yield Contestant("TorchRL SliceSampler, memory-mapped", calls(buffer.sample), BATCH, note=note)


def d3rlpy_data(data: Data) -> Any:
    """d3rlpy's replay buffer of all episodes."""
    from d3rlpy.dataset import MDPDataset

    flat = data.arrays
    return MDPDataset(flat["observation"], flat["action"], flat["reward"], flat["done"].astype(np.float32))


def d3rlpy(data: Data) -> Iterator[Contestant]:
    buffer = d3rlpy_data(data)
    assert buffer.sample_trajectory_batch(BATCH, CONTEXT).observations.shape == (BATCH, CONTEXT, OBSERVATION)
    note = "numpy arrays, not yet tensors"
    yield Contestant(
        "d3rlpy sample_trajectory_batch",
        calls(lambda: buffer.sample_trajectory_batch(BATCH, CONTEXT)),
        BATCH,
        note=note,
    )


def minari(data: Data) -> Iterator[Contestant]:
    """Minari draws whole episodes from its file; a window is cut from each, and its return to go summed."""
    dataset, rng = minari_dataset(data), np.random.default_rng(0)

    def batch() -> dict[str, np.ndarray]:
        rows: list[tuple[np.ndarray, ...]] = []
        for episode in dataset.sample_episodes(BATCH):
            first = rng.integers(len(episode) - CONTEXT + 1)
            steps = slice(first, first + CONTEXT)
            togo = np.cumsum(episode.rewards[first:][::-1])[::-1][:CONTEXT]
            parts = (
                episode.observations[steps],
                episode.actions[steps],
                episode.rewards[steps],
                togo,
                np.arange(first, first + CONTEXT),
            )
            rows.append(parts)
        return {
            name: np.stack(column) for name, column in zip((*COLUMNS, "timestep"), zip(*rows, strict=True), strict=True)
        }

    assert batch()["observation"].shape == (BATCH, CONTEXT, OBSERVATION)
    yield Contestant(
        "Minari sample_episodes, a window cut from each", calls(batch), BATCH, note="HDF5; no window shorter than 20"
    )


def minari_dataset(data: Data) -> Any:
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(data.folder / "minari")
    try:
        return _made_by_minari(data)
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before


def _made_by_minari(data: Data) -> Any:
    import gymnasium
    from minari import create_dataset_from_buffers, load_dataset
    from minari.data_collector import EpisodeBuffer

    if (data.folder / "minari" / "benchmark").exists():
        return load_dataset("benchmark/made-v0")
    buffers = [
        EpisodeBuffer(
            id=number,
            observations=episode.observation,
            actions=episode.action,
            rewards=episode.reward,
            terminations=episode.terminated,
            truncations=episode.truncated,
        )
        for number, episode in enumerate(data.episodes())
    ]
    return create_dataset_from_buffers(
        "benchmark/made-v0",
        buffers,
        observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (OBSERVATION,), np.float32),
        action_space=gymnasium.spaces.Box(-1, 1, (ACTION,), np.float32),
    )
