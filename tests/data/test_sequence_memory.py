"""Peak memory of making sequences and reading one epoch does not grow with the rows.

Anonymous memory is sampled: pages of mapped files are the kernel's, and given back.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys, threading, time
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from recsys.data import item_counts, user_buckets
from recsys.data import sequence_data as module
from recsys.data.interactions import write_sequences
from recsys.data.interactions_config import InteractionsConfig
from recsys.data.item_space import fit_sequences
from recsys.features import FeatureConfig, counting
from serving.parquet import open_source, write_parquet

# So that a run, a bucket, a window of the shuffle and the counters are full at 1x too.
user_buckets.RUN_ROWS = user_buckets.BUCKET_ROWS = 2**16
counting._PENDING = item_counts._PENDING = 2**14
module.SHUFFLE_ROWS = 2**12
folder, rows = Path(sys.argv[1]), int(sys.argv[2])
schema = pa.schema([("user", pa.string()), ("item", pa.string()), ("time", pa.int64())])
rng = np.random.default_rng(0)
with write_parquet(folder / "x.parquet", schema) as writer:
    for first in range(0, rows, 50_000):
        numbers = [rng.integers(0, top, 50_000) for top in (rows // 40, 3000, 10**9)]
        arrays = [pa.array(column).cast(f.type) for column, f in zip(numbers, schema, strict=True)]
        writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

peak, done = 0, False

def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.01)

config = InteractionsConfig.model_validate({
    "source": "x.parquet", "user": "user", "item": "item", "timestamp": "time",
    "split": {"method": "leave_one_out"},
})
watcher = threading.Thread(target=watch)
watcher.start()
files = write_sequences(open_source(folder / "x.parquet"), config, "seen", folder)
features = fit_sequences(
    TypeAdapter(dict[str, FeatureConfig]).validate_python(
        {"seen": {"type": "sequence", "max_length": 20}}
    ),
    files.train,
)
windows = module.Windows(length=20, stride=10)
train = module.sequence_data(files.train, features, folder, windows=windows)
valid = module.sequence_data(files.valid, features, folder, windows=None)
seen = sum(len(target.label) for _, target in train.batches(256, shuffle=True))
judged = sum(len(target.label) for _, target in valid.batches(256))
done = True
watcher.join()
assert seen == len(train) > judged == len(valid) == rows // 40
print(peak)
"""


def peak_kib(folder: Path, rows: int) -> int:
    folder.mkdir()
    command = [sys.executable, "-c", SCRIPT, str(folder), str(rows)]
    # Arrow's own allocators keep freed memory per thread, at random; malloc shows what is held.
    env = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
def test_peak_memory_does_not_grow_with_rows(tmp_path: Path) -> None:
    # The 900,000 more events are 35 MB of text, times and hashes; each of the parts has them again.
    small, large = peak_kib(tmp_path / "1x", 300_000), peak_kib(tmp_path / "4x", 1_200_000)
    assert large < small + 24 * 1024, f"{small} KiB at 1x, {large} KiB at 4x"
