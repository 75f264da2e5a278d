"""Checkpoints: safetensors and JSON in one folder per step, written atomically, no pickle."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from recsys.disk import disk_errors
from recsys.types import InputError

_STATE = "state.json"
_TENSORS = ("model", "optimizer", "best", "phases", "rng")


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on as if it had never stopped.

    ``model`` and ``optimizer``: named tensors. ``best``: the best weights so far, if any epoch was
    judged. ``phases``: what phases keep beside the model. ``rng``: generator states. ``state``:
    plain JSON (position in the data, schedules, history).
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    best: dict[str, Tensor]
    phases: dict[str, Tensor]
    rng: dict[str, Tensor]
    state: dict[str, Any]

    def check(self, folder: Path, config: str, data: str) -> None:
        """Errors: `InputError` if it is of a run with another digest of its ``config`` or of its
        training ``data``."""
        if self.state["config"] != config:
            raise InputError(f"checkpoint {folder}: belongs to another config; remove it")
        if self.state["data"] != data:
            raise InputError(
                f"checkpoint {folder}: the training data has changed since; remove the folder to "
                "start anew"
            )


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, step: int) -> Path:
    """Writes ``folder/step-N.K`` (temp folder, fsync, rename), then removes older ones; K counts
    the checkpoints of one step, such as that of ``checkpoint_steps`` and that of its epoch's end.

    A killed writer leaves the previous checkpoint untouched. Errors: `OSError`, a full disk too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    same = [int(old.name.partition(".")[2]) for old in folder.glob(f"step-{step:012d}.*")]
    final = folder / f"step-{step:012d}.{max(same, default=0) + 1:06d}"
    temp = folder / f".writing-{os.getpid()}"
    shutil.rmtree(temp, ignore_errors=True)
    temp.mkdir()
    for name in _TENSORS:
        tensors = {
            key: value.detach().contiguous() for key, value in getattr(checkpoint, name).items()
        }
        with disk_errors(temp / name):
            save_file(_unshared(tensors), temp / f"{name}.safetensors")
    (temp / _STATE).write_text(json.dumps(checkpoint.state))
    for file in temp.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    os.replace(temp, final)
    _fsync_folder(folder)
    for old in folder.iterdir():
        if old != final:
            shutil.rmtree(old, ignore_errors=True)
    return final


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint under ``folder``, or ``None``.

    Errors: `InputError` if the newest one cannot be read (remedy: remove it).
    """
    steps = sorted(folder.glob("step-*")) if folder.is_dir() else []
    if not steps:
        return None
    newest = steps[-1]
    try:
        state = json.loads((newest / _STATE).read_text())
        parts = {name: load_file(newest / f"{name}.safetensors") for name in _TENSORS}
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"checkpoint {newest}: cannot be read ({reason}); remove {folder} to start anew"
        ) from error
    return Checkpoint(state=state, **parts)


def rng_state() -> dict[str, Tensor]:
    """States of torch's generators, as tensors."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        for index, value in enumerate(torch.cuda.get_rng_state_all()):
            state[f"cuda{index}"] = value
    return state


def set_rng_state(state: dict[str, Tensor]) -> None:
    """Puts back what `rng_state` returned."""
    torch.set_rng_state(state["cpu"])
    cuda = [state[key] for key in sorted(state) if key.startswith("cuda")]
    if cuda and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(cuda)


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses two names for one storage; a tied tensor is written once per name."""
    seen: set[int] = set()
    result = {}
    for key, value in tensors.items():
        pointer = value.untyped_storage().data_ptr()
        result[key] = value.clone() if pointer in seen and value.numel() else value
        seen.add(pointer)
    return result


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
