"""Tables in torchrec: the optimiser is fused into the backward pass. The only torchrec import.

Used for training on GPUs and many ranks, or to compare; `finalise` copies the weights out, so no
exported graph ever holds a KeyedJaggedTensor or an fbgemm operator.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.embeddings.method import TableSpec
from recsys.embeddings.store import FloatStore, FusedStore, TorchStore
from recsys.settings import TrainConfig
from recsys.types import InputError

EPS = 1e-10  # torch's Adagrad, so that both stores take the same step
_TABLE = "table"


class TorchrecStore(FusedStore, FloatStore):
    """One table as a `FusedEmbeddingBagCollection` of one-row bags.

    Every backward pass through one lookup is one optimiser step on its rows, duplicates summed
    first. A table that is looked up several times in a step (a field and the history that shares
    it) thus takes several smaller steps; for SGD this makes no difference.

    **Shape:** rows (...) -> (..., width). ``weight`` is the live table, under the name that
    `TorchStore` gives it, so checkpoints fit both.
    """

    def __init__(self, *, spec: TableSpec, train: TrainConfig) -> None:
        super().__init__()
        torchrec, kinds = _torchrec()
        config = torchrec.EmbeddingBagConfig(
            name=_TABLE,
            embedding_dim=spec.width,
            num_embeddings=spec.rows,
            feature_names=[_TABLE],
        )
        kind, options = kinds[train.table_optimizer]
        from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection

        with torch.random.fork_rng(devices=[]):  # its own draw of weights must not shift the seed
            bags = FusedEmbeddingBagCollection(
                tables=[config],
                optimizer_type=kind,
                optimizer_kwargs={"lr": train.table_learning_rate, **options},
                device=torch.device(train.device),
            )
        # kept out of the module tree: `weight` below is its only tensor that has a name
        self._bags: tuple[Any, ...] = (bags,)
        self._jagged = torchrec.KeyedJaggedTensor
        weight = bags.embedding_bags[_TABLE].weight.detach()
        filled = torch.empty(spec.rows, spec.width)
        spec.fill(filled)
        if spec.zero_row:
            filled[-1] = 0
        weight.copy_(filled)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.sparse = True
        self.fused = True
        self.padding = spec.rows - 1 if spec.zero_row else -1

    @staticmethod
    def holds(spec: TableSpec, train: TrainConfig) -> bool:
        """Whether torchrec takes this table; one of width 1 (first-order weights) stays in torch.

        Errors: `InputError` for any other width that is no multiple of 4, or for an optimiser that
        fbgemm does not fuse.
        """
        if spec.width == 1:
            return False
        if spec.width % 4:
            raise InputError(
                f"train.store torchrec: table {spec.name} is {spec.width} wide, but fbgemm needs "
                "a multiple of 4; change embedding_dim (or min_dim, lookups) or set store to torch"
            )
        if train.table_optimizer == "adam":
            raise InputError(
                "train.store torchrec fuses sgd, adagrad and rowwise_adagrad; set "
                "train.embedding_optimizer to one of them or store to torch"
            )
        return True

    def forward(self, rows: Tensor) -> Tensor:
        if not torch.is_grad_enabled():  # fbgemm's training operator has no inference mode
            return F.embedding(rows, self.weight)
        flat = rows.reshape(-1).long()
        lengths = torch.ones_like(flat)
        if self.padding >= 0:
            lengths = (flat != self.padding).long()
            flat = flat[lengths.bool()]
        bags = self._jagged(keys=[_TABLE], values=flat, lengths=lengths)
        vectors: Tensor = self._bags[0](bags).values()  # (N, width)
        return vectors.view([*rows.shape, self.weight.size(1)])

    def set_learning_rate(self, value: float) -> None:
        """The rate of the coming backward passes."""
        optimizer = self._bags[0].fused_optimizer()
        for group in optimizer.param_groups:
            group["lr"] = value
        optimizer.step()  # hands the rate to the kernels; the weights are updated in backward

    def optimizer_state(self) -> dict[str, Tensor]:
        """The live accumulators, by name."""
        state = self._bags[0].fused_optimizer().state_dict()["state"]
        return {
            key.removeprefix(f"{_TABLE}.weight."): value
            for tensors in state.values()
            for key, value in tensors.items()
            if isinstance(value, Tensor)
        }

    def finalise(self) -> TorchStore:
        """The serving form: a plain table, weights copied out."""
        return TorchStore(weight=self.weight.clone(), sparse=False, zero_row=self.padding >= 0)


def _is_news(record: logging.LogRecord) -> bool:
    """torchrec calls a function that torch has renamed, and torch says so: no user's concern."""
    return "is_fx_tracing" not in record.getMessage()


def _torchrec() -> tuple[Any, dict[str, tuple[Any, dict[str, float]]]]:
    logging.getLogger("torch.fx._symbolic_trace").addFilter(_is_news)
    try:
        import torchrec
    except ImportError as error:
        raise InputError(
            "train.store torchrec: torchrec is not installed; install it with fbgemm-gpu(-cpu), or "
            "set store to torch"
        ) from error
    return torchrec, {
        "sgd": (torch.optim.SGD, {}),
        "adagrad": (torch.optim.Adagrad, {"eps": EPS}),
        "rowwise_adagrad": (torchrec.optim.RowWiseAdagrad, {"eps": EPS}),
    }
