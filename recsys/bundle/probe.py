"""Run by `recsys.bundle.verify` as a script in a process of its own; never imported.

Arguments: folder that holds ``serving``, bundle, Arrow file of raw rows, .npy file to write, rows
per batch, torch threads.
"""

import sys

BLOCKED = ("recsys", "pipelines", "torchrec", "fbgemm_gpu", "mlflow", "pydantic")


def main(root: str, bundle: str, raw: str, out: str, batch_rows: int, threads: int) -> None:
    """Score the rows, and an empty batch, with nothing but what serving needs."""
    for name in BLOCKED:
        sys.modules[name] = None  # type: ignore[assignment] # importing it raises

    import torch

    before = set(sys.modules)
    torch.jit.load(f"{bundle}/model.ts", map_location="cpu")
    assert not {"serving", "polars", "pyarrow"} & before, "the bare check must have torch alone"

    sys.path.insert(0, root)
    import numpy as np
    import pyarrow as pa

    from serving.scorer import Scorer

    with pa.OSFile(raw, "rb") as file:
        rows = pa.ipc.open_file(file).read_all()
    scorer = Scorer(bundle, threads, batch_rows=batch_rows)
    empty = scorer.predict(rows.slice(0, 0))
    if empty.shape != (0,):
        raise SystemExit(f"an empty batch gives scores of shape {empty.shape}")
    np.save(out, scorer.predict(rows), allow_pickle=False)


if __name__ == "__main__":
    _, _root, _bundle, _raw, _out, _batch_rows, _threads = sys.argv
    main(_root, _bundle, _raw, _out, int(_batch_rows), int(_threads))
