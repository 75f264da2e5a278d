"""A run with a selection, stopped anywhere and resumed, equals one that never stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import planted
import pytest
import torch

from recsys.testing.rows import MemoryRows
from recsys.training.trainer import Interrupted
from recsys.types import Batch, Target

RUNS: dict[str, dict[str, Any]] = {
    "optfs": {"method": "optfs", "strength": 0.2, "search_epochs": 3, "rewind_epoch": 1},
    "magnitude": {"method": "magnitude", "keep": 0.5, "restart": "initial"},
    "optembed": {"method": "optembed", "keep": 0.4, "search_epochs": 3, "generations": 2},
    "deeplight": {"method": "deeplight", "keep": 0.4, "every": 3, "prune_epochs": 2},
    "dsl": {"method": "dsl", "keep": 0.4, "every": 3, "grow_epochs": 2},
}
# batch norm and dropout: buffers and the generator must survive, too
MODEL = {"hidden_units": (8,), "batch_norm": True, "dropout": 0.3}
TRAIN = planted.TRAIN.model_copy(update={"batch_size": 250, "max_epochs": 3, "patience": 3})
STEPS = 4  # of an epoch
# inside the search before and after the rewind point, at its end, inside the retrain
STOPS = [2, 4, 7, 3 * STEPS, 3 * STEPS + 1, 4 * STEPS, 5 * STEPS + 2]
ENDS = {"dsl": 3 * STEPS}  # one phase


@dataclass(kw_only=True)
class Stopping(MemoryRows):
    """Asks for a stop while the batch number ``stop_at`` of the whole run is trained on."""

    stop_at: int = 0
    served: list[int] = field(default_factory=lambda: [0])

    def parted(self, share: float, *, seed: int) -> tuple[MemoryRows, MemoryRows]:
        first, second = super().parted(share, seed=seed)
        second = MemoryRows(ids=second.ids, label=second.label)  # its batches are not counted
        return first, second

    def batches(self, *args: Any, **options: Any) -> Iterator[tuple[Batch, Target]]:
        for batch in super().batches(*args, **options):
            self.served[0] += 1
            if self.served[0] == self.stop_at:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch


@pytest.mark.parametrize(
    ("name", "stop_at"), [(n, at) for n in RUNS for at in STOPS if at <= ENDS.get(n, at)]
)
def test_resume_is_exact(name: str, stop_at: int, tmp_path: Path) -> None:
    rows = planted.log(1000, 1)
    whole = planted.run(RUNS[name], train=TRAIN, model=MODEL).fit(rows)

    stopped = planted.run(RUNS[name], train=TRAIN, model=MODEL, out=tmp_path)
    with pytest.raises(Interrupted, match=f"step {stop_at}"):
        stopped.fit(Stopping(ids=rows.ids, label=rows.label, stop_at=stop_at))
    resumed = planted.run(RUNS[name], train=TRAIN, model=MODEL, out=tmp_path)
    with torch.no_grad():
        for parameter in resumed.model.parameters():
            parameter.add_(1.0)  # a resume must not depend on what the model held before
    torch.manual_seed(99)
    resumed.fit(rows)

    assert resumed.result is not None
    assert whole.result is not None
    assert resumed.result.phases == whole.result.phases
    assert resumed.result.steps == whole.result.steps
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
    kept = zip(whole.selection.kept(), resumed.selection.kept(), strict=True)
    assert all(torch.equal(a, b) for a, b in kept)


def test_resume_of_a_run_that_died_between_phases(tmp_path: Path) -> None:
    """The retrain's first checkpoint holds what its start has done: a resume does not repeat it."""
    rows = planted.log(1000, 1)
    whole = planted.run(RUNS["optfs"], train=TRAIN, model=MODEL).fit(rows)
    died = planted.run(RUNS["optfs"], train=TRAIN, model=MODEL, out=tmp_path)
    phases = died.selection.phases()

    class Killed(RuntimeError):
        pass

    def die(*_: Any) -> None:
        raise Killed

    phases[1].start_epoch = die  # type: ignore[method-assign]
    with pytest.raises(Killed):
        died.trainer.fit(rows, planted.log(4000, 2), phases)
    resumed = planted.run(RUNS["optfs"], train=TRAIN, model=MODEL, out=tmp_path)
    for phase in (planned := resumed.selection.phases()):
        phase.start = die  # type: ignore[method-assign]
    resumed.trainer.fit(rows, planted.log(4000, 2), planned)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
