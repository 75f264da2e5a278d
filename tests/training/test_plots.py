"""Plots: what is drawn, read back from the figure, and that nothing global is touched."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from recsys.training import plots
from recsys.training.curves import Curve, curve
from recsys.training.metrics import auc

LABELS = np.array([0, 0, 1, 0, 1, 1, 0, 1])
SCORES = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])


def many(seed: int, rows: int = 50_000, base: float = -1.0) -> tuple[np.ndarray, np.ndarray]:
    """A calibrated model: labels drawn from the scores."""
    rng = np.random.default_rng(seed)
    scores = 1 / (1 + np.exp(-(base + rng.normal(size=rows))))
    return (rng.random(rows) < scores).astype(np.float64), scores


def png(figure: Figure) -> bytes:
    """The figure rendered, as the tracker does."""
    file = io.BytesIO()
    figure.savefig(file, dpi=50)
    return file.getvalue()


def line(figure: Figure, label: str) -> np.ndarray:
    """Points (N, 2) of the line whose legend entry holds ``label``."""
    found = [line for axes in figure.axes for line in axes.lines if label in str(line.get_label())]
    assert len(found) == 1, [str(one.get_label()) for axes in figure.axes for one in axes.lines]
    return np.column_stack(found[0].get_data())


def test_roc_is_the_curve_of_the_auc() -> None:
    figure = plots.roc({"": curve(LABELS, SCORES)}, "shop, test")
    points = line(figure, "AUC")
    assert points[0].tolist() == [0.0, 0.0]
    assert points[-1].tolist() == [1.0, 1.0]
    assert np.trapezoid(points[:, 1], points[:, 0]) == pytest.approx(auc(LABELS, SCORES))
    assert figure.axes[0].get_title() == "shop, test"
    assert figure.axes[0].get_xlabel() == "False positive rate"


def test_long_curves_are_thinned_and_keep_their_area() -> None:
    labels, scores = many(0)
    points = line(plots.roc({"": curve(labels, scores)}, ""), "AUC")
    assert len(points) <= plots.POINTS + 1
    assert np.trapezoid(points[:, 1], points[:, 0]) == pytest.approx(auc(labels, scores), abs=1e-4)


def test_pr_ends_at_the_base_rate() -> None:
    points = line(plots.pr({"": curve(LABELS, SCORES)}, ""), "AP")
    assert points[0].tolist() == [0.25, 1.0]  # the top row is a click, one of four
    assert points[-1].tolist() == [1.0, 0.5]


def test_reliability_of_a_calibrated_model_is_the_diagonal() -> None:
    labels, scores = many(1)
    figure = plots.reliability({"": curve(labels, scores)}, "")
    points = line(figure, "calibration")
    assert len(points) == plots.RELIABILITY_BINS
    assert np.abs(points[:, 0] - points[:, 1]).max() < 0.04
    assert figure.axes[0].get_xscale() == "linear"


def test_reliability_of_rare_clicks_is_logarithmic() -> None:
    labels, scores = many(2, base=-6.0)
    figure = plots.reliability({"": curve(labels, scores)}, "")
    assert figure.axes[0].get_xscale() == "log"
    assert png(figure)


def test_score_histogram_holds_every_row_once() -> None:
    labels, scores = many(3)
    figure = plots.score_histogram(curve(labels, scores), "")
    for patch in figure.axes[0].patches:
        assert patch.get_data().values.sum() == pytest.approx(1.0)


def test_several_runs_share_the_axes() -> None:
    runs = {name: curve(*many(seed)) for seed, name in enumerate(("autoint", "deepfm"))}
    for draw in (plots.roc, plots.pr, plots.reliability):
        figure = draw(runs, "test split")
        texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        assert sum(text.startswith("autoint: ") for text in texts) == 1
        assert sum(text.startswith("deepfm: ") for text in texts) == 1
        assert png(figure)


def test_history_marks_the_best_epoch() -> None:
    history = [
        {"epoch": float(epoch), "train_loss": 0.5 - 0.1 * epoch, "logloss": loss, "auc": area}
        for epoch, (loss, area) in enumerate([(0.5, 0.7), (0.4, 0.8), (0.45, 0.78)])
    ]
    figure = plots.curves(history, "shop")
    assert line(figure, "valid logloss").tolist() == [[0, 0.5], [1, 0.4], [2, 0.45]]
    assert line(figure, "valid AUC").tolist() == [[0, 0.7], [1, 0.8], [2, 0.78]]
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.40000"]
    assert [text.get_text() for text in figure.axes[1].texts] == ["0.80000"]


@pytest.mark.parametrize(
    ("labels", "scores"),
    [([], []), ([0, 0], [0.2, 0.3]), ([1], [0.5]), ([0, 1], [0.0, 0.0])],
)
def test_degenerate_sets_draw(labels: list[int], scores: list[float]) -> None:
    figures = plots.of_predictions(np.array(labels), np.array(scores), "x")
    assert list(figures) == ["roc", "pr", "reliability", "scores"]
    assert all(png(figure).startswith(b"\x89PNG") for figure in figures.values())


def test_histories_without_validation_draw() -> None:
    assert png(plots.curves([], "x"))
    assert png(plots.curves([{"epoch": 0.0, "train_loss": 0.5}], "x"))
    assert png(plots.curves([{"epoch": 0.0, "train_loss": 0.5, "logloss": float("nan")}], "x"))


def test_no_pyplot() -> None:
    code = "import sys, recsys.training.plots; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_curve_without_weight_draws() -> None:
    empty = Curve(np.array([0.5]), np.zeros(1), np.zeros(1))
    assert png(plots.reliability({"a": empty}, "x"))


def test_histogram_of_nearly_equal_values() -> None:
    values = np.array([0.34, np.nextafter(np.float32(0.34), np.float32(1)), 0.34], np.float32)
    (axes,) = plots.histogram(values, "", "").axes
    assert sum(bar.get_height() for bar in axes.patches) == 3
    (axes,) = plots.histogram(values[:0], "", "", threshold=0.5).axes
    assert sum(bar.get_height() for bar in axes.patches) == 0
