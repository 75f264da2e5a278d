"""recsys' BERT4Rec and SASRec in turns: `Trainer.fit` over the encoded windows, shuffled.

Network, loss and batch are those of `benchmarks.peer_recbole`; ``last_item_share`` is 0, as its
``ft_ratio`` is, so that every row of BERT4Rec has a fifth of its items masked.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from itertools import count
from pathlib import Path
from statistics import fmean

from benchmarks.ours import Losses
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
from pipelines.prepare import PreparedSequences, prepare_sequences
from recsys.config import SequenceRunConfig, parse_config
from recsys.data.sequence_data import SequenceData
from recsys.training.progress import SilentReporter
from recsys.training.trainer import Trainer
from recsys.types import Batch, Target

Rows = tuple[Batch, Target]


def config(job: SequenceJob) -> SequenceRunConfig:
    """The run: ML-1M, the settings of `configs/ml_1m_*.yaml` at the sizes of the benchmark."""
    shape = {"layers": LAYERS, "heads": HEADS, "hidden_units": HIDDEN_UNITS, "dropout": DROPOUT}
    only = {"bert4rec": {"mask_share": MASK_SHARE, "last_item_share": 0.0}, "sasrec": {}}
    parsed = parse_config(
        {
            "name": "benchmark",
            "seed": SEED,
            "data": {
                "source": "ml-1m/interactions.parquet",
                "user": "user",
                "item": "item",
                "timestamp": "pos",
                "split": {"method": "leave_one_out"},
            },
            "features": {"history": {"type": "sequence", "max_length": MAX_LENGTH}},
            "embedding": {"method": "full", "embedding_dim": DIM},
            "model": {"name": job.model, **shape, **only[job.model]},
            "train": {
                "batch_size": job.batch_size,
                "max_epochs": 1,
                "learning_rate": LEARNING_RATE,
                "monitor": "ndcg@10",
                "precision": job.precision,
            },
            "tracking": {"uri": None},
        }
    )
    assert isinstance(parsed, SequenceRunConfig)
    return parsed


def prepared(job: SequenceJob) -> PreparedSequences:
    """Data and model, from the cache in the work folder where an earlier process left it."""
    cache = job.work / "cache"
    return prepare_sequences(
        config(job), root=job.data_root, cache=cache, reporter=SilentReporter()
    )


def write_windows(job: SequenceJob, folder: Path) -> int:
    """The training windows of ``job`` as RecBole's file of ready sequences; returns how many.

    SASRec's last item is the target and the items before it the sequence.
    """
    name = f"{job.model}.train.inter"
    (folder / job.model).mkdir(parents=True, exist_ok=True)
    row = 0
    with (folder / job.model / name).open("w", encoding="utf-8") as file:
        file.write("user_id:token\titem_id_list:token_seq\titem_id:token\n")
        for batch, _ in prepared(job).train.batches(1024):
            for ids, n in zip(batch.lists[0].tolist(), batch.lengths[:, 0].tolist(), strict=True):
                items = ids[: n - 1] if job.model == "sasrec" else ids[:n]
                file.write(f"{row}\t{' '.join(map(str, items))}\t{ids[n - 1]}\n")
                row += 1
    return row


class EndlessRows:
    """The shuffled windows, epoch after epoch, handed out in turns."""

    def __init__(self, data: SequenceData, model: str) -> None:
        self.fingerprint = data.fingerprint
        self._data = data
        self._model = model

    def __len__(self) -> int:
        return len(self._data)

    def sizes(self, rows: Rows) -> tuple[int, int]:
        """Sequences of a batch, and positions that it trains to predict."""
        lengths = rows[0].lengths[:, 0]
        if self._model == "sasrec":
            return len(lengths), int((lengths - 1).sum())
        return len(lengths), int((lengths * MASK_SHARE).round().clamp_min(1).sum())

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        start: int = 0,
    ) -> Iterator[Rows]:
        """As a loader's, until there are no more turns."""
        endless = (
            rows
            for number in count(epoch)
            for rows in self._data.batches(batch_size, shuffle=shuffle, seed=seed, epoch=number)
        )
        assert start == 0, start
        return iter(Turns(endless, self.sizes))


def main() -> None:
    """Trains until stdin ends."""
    job = parse_job()
    ready, losses = prepared(job), Losses()
    trainer = Trainer(
        model=ready.assembly.model,
        config=config(job).train,
        seed=SEED,
        tracker=losses,
        log_every=1,
    )
    trainer.fit(EndlessRows(ready.train, job.model))
    finish(fmean(losses.values), {"torch": version("torch")})


if __name__ == "__main__":
    main()
