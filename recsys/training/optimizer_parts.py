"""The parts of an `Optimizers`: parameters that one rule moves, each with its state.

Every part offers ``set_lr_scale``, ``prepare`` (the gradients of this step, for clipping),
``step``, ``state`` and ``load_state``, and ``entries``: the state that each of its parameters has
by row or by entry, live.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recsys.embeddings.store import FusedStore
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
        eps: float | None = None,
    ) -> None:
        self.names = [name for name, _ in params]
        self.params = [param for _, param in params]
        self._lr = self._base_lr = learning_rate
        self._l2 = l2 or EmbeddingL2()
        self._optimizer = _torch_optimizer(self.params, optimizer, learning_rate, weight_decay, eps)

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

    def entries(self) -> list[tuple[nn.Parameter, list[Tensor]]]:
        states = [(param, self._optimizer.state.get(param, {})) for param in self.params]
        return [(p, [value for value in s.values() if value.dim() > 0]) for p, s in states]

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
                key: value.to(param.device, copy=True)  # fused optimisers count steps there
                for key, value in kept.items()
            }


class SparseTable:
    """One table with row-sparse gradients and its optimiser state."""

    def __init__(
        self,
        name: str,
        param: nn.Parameter,
        *,
        optimizer: TableOptimizer,
        train: TrainConfig,
        frequencies: Tensor | None = None,
    ) -> None:
        """``frequencies``: (rows,) how often training uses each row, for L2 that is batch-aware."""
        self.params = [param]
        self._name, self._param, self._optimizer = name, param, optimizer
        self._lr = self._base_lr = train.table_learning_rate
        value, mode = train.embedding_l2.value, train.embedding_l2.mode
        self._l2 = value if mode == "touched_rows" else 0.0
        self._decay = value if mode == "decoupled" else 0.0
        self._pull: Tensor | None = None  # (rows, 1): gradient of (value / n) ||w||^2 over w
        if frequencies is not None:
            pull = 2 * value / frequencies.clamp_min(1)
            self._pull = pull.unsqueeze(1).to(param.device)
        self._state = new_state(param.detach(), optimizer)
        self._gradient: RowGradient | None = None
        self._step = torch.zeros((), dtype=torch.int64)

    def set_lr_scale(self, scale: float) -> None:
        self._lr = self._base_lr * scale

    def prepare(self) -> list[Tensor]:
        """Sums duplicate rows and adds batch-aware L2; returns the values of touched rows, which
        `step` then uses."""
        self._gradient = None
        if self._param.grad is None:
            return []
        self._gradient = coalesce(self._param.grad)
        if self._pull is not None:
            rows, values = self._gradient
            values.addcmul_(self._param.detach()[rows], self._pull[rows])
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

    def entries(self) -> list[tuple[nn.Parameter, list[Tensor]]]:
        return [(self._param, list(self._state.values()))]

    def state(self) -> dict[str, Tensor]:
        tensors = {f"{self._name}:{key}": value for key, value in self._state.items()}
        return tensors | {f"{self._name}:step": self._step}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self._step.copy_(tensors[f"{self._name}:step"])
        for key, value in self._state.items():
            value.copy_(tensors[f"{self._name}:{key}"])


class FusedTable:
    """A table whose store moves itself (torchrec, quantised tables)."""

    params: list[nn.Parameter]

    def __init__(self, name: str, store: FusedStore, *, learning_rate: float) -> None:
        self.params = []
        self._name, self._store, self._base_lr = name, store, learning_rate

    def set_lr_scale(self, scale: float) -> None:
        self._store.set_learning_rate(self._base_lr * scale)

    def forget(self) -> None:
        """Drops gradients that no step has used."""
        self._store.forget()

    def prepare(self) -> list[Tensor]:
        return self._store.gradients()

    def step(self) -> None:
        self._store.update()

    def entries(self) -> list[tuple[nn.Parameter, list[Tensor]]]:
        return []

    def state(self) -> dict[str, Tensor]:
        return {f"{self._name}:{k}": v for k, v in self._store.optimizer_state().items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        for key, value in self._store.optimizer_state().items():
            value.copy_(tensors[f"{self._name}:{key}"])


def _torch_optimizer(
    params: list[nn.Parameter],
    optimizer: TableOptimizer,
    lr: float,
    weight_decay: float,
    eps: float | None,
) -> torch.optim.Optimizer:
    if optimizer == "adam":
        eps = ADAM_EPS if eps is None else eps
        return torch.optim.Adam(
            params, lr=lr, betas=ADAM_BETAS, eps=eps, weight_decay=weight_decay, fused=True
        )
    if optimizer == "adagrad":
        eps = ADAGRAD_EPS if eps is None else eps
        return torch.optim.Adagrad(params, lr=lr, eps=eps, weight_decay=weight_decay, fused=True)
    if optimizer == "sgd":
        return torch.optim.SGD(params, lr=lr, weight_decay=weight_decay, fused=True)
    return RowwiseAdagrad(params, lr)
