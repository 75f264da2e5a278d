"""Raw numbers -> encoded numbers or bins: scriptable modules over (N,) float64.

The rules are in `recsys.features.numeric`.
"""

import numpy as np
import torch
from torch import Tensor, nn

from recsys.features.statistics import FLOAT32_MAX

REACH = 1000.0
"""How far beyond the range of training values others count, in widths of that range."""


class Prepare(nn.Module):
    """Steps 1 to 3 of `recsys.features.numeric`: (N,) float64 -> (N,) float64, finite or NaN."""

    def __init__(self, *, transform: str, lowest: float, highest: float) -> None:
        super().__init__()
        self.transform: str = transform
        self.lowest: float = lowest
        self.highest: float = highest
        reach = REACH * ((highest - lowest) or 1.0)
        self.nearest: float = lowest - reach
        self.furthest: float = highest + reach
        self.limit: float = FLOAT32_MAX

    def forward(self, x: Tensor) -> Tensor:  # (N,) float64 -> (N,) float64
        x = torch.where(x.isinf(), x.clamp(self.lowest, self.highest), x)
        x = x.clamp(self.nearest, self.furthest)
        if self.transform == "log1p":
            x = x.sign() * x.abs().log1p()
        elif self.transform == "criteo":
            x = torch.where(x > 2.0, x.log().square().floor(), x)
        return x.clamp(-self.limit, self.limit)


class Scale(nn.Module):
    """``(x - mean) / std``: (N,) float64 -> (N, 1) float32, NaN where missing."""

    def __init__(self, *, prepare: Prepare, mean: float, std: float) -> None:
        super().__init__()
        self.prepare = prepare
        self.mean: float = mean
        self.std: float = std
        self.limit: float = FLOAT32_MAX

    def forward(self, x: Tensor) -> Tensor:  # (N,) float64 -> (N, 1) float32
        x = (self.prepare(x) - self.mean) / self.std
        return x.clamp(-self.limit, self.limit).float().unsqueeze(1)


class PiecewiseLinear(nn.Module):
    """Piecewise-linear code: (N,) float64 -> (N, width) float32, NaN where missing."""

    left: Tensor
    span: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, *, prepare: Prepare, edges: np.ndarray, width: int) -> None:
        super().__init__()
        self.prepare = prepare
        # A constant column has one edge and one bin, of width 1, or more where floats lie further
        # apart. Bins after the last one are infinitely wide: always 0.
        if len(edges) == 1:
            edges = np.append(edges, edges[0] + max(1.0, np.spacing(abs(edges[0]))))
        bins = len(edges) - 1
        assert 1 <= bins <= width
        left = np.zeros(width)
        span = np.full(width, np.inf)
        low = np.zeros(width)
        high = np.ones(width)
        left[:bins] = edges[:-1]
        span[:bins] = np.diff(edges)
        low[0] = -FLOAT32_MAX
        high[bins - 1] = FLOAT32_MAX
        self.register_buffer("left", torch.from_numpy(left))
        self.register_buffer("span", torch.from_numpy(span))
        self.register_buffer("low", torch.from_numpy(low))
        self.register_buffer("high", torch.from_numpy(high))

    def forward(self, x: Tensor) -> Tensor:  # (N,) float64 -> (N, width) float32
        code = (self.prepare(x).unsqueeze(1) - self.left) / self.span
        return torch.minimum(torch.maximum(code, self.low), self.high).float()


class Bins(nn.Module):
    """Quantile bins: (N,) float64 -> (N,) int64, 0 where missing, else 1 + edges at or below x."""

    edges: Tensor

    def __init__(self, *, prepare: Prepare, edges: np.ndarray) -> None:
        super().__init__()
        self.prepare = prepare
        self.register_buffer("edges", torch.from_numpy(edges.astype(np.float64)))

    def forward(self, x: Tensor) -> Tensor:  # (N,) float64 -> (N,) int64
        x = self.prepare(x)
        return torch.where(x.isnan(), 0, 1 + torch.searchsorted(self.edges, x, right=True))
