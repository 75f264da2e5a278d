"""A search for settings: trials judged on valid, and a config of the best; optuna chooses."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import yaml

from pipelines.grid import data_digest
from pipelines.train import open_task
from pipelines.tune_report import figures, markdown, render
from pipelines.tune_search import Search
from pipelines.tune_space import Space
from recsys.config import AnyRunConfig, public
from recsys.disk import alone_in
from recsys.training.prediction import open_device
from recsys.training.progress import Reporter, SilentReporter
from recsys.training.tracking import open_tracker
from recsys.training.tracking.finishing import finishing
from recsys.types import InputError

Result = dict[str, Any]

__all__ = ["render", "run"]


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
    behind the median of what the others had in that epoch. Runs of the same config, space and data
    go on: after an interruption inside a trial, or with a larger ``trials``, and come to what one
    run would have. A trial that fails costs only itself; one whose settings do not go together is
    not tried again, one that fails by the machine is when the search goes on.

    Returns ``{run_id, folder, monitor, lower, keys, best: {trial, value, values, config}, trials:
    [{trial, state: complete | cut | failed, value, values, by_epoch, ...}], seconds}``, trials
    counted from 1. Errors: `InputError` for a space that ``config`` does not have, a log without
    valid rows, without optuna and if every trial failed.
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
            search = Search(config, chosen, folder, root, cache, run_id, prune, reporter)
            records = [search.trial(number, trials) for number in range(1, trials + 1)]
            best, tuned = search.best()
            result: Result = {
                "run_id": run_id,
                "folder": str(folder),
                "monitor": config.train.monitor,
                "lower": search.lower,
                "keys": list(chosen.domains),
                "best": best,
                "trials": records,
                "seconds": time.perf_counter() - started,
            }
            tracker.log_text(yaml.safe_dump(public(tuned), sort_keys=False), "tuned.yaml")
            tracker.log_text(markdown(result), "tune.md")
            for name, figure in figures(result, chosen).items():
                tracker.log_figure(figure, f"plots/{name}.png")
            tracker.log_metrics({f"best/valid/{result['monitor']}": best["value"]}, 0)
            tracker.log_json(result, "result.json")
    return result


def _import_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise InputError(
            "recsys tune takes the library optuna; pip install 'recsys[tune]'"
        ) from None
