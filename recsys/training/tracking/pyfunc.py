"""The MLflow model of a bundle, logged as code ("models from code").

MLflow runs this file when it loads the model, in a process that has `serving` (it travels with the
model) but neither `recsys` nor anything pickled.
"""

from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext

from serving.topk import TopK, open_scorer

EXACT = 2.0**53
"""Beyond this a float64 no longer holds every integer."""


class BundleModel(PythonModel):
    """Raw rows (B rows, the bundle's input columns) -> scores (B,) float32, or for a bundle that
    recommends a frame with lists ``items`` and ``scores``."""

    def load_context(self, context: PythonModelContext) -> None:  # called by keyword: keep the name
        self._scorer = open_scorer(context.artifacts["bundle"])
        self._integers = [
            field.column
            for field in self._scorer.inputs
            if field.kind == "id" and field.dtype == "int"
        ]

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> np.ndarray | pd.DataFrame:
        rows = self._with_integers(model_input)
        if isinstance(self._scorer, TopK):
            found = self._scorer.recommend(rows)
            lists = {"items": found.items.to_pylist(), "scores": found.scores.to_pylist()}
            return pd.DataFrame(lists, dtype=object)
        return self._scorer.predict(rows)

    def _with_integers(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Integers with nulls, which JSON requests deliver as floats, as integers again.

        Only where that is certain: anything else is left for the scorer to refuse.
        """
        exact = {
            column: rows[column].astype("Int64")
            for column in self._integers
            if column in rows
            and rows[column].dtype == np.float64
            and (rows[column].isna() | (rows[column].abs() < EXACT) & (rows[column] % 1 == 0)).all()
        }
        return rows.assign(**exact) if exact else rows


mlflow.models.set_model(BundleModel())
