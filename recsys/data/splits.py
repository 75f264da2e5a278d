"""One log into train, valid and test; every row lands in exactly one part.

Counts are exact and do not depend on how the log is cut into files, row groups or batches:

- ``random``: row ``n`` of the log draws ``u = splitmix64(n, seed)`` in [0, 1): test if
  ``u < test``, valid if ``u < test + valid``, else train. Shares hold in expectation.
- ``time``: with ``N`` rows sorted by timestamp, the row at place ``N - round(N * test)`` opens
  test, the one at ``N - round(N * (test + valid))`` opens valid. Rows of equal timestamps stay
  together, in the later part, so the later parts hold at least their share.
- ``leave_last_out``: each group's last row (by timestamp, then place in the log) is test, the one
  before valid, the rest train. Rows whose group is null are train.

Memory: constant for ``random`` and ``time``, two rows per group for ``leave_last_out``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from recsys.data.ordering import last_rows, open_time_bounds, sort_keys
from recsys.data.targets import check_targets
from recsys.settings import DataConfig, SplitConfig
from recsys.types import InputError
from serving.parquet import Source, open_source

TRAIN, VALID, TEST = 0, 1, 2


@dataclass(frozen=True)
class Splits:
    """The three parts of a log; ``valid`` and ``test`` are None where there are none."""

    train: Source
    valid: Source | None
    test: Source | None


Assign = Callable[[int, int, pa.RecordBatch | None], np.ndarray]
"""(first row number, row count, rows) -> part of each row, (count,) uint8."""


def splits(config: DataConfig, root: str | os.PathLike[str] | None = None) -> Splits:
    """Open the data that ``config`` names and split it if asked; labels and weights are checked.

    Relative paths resolve against ``root``. Raises `InputError` for data that cannot be read, bad
    labels or weights, timestamps that cannot order rows, and an empty part.
    """
    if config.source is None:
        assert config.train is not None, "DataConfig has train or source"
        first = open_source(config.train, root)
        text = [field.name for field in first.schema if pa.types.is_string(field.type)]
        valid, test = (
            None if paths is None else open_source(paths, root, text=text)
            for paths in (config.valid, config.test)
        )
        for part in (first, valid, test):
            if part is not None:
                check_targets(part, config)
        return Splits(first, valid, test)
    assert config.split is not None, "DataConfig has split with source"
    source = open_source(config.source, root)
    check_targets(source, config)
    assign, needs, rule = _assignment(source, config, config.split)
    wanted = [True, config.split.valid > 0, config.split.test > 0]
    if config.split.method == "leave_last_out":
        wanted = [True, True, True]
    parts = [Part(source, assign, needs, rule, number, config.split) for number in range(3)]
    for part, want in zip(parts, wanted, strict=True):
        if want and part.num_rows == 0:
            raise InputError(
                f"data.split {config.split.method}: no row of {source.files[0]} falls into "
                f"{part.name}; use more rows or other fractions"
            )
    train, valid, test = parts
    return Splits(train, valid if wanted[VALID] else None, test if wanted[TEST] else None)


def _assignment(
    source: Source, config: DataConfig, split: SplitConfig
) -> tuple[Assign, tuple[str, ...], tuple[str, ...]]:
    """The rule, the columns that it reads from each batch, and all columns that decide."""
    if split.valid + split.test >= 1:
        raise InputError("data.split: valid + test must be below 1, or no row is left to train on")
    if split.method == "random":
        return _Random(split), (), ()
    assert config.timestamp is not None
    if split.method == "time":
        shares = (split.test + split.valid, split.test)
        bounds = open_time_bounds(source, config.timestamp, shares)
        return _Time(config.timestamp, bounds), (config.timestamp,), (config.timestamp,)
    assert config.group is not None
    last, before = last_rows(source, config.group, config.timestamp)
    return _Places(valid=before, test=last), (), (config.group, config.timestamp)


@dataclass(frozen=True)
class _Random:
    split: SplitConfig

    def __call__(self, first: int, count: int, rows: pa.RecordBatch | None) -> np.ndarray:
        u = splitmix64(np.arange(first, first + count, dtype=np.uint64), self.split.seed)
        share = (u >> np.uint64(11)).astype(np.float64) * 2.0**-53
        is_test = share < self.split.test
        is_valid = ~is_test & (share < self.split.test + self.split.valid)
        return is_test * np.uint8(TEST) + is_valid * np.uint8(VALID)


@dataclass(frozen=True)
class _Time:
    column: str
    bounds: tuple[int, int]  # sort key that opens valid, and test

    def __call__(self, first: int, count: int, rows: pa.RecordBatch | None) -> np.ndarray:
        assert rows is not None
        keys = sort_keys(rows.column(self.column), self.column)
        opens_valid, opens_test = self.bounds
        return (keys >= opens_valid).astype(np.uint8) + (keys >= opens_test).astype(np.uint8)


@dataclass(frozen=True)
class _Places:
    valid: np.ndarray  # sorted row numbers
    test: np.ndarray

    def __call__(self, first: int, count: int, rows: pa.RecordBatch | None) -> np.ndarray:
        out = np.zeros(count, np.uint8)
        for part, places in ((VALID, self.valid), (TEST, self.test)):
            a, b = np.searchsorted(places, (first, first + count))
            out[places[a:b] - first] = part
        return out


def splitmix64(values: np.ndarray, seed: int) -> np.ndarray:
    """The output of Vigna's splitmix64 at ``values`` steps from ``seed``, (N,) uint64."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed % 2**64) + (values + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


@dataclass(frozen=True)
class Part:
    """The rows of ``source`` that a split gives to one part; a `Source` itself.

    ``needs``: columns that ``assign`` reads from each batch; ``rule``: those that decide.
    """

    source: Source
    assign: Assign
    needs: tuple[str, ...]
    rule: tuple[str, ...]
    number: int
    split: SplitConfig
    num_rows: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "num_rows", sum(int(m.sum()) for _, m, _ in self._masks(self.needs))
        )

    @property
    def name(self) -> str:
        """``train``, ``valid`` or ``test``."""
        return ("train", "valid", "test")[self.number]

    @property
    def schema(self) -> pa.Schema:
        """That of the whole log."""
        return self.source.schema

    @property
    def files(self) -> tuple[str, ...]:
        """Those of the whole log."""
        return self.source.files

    @property
    def fingerprint(self) -> str:
        """Of the log, the split and the part."""
        text = f"{self.source.fingerprint} {self.split.model_dump_json()} {self.rule} {self.name}"
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def content(self) -> str:
        """That of the whole log."""
        return self.source.content

    def batches(
        self, columns: Sequence[str], batch_rows: int = 65536, dictionary: Sequence[str] = ()
    ) -> Generator[pa.RecordBatch, None, None]:
        """See `Source.batches`."""
        wanted = list(dict.fromkeys([*columns, *self.needs]))
        stream = self.source.batches(wanted, batch_rows, dictionary)
        return self._filtered(stream, list(dict.fromkeys(columns)))

    def place(self, row: int) -> str:
        """See `Source.place`."""
        for first, mask, _ in self._masks(self.needs):
            inside = np.flatnonzero(mask)
            if row < len(inside):
                return self.source.place(first + int(inside[row]))
            row -= len(inside)
        raise AssertionError("row number beyond the last row")

    def _filtered(
        self, stream: Iterator[pa.RecordBatch], columns: list[str]
    ) -> Generator[pa.RecordBatch, None, None]:
        first = 0
        for rows in stream:
            mask = self.assign(first, rows.num_rows, rows) == self.number
            first += rows.num_rows
            if mask.any():
                yield rows.select(columns).filter(pa.array(mask))

    def _masks(
        self, needs: tuple[str, ...]
    ) -> Iterator[tuple[int, np.ndarray, pa.RecordBatch | None]]:
        """(first row, membership of each row) over the whole log, reading only what it needs."""
        first = 0
        if needs:
            for rows in self.source.batches(needs):
                yield first, self.assign(first, rows.num_rows, rows) == self.number, rows
                first += rows.num_rows
            return
        for first in range(0, self.source.num_rows, 2**20):
            count = min(2**20, self.source.num_rows - first)
            yield first, self.assign(first, count, None) == self.number, None
