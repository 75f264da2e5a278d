"""DeepLight: the smallest weights are zeroed again and again while all of them train.

Deng et al., "DeepLight: Deep Lightweight Feature Interactions for Accelerating CTR Predictions in
Ad Serving", WSDM 2021, https://arxiv.org/abs/2002.06987. (Its pruning of embeddings; that of the
network and of pairs of fields is no matter of tables.)

After a dense warm-up, every ``every`` steps the share r_t of the weights of smallest magnitude is
set to zero. Nothing holds them there: gradients and momentum go on, and what is worth it grows back
before the next pruning. The optimiser's state is kept throughout, warm-up included. The published
target for a final share S,

    r_t = S (1 - 0.99^(t / 100)),    t: steps since the warm-up,

is within a thousandth of S after 68.7 thousand steps and misses it silently in a shorter run (4 %
of S after 400). Here that curve is run through in the T steps of ``prune_epochs``:

    r_t = S (1 - 0.001^(t / T)) / 0.999,    exactly S at T.

Then what is zero stays zero, and the rest trains on by the rules of ``train`` (phase ``settle``).

Magnitudes are compared over all tables of one layer. Layers (vectors, first-order weights) enter a
model in different units, so each loses the same share of its own. Pruning looks at whole tables and
needs no gradient: tables may be trained densely or row-sparse. With row-sparse tables only rows of
the batch can grow back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from recsys.selection.elements import ElementSelection
from recsys.selection.pick import live, pick
from recsys.selection.retrain import Retrain, Snapshot
from recsys.training import plots
from recsys.training.phase import Loop, Phase
from recsys.types import Batch, FrozenConfig, Metrics, Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEFT = 0.001
"""Of the published curve: what is missing to its limit where it counts as reached."""


class DeepLightConfig(FrozenConfig):
    """``keep``: share of the weights of each layer that stays, 1 - S. ``every``: steps between
    prunings. ``warm_up_epochs`` without pruning, then ``prune_epochs``; both all run.

    ``paper``: the published target, whatever share it reaches, and no training after it.
    """

    method: Literal["deeplight"]
    keep: Annotated[float, Field(gt=0, le=1)]
    every: PositiveInt = 10
    warm_up_epochs: Annotated[int, Field(ge=0)] = 2
    prune_epochs: PositiveInt = 8
    paper: bool = False


class Prune(Phase):
    """The warm-up and the prunings: one phase, because the optimiser's state goes through."""

    def __init__(self, selection: DeepLight) -> None:
        config = selection.config
        epochs = config.warm_up_epochs + config.prune_epochs
        super().__init__("prune", epochs, keep="last", early_stopping=False)
        self._config = config
        self._selection = selection
        self._zeros = torch.zeros(
            2, dtype=torch.int64
        )  # after the last pruning; lost in this epoch

    def target(self, loop: Loop, done: int) -> float:
        """Share of the weights that should be zero after ``done`` steps of the phase."""
        t = done - self._config.warm_up_epochs * loop.steps_per_epoch
        steps = self._config.prune_epochs * loop.steps_per_epoch
        return pruned_share(1 - self._config.keep, t, None if self._config.paper else steps)

    def step(self, loop: Loop, step: int, batch: Batch, target: Target) -> float:
        loss = loop.descend(batch, target)
        if (step + 1) % self._config.every == 0:
            self._prune(self.target(loop, step + 1))
        return loss

    def _prune(self, share: float) -> None:
        before, after = self._selection.prune(share)
        self._zeros[1] += max(0, int(self._zeros[0]) - before)
        self._zeros[0] = after

    def end_epoch(self, loop: Loop, epoch: int) -> Metrics:
        """Prunes, so that valid measures what would be served; after the last epoch, for good."""
        share = self.target(loop, (epoch + 1) * loop.steps_per_epoch)
        self._prune(share)
        regrown = int(self._zeros[1]) / self._selection.parameters
        self._zeros[1] = 0
        if epoch + 1 == self.max_epochs:
            self._selection.close(self._selection.nonzero())
        return {"selection/pruned_share": share, "selection/regrown_share": regrown}

    def state(self) -> dict[str, Tensor]:
        return {"zeros": self._zeros}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self._zeros.copy_(tensors["zeros"])

    def end(self, loop: Loop) -> dict[str, Figure]:
        sizes = torch.cat([store.served().abs().flatten() for store in self._selection.stores])
        logs = sizes[sizes > 0].log10().cpu().numpy()
        return {"weights": plots.histogram(logs, "Weights that stay", "log10 of the magnitude")}


class DeepLight(ElementSelection):
    """See the module's docstring."""

    Config = DeepLightConfig
    config: DeepLightConfig

    @torch.no_grad()
    def prune(self, share: float) -> tuple[int, int]:
        """Zeroes ``share`` of the weights of each layer; returns how many were zero before and are
        now."""
        before = after = 0
        for layer in self.layers:
            weights = [store.weight for store in layer.float_tables]
            alive = [live(store.weight, store.padding) for store in layer.float_tables]
            joint = torch.cat([weight.abs().flatten() for weight in weights])
            among = torch.cat([mask.flatten() for mask in alive])
            count, zeros = round(share * int(among.sum())), int(((joint == 0) & among).sum())
            small = pick(-joint, count, among).split([weight.numel() for weight in weights])
            for weight, mask in zip(weights, small, strict=True):
                weight[mask.view_as(weight)] = 0
            before, after = before + zeros, after + max(zeros, count)
        return before, after

    def nonzero(self) -> list[Tensor]:
        """For each of `stores` (R, width) bool: weights that are not zero."""
        return [store.weight.detach() != 0 for store in self.stores]

    def chosen(self) -> list[Tensor]:
        return [store.mask.clone() for store in self.stores]

    def phases(self) -> list[Phase]:
        prune = Prune(self)
        if self.config.paper:
            return [prune]
        return [prune, Retrain(self, Snapshot(self), "settle", self.train.max_epochs)]


def pruned_share(final: float, t: int, steps: int | None) -> float:
    """r_t for the final share S, ``t`` steps after the warm-up; ``steps``: T, or ``None`` for the
    published curve."""
    if t <= 0:
        return 0.0
    if steps is None:
        return final * (1 - 0.99 ** (t / 100))
    return float(final * (1 - LEFT ** min(1.0, t / steps)) / (1 - LEFT))
