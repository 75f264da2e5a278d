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


class BundleModel(PythonModel):
    """Raw rows (B rows, the bundle's input columns) -> scores (B,) float32, or for a bundle that
    recommends a frame with lists ``items`` and ``scores``."""

    def load_context(self, context: PythonModelContext) -> None:  # called by keyword: keep the name
        self._scorer = open_scorer(context.artifacts["bundle"])

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> np.ndarray | pd.DataFrame:
        if isinstance(self._scorer, TopK):
            found = self._scorer.recommend(model_input)
            lists = {"items": found.items.to_pylist(), "scores": found.scores.to_pylist()}
            return pd.DataFrame(lists, dtype=object)
        return self._scorer.predict(model_input)


mlflow.models.set_model(BundleModel())
