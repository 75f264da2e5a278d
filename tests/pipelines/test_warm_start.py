"""A run that starts from an older bundle: what it takes over, what it refuses, what it is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipelines import train
from pipelines.prepare import Prepared, prepare
from recsys.bundle import export
from recsys.bundle.rebuild import rebuild
from recsys.bundle.warm_start import warm_start
from recsys.config import parse_click_config
from recsys.data.synthetic import PlantedLog, write_log
from recsys.embeddings.post_training import quantise_layers
from recsys.features import Features
from recsys.testing.world import shake
from recsys.training.progress import SilentReporter
from recsys.training.trainer import Trainer
from recsys.types import InputError
from serving.bundle import open_bundle

FULL = {"method": "full", "embedding_dim": 8, "init_std": 0.05}
OPEN = {"type": "categorical", "encoding": "hash"}


def tree(log: PlantedLog, **changes: Any) -> dict[str, Any]:
    return {
        "name": "warm",
        "seed": 3,
        "data": {"train": str(log.train), "valid": str(log.valid), "label": "label"},
        "features": {
            "price": {"type": "numeric", "transform": "log1p", "normalise": "standard"},
            "site": {"type": "categorical"},
            "device": {"type": "categorical"},
            "ad": {"type": "categorical"},
            "page": {"type": "categorical", "encoding": "hash", "buckets": 500},
            "item": {"type": "categorical", "min_count": 3},
            "history": {"type": "sequence", "shares": "item", "max_length": 5},
        },
        "embedding": FULL,
        "model": {"name": "deepfm", "hidden_units": [16], "batch_norm": True, "dropout": 0.1},
        "train": {"batch_size": 128, "max_epochs": 4, "learning_rate": 0.005, "patience": 4},
        "tracking": {"uri": None},
        "export": {"verify_rows": 50},
        **changes,
    }


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> tuple[PlantedLog, PlantedLog]:
    """Of one world: an older log, and one of more rows, with more ids and other frequencies."""
    folder = tmp_path_factory.mktemp("logs")
    return (
        write_log(folder / "old", rows=6000, eval_rows=500, seed=1),
        write_log(folder / "new", rows=8000, eval_rows=4000, seed=1),
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory, logs: tuple[PlantedLog, PlantedLog]) -> str:
    """The bundle of a whole run."""
    folder = tmp_path_factory.mktemp("old")
    short = {"batch_size": 500, "max_epochs": 1, "learning_rate": 0.01}
    return str(train.run(parse_click_config(tree(logs[0], train=short)), out=folder)["bundle"])


def bundle_of(folder: Path, cache: Path, log: PlantedLog, **changes: Any) -> str:
    """A bundle whose weights are drawn, not trained: quicker, and as good for copying."""
    config = parse_click_config(tree(log, **changes))
    made = prepare(config, root=".", cache=cache, reporter=SilentReporter())
    shake(made.assembly.model)
    parts = made.assembly.finalise()
    if config.export.quantise is not None:
        quantise_layers(parts.model, config.export.quantise)
    return str(
        export(
            parts.model.eval(),
            parts.encoder,
            parts.id_map,
            made.features.inputs,
            folder / "bundle",
            manifest={"config": config.model_dump(mode="json")},
            features=made.features,
        )
    )


def warmed(
    cache: Path, log: PlantedLog, bundle: str, **changes: Any
) -> tuple[Prepared, dict[str, Tensor], str]:
    """A run of ``log`` before its first step: warm, and its weights if it were cold."""
    made = tree(log, **changes)
    config = parse_click_config({**made, "train": {**made["train"], "warm_start": bundle}})
    prepared = prepare(config, root=".", cache=cache, reporter=SilentReporter())
    cold = {name: t.clone() for name, t in prepared.assembly.model.state_dict().items()}
    return prepared, cold, str(warm_start(prepared.assembly.model, prepared.features, config))


def raw_numbers(features: Features, name: str) -> dict[int, int]:
    """Raw id -> its number, of a vocabulary."""
    state = features.states[name]
    first = len(state["counts"]) - len(state["ids"])
    return {raw: first + i for i, raw in enumerate(state["ids"].tolist())}


def row_vectors(model: nn.Module, features: Features, name: str) -> list[Tensor]:
    """The vectors of all ids of ``name`` in each layer, by number."""
    f = [field.name for field in features.fields].index(name)
    layers = [m for m in model.modules() if hasattr(m, "all_vectors")]
    assert len(layers) == 2, "vectors and first-order weights"
    with torch.no_grad():
        return [layer.all_vectors(f) for layer in layers]


@pytest.mark.parametrize(
    "embedding",
    [
        FULL,
        {"method": "int8", "embedding_dim": 8, "init_std": 0.05},
        {"method": "low_rank", "embedding_dim": 8, "rank": 4},
        {"method": "mixed_dim", "embedding_dim": 8, "alpha": 0.0},
    ],
    ids=lambda tree: tree["method"],
)
def test_known_ids_keep_their_vectors_and_new_ids_start_as_ever(
    tmp_path: Path, cache: Path, logs: tuple[PlantedLog, PlantedLog], embedding: dict[str, Any]
) -> None:
    bundle = bundle_of(tmp_path, cache, logs[0], embedding=embedding)
    before = rebuild(open_bundle(bundle))
    prepared, _, said = warmed(cache, logs[1], bundle, embedding=embedding)
    features, model = prepared.features, prepared.assembly.model
    cold = prepare(
        parse_click_config(tree(logs[1], embedding=embedding)),
        root=".",
        cache=cache,
        reporter=SilentReporter(),
    ).assembly.model
    for name in ("site", "device", "ad", "item"):
        theirs, ours = raw_numbers(before.features, name), raw_numbers(features, name)
        known = [raw for raw in ours if raw in theirs]
        assert f"{name} {len(known) + 2:,} of {len(ours) + 2:,}" in said, "with null and unseen"
        there = torch.tensor([0, 1] + [theirs[raw] for raw in known])
        here = torch.tensor([0, 1] + [ours[raw] for raw in known])
        fresh = torch.tensor([ours[raw] for raw in ours if raw not in theirs], dtype=torch.int64)
        if name == "ad":
            assert len(fresh) > 300, "a grown vocabulary"
            assert not torch.equal(here.sort().indices, there.sort().indices), "in another order"
        unmoved = row_vectors(cold, features, name)
        for old_vectors, vectors, start in zip(
            row_vectors(before.graph.model, before.features, name),
            row_vectors(model, features, name),
            unmoved,
            strict=True,
        ):
            assert torch.equal(vectors[here], old_vectors[there])
            if embedding["method"] in ("full", "int8"):
                assert torch.equal(vectors[fresh], start[fresh])
                assert not torch.equal(vectors[here], start[here])
    for old_vectors, vectors in zip(
        row_vectors(before.graph.model, before.features, "page"),
        row_vectors(model, features, "page"),
        strict=True,
    ):
        assert torch.equal(vectors, old_vectors), "buckets stay what they are"


def test_the_network_is_copied_and_the_generator_left_alone(
    tmp_path: Path, cache: Path, logs: tuple[PlantedLog, PlantedLog], old: str
) -> None:
    torch.manual_seed(11)
    prepared, _, _ = warmed(cache, logs[1], old)
    drawn = torch.rand(3)
    prepare(  # a cold one: builds from the seed as well
        parse_click_config(tree(logs[1])),
        root=".",
        cache=cache,
        reporter=SilentReporter(),
    )
    assert torch.equal(torch.rand(3), drawn)
    before = rebuild(open_bundle(old)).graph.model.state_dict()
    after = prepared.assembly.model.state_dict()
    others = [name for name in after if ".stores." not in name]
    assert any("running_mean" in name for name in others)
    assert any("numeric" in name for name in others)
    for name in others:
        assert torch.equal(after[name], before[name]), name


def test_equal_vocabularies_take_any_table(
    tmp_path: Path, cache: Path, logs: tuple[PlantedLog, PlantedLog]
) -> None:
    """On the same log nothing has moved, so that rows found by arithmetic are the same."""
    for embedding in (
        {"method": "unified", "embedding_dim": 8, "rows": 300},
        {"method": "robe", "embedding_dim": 8, "rows": 300, "sign": True},
        {"method": "tensor_train", "embedding_dim": 8, "rank": 2},
    ):
        bundle = bundle_of(tmp_path, cache, logs[0], embedding=embedding)
        prepared, cold, _ = warmed(cache, logs[0], bundle, embedding=embedding)
        before = rebuild(open_bundle(bundle)).graph.model.state_dict()
        after = prepared.assembly.model.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(after[name], before[name]) for name in after)
        assert not all(torch.equal(after[name], cold[name]) for name in after)


def test_open_ids_keep_their_rows_while_a_vocabulary_grows(
    tmp_path: Path, cache: Path, logs: tuple[PlantedLog, PlantedLog]
) -> None:
    site = {"type": "categorical", "max_size": 20}
    features = {"ad": OPEN, "item": OPEN, "page": OPEN, "site": site}
    keys: dict[str, Any] = {
        "features": features,
        "embedding": {"method": "unified", "embedding_dim": 8, "rows": 400},
    }
    bundle = bundle_of(tmp_path, cache, logs[0], **keys)
    keys["features"] = {**features, "site": {**site, "max_size": 30}}
    prepared, _, _ = warmed(cache, logs[1], bundle, **keys)
    before = rebuild(open_bundle(bundle))
    theirs, ours = before.graph.model.state_dict(), prepared.assembly.model.state_dict()
    tables = [name for name in ours if ".stores." in name]
    assert len(tables) == 2
    for name in tables:
        assert torch.equal(ours[name][:400], theirs[name][:400]), "shared rows of open ids"
    there, here = raw_numbers(before.features, "site"), raw_numbers(prepared.features, "site")
    known = [raw for raw in here if raw in there]
    assert len(here) > len(known) > 10
    for old_vectors, vectors in zip(
        row_vectors(before.graph.model, before.features, "site"),
        row_vectors(prepared.assembly.model, prepared.features, "site"),
        strict=True,
    ):
        picked = vectors[[here[raw] for raw in known]]
        assert torch.equal(picked, old_vectors[[there[raw] for raw in known]])


@pytest.mark.parametrize(
    "embedding",
    [
        FULL,
        # two tables that have a row of zeros for the ids of the other one
        {
            "method": "mixed_dim",
            "embedding_dim": 8,
            "alpha": 0.0,
            "blocks": {"site": {"by": "ids", "cuts": [0.5]}},
        },
    ],
    ids=lambda tree: tree["method"],
)
def test_a_quantised_bundle_gives_the_rows_that_it_serves(
    tmp_path: Path, cache: Path, logs: tuple[PlantedLog, PlantedLog], embedding: dict[str, Any]
) -> None:
    keys = {"embedding": embedding}
    bundle = bundle_of(tmp_path, cache, logs[0], export={"quantise": "int8"}, **keys)
    before = rebuild(open_bundle(bundle))
    prepared, _, _ = warmed(cache, logs[1], bundle, **keys)
    theirs = raw_numbers(before.features, "site")
    ours = raw_numbers(prepared.features, "site")
    known = [raw for raw in ours if raw in theirs]
    for old_vectors, vectors in zip(
        row_vectors(before.graph.model, before.features, "site"),
        row_vectors(prepared.assembly.model, prepared.features, "site"),
        strict=True,
    ):
        picked = vectors[[ours[raw] for raw in known]]
        same = (picked == old_vectors[[theirs[raw] for raw in known]]).all(1)
        # an id that became more frequent may have changed its block, where it starts anew
        assert same.all() if embedding is FULL else same.float().mean() > 0.9


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"embedding": {**FULL, "embedding_dim": 4}}, "embedding_dim is 8 there and 4 here"),
        ({"model": {"name": "dcnv2"}}, "model.name is deepfm there and dcnv2 here; set"),
        (
            {"embedding": {"method": "hash", "embedding_dim": 8}},
            "embedding.method is full there and hash here",
        ),
        (
            {"model": {"name": "deepfm", "hidden_units": [24], "batch_norm": True}},
            r"model.hidden_units \[16\] there and \[24\] here",
        ),
        ({"features": {"site": {"type": "categorical"}}}, r"features are .*site \(categorical\)"),
    ],
)
def test_what_cannot_match_is_refused_in_one_line(
    tmp_path: Path,
    cache: Path,
    logs: tuple[PlantedLog, PlantedLog],
    old: str,
    changes: dict[str, Any],
    said: str,
) -> None:
    with pytest.raises(InputError, match=said) as refused:
        warmed(cache, logs[1], old, **changes)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"train.warm_start {old}: ")


def test_other_ways_to_encode_ids_are_refused(
    tmp_path: Path, cache: Path, logs: tuple[PlantedLog, PlantedLog], old: str
) -> None:
    features = tree(logs[1])["features"]
    page = {"type": "categorical", "encoding": "hash", "buckets": 400}
    with pytest.raises(InputError, match=r"features\.page are 500 buckets there and 400 buckets"):
        warmed(cache, logs[1], old, features={**features, "page": page})
    site = {"type": "categorical", "encoding": "hash", "buckets": 40}
    with pytest.raises(InputError, match=r"features\.site are a vocabulary there and 40 buckets"):
        warmed(cache, logs[1], old, features={**features, "site": site})


@pytest.mark.parametrize(
    ("embedding", "key", "values"),
    [
        ({"method": "alpt", "embedding_dim": 8}, "bits", (16, 8)),
        ({"method": "int8", "embedding_dim": 8}, "scale", (0.01, 0.04)),
        (
            {"method": "quotient_remainder", "embedding_dim": 8, "m": 20},
            "operation",
            ("product", "add"),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rows_that_mean_something_else_are_refused(
    tmp_path: Path,
    cache: Path,
    logs: tuple[PlantedLog, PlantedLog],
    embedding: dict[str, Any],
    key: str,
    values: tuple[Any, Any],
) -> None:
    there, here = ({**embedding, key: value} for value in values)
    bundle = bundle_of(tmp_path, cache, logs[0], embedding=there)
    said = f"embedding.{key} is {values[0]} there and {values[1]} here; set"
    with pytest.raises(InputError, match=said):
        warmed(cache, logs[0], bundle, embedding=here)


@pytest.mark.parametrize(
    ("embedding", "said"),
    [
        ({"method": "hash", "embedding_dim": 8, "compression": 0.3}, "finds rows by the number"),
        ({"method": "unified", "embedding_dim": 8, "rows": 300}, "finds rows by the number"),
        ({"method": "tensor_train", "embedding_dim": 8, "rank": 2}, "have no row for each id"),
        ({"method": "mixed_dim", "embedding_dim": 8, "alpha": 0.9}, "tables are .* wide there"),
        ({"method": "frequency", "embedding_dim": 8, "rows": 700}, r"features\.ad is made of 1 "),
    ],
    ids=lambda value: value["method"] if isinstance(value, dict) else "",
)
def test_rows_by_arithmetic_do_not_survive_another_order_of_ids(
    tmp_path: Path,
    cache: Path,
    logs: tuple[PlantedLog, PlantedLog],
    embedding: dict[str, Any],
    said: str,
) -> None:
    keys: dict[str, Any] = {"embedding": embedding}
    grows = embedding["method"] in ("mixed_dim", "frequency")  # sizes decide how ids are stored
    if grows:
        site, ad = {"type": "categorical"}, {"type": "categorical", "max_size": 100}
        keys["features"] = {"site": site, "ad": ad}
    bundle = bundle_of(tmp_path, cache, logs[0], **keys)
    if grows:
        keys["features"] = {"site": site, "ad": {**ad, "max_size": 1000}}
    with pytest.raises(InputError, match=said):
        warmed(cache, logs[1], bundle, **keys)


def test_a_missing_bundle_is_refused_before_any_data_is_read(tmp_path: Path) -> None:
    log = PlantedLog(*[tmp_path / "none.parquet"] * 3, 0, 0, (), np.empty(0))
    made = tree(log)
    made["train"]["warm_start"] = str(tmp_path / "nowhere")
    with pytest.raises(InputError, match="nowhere: no bundle there"):
        train.run(parse_click_config(made), out=tmp_path / "runs")


def test_the_bundle_counts_by_its_content(
    tmp_path: Path, cache: Path, logs: tuple[PlantedLog, PlantedLog], old: str
) -> None:
    def fingerprint(path: str | None) -> str:
        made = tree(logs[1])
        made["train"] = {**made["train"], "warm_start": path}
        return parse_click_config(made).fingerprint

    copy = tmp_path / "copy"
    copy.mkdir()
    manifest = (Path(old) / "manifest.json").read_bytes()
    (copy / "manifest.json").write_bytes(manifest)
    assert fingerprint(old) == fingerprint(str(copy)) != fingerprint(None)
    (copy / "manifest.json").write_bytes(manifest + b" ")
    assert fingerprint(old) != fingerprint(str(copy))


class _Stops(SilentReporter):
    """Interrupts the run at a checkpointed step."""

    def __init__(self, after: int) -> None:
        self.left = after

    def say(self, text: str) -> None:
        if "epoch" in text and "train loss" in text:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt


def test_a_warm_run_resumes_exactly(
    tmp_path: Path, cache: Path, logs: tuple[PlantedLog, PlantedLog], old: str
) -> None:
    made = tree(logs[1])
    made["train"] = {**made["train"], "warm_start": old, "max_epochs": 2, "checkpoint_steps": 10}
    config = parse_click_config(made)
    whole = train.run(config, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train.run(config, out=tmp_path / "parts", reporter=_Stops(0))
    assert list((tmp_path / "parts").glob("*/checkpoint/step-*"))
    parts = train.run(config, out=tmp_path / "parts")
    one, other = (load_file(Path(r["bundle"]) / "weights.safetensors") for r in (whole, parts))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert whole["metrics"] == parts["metrics"]


def drifting(folder: Path, *, ids: range, seed: int, rows: int = 20_000) -> dict[str, str]:
    """A log whose clicks depend on hidden effects of the items ``ids``, the last ones popular."""
    effects = np.random.default_rng(0).normal(size=1000)
    rng = np.random.default_rng(seed)
    paths = {}
    for split, count in {"train": rows, "valid": 5000}.items():
        items = ids[-1] - (len(ids) * rng.random(count) ** 2).astype(np.int64)
        clicks = rng.random(count) < 1 / (1 + np.exp(-1.5 * effects[items]))
        paths[split] = str(folder / f"{split}-{seed}.parquet")
        texts = pa.array([f"i{item}" for item in items])
        pq.write_table(pa.table({"item": texts, "label": clicks.astype(np.int8)}), paths[split])
    return paths


def test_a_warm_run_needs_fewer_steps(tmp_path: Path, cache: Path) -> None:
    """Of 400 ids, 100 are new and the most popular ones; AUC by epoch, of 40 steps each."""

    def fitted(data: dict[str, str], bundle: str | None) -> tuple[Prepared, list[float]]:
        made = {
            "name": "drift",
            "data": {**data, "label": "label"},
            "features": {"item": {"type": "categorical"}},
            "embedding": FULL,
            "model": {"name": "lr"},
            "train": {"batch_size": 500, "max_epochs": 6, "patience": 9, "warm_start": bundle},
        }
        config = parse_click_config(made)
        prepared = prepare(config, root=".", cache=cache, reporter=SilentReporter())
        model = prepared.assembly.model
        if bundle is not None:
            warm_start(model, prepared.features, config)
        trainer = Trainer(model=model, config=config.train, seed=0)
        history = trainer.fit(prepared.train, prepared.valid).history
        if bundle is None:
            parts = prepared.assembly.finalise()
            modules = parts.model.eval(), parts.encoder, parts.id_map
            manifest = {"config": config.model_dump(mode="json")}
            out = tmp_path / "old"
            inputs, features = prepared.features.inputs, prepared.features
            export(*modules, inputs, out, manifest=manifest, features=features)
        return prepared, [epoch["auc"] for epoch in history]

    grown = drifting(tmp_path, ids=range(400), seed=2)
    _, cold = fitted(grown, None)
    fitted(drifting(tmp_path, ids=range(300), seed=1), None)
    _, warm = fitted(grown, str(tmp_path / "old"))
    reached = 0.65
    first = [next(i for i, auc in enumerate(run) if auc > reached) for run in (warm, cold)]
    assert first[0] < first[1], (warm, cold)
    assert warm[0] > cold[0] + 0.02, (warm, cold)
