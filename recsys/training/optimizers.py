"""The optimisers of a model: one for the network, one for dense tables, one per row-sparse table.

Table parameters are all parameters of the embedding layers: tables, projections and the vectors
of numeric fields. They use ``table_optimizer``, ``table_learning_rate`` and ``embedding_l2``; all
other parameters use ``optimizer``, ``learning_rate`` and ``weight_decay``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer
from recsys.embeddings.store import training_bytes
from recsys.settings import EmbeddingL2, TrainConfig
from recsys.training.sparse_optimizers import (
    ADAGRAD_EPS,
    ADAM_BETAS,
    ADAM_EPS,
    RowGradient,
    RowwiseAdagrad,
    TableOptimizer,
    coalesce,
    new_state,
    update_rows,
)
from recsys.types import InputError

__all__ = ["Optimizers", "build_optimizers", "training_bytes"]

Named = Sequence[tuple[str, nn.Parameter]]


class DenseGroup:
    """Parameters with dense gradients under one torch optimiser."""

    def __init__(
        self,
        params: Named,
        *,
        optimizer: TableOptimizer,
        learning_rate: float,
        weight_decay: float = 0.0,
        l2: EmbeddingL2 | None = None,
    ) -> None:
        self.names = [name for name, _ in params]
        self.params = [param for _, param in params]
        self._lr = self._base_lr = learning_rate
        self._l2 = l2 or EmbeddingL2()
        self._optimizer = _torch_optimizer(self.params, optimizer, learning_rate, weight_decay)

    def set_lr_scale(self, scale: float) -> None:
        self._lr = self._base_lr * scale
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr

    def prepare(self) -> list[Tensor]:
        """Adds the L2 terms to the gradients and returns all gradients."""
        live: list[Tensor] = [param for param in self.params if param.grad is not None]
        grads = [param.grad for param in live if param.grad is not None]
        value = self._l2.value
        if value > 0 and live and self._l2.mode == "all_rows":
            torch._foreach_add_(grads, live, alpha=value)
        elif value > 0 and self._l2.mode == "touched_rows":
            for param, grad in zip(live, grads, strict=True):
                touched = (grad != 0).any(-1, keepdim=True)
                grad.addcmul_(param, touched.to(grad.dtype), value=value)
        return grads

    def step(self) -> None:
        if self._l2.value > 0 and self._l2.mode == "decoupled":
            live: list[Tensor] = [param for param in self.params if param.grad is not None]
            if live:
                torch._foreach_mul_(live, 1 - self._lr * self._l2.value)
        self._optimizer.step()

    def state(self) -> dict[str, Tensor]:
        return {
            f"{name}:{key}": value
            for name, param in zip(self.names, self.params, strict=True)
            for key, value in self._optimizer.state.get(param, {}).items()
        }

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        for name, param in zip(self.names, self.params, strict=True):
            kept = {
                key.removeprefix(f"{name}:"): value
                for key, value in tensors.items()
                if key.startswith(f"{name}:")
            }
            self._optimizer.state[param] = {
                key: value.clone() if value.dim() == 0 else value.to(param.device, copy=True)
                for key, value in kept.items()
            }


class SparseTable:
    """One table with row-sparse gradients and its optimiser state."""

    def __init__(
        self, name: str, param: nn.Parameter, *, optimizer: TableOptimizer, train: TrainConfig
    ) -> None:
        self.params = [param]
        self._name, self._param, self._optimizer = name, param, optimizer
        self._lr = self._base_lr = train.table_learning_rate
        value, mode = train.embedding_l2.value, train.embedding_l2.mode
        self._l2 = value if mode == "touched_rows" else 0.0
        self._decay = value if mode == "decoupled" else 0.0
        self._state = new_state(param.detach(), optimizer)
        self._gradient: RowGradient | None = None
        self._step = torch.zeros((), dtype=torch.int64)

    def set_lr_scale(self, scale: float) -> None:
        self._lr = self._base_lr * scale

    def prepare(self) -> list[Tensor]:
        """Sums duplicate rows; returns the values of touched rows, which `step` then uses."""
        self._gradient = None
        if self._param.grad is None:
            return []
        self._gradient = coalesce(self._param.grad)
        return [self._gradient.values]

    def step(self) -> None:
        self._step += 1
        if self._gradient is None:
            return
        update_rows(
            self._param.detach(),
            self._state,
            self._gradient,
            optimizer=self._optimizer,
            learning_rate=self._lr,
            step=int(self._step),
            l2=self._l2,
            decay=self._decay,
        )
        self._gradient = None

    def state(self) -> dict[str, Tensor]:
        tensors = {f"{self._name}:{key}": value for key, value in self._state.items()}
        return tensors | {f"{self._name}:step": self._step}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self._step.copy_(tensors[f"{self._name}:step"])
        for key, value in self._state.items():
            value.copy_(tensors[f"{self._name}:{key}"])


class FusedTable:
    """A table whose store updates it in the backward pass (torchrec)."""

    params: list[nn.Parameter]

    def __init__(self, name: str, store: Any, *, learning_rate: float) -> None:
        self.params = []
        self._name, self._store, self._base_lr = name, store, learning_rate

    def set_lr_scale(self, scale: float) -> None:
        self._store.set_learning_rate(self._base_lr * scale)

    def prepare(self) -> list[Tensor]:
        return []

    def step(self) -> None:
        """The backward pass has done it."""

    def state(self) -> dict[str, Tensor]:
        return {f"{self._name}:{k}": v for k, v in self._store.optimizer_state().items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        for key, value in self._store.optimizer_state().items():
            value.copy_(tensors[f"{self._name}:{key}"])


class Optimizers:
    """All optimisers of a model behind one handle.

    A step is ``set_lr_scale``, ``zero_grad``, backward, ``clip`` if wanted, ``step``.
    """

    def __init__(self, parts: Sequence[DenseGroup | SparseTable | FusedTable]) -> None:
        self._parts = list(parts)
        self._prepared: list[Tensor] | None = None
        self._scale = 1.0

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        self._prepared = None
        for part in self._parts:
            for param in part.params:
                param.grad = None

    def set_lr_scale(self, scale: float) -> None:
        """Learning rates become ``scale`` times their base values."""
        self._scale = scale
        for part in self._parts:
            part.set_lr_scale(scale)

    @torch.no_grad()
    def clip(self, norm: float) -> float:
        """Scales all gradients so that their global 2-norm is at most ``norm``.

        Returns the norm before: over dense gradients and the summed gradients of touched rows,
        L2 terms of ``embedding_l2.mode all_rows`` included.
        """
        grads = self._prepare()
        total = torch.nn.utils.get_total_norm(grads)
        if grads:
            torch._foreach_mul_(grads, torch.clamp(norm / (total + 1e-6), max=1.0))
        return float(total)

    @torch.no_grad()
    def step(self) -> None:
        """Moves every parameter that has a gradient."""
        self._prepare()
        for part in self._parts:
            part.step()
        self._prepared = None

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything to go on exactly: named tensors (live ones, not copies) and plain JSON."""
        tensors = {key: value for part in self._parts for key, value in part.state().items()}
        return tensors, {"lr_scale": self._scale}

    def load_state(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Puts back what `state` returned for the same model and config."""
        for part in self._parts:
            part.load_state(tensors)
        self.set_lr_scale(plain["lr_scale"])

    def _prepare(self) -> list[Tensor]:
        if self._prepared is None:
            self._prepared = [grad for part in self._parts for grad in part.prepare()]
        return self._prepared


def build_optimizers(model: nn.Module, train: TrainConfig) -> Optimizers:
    """The optimisers of all trainable parameters of ``model``, which is on its device already.

    Errors: `InputError` if gradients are to be clipped that the torchrec store never shows.
    """
    layers = [module for module in model.modules() if isinstance(module, EmbeddingLayer)]
    stores = [store for layer in layers for store in layer.tables]
    fused = [store for store in stores if store.fused]
    if fused and train.clip_norm is not None:
        raise InputError(
            "train.clip_norm: tables in torchrec are updated inside the backward pass, where no "
            "global norm is known; set train.store torch or remove clip_norm"
        )
    ours = {id(param) for layer in layers for param in layer.parameters()}
    sparse = {id(store.weight) for store in stores if not store.fused and store.sparse}
    hidden = {id(param) for store in fused for param in store.parameters()}
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad and id(p) not in hidden]
    network = [(name, param) for name, param in named if id(param) not in ours]
    dense = [(n, p) for n, p in named if id(p) in ours and id(p) not in sparse]
    parts: list[DenseGroup | SparseTable | FusedTable] = []
    if network:
        parts.append(
            DenseGroup(
                network,
                optimizer=train.optimizer,
                learning_rate=train.learning_rate,
                weight_decay=train.weight_decay,
            )
        )
    if dense:
        parts.append(
            DenseGroup(
                dense,
                optimizer=train.table_optimizer,
                learning_rate=train.table_learning_rate,
                l2=train.embedding_l2,
            )
        )
    for name, param in named:
        if id(param) in sparse:
            parts.append(SparseTable(name, param, optimizer=train.table_optimizer, train=train))
    for name, module in model.named_modules():
        if any(module is store for store in fused):
            parts.append(FusedTable(name, module, learning_rate=train.table_learning_rate))
    return Optimizers(parts)


def _torch_optimizer(
    params: list[nn.Parameter], optimizer: TableOptimizer, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    if optimizer == "adam":
        return torch.optim.Adam(
            params, lr=lr, betas=ADAM_BETAS, eps=ADAM_EPS, weight_decay=weight_decay, fused=True
        )
    if optimizer == "adagrad":
        return torch.optim.Adagrad(
            params, lr=lr, eps=ADAGRAD_EPS, weight_decay=weight_decay, fused=True
        )
    if optimizer == "sgd":
        return torch.optim.SGD(params, lr=lr, weight_decay=weight_decay, fused=True)
    return RowwiseAdagrad(params, lr)
