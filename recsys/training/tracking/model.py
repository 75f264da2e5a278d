"""A bundle as an MLflow model: signature, code, requirements."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

import serving
from recsys.training.tracking.environment import model_requirements
from serving.bundle import open_bundle
from serving.encode import InputField
from serving.topk import TopK

if TYPE_CHECKING:
    import pandas as pd

_TYPES = {
    "text": "string",
    "int": "long",
    "bool": "boolean",
    "float": "double",
    "binary": "binary",
    "timestamp": "datetime",
}
_KINDS = {"text": "OTU", "bool": "bO", "float": "f", "binary": "O", "timestamp": "M"}
"""Kinds of numpy types that MLflow accepts for each."""
_LISTED = frozenset({"text", "bool", "float"})
"""What lists may hold for MLflow: not times, nor integers beside nulls."""


def log_model(
    uri: str, run_id: str, bundle: Path, example: pd.DataFrame, register: str | None
) -> str:
    """Logs the bundle folder as a pyfunc model of run ``run_id``; returns the model's URI.

    "Models from code": the model is `pyfunc.py`, the `serving` package and the bundle's own files,
    so that it loads without `recsys` and with pickle forbidden. MLflow's process-wide tracking
    address becomes ``uri``: its model functions know no other way.
    """
    import mlflow
    from mlflow.models import Model

    opened = open_bundle(bundle)
    inputs = opened.inputs
    contract = signature(inputs, example, task=opened.task)
    example = plain_example(inputs, example)
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient(uri)
    run = client.get_run(run_id)
    # Made first and by hand: MLflow would put it in the experiment "Default".
    model = client.create_logged_model(
        run.info.experiment_id,
        name="bundle",
        source_run_id=run_id,
        params=run.data.params,
        model_type="pyfunc",
    )
    info = Model.log(
        artifact_path=None,
        flavor=mlflow.pyfunc,
        model_id=model.model_id,
        run_id=run_id,
        python_model=str(Path(__file__).with_name("pyfunc.py")),
        artifacts={"bundle": str(bundle)},
        code_paths=[str(Path(serving.__path__[0]))],
        pip_requirements=model_requirements(),
        signature=contract,
        input_example=example,
    )
    if register is not None:
        _register(client, register, info.model_uri, run_id, model.model_id)
    return str(info.model_uri)


def _register(client: Any, name: str, uri: str, run_id: str, model_id: str) -> None:
    """A new version of registered model ``name``. By the client: the function MLflow offers
    for this prints what it does."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    client.create_model_version(name, uri, run_id=run_id, model_id=model_id)


def plain_example(inputs: Sequence[InputField], example: pd.DataFrame) -> pd.DataFrame:
    """The columns that the bundle takes, in types that MLflow can write down: categories as their
    values, lists as lists, decimals as floats, times without zone in UTC."""
    import pandas as pd

    columns: dict[str, Any] = {}
    for field in inputs:
        values = example[field.column].reset_index(drop=True)
        if isinstance(values.dtype, pd.CategoricalDtype):
            values = values.astype(values.cat.categories.dtype)
        if field.kind == "ids":
            # An absent list scores as an empty one, and MLflow's arrays cannot be null.
            cells = [[] if cell is None else list(map(_python, cell)) for cell in values]
            values = pd.Series(cells, dtype=object)
        elif isinstance(values.dtype, pd.DatetimeTZDtype):
            values = values.dt.tz_convert("UTC").dt.tz_localize(None)
        elif field.kind == "float" and values.dtype == object:
            values = values.astype(float)
        columns[field.column] = values
    return pd.DataFrame(columns)


def _python(value: Any) -> Any:
    return int(value) if isinstance(value, np.integer) else value


def signature(inputs: Sequence[InputField], example: pd.DataFrame, task: str = "score") -> Any:
    """The ``mlflow.models.ModelSignature`` of a bundle, in the types that ``example``, raw rows,
    shows. What MLflow would refuse although the scorer takes it is of any type there."""
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec
    from mlflow.types.schema import AnyType, Array, DataType

    columns = {}
    raw, example = example, plain_example(inputs, example)
    for field in inputs:
        values = example[field.column]
        kind: Any = DataType[_TYPES[field.dtype]]
        if field.kind == "ids":
            kind = Array(kind) if field.dtype in _LISTED else AnyType()
        elif (
            field.dtype == "int"  # beside nulls, which these few rows may not show, they are floats
            or isinstance(raw[field.column].dtype, pd.CategoricalDtype)
            or values.dtype.kind not in _KINDS[field.dtype]  # decimals and dates are objects
        ):
            kind = AnyType()
        # an absent list is an empty one to the scorer
        columns[field.column] = ColSpec(kind, field.column, required=field.kind != "ids")
    outputs = Schema([TensorSpec(np.dtype(np.float32), (-1,))])
    if task == TopK.task:  # items are of the type that histories hold
        items = Array(DataType[_TYPES[inputs[0].dtype]])
        outputs = Schema([ColSpec(items, "items"), ColSpec(Array(DataType.float), "scores")])
    return ModelSignature(inputs=Schema(list(columns.values())), outputs=outputs)


def dataset_schema(schema: pa.Schema) -> dict[str, Any]:
    """An Arrow schema as MLflow's page of a dataset shows it."""
    return {"mlflow_colspec": [_colspec(field) for field in schema]}


def _colspec(field: pa.Field[Any]) -> dict[str, Any]:
    kind = field.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        items = {"type": _scalar(kind.value_type)}
        return {"name": field.name, "type": "array", "items": items, "required": not field.nullable}
    return {"name": field.name, "type": _scalar(kind), "required": not field.nullable}


def _scalar(kind: pa.DataType) -> str:
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_integer(kind):
        return "long" if kind.bit_width > 32 else "integer"
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "double"
    if pa.types.is_temporal(kind):
        return "datetime"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return "binary"
    return "string"
