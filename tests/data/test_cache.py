"""The encoded cache: equal to the graph's own encoding, reused, rewritten, never half there."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import TypeAdapter

import recsys.data.blocks as blocks
import recsys.data.cache as cache
from recsys.data.cache import encoded
from recsys.data.rows import RowEncoder, RowIndexTooLarge
from recsys.embeddings import EmbeddingConfig, build_embeddings
from recsys.features import FeatureConfig, fit
from recsys.settings import DataConfig, TrainConfig
from recsys.types import InputError
from serving.encode import encode
from serving.parquet import open_source

CONFIGS = TypeAdapter(dict[str, FeatureConfig]).validate_python(
    {
        "site": {"type": "categorical", "min_count": 2, "oov_ids": 3},
        "open": {"type": "categorical", "encoding": "hash", "column": "site"},
        "code": {"type": "categorical", "encoding": "hash", "buckets": 7},
        "bins": {"type": "numeric", "column": "price", "bins": 5},
        "no_price": {"type": "null_indicator", "column": "price"},
        "no_site": {"type": "null_indicator", "column": "site"},
        "price": {"type": "numeric", "transform": "log1p", "normalise": "standard"},
        "steps": {"type": "numeric", "column": "price", "ple": 4},
        "tags": {"type": "bag"},
        "history": {"type": "sequence", "shares": "site", "max_length": 3},
    }
)
DATA = DataConfig(train="log", label="label", weight="weight", group="user")


def log(rows, seed=0):
    rng = np.random.default_rng(seed)
    site = [None if x == 0 else f"s{x}" for x in rng.zipf(1.5, rows).clip(0, 60) % 40]
    lists = lambda name, top, n: [  # noqa: E731
        None if k == n else [None if x == 5 else f"{name}{x}" for x in rng.integers(0, top, k)]
        for k in rng.integers(0, n + 1, rows)
    ]
    price = rng.lognormal(1, 1, rows)
    return pa.table(
        {
            "site": pa.array(site, pa.string()),
            "code": pa.array(rng.integers(-9, 9, rows), mask=rng.random(rows) < 0.1),
            "price": pa.array(price, mask=rng.random(rows) < 0.2),
            "tags": pa.array(lists("t", 12, 4), pa.list_(pa.string())),
            "history": pa.array(lists("s", 40, 6), pa.list_(pa.string())),
            "label": rng.integers(0, 2, rows),
            "weight": rng.random(rows),
            "user": [f"u{x}" for x in rng.integers(0, 9, rows)],
            "n": np.arange(rows),
        }
    )


def prepare(folder, rows=500, method="unified", group_rows=130):
    folder.mkdir(parents=True, exist_ok=True)
    table = log(rows)
    pq.write_table(table, folder / "x.parquet", row_group_size=group_rows)
    source = open_source(folder)
    features = fit(CONFIGS, source)
    options = {"method": method, "rows": 64} if method == "unified" else {"method": method}
    config = TypeAdapter(EmbeddingConfig).validate_python({"embedding_dim": 8, **options})
    id_map, _ = build_embeddings(config, features.fields, {"main": 8}, train=TrainConfig())
    return table, source, features, id_map


def joined(data, **options):
    """All batches of an epoch as one tuple of arrays; lists as Python lists of rows."""
    out = [[], [], [], [], [], []]
    for batch, target in data.batches(64, **options):
        lists = [
            [row[:n].tolist() for row, n in zip(one, lengths, strict=True)]
            for one, lengths in zip(batch.lists, batch.lengths.T, strict=True)
        ]
        per_row = list(zip(*lists, strict=True))
        for column, part in zip(out, (batch.ids, batch.floats, *target), strict=False):
            column += part.tolist()
        out[5] += per_row
    return out


def test_equals_encoder_and_id_map_on_the_whole_batch(tmp_path):
    table, source, features, id_map = prepare(tmp_path / "log")
    raw = encode(table, features.inputs)
    expected = id_map(features.encoder()(raw))
    data = encoded(source, features, id_map, DATA, tmp_path / "cache")
    assert len(data) == 500
    (batch, target), *more = data.batches(500)
    assert not more
    assert batch.ids.dtype == torch.int32
    assert torch.equal(batch.ids.long(), expected.ids)
    assert torch.equal(batch.floats.view(torch.int32), expected.floats.view(torch.int32))
    assert torch.equal(batch.lengths, expected.lengths)
    for ours, theirs in zip(batch.lists, expected.lists, strict=True):
        assert torch.equal(ours.long(), theirs)
    assert target.label.tolist() == table["label"].to_pylist()
    assert torch.equal(target.weight, torch.tensor(table["weight"].to_numpy()).float())
    users = np.array(table["user"].to_pylist())
    groups = target.group.numpy()
    assert (
        len(np.unique(groups)) == len(np.unique(users)) == len(set(zip(users, groups, strict=True)))
    )


@pytest.mark.parametrize("batch_rows", [1, 17, 64, 300])
def test_batching_of_the_reader_changes_nothing(tmp_path, monkeypatch, batch_rows):
    _, source, features, id_map = prepare(tmp_path / "log", rows=300)
    whole = joined(encoded(source, features, id_map, DATA, tmp_path / "a"))
    monkeypatch.setattr(cache, "BATCH_ROWS", batch_rows)
    for module in (cache, blocks):
        monkeypatch.setattr(module, "BLOCK_ROWS", 50)
    cut = encoded(source, features, id_map, DATA, tmp_path / "b")
    assert len(cut._blocks) == 6
    assert str(joined(cut)) == str(whole)  # as text: NaN equals NaN


@pytest.fixture
def small_blocks(tmp_path, monkeypatch):
    """513 rows in blocks of 20, shuffled in windows of 4 blocks."""
    for module in (cache, blocks):
        monkeypatch.setattr(module, "BLOCK_ROWS", 20)
    monkeypatch.setattr(cache, "WINDOW_BLOCKS", 4)
    table, source, features, id_map = prepare(tmp_path / "log", rows=513)
    return table, encoded(source, features, id_map, DATA, tmp_path / "cache")


@pytest.mark.parametrize("batch_size", [1, 7, 20, 64, 100, 513, 1000])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_row_once_an_epoch(small_blocks, batch_size, shuffle):
    table, data = small_blocks
    batches = list(data.batches(batch_size, shuffle=shuffle, seed=3))
    sizes = [len(target.label) for _, target in batches]
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
    assert sum(sizes) == 513
    weights = np.concatenate([target.weight.numpy() for _, target in batches])
    expected = table["weight"].to_numpy().astype(np.float32)
    assert len(np.unique(expected)) == 513, "weights name rows"
    assert np.array_equal(np.sort(weights), np.sort(expected))
    assert np.array_equal(weights, expected) == (not shuffle or batch_size >= 513)


@pytest.mark.parametrize("start", [0, 1, 5, 8, 9])
@pytest.mark.parametrize("shuffle", [False, True])
def test_start_continues_exactly(small_blocks, start, shuffle):
    _, data = small_blocks
    whole = list(data.batches(64, shuffle=shuffle, seed=1, epoch=2))
    rest = list(data.batches(64, shuffle=shuffle, seed=1, epoch=2, start=start))
    assert len(rest) == len(whole) - start
    assert str(rest) == str(whole[start:])


def test_shuffle_depends_on_seed_and_epoch_alone(small_blocks):
    _, data = small_blocks
    order = lambda seed, epoch: [  # noqa: E731
        w
        for _, t in data.batches(64, shuffle=True, seed=seed, epoch=epoch)
        for w in t.weight.tolist()
    ]
    assert order(1, 1) == order(1, 1)
    assert len({str(order(seed, epoch)) for seed in (1, 2) for epoch in (1, 2)}) == 4


def test_second_run_reuses_and_new_data_does_not(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="recsys")
    _, source, features, id_map = prepare(tmp_path / "log")
    data = encoded(source, features, id_map, DATA, tmp_path / "cache")
    stamp = os.stat(data.path).st_mtime_ns
    again = encoded(open_source(tmp_path / "log"), features, id_map, DATA, tmp_path / "cache")
    assert (again.path, os.stat(again.path).st_mtime_ns) == (data.path, stamp)
    assert ["written" in r.message for r in caplog.records] == [True, False]
    assert "reused" in caplog.records[-1].message
    pq.write_table(log(500, seed=1), tmp_path / "log" / "x.parquet", row_group_size=130)
    other = encoded(open_source(tmp_path / "log"), features, id_map, DATA, tmp_path / "cache")
    assert other.fingerprint != data.fingerprint
    unweighted = DATA.model_copy(update={"weight": None})
    assert encoded(source, features, id_map, unweighted, tmp_path / "cache").path != data.path


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_damaged_files_are_written_anew(tmp_path, damage):
    _, source, features, id_map = prepare(tmp_path / "log")
    data = encoded(source, features, id_map, DATA, tmp_path / "cache")
    expected, raw = str(joined(data)), data.path.read_bytes()
    wrong = raw.replace(data.fingerprint.encode(), b"0" * 64)
    data.path.write_bytes({"cut": raw[: len(raw) // 2], "empty": b"", "other": wrong}[damage])
    again = encoded(source, features, id_map, DATA, tmp_path / "cache")
    assert str(joined(again)) == expected


def test_killed_writer_leaves_nothing_valid(tmp_path):
    _, source, features, id_map = prepare(tmp_path / "log")
    script = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_cache as t
from pathlib import Path
t.blocks.BLOCK_ROWS = t.cache.BLOCK_ROWS = 100
source = t.open_source({str(tmp_path / "log")!r})
_, _, features, id_map = t.prepare(Path({str(tmp_path / "log")!r}))
t.encoded(source, features, id_map, t.DATA, {str(tmp_path / "cache")!r}, lambda n: os._exit(9))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=os.getcwd(), check=False)
    assert done.returncode == 9
    names = os.listdir(tmp_path / "cache")
    assert len(names) == 1
    assert names[0].startswith(".")
    data = encoded(source, features, id_map, DATA, tmp_path / "cache")
    assert len(joined(data)[2]) == 500


def test_failing_writer_removes_its_file(tmp_path):
    _, _, features, id_map = prepare(tmp_path / "log")
    bad = log(500).set_column(5, "label", pa.array([0] * 400 + [2] + [1] * 99))
    pq.write_table(bad, tmp_path / "log" / "x.parquet", row_group_size=130)
    with pytest.raises(InputError, match="row group 3, row 10 of the group: column 'label': 2"):
        encoded(open_source(tmp_path / "log"), features, id_map, DATA, tmp_path / "cache")
    assert os.listdir(tmp_path / "cache") == []


def test_serving_type_must_be_the_training_type(tmp_path):
    table, _, features, id_map = prepare(tmp_path / "log")
    table = table.set_column(1, "code", pa.array(["x"] * 500))
    (tmp_path / "valid").mkdir()
    pq.write_table(table, tmp_path / "valid" / "x.parquet")
    with pytest.raises(InputError, match="column 'code' is string"):
        encoded(open_source(tmp_path / "valid"), features, id_map, DATA, tmp_path / "cache")


@pytest.mark.parametrize("shift", [2**31, -(2**33)])
def test_row_indices_beyond_int32(tmp_path, shift):
    _, source, features, id_map = prepare(tmp_path / "log")
    expected = joined(encoded(source, features, id_map, DATA, tmp_path / "a"))
    small_rows, list_rows = id_map.field_rows, id_map.list_rows
    id_map.field_rows = lambda c, ids: small_rows(c, ids) + shift
    id_map.list_rows = lambda f, ids: list_rows(f, ids) + shift
    with pytest.raises(RowIndexTooLarge):
        RowEncoder(features, id_map, "int32").padding  # noqa: B018
    (batch, _), *_ = encoded(source, features, id_map, DATA, tmp_path / "b").batches(500)
    assert batch.ids.dtype == torch.int64
    assert (batch.ids - shift).tolist() == expected[0]


def test_an_absurd_list_is_refused_before_it_fills_the_memory(small_blocks, monkeypatch):
    monkeypatch.setattr(cache, "MAX_CELLS", 20)
    with pytest.raises(InputError, match=r"too long to pad a batch of .* set max_length"):
        list(small_blocks[1].batches(64, shuffle=False, seed=0))


def test_data_without_floats_or_lists(tmp_path):
    source = prepare(tmp_path / "log")[1]
    features = fit({"code": CONFIGS["code"]}, source)
    config = TypeAdapter(EmbeddingConfig).validate_python({"method": "full", "embedding_dim": 4})
    id_map, _ = build_embeddings(config, features.fields, {"main": 4}, train=TrainConfig())
    plain = DataConfig(train="log", label="label")
    batch, target = next(encoded(source, features, id_map, plain, tmp_path / "c").batches(200))
    assert (batch.ids.shape, batch.floats.shape, batch.lists) == ((200, 1), (200, 0), [])
    assert batch.lengths.shape == (200, 0)
    assert target.weight.unique().tolist() == [1.0]
    assert target.group.unique().tolist() == [0]
