"""DeepCTR-Torch 0.3.0 as a yardstick: its AutoInt, `fit` and `predict` on label-encoded arrays.

Its AutoInt cannot be given the benchmark's network: the attention is as wide as the embedding
(16, not 32) and numeric columns enter the MLP as plain numbers, not as fields (26 fields, not 39).
It has less to compute than the others. The linear part (a second table per column) is left out and
`l2_reg_embedding` is 0, so that it carries the same tables and no regulariser, like the others.
"""

from __future__ import annotations

import numpy as np
from deepctr_torch.inputs import DenseFeat, SparseFeat
from deepctr_torch.models import AutoInt

from benchmarks import label_encode
from benchmarks.harness import (
    ATTENTION_LAYERS,
    EMBEDDING_DIM,
    HEADS,
    HIDDEN_UNITS,
    LABEL,
    SEED,
    Job,
    columns,
    num_rows,
    parameter_counts,
    parse_job,
    report,
    timed,
)

SYSTEM = "deepctr-torch"
PACKAGES = ("deepctr-torch", "numpy")


def ingest(job: Job) -> None:
    """Label encoding, as in the library's examples."""
    label_encode.ingest(job, system=SYSTEM, packages=PACKAGES)


def _model(job: Job) -> AutoInt:
    numeric, _ = columns(job.log)
    fields = [
        *(SparseFeat(name, n, EMBEDDING_DIM) for name, n in label_encode.sizes(job).items()),
        *(DenseFeat(name) for name in numeric),
    ]
    model = AutoInt(
        linear_feature_columns=[],
        dnn_feature_columns=fields,
        att_layer_num=ATTENTION_LAYERS,
        att_head_num=HEADS,
        dnn_hidden_units=HIDDEN_UNITS,
        l2_reg_embedding=0,
        seed=SEED,
    )
    model.compile("adam", "binary_crossentropy")  # its Adam has learning rate 1e-3
    return model


def _inputs(data: dict[str, np.ndarray], rows: slice) -> dict[str, np.ndarray]:
    return {name: values[rows] for name, values in data.items() if name != LABEL}


def train(job: Job) -> None:
    """`fit` on the rows of the warm-up, then, timed, on the rows of the timed steps."""
    model = _model(job)
    data = label_encode.load(job)
    edge, end = job.warmup * job.batch_size, (job.warmup + job.steps) * job.batch_size
    model.fit(
        _inputs(data, slice(0, edge)), data[LABEL][:edge], batch_size=job.batch_size, verbose=0
    )
    x, y = _inputs(data, slice(edge, end)), data[LABEL][edge:end]
    history, seconds = timed(lambda: model.fit(x, y, batch_size=job.batch_size, verbose=0))
    report(
        job,
        system=SYSTEM,
        rows=job.train_rows,
        seconds=seconds,
        packages=PACKAGES,
        loss=round(float(history.history["loss"][-1]), 5),
        parameters=parameter_counts(model, lambda name: not name.startswith("embedding_dict")),
        precision="fp32",
    )


def predict(job: Job) -> None:
    """Encoded score rows -> probabilities."""
    model = _model(job)
    x = _inputs(label_encode.load(job, num_rows(job.score_file)), slice(None))
    scores, seconds = timed(lambda: model.predict(x, batch_size=job.batch_size))
    report(
        job,
        system=SYSTEM,
        rows=len(scores),
        seconds=seconds,
        packages=PACKAGES,
        mean_score=float(scores.mean()),
        precision="fp32",
    )


if __name__ == "__main__":
    task = parse_job()
    {"ingest": ingest, "train": train, "predict": predict}[task.stage](task)
