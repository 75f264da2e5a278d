"""The table of models, its numbers counted by hand."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from pipelines import models
from recsys.models import MODELS
from recsys.models.sequence import SEQUENCE_MODELS


@pytest.fixture(scope="module")
def result() -> models.Result:
    return models.run()


def test_every_model_is_there_and_json_holds_it(result: models.Result) -> None:
    assert list(result["models"]) == list(MODELS)
    assert list(result["sequence_models"]) == list(SEQUENCE_MODELS)
    assert json.loads(json.dumps(result)) == result


def test_parameters_by_hand(result: models.Result) -> None:
    sizes = {name: (m["network"], m["tables"]) for name, m in result["models"].items()}
    first_order = 26 * 1000 + 13 + 13  # a weight per id, per numeric field, per missing one
    table = 16 * first_order
    assert sizes["lr"] == (1, first_order)
    assert sizes["fm"] == (1, first_order + table)
    hidden = 64 * 64 + 64
    dnn = (39 * 16 * 64 + 64) + 2 * hidden + 65
    assert sizes["dnn"] == (dnn, table)
    assert sizes["deepfm"] == (dnn + 1, first_order + table)
    bottom = (13 * 16 * 64 + 64) + 2 * hidden + (64 * 16 + 16)
    top = ((27 * 26 // 2 + 16) * 64 + 64) + 2 * hidden + 65
    assert sizes["dlrm"] == (bottom + top, table)
    assert sizes["fgcnn"][1] == 2 * table


def test_models_of_sequences_by_hand(result: models.Result) -> None:
    model = result["sequence_models"]["sasrec"]
    assert model["tables"] == 64 * (10_000 + 2)
    attention = 4 * (64 * 64 + 64)
    forward = 2 * (64 * 64 + 64)
    block = attention + forward + 2 * 2 * 64  # two norms
    assert model["network"] == 50 * 64 + 2 * block + 2 * 64
    assert model["needs"] == "item sequences"


def test_only_models_that_refuse_plain_fields_need_a_history(result: models.Result) -> None:
    needs = {name: model["needs"] for name, model in result["models"].items() if model["needs"]}
    assert needs == {"din": "history"}


def test_table_shows_every_model_and_swallows_no_brackets(result: models.Result) -> None:
    out = io.StringIO()
    Console(file=out, width=200).print(models.render(result))
    text = out.getvalue()
    for name in [*MODELS, *SEQUENCE_MODELS]:
        assert f" {name} " in text
    assert "MLP([e_1, ..., e_F])" in text
    assert "Naumov et al., DLRM" in text
