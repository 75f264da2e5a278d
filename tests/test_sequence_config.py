"""The config of a sequence run: what is refused, and what the refusal says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from recsys.config import RunConfig, SequenceRunConfig, parse_click_config, parse_config
from recsys.types import InputError

TREE: dict[str, Any] = {
    "name": "tiny",
    "data": {
        "source": "log.parquet",
        "user": "user",
        "item": "item",
        "timestamp": "at",
        "split": {"method": "leave_one_out"},
    },
    "features": {"history": {"type": "sequence", "max_length": 50}},
    "embedding": {"method": "full", "embedding_dim": 8},
    "model": {"name": "sasrec"},
}
SEQUENCE = TREE["features"]["history"]
TEXT = {"source": "items.parquet", "item": "item", "attributes": ["title"]}


def test_the_name_of_the_model_chooses_the_kind() -> None:
    config = parse_config(TREE)
    assert isinstance(config, SequenceRunConfig)
    assert (config.column, config.max_length) == ("history", 50)
    assert config.train.monitor == "ndcg@10"
    assert config.ranking.cutoffs == (1, 5, 10, 20)
    assert parse_config(config.model_dump(mode="json")) == config
    with pytest.raises(InputError, match=r"data\.label: this key is missing"):
        parse_config({**TREE, "model": {"name": "lr"}})


def test_the_column_may_be_named_otherwise() -> None:
    config = parse_config({**TREE, "features": {"h": {**SEQUENCE, "column": "films"}}})
    assert isinstance(config, SequenceRunConfig)
    assert config.column == "films"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model": {"name": "sasrek"}},
            "model.name: unknown value 'sasrek'; did you mean 'sasrec'",
        ),
        (
            {"model": {"name": "bert4rec", "head": 2}},
            "model.head: unknown key; did you mean 'heads'",
        ),
        (
            {"model": {"name": "recformer"}},
            "model recformer reads the text of items; say where the catalogue is, data.items: "
            "{source: items.parquet, item: item, attributes: [title]}",
        ),
        (
            {"data": {**TREE["data"], "items": TEXT}},
            "model sasrec knows items by their ids and reads no text; remove data.items, or take "
            "recformer",
        ),
        (
            {
                "model": {"name": "recformer"},
                "data": {**TREE["data"], "items": TEXT},
                "features": {"history": {**SEQUENCE, "min_count": 2}},
            },
            "features.history: min_count: the items are those of data.items; remove it",
        ),
        (
            {
                "model": {"name": "recformer"},
                "data": {**TREE["data"], "items": {**TEXT, "attributes": []}},
            },
            "data.items.attributes",
        ),
        (
            {
                "model": {"name": "recformer"},
                "data": {**TREE["data"], "items": {**TEXT, "attributes": ["title", "title"]}},
            },
            "data.items.attributes: a column is given twice; give each once",
        ),
        (
            {
                "model": {"name": "recformer", "phases": ["fine_tune", "pretrain"]},
                "data": {**TREE["data"], "items": TEXT},
            },
            "phases: name some of pretrain, fine_tune, fixed_items, each once, in this order",
        ),
        (
            {"model": {"name": "recformer", "window": 7}, "data": {**TREE["data"], "items": TEXT}},
            "model.window",
        ),
        (
            {"train": {"monitor": "auc"}},
            "train.monitor 'auc' is not measured here; known: ndcg@1, ndcg@5, ndcg@10",
        ),
        (
            {"train": {"monitor": "ndcg@50"}},
            "train.monitor 'ndcg@50' is not measured here; did you",
        ),
        (
            {"train": {"monitor": "ndcg@10"}, "ranking": {"cutoffs": [1, 5]}},
            "did you mean 'ndcg@1'?",
        ),
        ({"ranking": {"cutofs": [1]}}, "ranking.cutofs: unknown key; did you mean 'cutoffs'?"),
        ({"ranking": {"cutoffs": []}}, "ranking.cutoffs"),
        ({"ranking": {"cutoffs": [0]}}, "ranking.cutoffs.0"),
        ({"ranking": {"cutoffs": [10, 10]}}, "ranking: ranking.cutoffs: a value is given twice"),
        ({"ranking": {"sampled": ["popular"]}}, "ranking.sampled.0"),
        (
            {"features": {"history": SEQUENCE, "genre": {"type": "categorical"}}},
            "model sasrec reads one feature, the sequence of items, but there are history, genre",
        ),
        (
            {"features": {"item": {"type": "categorical"}}},
            "features.item is categorical, but model sasrec reads a sequence",
        ),
        ({"features": {"tags": {"type": "bag"}}}, "features.tags is bag, but"),
        ({"train": {"device": "gpu"}}, "train.device: 'gpu' is no device"),
        (
            {
                "model": {"name": "bert4rec"},
                "features": {"history": {**SEQUENCE, "max_length": 1}},
            },
            "features.history.max_length 1: bert4rec reads one item less",
        ),
        (
            {"train": {"embedding_l2": {"value": 0.1, "mode": "batch_aware"}}},
            "train.embedding_l2.mode batch_aware weighs rows by how often",
        ),
        (
            {"features": {"history": {**SEQUENCE, "encoding": "hash", "buckets": 100}}},
            "features.history.encoding hash: hashed ids do not name items",
        ),
        (
            {"features": {"history": {**SEQUENCE, "shares": "item"}}},
            "features.history.shares: model sasrec has no other feature",
        ),
        ({"features": {"history": {"type": "sequence"}}}, "features.history.max_length"),
        (
            {"features": {"history": {**SEQUENCE, "pooling": "sum"}}},
            "features.history.pooling: model sasrec reads item by item and pools nothing",
        ),
        (
            {"model": {"name": "bert4rec", "heads": 3}},
            "embedding.embedding_dim 8 is the total width of all heads and must be a multiple of "
            "model.heads 3",
        ),
        (
            {"model": {"name": "sasrec", "negatives_per": "position"}},
            "loss cross_entropy has no negatives; remove negatives_per",
        ),
        (
            {"model": {"name": "gru4rec", "loss": "bce", "negatives": 1, "calibration": 0.5}},
            "calibration 0.5 is gBCE's; remove it or set loss: gbce, not bce",
        ),
        ({"data": {**TREE["data"], "label": "y"}}, "data.label: unknown key"),
        ({"selection": {"method": "optfs"}}, "selection: unknown key"),
        (
            {"data": {**TREE["data"], "split": {"method": "leave_last_out"}}},
            "data.split.method: unknown value 'leave_last_out'; did you mean 'leave_one_out'?",
        ),
    ],
)
def test_refusals_name_key_and_remedy(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        parse_config({**TREE, **change})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_mrr_and_any_cutoff_can_be_monitored() -> None:
    for monitor in ("mrr", "recall@7", "ndcg@7"):
        tree = {**TREE, "train": {"monitor": monitor}, "ranking": {"cutoffs": [7]}}
        assert parse_config(tree).train.monitor == monitor


def test_a_model_of_clicks_is_asked_for_in_one_line() -> None:
    with pytest.raises(InputError, match="here: model sasrec recommends items") as error:
        parse_click_config(TREE, where="here")
    assert "\n" not in str(error.value)


def test_fingerprints_follow_what_decides_the_result() -> None:
    config = parse_config(TREE)
    assert config.fingerprint == parse_config({**TREE, "tracking": {"uri": None}}).fingerprint
    other = parse_config({**TREE, "ranking": {"filter_seen": False}})
    assert config.fingerprint != other.fingerprint


def test_both_kinds_share_their_keys_and_have_a_schema() -> None:
    keys = {kind: set(kind.model_fields) for kind in (RunConfig, SequenceRunConfig)}
    assert keys[RunConfig] ^ keys[SequenceRunConfig] == {"selection", "ranking"}
    schema = json.loads(json.dumps(SequenceRunConfig.model_json_schema()))
    assert set(TREE) <= set(schema["properties"])
    assert schema["additionalProperties"] is False
