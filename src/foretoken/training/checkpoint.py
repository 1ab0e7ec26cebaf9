"""Checkpoints: folders written whole or not at all, read without running code.

    <run>/checkpoints/update-00005000/   model.safetensors, optimiser.safetensors, [ema.safetensors, source.safetensors]
                                         state.json: written last, with size and SHA-256 of each other file
    <run>/checkpoints/best.json          which folder is the best so far, by which metric

A folder is filled under a temporary name, put on the disk and renamed, so a kill or a full disk at any moment leaves
the earlier checkpoints as they were. Tensors are safetensors files only; pickles are refused, never opened.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from foretoken.core.errors import CheckpointError
from foretoken.core.names import nearest

log = logging.getLogger(__name__)

FORMAT, VERSION = "foretoken-checkpoint", 1
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt")


def write_file(file: Path, data: bytes) -> None:
    """Writes `data` and returns when it is on the disk."""
    with file.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def replace_file(file: Path, data: bytes) -> None:
    """Writes `file` whole or not at all, replacing an older one."""
    partial = file.with_name(f".{file.name}.partial")
    write_file(partial, data)
    partial.replace(file)
    _sync_folder(file.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _json_bytes(tree: Any) -> bytes:
    return (json.dumps(tree, indent=1) + "\n").encode()


def to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The tensors as one safetensors file; those that share memory are written once each."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        kept = tensor.detach().cpu().contiguous()
        # safetensors refuses tied weights and views of one memory, so every further one is copied
        memory = kept.untyped_storage().data_ptr()
        apart[name] = kept.clone() if memory in seen else kept
        seen.add(memory)
    return safetensors.torch.save(apart)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Raises CheckpointError for pickles, broken and missing files."""
    file = Path(file)
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist{_pickle_beside(file)}")
    with file.open("rb") as data:
        head = data.read(9)
    if file.suffix in _PICKLES or (head.startswith((b"PK\x03\x04", b"\x80")) and head[8:9] != b"{"):
        raise CheckpointError(
            f"{file} is a pickle, which can run any code when it is opened; only safetensors files are read. "
            "Where you trust its origin, convert it with safetensors.torch.save_file(state_dict, file)"
        )
    try:
        return safetensors.torch.load_file(file)
    except (SafetensorError, OSError) as problem:
        raise CheckpointError(f"{file} is no whole safetensors file: {problem}") from None


def _pickle_beside(file: Path) -> str:
    found = [other.name for other in file.parent.glob("*") if other.suffix in _PICKLES] if file.parent.is_dir() else []
    return (
        f"; {found[0]} beside it is a pickle, which can run any code when it is opened and is never read"
        if found
        else ""
    )


def pack(tree: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """The tree as JSON values; its tensors and arrays go to `tensors` by path and leave a mark in their place."""
    if isinstance(tree, Tensor | np.ndarray):
        tensors[path] = torch.from_numpy(np.ascontiguousarray(tree)) if isinstance(tree, np.ndarray) else tree
        return {"tensor": path, "numpy": isinstance(tree, np.ndarray), "shape": list(tree.shape)}
    if isinstance(tree, Mapping):
        if not all(isinstance(key, str) for key in tree):
            raise CheckpointError(f"a state to be saved needs text keys, got {list(tree)[:3]} at {path!r}")
        return {"map": {key: pack(value, tensors, f"{path}/{key}") for key, value in tree.items()}}
    if isinstance(tree, list | tuple):
        return [pack(value, tensors, f"{path}/{i}") for i, value in enumerate(tree)]
    if isinstance(tree, np.generic):
        return tree.item()
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise CheckpointError(
        f"a state to be saved holds plain values, tensors and arrays, got {type(tree).__name__} at {path!r}"
    )


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The tree that `pack` took apart; tuples come back as lists."""
    if isinstance(tree, list):
        return [unpack(value, tensors) for value in tree]
    if not isinstance(tree, Mapping):
        return tree
    if "map" in tree:
        return {key: unpack(value, tensors) for key, value in tree["map"].items()}
    found = tensors[tree["tensor"]].reshape(tree["shape"])
    return found.numpy() if tree["numpy"] else found


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint; `state` is its state.json, whose sizes and hashes have been compared."""

    folder: Path
    state: Mapping[str, Any]

    @property
    def update(self) -> int:
        """Updates done."""
        return int(self.state["update"])

    def has(self, name: str) -> bool:
        return f"{name}.safetensors" in self.state["files"]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file, `name` without its suffix."""
        return read_tensors(self.folder / f"{name}.safetensors")

    def source(self) -> Any:
        """The state that the source saved."""
        return unpack(self.state["source"], self.tensors("source") if self.has("source") else {})


def folder_of(run: Path, update: int) -> Path:
    """Where the checkpoint after `update` updates lies."""
    return Path(run) / "checkpoints" / f"update-{update:08d}"


def save(
    run: Path, update: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], source: Any = None
) -> Path:
    """Writes one checkpoint whole or not at all, and returns its folder.

    Args:
        run: the run's folder.
        update: updates done.
        tensors: tensors by file name without suffix: "model", "optimiser", "ema".
        state: further JSON values for state.json.
        source: the source's state: plain values, tensors and arrays.

    Raises:
        CheckpointError: it could not be written (full disk, ...); earlier checkpoints are as they were.
    """
    folder = folder_of(run, update)
    partial = folder.with_name(f".{folder.name}.partial")
    arrays: dict[str, Tensor] = {}
    plain = pack(source, arrays)
    files = {**tensors, "source": arrays} if arrays else tensors
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        sums = {name: _write_counted(partial / name, to_bytes(kept)) for name, kept in _named(files)}
        head = {"format": FORMAT, "version": VERSION, "update": update}
        write_file(partial / "state.json", _json_bytes({**head, **state, "source": plain, "files": sums}))
        _sync_folder(partial)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
        _sync_folder(folder.parent)
    except OSError as problem:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(_why_not(folder, problem, files)) from problem
    return folder


def _named(files: Mapping[str, Mapping[str, Tensor]]) -> Iterable[tuple[str, Mapping[str, Tensor]]]:
    return ((f"{name}.safetensors", kept) for name, kept in files.items())


def _write_counted(file: Path, data: bytes) -> dict[str, Any]:
    write_file(file, data)
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _why_not(folder: Path, problem: OSError, files: Mapping[str, Mapping[str, Tensor]]) -> str:
    need = sum(tensor.numel() * tensor.element_size() for kept in files.values() for tensor in kept.values()) / 1e6
    told = f"could not save checkpoint {folder.name} in {folder.parent}: {problem.strerror or problem}"
    if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        told += f" (it takes about {need:.1f} MB). Make room and resume"
    return told + "; earlier checkpoints are untouched"


def verify(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, after comparing every file's size and SHA-256 with state.json.

    Raises:
        CheckpointError: no checkpoint, of another version, or with a missing, cut or changed file, which is named.
    """
    folder = Path(folder)
    state = _read_state(folder)
    for name, wanted in state["files"].items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"checkpoint {folder} lacks {name}{_pickle_beside(file)}")
        size = file.stat().st_size
        if size != wanted["bytes"]:
            raise CheckpointError(
                f"checkpoint {folder} is half-written: {name} has {size} bytes, state.json says {wanted['bytes']}"
            )
        if _sha256(file) != wanted["sha256"]:
            raise CheckpointError(
                f"checkpoint {folder} is damaged: {name} does not have the SHA-256 that state.json says"
            )
    return Checkpoint(folder, state)


def _read_state(folder: Path) -> dict[str, Any]:
    file = folder / "state.json"
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint folder {folder}")
    if not file.is_file():
        raise CheckpointError(f"checkpoint {folder} is half-written: it lacks state.json{_pickle_beside(file)}")
    try:
        state = json.loads(file.read_bytes())
    except ValueError:
        raise CheckpointError(f"checkpoint {folder} is half-written: state.json is no whole JSON") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{folder} is no checkpoint of foretoken: state.json does not say format {FORMAT!r}")
    if state.get("version") != VERSION:
        raise CheckpointError(
            f"checkpoint {folder} has version {state.get('version')!r}, this foretoken reads version {VERSION}"
        )
    return state


def _sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def checkpoints(run: Path) -> list[Path]:
    """Checkpoint folders of a run, complete or not, oldest first."""
    return sorted(path for path in (Path(run) / "checkpoints").glob("update-*") if path.is_dir())


def latest(run: Path) -> Checkpoint | None:
    """The newest complete checkpoint of a run, or None; half-written and damaged ones are passed over with a warning.

    Raises:
        CheckpointError: there are checkpoints, but every one is broken or of another version.
    """
    problems = []
    for folder in reversed(checkpoints(run)):
        try:
            found = verify(folder)
        except CheckpointError as problem:
            problems.append(problem)
            continue
        for passed in problems:
            log.warning("passing over a checkpoint: %s", passed)
        return found
    if problems:
        way_out = f"copy it anew, or remove {Path(run) / 'checkpoints'} and resume, which trains from the start"
        raise CheckpointError(f"{problems[0]}; no older one is whole: {way_out}")
    return None


def mark_best(run: Path, record: Mapping[str, Any]) -> None:
    """Writes best.json: `folder` (its name), `metric`, `value`, `update`."""
    replace_file(Path(run) / "checkpoints" / "best.json", _json_bytes(record))


def best(run: Path) -> Checkpoint | None:
    """The checkpoint that best.json names, or None where there is no best.json."""
    file = Path(run) / "checkpoints" / "best.json"
    return verify(file.parent / json.loads(file.read_bytes())["folder"]) if file.is_file() else None


def prune(run: Path, keep_last: int, keep: Iterable[str] = ()) -> None:
    """Deletes all but the `keep_last` newest checkpoints and those named in `keep`, and leavings of interrupted saves."""
    for folder in checkpoints(run)[:-keep_last]:
        if folder.name not in keep:
            # renamed first: a kill while deleting leaves no folder that looks like a broken checkpoint
            doomed = folder.rename(folder.with_name(f".{folder.name}.partial"))
            shutil.rmtree(doomed)
    for partial in (Path(run) / "checkpoints").glob(".update-*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def load_state(module: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Fills `module` with exactly these tensors. Raises CheckpointError that names what is missing, unknown or misshapen."""
    own = module.state_dict()
    faults = [f"it lacks {name}" for name in own if name not in tensors]
    faults += [f"it has {name}, which the method lacks{nearest(name, own)}" for name in tensors if name not in own]
    faults += [
        f"{name} has shape {tuple(tensors[name].shape)}, the method needs {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(f"{origin} does not fit {type(module).__name__}: {'; '.join(faults[:5])}{more}")
    module.load_state_dict(dict(tensors))


def save_weights(module: nn.Module, file: Path) -> None:
    """Writes parameters and buffers of `module` as one safetensors file, whole or not at all."""
    replace_file(Path(file), to_bytes(module.state_dict()))


def weights_file(path: Path) -> Path:
    """The weights in a run, a checkpoint or a file: averaged (ema) ones where there are, and a run's newest checkpoint."""
    path = Path(path)
    if path.is_file() or path.suffix == ".safetensors":
        return path
    if (path / "checkpoints").is_dir():
        newest = latest(path)
        if newest is None:
            raise CheckpointError(f"run {path} has no checkpoint yet")
        path = newest.folder
    else:
        verify(path)
    averaged = path / "ema.safetensors"
    return averaged if averaged.is_file() else path / "model.safetensors"


def load_weights(module: nn.Module, path: Path, *, from_prefix: str = "", to_prefix: str = "") -> None:
    """Copies weights of a run, checkpoint folder or safetensors file into a part of `module`.

    Args:
        module: what receives them.
        path: a run (its newest checkpoint), a checkpoint folder or a safetensors file.
        from_prefix: takes only the tensors below this module of the saved method ("" = all).
        to_prefix: the module of `module` that receives them ("" = itself); it must be filled whole.

    Raises:
        CheckpointError: nothing lies below a prefix, or names or shapes differ.
    """
    file = weights_file(path)
    tensors = read_tensors(file)
    lead = f"{from_prefix}." if from_prefix else ""
    taken = {name.removeprefix(lead): tensor for name, tensor in tensors.items() if name.startswith(lead)}
    if not taken:
        parts = {name.rsplit(".", 1)[0] for name in tensors}
        raise CheckpointError(
            f"{file} has no tensors below {from_prefix!r}{nearest(from_prefix, parts)}; it has {sorted(parts)[:10]}"
        )
    try:
        target = module.get_submodule(to_prefix)
    except AttributeError:
        names = [name for name, _ in module.named_modules() if name]
        near = nearest(to_prefix, names)
        raise CheckpointError(
            f"{type(module).__name__} has no module {to_prefix!r}{near} to load weights into"
        ) from None
    load_state(target, taken, str(file))
