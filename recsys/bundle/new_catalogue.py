"""A model that reads text over another catalogue: nothing is trained, items are encoded anew."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from recsys.build_sequence import build_sequence
from recsys.bundle.rebuild_topk import RebuiltTopK
from recsys.bundle.topk_graph import TopKGraph
from recsys.features import Features

__all__ = ["over_catalogue"]


def over_catalogue(rebuilt: RebuiltTopK, features: Features) -> RebuiltTopK:
    """The modules of a bundle with the items of ``features`` instead of its own, read by the same
    words (see `recsys.features.item_text.with_text` and its ``keep_words``)."""
    old: Any = rebuilt.graph.model
    assert old.reads_text, "who knows items by their ids knows no others"
    parts = build_sequence(rebuilt.config, features).finalise()
    own = {name: tensor for name, tensor in old.state_dict().items() if name != "items"}
    missing, unexpected = parts.model.load_state_dict(own, strict=False)
    assert missing == ["items"], missing
    assert not unexpected, unexpected
    model: Any = parts.model.eval()
    model.encode_items()
    graph = TopKGraph(
        encoder=parts.encoder,
        model=model,
        k=rebuilt.graph.k,
        filter_seen=rebuilt.graph.filter_seen,
    )
    return replace(rebuilt, features=features, graph=graph.eval())
