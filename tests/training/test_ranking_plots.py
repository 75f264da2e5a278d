"""Plots of ranks: what is drawn, read back from the figure."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.training.ranking_plots import GROUPS, by_cutoff, by_popularity, popularity_groups

RANKS = np.array([1.0, 3.0, 200.0, np.inf])


def test_cutoffs_are_recall_and_ndcg_at_each_k() -> None:
    recall, ndcg = (panel.lines[0].get_ydata() for panel in by_cutoff(RANKS, "four rows").axes)
    assert list(recall[:3]) == [0.25, 0.25, 0.5]
    assert recall[-1] == 0.5
    assert ndcg[1] == pytest.approx(0.25)
    assert ndcg[2] == pytest.approx((1 + 1 / np.log2(4)) / 4)
    assert by_cutoff(np.zeros(0), "no rows").axes[0].lines[0].get_ydata()[-1] == 0


def test_groups_hold_equally_many_items_and_no_special_ids() -> None:
    counts = np.array([0, 0, *range(2 * GROUPS, 0, -1)])
    group = popularity_groups(counts)
    assert list(group[:2]) == [-1, -1]
    assert list(group[2:4]) == [GROUPS - 1, GROUPS - 1]  # the most popular come first
    assert list(np.bincount(group[2:])) == [2] * GROUPS


def test_popularity_is_the_recall_of_each_group_and_its_share_of_rows() -> None:
    counts = np.array([0, 0, *range(GROUPS, 0, -1)])
    targets = np.array([2, 2, 11, 1])  # twice the most popular, the rarest, and an unseen one
    upper, lower = by_popularity(RANKS, targets, counts, "four rows", 10).axes
    recall = [bar.get_height() for bar in upper.patches]
    assert (recall[0], recall[-1]) == (0, 1)
    assert [bar.get_height() for bar in lower.patches] == [0.25, *[0] * (GROUPS - 2), 0.5]
    assert upper.lines[0].get_label() == "all rows: 0.5000"
