"""Peak memory of splitting, fitting, encoding and one epoch does not grow with the rows.

Anonymous memory is sampled: pages of the mapped cache file are the kernel's, and given back.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys, threading, time
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from recsys.data import cache, encoded, splits
from recsys.embeddings import EmbeddingConfig, build_embeddings
from recsys.features import FeatureConfig, fit
from recsys.settings import DataConfig, TrainConfig
from serving.parquet import write_parquet

cache.WINDOW_BLOCKS = 4  # so that the windows of the shuffle are full at 1x too
folder, rows = Path(sys.argv[1]), int(sys.argv[2])
texts, numbers = [f"c{i}" for i in range(6)], [f"x{i}" for i in range(6)]
schema = pa.schema(
    [*((c, pa.string()) for c in texts), *((x, pa.float64()) for x in numbers),
     ("label", pa.int8()), ("time", pa.int64())]
)
rng = np.random.default_rng(0)
words = pa.array([f"word {i}" for i in range(3000)])
with write_parquet(folder / "x.parquet", schema) as writer:
    for first in range(0, rows, 30_000):
        columns = [words.take(pa.array(rng.integers(0, 3000, 30_000))) for _ in texts]
        columns += [rng.random(30_000) for _ in numbers]
        columns += [rng.integers(0, 2, 30_000).astype("i1"), np.arange(first, first + 30_000)]
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

peak, done = 0, False

def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.002)

config = DataConfig.model_validate({
    "source": "x.parquet", "split": {"method": "time"}, "label": "label", "timestamp": "time",
})
watcher = threading.Thread(target=watch)
watcher.start()
train = splits(config, folder).train
features = fit(
    TypeAdapter(dict[str, FeatureConfig]).validate_python(
        {**{c: {"type": "categorical", "encoding": "hash"} for c in texts},
         **{x: {"type": "numeric"} for x in numbers}}
    ),
    train,
)
table = TypeAdapter(EmbeddingConfig).validate_python(
    {"method": "unified", "embedding_dim": 8, "rows": 1000}
)
id_map, _ = build_embeddings(table, features.fields, {"main": 8}, train=TrainConfig())
data = encoded(train, features, id_map, config, folder / "cache")
seen = sum(len(target.label) for _, target in data.batches(1024, shuffle=True))
done = True
watcher.join()
assert seen == round(rows * 0.8), seen
print(peak)
"""


def peak_kib(folder, rows):
    folder.mkdir()
    command = [sys.executable, "-c", SCRIPT, str(folder), str(rows)]
    # Arrow's own allocators keep freed memory per thread, at random; malloc shows what is held.
    env = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
def test_peak_memory_does_not_grow_with_rows(tmp_path):
    # The 720,000 more training rows are 90 MB decoded and 49 MB encoded.
    small, large = peak_kib(tmp_path / "1x", 300_000), peak_kib(tmp_path / "4x", 1_200_000)
    assert large < small + 24 * 1024, f"{small} KiB at 1x, {large} KiB at 4x"
