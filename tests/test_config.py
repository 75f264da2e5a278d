"""The config tree: what is refused, and what the refusal says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from recsys.config import RunConfig, load_config, parse_config, public
from recsys.types import InputError

DATA = {"train": "train.parquet", "label": "label"}
TREE = {
    "name": "tiny",
    "data": DATA,
    "features": {"user": {"type": "categorical"}, "price": {"type": "numeric"}},
    "embedding": {"method": "full", "embedding_dim": 4},
    "model": {"name": "lr"},
}


def _write(tmp_path: Path, tree: object) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modle": {}}, "modle: unknown key; did you mean 'model'?"),
        ({"train": {"batchsize": 1}}, "train.batchsize: unknown key; did you mean 'batch_size'?"),
        (
            {"features": {"user": {"type": "categorical", "min_cuont": 2}}},
            "features.user.min_cuont: unknown key; did you mean 'min_count'?",
        ),
        (
            {"features": {"user": {"type": "catgorical"}}},
            "features.user.type: unknown value 'catgorical'; did you mean 'categorical'?",
        ),
        (
            {"embedding": {"method": "unifed", "embedding_dim": 4}},
            "embedding.method: unknown value 'unifed'; did you mean 'unified'?",
        ),
        ({"model": {"name": "deepmf"}}, "did you mean 'deepfm'?"),
        (
            {
                "embedding": {"method": "int8", "embedding_dim": 4},
                "export": {"quantise": "int8"},
            },
            "export.quantise int8: the rows of embedding.method int8 are integers already",
        ),
        ({"train": {"device": "mps"}}, "'mps' is no device to train on; write cpu, cuda"),
        ({"seed": -1}, "seed"),
        (
            {"model": {"name": "din", "histories": [{"candidate": "a", "sequence": "b"}]}},
            "model.histories.0.candidate: must be a list, such as [a, b] (given 'a'); "
            "model.histories.0.sequence: must be a list, such as [a, b] (given 'b')",
        ),
        ({"features": {"user": None}}, "features.user: must be a mapping of keys (given None)"),
        ({"model": {"name": "DeepFM2"}}, "did you mean 'deepfm'?"),
        (
            {"model": {"name": "sasrec"}},
            "model sasrec recommends items; its data are a source of user, item and timestamp",
        ),
        (
            {"features": {False: {"type": "numeric"}}},
            "YAML reads no, off, yes and on as true or false: put quotes around it",
        ),
        (
            {"embedding": {"method": "unified", "budget": 100}},
            "embedding.budget: 100 is no share of the full tables, which is above 0",
        ),
        (
            {"model": {"name": "deepfm", "hiden_units": [4]}},
            "model.hiden_units: unknown key; did you mean 'hidden_units'?",
        ),
        (
            {"model": {"name": "fgcnn", "chanels": [4]}},
            "model.chanels: unknown key; did you mean 'channels'?",
        ),
        (
            {"model": {"name": "fgcnn", "classifier": {"name": "deepfm", "hiden_units": [4]}}},
            "model.classifier.hiden_units: unknown key; did you mean 'hidden_units'?",
        ),
        (
            {"model": {"name": "fgcnn", "classifier": {"name": "deepfn"}}},
            "model.classifier.name: unknown value 'deepfn'; did you mean 'deepfm'?",
        ),
        (
            {"model": {"name": "fgcnn", "classifier": {"hidden_units": [4]}}},
            "model.classifier: the key 'name' is missing",
        ),
        (
            {"model": {"name": "fgcnn", "classifier": {"name": "lr"}}},
            "model: classifier lr reads no field vectors",
        ),
        (
            {"model": {"name": "final_mlp", "gates": {"contxt1": ["user"]}}},
            "model.gates.contxt1: unknown key; did you mean 'context1'?",
        ),
        (
            {"model": {"name": "din", "histories": [{"candidates": ["item"]}]}},
            "model.histories.0.candidates: unknown key; did you mean 'candidate'?",
        ),
        ({"train": {"batch_size": 0}}, "train.batch_size: Input should be greater than 0"),
        ({"train": {"monitor": "acu"}}, "did you mean 'auc'?"),
        ({"train": {"monitor": "gauc"}}, "needs data.group"),
        ({"features": {"label": {"type": "numeric"}}}, "reads the label column 'label'"),
        ({"data": {"label": "y"}}, "give either data.train or data.source"),
        (
            {"train": {"store": "torchrec", "embedding_optimizer": "adam"}},
            "no Adam on a CPU",
        ),
        (
            {"train": {"embedding_l2": {"value": 0.1}, "embedding_gradient": "sparse"}},
            "touched_rows",
        ),
        (
            {"features": {"h": {"type": "sequence", "shares": "itme", "max_length": 3}}},
            "features.h.shares names 'itme'",
        ),
    ],
)
def test_refusals_name_key_and_remedy(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as error:
        parse_config({**TREE, **change})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(InputError) as error:
        parse_config({**TREE, "sed": 1, "train": {"patience": 0}})
    assert "sed: unknown key; did you mean 'seed'?" in str(error.value)
    assert "train.patience" in str(error.value)


def test_set_overrides_values_with_yaml_types(tmp_path: Path) -> None:
    path = _write(tmp_path, TREE)
    config = load_config(path, ["train.max_epochs=3", "model={name: fm}", "data.valid=[a, b]"])
    assert config.train.max_epochs == 3
    assert config.model.name == "fm"
    assert config.data.valid == ["a", "b"]


@pytest.mark.parametrize("override", ["train.max_epochs", "=3", "name.x=1", "seed=[1"])
def test_bad_override_is_one_clear_line(tmp_path: Path, override: str) -> None:
    with pytest.raises(InputError, match="--set"):
        load_config(_write(tmp_path, TREE), [override])


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(InputError, match="not valid YAML"):
        load_config(tmp_path / "bad.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        load_config(tmp_path / "bytes.yaml")
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(InputError, match="must be a mapping"):
        load_config(tmp_path / "list.yaml")


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("name: a\ntrain: {max_epochs: 1}\nseed: 1\ntrain: {max_epochs: 9}\n")
    with pytest.raises(InputError, match=r"the key 'train' is there twice .*line 4"):
        load_config(path)


def test_records_hold_no_passwords() -> None:
    secret = "postgresql://me:hunter2@db:5432/runs?password=hunter2"
    tree = {**TREE, "data": {**DATA, "train": "s3://KEY:hunter2@bucket/log?region=x"}}
    told = json.dumps(public(parse_config({**tree, "tracking": {"uri": secret}})))
    assert "hunter2" not in told
    assert "postgresql://db:5432/runs?password=***" in told
    assert "s3://bucket/log?region=x" in told  # which still opens, with access from elsewhere
    plain = parse_config(TREE)
    assert public(plain) == plain.model_dump(mode="json")


def test_config_is_frozen_and_round_trips() -> None:
    config = parse_config(TREE)
    with pytest.raises(ValueError, match="frozen"):
        config.train.batch_size = 1  # type: ignore[misc]
    assert parse_config(config.model_dump(mode="json")) == config


def test_fingerprint_follows_the_result_not_the_tracking() -> None:
    config = parse_config(TREE)
    elsewhere = parse_config({**TREE, "tracking": {"uri": None}})
    other = parse_config({**TREE, "seed": 1})
    assert config.fingerprint == elsewhere.fingerprint
    assert config.fingerprint != other.fingerprint
    judged = parse_config({**TREE, "export": {"tolerance": 1e-4, "verify_rows": 10}})
    assert config.fingerprint == judged.fingerprint
    rounded = parse_config({**TREE, "export": {"quantise": "int8"}})
    assert config.fingerprint != rounded.fingerprint  # or its bundle would replace that of floats


def test_schema_describes_every_part() -> None:
    schema = RunConfig.model_json_schema()
    json.dumps(schema)
    assert set(TREE) <= set(schema["properties"])
    assert schema["additionalProperties"] is False
