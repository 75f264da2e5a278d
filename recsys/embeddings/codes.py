"""Small integers packed into bytes, read back by plain torch operators. Scriptable, exportable."""

from math import ceil, log2

import torch
from torch import Tensor, nn


def code_bits(count: int) -> int:
    """Bits of a code out of ``count``: 256 -> 8, 64 -> 6, 1 -> 1."""
    return max(1, ceil(log2(count)))


def packed_bytes(*, head: int, tail: int, parts: int, head_bits: int, tail_bits: int) -> int:
    """Bytes of `PackedCodes` of so many rows."""
    return ceil(head * parts * head_bits / 8) + ceil(tail * parts * tail_bits / 8) + 1


class PackedCodes(nn.Module):
    """``parts`` codes per row: of ``head_bits`` each in the first ``head`` rows, of ``tail_bits``
    in all others, at most 8. The first bit of the tail starts a byte, and one byte follows the
    last.

    **Shape:** rows (...) -> (..., parts) int64.
    """

    packed: Tensor

    def __init__(self, *, codes: Tensor, head: int, head_bits: int, tail_bits: int) -> None:
        """``codes``: (rows, parts) integers."""
        super().__init__()
        self.parts: int = codes.size(1)
        self.head: int = head
        self.head_bits: int = head_bits
        self.tail_bits: int = tail_bits
        self.tail_start: int = 8 * ceil(head * self.parts * head_bits / 8)
        packed = [_pack(codes[:head], head_bits), _pack(codes[head:], tail_bits)]
        self.register_buffer("packed", torch.cat([*packed, packed[0].new_zeros(1)]))

    def forward(self, rows: Tensor) -> Tensor:
        rows = rows.to(torch.int64)
        part = torch.arange(self.parts, device=rows.device)
        tail = rows >= self.head
        bits = torch.where(tail, self.tail_bits, self.head_bits)  # (...)
        first = torch.where(
            tail,
            (rows - self.head) * (self.parts * self.tail_bits) + self.tail_start,
            rows * (self.parts * self.head_bits),
        )
        bit = first.unsqueeze(-1) + part * bits.unsqueeze(-1)  # (..., parts)
        byte = bit >> 3
        low = self.packed[byte].to(torch.int64)
        high = self.packed[byte + 1].to(torch.int64)
        word = (low | (high << 8)) >> (bit & 7)
        mask = torch.where(tail, (1 << self.tail_bits) - 1, (1 << self.head_bits) - 1)
        return word & mask.unsqueeze(-1)


def _pack(codes: Tensor, bits: int) -> Tensor:
    """All codes in a row, lowest bit first; (bytes,) uint8."""
    places = torch.arange(bits, device=codes.device)
    chunks = []
    for part in codes.flatten().split(1 << 20):  # 8 codes fill whole bytes, so chunks do not mix
        stream = ((part.to(torch.int64).unsqueeze(1) >> places) & 1).flatten()
        stream = torch.cat([stream, stream.new_zeros(-len(stream) % 8)]).view(-1, 8)
        chunks.append((stream << torch.arange(8, device=codes.device)).sum(1).to(torch.uint8))
    return torch.cat(chunks) if chunks else torch.empty(0, dtype=torch.uint8)
