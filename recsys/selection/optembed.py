"""OptEmbed: rows above a learned threshold, and a width for every feature, found by evolution.

Lyu et al., "OptEmbed: Learning Optimal Embedding Table for Click-through Rate Prediction", CIKM
2022, https://arxiv.org/abs/2208.04482.

1. **Supernet.** Every feature f has a threshold t_f, 0 at the start; its row n is open while
   ``||e_n||_1 > t_f``, through a step whose gradient is a long-tailed surrogate (`step`). In
   training every example keeps, of every feature, its first d columns only, d drawn evenly from 1
   to D, so that the first columns learn to do without the last. A penalty on ``exp(-t_f)`` lifts
   the thresholds.
2. **Evolution**, without a gradient step: one width per feature, the rows fixed; what is best is
   judged by AUC on rows of train that the supernet has not seen (``search_share``).
3. **Retrain** on all of train, with the rows and widths that were found.

A row belongs to one feature, so tables whose rows are shared by several (`unified`) are refused.

**Differences from the paper** (``paper: true`` undoes them). The published fitness is AUC alone, so
nothing makes widths small: here ``keep`` caps the floats that stay (candidates are cut to it, of
equals the smaller wins), the same width for all is the first candidate, and the best ones stay
parents. If even width 1 is too much, the rows least above their thresholds close until it fits.
The published penalty, ``strength * sum_f exp(-t_f)`` under SGD, moves a threshold by about 1e-8 a
step, in units of norms that depend on width, L2 and start (on Frappe, 0.03). Here norms are
divided by the running mean norm of their feature; the penalty is a mean over rows, so that a row
stays where it lowers the loss by more than its share, ``strength / N``; and thresholds have an Adam
of their own, of rate ``threshold_step / S`` for S steps an epoch. The norm is that of a row over
all layers, which lose it together; the published one leaves first-order weights alone. Rows that
no training row uses are closed: decay takes them to zero in dense tables but never moves them in
row-sparse ones, and the result must not depend on that. Mutation in place, by which the published
code overwrites candidates after it has scored them, is no part of ``paper``.

**Gradients.** Row-sparse tables work: thresholds are dense parameters and the penalty is theirs;
gates move the rows of the batch. What shrinks rare rows below the thresholds is
``train.embedding_l2``, on all rows in mode ``all_rows``.

**Batch norm** is not recalibrated: candidates are ranked with the supernet's running statistics, of
mixed widths, the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from recsys.embeddings import EmbeddingLayer
from recsys.embeddings.store import FloatStore
from recsys.selection.elements import ElementSelection
from recsys.selection.masked import MaskedStore
from recsys.selection.optembed_evolution import Genome, Space
from recsys.selection.optembed_phases import Evolve, Supernet
from recsys.selection.optembed_store import RowThresholds, SupernetStore
from recsys.selection.retrain import Retrain, Snapshot, snapshot_bytes
from recsys.selection.row_owners import row_owners
from recsys.settings import TrainConfig
from recsys.training.phase import Phase
from recsys.types import FrozenConfig, InputError


class OptEmbedConfig(FrozenConfig):
    """``keep``: share of the tables' floats that may stay. ``strength``: of the penalty, in nats if
    all thresholds were 0. ``threshold_step``: how far a threshold can move in one epoch, in mean
    norms (default 0.1). ``search_epochs`` of the supernet all run. ``search_share`` of train judges
    the candidates of ``generations``. ``restart``: the retrain starts from the initial weights, or
    goes on from the supernet's.

    ``paper``: as published, see the module: ``strength`` is alpha, of a sum over features;
    ``threshold_step`` is the rate of SGD (default 1e-4); the supernet stops by ``train.patience``
    and keeps its best epoch; no ``keep``.
    """

    method: Literal["optembed"]
    keep: Annotated[float, Field(gt=0, le=1)] | None = None
    strength: Annotated[float, Field(ge=0)] = 0.1
    threshold_step: PositiveFloat | None = None
    search_epochs: PositiveInt = 10
    search_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    generations: PositiveInt = 30
    restart: Literal["initial", "trained"] = "initial"
    paper: bool = False

    @model_validator(mode="after")
    def _one_fitness(self) -> OptEmbedConfig:
        if self.paper == (self.keep is not None):
            raise ValueError(
                "give keep, the share of the tables that may stay, or paper: true, whose fitness "
                "knows no size"
            )
        return self


class OptEmbed(ElementSelection):
    """See the module's docstring.

    Errors: `InputError` for a model without tables, or tables whose rows features share.
    """

    Config = OptEmbedConfig
    config: OptEmbedConfig

    def __init__(
        self, config: OptEmbedConfig, layers: Sequence[EmbeddingLayer], train: TrainConfig
    ) -> None:
        self.gates: list[RowThresholds] = []
        super().__init__(config, layers, train)
        # genes: each feature in each table of each layer that holds more than one column
        self.genes = [
            (number, feature)
            for number, store in enumerate(self.stores)
            if isinstance(store, SupernetStore) and store.weight.size(1) > 1
            for feature in self.owners.features(self._table(number))
        ]

    def wrap(self, store: FloatStore, layer: int, table: int) -> MaskedStore:
        widest = max(one.dim for one in self.layers)
        chosen = [one for one in self.layers if not self.config.paper or one.dim == widest]
        if layer == table == 0:
            self.owners = row_owners(self.layers[0], self.config.method)
        if layer == 0:
            stores = [one.float_tables[table] for one in chosen]
            owner, count = self.owners.owner[table], len(self.owners.names)
            self.gates.append(RowThresholds(stores=stores, owner=owner, features=count))
        if self.layers[layer] not in chosen:
            return MaskedStore(store=store)
        place = chosen.index(self.layers[layer])
        return SupernetStore(store=store, gate=self.gates[table], place=place)

    def search(self, on: bool) -> None:
        """Gates and drawn widths instead of masks, or the other way round."""
        for store in self.supernet().values():
            store.searching = on
        for gate in self.gates:
            gate.thresholds.requires_grad_(on)

    def harden(self) -> None:
        self.search(False)

    def supernet(self) -> dict[int, SupernetStore]:
        """The stores that the method works on, by their place in `stores`."""
        return {n: s for n, s in enumerate(self.stores) if isinstance(s, SupernetStore)}

    @property
    def rows(self) -> int:
        """Rows of all tables that belong to a feature."""
        return sum(int(gate.rows.sum()) for gate in self.gates)

    def open_rows(self) -> list[Tensor]:
        """For each table (R,) bool: rows above their threshold, as things are now."""
        masks = [gate.margins() > 0 for gate in self.gates]
        if self.config.paper:
            return masks
        return [
            mask & met.to(mask.device) for mask, met in zip(masks, self.owners.met, strict=True)
        ]

    def affordable(self) -> list[Tensor]:
        """`open_rows`, without those of least margin if ``keep`` is too small for all of them.

        Errors: `InputError` if none is left.
        """
        masks = self.open_rows()
        most = self._most
        if most is not None:
            joint = torch.cat(masks)
            margins = torch.cat([gate.margins() for gate in self.gates])
            ranked = torch.where(joint, margins, -torch.inf).sort(descending=True, stable=True)
            joint[ranked.indices[most // len(self.layers) :]] = False  # a float a layer
            masks = list(joint.split([len(mask) for mask in masks]))
        if not any(bool(mask.any()) for mask in masks):
            raise InputError(
                "selection has closed every row; lower selection.strength or threshold_step, or "
                "raise keep"
            )
        return masks

    @property
    def _most(self) -> int | None:
        keep = self.config.keep
        return None if keep is None else int(keep * self.parameters)

    def space(self, rows: Sequence[Tensor]) -> Space:
        """The widths to choose from if ``rows`` (for each table (R,) bool) stay."""
        counts = [
            torch.bincount(gate.owner[mask], minlength=len(self.owners.names)).tolist()
            for gate, mask in zip(self.gates, rows, strict=True)
        ]
        fixed = 0
        for number, store in enumerate(self.stores):
            if number not in self.supernet():
                fixed += store.weight.numel()
            elif store.weight.size(1) == 1:
                fixed += sum(counts[self._table(number)])
        limits = [self.stores[number].weight.size(1) for number, _ in self.genes]
        costs = [counts[self._table(number)][feature] for number, feature in self.genes]
        return Space(np.array(limits, np.int64), np.array(costs, np.int64), fixed, self._most)

    def mask(self, rows: Sequence[Tensor], widths: Genome) -> None:
        """Puts ``rows`` and the ``widths`` of `genes` into the masks."""
        for number, store in self.supernet().items():
            table = self._table(number)
            full = store.weight.size(1)
            per = torch.full((len(self.owners.names),), full, device=store.mask.device)
            for (where, feature), width in zip(self.genes, widths.tolist(), strict=True):
                if where == number:
                    per[feature] = width
            kept = per[self.gates[table].owner.clamp_min(0)].unsqueeze(1)  # (R, 1)
            column = torch.arange(full, device=kept.device)
            store.mask.copy_(rows[table].unsqueeze(1) & (column < kept))

    def chosen(self) -> list[Tensor]:
        """The masks as they are: what the evolution has left in them."""
        return [store.mask.clone() for store in self.stores]

    def report(self) -> dict[str, Any]:
        """Adds what each feature keeps in each table of each layer: rows and width."""
        found = []
        for number, store in self.supernet().items():
            owner = self.gates[self._table(number)].owner
            for feature in self.owners.features(self._table(number)):
                mask = store.mask[owner == feature]
                found.append(
                    {
                        "feature": self.owners.names[feature],
                        "layer": number // len(self.gates),
                        "table": self._table(number),
                        "rows": len(mask),
                        "rows_kept": int(mask.any(1).sum()),
                        "width": int(mask.any(0).sum()),
                    }
                )
        return super().report() | {"kept_by_feature": found}

    def phases(self) -> list[Phase]:
        snapshot = Snapshot(self)
        retrain = Retrain(self, snapshot, "retrain", self.train.max_epochs)
        return [Supernet(self, snapshot), Evolve(self), retrain]

    def training_bytes(self) -> int:
        """Masks, owners, thresholds, their gradient and Adam's two moments; the first weights,
        where the retrain starts from them."""
        extra = sum(8 * len(gate.owner) + 16 * len(gate.thresholds) for gate in self.gates)
        first = snapshot_bytes(self.layers) if self.config.restart == "initial" else 0
        return super().training_bytes() + extra + first

    def _table(self, number: int) -> int:
        return number % len(self.gates)
