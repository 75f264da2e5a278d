"""Two parts of the encoded rows: each row in exactly one of them, whatever the order."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.build import build
from recsys.config import parse_config
from recsys.data import EncodedData, encoded, splits
from recsys.features import fit


@pytest.fixture(name="rows")
def encoded_rows(tmp_path: Path) -> EncodedData:
    count = 20_000
    table = pa.table({"id": np.arange(count), "label": np.arange(count) % 2})
    pq.write_table(table, tmp_path / "log.parquet")
    config = parse_config(
        {
            "name": "parts",
            "data": {"train": "log.parquet", "label": "label"},
            "features": {"id": {"type": "categorical"}},
            "embedding": {"method": "full", "embedding_dim": 2},
            "model": {"name": "lr"},
        }
    )
    source = splits(config.data, str(tmp_path)).train
    features = fit(config.features, source)
    id_map = build(config, features).id_map
    return encoded(source, features, id_map, config.data, tmp_path / "cache")


def ids(rows: EncodedData, **options: int | bool) -> list[int]:
    return [int(i) for batch, _ in rows.batches(777, **options) for i in batch.ids[:, 0]]  # type: ignore[arg-type]


@pytest.mark.parametrize("shuffle", [False, True])
def test_each_row_is_in_one_part(rows: EncodedData, shuffle: bool) -> None:
    first, second = rows.parted(0.3, seed=5)
    assert abs(len(second) - 6_000) < 5 * (20_000 * 0.21) ** 0.5
    a, b = ids(first, shuffle=shuffle), ids(second, shuffle=shuffle)
    assert (len(a), len(b)) == (len(first), len(second))
    assert sorted(a + b) == sorted(ids(rows))


def test_parts_depend_on_the_seed_alone(rows: EncodedData) -> None:
    assert ids(rows.parted(0.3, seed=5)[1]) == ids(rows.parted(0.3, seed=5)[1])
    assert ids(rows.parted(0.3, seed=5)[1]) != ids(rows.parted(0.3, seed=6)[1])
    prints = {part.fingerprint for seed in (5, 6) for part in rows.parted(0.3, seed=seed)}
    assert len(prints | {rows.fingerprint}) == 5


def test_skipping_batches_of_a_part(rows: EncodedData) -> None:
    part = rows.parted(0.5, seed=1)[0]
    assert ids(part, shuffle=True, seed=3, start=4) == ids(part, shuffle=True, seed=3)[4 * 777 :]
