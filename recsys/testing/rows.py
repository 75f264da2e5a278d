"""Rows held in memory, for training and judging models without a log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from recsys.types import Batch, Target


@dataclass(kw_only=True)
class MemoryRows:
    """N rows with the contract of `recsys.training.prediction.Rows`, as `recsys.data.EncodedData`
    has it: ``label`` (N,) float, and as far as there are any ``ids`` (N, C) at the rows stage,
    ``floats`` (N, M) and ``weight`` (N,); no lists, one group.

    **Example**

    >>> rows = MemoryRows(label=torch.tensor([0.0, 1.0, 0.0]), ids=torch.tensor([[5], [6], [7]]))
    >>> [batch.ids.tolist() for batch, _ in rows.batches(2)]
    [[[5], [6]], [[7]]]
    """

    label: Tensor
    ids: Tensor | None = None
    floats: Tensor | None = None
    weight: Tensor | None = None
    fingerprint: str = "memory"

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, chosen: Tensor | slice) -> MemoryRows:
        """Those rows alone, by numbers, mask or slice."""
        parts = {name: getattr(self, name) for name in ("label", "ids", "floats", "weight")}
        return replace(self, **{k: v[chosen] for k, v in parts.items() if v is not None})

    def parted(self, share: float, *, seed: int) -> tuple[MemoryRows, MemoryRows]:
        """The rows without a random ``share`` of them, and that share."""
        second = torch.from_numpy(np.random.default_rng([seed, 7]).random(len(self)) < share)
        return self[~second], self[second]

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        start: int = 0,
    ) -> Iterator[tuple[Batch, Target]]:
        """Batches with their targets, skipping the first ``start``; the order is that of the rows,
        or one by ``(seed, epoch)`` alone."""
        order = torch.arange(len(self))
        if shuffle:
            order = torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(len(self)))
        for part in order.split(batch_size)[start:] if len(self) else ():
            none = torch.zeros(len(part), 0, dtype=torch.int64)
            ids = none if self.ids is None else self.ids[part]
            floats = none.float() if self.floats is None else self.floats[part]
            weight = torch.ones(len(part)) if self.weight is None else self.weight[part]
            group = torch.zeros(len(part), dtype=torch.int64)
            yield Batch(ids, floats, [], none), Target(self.label[part], weight, group)
