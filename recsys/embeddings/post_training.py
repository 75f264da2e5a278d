"""Trained tables in fewer bytes: rows of int8, int4 or fp16, decoded after the gather.

``int8`` and ``int4`` are affine by row: ``w = code * scale + bias`` with ``bias`` the row's least
weight and ``scale`` its range over 255 (15), both fp16, rounded outwards so that every weight lies
within ``scale / 2`` of what it decodes to. Guan et al., https://arxiv.org/abs/1911.02079; the row
sizes are fbgemm's (unpadded): ``d + 4``, ``ceil(d / 2) + 4`` and ``2 d`` bytes. Native operators
of torch only.
"""

import operator
from typing import Literal, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.embeddings.layer import EmbeddingLayer
from recsys.embeddings.managed_store import ManagedRows
from recsys.embeddings.store import Store, TorchStore
from recsys.settings import TrainConfig
from recsys.types import InputError, MemoryReport

Kind = Literal["int8", "int4", "fp16"]

CHUNK_ROWS = 65_536
LEVELS = {"int8": 255, "int4": 15}
_ULP, _LEAST = 2.0**-10, 2.0**-24  # of fp16: relative spacing, and that of its subnormals


class ServedRows(Store):
    """A table that only serves. **Shape:** rows (...) -> (..., width) float32."""

    def __init__(self, *, learned: int, padding: int) -> None:
        super().__init__()
        self.weight = None
        self.sparse = False
        self.fused = False
        self.padding = padding
        self._learned: int = learned

    @torch.jit.unused
    def memory(self, train: TrainConfig, fetched: int) -> MemoryReport:
        stored = sum(b.numel() * b.element_size() for b in self.buffers())
        return MemoryReport(self._learned, stored, stored, 0)

    @torch.jit.unused
    def finalise(self) -> Store:
        """Itself."""
        return self


class HalfRows(ServedRows):
    """Rows of fp16. ``values`` (R, width)."""

    values: Tensor

    def __init__(self, *, values: Tensor, learned: int, padding: int) -> None:
        super().__init__(learned=learned, padding=padding)
        self.register_buffer("values", values)

    def forward(self, rows: Tensor) -> Tensor:
        return F.embedding(rows, self.values).to(torch.float32)


class AffineRows(ServedRows):
    """Rows of bytes, or of two codes a byte: the even columns in the low halves.

    ``codes`` (R, width) or (R, ceil(width / 2)) uint8; ``affine`` (R, 2) fp16: scale and bias.
    """

    codes: Tensor
    affine: Tensor

    def __init__(
        self,
        *,
        codes: Tensor,
        affine: Tensor,
        width: int,
        paired: bool,
        learned: int,
        padding: int,
    ) -> None:
        super().__init__(learned=learned, padding=padding)
        self.register_buffer("codes", codes)
        self.register_buffer("affine", affine)
        self.width: int = width
        self.paired: bool = paired

    def forward(self, rows: Tensor) -> Tensor:
        codes = F.embedding(rows, self.codes)
        if self.paired:
            both = torch.stack([codes & 15, codes >> 4], -1)  # (..., ceil(width / 2), 2)
            codes = both.flatten(-2).narrow(-1, 0, self.width)
        affine = F.embedding(rows, self.affine).to(torch.float32)  # (..., 2)
        scale, bias = affine.narrow(-1, 0, 1), affine.narrow(-1, 1, 1)
        return codes.to(torch.float32) * scale + bias  # (..., width)


def row_bytes(kind: Kind, width: int) -> int:
    """Bytes of one row of ``width`` weights."""
    if kind == "fp16":
        return 2 * width
    return (width if kind == "int8" else (width + 1) // 2) + 4


@torch.no_grad()
def quantised(store: Store, kind: Kind) -> Store:
    """``store`` with its floats as ``kind``, or as fp16 where that is no larger (narrow tables);
    itself if it is no plain table of floats, which that of a managed one is.

    Errors: `InputError` for weights that are not finite or beyond fp16's 65,504.
    """
    if isinstance(store, ManagedRows):
        return store.over(quantised(store.table, kind))
    if not isinstance(store, TorchStore):
        return store
    weight = store.weight.detach()
    rows, width = weight.shape
    learned = (rows - int(store.padding >= 0)) * width
    if row_bytes(kind, width) >= row_bytes("fp16", width):
        kind = "fp16"
    if kind == "fp16":
        half = weight.half()
        _check(half)
        return HalfRows(values=half, learned=learned, padding=store.padding)
    paired = kind == "int4"
    codes = torch.empty(rows, (width + 1) // 2 if paired else width, dtype=torch.uint8)
    affine = torch.empty(rows, 2, dtype=torch.float16)
    for start in range(0, rows, CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        code, affine[part] = _encoded(weight[part], LEVELS[kind])
        if paired:
            code = F.pad(code, (0, width % 2))
            code = code[:, 0::2] | code[:, 1::2] << 4
        codes[part] = code
    _check(affine)
    return AffineRows(
        codes=codes,
        affine=affine,
        width=width,
        paired=paired,
        learned=learned,
        padding=store.padding,
    )


def _encoded(weight: Tensor, levels: int) -> Tuple[Tensor, Tensor]:
    """Codes (R, d) uint8 and scale and bias (R, 2) fp16 of floats (R, d)."""
    low, high = weight.aminmax(dim=1, keepdim=True)  # (R, 1)
    bias = low.half().float()
    bias = torch.where(bias <= low, bias, (low - _ULP * low.abs() - _LEAST).half().float())
    need = (high - bias) / levels
    scale = need.half().float()
    scale = torch.where(scale >= need, scale, (need + _ULP * need + _LEAST).half().float())
    code = ((weight - bias) / scale.masked_fill(scale == 0, 1)).round_().clamp_(0, levels)
    return code.to(torch.uint8), torch.cat([scale, bias], 1).half()


def _check(half: Tensor) -> None:
    if not bool(torch.isfinite(half).all()):
        raise InputError(
            "export.quantise: a table holds weights that are not finite or beyond 65,504, which "
            "fp16 cannot hold; lower train.learning_rate or remove the key"
        )


def quantise_layers(model: nn.Module, kind: Kind) -> bool:
    """Puts the quantised form of every finalised embedding layer into the model; returns whether
    any table of it has one.

    Vectors of numeric fields and projections stay floats: they are few.
    """
    changed = False
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, EmbeddingLayer):
                stores = [quantised(store, kind) for store in layer.tables]
                changed |= any(map(operator.is_not, stores, layer.tables))
                setattr(parent, name, layer.over(stores))
    return changed
