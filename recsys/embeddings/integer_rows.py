"""Rows of integers, and what one integer is worth. Scriptable: training and serving share them.

A weight is ``code * scale``. Codes are int8 or int16 within +-127 or +-32767; the scale is one
number for the table, a power of two for each row, or a learned float for each row.
"""

from typing import Dict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.embeddings.store import Store
from recsys.settings import TrainConfig
from recsys.types import MemoryReport

CODE_TYPES: Dict[int, torch.dtype] = {8: torch.int8, 16: torch.int16}
"""Bits of a code -> its type."""

MIN_EXPONENT = -126


def largest_code(codes: Tensor) -> int:
    """``2^(b - 1) - 1``; codes are symmetric, so -2^(b - 1) is never used."""
    return torch.iinfo(codes.dtype).max


def stochastic_round(values: Tensor, limit: int) -> Tensor:
    """``floor(v)`` or ``floor(v) + 1``, the latter with probability ``v - floor(v)``, so that the
    mean is ``v``; values beyond ``limit`` saturate. Drawn from torch's generator, which checkpoints
    hold. Floats, of the same shape."""
    below = values.floor()
    up = torch.rand_like(values) < values - below
    return below.add_(up).clamp_(-limit, limit)


class Scale(nn.Module):
    """What one unit of a code is worth. **Shape:** rows (...) -> (..., 1), or one that broadcasts.

    ``bytes_per_row``: of its tensors; ``learned_per_row``: numbers of them that are trained.
    """

    bytes_per_row: int
    learned_per_row: int = 0

    def fitted(self, rows: Tensor, values: Tensor, limit: int) -> Tensor:
        """Scales (U, 1) with which ``values`` (U, d) are to be written to ``rows`` (U,); kept."""
        raise NotImplementedError


class OneScale(Scale):
    """One number for the whole table: values beyond ``limit * value`` saturate."""

    bytes_per_row: int = 0

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value: float = value

    def forward(self, rows: Tensor) -> Tensor:
        return torch.full([1], self.value, device=rows.device)

    def fitted(self, rows: Tensor, values: Tensor, limit: int) -> Tensor:
        return self(rows)


class RowExponents(Scale):
    """``2^e``, one byte ``e`` a row.

    A row gets the smallest scale that holds its largest weight, and keeps it until that weight
    leaves the range or falls below a quarter of it: every change of scale rounds the whole row
    anew, which is noise. Powers of two are exact, so a row that does not move is not rounded.
    """

    exponent: Tensor
    bytes_per_row: int = 1

    def __init__(self, rows: int) -> None:
        super().__init__()
        start = torch.full((rows, 1), MIN_EXPONENT, dtype=torch.int8)
        self.register_buffer("exponent", start)

    def forward(self, rows: Tensor) -> Tensor:
        return torch.exp2(F.embedding(rows, self.exponent).to(torch.float32))  # (..., 1)

    def fitted(self, rows: Tensor, values: Tensor, limit: int) -> Tensor:
        share = values.abs().amax(1, keepdim=True) / limit  # (U, 1): the least scale
        old = self.exponent.index_select(0, rows)
        scale = torch.exp2(old.float())
        keep = ((share <= scale) & (4 * share > scale)) | (share == 0)
        wanted = share.log2().ceil().clamp(MIN_EXPONENT, 127).to(torch.int8)
        new = torch.where(keep, old, wanted)
        self.exponent.index_copy_(0, rows, new)
        return torch.exp2(new.float())


class RowSteps(Scale):
    """A float for each row, which ALPT learns; see `recsys.embeddings.alpt`."""

    step: Tensor
    bytes_per_row: int = 4
    learned_per_row: int = 1

    def __init__(self, rows: int, *, start: float) -> None:
        super().__init__()
        self.register_buffer("step", torch.full((rows, 1), start))

    def forward(self, rows: Tensor) -> Tensor:
        return F.embedding(rows, self.step)  # (..., 1)

    def fitted(self, rows: Tensor, values: Tensor, limit: int) -> Tensor:
        return self.step.index_select(0, rows)


class IntegerRows(Store):
    """The serving form of a table of integers: ``codes[row] * scale(row)``.

    **Shape:** rows (...) int32 or int64 -> (..., width) float32.
    """

    codes: Tensor

    def __init__(self, *, codes: Tensor, scale: Scale) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.scale = scale
        self.weight = None
        self.sparse = False
        self.fused = False
        self.padding = -1

    def forward(self, rows: Tensor) -> Tensor:
        return self.decoded(rows)

    def decoded(self, rows: Tensor) -> Tensor:
        """The floats of ``rows``, without gradient."""
        return F.embedding(rows, self.codes).to(torch.float32) * self.scale(rows)  # (..., width)

    def memory(self, train: TrainConfig, fetched: int) -> MemoryReport:
        stored = self.stored_bytes()
        return MemoryReport(self.trained_numbers(), stored, stored, 0)

    @torch.jit.unused
    def trained_numbers(self) -> int:
        """Codes, and scales that are learned."""
        return self.codes.numel() + self.codes.size(0) * self.scale.learned_per_row

    def stored_bytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.numel() * self.codes.element_size() + (
            self.codes.size(0) * self.scale.bytes_per_row
        )

    def finalise(self) -> "IntegerRows":
        """Itself: it is the serving form."""
        return self
