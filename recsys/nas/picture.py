"""How a search went, as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure


def search_figure(scores: Sequence[float], first: int, title: str) -> Figure:
    """The logloss of every network in the order it was judged, the ``first`` ones drawn at random,
    and the best so far."""
    figure = Figure(figsize=(7.2, 4.5), layout="constrained")
    axes = figure.subplots()
    order = np.arange(1, len(scores) + 1)
    axes.plot(order[:first], scores[:first], ".", color="#8c8c8c", label="drawn at random")
    axes.plot(order[first:], scores[first:], ".", color="#1f6fb4", label="bred")
    axes.plot(order, np.minimum.accumulate(scores), color="#d1603d", label="best so far")
    axes.set(title=title, xlabel="network", ylabel="logloss of search rows, shared weights")
    axes.legend(frameon=False)
    return figure
