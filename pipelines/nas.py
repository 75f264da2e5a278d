"""A search for networks of NASRec: shared weights, evolution, and configs of the best."""

from __future__ import annotations

import hashlib
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Group
from rich.table import Table

from pipelines.prepare import prepare
from recsys.config import AnyRunConfig, RunConfig, public
from recsys.disk import alone_in
from recsys.layers.block_config import BlockConfig
from recsys.models.nasrec import ChoiceNet, NASRecConfig
from recsys.nas import Evolution, Evolve, SharedNASRec, Space, Supernet, search_figure
from recsys.nas.space import OPS
from recsys.training.checkpoint import load_checkpoint
from recsys.training.prediction import open_device
from recsys.training.progress import Reporter, SilentReporter
from recsys.training.tracking import open_tracker
from recsys.training.tracking.finishing import finishing
from recsys.training.trainer import Trainer
from recsys.types import InputError

Result = dict[str, Any]


@dataclass(frozen=True)
class Search:
    """How much is searched. The published search has 1 epoch, a population of 128, 240 generations
    of 8 children and networks of 7 blocks; these defaults are for minutes on a CPU. Tournaments
    are half of the population, as there.

    ``space``: operators, see `OPS`. ``share``: of train, the rows that networks are judged by, at
    most ``judge_rows``. ``fit_rows``: of the rest, for the last Linear of each network.
    ``warm_up``: share of the steps in which the chance to train the whole falls to 0.
    ``batch_size``: of the search alone, in place of ``train.batch_size``; every step trains another
    network, so that the weights need many steps.
    """

    space: str = "full"
    blocks: int = 4
    epochs: int = 4
    batch_size: int = 512
    warm_up: float = 0.5
    population: int = 32
    generations: int = 16
    children: int = 8
    top: int = 3
    share: float = 0.2
    fit_rows: int = 8_192
    judge_rows: int = 16_384

    def __post_init__(self) -> None:
        if self.space not in OPS:
            raise InputError(f"--space {self.space!r}: must be {' or '.join(OPS)}")
        for name in ("epochs", "batch_size", "population", "generations", "children", "top"):
            if getattr(self, name) < 1:
                option = f"--{name.replace('_', '-')}"
                raise InputError(f"{option} {getattr(self, name)}: must be at least 1")
        if not 0 < self.share < 1:
            raise InputError(f"--share {self.share}: must be between 0 and 1")


def run(
    config: AnyRunConfig,
    search: Search,
    *,
    root: str = ".",
    out: Path = Path("runs"),
    cache: Path | None = None,
    reporter: Reporter | None = None,
) -> Result:
    """Searches networks for the data, tables and optimiser of ``config``, whose model is `nasrec`
    (its ``blocks`` do not matter), and writes a complete config of each of the ``top`` best to
    ``out/NAME-nas-FINGERPRINT/NAME_RANK.yaml``, to train from scratch.

    An interrupted search goes on where it was. Returns ``{run_id, folder, networks: how many were
    judged, found: [{config, logloss, parameters, blocks}], seconds}``, the best first; ``logloss``
    is that of the search rows under shared weights, ``parameters`` are those of the network.
    Errors: `InputError` for another model.
    """
    started = time.perf_counter()
    reporter = reporter or SilentReporter()
    if not isinstance(config, RunConfig) or not isinstance(config.model, NASRecConfig):
        raise InputError(
            f"recsys nas searches networks of nasrec, not of {config.model.name}; set "
            "model: {name: nasrec}"
        )
    if config.selection is not None:
        raise InputError("recsys nas: selections come after the search; remove selection")
    if config.train.warm_start is not None:
        raise InputError("recsys nas: every network starts anew; remove train.warm_start")
    open_device(config.train.device)  # refused before any data is read
    dense, sparse = OPS[search.space]
    space = Space(blocks=search.blocks, dense_ops=dense, sparse_ops=sparse)
    prepared = prepare(config, root=root, cache=cache or out / "cache", reporter=reporter)
    fingerprint = hashlib.sha256(f"{config.fingerprint} {search}".encode()).hexdigest()
    folder = out / f"{config.name}-nas-{fingerprint[:8]}"
    torch.manual_seed(config.seed)
    (layer,) = prepared.assembly.layers
    shared = SharedNASRec(space, prepared.features.fields, layer)
    evolution = Evolution(
        space,
        population=search.population,
        generations=search.generations,
        children=search.children,
        tournament=max(1, search.population // 2),
    )
    rows = {"fit_rows": search.fit_rows, "judge_rows": search.judge_rows}
    phases = [
        Supernet(shared, search.epochs, share=search.share, warm_up=search.warm_up),
        Evolve(shared, evolution, share=search.share, **rows),
    ]
    with alone_in(folder):
        checkpoints = folder / "checkpoint"
        saved = load_checkpoint(checkpoints)
        tracker = open_tracker(config.tracking)
        tracker.start(
            f"{config.name}-nas",
            params={**public(config), "search": asdict(search)},
            tags={"model": "nasrec", "task": "search"},
            resume=saved.state["run_id"] if saved is not None else None,
        )
        with finishing(tracker):
            Trainer(
                model=shared,
                config=config.train.model_copy(update={"batch_size": search.batch_size}),
                seed=config.seed,
                fingerprint=fingerprint,
                out=checkpoints,
                tracker=tracker,
                log_every=config.tracking.log_every,
                reporter=reporter,
            ).fit(prepared.train, None, phases)
            best = evolution.ranked()[: search.top]
            found = [
                _write(config, space.network(evolution.genomes[place]), rank, folder, shared)
                | {"logloss": evolution.scores[place]}
                for rank, place in enumerate(best, start=1)
            ]
            picture = search_figure(evolution.scores, search.population, config.name)
            tracker.log_figure(picture, "plots/search.png")
            result = {
                "run_id": tracker.run_id,
                "folder": str(folder),
                "networks": len(evolution.scores),
                "found": found,
                "seconds": time.perf_counter() - started,
            }
            tracker.log_json(result, "result.json")
        shutil.rmtree(checkpoints, ignore_errors=True)
    return result


def render(result: Result) -> Group:
    """The best networks, block by block."""
    table = Table(title=f"{result['networks']:,} networks judged", title_style="")
    for name in ("config", "logloss", "parameters", "blocks"):
        table.add_column(name, justify="right" if name in ("logloss", "parameters") else "left")
    for row in result["found"]:
        lines = [_line(place, block) for place, block in enumerate(row["blocks"], start=1)]
        table.add_row(
            Path(row["config"]).name,
            f"{row['logloss']:.5f}",
            f"{row['parameters']:,}",
            "\n".join(lines),
        )
    return Group(table, f"train them: recsys benchmark {result['folder']}/*.yaml")


def _line(place: int, block: dict[str, Any]) -> str:
    right = f" and {block['right_from']}" if block["right_from"] else ""
    merged = [name for name in ("to_sparse", "to_dense") if block[name]]
    return (
        f"{place}: {block['dense_op']} {block['dense_width']} of {block['dense_from']}{right}, "
        f"{block['sparse_op']} {block['sparse_count']} of {block['sparse_from']}"
        + "".join(f", {name}" for name in merged)
    )


def _write(
    config: RunConfig,
    blocks: tuple[BlockConfig, ...],
    rank: int,
    folder: Path,
    shared: SharedNASRec,
) -> Result:
    """The complete config of one network, and its size."""
    tree = config.model_dump(mode="json", exclude_unset=True)
    written = [block.model_dump(mode="json", exclude_defaults=True) for block in blocks]
    tree |= {"name": f"{config.name}-{rank}", "model": {"name": "nasrec", "blocks": written}}
    path = folder / f"{config.name.replace('-', '_')}_{rank}.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    stem = shared.stem
    net = ChoiceNet(blocks, width=stem.width, count=stem.count, dim=shared.dim)
    return {
        "config": str(path),
        "parameters": sum(p.numel() for p in net.parameters()),
        "blocks": [block.model_dump(mode="json") for block in blocks],
    }
