"""Rows of one embedding layer into another of the same method whose ids have other numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from recsys.embeddings.id_map import IdMap
from recsys.embeddings.integer_rows import IntegerRows
from recsys.embeddings.layer import EmbeddingLayer
from recsys.embeddings.managed_store import ManagedRows, ManagedStore
from recsys.embeddings.post_training import ServedRows
from recsys.embeddings.store import FloatStore, Store
from recsys.types import FieldSpec, InputError

__all__ = ["Moves", "check_widths", "copy_layer"]

PROBES = 4096
"""Open ids that are looked up in both layers, to see whether their rows are the same."""


@dataclass(frozen=True)
class Moves:
    """Encoded ids of one field that mean the same in two runs: ``old[i]`` there is ``new[i]`` here.

    ``ids``: how many there are here; ``None``: open ids, which all keep their numbers. ``moved``:
    whether the two spaces differ at all.
    """

    old: Tensor
    new: Tensor
    ids: int | None
    moved: bool

    @staticmethod
    def same(count: int) -> Moves:
        """``count`` ids that are what they were."""
        every = torch.arange(count)
        return Moves(every, every, count, moved=False)

    @staticmethod
    def open() -> Moves:
        """Ids that are no numbers of a vocabulary."""
        none = torch.empty(0, dtype=torch.int64)
        return Moves(none, none, None, moved=False)


class _Rows(NamedTuple):
    """Rows of the same ids in one table of both layers: (U,) each."""

    old: Tensor
    new: Tensor


def copy_layer(
    old: EmbeddingLayer, new: EmbeddingLayer, moves: Mapping[str, Moves], *, where: str
) -> None:
    """Copies the rows of all ids that ``moves`` knows, by the names of the fields that own rows;
    other rows of ``new`` stay. The layers agree in fields and widths, and ``old`` is finalised.
    Projections and numeric vectors are not touched.

    Where no id has moved, tables of any kind are copied as a whole. Otherwise tables must have
    rows, and ids that shared a row in one layer must share one in the other: rows found by
    arithmetic on the number of an id mean nothing once the number has changed. Errors:
    `InputError`, which begins with ``where``.
    """
    still = not any(move.moved for move in moves.values())
    if still and _digest(old) == _digest(new):
        for theirs, ours in zip(old.tables, new.tables, strict=True):
            _copy_whole(theirs, ours, where)
        return
    owners = [(f, field) for f, field in enumerate(new.fields) if field.name in moves]
    for theirs, ours in zip(old.tables, new.tables, strict=True):
        if not _has_rows(theirs, ours):
            names = ", ".join(n for n, m in moves.items() if m.moved) or "the features"
            raise InputError(
                f"{where}: the tables of this method have no row for each id, and the vocabulary "
                f"of {names} has changed; use embedding.method full, encoding hash without "
                "buckets where the method takes open ids, or remove train.warm_start"
            )
    if any(move.ids is None for move in moves.values()):
        _copy_still(old, new, owners, moves, where)
    pairs: list[list[_Rows]] = [[] for _ in new.tables]
    for f, field in owners:
        if moves[field.name].ids is not None:
            for table, rows in _pairs(old, new, f, moves[field.name], where):
                pairs[table].append(rows)
    for theirs, ours, parts in zip(old.tables, new.tables, pairs, strict=True):
        if parts:
            rows = _Rows(*(torch.cat(side) for side in zip(*parts, strict=True)))
            _check_one_to_one(rows, ours, moves, where)
            _copy_rows(theirs, ours, rows)


def check_widths(old: EmbeddingLayer, new: EmbeddingLayer, *, where: str) -> None:
    """Errors: `InputError`, which begins with ``where``, unless the layers have as many tables, of
    the same widths."""
    widths = [[_width(store) for store in layer.tables] for layer in (old, new)]
    if old.dim != new.dim or len(widths[0]) != len(widths[1]) or not _agree(*widths):
        said = [", ".join(map(str, side)) or "none" for side in widths]
        raise InputError(
            f"{where}: tables are {said[0]} wide there and {said[1]} here, for vectors of {old.dim}"
            f" and {new.dim}; the budget or the sizes of vocabularies have changed them: fix the "
            "method's own sizes instead of a budget, or remove train.warm_start"
        )


def _agree(theirs: list[int | None], ours: list[int | None]) -> bool:
    """Equal where both know; a table that only serves may not tell its width."""
    return all(a == b or a is None or b is None for a, b in zip(theirs, ours, strict=True))


def _width(store: Store) -> int | None:
    if isinstance(store, FloatStore):
        return store.weight.size(1)
    return store.codes.size(1) if isinstance(store, IntegerRows) else None


def _has_rows(old: Store, new: Store) -> bool:
    if isinstance(new, IntegerRows):
        return isinstance(old, IntegerRows) and _shapes(old, 1) == _shapes(new, 1)
    return isinstance(new, FloatStore)


def _digest(layer: EmbeddingLayer) -> str:
    return IdMap(row_map=layer.row_map, fields=layer.fields).fingerprint


def _shapes(store: Store, first: int) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape[first:]) for name, tensor in store.state_dict().items()}


def _copy_whole(old: Store, new: Store, where: str) -> None:
    if _shapes(old, 0) == _shapes(new, 0):
        new.load_state_dict(old.state_dict())
    elif isinstance(new, FloatStore) and isinstance(old, ServedRows):
        every = torch.arange(new.weight.size(0))
        _copy_rows(old, new, _Rows(every, every))
    elif (
        isinstance(new, ManagedStore)
        and isinstance(old, ManagedRows)
        and old.lookup.size == new.ids.lookup.size
    ):
        new.adopt(old)
    else:
        sizes = [", ".join(f"{n} {s}" for n, s in _shapes(s_, 0).items()) for s_ in (old, new)]
        raise InputError(
            f"{where}: a table holds {sizes[0]} there and {sizes[1]} here; if embedding is the "
            "same in both configs, the method serves another form than it trains, and no bundle "
            "of it can be trained further: remove train.warm_start"
        )


def _copy_rows(old: Store, new: Store, rows: _Rows) -> None:
    if isinstance(new, FloatStore):
        new.weight.detach().index_copy_(0, rows.new, old(rows.old))
        return
    theirs, ours = old.state_dict(), new.state_dict()
    for name, tensor in ours.items():
        tensor.index_copy_(0, rows.new, theirs[name].index_select(0, rows.old))


def _copy_still(
    old: EmbeddingLayer,
    new: EmbeddingLayer,
    owners: list[tuple[int, FieldSpec]],
    moves: Mapping[str, Moves],
    where: str,
) -> None:
    """Copies rows to where they were, but for those of ids that moved: open ids, which cannot be
    listed, must find theirs there."""
    keep = [torch.ones(_count(store), dtype=torch.bool) for store in new.tables]
    for f, field in owners:
        ids = moves[field.name].ids
        if ids is None:
            probes = torch.randint(-(2**62), 2**62, (PROBES, 1), generator=_seeded())
            if not torch.equal(old.row_map(probes, f), new.row_map(probes, f)):
                rows = [max(map(_count, layer.tables)) for layer in (old, new)]
                raise InputError(
                    f"{where}: the open ids of features.{field.name} fall on other rows than there "
                    f"(tables of {rows[0]} and of {rows[1]} rows, those of all features together); "
                    "set embedding.rows as it was, list the feature first, or remove "
                    "train.warm_start"
                )
        elif moves[field.name].moved:
            rows = new.row_map(torch.arange(ids).unsqueeze(-1), f)
            for t, table in enumerate(new.slots(f)):
                keep[table][rows[:, t].long()] = False
    for theirs, ours, kept in zip(old.tables, new.tables, keep, strict=True):
        kept[_count(theirs) :] = False
        same = kept.nonzero().squeeze(1)
        _copy_rows(theirs, ours, _Rows(same, same))


def _pairs(
    old: EmbeddingLayer, new: EmbeddingLayer, f: int, move: Moves, where: str
) -> list[tuple[int, _Rows]]:
    """(table, rows) of each slot of field ``f``, without ids that lie in another table now."""
    slots = new.slots(f)
    if old.slots(f) != slots:
        raise InputError(
            f"{where}: a vector of features.{new.fields[f].name} is made of {len(old.slots(f))} "
            f"lookups in tables {old.slots(f)} there, and of {len(slots)} in {slots} here, as its "
            "ids have become more or fewer; use embedding.method full, or remove train.warm_start"
        )
    theirs = old.row_map(move.old.unsqueeze(-1), f).long()  # (U, T)
    ours = new.row_map(move.new.unsqueeze(-1), f).long()
    nothing = [
        torch.stack([rows[:, t] == layer.tables[k].padding for t, k in enumerate(slots)], 1)
        for rows, layer in ((theirs, old), (ours, new))
    ]
    stays = (nothing[0] == nothing[1]).all(1)  # popularity blocks: it is in the same one
    result = []
    for t, table in enumerate(slots):
        chosen = stays & ~nothing[1][:, t]
        result.append((table, _Rows(theirs[chosen, t], ours[chosen, t])))
    return result


def _check_one_to_one(rows: _Rows, store: Store, moves: Mapping[str, Moves], where: str) -> None:
    both = torch.unique(rows.old * _count(store) + rows.new).numel()
    if rows.old.unique().numel() == both == rows.new.unique().numel():
        return
    names = ", ".join(name for name, move in moves.items() if move.moved) or "tables"
    raise InputError(
        f"{where}: this method finds rows by the number of an id, and the numbers or rows of "
        f"{names} have changed: ids that shared a row there do not here; use encoding hash without "
        "buckets, whose ids keep their numbers, or embedding.method full, or remove "
        "train.warm_start"
    )


def _count(store: Store) -> int:
    """Rows of a table that has rows: every tensor of it has as many."""
    return next(iter(store.state_dict().values())).size(0)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
