"""PEP: learned thresholds prune single weights, and what stays is trained again from its start.

Liu et al., "Learnable Embedding Sizes for Recommender Systems", ICLR 2021,
https://arxiv.org/abs/2101.07577. In the search a looked-up weight v is seen as

    S(v, s) = sign(v) * relu(|v| - sigmoid(s)),    s = -15 at the start,

with one s per table (``global``), per column (``dimension``), per row (``feature``) or per weight
(``feature_dimension``) of every layer; it learns with the weights. Once so few weights are above
their threshold as ``keep`` asks for, the search ends; the weights go back to the initial ones, bit
for bit, and those that are open are trained alone (the lottery ticket).

**What raises the thresholds.** In the paper only the data do, and the weight decay of the authors'
code, which pulls every s from -15 to 0. Decay is not part of this: thresholds have none. Left to
the data they do not rise where tables have L2, which balances a loss that wants weights larger.
Here ``-strength * mean(s)`` joins the loss (the mean over thresholds of a table, then over tables),
and ``strength`` doubles every epoch, so that any target is reached: a weight stays open as long as
the data pull its threshold down harder than the strength pulls it up. Its slope sigmoid'(s), 3e-7
at the start, makes gradients that Adam's usual epsilon would swallow; thresholds have an Adam with
an epsilon of their own, and ``threshold_step`` is how far s can move in one epoch, for any number
of steps.

**The target.** Open weights are counted 20 times an epoch; at the first count of at most ``keep``
the search stops, and the mask is the ``keep`` largest margins |v| - sigmoid(s), which makes up for
the few weights that fell since the last count. ``reached`` in the report tells whether the search
came so far by ``search_epochs``; if not, the mask is made of the largest margins too.

Each step touches the looked-up rows of the tables and all thresholds, which are dense: the pull
reaches rows that a row-sparse table leaves alone. ``feature`` and ``feature_dimension`` cost four
floats for each threshold while they learn. Numeric vectors and projections are not pruned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from recsys.embeddings.store import FloatStore
from recsys.selection.elements import ElementSelection
from recsys.selection.quota import share_kept
from recsys.selection.retrain import Retrain, Snapshot, snapshot_bytes
from recsys.selection.threshold_store import ThresholdStore
from recsys.training import plots
from recsys.training.optimizers import ParameterGroup
from recsys.training.phase import Loop, Phase
from recsys.types import Batch, FrozenConfig, Metrics, Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Granularity = Literal["global", "dimension", "feature", "feature_dimension"]
COUNTS = 20
"""How often an epoch counts what is open."""
EPS = 1e-20
REACHED = "reached"


class PEPConfig(FrozenConfig):
    """``keep``: share of the tables' parameters that stays. ``granularity``: what has a threshold
    of its own. ``strength``: pull on the thresholds in the first epoch, in nats per unit of s.
    ``threshold_step``: how far a threshold can move in one epoch. ``search_epochs``: at most; the
    search ends at the target. The retrain follows ``train`` (``max_epochs``, ``patience``).
    """

    method: Literal["pep"]
    keep: Annotated[float, Field(gt=0, lt=1)]
    granularity: Granularity = "feature_dimension"
    strength: PositiveFloat = 1e-3
    threshold_step: PositiveFloat = 2.0
    search_epochs: Annotated[int, Field(ge=1)] = 30


class Search(Phase):
    """All weights and all thresholds learn together until few enough weights are open."""

    def __init__(self, selection: PEP, snapshot: Snapshot) -> None:
        config = selection.config
        super().__init__("search", config.search_epochs, keep="last", early_stopping=False)
        self._config = config
        self._selection = selection
        self._snapshot = snapshot
        self._epoch = 0

    def start(self, loop: Loop) -> None:
        self._snapshot.take(loop.model)

    def enter(self, loop: Loop) -> None:
        for store in self._selection.thresholded:
            store.search(True)

    def groups(self, loop: Loop) -> Sequence[ParameterGroup]:
        logits = [store.logits for store in self._selection.thresholded]
        rate = self._config.threshold_step / loop.steps_per_epoch
        return [ParameterGroup("thresholds", logits, rate, eps=EPS)]

    def batches(self, loop: Loop, epoch: int, start: int) -> Iterator[tuple[Batch, Target]]:
        self._epoch = epoch
        for batch in loop.train_batches(epoch, start):
            if self._selection.reached:
                return
            yield batch

    def step(self, loop: Loop, step: int, batch: Batch, target: Target) -> float:
        loss = loop.descend(batch, target)
        if (step + 1) % max(1, loop.steps_per_epoch // COUNTS) == 0:
            self._selection.look()
        return loss

    def penalty(self, loop: Loop) -> Tensor:
        means = [store.logits.mean() for store in self._selection.thresholded]
        return -self._config.strength * 2.0**self._epoch * torch.stack(means).mean()

    def end_epoch(self, loop: Loop, epoch: int) -> Metrics:
        self._selection.look()
        if self._selection.reached:
            self.max_epochs = epoch + 1
        stores = self._selection.thresholded
        logits = torch.cat([store.logits.detach().flatten() for store in stores])
        return {
            "selection/kept_ratio": self._selection.density(),
            "selection/threshold": float(torch.sigmoid(logits).mean()),
        }

    def end(self, loop: Loop) -> dict[str, Figure]:
        stores = self._selection.thresholded
        margins = torch.cat([store.margins().flatten() for store in stores]).cpu().numpy()
        title = "Weights after the search; those above 0 are open"
        return {"margins": plots.histogram(margins, title, "|v| - threshold", threshold=0.0)}

    def state(self) -> dict[str, Tensor]:
        reached = torch.tensor(self._selection.reached)
        return {**self._snapshot.tensors, REACHED: reached}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self._selection.reached = bool(tensors[REACHED])
        self._snapshot.tensors = {k: v for k, v in tensors.items() if k != REACHED}


class PEP(ElementSelection):
    """See the module's docstring. ``reached``: whether the search has come to its target."""

    Config = PEPConfig
    config: PEPConfig
    reached = False

    def wrap(self, store: FloatStore, layer: int, table: int) -> ThresholdStore:
        rows, width = store.weight.shape
        shapes: dict[Granularity, list[int]] = {
            "global": [1, 1],
            "dimension": [1, width],
            "feature": [rows, 1],
            "feature_dimension": [rows, width],
        }
        return ThresholdStore(store=store, shape=shapes[self.config.granularity])

    @property
    def thresholded(self) -> list[ThresholdStore]:
        """All wrapped tables, layer by layer."""
        return [store for store in self.stores if isinstance(store, ThresholdStore)]

    def density(self) -> float:
        """Share of all parameters that are above their threshold."""
        return sum(int((s > 0).sum()) for s in self.margins()) / self.parameters

    def margins(self) -> list[Tensor]:
        """`ThresholdStore.margins` of all tables; minus infinity in zero rows."""
        margins = [store.margins() for store in self.thresholded]
        for margin, store in zip(margins, self.thresholded, strict=True):
            if store.padding >= 0:
                margin[store.padding] = -torch.inf
        return margins

    def look(self) -> None:
        """Counts what is open."""
        self.reached = self.reached or self.density() <= self.config.keep

    def chosen(self) -> list[Tensor]:
        return share_kept(self, self.margins(), self.config.keep)

    def harden(self) -> None:
        for store in self.thresholded:
            store.search(False)

    def phases(self) -> list[Phase]:
        snapshot = Snapshot(self)
        retrain = Retrain(self, snapshot, "retrain", self.train.max_epochs)
        return [Search(self, snapshot), retrain]

    def training_bytes(self) -> int:
        """Masks; thresholds, their gradients and Adam's two moments; the first weights."""
        thresholds = sum(16 * s.logits.numel() for s in self.thresholded)
        return super().training_bytes() + thresholds + snapshot_bytes(self.layers)

    def report(self) -> dict[str, Any]:
        """Adds ``reached``."""
        return super().report() | {"reached": self.reached}
