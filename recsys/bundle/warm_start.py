"""Start a run from the weights of an older bundle, although its data, and so its ids, have changed.

Vocabularies are numbered by falling frequency, so the same raw id has another number, hence another
row, whenever frequencies change. Rows are therefore carried over by raw 64-bit id, through both
vocabularies. Ids that the bundle does not know start as in any run; the network's weights are
copied. The state of optimisers is no part of a bundle: it starts anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recsys.build import embedding_layers
from recsys.bundle.rebuild import Rebuilt, rebuild
from recsys.bundle.rebuild_topk import RebuiltTopK, rebuild_top_k
from recsys.config import AnyRunConfig, RunConfig, SequenceRunConfig
from recsys.embeddings.warm_rows import Moves, check_widths, copy_layer
from recsys.features import Features
from recsys.features.item_text import WORDS, word_state
from recsys.models.sequence.items import ItemModel
from recsys.types import InputError
from serving.bundle import open_bundle

__all__ = ["WarmStart", "warm_start"]


@dataclass(frozen=True)
class WarmStart:
    """``known``: of how many ids the bundle knew, by feature, (known, ids); open ids are not
    counted."""

    path: Path
    known: dict[str, tuple[int, int]]

    def __str__(self) -> str:
        counted = ", ".join(f"{name} {k:,} of {n:,}" for name, (k, n) in self.known.items())
        return f"warm start from {self.path}" + (f"; ids known to it: {counted}" if counted else "")


@torch.no_grad()
def warm_start(model: nn.Module, features: Features, config: AnyRunConfig) -> WarmStart:
    """Puts what the bundle at ``config.train.warm_start`` has learned into a fresh ``model``, on
    the CPU. The state of torch's generator stays as it is.

    Errors: `InputError` for a bundle that cannot be opened or built again, and for one whose
    weights have no place here: other features, model, table method, widths or layer sizes.
    """
    assert config.train.warm_start is not None
    path = Path(config.train.warm_start)
    where = f"train.warm_start {path}"
    bundle = open_bundle(path)
    with torch.random.fork_rng(devices=[]):  # building the old modules draws their first weights
        old: Rebuilt | RebuiltTopK
        old = rebuild_top_k(bundle) if bundle.task == "top_k" else rebuild(bundle)
    _check_configs(where, old.config, config)
    _check_features(where, old.features, features)
    moves = {
        field.name: _moves(where, field.name, old.features, features)
        for field in features.fields
        if field.kind != "numeric" and field.shares is None
    }
    items = next(iter(moves.values()), Moves.open())
    words = [word_state(f) for f in (old.features, features)]
    if all(words):  # tables have rows of words instead of items
        moves = {WORDS: _vocabulary(*words)}
    theirs, ours = embedding_layers(old.graph.model), embedding_layers(model)
    for before, layer in zip(theirs, ours, strict=False):  # another number: seen by the network
        check_widths(before, layer, where=where)
    _copy_network(where, old.graph.model, model, old.config, config, items)
    for before, layer in zip(theirs, ours, strict=True):
        copy_layer(before, layer, moves, where=where)
    known = {
        name: (len(move.new), move.ids) for name, move in moves.items() if move.ids is not None
    }
    return WarmStart(path, known)


MEANING = ("operation", "bits", "scale", "sign", "buckets")
"""Keys of table methods that say how stored rows become vectors."""


def _check_configs(where: str, old: AnyRunConfig, new: AnyRunConfig) -> None:
    pairs: dict[str, tuple[Any, Any]] = {
        "model.name": (old.model.name, new.model.name),
        "embedding.method": (old.embedding.method, new.embedding.method),
        "embedding.embedding_dim": (old.embedding.embedding_dim, new.embedding.embedding_dim),
    }
    for name in MEANING:
        here, there = (getattr(c.embedding, name, None) for c in (new, old))
        pairs[f"embedding.{name}"] = (there, here)
    for key, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise InputError(
                f"{where}: {key} is {theirs} there and {ours} here; set {key} to {theirs}, or "
                "remove train.warm_start"
            )
    for config, whose in ((old, "the bundle's run"), (new, "this run")):
        if isinstance(config, RunConfig) and config.selection is not None:
            raise InputError(
                f"{where}: {whose} has selection {config.selection.method}, whose tables are no "
                "longer rows by id; take a bundle and a config without selection"
            )


def _check_features(where: str, old: Features, new: Features) -> None:
    for what, theirs, ours in (
        ("features", _described(old), _described(new)),
        ("types of columns", _types(old), _types(new)),
    ):
        if theirs != ours:
            raise InputError(
                f"{where}: {what} are {', '.join(theirs)} there and {', '.join(ours)} here; make "
                "them equal, in the same order, or remove train.warm_start"
            )


def _described(features: Features) -> list[str]:
    return [
        f"{f.name} ({f.kind}{'' if f.shares is None else f', shares {f.shares}'})"
        for f in features.fields
    ]


def _types(features: Features) -> list[str]:
    return [f"{item.name} {item.dtype}" for item in features.inputs]


def _moves(where: str, name: str, old: Features, new: Features) -> Moves:
    """Which encoded ids of the feature ``name`` mean the same in both."""
    before, after = old.states.get(name, {}), new.states.get(name, {})
    ways = _way(before), _way(after)
    if ways[0] != ways[1]:
        raise InputError(
            f"{where}: the ids of features.{name} are {ways[0]} there and {ways[1]} here; encode "
            "them alike, or remove train.warm_start"
        )
    if "ids" in after:
        return _vocabulary(before, after)
    if "counts" not in after:
        return Moves.open()
    return Moves.same(len(after["counts"]))


def _way(state: Any) -> str:
    if "ids" in state:
        return "a vocabulary"
    if "counts" in state:
        return f"{len(state['counts']) - 1} buckets"
    return "open"


def _vocabulary(before: Any, after: Any) -> Moves:
    first = [len(state["counts"]) - len(state["ids"]) for state in (before, after)]
    count = len(after["counts"])
    if first[0] == first[1] and np.array_equal(before["ids"], after["ids"]):
        return Moves.same(count)
    _, theirs, ours = np.intersect1d(before["ids"], after["ids"], return_indices=True)
    # null; and the ids of the unseen, if the unseen are spread over as many
    shared = np.arange(first[1] if first[0] == first[1] else 1)
    return Moves(
        old=torch.from_numpy(np.concatenate([shared, first[0] + theirs])),
        new=torch.from_numpy(np.concatenate([shared, first[1] + ours])),
        ids=count,
        moved=True,
    )


def _copy_network(
    where: str,
    old: nn.Module,
    new: nn.Module,
    old_config: AnyRunConfig,
    config: AnyRunConfig,
    items: Moves,
) -> None:
    """Copies every tensor of the model that is no table; what has a number or a row an item by
    ``items``."""
    by_item, fresh = _by_item(new), _fresh(new)
    theirs, ours = _network(old), _network(new)
    for name in sorted(theirs.keys() | ours.keys()):
        if name in fresh and name not in theirs:
            del ours[name]
            continue
        shapes = [tuple(t[name].shape) if name in t else None for t in (theirs, ours)]
        if name not in by_item and shapes[0] != shapes[1]:
            said = ["missing" if shape is None else f"of shape {shape}" for shape in shapes]
            raise InputError(
                f"{where}: weight {name} is {said[0]} there and {said[1]} here"
                f"{_differences(old_config, config)}; give the model the sizes of the bundle, or "
                "remove train.warm_start"
            )
    for name, tensor in ours.items():
        if name in by_item:
            tensor.index_copy_(0, items.new, theirs[name].index_select(0, items.old))
        else:
            tensor.copy_(theirs[name])


def _network(model: nn.Module) -> dict[str, Tensor]:
    """The live tensors of a model without its tables, by name."""
    tables = {
        id(tensor)
        for layer in embedding_layers(model)
        for part in (layer.stores, layer.row_map)
        for tensor in [*part.parameters(), *part.buffers()]
    }
    named = model.state_dict(keep_vars=True)
    return {name: tensor.detach() for name, tensor in named.items() if id(tensor) not in tables}


def _by_item(model: nn.Module) -> set[str]:
    """Names of tensors outside tables that have one row or number an item."""
    if not isinstance(model, ItemModel):
        return set()
    found = [model.item_bias()] + ([model.item_vectors()] if model.reads_text else [])
    named = model.state_dict(keep_vars=True)
    return {name for name, tensor in named.items() if any(tensor is part for part in found)}


def _fresh(model: nn.Module) -> set[str]:
    """Names of what only pretraining needs, which no bundle has: it starts anew."""
    parts = model.pretraining_only() if isinstance(model, ItemModel) else []
    own = {id(tensor) for part in parts for tensor in part.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in own}


def _differences(old: AnyRunConfig, new: AnyRunConfig) -> str:
    """The keys of the model, or of what else sizes it, that differ: with both values."""
    theirs, ours = (config.model.model_dump(mode="json") for config in (old, new))
    said = [
        f"model.{key} {theirs.get(key)} there and {ours.get(key)} here"
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key) != ours.get(key)
    ]
    lengths = [c.max_length if isinstance(c, SequenceRunConfig) else None for c in (old, new)]
    if lengths[0] != lengths[1]:
        said.append(f"max_length {lengths[0]} there and {lengths[1]} here")
    return f" ({', '.join(said)})" if said else ""
