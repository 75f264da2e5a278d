"""What attention says: how much each field looks at each other field, as numbers and a picture.

Maps are taken in evaluation mode, where the weights of a field sum to 1 (dropout would break
that). Song et al., AutoInt, CIKM 2019, section 5.6, https://arxiv.org/abs/1810.11921: one row is
explained by the mean over heads, data by the mean over rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, List, Protocol, Tuple, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from torch import Tensor, nn

from recsys.training.prediction import Rows
from recsys.training.tracking import Tracker
from recsys.types import Batch

Maps = npt.NDArray[np.float64]

PICTURE = "plots/attention.png"
"""Where a run's picture lies in its artefacts."""

ROWS_OF_A_RUN = 4096
BATCH_ROWS = 512  # (B, H, F, F) of each layer: 100 MB at 39 fields, 4 heads, 8 layers
_VALUES_UP_TO = 12  # fields: more leave no room for a number in a cell
_COLUMNS = 3  # panels side by side
_LEAST_RATIO = 2.0  # the scale reaches at least from half to twice of uniform
_COLORS = LinearSegmentedColormap.from_list(
    "attention", [(0.0, "#b5b0a8"), (0.5, "#ffffff"), (0.8, "#2c7bbf"), (1.0, "#0b2f5c")]
)


@runtime_checkable
class Attentive(Protocol):
    """A model that can show its attention over fields: AutoInt."""

    def forward_with_attention(self, batch: Batch) -> Tuple[Tensor, List[Tensor]]:
        """Logits (B,) and, per layer, attention (B, H, F, F)."""
        ...


@torch.inference_mode()
def attention(model: Attentive, batch: Batch) -> Tensor:
    """Attention of each row, mean over heads: (B, layers, F, F) float32 for a batch at the rows
    stage; ``[b, l, m, k]`` is how much field m attends to field k, and sums to 1 over k."""
    assert not getattr(model, "training", False), "attention is explained in evaluation mode"
    _, maps = model.forward_with_attention(batch)
    return torch.stack([heads.mean(dim=1) for heads in maps], dim=1)  # (B, layers, F, F)


class AttentionMean:
    """The mean of maps over rows, added up in float64."""

    def __init__(self) -> None:
        self._sum: Maps | None = None
        self.rows = 0

    def add(self, maps: Tensor) -> None:
        """Takes the maps (B, layers, F, F) of B rows."""
        total: Maps = maps.to(torch.float64).sum(dim=0).cpu().numpy()
        self._sum = total if self._sum is None else self._sum + total
        self.rows += maps.shape[0]

    def mean(self) -> Maps:
        """(layers, F, F); needs a row."""
        assert self._sum is not None, "the mean over no rows"
        assert self.rows > 0, "the mean over no rows"
        result: Maps = self._sum / self.rows
        return result


def top_pairs(mean: Maps, fields: Sequence[str], count: int | None = None) -> list[dict[str, Any]]:
    """Pairs of different fields, strongest first, of a map (F, F).

    ``weight``: attention in both directions, ``forth`` (of the first to the second) + ``back``;
    ``lift``: that over 2 / F, what attention that knows nothing gives. Ties keep field order.
    """
    size = len(fields)
    assert mean.shape == (size, size), (mean.shape, size)
    first, second = np.triu_indices(size, k=1)
    weight = mean[first, second] + mean[second, first]
    ranked = np.argsort(-weight, kind="stable")[:count]
    return [
        {
            "fields": [fields[first[i]], fields[second[i]]],
            "weight": float(weight[i]),
            "forth": float(mean[first[i], second[i]]),
            "back": float(mean[second[i], first[i]]),
            "lift": float(weight[i] * size / 2),
        }
        for i in ranked
    ]


def attention_figure(maps: Maps, fields: Sequence[str], title: str) -> Figure:
    """Heat maps of (layers, F, F): the mean over layers and, if there are several, each layer.

    A row of a map is a field, its columns the fields it attends to. White is 1 / F, attention that
    knows nothing; blue is more, grey is less, on one scale for all maps.
    """
    assert maps.shape[1:] == (len(fields), len(fields)), (maps.shape, len(fields))
    panels = {"mean over layers": maps.mean(axis=0)} if len(maps) > 1 else {}
    panels |= {f"layer {number}": layer for number, layer in enumerate(maps, start=1)}
    size, across = len(fields), min(_COLUMNS, len(panels))
    down = math.ceil(len(panels) / across)
    side = max(3.4, (0.42 if size <= _VALUES_UP_TO else 0.2) * size)
    names = 0.1 * max(map(len, fields), default=0)  # inches that they take at the edges
    shape = (1.4 + names + (side + 0.3) * across, 0.9 + names + (side + 0.3) * down)
    figure = Figure(figsize=shape, layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    # In ratios, and never a scale so fine that almost equal weights look different.
    most = max(_LEAST_RATIO, float(maps.max(initial=0.0)) * size)
    scale, small = LogNorm(1 / most, most), 8 if size <= 20 else 6
    for place, (name, panel) in enumerate(panels.items()):
        axes = grid.flat[place]
        axes.imshow(np.maximum(panel * size, 1 / most), cmap=_COLORS, norm=scale)
        axes.set_title(name, fontsize=10)
        # Names once per row and column of panels: they are the widest thing in the picture.
        lowest = place + across >= len(panels)
        axes.set_xticks(range(size), fields if lowest else [""] * size, fontsize=small, rotation=90)
        axes.set_yticks(range(size), [""] * size if place % across else fields, fontsize=small)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        if size <= _VALUES_UP_TO:
            _values(axes, panel, scale)
    bar = figure.colorbar(ScalarMappable(scale, _COLORS), ax=grid, shrink=0.7)
    ticks = [1 / most, 1 / math.sqrt(most), 1.0, math.sqrt(most), most]
    bar.set_ticks(ticks, labels=[f"{tick / size:.3f}" for tick in ticks], minor=False)
    bar.ax.minorticks_off()
    bar.set_label(f"attention weight (white: 1 / {size})")
    figure.suptitle(f"{title}\nrow: a field, column: what it attends to", fontsize=11)
    return figure


def log_attention(
    tracker: Tracker, model: nn.Module, rows: Rows, fields: Sequence[str], title: str, seed: int
) -> None:
    """Logs the picture of up to `ROWS_OF_A_RUN` encoded rows, chosen by ``seed``, as `PICTURE`.

    Nothing happens for a model without attention over fields. The model is on the CPU; it is left
    in evaluation mode.
    """
    if not isinstance(model, Attentive):
        return
    model.eval()
    total = AttentionMean()
    for batch, _ in rows.batches(BATCH_ROWS, shuffle=True, seed=seed):
        total.add(attention(model, batch))
        if total.rows >= ROWS_OF_A_RUN:
            break
    if total.rows:
        figure = attention_figure(total.mean(), fields, f"{title}: {total.rows:,} rows")
        tracker.log_figure(figure, PICTURE)


def _values(axes: Axes, panel: Maps, scale: LogNorm) -> None:
    for (row, column), value in np.ndenumerate(panel):
        shade = float(scale(max(value * len(panel), scale.vmin or 0.0)))  # 0 grey, 1 blue
        axes.text(
            column,
            row,
            "1" if value >= 0.995 else f"{value:.2f}".lstrip("0"),
            ha="center",
            va="center",
            fontsize=7,
            color="#333333" if shade < 0.72 else "white",
        )
