"""Vectors of numeric fields: ``x * v_f``, a vector of its own where the value is missing."""

from typing import List, Sequence

import torch
from torch import Tensor, nn

from recsys.types import FieldSpec


class NumericVectors(nn.Module):
    """Floats -> vectors.

    A scalar field: ``x * v_f``; a field of several columns (piecewise linear bins): the sum of its
    columns' vectors weighted by the columns. Missing (NaN in its first column): ``m_f``. No NaN
    reaches a product, so none reaches a gradient.

    **Shape:** (B, K) float, one column per ``width`` of each field -> (B, N, D).
    """

    first: Tensor
    widths: List[int]  # on the class: TorchScript cannot infer the type of an empty list

    def __init__(self, *, fields: Sequence[FieldSpec], dim: int, std: float) -> None:
        super().__init__()
        widths = [field.width for field in fields if field.kind == "numeric"]
        self.widths = widths
        self.scalar: bool = all(width == 1 for width in widths)
        self.weight = nn.Parameter(torch.empty(sum(widths), dim).normal_(std=std))
        self.missing = nn.Parameter(torch.empty(len(widths), dim).normal_(std=std))
        first = [sum(widths[:n]) for n in range(len(widths))]
        self.register_buffer("first", torch.tensor(first, dtype=torch.int64), persistent=False)

    def forward(self, floats: Tensor) -> Tensor:
        known = ~torch.isnan(floats)
        safe = torch.where(known, floats, torch.zeros_like(floats))  # (B, K)
        if self.scalar:
            vectors = safe.unsqueeze(-1) * self.weight  # (B, N, D)
        else:
            parts: List[Tensor] = []
            start = 0
            for width in self.widths:
                part = safe.narrow(1, start, width) @ self.weight.narrow(0, start, width)  # (B, D)
                parts.append(part)
                start += width
            vectors = torch.stack(parts, 1)  # (B, N, D)
            known = known.index_select(1, self.first)
        return torch.where(known.unsqueeze(-1), vectors, self.missing)
