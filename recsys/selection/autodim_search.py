"""The search phase of AutoDim."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recsys.selection.retrain import Snapshot
from recsys.selection.search import SearchPhase
from recsys.training import plots
from recsys.training.optimizers import ParameterGroup
from recsys.training.phase import Loop
from recsys.types import Batch, Metrics, Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recsys.selection.autodim import AutoDim

COLDEST = 0.01
DEFAULT_LOGIT_STEP = 0.5


class Search(SearchPhase):
    """All candidates and their weights learn, in turn."""

    def __init__(self, selection: AutoDim, snapshot: Snapshot) -> None:
        config = selection.config
        super().__init__("search", config.search_epochs, keep="last", early_stopping=False)
        self.share = config.search_share
        self._config = config
        self._selection = selection
        self._snapshot = snapshot
        self._searched: Iterator[tuple[Batch, Target]] = iter(())

    def start(self, loop: Loop) -> None:
        self._snapshot.take(loop.model)

    def enter(self, loop: Loop) -> None:
        for part in self._selection.parts:
            part.enter(searching=True)

    def groups(self, loop: Loop) -> Sequence[ParameterGroup]:
        rate = (self._config.logit_step or DEFAULT_LOGIT_STEP) / self.steps(loop)
        logits = [part.logits for part in self._selection.parts]
        return [ParameterGroup("architecture", logits, 1e-3 if self._config.paper else rate)]

    def batches(self, loop: Loop, epoch: int, start: int) -> Iterator[tuple[Batch, Target]]:
        self._searched = self.search_batches(loop, epoch, start)
        return super().batches(loop, epoch, start)

    def temperature(self, loop: Loop, step: int) -> float:
        """Of the softmax in step number ``step``."""
        if self._config.paper:
            return max(COLDEST, 1 - 5e-5 * step * loop.config.batch_size / 2000)
        last = max(1, self.steps(loop) * self.max_epochs - 1)
        return 1 - (1 - COLDEST) * min(1.0, step / last)

    def step(self, loop: Loop, step: int, batch: Batch, target: Target) -> float:
        for part in self._selection.parts:
            part.temperature.fill_(self.temperature(loop, step))
        loss = loop.descend(batch, target, only=("network", "tables"))
        loop.descend(*next(self._searched), only=("architecture",))
        return loss

    def penalty(self, loop: Loop) -> Tensor | None:
        if not self._config.size_penalty:
            return None
        return self._config.size_penalty * self._selection.expected_share()

    def end_epoch(self, loop: Loop, epoch: int) -> Metrics:
        found = self._selection.widths()[0]
        traces = {f"selection/width/{name}": float(width) for name, width in found.items()}
        temperature = float(self._selection.parts[0].temperature)
        return {"selection/temperature": temperature, **traces}

    def end(self, loop: Loop) -> dict[str, Figure]:
        best = [torch.softmax(p.logits.detach(), 1).amax(1) for p in self._selection.parts]
        title, x = "How sure the search is of its widths", "Largest weight of a candidate"
        return {"widths": plots.histogram(torch.cat(best).cpu().numpy(), title, x)}

    def state(self) -> dict[str, Tensor]:
        return self._snapshot.tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self._snapshot.tensors = tensors
