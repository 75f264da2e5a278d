"""The run of a CTR model as one frozen tree, and what every kind of run has."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from recsys.compatibility import check_parts, check_tables
from recsys.config_errors import did_you_mean
from recsys.embeddings import EmbeddingConfig
from recsys.features import FeatureConfig
from recsys.models import ModelConfig
from recsys.selection import SelectionConfig
from recsys.settings import DataConfig, ExportConfig, TrackingConfig, TrainConfig
from recsys.types import FrozenConfig, InputError
from serving.bundle import MANIFEST, file_digest

MONITORS = ("auc", "gauc", "pr_auc", "logloss", "ne", "ece")


class Run(FrozenConfig):
    """The keys of every run; ``data``, ``model`` and ``train`` are more precise in each kind."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    data: FrozenConfig
    features: Annotated[dict[str, FeatureConfig], Field(min_length=1)]
    embedding: EmbeddingConfig
    model: FrozenConfig
    train: TrainConfig = TrainConfig()
    tracking: TrackingConfig = TrackingConfig()
    export: ExportConfig = ExportConfig()

    @model_validator(mode="after")
    def _tables_fit(self) -> Self:
        check_tables(self.embedding, self.train, self.export)
        return self

    @property
    def fingerprint(self) -> str:
        """Digest of everything that decides what the run gives: not of where it is tracked, nor of
        how its bundle is verified.

        Keys that are not set do not count, so that a new optional key leaves old digests alone.
        A bundle that weights start from counts by its content, not by its path. Errors:
        `InputError` if there is none.
        """
        tree = self.model_dump(
            mode="json",
            exclude={"tracking": True, "export": {"tolerance": True, "verify_rows": True}},
            exclude_none=True,
        )
        if not tree["export"]:
            del tree["export"]
        if self.train.warm_start is not None:
            tree["train"]["warm_start"] = _bundle_digest(self.train.warm_start)
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _bundle_digest(path: str) -> str:
    """Digest of a bundle's manifest, which holds the digests of all its files."""
    try:
        return file_digest(Path(path) / MANIFEST)
    except OSError as error:
        raise InputError(
            f"train.warm_start {path}: no bundle there ({error.strerror}); give the folder of a "
            "bundle, from the working folder, or remove the key"
        ) from None


class RunConfig(Run):
    """One complete run of a CTR model.

    Errors: unknown keys, wrong values and parts that cannot work together are refused when the
    config is read, before any data is touched.
    """

    data: DataConfig
    model: ModelConfig
    selection: SelectionConfig | None = None

    @model_validator(mode="after")
    def _parts_fit(self) -> RunConfig:
        if self.train.monitor not in MONITORS:
            hint = did_you_mean(self.train.monitor, MONITORS)
            raise ValueError(f"train.monitor {self.train.monitor!r} is no metric{hint}")
        if self.train.monitor == "gauc" and self.data.group is None:
            raise ValueError("train.monitor gauc needs data.group, the column of the user")
        check_parts(self.features, self.model, self.train)
        if self.selection is not None and self.train.store == "torchrec":
            raise ValueError(
                "train.store torchrec keeps optimiser state inside its tables, but selection "
                "starts every phase with fresh optimisers; set train.store torch"
            )
        for name, feature in self.features.items():
            column = getattr(feature, "column", None) or name
            if column == self.data.label:
                raise ValueError(f"features.{name} reads the label column {column!r}; remove it")
            shares = getattr(feature, "shares", None)
            if shares is not None and (shares not in self.features or shares == name):
                others = [other for other in self.features if other != name]
                raise ValueError(
                    f"features.{name}.shares names {shares!r}, which is no other feature"
                    f"{did_you_mean(shares, others)}"
                )
        return self
