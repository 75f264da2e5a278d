"""Run by `recsys.bundle.verify` as a script in a process of its own; never imported.

Arguments: folder that holds ``serving``, bundle, Arrow file of raw rows, Arrow file to write (what
the bundle adds to the rows), rows per batch, torch threads.
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
    import pyarrow as pa

    from serving.topk import open_scorer

    with pa.OSFile(raw, "rb") as file:
        rows = pa.ipc.open_file(file).read_all()
    scorer = open_scorer(bundle, threads)
    empty = scorer.answer(rows.slice(0, 0))
    if any(len(column) for column in empty):
        raise SystemExit(f"an empty batch gives answers of lengths {[len(c) for c in empty]}")
    starts = range(0, rows.num_rows, batch_rows)
    answers = [scorer.answer(rows.slice(start, batch_rows)) for start in starts]
    schema = pa.schema(scorer.output)
    with pa.OSFile(out, "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for columns in answers:
            writer.write_batch(pa.record_batch(columns, schema=schema))


if __name__ == "__main__":
    _, _root, _bundle, _raw, _out, _batch_rows, _threads = sys.argv
    main(_root, _bundle, _raw, _out, int(_batch_rows), int(_threads))
