"""Write a bundle of probabilities: script, save, hash, fsync, prove, rename."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import nn

from recsys.bundle.folder import in_service, record_proof, staged, write
from recsys.bundle.graph import ServingGraph
from recsys.bundle.stress import stress_rows
from recsys.bundle.verify import VerifyReport, expected_scores, verify
from recsys.features import Features
from serving.encode import InputField

__all__ = ["export", "export_verified"]

_OUTPUT = {"name": "score", "dtype": "float32", "shape": ["B"], "meaning": "probability of label 1"}


def export(
    model: nn.Module,
    encoder: nn.Module,
    id_map: nn.Module,
    inputs: Sequence[InputField],
    out: str | Path,
    *,
    manifest: Mapping[str, Any],
    features: Features | None = None,
) -> Path:
    """Write the bundle of a finalised model to the folder ``out`` and return its path.

    The folder appears complete or not at all; an older bundle there is replaced, anything else
    there is an `InputError`. ``manifest``: what else to record (config, metrics, sizes, ...), as
    plain JSON values; NaN and infinity become null. Modules must be on the CPU; their training
    flags are as before afterwards. ``features``: kept beside the weights, so that the modules can
    be built and exported again. Nothing is proved here: use `export_verified`.
    """
    graph = ServingGraph(encoder=encoder, id_map=id_map, model=model)
    with staged(Path(out)) as folder, in_service(graph):
        write(graph, inputs, folder, output=_OUTPUT, extra=manifest, features=features)
    return Path(out)


def export_verified(
    model: nn.Module,
    encoder: nn.Module,
    id_map: nn.Module,
    inputs: Sequence[InputField],
    out: str | Path,
    *,
    manifest: Mapping[str, Any],
    features: Features | None = None,
    rows: pa.Table,
    tolerance: float = 1e-6,
) -> VerifyReport:
    """`export`, but the folder only appears at ``out`` after it was proved.

    ``rows``: raw validation rows. They, the same rows with nulls and with unseen ids put in, and
    an empty batch are scored by the eager modules here and by the bundle in a fresh process
    without recsys; a difference above ``tolerance`` raises `VerifyError`. The manifest records the
    result under ``verified``.
    """
    tested = stress_rows(rows, inputs)
    graph = ServingGraph(encoder=encoder, id_map=id_map, model=model)
    with staged(Path(out)) as folder, in_service(graph):
        content = write(graph, inputs, folder, output=_OUTPUT, extra=manifest, features=features)
        expected = expected_scores(graph, inputs, tested)
        report = verify(folder, tested, expected, tolerance=tolerance)
        record_proof(folder, content, report.proof(tolerance))
    return report
