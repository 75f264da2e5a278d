"""What next-item models learn from: every item of a window, or one of it, drawn anew."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from recsys.data.sequence_data import Windows
from recsys.layers.catalogue_loss import (
    catalogue_cross_entropy,
    gbce_beta,
    generalised_bce,
    sampled_softmax,
)
from recsys.models.sequence.items import ItemModel
from recsys.types import Batch, FrozenConfig

NextItemLoss = Literal["cross_entropy", "sampled_softmax", "bce", "gbce"]


class NextItemConfig(FrozenConfig):
    """``loss``: over the whole catalogue (``cross_entropy``), or over the next item and uniform
    negatives: ``sampled_softmax``, ``bce`` (original SASRec) or ``gbce`` (gSASRec). ``negatives``:
    how many; ``negatives_per``: drawn for each position, or once for all positions of a row, which
    turns their scores into one matrix product. ``calibration``: gBCE's t, 0 (BCE) to 1.
    """

    loss: NextItemLoss = "cross_entropy"
    negatives: PositiveInt | None = None
    negatives_per: Literal["position", "row"] = "row"
    calibration: float = Field(default=0.75, ge=0, le=1)

    @model_validator(mode="after")
    def _no_dead_settings(self) -> "NextItemConfig":
        if (self.loss == "cross_entropy") != (self.negatives is None):
            raise ValueError(
                f"loss {self.loss} "
                + (
                    "has no negatives; remove them"
                    if self.negatives
                    else "needs negatives, for example negatives: 256"
                )
            )
        fields = NextItemConfig.model_fields
        if self.negatives is None and self.negatives_per != fields["negatives_per"].default:
            raise ValueError(f"loss {self.loss} has no negatives; remove negatives_per")
        if self.loss != "gbce" and self.calibration != fields["calibration"].default:
            raise ValueError(
                f"calibration {self.calibration} is gBCE's; remove it or set loss: gbce, not "
                f"{self.loss}"
            )
        return self


def window(max_length: int) -> Windows:
    """Every item but a sequence's first is predicted, from up to ``max_length`` before it: once,
    but for those in which the oldest two windows of a long sequence overlap."""
    return Windows(length=max_length + 1, stride=max_length, least=2)


def pairs(batch: Batch, specials: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which of the first L - 1 items of each row (B, L) to predict the next from, (B, L - 1) bool;
    and of these N pairs the row (N,) and the next item (N,). Ids that are no items (unseen in
    training) are read but not predicted."""
    following = batch.lists[0][:, 1:]  # (B, L - 1)
    rows, length = following.shape
    places = torch.arange(1, length + 1, device=following.device)
    learned = (places < batch.lengths[:, :1]) & (following >= specials)
    row = torch.arange(rows, device=following.device).unsqueeze(1).expand(rows, length)
    return learned, row[learned], following[learned]


def draw_place(batch: Batch, specials: int, *, late: bool) -> Tensor:
    """(B,): the place of one item of each row, evenly among those that are items and have one
    before them, ``late`` in the second half; 0 for a row without."""
    ids, lengths = batch.lists[0], batch.lengths  # (B, L), (B, 1)
    at = torch.arange(ids.size(1), device=ids.device)
    known = (ids >= specials) & (at < lengths)
    fits = known & (known.cumsum(1) > 1)
    if late:
        fits = fits & (at >= lengths // 2)
    drawn = torch.where(fits, torch.rand(ids.shape, device=ids.device), -1.0)
    best = F.pad(drawn, [0, 1], value=-1.0).max(1)
    return torch.where(best.values >= 0, best.indices, 0)


def next_item_loss(
    config: NextItemConfig, model: ItemModel, states: Tensor, row: Tensor, target: Tensor
) -> Tensor:
    """``states`` (N, D) of positions whose next items are ``target`` (N,), ids; ``row`` (N,): the
    row of each, rising. Mean over positions, 0 if there are none."""
    first = model.specials
    if config.loss == "cross_entropy":
        items = model.item_vectors()[first:]
        return catalogue_cross_entropy(states, items, None, target - first)
    positive, negative = scores(config, model, states, row, target)
    if config.loss == "sampled_softmax":
        return sampled_softmax(positive, negative)
    beta = 1.0
    if config.loss == "gbce":
        beta = gbce_beta(negative.size(1), model.num_ids - first, config.calibration)
    # At equal scores the loss is least here. Without this start all items first move the same way
    # to make every score low, and a shared table loses what tells them apart.
    prior = math.log(beta / negative.size(1))
    return generalised_bce(positive + prior, negative + prior, beta)


def scores(
    config: NextItemConfig, model: ItemModel, states: Tensor, row: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Of the next item (N,) and of uniform negatives (N, K), -inf where they are the next item."""
    assert config.negatives is not None
    positive = (states * model.embedding.vectors(target, 0)).sum(1)  # (N,)
    rows = target.size(0)
    if config.negatives_per == "position":
        drawn = torch.randint(
            model.specials, model.num_ids, (rows, config.negatives), device=target.device
        )
        vectors = model.embedding.vectors(drawn, 0)  # (N, K, D)
        negative = torch.matmul(vectors, states.unsqueeze(2)).squeeze(2)  # (N, K)
    else:
        counts = torch.bincount(row, minlength=1)  # one part at least, of no rows if there are none
        own = torch.randint(
            model.specials, model.num_ids, (counts.size(0), config.negatives), device=target.device
        )
        vectors = model.embedding.vectors(own, 0)  # (B, K, D)
        parts = states.split(counts.tolist())
        negative = torch.cat([p @ v.t() for p, v in zip(parts, vectors.unbind(0), strict=True)])
        drawn = own[row]  # (N, K)
    return positive, negative.masked_fill(drawn == target.unsqueeze(1), -torch.inf)
