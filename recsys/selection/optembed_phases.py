"""The two search phases of OptEmbed: supernet and evolution. See `recsys.selection.optembed`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from recsys.selection.optembed_evolution import Evolution, Genome
from recsys.selection.retrain import Snapshot
from recsys.selection.search import SearchPhase
from recsys.training import plots
from recsys.training.metrics import auc
from recsys.training.optimizers import ParameterGroup
from recsys.training.phase import Loop
from recsys.types import Batch, InputError, Metrics, Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recsys.selection.optembed import OptEmbed

THRESHOLD_STEP = 0.1
PAPER_RATE = 1e-4
EPS = 1e-20


class Supernet(SearchPhase):
    """Tables of all widths and thresholds of rows learn together."""

    def __init__(self, selection: OptEmbed, snapshot: Snapshot) -> None:
        paper = selection.config.paper
        keep: Literal["best", "last"] = "best" if paper else "last"
        epochs = selection.config.search_epochs
        super().__init__("supernet", epochs, keep=keep, early_stopping=paper)
        self.share = selection.config.search_share
        self._selection = selection
        self._snapshot = snapshot

    def start(self, loop: Loop) -> None:
        if self._selection.config.restart == "initial":
            self._snapshot.take(loop.model)
        if not self._selection.config.paper:
            for gate in self._selection.gates:
                gate.measure()

    def enter(self, loop: Loop) -> None:
        self._selection.search(True)

    def groups(self, loop: Loop) -> Sequence[ParameterGroup]:
        config = self._selection.config
        params = [gate.thresholds for gate in self._selection.gates]
        if config.paper:
            return [
                ParameterGroup("thresholds", params, config.threshold_step or PAPER_RATE, "sgd")
            ]
        rate = (config.threshold_step or THRESHOLD_STEP) / self.steps(loop)
        return [ParameterGroup("thresholds", params, rate, eps=EPS)]

    def penalty(self, loop: Loop) -> Tensor:
        gates, config = self._selection.gates, self._selection.config
        pull = torch.cat([torch.exp(-gate.thresholds) for gate in gates])
        if config.paper:
            return config.strength * pull.sum()
        share = torch.cat([gate.rows for gate in gates]) / self._selection.rows
        return config.strength * (share * pull).sum()

    def end_epoch(self, loop: Loop, epoch: int) -> Metrics:
        open_rows = sum(int(mask.sum()) for mask in self._selection.open_rows())
        thresholds = torch.cat([gate.thresholds.detach() for gate in self._selection.gates])
        return {
            "selection/kept_ratio": open_rows / self._selection.rows,
            "selection/threshold_mean": float(thresholds.mean()),
            "selection/threshold_max": float(thresholds.max()),
        }

    def end(self, loop: Loop) -> dict[str, Figure]:
        margins = torch.cat([gate.margins() for gate in self._selection.gates])
        values = margins[margins.isfinite()].cpu().numpy()
        title = "Rows after the supernet; those above 0 stay"
        return {
            "margins": plots.histogram(
                values, title, "Norm of the row less threshold", threshold=0.0
            )
        }

    def state(self) -> dict[str, Tensor]:
        return self._snapshot.tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self._snapshot.tensors = tensors


class Evolve(SearchPhase):
    """One generation of widths an epoch, no gradient step; the best so far is in the masks."""

    def __init__(self, selection: OptEmbed) -> None:
        config = selection.config
        super().__init__("evolution", config.generations, keep="last", early_stopping=False)
        self.share = config.search_share
        self._selection = selection
        self._open: list[Tensor] = []
        self._evolution: Evolution | None = None

    def start(self, loop: Loop) -> None:
        self._open = self._selection.affordable()

    def enter(self, loop: Loop) -> None:
        self._selection.search(False)

    def batches(self, loop: Loop, epoch: int, start: int) -> Iterator[tuple[Batch, Target]]:
        return iter(())

    @property
    def evolution(self) -> Evolution:
        """The genomes so far."""
        if self._evolution is None:
            space = self._selection.space(self._open)
            self._evolution = Evolution(space, paper=self._selection.config.paper)
        return self._evolution

    def score(self, loop: Loop, widths: Genome) -> float:
        """AUC on the search rows with these widths, which stay in the masks."""
        self._selection.mask(self._open, widths)
        found = loop.predict(self.search_rows(loop))
        value = auc(found.labels, found.scores, found.weights)
        if np.isnan(value):
            raise InputError(
                f"selection.search_share {self.share}: its {len(found.labels)} rows have one label "
                "only, so that no AUC can judge; raise it"
            )
        return value

    def end_epoch(self, loop: Loop, epoch: int) -> Metrics:
        evolution = self.evolution
        rng = np.random.default_rng([loop.seed, epoch])
        new = evolution.generation(lambda widths: self.score(loop, widths), rng, epoch)
        best = evolution.best
        self._selection.mask(self._open, evolution.genomes[best])
        kept = evolution.space.cost(evolution.genomes[best])
        latest = evolution.scores[-new:] if new else [evolution.scores[best]]
        return {
            "selection/search_auc": evolution.scores[best],
            "selection/search_auc_generation": max(latest),
            "selection/kept_ratio": kept / self._selection.parameters,
            "selection/evaluations": float(len(evolution.scores)),
        }

    def end(self, loop: Loop) -> dict[str, Figure]:
        evolution = self.evolution
        widths = evolution.genomes[evolution.best]
        return {"widths": plots.histogram(widths, "Widths of the best candidate", "Columns")}

    def state(self) -> dict[str, Tensor]:
        found = {f"open.{k}": mask for k, mask in enumerate(self._open)}
        if self._evolution is not None and self._evolution.genomes:
            found["genomes"] = torch.from_numpy(np.stack(self._evolution.genomes))
            found["scores"] = torch.tensor(self._evolution.scores, dtype=torch.float64)
        return found

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        gates = self._selection.gates
        self._open = [tensors[f"open.{k}"].to(gate.owner.device) for k, gate in enumerate(gates)]
        self._evolution = None
        if "genomes" in tensors:
            self.evolution.genomes = list(tensors["genomes"].numpy())
            self.evolution.scores = tensors["scores"].tolist()
