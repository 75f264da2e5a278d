"""Scores of a live model on encoded rows, beside what they are judged by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from recsys.training.metrics import evaluate
from recsys.types import Batch, InputError, Metrics, Target


class Rows(Protocol):
    """Encoded rows that can be read in batches (`recsys.data.EncodedData`)."""

    @property
    def fingerprint(self) -> str:
        """Digest of the rows and of the rule that encoded them."""
        ...

    def __len__(self) -> int: ...

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        start: int = 0,
    ) -> Iterator[tuple[Batch, Target]]:
        """Batches at the rows stage with their targets, skipping the first ``start``."""
        ...


@runtime_checkable
class PartableRows(Rows, Protocol):
    """Rows of which a share can be kept apart."""

    def parted(self, share: float, *, seed: int) -> tuple[Rows, Rows]:
        """The rows without a random ``share`` of them, and that share."""
        ...


@dataclass(frozen=True)
class Predictions:
    """Arrays (N,) in the order of the rows: probabilities, labels, weights, group ids."""

    scores: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    groups: np.ndarray

    @property
    def grouped(self) -> bool:
        """Whether the log has groups."""
        return bool(self.groups.any())

    def metrics(self) -> Metrics:
        """All metrics; GAUC only if the log has groups."""
        groups = self.groups if self.grouped else None
        return evaluate(self.labels, self.scores, groups=groups, weights=self.weights)


def open_device(name: str) -> torch.device:
    """The device of ``train.device``. Errors: `InputError` for a GPU that is not there."""
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            seen = "no GPU" if count == 0 else f"GPUs 0 to {count - 1}"
            raise InputError(
                f"train.device {name}: torch sees {seen} here; set train.device to "
                f"{'cuda' if count else 'cpu'}"
            )
    return device


def slow_precision(precision: str, device: str) -> str | None:
    """What to say of a precision that the processor only emulates; None of any other.

    Measured on a CPU with AVX2 alone: a step of BERT4Rec takes 5.7 times as long as in fp32.
    """
    if precision != "bf16" or torch.device(device).type != "cpu":
        return None
    able = torch.cpu.get_capabilities()
    x86 = able.get("architecture") == "x86_64"  # of others this is not known
    if not x86 or able.get("amx_bf16") or able.get("avx512_bf16"):
        return None
    return (
        "train.precision bf16: this CPU has no bfloat16 instructions, so steps take several times "
        "as long as in fp32; set train.precision to fp32"
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on ``device`` (itself on a CPU)."""
    if device.type == "cpu":
        return batch
    return Batch(
        batch.ids.to(device, non_blocking=True),
        batch.floats.to(device, non_blocking=True),
        [rows.to(device, non_blocking=True) for rows in batch.lists],
        batch.lengths.to(device, non_blocking=True),
    )


@torch.inference_mode()
def predict(model: nn.Module, rows: Rows, *, batch_size: int, device: torch.device) -> Predictions:
    """One pass over ``rows`` in evaluation mode, fp32."""
    model.eval()
    count = len(rows)
    scores, labels, weights = (np.empty(count, dtype=np.float32) for _ in range(3))
    groups = np.empty(count, dtype=np.int64)
    done = 0
    for batch, target in rows.batches(batch_size):
        part = slice(done, done + len(target.label))
        scores[part] = torch.sigmoid(model(to_device(batch, device))).cpu().numpy()
        labels[part], weights[part] = target.label.numpy(), target.weight.numpy()
        groups[part] = target.group.numpy()
        done = part.stop
    assert done == count, f"{count} rows announced, {done} read"
    return Predictions(scores, labels, weights, groups)
