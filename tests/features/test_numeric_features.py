"""Every numeric rule, computed by hand."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from recsys.features.numeric import Numeric

INF, NAN = math.inf, math.nan


def numbers(batch) -> list:
    return [[None if math.isnan(v) else v for v in row] for row in batch.floats.tolist()]


def f32(*values: float) -> list[float]:
    return torch.tensor(values, dtype=torch.float32).tolist()


def test_plain_value_missing_and_infinite(fit_table, encode_rows) -> None:
    features = fit_table({"x": {"type": "numeric"}}, {"x": [1.5, -2.0, INF, NAN, None, 8.0]})
    batch = encode_rows(features, {"x": [3.25, NAN, None, INF, -INF, 100.0, 1e300]})
    # Infinities become the finite training bounds; other values stay within 1000 widths of them.
    want = [[3.25], [None], [None], [8.0], [-2.0], [100.0], [8.0 + 1000 * 10.0]]
    assert numbers(batch) == want
    assert batch.floats.dtype == torch.float32
    (spec,) = features.fields
    assert (spec.kind, spec.width, spec.num_ids) == ("numeric", 1, None)


def test_log1p_is_odd(fit_table, encode_rows) -> None:
    features = fit_table({"x": {"type": "numeric", "transform": "log1p"}}, {"x": [0.0, 1.0]})
    batch = encode_rows(features, {"x": [0.0, math.e - 1, -3.0, None]})
    assert numbers(batch) == [[0.0], f32(1.0), f32(-math.log(4.0)), [None]]


def test_criteo_transform(fit_table, encode_rows) -> None:
    features = fit_table({"x": {"type": "numeric", "transform": "criteo"}}, {"x": [0.0, 1.0]})
    batch = encode_rows(features, {"x": [-1.0, 0.5, 2.0, 3.0, 10.0, 1000.0, None]})
    # log(3)^2 = 1.207, log(10)^2 = 5.302, log(1000)^2 = 47.717
    assert numbers(batch) == [[-1.0], [0.5], [2.0], [1.0], [5.0], [47.0], [None]]


def test_standard_is_after_the_transform_and_over_finite_values(fit_table, encode_rows) -> None:
    config = {"type": "numeric", "transform": "criteo", "normalise": "standard"}
    # Transformed training values: 2, 4, 4, 4, 5, 5, 7, 9: mean 5, deviation 2.
    raw = [2.0] + [math.exp(math.sqrt(k + 0.5)) for k in (4, 4, 4, 5, 5, 7, 9)]
    features = fit_table({"x": config}, {"x": [*raw, None, INF, NAN]})
    assert features.states["x"]["scale"].tolist() == [5.0, 2.0]
    batch = encode_rows(features, {"x": [raw[-1], 1.0, INF, None]})
    assert numbers(batch) == [[2.0], [-2.0], [2.0], [None]]


def test_constant_and_empty_columns(fit_table, encode_rows) -> None:
    config = {"x": {"type": "numeric", "normalise": "standard"}}
    features = fit_table(config, {"x": [3.0, 3.0]})
    assert numbers(encode_rows(features, {"x": [3.0, 5.0]})) == [[0.0], [2.0]]
    features = fit_table(config, {"x": pa.array([None, NAN], pa.float64())})
    assert numbers(encode_rows(features, {"x": [4.0, INF]})) == [[4.0], [0.0]]


def test_quantile_bins(fit_table, encode_rows) -> None:
    data = {"x": [*range(1, 11), None, None, None]}
    features = fit_table({"x": {"type": "numeric", "bins": 5}}, data)
    assert features.states["x"]["edges"].tolist() == [3.0, 5.0, 7.0, 9.0]
    (spec,) = features.fields
    assert (spec.kind, spec.num_ids) == ("categorical", 6)
    assert spec.counts.tolist() == [3, 2, 2, 2, 2, 2]
    rows = {"x": pa.array([None, -5.0, 2.9, 3.0, 8.99, 9.0, INF, -INF, NAN])}
    assert encode_rows(features, rows).ids[:, 0].tolist() == [0, 1, 1, 2, 4, 5, 5, 1, 0]


def test_equal_bin_edges_are_merged(fit_table, encode_rows) -> None:
    features = fit_table(
        {"x": {"type": "numeric", "bins": 4}}, {"x": [0.0] * 7 + [1.0, 2.0, 3.0, INF, -INF]}
    )
    # Sorted positions 2, 5, 7 of ten: 0, 0, 1; an edge at the minimum would leave a bin empty.
    assert features.states["x"]["edges"].tolist() == [1.0]
    assert features.fields[0].num_ids == 5
    assert features.fields[0].counts.tolist() == [0, 8, 4, 0, 0]
    assert encode_rows(features, {"x": [0.5, 1.0]}).ids[:, 0].tolist() == [1, 2]


def test_bins_of_an_empty_column(fit_table, encode_rows) -> None:
    data = {"x": pa.array([None, None], pa.float64())}
    features = fit_table({"x": {"type": "numeric", "bins": 3}}, data)
    assert features.fields[0].counts.tolist() == [2, 0, 0, 0]
    assert encode_rows(features, {"x": [1.0, None]}).ids[:, 0].tolist() == [1, 0]


def test_piecewise_linear(fit_table, encode_rows) -> None:
    features = fit_table({"x": {"type": "numeric", "ple": 4}}, {"x": [0, 1, 2, 4, 8]})
    # Sorted positions floor(5 k / 4) = 1, 2, 3 between the ends.
    assert features.states["x"]["edges"].tolist() == [0, 1, 2, 4, 8]
    assert features.fields[0].width == 4
    batch = encode_rows(features, {"x": [3.0, -1.0, 10.0, 0.25, None]})
    assert numbers(batch) == [
        [1.0, 1.0, 0.5, 0.0],
        [-1.0, 0.0, 0.0, 0.0],  # no lower limit in the first column
        [1.0, 1.0, 1.0, 1.5],  # no upper limit in the last
        [0.25, 0.0, 0.0, 0.0],
        [None] * 4,
    ]


@pytest.mark.parametrize(
    ("values", "edges", "code_of_2"),
    [([1, 1, 1, 3], [1.0, 3.0], [0.5, 0.0, 0.0]), ([1, 1], [1.0], [1.0, 0.0, 0.0])],
)
def test_piecewise_linear_with_merged_edges(
    fit_table, encode_rows, values, edges, code_of_2
) -> None:
    features = fit_table({"x": {"type": "numeric", "ple": 3}}, {"x": values})
    assert features.states["x"]["edges"].tolist() == edges
    assert numbers(encode_rows(features, {"x": [2]})) == [code_of_2]


def test_integers_bools_and_timestamps_are_numbers(fit_table, encode_rows) -> None:
    configs = {name: {"type": "numeric"} for name in ("i", "b", "t")}
    table = pa.table(
        {"i": [3, None], "b": [True, False], "t": pa.array([1500, 2000], pa.timestamp("ms"))}
    )
    features = fit_table(configs, table)
    assert numbers(encode_rows(features, table)) == [[3.0, 1.0, 1.5], [None, 0.0, 2.0]]


def test_outputs_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="normalise and ple exclude each other"):
        Numeric(type="numeric", normalise="standard", ple=4)
    with pytest.raises(ValidationError, match="bins and ple exclude each other"):
        Numeric(type="numeric", bins=4, ple=4)
