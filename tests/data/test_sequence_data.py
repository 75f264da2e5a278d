"""Windows cover every item; batches hold every row once, in an order that (seed, epoch) decide."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from recsys.data import sequence_cache
from recsys.data import sequence_data as module
from recsys.data.item_space import fit_sequences
from recsys.data.sequence_data import SequenceData, Windows, sequence_data
from recsys.features import FeatureConfig, Features
from recsys.types import InputError
from serving.parquet import Source, open_source

CONFIGS = TypeAdapter(dict[str, FeatureConfig]).validate_python(
    {"seen": {"type": "sequence", "max_length": 4}}
)
WHOLE = Windows(length=10**6, stride=1)


def source_of(path: Path, lists: list[Any], targets: list[Any] | None = None) -> Source:
    columns = {"user": list(range(len(lists))), "seen": pa.array(lists, pa.list_(pa.int64()))}
    if targets is not None:
        columns["target"] = pa.array(targets, pa.int64())
    pq.write_table(pa.table(columns), path, row_group_size=5)
    return open_source(path)


def prepared(folder: Path, lists: list[Any]) -> tuple[Source, Features, dict[int, int]]:
    """Source, features, and raw item -> encoded id by the rule: falling count, ties by item."""
    source = source_of(folder / "train.parquet", lists)
    flat = [item for items in lists for item in items or []]
    ranked = sorted(set(flat), key=lambda item: (-flat.count(item), item))
    return source, fit_sequences(CONFIGS, source), {item: 2 + i for i, item in enumerate(ranked)}


def official(items: list[int], length: int, stride: int) -> list[list[int]]:
    """Windows as BERT4Rec's published preparation makes them, oldest first."""
    if len(items) <= length:
        return [items]
    firsts = [*range(len(items) - length, 0, -stride), 0]
    return [items[first : first + length] for first in firsts[::-1]]


def read(data: SequenceData, batch_size: int = 64, **options: Any) -> list[tuple[Any, ...]]:
    """(list, label, group) of all rows; checks shapes, types and padding on the way."""
    out = []
    for batch, target in data.batches(batch_size, **options):
        rows = len(target.label)
        (items,) = batch.lists
        assert 0 < rows <= batch_size
        assert batch.ids.shape == batch.floats.shape == (rows, 0)
        assert (batch.ids.dtype, batch.floats.dtype) == (torch.int64, torch.float32)
        assert (items.dtype, batch.lengths.dtype) == (torch.int64, torch.int64)
        assert items.shape == (rows, int(batch.lengths.max()))
        assert batch.lengths.shape == (rows, 1)
        assert target.label.dtype == target.group.dtype == torch.int64
        assert torch.equal(target.weight, torch.ones(rows))
        lengths = batch.lengths[:, 0].tolist()
        for row, n, label, group in zip(items, lengths, *map(list, target[::2]), strict=True):
            assert row[n:].eq(0).all(), "padding is 0"
            out.append((row[:n].tolist(), int(label), int(group)))
    return out


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    lengths=st.lists(st.integers(1, 25), min_size=1, max_size=12),
    length=st.integers(1, 9),
    data=st.data(),
)
def test_windows(
    lengths: list[int], length: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stride = data.draw(st.integers(1, length))
    least = data.draw(st.integers(1, min(length, 3)))
    folder = tmp_path_factory.mktemp("windows")
    rng = np.random.default_rng(sum(lengths))
    lists = [rng.integers(0, 30, n).tolist() for n in lengths]
    source, features, code = prepared(folder, lists)
    windows = Windows(length=length, stride=stride, least=least)
    expected = [
        [code[item] for item in window]
        for items in lists
        if len(items) >= least
        for window in official(items, length, stride)
    ]
    if not expected:
        with pytest.raises(InputError, match=f"no sequence has {least} items"):
            sequence_data(source, features, folder, windows=windows)
        return
    made = sequence_data(source, features, folder, windows=windows)
    assert len(made) == len(expected)
    found = read(made)
    assert [row[0] for row in found] == expected
    assert [row[1:] for row in found] == [(0, i) for i in range(len(expected))]
    for items in lists:
        cut = official(list(range(len(items))), length, stride)
        assert set().union(*cut) == set(range(len(items))), "every item is in a window"
        assert cut[-1][-1] == len(items) - 1, "the last one ends at the last item"
    assert max(len(row[0]) for row in found) <= length


def test_windows_by_hand(tmp_path: Path) -> None:
    source, features, code = prepared(tmp_path, [[1, 2, 3, 4, 5, 6, 7], [8], [], None, [9, 8]])
    bert = sequence_data(source, features, tmp_path, windows=Windows(length=4, stride=2))
    back = {value: key for key, value in code.items()}
    assert [[back[i] for i in row[0]] for row in read(bert)] == [
        [1, 2, 3, 4],
        [2, 3, 4, 5],
        [4, 5, 6, 7],
        [8],
        [9, 8],
    ]
    causal = sequence_data(source, features, tmp_path, windows=Windows(length=5, stride=4, least=2))
    assert [[back[i] for i in row[0]] for row in read(causal)] == [
        [1, 2, 3, 4, 5],
        [3, 4, 5, 6, 7],
        [9, 8],
    ]


@pytest.mark.parametrize(
    ("length", "stride", "least"), [(4, 5, 1), (4, 0, 1), (4, 2, 5), (4, 2, 0)]
)
def test_windows_that_skip_items_are_no_windows(length: int, stride: int, least: int) -> None:
    with pytest.raises(AssertionError):
        Windows(length=length, stride=stride, least=least)


def test_unseen_items_and_whole_histories(tmp_path: Path) -> None:
    _, features, code = prepared(tmp_path, [[5, 6, 7, 5, 8, 9, 5], [6]])
    lists = [[5, 77, 9], list(range(5, 10)) * 3, [], None, [6, None]]
    valid = source_of(tmp_path / "valid.parquet", lists, [77, 8, 5, 6, 9])
    found = read(sequence_data(valid, features, tmp_path, windows=None))
    assert [row[0] for row in found] == [
        [code[5], 1, code[9]],
        [code[i] for i in range(5, 10)] * 3,  # longer than max_length: nothing is cut
        [],
        [],
        [code[6], 0],
    ]
    assert [row[1] for row in found] == [1, code[8], code[5], code[6], code[9]]
    assert [row[2] for row in found] == [0, 1, 2, 3, 4]


@pytest.fixture
def many(tmp_path: Path) -> Any:
    """A train set of 300 sequences whose windows are all different; 64 rows are shuffled together,
    in blocks of 2."""
    lists = [[i, *range(1000, 1000 + i % 7)] for i in range(300)]
    with patch.object(module, "SHUFFLE_ROWS", 64), patch.object(sequence_cache, "BATCH_ROWS", 17):
        source, features, _ = prepared(tmp_path, lists)
        windows = Windows(length=3, stride=2)
        yield sequence_data(source, features, tmp_path, windows=windows)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 100, 10_000])
def test_every_row_once(many: SequenceData, batch_size: int) -> None:
    plain = read(many, batch_size)
    assert [row[2] for row in plain] == list(range(len(many)))
    shuffled = read(many, batch_size, shuffle=True, seed=3, epoch=1)
    assert sorted(shuffled, key=lambda row: row[2]) == plain
    assert (shuffled == plain) == (batch_size == 10_000)
    sizes = [len(target.label) for _, target in many.batches(batch_size, shuffle=True)]
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)


def test_shuffle_depends_on_seed_and_epoch_alone(many: SequenceData) -> None:
    order = lambda seed, epoch: read(many, 64, shuffle=True, seed=seed, epoch=epoch)  # noqa: E731
    assert order(1, 1) == order(1, 1)
    assert len({str(order(seed, epoch)) for seed in (1, 2) for epoch in (1, 2)}) == 4


def test_shuffle_mixes_the_whole_file_if_it_is_small(many: SequenceData) -> None:
    with patch.object(module, "SHUFFLE_ROWS", 2**20):
        groups = [row[2] for row in read(many, 8, shuffle=True, seed=5)]
    spread = np.ptp(np.array(groups[: len(groups) // 8 * 8]).reshape(-1, 8), axis=1)
    # Eight of n uniform numbers span 7/9 n on average.
    assert abs(spread.mean() / len(groups) - 7 / 9) < 0.06


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("start", [0, 1, 2, 5, 8, 9, 40])
def test_start_continues_exactly(many: SequenceData, start: int, shuffle: bool) -> None:
    whole = list(many.batches(50, shuffle=shuffle, seed=1, epoch=2))
    rest = list(many.batches(50, shuffle=shuffle, seed=1, epoch=2, start=start))
    assert len(rest) == max(len(whole) - start, 0)
    assert str(rest) == str(whole[start:])


def test_batches_are_the_callers_own(many: SequenceData) -> None:
    before = read(many)
    for batch, target in many.batches(64):
        batch.lists[0].fill_(-1)
        target.label.fill_(-1)
        target.group.fill_(-1)
    assert read(many) == before


def test_one_cache_for_all_windows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="recsys")
    source, features, _ = prepared(tmp_path, [[1, 2, 3, 4], [5, 6]])
    first = sequence_data(source, features, tmp_path / "c", windows=Windows(length=3, stride=1))
    again = sequence_data(source, features, tmp_path / "c", windows=Windows(length=3, stride=1))
    other = sequence_data(source, features, tmp_path / "c", windows=Windows(length=3, stride=2))
    assert first.path == again.path == other.path
    assert ["reused" in record.message for record in caplog.records] == [False, True, True]
    assert first.fingerprint == again.fingerprint != other.fingerprint
    changed = source_of(tmp_path / "other.parquet", [[1, 2, 3, 4], [5, 7]])
    new = sequence_data(changed, features, tmp_path / "c", windows=Windows(length=3, stride=1))
    assert new.path != first.path
    assert new.fingerprint != first.fingerprint


@pytest.mark.parametrize("damage", ["cut", "meta", "key", "gone"])
def test_damaged_cache_is_written_anew(tmp_path: Path, damage: str) -> None:
    source, features, _ = prepared(tmp_path, [[1, 2, 3, 4], [5, 6]])
    data = sequence_data(source, features, tmp_path / "c", windows=WHOLE)
    expected, meta = read(data), data.path / "meta.json"
    key = data.path.name.removesuffix(".sequences")
    {
        "cut": lambda: (data.path / "values").write_bytes(b"\0" * 8),
        "meta": lambda: meta.write_text("{"),
        "key": lambda: meta.write_text(meta.read_text().replace(key, "0" * 32)),
        "gone": lambda: (data.path / "ends").unlink(),
    }[damage]()
    assert read(sequence_data(source, features, tmp_path / "c", windows=WHOLE)) == expected
    assert len(list((tmp_path / "c").iterdir())) == 1


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    source, features, _ = prepared(tmp_path, [[1, 2, 3, 4], [5, 6]])

    def stop(rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sequence_data(source, features, tmp_path / "c", windows=WHOLE, progress=stop)
    assert list((tmp_path / "c").iterdir()) == []


def test_clear_refusals(tmp_path: Path) -> None:
    source, features, _ = prepared(tmp_path, [[1, 2, 3, 4], [5, 6]])
    with pytest.raises(InputError, match=r"train\.parquet: column 'target' \(int\) is missing"):
        sequence_data(source, features, tmp_path, windows=None)
    texts = pa.table({"seen": [["1"]], "target": ["2"]})
    pq.write_table(texts, tmp_path / "texts.parquet")
    with pytest.raises(InputError, match=r"column 'seen' is list.*trained on list of int"):
        sequence_data(open_source(tmp_path / "texts.parquet"), features, tmp_path, windows=None)
    lists = [[1]] * 9
    unknown = source_of(tmp_path / "unknown.parquet", lists, [2, 2, 2, 2, 2, 2, 2, None, 2])
    with pytest.raises(InputError, match=r"unknown\.parquet, row group 1, row 2 .*: target is"):
        sequence_data(unknown, features, tmp_path, windows=None)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the encoded sequences"):
        sequence_data(source, features, tmp_path / "file", windows=WHOLE)
    data = sequence_data(source, features, tmp_path / "c", windows=WHOLE)
    with (
        patch.object(module, "MAX_CELLS", 7),
        pytest.raises(InputError, match="has 4 items, too many to pad 2 rows to; use smaller"),
    ):
        next(data.batches(2))


def test_texts(tmp_path: Path) -> None:
    """Text goes through dictionaries: their codes must not be taken for items."""
    lists = [["b", "a", "b"], ["c", "b", "a"], ["b"]] * 4
    pq.write_table(pa.table({"seen": lists}), tmp_path / "x.parquet", row_group_size=3)
    source = open_source(tmp_path / "x.parquet")
    features = fit_sequences(CONFIGS, source)
    with patch.object(sequence_cache, "BATCH_ROWS", 5):
        data = sequence_data(source, features, tmp_path, windows=WHOLE)
    code = {"b": 2, "a": 3, "c": 4}
    assert [row[0] for row in read(data)] == [[code[item] for item in items] for items in lists]
