"""A catalogue of a million items: one training step, and exact top-k of one query.

    python -m benchmarks.catalogue [--items 1000000] [--repeats 30] [--parts step search]

- step: SASRec (width 64, 2 layers, 2 heads, inner width 256, dropout 0.2) with sampled softmax, 256
  negatives a row, on 128 windows of 100 items on average with Zipf ids; with row-sparse gradients
  and with dense ones, which move every row of the table at every step. One thread.
- search: `recsys.layers.item_search.ItemSearch`, scripted as in a bundle, top 10 of items x 64
  float32 vectors for one query with 200 seen items; checked against the full product first.

Least and median over the repeats, wall clock and CPU time of all threads.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.turns import DIM, DROPOUT, HEADS, HIDDEN_UNITS, LAYERS, MAX_LENGTH, SEED
from recsys.embeddings import build_embeddings
from recsys.embeddings.full import FullConfig
from recsys.layers.item_search import ItemSearch
from recsys.models.sequence.sasrec import SASRec, SASRecConfig
from recsys.settings import TrainConfig
from recsys.training.optimizers import build_optimizers
from recsys.types import Batch, FieldSpec, Target

ROWS, NEGATIVES, SPECIALS, K = 128, 256, 2, 10


def clocked(work: Callable[[], object], repeats: int) -> str:
    """Cells of a table: ms by the wall clock, least and median, and ms of CPU, least and median."""
    wall, cpu = [], []
    for turn in range(repeats + 3):
        started, used = time.perf_counter(), time.process_time()
        work()
        if turn >= 3:
            cpu.append(1e3 * (time.process_time() - used))
            wall.append(1e3 * (time.perf_counter() - started))
    return " | ".join(f"{f(x):.1f}" for x in (wall, cpu) for f in (min, statistics.median))


def windows(items: int) -> tuple[Batch, Target]:
    """Random windows: Zipf ids, lengths uniform from 2 to 201."""
    lengths = torch.randint(2, MAX_LENGTH + 2, (ROWS, 1))
    log = torch.log(torch.tensor(float(items)))
    ids = SPECIALS + torch.exp(torch.rand(ROWS, MAX_LENGTH + 1) * log).long().clamp_max(items - 1)
    ids = ids * (torch.arange(MAX_LENGTH + 1) < lengths)
    none = torch.zeros(ROWS, 0)
    target = Target(torch.zeros(ROWS).long(), torch.ones(ROWS), torch.arange(ROWS))
    return Batch(none.long(), none, [ids], lengths), target


def step(items: int, repeats: int) -> None:
    """Prints a line per kind of gradient."""
    shape = {"layers": LAYERS, "heads": HEADS, "hidden_units": HIDDEN_UNITS, "dropout": DROPOUT}
    config = SASRecConfig.model_validate(
        {"loss": "sampled_softmax", "negatives": NEGATIVES, **shape}
    )
    field = FieldSpec("history", "sequence", num_ids=items + SPECIALS, max_length=MAX_LENGTH)
    torch.set_num_threads(1)
    for kind in ("auto", "dense"):
        torch.manual_seed(SEED)
        train = TrainConfig.model_validate({"embedding_gradient": kind})
        table = FullConfig(method="full", embedding_dim=DIM)
        _, layers = build_embeddings(table, [field], SASRec.tables(config, DIM), train=train)
        model = SASRec(config, field, layers, specials=SPECIALS)
        optimizers = build_optimizers(model, train)
        batches = [windows(items) for _ in range(repeats + 3)]
        left = iter(batches)

        def work() -> None:
            optimizers.zero_grad()  # noqa: B023  called within the turn
            model.loss(*next(left)).backward()  # noqa: B023
            optimizers.step()  # noqa: B023

        clocks = clocked(work, repeats)
        gradient = model.embedding.tables[0].weight.grad
        assert gradient is not None
        rows = len(gradient.coalesce().indices()[0]) if gradient.is_sparse else len(gradient)
        name = f"SASRec step, {'row-sparse' if gradient.is_sparse else 'dense'} gradient"
        print(f"| {name}, {rows:,} rows moved | 1 | {clocks} |", flush=True)


def search(items: int, repeats: int) -> None:
    """Prints a line per number of threads."""
    torch.manual_seed(SEED)
    exact = torch.jit.script(ItemSearch())
    vectors, bias = torch.randn(items, DIM), torch.zeros(items)
    queries = torch.randn(repeats + 3, 1, DIM)
    seen = torch.randint(SPECIALS, items, (1, MAX_LENGTH))
    index = exact.index(vectors, bias, SPECIALS)
    truth = (queries[0] @ vectors.t()).index_fill(1, seen[0], -torch.inf)
    truth[:, :SPECIALS] = -torch.inf
    assert torch.equal(exact(index, queries[0], seen, K)[0], truth.topk(K)[1])
    for threads in (1, 2):
        torch.set_num_threads(threads)
        left = iter(queries)

        def work() -> None:
            exact(index, next(left), seen, K)  # noqa: B023  called within the turn

        name = f"exact top {K} of {items:,} x {DIM}"
        print(f"| {name} | {threads} | {clocked(work, repeats)} |", flush=True)


def main() -> None:
    """Prints a Markdown table."""
    parts = {"step": step, "search": search}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    options = parser.parse_args()
    print("| | threads | wall ms, least | median | CPU ms, least | median |")
    print("|---|---|---|---|---|---|")
    for part in options.parts:
        parts[part](options.items, options.repeats)


if __name__ == "__main__":
    main()
