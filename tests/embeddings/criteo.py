"""Criteo Kaggle's 26 categorical fields, for the golden sizes of the literature."""

from __future__ import annotations

from recsys.types import FieldSpec

SIZES = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
FIELDS = tuple(FieldSpec(f"c{i}", "categorical", num_ids=n) for i, n in enumerate(SIZES))
WIDTH = 16
TABLE_BYTES = 4 * WIDTH * sum(SIZES)
