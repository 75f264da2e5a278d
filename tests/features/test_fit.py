"""What is fitted, what is refused, and how it survives the disk."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter, ValidationError

from recsys.features import FeatureConfig, Features, fit
from recsys.features.hashing import reduce_ids_np, salt
from recsys.types import NULL_ID, InputError
from serving.encode import ids_of
from serving.parquet import open_source

CONFIGS = TypeAdapter(dict[str, FeatureConfig])
COLOURS = ["red", "red", "red", "blue", "blue", "green", "", None, None]


def ids(batch) -> list[int]:
    return batch.ids[:, 0].tolist()


def test_vocabulary_layout(fit_table, encode_rows) -> None:
    features = fit_table({"c": {"type": "categorical"}}, {"c": COLOURS})
    (spec,) = features.fields
    rare = sorted(["green", ""], key=lambda text: ids_of(pa.array([text]), "c")[0])
    assert spec.num_ids == 6
    assert spec.counts.tolist() == [2, 0, 3, 2, 1, 1]  # null, unseen, red, blue, then ties by id
    rows = {"c": [None, "pink", "red", "blue", *rare]}
    assert ids(encode_rows(features, rows)) == [0, 1, 2, 3, 4, 5]


def test_min_count_max_size_and_oov(fit_table, encode_rows) -> None:
    features = fit_table({"c": {"type": "categorical", "min_count": 2}}, {"c": COLOURS})
    assert features.fields[0].counts.tolist() == [2, 2, 3, 2]
    assert ids(encode_rows(features, {"c": ["green", "", "blue"]})) == [1, 1, 3]

    features = fit_table({"c": {"type": "categorical", "max_size": 1}}, {"c": COLOURS})
    assert features.fields[0].counts.tolist() == [2, 4, 3]

    config = {"type": "categorical", "min_count": 2, "oov_ids": 3}
    features = fit_table({"c": config}, {"c": COLOURS})
    cut = ids_of(pa.array(["green", ""]), "c")
    oov = np.bincount(reduce_ids_np(cut, 0, 3), minlength=3)
    assert features.fields[0].counts.tolist() == [2, *oov, 3, 2]
    want = [*(1 + reduce_ids_np(cut, 0, 3)), 4]
    assert ids(encode_rows(features, {"c": ["green", "", "red"]})) == want


def test_hash_buckets(fit_table, encode_rows) -> None:
    config = {"type": "categorical", "encoding": "hash", "buckets": 5}
    features = fit_table({"c": config}, {"c": COLOURS})
    raw = ids_of(pa.array([*COLOURS[:7], "unseen"]), "c")
    want = 1 + reduce_ids_np(raw, salt("c"), 5)
    assert ids(encode_rows(features, {"c": [*COLOURS[:7], "unseen", None]})) == [*want, 0]
    (spec,) = features.fields
    assert spec.num_ids == 6
    assert spec.counts.tolist() == [2, *np.bincount(want[:7], minlength=6)[1:]]


def test_open_hash_passes_ids_through(fit_table, encode_rows) -> None:
    features = fit_table({"c": {"type": "categorical", "encoding": "hash"}}, {"c": [5, 6]})
    assert features.fields[0].num_ids is None
    assert features.fields[0].counts is None
    assert ids(encode_rows(features, {"c": [5, -7, None]})) == [5, -7, NULL_ID]


def test_null_indicator(fit_table, encode_rows) -> None:
    configs = {
        "text": {"type": "null_indicator", "column": "c"},
        "number": {"type": "null_indicator", "column": "x"},
    }
    data = {"c": ["a", None, ""], "x": [1.0, np.nan, 0.0]}
    features = fit_table(configs, data)
    assert [spec.counts.tolist() for spec in features.fields] == [[1, 2], [1, 2]]
    assert encode_rows(features, data).ids.tolist() == [[1, 1], [0, 0], [1, 1]]


def test_lists_are_cut_before_counting(fit_table, encode_rows) -> None:
    history = [[1, 2, 3], [3], None, [], [4, None]]
    features = fit_table({"h": {"type": "sequence", "max_length": 2}}, {"h": history})
    (spec,) = features.fields
    # Counted: 2 3 / 3 / / / 4 null. Order: 3, then 2 and 4 by id.
    assert spec.counts.tolist() == [1, 0, 2, 1, 1]
    assert (spec.kind, spec.pooling, spec.max_length) == ("sequence", "mean", 2)
    batch = encode_rows(features, {"h": [*history, [9, 4]]})
    want = [[3, 2], [2, 0], [0, 0], [0, 0], [4, 0], [1, 4]]
    assert batch.lists[0].tolist() == want
    assert batch.lengths[:, 0].tolist() == [2, 1, 0, 0, 2, 2]


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_shared_vocabulary_counts_both_columns(fit_table, encode_rows, chunk) -> None:
    configs = {
        "history": {"type": "bag", "shares": "item"},
        "item": {"type": "categorical", "column": "target"},
    }
    data = {"target": ["a", "b", "b"], "history": [["c", "c", "c"], ["a"], None]}
    features = fit_table(configs, data, chunk)
    item, history = features.fields  # categorical fields come first
    assert (item.name, history.name, history.shares) == ("item", "history", "item")
    assert history.num_ids == item.num_ids == 5
    a, b = sorted(["a", "b"], key=lambda text: ids_of(pa.array([text]), "x")[0])
    assert item.counts.tolist() == [0, 0, 3, 2, 2]
    batch = encode_rows(features, {"target": ["c", a], "history": [[a, b], ["c", "new"]]})
    assert batch.ids[:, 0].tolist() == [2, 3]
    assert batch.lists[0].tolist() == [[3, 4], [2, 1]]


def test_fields_and_inputs_are_ordered(fit_table) -> None:
    configs = {
        "h": {"type": "sequence", "max_length": 3, "shares": "c"},
        "x": {"type": "numeric", "ple": 3},
        "bin": {"type": "numeric", "bins": 2, "column": "x"},
        "c": {"type": "categorical"},
        "no_c": {"type": "null_indicator", "column": "c"},
        "g": {"type": "bag", "column": "h"},
    }
    features = fit_table(configs, {"h": [["a"], ["b"]], "x": [1.0, 2.0], "c": ["a", "c"]})
    assert [field.name for field in features.fields] == ["bin", "c", "no_c", "x", "h", "g"]
    kinds = [(i.name, i.column, i.kind, i.dtype, i.max_length) for i in features.inputs]
    assert kinds == [
        ("c", "c", "id", "text", None),
        ("x", "x", "float", "float", None),
        ("h", "h", "ids", "text", 3),
        ("g", "h", "ids", "text", None),
    ]
    encoder = features.encoder()
    assert encoder.id_sources == [-1, 0, 0]
    assert encoder.float_sources == [0]


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        ({"colr": {"type": "categorical"}}, r"column 'colr' is missing.*did you mean 'color'"),
        ({"x": {"type": "categorical"}}, r"features.x: column 'x' .* is double.*type numeric"),
        ({"color": {"type": "numeric"}}, r"features.color: .* is string.*type categorical"),
        ({"tags": {"type": "categorical"}}, r"features.tags: .* is list.*type bag or sequence"),
        ({"deep": {"type": "bag"}}, r"features.deep: .* is list<.*list<.*flatten its lists"),
        ({"tags": {"type": "null_indicator"}}, r"features.tags: .* is list"),
        ({"color": {"type": "bag"}}, r"features.color: .* is string.*list column"),
        ({"w": {"type": "bag", "column": "weights"}}, r"features.w: .* is list<.*double>"),
        ({"nothing": {"type": "categorical"}}, r"features.nothing: .* nothing but null"),
        ({"tags": {"type": "bag", "shares": "color"}}, r"tags.shares names 'color', which is no"),
        (
            {"x": {"type": "numeric"}, "tags": {"type": "bag", "shares": "x"}},
            r"tags.shares names 'x', of type numeric",
        ),
        (
            {"n": {"type": "categorical"}, "tags": {"type": "bag", "shares": "n"}},
            r"tags \(text\) cannot share 'n' \(int\)",
        ),
        (
            {
                "color": {"type": "categorical"},
                "tags": {"type": "bag", "shares": "color"},
                "more": {"type": "bag", "column": "tags", "shares": "tags"},
            },
            r"more.shares names 'tags', which itself shares 'color'",
        ),
    ],
)
def test_unusable_columns_are_named(fit_table, configs, message) -> None:
    table = pa.table(
        {
            "color": ["red"],
            "x": [0.5],
            "n": [1],
            "tags": [["a"]],
            "weights": [[0.5]],
            "deep": [[["a"]]],
            "nothing": pa.nulls(1),
        }
    )
    with pytest.raises(InputError, match=message) as caught:
        fit_table(configs, table)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "categorical", "buckets": 5}, "only for encoding hash"),
        ({"type": "categorical", "encoding": "hash", "min_count": 2}, "min_count: only for"),
        ({"type": "bag", "shares": "c", "oov_ids": 4}, "oov_ids: decided by the shared"),
        ({"type": "sequence"}, "max_length"),
        ({"type": "categorical", "typo": 1}, "typo"),
    ],
)
def test_configs_that_cannot_work(config, message) -> None:
    with pytest.raises(ValidationError, match=message):
        CONFIGS.validate_python({"f": config})


def test_configs_survive_a_full_dump() -> None:
    tree = {
        "c": {"type": "categorical", "encoding": "hash"},
        "h": {"type": "sequence", "max_length": 3, "shares": "c"},
    }
    configs = CONFIGS.validate_python(tree)
    assert CONFIGS.validate_python(CONFIGS.dump_python(configs, mode="json")) == configs


ALL_KINDS = {
    "c": {"type": "categorical", "oov_ids": 2},
    "hashed": {"type": "categorical", "column": "c", "encoding": "hash", "buckets": 7},
    "open": {"type": "categorical", "column": "c", "encoding": "hash"},
    "x": {"type": "numeric", "transform": "log1p", "normalise": "standard"},
    "bins": {"type": "numeric", "column": "x", "bins": 3},
    "ple": {"type": "numeric", "column": "x", "ple": 3},
    "h": {"type": "sequence", "shares": "c", "max_length": 2},
    "no_x": {"type": "null_indicator", "column": "x"},
}
DATA = {
    "c": ["a", "b", None, "a"],
    "x": [0.1, None, 0.7, 9.3],
    "h": [["a", "z"], None, [], ["q", "a", "b"]],
}


def test_round_trip_through_the_disk(fit_table, encode_rows, tmp_path) -> None:
    features = fit_table(ALL_KINDS, DATA)
    features.save(tmp_path / "new")
    loaded = Features.load(tmp_path / "new")
    assert loaded.fingerprint == features.fingerprint
    assert loaded.inputs == features.inputs
    assert loaded.fields == features.fields
    for got, want in zip(loaded.fields, features.fields, strict=True):
        assert (got.counts is None) == (want.counts is None)
        assert got.counts is None or got.counts.tolist() == want.counts.tolist()
    a, b = encode_rows(loaded, DATA), encode_rows(features, DATA)
    assert a.ids.tolist() == b.ids.tolist()
    assert a.floats.numpy().tobytes() == b.floats.numpy().tobytes()
    assert a.lists[0].tolist() == b.lists[0].tolist()


def test_fingerprint_covers_config_order_and_state(fit_table) -> None:
    base = fit_table(ALL_KINDS, DATA).fingerprint
    assert fit_table(ALL_KINDS, DATA).fingerprint == base
    assert fit_table(dict(reversed(ALL_KINDS.items())), DATA).fingerprint != base
    assert fit_table(ALL_KINDS | {"x": {"type": "numeric"}}, DATA).fingerprint != base
    assert fit_table(ALL_KINDS, DATA | {"x": [0.1, None, 0.7, 9.4]}).fingerprint != base


def test_damaged_files_are_named(fit_table, tmp_path) -> None:
    fit_table(ALL_KINDS, DATA).save(tmp_path)
    text = (tmp_path / "features.json").read_text()
    tree = json.loads(text)
    for change, message in (
        (text[:50], "cannot be read"),
        (json.dumps(tree | {"format": 2}), "format is not 1"),
        (json.dumps(tree | {"features": {"c": {"type": "other"}}}), "damaged"),
        (text.replace("log1p", "criteo"), "fingerprint differs"),
    ):
        (tmp_path / "features.json").write_text(change)
        with pytest.raises(InputError, match=message):
            Features.load(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        Features.load(tmp_path / "absent")


def test_fit_on_parquet_in_one_pass(tmp_path, fit_table) -> None:
    table = pa.table(DATA)
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=2)
    seen: list[int] = []
    source = open_source(tmp_path / "log.parquet")
    features = fit(CONFIGS.validate_python(ALL_KINDS), source, seen.append)
    assert sum(seen) == 4
    assert features.fingerprint == fit_table(ALL_KINDS, table).fingerprint
