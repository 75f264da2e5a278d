"""DNIS (its journal version: AutoSrh): learned factors say which weights of a table matter.

Cheng, Shen, Huang, "Differentiable Neural Input Search for Recommender Systems", 2020,
https://arxiv.org/abs/2006.04466. Rows are ranked by training frequency and cut into blocks; block g
has a factor alpha[g, d] in [0, 1], 1 at the start, for each column d of each table:

    e~_n = alpha[g(n)] * e_n

1. **warm-up**: ordinary training.
2. **search**: every step moves the tables (vectors and first-order weights) on a batch of train,
   then alpha on a batch of rows that no step trains on (``search_share`` of train; valid stays for
   early stopping). The network is frozen. Alpha moves by plain SGD; its gradient, L1 term included,
   is divided by its mean absolute value over each block, so that rare blocks learn as fast as
   frequent ones (one that a batch does not meet has the L1 term alone, and moves a whole step
   down), and alpha is cut to [0, 1].
3. **retrain**: alpha and E are redundant in scale, so the product W = alpha x E is what is pruned:
   the smallest of all layers' |W| go, as many as ``keep`` or ``budget`` says. Alpha is folded into
   E, and E is trained under the mask, with new optimisers, on all of train.

The published retrain has no mask, and Adam, which moves every weight of a dense table, fills the
pruned ones again; here they give exact zeros and get no gradient. Each step touches the looked-up
rows only and alpha, which is small and dense: row-sparse tables give the same search. Numeric
vectors and projections are neither scaled nor pruned. Where features share rows, a row counts for
all of them. ``train.clip_norm`` applies to the normalised gradient of alpha.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat, field_validator, model_validator
from torch import Tensor

from recsys.embeddings import EmbeddingLayer
from recsys.embeddings.budget import parse_bytes
from recsys.embeddings.frequencies import row_frequencies
from recsys.embeddings.store import FloatStore
from recsys.selection.elements import ElementSelection
from recsys.selection.quota import budget_kept, share_kept
from recsys.selection.retrain import Retrain, Snapshot
from recsys.selection.scaled_store import ScaledStore
from recsys.selection.search import SearchPhase
from recsys.settings import TrainConfig
from recsys.training import plots
from recsys.training.optimizers import ParameterGroup
from recsys.training.phase import Loop, Phase
from recsys.types import Batch, FrozenConfig, InputError, Metrics, Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALPHA = "alpha"
MOST_BLOCKS = 256
TINY = 1e-20
"""Keeps the gradient of a block without any at zero. Published: 1e-8, which on a small log is no
smaller than the gradients themselves."""


class DNISConfig(FrozenConfig):
    """``keep``: share of the tables' parameters that stays, or ``budget``: bytes of all tables as
    they are served, such as ``100KB``. ``blocks``: shares of all rows, the most frequent first.
    ``alpha_learning_rate``: how far a factor moves in one step, on average over its block.
    ``alpha_l1``: weight of ``sum |alpha|`` in the loss on search rows. The warm-up and the retrain
    follow ``train`` (``max_epochs``, ``patience``); ``search_epochs`` all run.
    """

    method: Literal["dnis"]
    keep: Annotated[float, Field(gt=0, le=1)] | None = None
    budget: str | None = None
    blocks: Annotated[tuple[PositiveFloat, ...], Field(min_length=1, max_length=MOST_BLOCKS)] = (
        *(0.1, 0.2, 0.2, 0.2, 0.3),
    )
    search_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    search_epochs: Annotated[int, Field(ge=1)] = 3
    alpha_learning_rate: PositiveFloat = 0.01
    alpha_l1: Annotated[float, Field(ge=0)] = 1e-5

    @field_validator("budget")
    @classmethod
    def _is_size(cls, value: str | None) -> str | None:
        if value is not None:
            parse_bytes(value)
        return value

    @model_validator(mode="after")
    def _can_work(self) -> DNISConfig:
        if (self.keep is None) == (self.budget is None):
            raise ValueError("give either keep, a share of the parameters, or budget, in bytes")
        if abs(sum(self.blocks) - 1) > 1e-6:
            raise ValueError(f"blocks are shares of all rows, but sum to {sum(self.blocks):g}")
        return self


class WarmUp(SearchPhase):
    """Ordinary training without the rows that the search will be judged by."""

    def __init__(self, selection: DNIS) -> None:
        super().__init__("warm-up", selection.train.max_epochs)
        self.share = selection.config.search_share


class Search(SearchPhase):
    """Tables on rows of train and factors on the other rows, in turns; the network is frozen."""

    def __init__(self, selection: DNIS) -> None:
        epochs = selection.config.search_epochs
        super().__init__("search", epochs, keep="last", early_stopping=False)
        self.share = selection.config.search_share
        self._selection = selection
        self._on_search_rows = False
        self._others: Iterator[tuple[Batch, Target]] = iter(())

    def enter(self, loop: Loop) -> None:
        for store in self._selection.scaled:
            store.search(True)
            # before clipping and the step, and after all lookups of the layer are summed
            store.alpha.register_hook(normalised)

    def groups(self, loop: Loop) -> Sequence[ParameterGroup]:
        alphas = [store.alpha for store in self._selection.scaled]
        rate = self._selection.config.alpha_learning_rate
        return [ParameterGroup(ALPHA, alphas, rate, optimizer="sgd")]

    def batches(self, loop: Loop, epoch: int, start: int) -> Iterator[tuple[Batch, Target]]:
        self._others = self.search_batches(loop, epoch, start)
        return super().batches(loop, epoch, start)

    def step(self, loop: Loop, step: int, batch: Batch, target: Target) -> float:
        loss = loop.descend(batch, target, only={"tables"})
        self._on_search_rows = True
        loop.descend(*next(self._others), only={ALPHA})
        self._on_search_rows = False
        with torch.no_grad():
            for store in self._selection.scaled:
                store.alpha.clamp_(0, 1)
        return loss

    def penalty(self, loop: Loop) -> Tensor | None:
        if not self._on_search_rows:
            return None
        sums = [store.alpha.abs().sum() for store in self._selection.scaled]
        return self._selection.config.alpha_l1 * torch.stack(sums).sum()

    def end_epoch(self, loop: Loop, epoch: int) -> Metrics:
        means = self._selection.block_means()
        return {f"selection/alpha_block_{g}": mean for g, mean in enumerate(means)}

    def end(self, loop: Loop) -> dict[str, Figure]:
        alphas = torch.cat([s.alpha.detach().flatten() for s in self._selection.scaled])
        values = [s.products().abs().flatten() for s in self._selection.scaled]
        masks = zip(values, self._selection.chosen(), strict=True)
        threshold = float(torch.cat([v[mask.flatten()] for v, mask in masks]).min())
        weights = torch.cat(values).cpu().numpy()
        title = "|alpha x E| after the search; weights above the line stay"
        return {
            "alpha": plots.histogram(alphas.cpu().numpy(), "Factors after the search", "Alpha"),
            "weights": plots.histogram(weights, title, "|alpha x E|", threshold=threshold),
        }


class DNIS(ElementSelection):
    """See the module's docstring.

    Errors: `InputError` for a model without tables, or open ids, whose frequency nobody knows.
    """

    Config = DNISConfig
    config: DNISConfig

    def __init__(
        self, config: DNISConfig, layers: Sequence[EmbeddingLayer], train: TrainConfig
    ) -> None:
        for field in layers[0].fields if layers else ():
            if field.kind not in ("numeric", "generated") and field.counts is None:
                raise InputError(
                    f"features.{field.name}: open ids are not counted, and selection.method dnis "
                    "needs their frequencies; use encoding vocabulary or set buckets"
                )
        self._blocks: list[Tensor] = []
        super().__init__(config, layers, train)

    def wrap(self, store: FloatStore, layer: int, table: int) -> ScaledStore:
        if not self._blocks:
            self._blocks = frequency_blocks(row_frequencies(self.layers[0]), self.config.blocks)
        return ScaledStore(store=store, block=self._blocks[table], blocks=len(self.config.blocks))

    @property
    def scaled(self) -> list[ScaledStore]:
        """All wrapped tables, layer by layer."""
        return [store for store in self.stores if isinstance(store, ScaledStore)]

    def block_means(self) -> list[float]:
        """Mean factor of each block over all columns of all tables."""
        means: list[float] = torch.cat([s.alpha.detach() for s in self.scaled], 1).mean(1).tolist()
        return means

    def chosen(self) -> list[Tensor]:
        scores = [store.products().abs() for store in self.scaled]
        for score, store in zip(scores, self.scaled, strict=True):
            if store.padding >= 0:
                score[store.padding] = -torch.inf
        if self.config.budget is not None:
            return budget_kept(self, scores, self.config.budget)
        assert self.config.keep is not None
        return share_kept(self, scores, self.config.keep)

    def harden(self) -> None:
        for store in self.scaled:
            store.search(False)

    def phases(self) -> list[Phase]:
        retrain = Retrain(self, Snapshot(self), "retrain", self.train.max_epochs)
        return [WarmUp(self), Search(self), retrain]

    def training_bytes(self) -> int:
        """Masks, blocks of rows, and factors with their gradients."""
        blocks = sum(store.block.numel() for store in self.scaled)
        return super().training_bytes() + blocks + sum(8 * s.alpha.numel() for s in self.scaled)

    def report(self) -> dict[str, Any]:
        """Adds ``blocks``: for each block of rows the share of its parameters that stays."""
        kept = torch.zeros(len(self.config.blocks))
        total = torch.zeros(len(self.config.blocks))
        for store in self.scaled:
            at = store.block.long().cpu()
            kept.index_add_(0, at, (store.served() != 0).sum(1).float().cpu())
            total.index_add_(0, at, torch.full((len(at),), float(store.weight.size(1))))
        return super().report() | {"kept_by_block": (kept / total.clamp_min(1)).tolist()}


def normalised(gradient: Tensor) -> Tensor:
    """Each row of a gradient (G, width) over its mean absolute value; zeros stay zeros."""
    return gradient / (gradient.abs().mean(1, keepdim=True) + TINY)


def frequency_blocks(counts: Sequence[Tensor], shares: Sequence[float]) -> list[Tensor]:
    """For each table (R,) the block of each row: the most frequent ``shares[0]`` of the rows of all
    tables are block 0, and so on. Of equally frequent rows the first come first."""
    joint = torch.cat(list(counts))
    ends = torch.tensor(shares, dtype=torch.float64).cumsum(0)[:-1] * len(joint)
    rank = torch.empty(len(joint), dtype=torch.int64)
    rank[joint.sort(descending=True, stable=True).indices] = torch.arange(len(joint))
    block = torch.bucketize(rank.double(), ends.round(), right=True)
    return list(block.split([len(count) for count in counts]))
