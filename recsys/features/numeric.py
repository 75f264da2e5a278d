"""Numeric: a number per row, as a scaled value, a quantile bin or a piecewise-linear code.

Order of what happens to a value, the same in fitting and in the graph, in float64:

1. Missing (null, NaN) stays NaN to the end; a binned field gives it id 0. Models have a learned
   vector for it.
2. ``+inf`` and ``-inf`` become the largest and the smallest finite training value. Others are held
   within a thousand widths of the training range: marks such as 2**63 - 1 would overflow networks
   that multiply features.
3. ``transform``: ``none``; ``log1p``: ``sign(x) * log1p(|x|)``, which is ``log1p`` for ``x >= 0``;
   ``criteo``: ``floor(log(x)**2)`` for ``x > 2``, else ``x`` (the Criteo contest's 3 Idiots).
   The result is held within the range of finite float32.
4. At most one of ``normalise: standard`` (minus mean, over the population standard deviation; a
   constant column becomes 0), ``bins``, ``ple``.

Statistics are over the finite training values, after the transform. ``bins: N`` makes a
categorical field with ids ``0`` for missing and ``1 .. N`` for the bins; a value on an edge
belongs to the bin above, equal edges are merged (the ids after the last bin then stay unused).
``ple: N`` (Gorishniy et al. 2022, https://arxiv.org/abs/2203.05556) is N columns: with edges
``b_0 < .. < b_N``, column t is ``(x - b_{t-1}) / (b_t - b_{t-1})`` held within [0, 1], without the
lower limit in the first and without the upper limit in the last column; merged edges leave
trailing zero columns.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from recsys.features.base import NUMBER_FAMILIES, FeatureBase, InputKind, State
from recsys.features.scaling import Bins, PiecewiseLinear, Prepare, Scale
from recsys.features.statistics import FLOAT32_MAX, Histogram, Moments, quantiles
from recsys.types import FieldSpec

_BLOCK = 2048  # for more numbers torch wakes its threads, which cost more than they bring here


class Numeric(FeatureBase):
    """A number per row; the module's docstring has the rules."""

    type: Literal["numeric"]
    transform: Literal["none", "log1p", "criteo"] = "none"
    normalise: Literal["none", "standard"] = "none"
    bins: int | None = Field(default=None, ge=2)
    ple: int | None = Field(default=None, ge=2)
    families: ClassVar[frozenset[str]] = NUMBER_FAMILIES
    remedy: ClassVar[str] = "use type categorical, or store numbers"

    @model_validator(mode="after")
    def _one_output(self) -> Self:
        chosen = {"normalise": self.normalise != "none", "bins": self.bins, "ple": self.ple}
        given = [key for key, value in chosen.items() if value]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; keep one")
        return self

    @property
    def raw(self) -> bool:
        """Whether models see the numbers as they are."""
        return self.transform == "none" and self.normalise == "none" and not (self.bins or self.ple)

    def input_kind(self, family: str) -> InputKind:
        """Numbers."""
        del family
        return "float"

    def collector(self, name: str, family: str) -> NumericCollector:
        """Bounds, and what the chosen output needs."""
        del name, family
        return NumericCollector(config=self)

    def spec(self, name: str, state: State) -> FieldSpec:
        """A numeric field, or a categorical one of bins."""
        if self.bins is not None:
            counts = state["counts"]
            return FieldSpec(name=name, kind="categorical", num_ids=len(counts), counts=counts)
        return FieldSpec(name=name, kind="numeric", width=self.ple or 1)

    def module(self, name: str, state: State) -> nn.Module:
        """(N,) raw float64 -> (N, width) float32, or (N,) ids of bins."""
        del name
        lowest, highest = state["bounds"].tolist()
        prepare = Prepare(transform=self.transform, lowest=lowest, highest=highest)
        if self.bins is not None:
            return Bins(prepare=prepare, edges=state["edges"])
        if self.ple is not None:
            return PiecewiseLinear(prepare=prepare, edges=state["edges"], width=self.ple)
        mean, std = state["scale"].tolist() if "scale" in state else (0.0, 1.0)
        return Scale(prepare=prepare, mean=mean, std=std)


class NumericCollector:
    """Statistics of the finite training values.

    State: ``bounds`` (2,) smallest and largest raw value; ``scale`` (2,) mean and standard
    deviation; or ``edges`` ascending, with ``counts`` (1 + bins,) for bins. All float64 but counts.
    """

    def __init__(self, *, config: Numeric) -> None:
        self._config = config
        self._missing = 0
        self._infinite = np.zeros(2, dtype=np.int64)  # rows of -inf, of +inf
        self._bounds = np.array([np.inf, -np.inf])  # of raw values
        self._range = np.array([np.inf, -np.inf])  # of transformed values
        self._moments = Moments()
        self._histogram = Histogram()
        self._prepare = Prepare(transform=config.transform, lowest=-np.inf, highest=np.inf)

    def add(self, values: np.ndarray, counts: np.ndarray | None = None) -> None:
        """See `Collector.add`; numbers come one by one, without counts."""
        assert counts is None
        finite = values[np.isfinite(values)]
        if len(finite) < len(values):
            self._missing += int(np.isnan(values).sum())
            self._infinite += (np.isneginf(values).sum(), np.isposinf(values).sum())
        if len(finite) == 0:
            return
        _widen(self._bounds, finite)
        if self._config.normalise == "standard":
            self._moments.add(self._transformed(finite))
        elif self._config.bins is not None or self._config.ple is not None:
            transformed = self._transformed(finite)
            _widen(self._range, transformed)
            self._histogram.add(transformed)

    def state(self) -> dict[str, np.ndarray]:
        """See the class. A column without one finite value has the bounds 0 and 0."""
        state = {"bounds": _bounds(self._bounds)}
        if self._config.normalise == "standard":
            state["scale"] = np.array(self._moments.mean_std())
        if self._config.bins is not None:
            state.update(self._bins(self._config.bins, state["bounds"]))
        if self._config.ple is not None:
            ends = _bounds(self._range)
            inner = quantiles(*self._histogram.cells(), self._config.ple)
            inner = inner[(inner > ends[0]) & (inner < ends[1])]
            state["edges"] = np.unique(np.concatenate([ends, inner]))
        return state

    def _bins(self, bins: int, bounds: np.ndarray) -> dict[str, np.ndarray]:
        values, counts = self._histogram.cells()
        edges = np.unique(quantiles(values, counts, bins))
        edges = edges[edges > values[:1]]  # none is below the smallest value: no empty first bin
        ids = np.zeros(1 + bins, dtype=np.int64)
        ids[0] = self._missing
        ends = self._transformed(bounds)  # what infinite values become
        for x, n in ((values, counts), (ends, self._infinite)):
            np.add.at(ids, 1 + np.searchsorted(edges, x, side="right"), n)
        return {"edges": edges, "counts": ids}

    def _transformed(self, finite: np.ndarray) -> np.ndarray:
        if self._config.transform == "none":
            return np.clip(finite, -FLOAT32_MAX, FLOAT32_MAX)
        # By the graph's own operator: an edge must compare with what the graph computes.
        blocks = torch.from_numpy(np.ascontiguousarray(finite)).split(_BLOCK)
        return np.concatenate([self._prepare(block).numpy() for block in blocks])


def _widen(bounds: np.ndarray, x: np.ndarray) -> None:
    bounds[0] = min(bounds[0], x.min())
    bounds[1] = max(bounds[1], x.max())


def _bounds(bounds: np.ndarray) -> np.ndarray:
    """Bounds of nothing are 0 and 0; -0.0 becomes 0.0, whose order numpy leaves open."""
    return bounds + 0.0 if bounds[0] <= bounds[1] else np.zeros(2)
