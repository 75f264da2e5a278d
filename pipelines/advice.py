"""Which table method to take under a byte budget, from what `recsys compress` measured."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.embeddings import kind_of, spec_settings, start_of
from pipelines.embeddings import run as solve_budgets
from recsys.config import AnyRunConfig
from recsys.embeddings import EMBEDDINGS
from recsys.training.progress import Reporter
from serving.errors import InputError

Result = dict[str, Any]

SHIPPED = Path(__file__).with_name("evidence")
NOISE = 0.001
"""Methods whose metric is this close count as equally good."""

CLOSE = 1.25
"""What was measured at up to this many times the bytes still speaks for a budget."""


def run(
    config: AnyRunConfig,
    *,
    budgets: Sequence[str | float],
    evidence: Sequence[Path] = (),
    root: str = ".",
    cache: Path = Path("runs/cache"),
    reporter: Reporter | None = None,
) -> Result:
    """Recommends a table method for each budget, without training.

    ``evidence``: files that ``recsys compress --json`` printed; default: those that come with the
    package. Of them the log counts whose number of ids is nearest to the run's. A method is judged
    by the best run there that stored no larger share of the full table than the budget is (or
    hardly larger). Among the methods that can meet the budget on the run's own features, those
    within `NOISE` of the best count as equal, and the plain table wins, then fewer lookups a row,
    then fewer training bytes.

    Returns ``{ids, log, log_ids, advice: [{budget, method, share, measured_share, metric, value,
    plain, stored_bytes, training_bytes, lookups_per_row, embedding, reason}]}``; ``embedding`` goes
    into the config.

    Errors: `InputError` for evidence that cannot be read or has no run of this kind, for open ids,
    or a budget that no measured method can meet.
    """
    logs = [_read(path) for path in evidence or sorted(SHIPPED.glob("*.json"))]
    logs = [log for log in logs if log["kind"] == kind_of(config)]
    if not logs:
        raise InputError(
            f"--auto: nothing was measured on {kind_of(config)}; run `recsys compress` on a part "
            "of your log with --json and name what it printed with --evidence"
        )
    methods = list(dict.fromkeys(row["method"] for log in logs for row in log["rows"]))
    solved = solve_budgets(
        config, budgets=budgets, methods=methods, root=root, cache=cache, reporter=reporter
    )
    if solved["full_bytes"] is None:
        name = next(name for name, size in solved["fields"].items() if size is None)
        raise InputError(
            f"--auto: features.{name} has open ids, so that there is no full table to compare "
            "with; give it a vocabulary, or look at all methods without --auto"
        )
    ids = sum(solved["fields"].values())
    log = min(logs, key=lambda log: abs(math.log(max(ids, 1) / log["ids"])))
    # what the solved sizes hold for
    shared = config.embedding.model_dump(include={"embedding_dim", "init_std"}, exclude_unset=True)
    advice = [_advice(log, solved, budget, shared) for budget in budgets]
    return {"ids": ids, "log": log["name"], "log_ids": log["ids"], "advice": advice}


def _advice(log: Result, solved: Result, budget: str | float, shared: Mapping[str, Any]) -> Result:
    own = {row["method"]: row for row in solved["rows"] if row["budget"] == budget}
    share = next(iter(own.values()))["budget_bytes"] / solved["full_bytes"]
    metric = log["metrics"]["first"]
    measured: dict[str, Result] = {}  # by method, the best run in so many bytes
    for row in sorted(log["rows"], key=lambda row: float(row[metric])):
        if row["stored_bytes"] <= CLOSE * share * log["full_bytes"]:
            measured[row["method"]] = row
    able = [row for row in measured.values() if own[row["method"]]["feasible"]]
    if not able:
        reasons = "; ".join(f"{row['method']}: {row['reason']}" for row in own.values())
        raise InputError(f"--budget {budget}: nothing measured can meet it: {reasons}")
    best = max(able, key=lambda row: row[metric])
    equal = [row for row in able if row[metric] >= best[metric] - NOISE]
    pick = min(
        equal,
        key=lambda row: (
            row["method"] != "full",
            own[row["method"]]["lookups_per_row"],
            own[row["method"]]["training_bytes"],
        ),
    )
    plain = measured.get("full", {}).get(metric)
    stored = pick["stored_bytes"] / log["full_bytes"]
    name, settings = spec_settings(pick["method"])
    sizes = ("stored_bytes", "training_bytes", "lookups_per_row")
    return {
        "budget": budget,
        "method": name,
        "share": share,
        "measured_share": stored,
        "metric": log["metrics"]["titles"][0],
        "value": pick[metric],
        "plain": plain,
        **{key: own[pick["method"]][key] for key in sizes},
        "embedding": {"method": name, "budget": budget, **start_of(name), **shared, **settings},
        "reason": _reason(log, pick, best, equal, plain, stored),
    }


def _reason(
    log: Result,
    pick: Result,
    best: Result,
    equal: Sequence[Result],
    plain: float | None,
    share: float,
) -> str:
    metric, title = log["metrics"]["first"], log["metrics"]["titles"][0]
    seeds = f"{len(pick['seeds'])} seed" + ("s" if len(pick["seeds"]) > 1 else "")
    text = f"on {log['name']} ({log['ids']:,} ids, {seeds}) at {share:.2g} of the bytes it had "
    text += f"{title} {pick[metric]:.4f}"
    if pick["method"] != "full" and plain is not None:
        text += f", a plain narrower table {plain:.4f}"
    wholes = [row[metric] for row in log["rows"] if row["method"] == "full" and row["budget"] == 1]
    if wholes and pick["budget"] != 1:
        text += f", the full table {wholes[0]:.4f}"
    if best is not pick:
        text += f"; {best['method']} had {best[metric]:.4f}, which is no clear difference"
    elif len(equal) > 1:
        others = ", ".join(row["method"] for row in equal if row is not pick)
        text += f"; no clear difference to {others}"
    return text


def _read(path: Path) -> Result:
    try:
        log: Result = json.loads(path.read_text(encoding="utf-8"))
        rows, metric = log["rows"], log["metrics"]["first"]
        log["rows"] = [row for row in rows if row["method"].split(":")[0] in EMBEDDINGS]
        sound = (
            log["ids"] > 0
            and log["full_bytes"] > 0
            and bool(log["rows"] and log["name"] and log["kind"])
        )
        sound = sound and all(row[metric] >= 0 < row["stored_bytes"] for row in log["rows"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--evidence {path}: not printed by `recsys compress --json`") from error
    if not sound:
        raise InputError(f"--evidence {path}: holds no measured rows")
    return log


def render(result: Result) -> str:
    """A few lines per budget."""
    lines = [f"{result['ids']:,} ids; measured on {result['log']} ({result['log_ids']:,} ids)"]
    for row in result["advice"]:
        settings = ", ".join(f"{key}: {value}" for key, value in row["embedding"].items())
        lines += [
            "",
            f"{row['budget']}: {row['method']}",
            f"  embedding: {{{settings}}}",
            f"  stored {row['stored_bytes']:,} bytes, training {row['training_bytes']:,}, "
            f"{row['lookups_per_row']} lookups a row",
            f"  why: {row['reason']}",
        ]
    return "\n".join(lines)
