"""Makes an embedded dataset from full ones: every k-th episode by return, so that each slice keeps the spread of its whole.

    python scripts/slice_locomotion.py LOCOMOTION_FOLDER hopper src/foretoken/data/embedded/hopper-mixed \
        medium-replay=400 medium=60 expert=40
    python scripts/slice_locomotion.py LOCOMOTION_FOLDER halfcheetah src/foretoken/data/embedded/halfcheetah-expert-10 expert=10

LOCOMOTION_FOLDER holds `foretoken/<task>/<kind>-v0` as Minari datasets (HDF5).
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np


def main(source: Path, task: str, out: Path, take: Mapping[str, int]) -> None:
    """Copies so many episodes of each kind, compressed, with what they came from as attributes."""
    (out / "data").mkdir(parents=True, exist_ok=True)
    number = steps = 0
    with h5py.File(out / "data" / "main_data.hdf5", "w", libver="latest") as target:
        for kind, count in take.items():
            folder = source / "foretoken" / task / f"{kind}-v0" / "data"
            with h5py.File(folder / "main_data.hdf5") as whole:
                returns = np.array([whole[f"episode_{i}"]["rewards"][:].sum() for i in range(len(whole))])
                ranks = np.linspace(0, len(returns) - 1, count).round().astype(int)
                for i in sorted(np.argsort(returns)[ranks]):
                    copy_episode(whole[f"episode_{i}"], target.create_group(f"episode_{number}"), number, kind)
                    steps += len(whole[f"episode_{i}"]["rewards"])
                    number += 1
            metadata = json.loads((folder / "metadata.json").read_text())
    metadata |= {
        "total_episodes": number,
        "total_steps": steps,
        "dataset_id": f"foretoken/{task}/{out.name.removeprefix(task + '-')}-v0",
        "algorithm_name": "SAC (sbx-rl), seed 0",
        "description": f"Slices of {' and '.join(', '.join(take).rsplit(', ', 1))}; see README.md.",
        "dataset_size": round((out / "data" / "main_data.hdf5").stat().st_size / 1e6, 1),
    }
    (out / "data" / "metadata.json").write_text(json.dumps(metadata, indent=1) + "\n")


def copy_episode(source: h5py.Group, target: h5py.Group, number: int, kind: str) -> None:
    for name in ("observations", "actions", "rewards", "terminations", "truncations"):
        target.create_dataset(name, data=source[name][:], compression="gzip", compression_opts=9, shuffle=True)
    target.create_group("infos")
    target.attrs.update(id=number, total_steps=len(source["rewards"]), behaviour=kind)


if __name__ == "__main__":
    folder, task, out, *kinds = sys.argv[1:]
    main(Path(folder), task, Path(out), {kind: int(count) for kind, count in (word.split("=") for word in kinds)})
