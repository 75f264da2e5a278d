"""A search for settings: trials judged on valid, and a config of the best; optuna chooses."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from pipelines.grid import data_digest, guarded
from pipelines.train import open_task, trained
from pipelines.tune_report import figures, markdown, render
from pipelines.tune_space import Space, with_values
from recsys.config import AnyRunConfig, public
from recsys.disk import alone_in
from recsys.training.prediction import open_device
from recsys.training.progress import Reporter, SilentReporter
from recsys.training.schedule import LOWER_IS_BETTER
from recsys.training.tracking import open_tracker
from recsys.training.tracking.finishing import finishing
from recsys.types import InputError

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import TrialState

    from recsys.training.position import History

Result = dict[str, Any]

__all__ = ["render", "run"]

STARTUP = 10
"""Trials drawn at random before the others are drawn where the better ones were."""


def run(
    config: AnyRunConfig,
    space: Path,
    *,
    trials: int = 20,
    prune: bool = True,
    root: str = ".",
    out: Path = Path("runs"),
    cache: Path | None = None,
    reporter: Reporter | None = None,
) -> Result:
    """Tries ``trials`` settings out of ``space`` (see `Space.load`), the first those of ``config``
    if they are in it, and writes a complete config of the best by ``train.monitor`` on valid to
    ``out/NAME-tune-FINGERPRINT/NAME_tuned.yaml``. Nothing looks at test.

    The tree-structured Parzen estimator chooses; with ``prune`` a trial ends once its best epoch is
    behind the median of what the others had by then. Runs of the same config, space and data go on:
    after an interruption inside a trial, or with a larger ``trials``, and come to what one run
    would have. A trial that fails, or whose settings do not go together, costs only itself.

    Returns ``{run_id, folder, monitor, lower, keys, best: {trial, value, values, config}, trials:
    [{trial, state: complete | cut | failed, value, values, by_epoch, ...}], seconds}``. Errors:
    `InputError` for a space that ``config`` does not have, a log without valid rows, without optuna
    and if every trial failed.
    """
    started = time.perf_counter()
    reporter = reporter or SilentReporter()
    _import_optuna()
    chosen = Space.load(space, config)
    open_device(config.train.device)
    cache = cache or out / "cache"
    # what is wrong with the data is said once, before any trial
    if open_task(config, root=root, cache=cache, reporter=reporter).prepared.valid is None:
        raise InputError("recsys tune: trials are judged on valid; set data.valid or data.split")
    said = [config.fingerprint, json.dumps(chosen.plain()), data_digest(config, root), str(prune)]
    digest = hashlib.sha256("\n".join(said).encode()).hexdigest()
    folder = out / f"{config.name}-tune-{digest[:8]}"
    with alone_in(folder):
        tracker = open_tracker(config.tracking)
        known = folder / "run_id.txt"
        run_id = tracker.start(
            f"{config.name}-tune",
            params={**public(config), "space": chosen.plain(), "trials": trials},
            tags={"model": config.model.name, "task": "tune"},
            resume=known.read_text() if known.exists() else None,
        )
        if run_id is not None:
            known.write_text(run_id)
        with finishing(tracker):
            search = _Search(config, chosen, folder, root, cache, run_id, prune, reporter)
            records = [search.trial(number, trials) for number in range(trials)]
            result: Result = {
                "run_id": run_id,
                "folder": str(folder),
                "monitor": config.train.monitor,
                "lower": search.lower,
                "keys": list(chosen.domains),
                "best": search.best(records),
                "trials": records,
                "seconds": time.perf_counter() - started,
            }
            tracker.log_artifact(Path(result["best"]["config"]))
            tracker.log_text(markdown(result), "tune.md")
            for name, figure in figures(result, chosen).items():
                tracker.log_figure(figure, f"plots/{name}.png")
            tracker.log_metrics({f"best/valid/{result['monitor']}": result["best"]["value"]}, 0)
            tracker.log_json(result, "result.json")
    return result


class _Search:
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
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._config, self._space, self._folder = config, space, folder
        self._root, self._cache, self._parent = root, cache, parent
        self._reporter = reporter
        self.lower = config.train.monitor in LOWER_IS_BETTER
        pruner = optuna.pruners.MedianPruner(n_warmup_steps=1) if prune else None
        self._study: Study = optuna.create_study(
            direction="minimize" if self.lower else "maximize",
            pruner=pruner or optuna.pruners.NopPruner(),
        )
        self._records: list[Result] = []

    def trial(self, number: int, trials: int) -> Result:
        """The record of trial ``number``, which is run unless it was."""
        file = self._folder / f"trial-{number:04d}.json"
        if file.exists():
            record: Result = json.loads(file.read_text())
            self._remember(record)
            return record
        record = self._run(number)
        temporary = file.with_suffix(".partial")
        temporary.write_text(json.dumps(record))
        temporary.replace(file)
        shutil.rmtree(self._checkpoints(number), ignore_errors=True)
        self._reporter.say(f"trial {number + 1}/{trials}: {self._said(record)}")
        return record

    def best(self, records: Sequence[Result]) -> Result:
        """Number, value and settings of the best trial, and the config that is written of it."""
        complete = [record for record in records if record["state"] == "complete"]
        if not complete:
            raise InputError(f"recsys tune: every trial failed; the first: {records[0]['reason']}")
        best = self._better(complete)
        name = f"{self._config.name}-tuned"
        tuned = with_values(self._config, best["values"], name=name)
        path = self._folder / f"{name.replace('-', '_')}.yaml"
        tree = tuned.model_dump(mode="json", exclude_unset=True)
        path.write_text(yaml.safe_dump(tree, sort_keys=False))
        shown = {key: best[key] for key in ("trial", "value", "values")}
        return {**shown, "config": str(path)}

    def _better(self, records: Sequence[Result]) -> Result:
        """The first of the best; there must be one."""
        sign = -1 if self.lower else 1
        return max(records, key=lambda record: (sign * record["value"], -record["trial"]))

    def _run(self, number: int) -> Result:
        from optuna.samplers import TPESampler

        # each trial has a seed of its own, so that a search that goes on draws what it would have
        (seed,) = np.random.SeedSequence([self._config.seed, number]).generate_state(1)
        self._study.sampler = TPESampler(seed=int(seed), n_startup_trials=STARTUP)
        own = self._space.params(self._config) if number == 0 else None
        if own is not None:
            self._study.enqueue_trial(own)
        trial = self._study.ask(self._space.distributions())
        record: Result = {"trial": number, "params": trial.params}
        record["values"] = self._space.values(trial.params)
        (same, *_) = [*(r for r in self._records if r["params"] == trial.params), None]
        if same is not None:
            record = {**same, **record, "same_as": same["trial"]}
        else:
            done = guarded(lambda: self._train(number, trial, record["values"]))
            failed = {"state": "failed", "value": None, "by_epoch": [], "reason": done}
            record |= failed if isinstance(done, str) else done
        state, value = _told(record)
        self._study.tell(trial, value, state=state)
        self._records.append(record)
        return record

    def _train(self, number: int, trial: Trial, values: dict[str, Any]) -> Result:
        started = time.perf_counter()
        config = with_values(self._config, values, name=f"{self._config.name}-{number}")
        monitor = config.train.monitor
        cut = False

        def watch(history: History) -> bool:
            nonlocal cut
            for epoch, entry in enumerate(history):  # a trial that goes on has told nothing yet
                if epoch not in told:
                    told.add(epoch)
                    trial.report(entry[monitor], epoch)
            cut = trial.should_prune()
            return cut

        told: set[int] = set()
        say = self._reporter
        task = open_task(config, root=self._root, cache=self._cache, reporter=say)
        run = trained(
            config,
            task,
            self._checkpoints(number),
            parent=self._parent,
            watch=watch,
            reporter=say,
        )
        with run as (fit, tracker):
            *_, history = fit.phases.values()
            by_epoch = [entry[monitor] for entry in history]
            value = float(min(by_epoch) if self.lower else max(by_epoch))
            memory = task.assembly.memory()
            finals = {f"final/valid/{monitor}": value, "memory/stored_bytes": memory.stored_bytes}
            tracker.log_metrics(finals, step=fit.steps)
            return {
                "state": "cut" if cut else "complete",
                "value": value,
                "by_epoch": by_epoch,
                "run_id": tracker.run_id,
                "stored_bytes": memory.stored_bytes,
                "parameters": sum(p.numel() for p in task.assembly.model.parameters()),
                "seconds": time.perf_counter() - started,
            }

    def _checkpoints(self, number: int) -> Path:
        return self._folder / f"trial-{number:04d}"

    def _remember(self, record: Result) -> None:
        """Puts a trial of an earlier run into the study."""
        from optuna.trial import create_trial

        state, value = _told(record)
        self._study.add_trial(
            create_trial(
                state=state,
                value=value,
                params=record["params"],
                distributions=self._space.distributions(),
                intermediate_values=dict(enumerate(record["by_epoch"])),
            )
        )
        self._records.append(record)

    def _said(self, record: Result) -> str:
        if record["state"] == "failed":
            return f"failed: {record['reason']}"
        complete = [r for r in self._records if r["state"] == "complete"]
        again = f", as trial {record['same_as'] + 1}" if "same_as" in record else ""
        ended = f" (cut after epoch {len(record['by_epoch'])})" if record["state"] == "cut" else ""
        line = f"valid {self._config.train.monitor} {record['value']:.5f}{ended}{again}"
        if complete:
            best = self._better(complete)
            line += f"; best {best['value']:.5f} of trial {best['trial'] + 1}"
        return line


def _told(record: Result) -> tuple[TrialState, float | None]:
    """How a trial ended, for optuna; those that failed are as bad as those that were cut first, so
    that settings like theirs are avoided."""
    from optuna.trial import TrialState

    if record["state"] == "complete":
        return TrialState.COMPLETE, record["value"]
    return TrialState.PRUNED, None


def _import_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise InputError(
            "recsys tune takes the library optuna; pip install 'recsys[tune]'"
        ) from None
