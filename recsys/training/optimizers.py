"""The optimisers of a model: one for the network, one for dense tables, one per row-sparse table.

Table parameters are all parameters of the embedding layers: tables, projections and the vectors
of numeric fields. They use ``table_optimizer``, ``table_learning_rate`` and ``embedding_l2``; all
other parameters use ``optimizer``, ``learning_rate`` and ``weight_decay``. Networks that compute
vectors (`Store.is_network`) belong to the tables, but move by ``optimizer`` and ``learning_rate``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer
from recsys.embeddings.frequencies import row_frequencies
from recsys.embeddings.store import Store
from recsys.settings import TrainConfig
from recsys.training.optimizer_parts import DenseGroup, FusedTable, SparseTable
from recsys.training.sparse_optimizers import TableOptimizer
from recsys.types import InputError

__all__ = ["Optimizers", "ParameterGroup", "build_optimizers"]

Part = DenseGroup | SparseTable | FusedTable


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that a phase moves by a rule of its own: dense gradients, no L2, no decay.

    ``name``: how `Optimizers.step` calls the group; ``network`` and ``tables`` are taken. ``eps``:
    of Adam and Adagrad; ``None``: theirs.
    """

    name: str
    params: Sequence[nn.Parameter]
    learning_rate: float
    optimizer: TableOptimizer = "adam"
    eps: float | None = None


class Optimizers:
    """All optimisers of a model behind one handle.

    A step is ``set_lr_scale``, ``zero_grad``, backward, ``clip`` if wanted, ``step``. Each part
    belongs to a group: ``network``, ``tables`` or one of the phase's own.
    """

    def __init__(self, parts: Sequence[tuple[str, Part]], stores: Sequence[Store] = ()) -> None:
        """``stores``: tables that may change after a step."""
        self._stores = stores
        self._groups = [group for group, _ in parts]
        self._parts = [part for _, part in parts]
        self._prepared: list[Tensor] | None = None
        self._scale = 1.0

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        self._prepared = None
        for part in self._parts:
            for param in part.params:
                param.grad = None
            if isinstance(part, FusedTable):
                part.forget()

    def set_lr_scale(self, scale: float) -> None:
        """Learning rates become ``scale`` times their base values."""
        self._scale = scale
        for part in self._parts:
            part.set_lr_scale(scale)

    @torch.no_grad()
    def clip(self, norm: float, only: Collection[str] | None = None) -> float:
        """Scales all gradients (of the groups ``only``) so that their global 2-norm is at most
        ``norm``.

        Returns the norm before: over dense gradients and the summed gradients of touched rows,
        L2 terms of ``embedding_l2.mode all_rows`` included.
        """
        grads = self._prepare(only)
        total = torch.nn.utils.get_total_norm(grads)
        if grads:
            torch._foreach_mul_(grads, torch.clamp(norm / (total + 1e-6), max=1.0))
        return float(total)

    @torch.no_grad()
    def step(self, only: Collection[str] | None = None) -> None:
        """Moves every parameter (of the groups ``only``) that has a gradient.

        Tables in torchrec have moved in the backward pass, whatever ``only`` says.
        """
        self._prepare(only)
        for part in self._chosen(only):
            part.step()
        self._prepared = None
        if only is None or "tables" in only:
            for store in self._stores:
                rows = store.after_step()
                if rows is not None:
                    for state in self._entries(store.weight):
                        state.index_fill_(0, rows, 0)

    @torch.no_grad()
    def forget(self, param: nn.Parameter, chosen: Tensor) -> None:
        """Zeroes the state of the entries ``chosen`` (bool, (R, d) like ``param``): moments and
        accumulators. One that a row has in common is zeroed where the whole row is chosen; the
        count of steps is the parameter's and stays.
        """
        for value in self._entries(param):
            whole = chosen if value.shape == chosen.shape else chosen.all(1, True)
            value.masked_fill_(whole, 0)

    def _entries(self, param: Tensor | None) -> list[Tensor]:
        """The live state of ``param`` by row or by entry."""
        owned = (entry for part in self._parts for entry in part.entries())
        return [value for own, state in owned if own is param for value in state]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything to go on exactly: named tensors (live ones, not copies) and plain JSON."""
        tensors = {key: value for part in self._parts for key, value in part.state().items()}
        return tensors, {"lr_scale": self._scale}

    def load_state(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Puts back what `state` returned for the same model and config."""
        for part in self._parts:
            part.load_state(tensors)
        self.set_lr_scale(plain["lr_scale"])

    def _prepare(self, only: Collection[str] | None) -> list[Tensor]:
        if self._prepared is None:
            self._prepared = [grad for part in self._chosen(only) for grad in part.prepare()]
        return self._prepared

    def _chosen(self, only: Collection[str] | None) -> list[Part]:
        if only is None:
            return self._parts
        assert set(only) <= set(self._groups), f"groups are {self._groups}, not {only}"
        return [p for g, p in zip(self._groups, self._parts, strict=True) if g in only]


def build_optimizers(
    model: nn.Module, train: TrainConfig, groups: Sequence[ParameterGroup] = ()
) -> Optimizers:
    """The optimisers of all trainable parameters of ``model``, which is on its device already.

    ``groups``: parameters that are moved by rules of their own.

    Errors: `InputError` if gradients are to be clipped that the torchrec store never shows, or if
    L2 is batch-aware and ids are open.
    """
    layers = [module for module in model.modules() if isinstance(module, EmbeddingLayer)]
    stores = [store for layer in layers for store in layer.tables]
    fused = [store for store in stores if store.fused]
    if fused and train.store == "torchrec" and train.clip_norm is not None:
        raise InputError(
            "train.clip_norm: tables in torchrec are updated inside the backward pass, where no "
            "global norm is known; set train.store torch or remove clip_norm"
        )
    ours = {id(param) for layer in layers for param in layer.parameters()}
    sparse = {id(store.weight) for store in stores if store.sparse and not store.fused}
    own = {id(param): group.name for group in groups for param in group.params}
    hidden = {id(param) for store in fused for param in store.parameters()} | own.keys()
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad and id(p) not in hidden]
    network = [(name, param) for name, param in named if id(param) not in ours]
    dense = [(n, p) for n, p in named if id(p) in ours and id(p) not in sparse]
    parts: list[tuple[str, Part]] = []
    if network:
        part = DenseGroup(
            network,
            optimizer=train.optimizer,
            learning_rate=train.learning_rate,
            weight_decay=train.weight_decay,
        )
        parts.append(("network", part))
    in_loss = {id(param) for layer in layers for param in layer.penalised()}
    networks = {id(p) for store in stores if store.is_network for p in store.parameters()}
    by_table = (train.table_optimizer, train.table_learning_rate, False)
    by_network = (train.optimizer, train.learning_rate, True)
    for (optimizer, rate, computed), penalised in product((by_table, by_network), (False, True)):
        group = [
            (name, param)
            for name, param in dense
            if (id(param) in networks) == computed and (id(param) in in_loss) == penalised
        ]
        if group:
            l2 = None if penalised else train.embedding_l2
            part = DenseGroup(group, optimizer=optimizer, learning_rate=rate, l2=l2)
            parts.append(("tables", part))
    frequencies: dict[int, Tensor] = {}
    if train.embedding_l2.value > 0 and train.embedding_l2.mode == "batch_aware":
        for layer in layers:
            for store, rows in zip(layer.tables, row_frequencies(layer), strict=True):
                frequencies[id(store.weight)] = rows
    for name, param in named:
        if id(param) in sparse:
            table = SparseTable(
                name,
                param,
                optimizer=train.table_optimizer,
                train=train,
                frequencies=frequencies.get(id(param)),
            )
            parts.append(("tables", table))
    for name, module in model.named_modules():
        if any(module is store for store in fused):
            parts.append(
                ("tables", FusedTable(name, module, learning_rate=train.table_learning_rate))
            )
    names = {id(param): name for name, param in model.named_parameters()}
    for chosen in groups:
        part = DenseGroup(
            [(names[id(param)], param) for param in chosen.params],
            optimizer=chosen.optimizer,
            learning_rate=chosen.learning_rate,
            eps=chosen.eps,
        )
        parts.append((chosen.name, part))
    return Optimizers(parts, stores)
