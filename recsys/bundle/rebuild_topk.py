"""The modules of a bundle that recommends, alive again; see `recsys.bundle.rebuild`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from recsys.build_sequence import build_sequence
from recsys.bundle.rebuild import CannotRebuild, config_tree, load_weights
from recsys.bundle.topk_graph import TopKGraph
from recsys.config import SequenceRunConfig, parse_config
from recsys.embeddings.post_training import quantise_layers
from recsys.features import Features
from serving.bundle import FEATURES, Bundle
from serving.topk import TopK

__all__ = ["RebuiltTopK", "rebuild_top_k"]


@dataclass(frozen=True)
class RebuiltTopK:
    """``graph``: the eager modules on the CPU, in evaluation mode, with the bundle's weights."""

    bundle: TopK
    config: SequenceRunConfig
    features: Features
    graph: TopKGraph

    def check(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Raises `CannotRebuild` unless the modules recommend for raw ``rows`` what the bundle
        does, in the same order."""
        raw = self.bundle.encode(rows)
        with torch.inference_mode():
            own, _ = self.graph(raw.ids, raw.floats, raw.lists, raw.lengths)
        theirs, _ = self.bundle.best(raw, self.graph.k)
        wrong = (own.numpy() != theirs).any(1)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise CannotRebuild(
                f"{self.bundle.bundle.path}: the model built again from it recommends other items "
                f"than the bundle for row {row}; it was exported by another version: export it "
                "again with this one"
            )


def rebuild_top_k(bundle: Bundle) -> RebuiltTopK:
    """Builds the modules of an opened bundle of task ``top_k``; errors as in
    `recsys.bundle.rebuild.rebuild`."""
    scorer = TopK(bundle)
    config = parse_config(config_tree(bundle), where=f"config in {bundle.path}")
    if not isinstance(config, SequenceRunConfig):
        raise CannotRebuild(f"{bundle.path}: its config is of a model that recommends no items")
    features = Features.load(bundle.path / FEATURES)
    parts = build_sequence(config, features).finalise()
    if config.export.quantise is not None:
        quantise_layers(parts.model, config.export.quantise)
    flag: Any = bundle.manifest.get("filter_seen")
    graph = TopKGraph(encoder=parts.encoder, model=parts.model, k=scorer.k, filter_seen=bool(flag))
    load_weights(graph.eval(), bundle)
    return RebuiltTopK(scorer, config, features, graph)
