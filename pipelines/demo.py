"""The demo: a synthetic log, two table methods, tracked, exported, verified and scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from rich.console import Group
from rich.table import Table

from pipelines import train, ui
from recsys.config import parse_config
from recsys.data.synthetic import PlantedLog, write_log
from recsys.training.metrics import auc
from recsys.training.progress import Reporter, SilentReporter
from serving.batch import score

TABLES: dict[str, dict[str, Any]] = {
    "unified": {"method": "unified", "embedding_dim": 16, "lookups": 2, "budget": "800KB"},
    "mixed-dim": {"method": "mixed_dim", "embedding_dim": 16, "budget": "400KB"},
}


def run(folder: Path, *, rows: int = 240_000, reporter: Reporter | None = None) -> dict[str, Any]:
    """Writes everything under ``folder``; ``rows`` is the length of the training split.

    Returns ``{bayes_auc, runs: {table: result of pipelines.train}, scored, tracking_uri, ui}``.
    """
    reporter = reporter or SilentReporter()
    data = folder / "data"
    reporter.say(f"writing a synthetic click log of {rows:,} training rows to {data}")
    log = write_log(data, rows=rows, seed=0)
    uri = f"sqlite:///{(folder / 'mlflow.db').resolve()}"
    runs: dict[str, Any] = {}
    for name, table in TABLES.items():
        tree = config_tree(log, table, name=f"demo-autoint-{name}", uri=uri)
        file = folder / f"autoint_{table['method']}.yaml"
        file.write_text(yaml.safe_dump(tree, sort_keys=False))
        reporter.say(f"\n{tree['name']}  ({file})")
        runs[name] = train.run(parse_config(tree), out=folder / "runs", reporter=reporter)
        scored = folder / f"scored_{table['method']}.parquet"
        report = score(runs[name]["bundle"], str(log.test), scored, keep=["user", "label"])
        columns = pq.read_table(scored, columns=["label", "score"])
        runs[name]["scored"] = {
            "out": str(scored),
            "rows": report.rows,
            "rows_per_second": report.rows / max(report.seconds, 1e-9),
            "auc": auc(columns["label"].to_numpy(), columns["score"].to_numpy()),
        }
    return {
        "bayes_auc": log.bayes_auc,
        "runs": runs,
        "tracking_uri": uri,
        "ui": ui.command(uri),
    }


def config_tree(log: PlantedLog, table: dict[str, Any], *, name: str, uri: str) -> dict[str, Any]:
    """A complete run on the synthetic log, as a reader would write it in YAML."""
    texts = ("site", "device", "city", "campaign", "ad", "page", "item")
    numerics = ("price", "age", "dwell", "noise")
    return {
        "name": name,
        "seed": 2021,
        "data": {
            **{split: str(getattr(log, split)) for split in ("train", "valid", "test")},
            "label": "label",
            "group": "user",
        },
        "features": {
            **{column: {"type": "numeric", "normalise": "standard"} for column in numerics},
            **{column: {"type": "categorical", "min_count": 2} for column in texts},
            "tags": {"type": "bag", "pooling": "mean"},
            "history": {"type": "sequence", "shares": "item", "max_length": 10},
        },
        "embedding": table,
        "model": {
            "name": "autoint",
            "layers": 2,
            "heads": 2,
            "attention_dim": 32,
            "hidden_units": [128, 64],
            "residual": "projected",
        },
        "train": {
            "batch_size": 1024,
            "max_epochs": 4,
            "learning_rate": 3e-3,
            "embedding_l2": {"value": 1e-4, "mode": "touched_rows"},
            "patience": 2,
        },
        "tracking": {"uri": uri, "experiment": "demo"},
    }


def render(result: dict[str, Any]) -> Group:
    """The closing table and what to do next."""
    table = Table(title=f"AutoInt on a log whose best possible AUC is {result['bayes_auc']:.4f}")
    for heading in ("embedding", "AUC", "of Bayes", "logloss", "NE", "table bytes"):
        table.add_column(heading, justify="right")
    table.add_column("train rows/s", justify="right")
    table.add_column("score rows/s", justify="right")
    for name, entry in result["runs"].items():
        metrics = entry["metrics"]["test"]
        share = (metrics["auc"] - 0.5) / (result["bayes_auc"] - 0.5)
        table.add_row(
            name,
            f"{metrics['auc']:.4f}",
            f"{share:.1%}",
            f"{metrics['logloss']:.4f}",
            f"{metrics['ne']:.4f}",
            f"{entry['memory']['stored_bytes']:,}",
            f"{entry['rows_per_second']:,.0f}",
            f"{entry['scored']['rows_per_second']:,.0f}",
        )
    lines = [
        "'of Bayes' is the share of the possible gain over chance (AUC - 0.5).",
        f"Verified bundles: {', '.join(entry['bundle'] for entry in result['runs'].values())}",
        f"Scored rows:      {', '.join(e['scored']['out'] for e in result['runs'].values())}",
        f"See the runs:     {result['ui']}",
    ]
    return Group(table, *lines)
