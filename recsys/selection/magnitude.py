"""Magnitude pruning: the plain baseline that learned selection has to beat.

Train, keep the rows of largest norm, train what is kept. No gates, no penalty, no search.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from recsys.embeddings import EmbeddingLayer
from recsys.embeddings.frequencies import row_frequencies
from recsys.selection.gates import RowMask
from recsys.selection.retrain import Retrain, Snapshot, snapshot_bytes
from recsys.selection.rows import RowSelection
from recsys.settings import TrainConfig
from recsys.training import plots
from recsys.training.phase import Loop, Phase
from recsys.types import FrozenConfig, InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class MagnitudeConfig(FrozenConfig):
    """``keep``: share of all rows that stays. ``by``: ``norm``, the 2-norm of a row over all layers
    of the model; ``frequency``, how often training looked it up; ``norm_frequency``, the product.
    ``restart``: the second training goes on from the trained weights, or starts over from the
    initial ones.
    """

    method: Literal["magnitude"]
    keep: Annotated[float, Field(gt=0, le=1)]
    by: Literal["norm", "frequency", "norm_frequency"] = "norm"
    restart: Literal["trained", "initial"] = "trained"


class Train(Phase):
    """Ordinary training of all rows."""

    def __init__(self, selection: Magnitude, snapshot: Snapshot, max_epochs: int) -> None:
        super().__init__("train", max_epochs)
        self._selection = selection
        self._snapshot = snapshot

    def start(self, loop: Loop) -> None:
        if self._selection.config.restart == "initial":
            self._snapshot.take(loop.model)

    def end(self, loop: Loop) -> dict[str, Figure]:
        scores = torch.cat([s[s >= 0] for s in self._selection.scores()])
        lowest = torch.cat(
            [s[m] for s, m in zip(self._selection.scores(), self._selection.chosen(), strict=True)]
        ).min()
        title = "Rows by " + self._selection.config.by.replace("_", " x ")
        values = scores.cpu().numpy()
        return {"magnitudes": plots.histogram(values, title, "Score", threshold=float(lowest))}

    def state(self) -> dict[str, Tensor]:
        return self._snapshot.tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self._snapshot.tensors = tensors


class Magnitude(RowSelection):
    """See the module's docstring.

    Errors: `InputError` where ``by`` needs training frequencies and ids are open.
    """

    Config = MagnitudeConfig
    config: MagnitudeConfig

    def __init__(
        self, config: MagnitudeConfig, layers: Sequence[EmbeddingLayer], train: TrainConfig
    ) -> None:
        if config.by != "norm" and layers:
            for field in layers[0].fields:
                if field.kind not in ("numeric", "generated") and field.counts is None:
                    raise InputError(
                        f"features.{field.name}: open ids are not counted, and selection.by "
                        f"{config.by} needs their frequencies; use by norm"
                    )
        super().__init__(config, layers, train)

    def gate(self, rows: int) -> RowMask:
        return RowMask(rows)

    @torch.no_grad()
    def scores(self) -> list[Tensor]:
        """For each table (R,): the score of every row; -1 for zero rows, which do not count."""
        scores = []
        for k, padded in enumerate(self.padded):
            squares = [layer.float_tables[k].weight.square().sum(1) for layer in self.layers]
            score = torch.stack(squares).sum(0).sqrt()
            if self.config.by != "norm":
                counts = row_frequencies(self.layers[0])[k].to(score)
                score = counts if self.config.by == "frequency" else score * counts
            if padded:
                score[-1] = -1.0
            scores.append(score)
        return scores

    def chosen(self) -> list[Tensor]:
        scores = self.scores()
        joint = torch.cat(scores)
        wanted = max(1, round(self.config.keep * self.total))
        # A stable sort: of equal scores the first rows stay, so that the share is met exactly.
        kept = torch.zeros_like(joint, dtype=torch.bool)
        kept[joint.sort(descending=True, stable=True).indices[:wanted]] = True
        return list(kept.split([len(score) for score in scores]))

    def phases(self) -> list[Phase]:
        snapshot = Snapshot(self)
        epochs = self.train.max_epochs
        return [Train(self, snapshot, epochs), Retrain(self, snapshot, "retrain", epochs)]

    def training_bytes(self) -> int:
        """Adds the first weights, where the retrain starts from them."""
        first = snapshot_bytes(self.layers) if self.config.restart == "initial" else 0
        return super().training_bytes() + first
