"""A run of a model that reads text, from a log and a catalogue to bundles over other catalogues."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from planted_xor import Recsys

from pipelines import embeddings, export, train
from pipelines.grid import data_digest
from recsys.build_sequence import build_sequence
from recsys.bundle.rebuild_topk import rebuild_top_k
from recsys.bundle.warm_start import warm_start
from recsys.config import SequenceRunConfig, parse_config
from recsys.data.interactions import write_sequences
from recsys.data.item_space import fit_sequences
from recsys.features.item_text import WORDS, with_text, word_state
from recsys.types import InputError
from serving.bundle import open_bundle
from serving.parquet import open_source
from serving.topk import TopK

KINDS = ["war", "love", "space", "crime", "music", "sport"]
PER_KIND = 4


def film(kind: int, number: int) -> int:
    return 100 + kind * PER_KIND + number


def write_data(folder: Path, users: int = 160) -> None:
    """Everybody walks round the kinds of films; which film of a kind comes is chance."""
    rng = np.random.default_rng(0)
    steps = rng.integers(4, 10, users)
    start = np.repeat(rng.integers(0, len(KINDS), users), steps)
    at = np.concatenate([np.arange(n) for n in steps])
    kinds = (start + at) % len(KINDS)
    films = film(kinds, rng.integers(0, PER_KIND, len(at)))
    log = {"who": np.repeat(np.arange(users), steps), "film": films, "at": at}
    pq.write_table(pa.table(log), folder / "log.parquet")
    catalogue = [(film(k, n), f"{kind} {n}") for k, kind in enumerate(KINDS) for n in range(4)]
    write_catalogue(folder / "films.parquet", catalogue)


def write_catalogue(path: Path, rows: list[tuple[int, str]]) -> None:
    ids, titles = zip(*rows, strict=True)
    pq.write_table(pa.table({"film": ids, "title": titles}), path)


def tree(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "films",
        "seed": 1,
        "data": {
            "source": "log.parquet",
            "user": "who",
            "item": "film",
            "timestamp": "at",
            "split": {"method": "leave_one_out"},
            "items": {"source": "films.parquet", "item": "film", "attributes": ["title"]},
        },
        "features": {"history": {"type": "sequence", "max_length": 6}},
        "embedding": {"method": "full", "embedding_dim": 16, "init_std": 0.02},
        "model": {
            "name": "recformer",
            "hidden_units": 32,
            "dropout": 0.0,
            "mask_weight": 0,
            "window_stride": 0.2,
        },
        "train": {
            "batch_size": 32,
            "max_epochs": 16,
            "learning_rate": 3e-3,
            "decay": "cosine",
            "monitor": "recall@4",
        },
        "ranking": {"cutoffs": [1, 4], "filter_seen": False},
        "tracking": {"uri": None},
        **changes,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    write_data(folder)
    return folder


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    config = tree(folder)
    return train.run(parse_config(config), root=str(folder), out=folder / "runs")


def kinds_of(films: list[int]) -> list[int]:
    return [(one - 100) // PER_KIND for one in films]


def test_it_learns_which_words_follow(result: dict[str, Any]) -> None:
    """The four films of the next kind cannot be told apart: chance is one in 24 and 4 in 24."""
    assert result["metrics"]["test"]["recall@4"] > 0.8
    assert result["verified"]["max_abs_diff"] < 1e-5
    assert result["memory"]["trainable_params"] == 16 * (2 + 1 + len(KINDS) + PER_KIND)


def test_the_bundle_recommends_films_of_the_next_kind(result: dict[str, Any]) -> None:
    history = [[film(0, 1), film(1, 2), film(2, 0)], [film(4, 3), film(5, 1)]]
    lists = TopK(result["bundle"]).recommend(pa.table({"history": history})).items.to_pylist()
    assert kinds_of(lists[0]) == [3] * 4
    assert kinds_of(lists[1]) == [0] * 4


@pytest.fixture(scope="module")
def moved(folder: Path, result: dict[str, Any]) -> Path:
    """The bundle over films that were not there in training, and one that was."""
    rows = [(7, "crime 9"), (8, "love 1"), (9, "unheard of"), (film(2, 0), "space 0")]
    write_catalogue(folder / "new.parquet", rows)
    out = folder / "moved"
    export.run(Path(result["bundle"]), out, root=str(folder), catalogue="new.parquet")
    return out


def test_new_films_are_recommended_without_training(moved: Path) -> None:
    history = pa.table({"history": [[8, film(2, 0)], [film(1, 1), 8, film(2, 0)], [film(0, 0)]]})
    lists = TopK(moved).recommend(history).items.to_pylist()
    assert lists[0][0] == 7, "crime follows love and space"
    assert set(lists[0]) == {7, 8, film(2, 0)}, "of film 9 no word is known"
    assert lists[1] == lists[0], "nothing is known of films that are gone"
    assert set(lists[2]) == set(lists[0])
    manifest = open_bundle(moved).manifest
    assert manifest["config"]["data"]["items"]["source"] == "new.parquet"
    assert "metrics" not in manifest


def test_bundles_over_new_films_can_be_built_again(moved: Path, folder: Path) -> None:
    rebuilt = rebuild_top_k(open_bundle(moved))
    rebuilt.check(pa.table({"history": [[film(2, 0)], [8, 7], []]}))
    export.run(moved, folder / "again", root=str(folder))
    assert open_bundle(folder / "again").manifest["task"] == "top_k"


def test_the_same_catalogue_gives_the_same_lists(
    folder: Path, result: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "same"
    export.run(Path(result["bundle"]), out, root=str(folder), catalogue="films.parquet")
    history = pa.table({"history": [[film(k, 1), film(k + 1, 2)] for k in range(4)]})
    before, after = (TopK(path).recommend(history) for path in (result["bundle"], out))
    assert after.items.to_pylist() == before.items.to_pylist()
    np.testing.assert_allclose(after.scores.flatten(), before.scores.flatten(), rtol=1e-4)


def test_what_came_out_can_be_quantised(moved: Path, folder: Path, tmp_path: Path) -> None:
    memory = open_bundle(moved).manifest["memory"]
    assert memory["stored_bytes"] < 4 * 16 * (2 + 3 + 14) + 200, "three films, thirteen words"
    done = export.run(moved, tmp_path / "small", root=str(folder), quantise="int8")
    assert list(done["quantised"]) == ["kind", "stored_bytes"]
    rebuild_top_k(open_bundle(tmp_path / "small")).check(pa.table({"history": [[8], [7, 8]]}))


@pytest.mark.parametrize(
    ("model", "quantise", "says"),
    [
        ({"name": "recformer"}, "int8", "quantise what comes out"),
        ({"name": "recformer", "phases": ["fine_tune"]}, None, "end with fine_tune, after which"),
        ({"name": "gru4rec"}, None, "gru4rec knows items by their ids"),
    ],
)
def test_what_cannot_be_given_new_films(
    folder: Path, model: dict[str, Any], quantise: Any, says: str, tmp_path: Path
) -> None:
    config = tree(folder, model=model, name="refused")
    if model["name"] == "gru4rec":
        del config["data"]["items"]
    config["train"] = {"max_epochs": 1, "monitor": "recall@4"}
    done = train.run(parse_config(config), root=str(folder), out=tmp_path / "runs")
    with pytest.raises(InputError, match=says):
        export.run(
            Path(done["bundle"]),
            tmp_path / "x",
            root=str(folder),
            catalogue="films.parquet",
            quantise=quantise,
        )
    assert not (tmp_path / "x").exists()


def test_a_catalogue_of_other_items_is_refused(folder: Path, tmp_path: Path) -> None:
    write_catalogue(folder / "others.parquet", [(1, "war"), (2, "love")])
    config = tree(folder)
    config["data"]["items"]["source"] = "others.parquet"
    with pytest.raises(InputError, match="no item of train has a row with text in it; check that"):
        train.run(parse_config(config), root=str(folder), out=tmp_path / "runs")


def test_another_catalogue_is_other_data_for_grids_but_not_for_splits(
    folder: Path, tmp_path: Path
) -> None:
    config = parse_config(tree(folder))
    assert isinstance(config, SequenceRunConfig)
    digest = data_digest(config, str(folder))
    (tmp_path / "log.parquet").write_bytes((folder / "log.parquet").read_bytes())
    write_catalogue(tmp_path / "films.parquet", [(1, "war"), (2, "love")])
    source = open_source("log.parquet", tmp_path)
    here = data_digest(config, str(tmp_path))
    write_catalogue(tmp_path / "films.parquet", [(1, "war"), (2, "crime and love")])
    assert data_digest(config, str(tmp_path)) != here != digest
    plain = config.data.model_copy(update={"items": None})
    folders = {
        write_sequences(source, data, "history", tmp_path / "s").catalogue.parent
        for data in (config.data, plain)
    }
    assert len(folders) == 1


def test_a_run_starts_from_the_words_of_another_catalogue(
    folder: Path, result: dict[str, Any], tmp_path: Path
) -> None:
    rows = [(1, "crime story"), (2, "love story"), (3, "war 0")]
    write_catalogue(tmp_path / "films.parquet", rows)
    who, films = np.repeat([1, 2], 4), [1, 2, 3, 1, 3, 2, 1, 2]
    log = {"who": who, "film": films, "at": np.arange(8)}
    pq.write_table(pa.table(log), tmp_path / "log.parquet")
    config = tree(tmp_path)
    config["train"] = {**config["train"], "warm_start": result["bundle"]}
    config["model"]["mask_weight"] = 0.1
    config["train"]["max_epochs"] = 1
    parsed = parse_config(config)
    assert isinstance(parsed, SequenceRunConfig)
    assert parsed.data.items is not None
    source = open_source("log.parquet", tmp_path)
    files = write_sequences(source, parsed.data, "history", tmp_path / "s")
    fitted = fit_sequences(parsed.features, files.train)
    features, _ = with_text(fitted, parsed.data.items, tmp_path)
    model = build_sequence(parsed, features).model
    said = warm_start(model, features, parsed)
    old = rebuild_top_k(open_bundle(result["bundle"]))
    theirs, ours = word_state(old.features)["ids"], word_state(features)["ids"]
    known = [i for i, word in enumerate(ours) if word in theirs]
    assert len(known) == 5, "title, crime, love, war, 0; story is new"
    assert said.known[WORDS] == (2 + 5, 2 + 6)
    before, after = (m.embedding.all_vectors(0) for m in (old.graph.model, model))
    for i in known:
        (there,) = np.flatnonzero(theirs == ours[i])
        assert torch.equal(after[2 + i], before[2 + there])
    assert torch.equal(model.reader.places, old.graph.model.reader.places)
    assert model.masked_words is not None, "what pretraining alone needs starts anew"
    again = train.run(parsed, root=str(tmp_path), out=tmp_path / "runs")
    assert again["steps"] > 0


def test_table_methods_are_compared_on_words(folder: Path, tmp_path: Path) -> None:
    config = tree(folder)
    found = embeddings.run(
        parse_config(config),
        budgets=[0.5],
        methods=["full", "hash", "unified"],
        root=str(folder),
        cache=tmp_path,
    )
    words = 2 + 1 + len(KINDS) + PER_KIND
    assert found["fields"] == {WORDS: words}
    assert found["full_bytes"] == 4 * 16 * (words + 1), "and a row of zeros for padding"


def test_from_the_command_line(recsys: Recsys, folder: Path, result: dict[str, Any]) -> None:
    write_catalogue(folder / "cli.parquet", [(7, "crime 9"), (8, "love 1")])
    code, out, _ = recsys(
        "export",
        result["bundle"],
        str(folder / "by_hand"),
        "--items",
        "cli.parquet",
        "--data-root",
        str(folder),
        "--json",
    )
    assert code == 0
    assert json.loads(out)["bundle"] == str(folder / "by_hand")
    assert len(pq.read_table(folder / "by_hand" / "items.parquet")) == 4
