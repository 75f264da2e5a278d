"""The trials of a search for settings: optuna draws them, each is kept once it has ended."""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from pipelines.grid import failure
from pipelines.train import open_task, trained
from pipelines.tune_space import Space, with_values
from recsys.config import AnyRunConfig
from recsys.disk import write_whole
from recsys.training.progress import Reporter, SilentReporter
from recsys.training.schedule import LOWER_IS_BETTER
from recsys.training.stopping import Interrupted
from recsys.types import InputError

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.trial import FrozenTrial

    from recsys.training.position import History

Result = dict[str, Any]

STARTUP = 10
"""Trials drawn at random before the others are drawn where the better ones were."""


class Search:
    """The trials of one search, each kept in a file of ``folder`` once it has ended."""

    def __init__(
        self,
        config: AnyRunConfig,
        space: Space,
        folder: Path,
        root: str,
        cache: Path,
        parent: str | None,
        prune: bool,
        reporter: Reporter,
    ) -> None:
        self._config, self._space, self._folder = config, space, folder
        self._root, self._cache, self._parent = root, cache, parent
        self._prune, self._reporter = prune, reporter
        self.lower = config.train.monitor in LOWER_IS_BETTER
        self._records: list[Result] = []

    def trial(self, number: int, trials: int) -> Result:
        """The record of trial ``number``, which is run unless it was."""
        file = self._folder / f"trial-{number:04d}.json"
        if file.exists():
            record: Result = json.loads(file.read_text())
            self._records.append(record)
            return record
        record, keep = self._run(number)
        self._records.append(record)
        if keep:
            write_whole(file, json.dumps(record))
        self._reporter.say(f"trial {number}/{trials}: {self._said(record)}")
        return record

    def best(self) -> tuple[Result, AnyRunConfig]:
        """Number, value and settings of the best trial, and the config, which is written."""
        complete = [record for record in self._records if record["state"] == "complete"]
        if not complete:
            reason = self._records[0]["reason"]
            raise InputError(f"recsys tune: every trial failed, the first by this: {reason}")
        best = self._better(complete)
        name = f"{self._config.name}-tuned"
        tuned = with_values(self._config, best["values"], name=name)
        path = self._folder / f"{name.replace('-', '_')}.yaml"
        tree = tuned.model_dump(mode="json", exclude_unset=True)
        path.write_text(yaml.safe_dump(tree, sort_keys=False))
        found = {key: best[key] for key in ("trial", "value", "values")}
        return found | {"config": str(path)}, tuned

    def _better(self, records: Sequence[Result]) -> Result:
        """The first of the best; there must be one."""
        sign = -1 if self.lower else 1
        return max(records, key=lambda record: (sign * record["value"], -record["trial"]))

    def _run(self, number: int) -> tuple[Result, bool]:
        """The record of a new trial, and whether it would come out the same again."""
        trial = self._ask(number)
        values = self._space.values(trial.params)
        record: Result = {"trial": number, "params": trial.params, "values": values}
        same = next((r for r in self._records if r["params"] == trial.params), None)
        if same is not None:
            return {**same, **record, "same_as": same["trial"]}, True
        checkpoints = self._folder / f"trial-{number:04d}"
        keep = True
        try:
            record |= self._train(number, trial, values, checkpoints)
        except Interrupted:
            raise
        except Exception as error:
            record |= {"state": "failed", "value": None, "by_epoch": [], "reason": failure(error)}
            # settings that do not go together never will; memory, disks and stores come back
            keep = isinstance(error, InputError)
        shutil.rmtree(checkpoints, ignore_errors=True)
        gc.collect()  # the trainer and its model know each other
        return record, keep

    def _ask(self, number: int) -> Trial:
        """A trial that is drawn from what the ones before it found, whether they ran now or in an
        earlier search."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # a seed of its own, for the same reason
        (seed,) = np.random.SeedSequence([self._config.seed, number]).generate_state(1)
        study = optuna.create_study(
            direction="minimize" if self.lower else "maximize",
            sampler=optuna.samplers.TPESampler(seed=int(seed), n_startup_trials=STARTUP),
            pruner=optuna.pruners.MedianPruner(n_warmup_steps=1)
            if self._prune
            else optuna.pruners.NopPruner(),
        )
        for record in self._records:
            study.add_trial(self._told(record))
        own = self._space.params(self._config) if number == 1 else None
        if own is not None:
            study.enqueue_trial(own)
        return study.ask(self._space.distributions())

    def _told(self, record: Result) -> FrozenTrial:
        """How a trial ended, for optuna. Those that failed are as bad as those that were cut first,
        so that settings like theirs are avoided; those that came again have no epochs of their own.
        """
        from optuna.trial import TrialState, create_trial

        complete = record["state"] == "complete"
        epochs = () if "same_as" in record else record["by_epoch"]
        return create_trial(
            state=TrialState.COMPLETE if complete else TrialState.PRUNED,
            value=record["value"] if complete else None,
            params=record["params"],
            distributions=self._space.distributions(),
            intermediate_values=dict(enumerate(epochs)),
        )

    def _train(
        self, number: int, trial: Trial, values: dict[str, Any], checkpoints: Path
    ) -> Result:
        started = time.perf_counter()
        config = with_values(self._config, values, name=f"{self._config.name}-{number}")
        monitor = config.train.monitor
        by_epoch: list[float] = []
        cut = False

        def watch(history: History) -> bool:
            nonlocal cut
            for entry in history[len(by_epoch) :]:  # all of a trial that goes on
                trial.report(entry[monitor], len(by_epoch))
                by_epoch.append(entry[monitor])
            cut = trial.should_prune()
            return cut

        # what there is to say of the data was said before
        task = open_task(config, root=self._root, cache=self._cache, reporter=SilentReporter())
        run = trained(
            config,
            task,
            checkpoints / config.fingerprint[:8],
            parent=self._parent,
            watch=watch,
            reporter=self._reporter,
        )
        with run as (fit, tracker):
            task.assembly.model.to("cpu")
            memory = task.assembly.finalise().memory()
            finals = {
                f"final/valid/{monitor}": fit.kept,
                "memory/stored_bytes": memory.stored_bytes,
            }
            tracker.log_metrics(finals, step=fit.steps)
            return {
                "state": "cut" if cut else "complete",
                "value": fit.kept,
                "by_epoch": by_epoch,
                "run_id": tracker.run_id,
                "stored_bytes": memory.stored_bytes,
                "parameters": sum(p.numel() for p in task.assembly.model.parameters()),
                "seconds": time.perf_counter() - started,
            }

    def _said(self, record: Result) -> str:
        if record["state"] == "failed":
            return f"failed: {record['reason']}"
        complete = [r for r in self._records if r["state"] == "complete"]
        again = f", as trial {record['same_as']}" if "same_as" in record else ""
        ended = f" (cut after epoch {len(record['by_epoch'])})" if record["state"] == "cut" else ""
        line = f"valid {self._config.train.monitor} {record['value']:.5f}{ended}{again}"
        if complete:
            best = self._better(complete)
            line += f"; best {best['value']:.5f} of trial {best['trial']}"
        return line
