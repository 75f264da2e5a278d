"""torch-rechub 0.9.0 as a yardstick: its AutoInt, `CTRTrainer` and `DataGenerator`.

Its AutoInt cannot be given the benchmark's network: the attention is as wide as the embedding
(16, not 32), its MLP has batch normalisation, and a linear layer over the flattened fields is
added. Numeric columns are fields, as in the benchmark. Weight decay is off, like in the others.
"""

from __future__ import annotations

import numpy as np
from torch.utils.data import DataLoader
from torch_rechub.basic.features import DenseFeature, SparseFeature
from torch_rechub.models.ranking import AutoInt
from torch_rechub.trainers import CTRTrainer
from torch_rechub.utils.data import DataGenerator

from benchmarks import label_encode
from benchmarks.harness import (
    ATTENTION_LAYERS,
    EMBEDDING_DIM,
    HEADS,
    HIDDEN_UNITS,
    LABEL,
    LEARNING_RATE,
    Job,
    TimedBatches,
    columns,
    mean_loss,
    num_rows,
    parameter_counts,
    parse_job,
    report,
    timed,
)

SYSTEM = "torch-rechub"
PACKAGES = ("torch-rechub", "numpy")


def ingest(job: Job) -> None:
    """Label encoding, as in the library's examples."""
    label_encode.ingest(job, system=SYSTEM, packages=PACKAGES)


def _trainer(job: Job) -> CTRTrainer:
    numeric, _ = columns(job.log)
    model = AutoInt(
        [SparseFeature(name, n, EMBEDDING_DIM) for name, n in label_encode.sizes(job).items()],
        [DenseFeature(name) for name in numeric],
        num_layers=ATTENTION_LAYERS,
        num_heads=HEADS,
        mlp_params={"dims": list(HIDDEN_UNITS)},
    )
    return CTRTrainer(
        model,
        optimizer_params={"lr": LEARNING_RATE, "weight_decay": 0.0},
        n_epoch=1,
        model_path=str(job.work),
    )


def _loaders(job: Job, data: dict[str, np.ndarray], rows: int) -> tuple[DataLoader, DataLoader]:
    """Its shuffled loader over everything and its ordered loader over the first rows."""
    x = {name: values for name, values in data.items() if name != LABEL}
    head = {name: values[:rows] for name, values in x.items()}
    train, _, ordered = DataGenerator(x, data[LABEL]).generate_dataloader(
        x_val=head,
        y_val=data[LABEL][:rows],
        x_test=head,
        y_test=data[LABEL][:rows],
        batch_size=job.batch_size,
    )
    return train, ordered


def train(job: Job) -> None:
    """A fixed number of steps of `CTRTrainer.train_one_epoch`."""
    data = label_encode.load(job)
    trainer = _trainer(job)
    loader, _ = _loaders(job, data, num_rows(job.score_file))
    batches = TimedBatches(loader, warmup=job.warmup, steps=job.steps)
    losses: list[float] = []
    trainer.criterion.register_forward_hook(lambda _, __, loss: losses.append(loss.item()))
    trainer.train_one_epoch(batches)
    seconds = batches.ended - batches.started
    report(
        job,
        system=SYSTEM,
        rows=job.train_rows,
        seconds=seconds,
        packages=PACKAGES,
        loader_seconds=round(batches.waited, 3),
        loss=mean_loss(losses, job),
        parameters=parameter_counts(
            trainer.model, lambda name: not name.startswith(("sparse_emb", "dense_emb"))
        ),
        precision="fp32",
    )


def predict(job: Job) -> None:
    """Encoded score rows -> probabilities."""
    rows = num_rows(job.score_file)
    trainer = _trainer(job)
    _, loader = _loaders(job, label_encode.load(job, rows), rows)
    scores, seconds = timed(lambda: trainer.predict(trainer.model, loader))
    report(
        job,
        system=SYSTEM,
        rows=len(scores),
        seconds=seconds,
        packages=PACKAGES,
        mean_score=sum(scores) / len(scores),
        precision="fp32",
    )


if __name__ == "__main__":
    task = parse_job()
    {"ingest": ingest, "train": train, "predict": predict}[task.stage](task)
