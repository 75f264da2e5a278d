"""The two stages of a search: shared weights learn, then networks are bred and judged by them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from recsys.nas.evolution import Evolution
from recsys.nas.space import Genome
from recsys.nas.weights import SharedNASRec
from recsys.selection.search import SearchPhase
from recsys.training.metrics import logloss
from recsys.training.phase import Loop
from recsys.training.prediction import Rows, to_device
from recsys.types import Batch, InputError, Metrics, Target


class Supernet(SearchPhase):
    """A random network for every batch; at first mostly the whole of the weights, so that all of
    them learn: with a chance that falls from 1 to 0 over ``warm_up`` of the steps."""

    setting = "--share"

    def __init__(self, shared: SharedNASRec, epochs: int, *, share: float, warm_up: float) -> None:
        super().__init__("supernet", epochs, keep="last", early_stopping=False)
        self.share = share
        self._shared = shared
        self._warm_up = warm_up

    def step(self, loop: Loop, step: int, batch: Batch, target: Target) -> float:
        # the network of a step is the same whether or not the run was stopped before it
        rng = np.random.default_rng([loop.seed, step])
        warm = self._warm_up * self.max_epochs * self.steps(loop)
        whole = rng.random() >= step / max(1.0, warm)
        space = self._shared.space
        self._shared.chosen = space.decode(space.widest(rng) if whole else space.sampled(rng))
        return loop.descend(batch, target)


class Evolve(SearchPhase):
    """One generation an epoch and no gradient step. A network is judged by its logloss on the
    search rows, over the shared weights and with a last Linear of its own, which is fitted to
    ``fit_rows`` of the training rows: the published code takes 500 steps of a gradient for that."""

    setting = "--share"

    def __init__(
        self,
        shared: SharedNASRec,
        evolution: Evolution,
        *,
        share: float,
        fit_rows: int,
        judge_rows: int,
    ) -> None:
        super().__init__("evolution", evolution.generations, keep="last", early_stopping=False)
        self.share = share
        self.evolution = evolution
        self._shared = shared
        self._fit_rows, self._judge_rows = fit_rows, judge_rows

    def batches(self, loop: Loop, epoch: int, start: int) -> Iterator[tuple[Batch, Target]]:
        return iter(())

    def end_epoch(self, loop: Loop, epoch: int) -> Metrics:
        rest, searched = self.parts(loop)
        fit = _first_batches(rest, self._fit_rows, loop, loop.seed)
        judge = _first_batches(searched, self._judge_rows, loop, loop.seed + 1)
        rng = np.random.default_rng([loop.seed, epoch])
        new = self.evolution.generation(lambda genome: self._score(genome, fit, judge), rng, epoch)
        ranked = self.evolution.ranked()
        self._shared.chosen = self._shared.space.decode(self.evolution.genomes[ranked[0]])
        latest = self.evolution.scores[-new:] if new else [float("nan")]
        return {
            "search/logloss": self.evolution.scores[ranked[0]],
            "search/logloss_generation": min(latest),
            "search/networks": float(len(ranked)),
        }

    def state(self) -> dict[str, Tensor]:
        if not self.evolution.genomes:
            return {}
        genomes = torch.from_numpy(np.stack(self.evolution.genomes))
        scores = torch.tensor(self.evolution.scores, dtype=torch.float64)
        return {"genomes": genomes, "scores": scores}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        if tensors:
            self.evolution.genomes[:] = list(tensors["genomes"].cpu().numpy())
            self.evolution.scores[:] = tensors["scores"].tolist()

    def _score(
        self,
        genome: Genome,
        fit: Sequence[tuple[Batch, Target]],
        judge: Sequence[tuple[Batch, Target]],
    ) -> float:
        shared = self._shared
        shared.chosen = shared.space.decode(genome)
        known, labels, counts = _read(shared, fit)
        asked, truth, weights = _read(shared, judge)
        if len(np.unique(labels[counts > 0])) < 2:
            raise InputError(
                f"of {len(labels):,} rows that networks are fitted to, all have one label; give "
                "more rows"
            )
        centre, scale = known.mean(0), known.std(0) + 1e-6
        last = LogisticRegression(max_iter=50)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # as near as 50 rounds come
            last.fit((known - centre) / scale, labels, sample_weight=counts)
        return logloss(truth, last.predict_proba((asked - centre) / scale)[:, 1], weights)


def _first_batches(rows: Rows, count: int, loop: Loop, seed: int) -> list[tuple[Batch, Target]]:
    """Batches of ``count`` random rows, the same in every generation."""
    size = min(loop.config.batch_size, count)
    stream = rows.batches(size, shuffle=True, seed=seed, epoch=0, start=0)
    found, held = [], 0
    for batch, target in stream:
        found.append((batch, target))
        held += len(target.label)
        if held >= count:
            break
    return found


def _read(
    shared: SharedNASRec, batches: Sequence[tuple[Batch, Target]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the last Linear of the chosen network reads, the labels and the weights of the rows."""
    device = shared.output.weight.device
    shared.eval()
    with torch.no_grad():
        parts = [shared.last(to_device(batch, device)).float().cpu() for batch, _ in batches]
    shared.train()
    labels = torch.cat([target.label for _, target in batches]).numpy()
    weights = torch.cat([target.weight for _, target in batches]).numpy()
    return torch.cat(parts).numpy(), labels, weights
