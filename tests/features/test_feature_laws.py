"""Laws of features: any rows, any order, any chunks; eager, scripted and exported alike."""

from __future__ import annotations

import io
import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.features import FEATURES, Features
from recsys.types import Batch
from serving.encode import encode

CONFIGS = {
    "c": {"type": "categorical", "min_count": 2, "oov_ids": 2},
    "top": {"type": "categorical", "column": "c", "max_size": 2},
    "n": {"type": "categorical"},
    "hashed": {"type": "categorical", "column": "n", "encoding": "hash", "buckets": 7},
    "open": {"type": "categorical", "column": "n", "encoding": "hash"},
    "no_x": {"type": "null_indicator", "column": "x"},
    "no_c": {"type": "null_indicator", "column": "c"},
    "bins": {"type": "numeric", "column": "x", "bins": 3},
    "x": {"type": "numeric", "transform": "log1p", "normalise": "standard"},
    "ple": {"type": "numeric", "column": "x", "transform": "criteo", "ple": 3},
    "h": {"type": "sequence", "shares": "c", "max_length": 2},
    "g": {"type": "bag", "column": "h", "pooling": "mean"},
}
SCHEMA = pa.schema(
    {"c": pa.string(), "n": pa.int64(), "x": pa.float64(), "h": pa.list_(pa.string())}
)
TEXT = st.one_of(st.none(), st.sampled_from(["", "a", "b", "c", "é"]), st.text(max_size=3))
ROW = st.fixed_dictionaries(
    {
        "c": TEXT,
        "n": st.one_of(st.none(), st.integers(-3, 3), st.integers(-(2**63) + 1, 2**63 - 1)),
        "x": st.one_of(st.none(), st.floats(), st.integers(0, 5).map(float)),
        "h": st.one_of(st.none(), st.lists(TEXT, max_size=4)),
    }
)
ROWS = st.lists(ROW, min_size=1, max_size=30)


def table_of(rows) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def same(a: Batch, b: Batch) -> None:
    assert torch.equal(a.ids, b.ids)
    assert torch.equal(a.floats.isnan(), b.floats.isnan())
    assert torch.equal(a.floats.nan_to_num(), b.floats.nan_to_num())
    assert a.floats.dtype == b.floats.dtype == torch.float32
    assert len(a.lists) == len(b.lists)
    assert all(torch.equal(x, y) for x, y in zip(a.lists, b.lists, strict=True))
    assert torch.equal(a.lengths, b.lengths)


@pytest.fixture(scope="module")
def fitted(fit_table) -> Features:
    rng = np.random.default_rng(0)
    rows = [
        {
            "c": None if rng.random() < 0.1 else str(rng.zipf(1.5) % 50),
            "n": int(rng.integers(20)),
            "x": None if rng.random() < 0.1 else float(rng.lognormal(1, 2)),
            "h": [str(i) for i in rng.integers(0, 60, rng.integers(4))],
        }
        for _ in range(300)
    ]
    return fit_table(CONFIGS, table_of(rows))


def test_every_kind_is_under_the_laws() -> None:
    assert {config["type"] for config in CONFIGS.values()} == set(FEATURES)


@settings(deadline=None, max_examples=60)
@given(rows=ROWS, chunk=st.integers(1, 10), random=st.randoms())
def test_fit_does_not_depend_on_order_or_chunks(fit_table, rows, chunk, random) -> None:
    table = table_of(rows)
    before = repr(table.to_pylist())
    features = fit_table(CONFIGS, table)
    shuffled = rows.copy()
    random.shuffle(shuffled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recsys.features.counting._PENDING", 5)
        other = fit_table(CONFIGS, table_of(shuffled), chunk)
    assert other.fingerprint == features.fingerprint
    assert repr(table.to_pylist()) == before


@settings(deadline=None, max_examples=60)
@given(rows=ROWS)
def test_counts_are_those_of_the_encoded_training_rows(fit_table, rows) -> None:
    features = fit_table(CONFIGS, table_of(rows))
    batch = features.encoder()(encode(table_of(rows), features.inputs))
    for c, spec in enumerate(features.fields):
        if spec.kind == "categorical" and spec.num_ids is not None and spec.name != "c":
            got = torch.bincount(batch.ids[:, c], minlength=spec.num_ids)
            assert got.tolist() == spec.counts.tolist(), spec.name


@settings(deadline=None, max_examples=60)
@given(rows=ROWS, cut=st.integers(0, 30))
def test_encoding_parts_is_encoding_the_whole(fitted, rows, cut) -> None:
    encoder = fitted.encoder()
    raw = encode(table_of(rows), fitted.inputs)
    kept = [raw.ids.clone(), raw.floats.clone(), *(x.clone() for x in raw.lists)]
    whole = encoder(raw)
    parts = [
        encoder(Batch(raw.ids[at], raw.floats[at], [x[at] for x in raw.lists], raw.lengths[at]))
        for at in (slice(0, cut), slice(cut, None))
    ]
    joined = Batch(
        torch.cat([p.ids for p in parts]),
        torch.cat([p.floats for p in parts]),
        [torch.cat(lists) for lists in zip(*(p.lists for p in parts), strict=True)],
        torch.cat([p.lengths for p in parts]),
    )
    same(joined, whole)
    assert torch.equal(kept[0], raw.ids)
    assert kept[1].numpy().tobytes() == raw.floats.numpy().tobytes()
    assert all(torch.equal(a, b) for a, b in zip(kept[2:], raw.lists, strict=True))
    # Every output is usable: ids within their space, numbers finite or missing.
    for c, spec in enumerate(s for s in fitted.fields if s.kind == "categorical"):
        if spec.num_ids is not None:
            assert int(whole.ids[:, c].min()) >= 0
            assert int(whole.ids[:, c].max()) < spec.num_ids
    assert not whole.floats.isinf().any()
    missing = [row["x"] is None or math.isnan(row["x"]) for row in rows]
    assert whole.floats.isnan().all(1).tolist() == missing
    assert whole.floats.isnan().any(1).tolist() == missing


@pytest.fixture(scope="module")
def scripted(fitted) -> torch.jit.ScriptModule:
    sink = io.BytesIO()
    torch.jit.save(torch.jit.script(fitted.encoder()), sink)
    sink.seek(0)
    return torch.jit.load(sink)


@settings(deadline=None, max_examples=40)
@given(rows=st.lists(ROW, max_size=8))
def test_script_is_eager(fitted, scripted, rows) -> None:
    raw = encode(table_of(rows), fitted.inputs)
    same(Batch(*scripted(raw)), fitted.encoder()(raw))


def test_export_with_any_number_of_rows(fitted) -> None:
    def raw(rows: int) -> Batch:
        rng = torch.Generator().manual_seed(rows)
        return Batch(
            torch.randint(0, 50, (rows, 2), generator=rng),
            torch.rand(rows, 1, generator=rng, dtype=torch.float64) * 9,
            [torch.randint(0, 50, (rows, 2), generator=rng) for _ in range(2)],
            torch.full((rows, 2), 2),
        )

    encoder = fitted.encoder()
    rows = torch.export.Dim("rows", min=2, max=4096)
    shapes = {"raw": Batch({0: rows}, {0: rows}, [{0: rows}, {0: rows}], {0: rows})}
    program = torch.export.export(encoder, (raw(8),), dynamic_shapes=shapes)
    for size in (2, 8, 1000):
        same(program.module()(raw(size)), encoder(raw(size)))


def test_columns_alone_equal_the_whole(fitted) -> None:
    """What a cache writer does: one feature at a time, on distinct values."""
    rows = [{"c": "1", "n": 3, "x": 2.5, "h": ["4"]}, {"c": None, "n": None, "x": None, "h": None}]
    raw = encode(table_of(rows), fitted.inputs)
    encoder = fitted.encoder()
    whole = encoder(raw)
    for c, (feature, source) in enumerate(
        zip(encoder.id_features, encoder.id_sources, strict=True)
    ):
        column = raw.ids[:, source] if source >= 0 else raw.floats[:, -1 - source]
        assert torch.equal(feature(column), whole.ids[:, c])
    numbers = [
        feature(raw.floats[:, source])
        for feature, source in zip(encoder.float_features, encoder.float_sources, strict=True)
    ]
    assert [x.shape[1] for x in numbers] == [s.width for s in fitted.fields if s.kind == "numeric"]
    assert torch.cat(numbers, 1).numpy().tobytes() == whole.floats.numpy().tobytes()
    for feature, elements, want in zip(encoder.list_features, raw.lists, whole.lists, strict=True):
        assert torch.equal(feature(elements.reshape(-1)), want.reshape(-1))


def test_encoders_of_one_state_are_independent(fitted) -> None:
    one, two = fitted.encoder(), fitted.encoder()
    with torch.no_grad():
        for buffer in one.buffers():
            buffer.zero_()
    assert any(buffer.abs().sum() > 0 for buffer in two.buffers())


def test_only_lists_or_only_numbers(fit_table, encode_rows) -> None:
    features = fit_table({"x": {"type": "numeric"}}, {"x": [1.0, 2.0]})
    batch = encode_rows(features, {"x": [1.0, 2.0, 3.0]})
    assert batch.ids.shape == (3, 0)
    assert batch.floats.tolist() == [[1.0], [2.0], [3.0]]
    features = fit_table({"h": {"type": "bag"}}, {"h": [[1], [2]]})
    batch = encode_rows(features, {"h": [[1, 2]]})
    assert batch.ids.shape == (1, 0)
    assert batch.floats.shape == (1, 0)
    assert batch.lists[0].tolist() == [[2, 3]]
