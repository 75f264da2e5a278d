"""From encoded ids to rows of tables: integer arithmetic only, scriptable, the same everywhere."""

import hashlib
from typing import ClassVar, List, Sequence, Tuple

import torch
from torch import Tensor, nn

from recsys.features.hashing import splitmix64
from recsys.types import FieldSpec
from serving.encode import Batch

RULE = "splitmix64/v1"


class Spans(nn.Module):
    """Where each field's slots lie: ``counts[f]`` slots per field, in field order."""

    column: Tensor

    def __init__(self, *, counts: Sequence[int], singles: int) -> None:
        super().__init__()
        self.counts: List[int] = list(counts)
        self.starts: List[int] = [sum(counts[:f]) for f in range(len(counts))]
        self.joint: int = sum(counts[:singles])  # slots of all categorical fields, which come first
        self.repeats: bool = any(count != 1 for count in counts[:singles])
        columns = [c for c in range(singles) for _ in range(counts[c])]
        self.register_buffer("column", torch.tensor(columns, dtype=torch.int64), persistent=False)

    def keep(self, **values: Sequence[int]) -> None:
        """Makes each a buffer of integers."""
        for name, numbers in values.items():
            tensor = torch.tensor(list(numbers), dtype=torch.int64)
            self.register_buffer(name, tensor, persistent=False)

    def span(self, f: int) -> Tuple[int, int]:
        """Start and number of the slots of field ``f`` (-1: all categorical fields)."""
        if f < 0:
            return 0, self.joint
        return self.starts[f], self.counts[f]

    def spread(self, ids: Tensor, f: int) -> Tensor:
        """One column of ids per slot (or one that broadcasts to the slots)."""
        if f < 0 and self.repeats:
            return ids.index_select(-1, self.column)
        return ids


class HashRows(Spans):
    """Slot s: ``(splitmix64(id + salt_s) mod 2^63) mod modulus_s + offset_s``, or, where
    ``modulus_s`` is 0, the id's own row ``id * stride_s + offset_s``.

    The salt is mixed, not added after mixing: two fields with equal ids meet no more often than
    two random ids do. The bias of the last modulus is below ``modulus / 2^63``.
    """

    salt: Tensor
    modulus: Tensor
    offset: Tensor
    stride: Tensor

    def __init__(
        self,
        *,
        counts: Sequence[int],
        singles: int,
        salts: Sequence[int],
        moduli: Sequence[int],
        offsets: Sequence[int],
        strides: Sequence[int],
    ) -> None:
        super().__init__(counts=counts, singles=singles)
        self.any_hashed: bool = any(m > 0 for m in moduli)
        self.any_exact: bool = any(m == 0 for m in moduli)
        self.keep(salt=salts, modulus=moduli, offset=offsets, stride=strides)

    def forward(self, ids: Tensor, f: int) -> Tensor:
        start, n = self.span(f)
        ids = self.spread(ids, f)
        offset = self.offset.narrow(0, start, n)
        if not self.any_hashed:
            return ids * self.stride.narrow(0, start, n) + offset  # (..., n)
        modulus = self.modulus.narrow(0, start, n)
        mixed = splitmix64(ids + self.salt.narrow(0, start, n)) & 0x7FFFFFFFFFFFFFFF
        rows = mixed % modulus.clamp_min(1) + offset  # (..., n)
        if self.any_exact:
            own = ids * self.stride.narrow(0, start, n) + offset
            rows = torch.where(modulus == 0, own, rows)
        return rows


class RangeRows(Spans):
    """Slot s: ``id - low_s + offset_s`` if ``low_s <= id < high_s``, else the row ``miss_s``.

    A field of one slot owns the whole range; a field cut into popularity blocks has one slot per
    block, and all but one of them miss.
    """

    low: Tensor
    high: Tensor
    shift: Tensor
    miss: Tensor

    def __init__(
        self,
        *,
        counts: Sequence[int],
        singles: int,
        lows: Sequence[int],
        highs: Sequence[int],
        offsets: Sequence[int],
        misses: Sequence[int],
    ) -> None:
        super().__init__(counts=counts, singles=singles)
        self.any_miss: bool = any(count > 1 for count in counts)
        shifts = [offset - low for offset, low in zip(offsets, lows, strict=True)]
        self.keep(low=lows, high=highs, shift=shifts, miss=misses)

    def forward(self, ids: Tensor, f: int) -> Tensor:
        start, n = self.span(f)
        ids = self.spread(ids, f)
        rows = ids + self.shift.narrow(0, start, n)  # (..., n)
        if self.any_miss:
            low, high = self.low.narrow(0, start, n), self.high.narrow(0, start, n)
            inside = (ids >= low) & (ids < high)
            rows = torch.where(inside, rows, self.miss.narrow(0, start, n))
        return rows


class IdMap(nn.Module):
    """Encoded batch -> the same batch with row indices in place of ids; shared by all layers.

    Shape: ``ids`` (B, C) -> (B, S), slots in field order; ``lists[f]`` (B, L_f) -> (B, L_f, T_f);
    padding of lists maps to some valid row, which lengths mask later.
    """

    __jit_unused_properties__: ClassVar[List[str]] = ["fingerprint"]

    def __init__(self, *, row_map: nn.Module, fields: Sequence[FieldSpec]) -> None:
        super().__init__()
        self.row_map = row_map
        self.singles = sum(field.kind == "categorical" for field in fields)
        self.first_list = sum(not field.is_list for field in fields)

    def forward(self, encoded: Batch) -> Batch:
        ids = self.row_map(encoded.ids, -1)  # (B, S)
        lists: List[Tensor] = []
        for j, one in enumerate(encoded.lists):
            lists.append(self.row_map(one.unsqueeze(-1), self.first_list + j))  # (B, L, T)
        return Batch(ids, encoded.floats, lists, encoded.lengths)

    @torch.jit.unused
    def field_rows(self, c: int, ids: Tensor) -> Tensor:
        """Rows of the ``c``-th categorical field: (N,) -> (N, T_c), as `forward` gives."""
        return self.row_map(ids.unsqueeze(-1), c)

    @torch.jit.unused
    def list_rows(self, f: int, ids: Tensor) -> Tensor:
        """Rows of the ``f``-th list field: (N,) -> (N, T_f), as `forward` gives."""
        return self.row_map(ids.unsqueeze(-1), self.first_list + f)

    @property
    def fingerprint(self) -> str:
        """Digest of everything that decides a row index; equal maps have equal digests."""
        digest = hashlib.sha256(RULE.encode())
        for path, module in self.row_map.named_modules():
            counts = getattr(module, "counts", [])
            digest.update(f"{path}:{type(module).__name__}:{counts}".encode())
        for name, buffer in sorted(self.row_map.named_buffers()):
            digest.update(f"{name}:{buffer.dtype}:{tuple(buffer.shape)}".encode())
            digest.update(buffer.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()
