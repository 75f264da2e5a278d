"""A model that reads text over another catalogue: nothing is trained, items are encoded anew."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from recsys.build_sequence import build_sequence
from recsys.bundle.rebuild_topk import RebuiltTopK
from recsys.bundle.topk_graph import TopKGraph
from recsys.features import Features
from recsys.models.sequence.recformer_phases import PRETRAIN
from recsys.types import InputError

__all__ = ["check_catalogue", "over_catalogue"]


def check_catalogue(rebuilt: RebuiltTopK) -> None:
    """Errors: `InputError` for a model that reads no text, and for one whose last weights are not
    those that encoded its items: what they make of items has moved towards what follows them."""
    config: Any = rebuilt.config.model
    if rebuilt.config.data.items is None:
        raise InputError(
            f"model {config.name} knows items by their ids and no others; train it again, or take "
            "a model that reads text (recformer)"
        )
    if config.phases[-1] != PRETRAIN:
        raise InputError(
            f"model.phases of the bundle end with {config.phases[-1]}, after which its weights are "
            f"no longer those that encoded its items; train with phases: [{PRETRAIN}]"
        )


def over_catalogue(rebuilt: RebuiltTopK, features: Features) -> RebuiltTopK:
    """The modules of a bundle that `check_catalogue` lets pass with the items of ``features``
    instead of its own, read by the same words (see `recsys.features.item_text.with_text` and its
    ``keep_words``)."""
    parts = build_sequence(rebuilt.config, features).finalise()
    old = rebuilt.graph.model.state_dict()
    own = {name: tensor for name, tensor in old.items() if name != "items"}
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
