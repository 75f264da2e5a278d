"""RecBole 1.2.1's BERT4Rec and SASRec in turns: its dataset, loader, masking, model and trainer.

`Trainer._train_epoch` is what is timed, over its own `TrainDataLoader`, whose masking in Python is
part of the work. Both read ready sequences (``benchmark_filename``), the very windows that recsys
trains on, so that RecBole does not make a row of every prefix of every user's history:

- BERT4Rec: a row is a window of up to 200 items; ``ft_ratio`` 0, so that each item of every row is
  masked with probability 0.2, and at most 40 a row. Its loss leaves out position 0.
- SASRec: a row is a window of up to 200 items and the item after it. It learns to predict that one
  item only, from the last state; that is what it does with prefixes too, and the cost of its step
  is the same, because it pads every row to 200 items.

Bridged, here and in the pins:

- RecBole aliases numpy names at its start (``np.float = np.float_``) that numpy 2 has removed:
  ``float_``, ``complex_`` and ``unicode_`` are put back before it is imported.
- It takes ``Series.agg`` to call a function with each element, which pandas 3 has ended: pandas
  2.3.3 is pinned. Its data is read before the clock starts.
- It writes folders (checkpoints, TensorBoard) where it is started, so it is started in the work
  folder.
- It takes ``sys.argv`` for its own settings: the arguments are taken away once they are read.
"""

# ruff: noqa: E402  numpy's names come before RecBole
from __future__ import annotations

import sys
from importlib.metadata import version
from itertools import chain, repeat
from typing import Any

import numpy as np

for removed, kept in (("float_", "float64"), ("complex_", "complex128"), ("unicode_", "str_")):
    setattr(np, removed, getattr(np, kept))

from recbole.config import Config
from recbole.data.dataloader import TrainDataLoader
from recbole.data.utils import create_dataset
from recbole.trainer import Trainer
from recbole.utils import get_model, init_seed

from benchmarks.turns import (
    DIM,
    DROPOUT,
    HEADS,
    HIDDEN_UNITS,
    LAYERS,
    LEARNING_RATE,
    MASK_SHARE,
    MAX_LENGTH,
    SEED,
    SequenceJob,
    Turns,
    finish,
    parse_job,
)

NAMES = {"bert4rec": "BERT4Rec", "sasrec": "SASRec"}


def config(job: SequenceJob) -> Any:
    """RecBole's settings of the same network and batches, the rest as its defaults have it."""
    only = {
        "bert4rec": {"mask_ratio": MASK_SHARE, "ft_ratio": 0, "hidden_act": "gelu"},
        "sasrec": {"hidden_act": "relu"},
    }
    return Config(
        model=NAMES[job.model],
        dataset=job.model,
        config_dict={
            "data_path": str(job.work / "recbole"),
            "benchmark_filename": ["train"],
            "load_col": {"inter": ["user_id", "item_id_list", "item_id"]},
            "alias_of_item_id": ["item_id_list"],
            "USER_ID_FIELD": "user_id",
            "ITEM_ID_FIELD": "item_id",
            "MAX_ITEM_LIST_LENGTH": MAX_LENGTH,
            "n_layers": LAYERS,
            "n_heads": HEADS,
            "hidden_size": DIM,
            "inner_size": HIDDEN_UNITS,
            "hidden_dropout_prob": DROPOUT,
            "attn_dropout_prob": DROPOUT,
            "loss_type": "CE",
            "train_neg_sample_args": None,
            "train_batch_size": job.batch_size,
            "learning_rate": LEARNING_RATE,
            "use_gpu": False,
            "seed": SEED,
            "show_progress": False,
            **only[job.model],
        },
    )


def sizes(batch: Any) -> tuple[int, int]:
    """Sequences of a batch, and positions that its loss counts."""
    rows = len(batch)
    if "MASK_INDEX" not in batch.interaction:
        return rows, rows
    return rows, int((batch["MASK_INDEX"] > 0).sum())


def main() -> None:
    """Trains until stdin ends."""
    job = parse_job()
    del sys.argv[1:]
    settings = config(job)
    init_seed(SEED, settings["reproducibility"])
    (train,) = create_dataset(settings).build()
    loader = TrainDataLoader(settings, train, None, shuffle=True)
    model = get_model(settings["model"])(settings, loader.dataset).to(settings["device"])
    trainer = Trainer(settings, model)
    steps = 0

    def counted(batch: Any) -> tuple[int, int]:
        nonlocal steps
        steps += 1
        return sizes(batch)

    total = trainer._train_epoch(Turns(chain.from_iterable(repeat(loader)), counted), 0)
    packages = ("torch", "recbole", "numpy", "pandas")
    finish(total / max(1, steps), {name: version(name) for name in packages})


if __name__ == "__main__":
    main()
