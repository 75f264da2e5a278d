"""Ranking metrics of next-item models: every item of the catalogue against the one that came.

The rank of a target is one plus the number of other items that score at least as high: ties never
help, so that a scorer which gives all items the same score finds nothing. A score that is not a
number counts as higher than the target. With one target a row, Recall@k is the hit rate HR@k, and
NDCG@k is ``1 / log2(1 + rank)`` of a hit.

A target that can never be recommended is a miss: a special id (an item that training never saw),
and, when seen items are filtered, an item of the row's own history.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from recsys.layers.top_k import best_pairs
from recsys.training.negatives import Negatives
from recsys.training.prediction import Rows, to_device
from recsys.types import Batch, Metrics
from serving.errors import InputError

__all__ = ["SAMPLED", "SAMPLED_ITEMS", "RankingModel", "ranking_metrics", "target_ranks"]

SAMPLED_ITEMS = 100
"""Items that a target is ranked among in sampled metrics."""

SAMPLED = ("uniform", "popularity")

CELLS = 2**22
"""Scores (users x items) held at once."""

# Matrix products of any multiples of these give equal vectors equal scores, wherever they lie in
# the matrix; at its edges the kernels add up in another order, and a tie would be broken by that.
_ROWS, _ITEMS = 8, 64


class RankingModel(Protocol):
    """What is ranked: ``model(batch)`` gives queries (B, D); the score of an item is its vector
    times the query plus its bias (see `recsys.models.sequence`)."""

    specials: int

    def __call__(self, batch: Batch) -> Tensor: ...
    def eval(self) -> object: ...
    def item_bias(self) -> Tensor: ...
    def catalogue(self, start: int, count: int) -> Tensor: ...


def ranking_metrics(
    model: RankingModel,
    rows: Rows,
    *,
    batch_size: int,
    device: torch.device,
    cutoffs: Sequence[int],
    filter_seen: bool,
    sampled: Sequence[str] = (),
    popularity: np.ndarray | None = None,
    seed: int = 0,
) -> Metrics:
    """One pass over ``rows``: ``recall@k``, ``ndcg@k``, ``coverage@k`` and ``popularity@k`` of
    every k in ``cutoffs``, ``mrr`` and ``rows``.

    - ``coverage@k``: share of the catalogue (special ids left out) that is in some row's best k.
    - ``popularity@k``: mean popularity percentile of the items in the best k: the share of the
      catalogue that is less popular, plus half of what is as popular, so that recommending at
      random has .5 and always the most popular of many nearly 1. Only with ``popularity``.
    - for each name in ``sampled`` (of `SAMPLED`), ``sampled_<name>/recall@k`` and so on: the
      target among `SAMPLED_ITEMS` items drawn evenly or by ``popularity``, never from the row's
      history. Far higher than the full ranking, and only to be compared with papers that do it
      (Krichene and Rendle 2020, https://doi.org/10.1145/3394486.3403226).

    ``popularity``: (V,) how often training saw each id. ``filter_seen``: items of the row's
    history are never recommended. NaN for zero rows. Errors: `InputError` for an unknown name in
    ``sampled`` or cutoffs below 1.
    """
    _check(cutoffs, sampled, popularity)
    specials, bias = model.specials, model.item_bias()
    size = len(bias)
    samplers = [_sampler(name, popularity, size, specials, seed) for name in sampled]
    found: list[np.ndarray] = []
    lists = [np.zeros((0, max(cutoffs)), np.int64)]
    for judged in _judge(model, rows, batch_size, device, filter_seen, max(cutoffs), samplers):
        found.append(judged.ranks)
        lists.append(judged.top)
    ranks = np.concatenate(found, axis=1) if found else np.zeros((1 + len(sampled), 0))
    metrics = _rank_metrics(ranks[0], cutoffs)
    top = np.concatenate(lists)
    percentile = None if popularity is None else _percentiles(popularity[specials:])
    for k in cutoffs:
        items = top[:, :k]
        items = items[items >= 0] - specials
        metrics[f"coverage@{k}"] = _mean(len(np.unique(items)), size - specials)
        if percentile is not None:
            metrics[f"popularity@{k}"] = _mean(percentile[items].sum(), len(items))
    metrics["rows"] = float(ranks.shape[1])
    for name, row in zip(sampled, ranks[1:], strict=True):
        for key, value in _rank_metrics(row, cutoffs).items():
            metrics[f"sampled_{name}/{key}"] = value
    return metrics


def target_ranks(
    model: RankingModel, rows: Rows, *, batch_size: int, device: torch.device, filter_seen: bool
) -> np.ndarray:
    """Rank (N,) float64 of each row's target in the full ranking, from 1; infinity for a target
    that can never be recommended."""
    judged = _judge(model, rows, batch_size, device, filter_seen, 0, [])
    return np.concatenate([np.zeros(0), *(part.ranks[0] for part in judged)])


@dataclass(frozen=True)
class _Judged:
    """``ranks`` (1 + samplers, B): full, then sampled; ``top`` (B, k) best ids, -1 for none."""

    ranks: np.ndarray
    top: np.ndarray


@torch.inference_mode()
def _judge(
    model: RankingModel,
    rows: Rows,
    batch_size: int,
    device: torch.device,
    filter_seen: bool,
    k: int,
    samplers: Sequence[Negatives],
) -> Iterator[_Judged]:
    model.eval()
    bias = model.item_bias()
    done = 0
    for batch, target in rows.batches(batch_size):
        batch, label = to_device(batch, device), target.label.to(device)
        scorer = _Scorer(model, model(batch), bias)
        history = _valid(batch)  # (B, L), 0 where there is none
        wanted = [label.unsqueeze(1)]  # (B, 1), then (B, 100) for each sampler
        wanted += [_negatives(s, done, history, label) for s in samplers]
        scores = scorer.scores_of(torch.cat(wanted, 1))
        mine = scores[:, :1]  # (B, 1)
        ranks, top = scorer.full_ranks(mine, history if filter_seen else history[:, :0], k)
        missed = label < model.specials
        full_missed = missed
        if filter_seen:
            full_missed = missed | (history == label.unsqueeze(1)).any(1)
        result = [ranks.masked_fill(full_missed, torch.inf)]
        first = 1
        for drawn in wanted[1:]:
            part = slice(first, first + drawn.shape[1])
            worse = (scores[:, part] < mine) | (drawn < 0)
            result.append((1 + (~worse).sum(1)).double().masked_fill(missed, torch.inf))
            first = part.stop
        yield _Judged(torch.stack(result).cpu().numpy(), top.cpu().numpy())
        done += len(label)


class _Scorer:
    """Scores of B queries, one block of items after another."""

    def __init__(self, model: RankingModel, queries: Tensor, bias: Tensor) -> None:
        self._model, self._bias = model, bias
        self._rows = len(queries)
        self._queries = _padded(queries.float(), _ROWS)
        width = max(CELLS // max(len(self._queries), 1) // _ITEMS, 1) * _ITEMS
        self._starts = range(0, len(bias), width)
        self._width = width
        self._only: Tensor | None = None  # the one block of a small catalogue is kept

    def _block(self, start: int) -> Tensor:
        """(B, count) scores of the items from ``start`` on."""
        if self._only is not None:
            return self._only
        count = min(self._width, len(self._bias) - start)
        vectors = _padded(self._model.catalogue(start, count).float(), _ITEMS)  # (count', D)
        scores = torch.mm(self._queries, vectors.t())[: self._rows, :count]
        scores = scores + self._bias[start : start + count]
        if len(self._starts) == 1:
            self._only = scores
        return scores

    def scores_of(self, ids: Tensor) -> Tensor:
        """Scores (B, N) of ``ids`` (B, N); -inf for ids below 0. They are read from the blocks
        that are ranked, since another product may round otherwise."""
        out = torch.full(ids.shape, -torch.inf, device=ids.device)
        for start in self._starts:
            block = self._block(start)
            inside = (ids >= start) & (ids < start + block.shape[1])
            here = (ids - start).clamp(0, block.shape[1] - 1)
            out = torch.where(inside, block.gather(1, here), out)
        return out

    def full_ranks(self, mine: Tensor, seen: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Ranks (B,) of scores ``mine`` (B, 1), themselves in the catalogue, and the best ids
        (B, k); special ids and ``seen`` (B, L) left out."""
        above = torch.zeros(len(mine), dtype=torch.int64, device=mine.device)
        ids = torch.full((len(mine), k), -1, device=mine.device)
        best = torch.full((len(mine), k), -torch.inf, device=mine.device)
        for start in self._starts:
            scores = self._block(start).clone()
            scores[:, : max(self._model.specials - start, 0)] = -torch.inf
            row, column = ((seen >= start) & (seen < start + scores.shape[1])).nonzero().t()
            scores[row, seen[row, column] - start] = -torch.inf
            above += (~(scores < mine)).sum(1)  # the target is among them
            if k:
                new_ids, new_best = _block_best(scores, k)
                new_ids = torch.where(new_ids < 0, new_ids, new_ids + start)
                best, order = torch.sort(
                    torch.cat([best, new_best], 1), dim=1, descending=True, stable=True
                )
                best = best[:, :k]
                ids = torch.cat([ids, new_ids], 1).gather(1, order[:, :k])
        return above.clamp(min=1).double(), ids


def _block_best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The best ``k`` columns of (B, N) scores: ids and scores (B, k), ties by smaller column."""
    least = torch.topk(scores, min(k, scores.shape[1]), dim=1).values[:, -1:]
    row, column = ((scores >= least) & (scores > -torch.inf)).nonzero().t()
    return best_pairs(row, column, scores[row, column], len(scores), k)


def _padded(matrix: Tensor, multiple: int) -> Tensor:
    missing = -len(matrix) % multiple
    return torch.nn.functional.pad(matrix, (0, 0, 0, missing)) if missing else matrix


def _valid(batch: Batch) -> Tensor:
    history = batch.lists[0]
    inside = torch.arange(history.shape[1], device=history.device) < batch.lengths[:, :1]
    return history * inside


def _negatives(sampler: Negatives, first: int, history: Tensor, label: Tensor) -> Tensor:
    known = torch.cat([history, label.unsqueeze(1)], 1).cpu().numpy()
    out = np.full((len(known), SAMPLED_ITEMS), -1, np.int64)
    for number, row in enumerate(known):
        drawn = sampler.draw(first + number, row)
        out[number, : len(drawn)] = drawn
    return torch.from_numpy(out).to(label.device)


def _sampler(
    name: str, popularity: np.ndarray | None, size: int, specials: int, seed: int
) -> Negatives:
    weights = np.ones(size)
    if name == "popularity":
        assert popularity is not None
        weights = popularity.astype(np.float64)
    weights[:specials] = 0
    return Negatives(weights=weights, count=SAMPLED_ITEMS, seed=seed)


def _rank_metrics(ranks: np.ndarray, cutoffs: Sequence[int]) -> Metrics:
    gains = 1 / np.log2(1 + ranks)
    metrics: Metrics = {}
    for k in cutoffs:
        hits = ranks <= k
        metrics[f"recall@{k}"] = _mean(hits.sum(), len(ranks))
        metrics[f"ndcg@{k}"] = _mean(gains[hits].sum(), len(ranks))
    metrics["mrr"] = _mean((1 / ranks).sum(), len(ranks))
    return metrics


def _percentiles(counts: np.ndarray) -> np.ndarray:
    """Share of smaller counts plus half the share of equal ones, itself among them."""
    ordered = np.sort(counts)
    below = np.searchsorted(ordered, counts, side="left")
    up_to = np.searchsorted(ordered, counts, side="right")
    return (below + up_to) / (2 * max(len(counts), 1))


def _mean(total: float, count: int) -> float:
    return float(total) / count if count else float("nan")


def _check(cutoffs: Sequence[int], sampled: Sequence[str], popularity: np.ndarray | None) -> None:
    if not cutoffs or min(cutoffs) < 1:
        raise InputError(f"ranking.cutoffs is {list(cutoffs)}; give numbers of 1 or more")
    for name in sampled:
        if name not in SAMPLED:
            raise InputError(f"ranking.sampled names {name!r}; there are {', '.join(SAMPLED)}")
    assert popularity is not None or "popularity" not in sampled, "popularity has no counts"
