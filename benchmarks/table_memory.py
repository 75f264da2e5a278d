"""Peak memory of training under each table method, beside what the method says it takes.

    python -m benchmarks.table_memory [--ids 1500000] [--budget 0.1] [--steps 20] [--methods ...]

One process per method builds the tables of eight features (Adam, batch 4096, width 16) and takes
some steps of a linear reader on Zipf ids. What is shown is the peak of its anonymous memory (what
it allocated, not the libraries it mapped) above what it had after the same on a thousandth of the
ids, and `memory().training_bytes`. The first includes the temporary tensors of one batch.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

from benchmarks.memory import PeakMemory, anonymous_bytes

FIELDS, DIM, BATCH = 8, 16, 4096


def main() -> None:
    """Prints one line per method."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ids", type=int, default=1_500_000)
    parser.add_argument("--budget", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--methods", default=None, help="by comma; default: all")
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        print(json.dumps(_measure(args.child, args.ids, args.budget, args.steps)))
        return
    from recsys.embeddings import EMBEDDINGS

    names = args.methods.split(",") if args.methods else list(EMBEDDINGS)
    print("| method | stored MB | stated training MB | measured peak MB | of the full table |")
    print("|---|---|---|---|---|")
    peak_of_full = None
    for name in ["full at 1", *(n for n in names if n != "full")]:
        options = ["--ids", str(args.ids), "--budget", str(args.budget), "--steps", str(args.steps)]
        command = [sys.executable, "-m", "benchmarks.table_memory", "--child", name, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            print(f"| {name} | {done.stderr.strip().splitlines()[-1]} | | | |")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        if name == "full at 1":
            peak_of_full = found["peak"]
        cells = [f"{found[key] / 1e6:.1f}" for key in ("stored", "training", "peak")]
        share = f"{found['peak'] / peak_of_full:.0%}" if peak_of_full else ""
        print(f"| {name} | {' | '.join(cells)} | {share} |", flush=True)


def _measure(name: str, ids: int, budget: float, steps: int) -> dict[str, int]:
    import torch

    torch.set_num_threads(1)
    method, share = ("full", 1.0) if name == "full at 1" else (name, budget)
    # Small tables of every method load what it needs, however small a budget would make them.
    _train(method, ids // 1000, None, 3)
    before = anonymous_bytes()
    peak, training, stored = _train(method, ids, share, steps)
    return {"peak": peak - before, "training": training, "stored": stored}


def _train(method: str, ids: int, budget: float | None, steps: int) -> tuple[int, int, int]:
    """Peak memory while training, and the bytes that the layer states: training and stored."""
    import numpy as np
    import torch

    from recsys.embeddings import EMBEDDINGS, build_embeddings
    from recsys.settings import TrainConfig
    from recsys.training.optimizers import build_optimizers
    from recsys.types import Batch, FieldSpec

    sizes = [ids * part // 100 for part in (40, 25, 15, 10, 5, 3, 1, 1)]
    rng = np.random.default_rng(0)
    fields = []
    for f, size in enumerate(sizes):
        counts = (1e7 / (np.arange(size) + 1)).astype(np.int64)
        fields.append(FieldSpec(f"f{f}", "categorical", num_ids=size, counts=counts))
    empty = torch.zeros(BATCH, 0)
    config = EMBEDDINGS[method].Config.model_validate(
        {"method": method, "embedding_dim": DIM, "budget": budget}
    )
    train = TrainConfig(batch_size=BATCH, embedding_gradient="auto")
    torch.manual_seed(0)
    id_map, layers = build_embeddings(config, fields, {"embedding": DIM}, train=train)  # type: ignore[arg-type]
    layer = layers["embedding"]  # a budget may have lowered its width
    reader = torch.randn(FIELDS * layer.dim, 1, generator=torch.Generator().manual_seed(0))
    optimizers = build_optimizers(layer, train)
    with PeakMemory(anonymous_bytes, every=0.001) as watch:  # what a step takes for a while counts
        for _ in range(steps):
            zipf = [np.exp(rng.random(BATCH) * np.log(size)).astype(np.int64) for size in sizes]
            batch = torch.from_numpy(np.stack(zipf, 1).clip(0, np.array(sizes) - 1))  # (B, F)
            optimizers.zero_grad()
            rows = id_map(Batch(batch, empty, [], empty.long()))
            (layer(rows).flatten(1) @ reader).square().mean().backward()
            optimizers.step()
    peak = max(watch.bytes, anonymous_bytes())
    training = layer.memory().training_bytes
    return peak, training, layer.finalise().memory().stored_bytes


if __name__ == "__main__":
    main()
