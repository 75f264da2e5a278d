"""The run of an item-sequence model as one frozen tree."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from recsys.compatibility import check_history
from recsys.config_errors import did_you_mean
from recsys.data.interactions_config import InteractionsConfig
from recsys.features.sequence import Sequence as SequenceFeature
from recsys.models.sequence import SEQUENCE_MODELS, SequenceModelConfig
from recsys.run_config import Run
from recsys.settings import TrainConfig
from recsys.types import FrozenConfig

Sampler = Literal["uniform", "popularity"]


class RankingConfig(FrozenConfig):
    """How lists of items are judged, and what the bundle returns.

    ``cutoffs``: each k of Recall@k and NDCG@k; the largest is how many items the bundle returns
    unless it is asked for another number. ``filter_seen``: items of the history are neither ranked
    nor returned. ``sampled``: also rank the target among 100 sampled items, as many papers do; such
    metrics are named ``sampled_uniform/recall@10`` and so on, and measured after training only.
    """

    cutoffs: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 5, 10, 20)
    filter_seen: bool = True
    sampled: tuple[Sampler, ...] = ()

    @property
    def monitors(self) -> list[str]:
        """The metrics that can choose the best epoch."""
        return [f"{name}@{k}" for name in ("ndcg", "recall") for k in self.cutoffs] + ["mrr"]

    @property
    def shown(self) -> int:
        """The k of tables and pictures: 10, or the largest if 10 is not measured."""
        return 10 if 10 in self.cutoffs else max(self.cutoffs)

    @model_validator(mode="after")
    def _each_once(self) -> RankingConfig:
        for name, values in (("cutoffs", self.cutoffs), ("sampled", self.sampled)):
            if len(set(values)) < len(values):
                raise ValueError(f"ranking.{name}: a value is given twice; give each once")
        return self


class RankingTrainConfig(TrainConfig):
    """`TrainConfig` with the defaults of a ranking: ``monitor`` is one of `RankingConfig.monitors`,
    ``batch_size`` counts sequences."""

    batch_size: PositiveInt = 256
    monitor: str = "ndcg@10"


class SequenceRunConfig(Run):
    """One complete run of a model that recommends the next item of a sequence.

    Errors: as `recsys.run_config.RunConfig`.
    """

    data: InteractionsConfig
    model: SequenceModelConfig
    train: RankingTrainConfig = RankingTrainConfig()
    ranking: RankingConfig = RankingConfig()

    @property
    def column(self) -> str:
        """The list column of raw items: that of the one feature."""
        ((name, feature),) = self.features.items()
        return feature.source_column(name)

    @property
    def max_length(self) -> int:
        """How many of the most recent items the model reads."""
        (feature,) = self.features.values()
        assert isinstance(feature, SequenceFeature), feature
        return feature.max_length

    @model_validator(mode="after")
    def _parts_fit(self) -> SequenceRunConfig:
        known = self.ranking.monitors
        if self.train.monitor not in known:
            hint = did_you_mean(self.train.monitor, known)
            raise ValueError(f"train.monitor {self.train.monitor!r} is not measured here{hint}")
        if self.train.embedding_l2.mode == "batch_aware" and self.train.embedding_l2.value > 0:
            raise ValueError(
                "train.embedding_l2.mode batch_aware weighs rows by how often training looks them "
                "up, but the loss of a sequence model touches items that are not in the batch; "
                "use mode touched_rows or all_rows"
            )
        check_history(self.features, self.model.name)
        ((name, feature),) = self.features.items()
        assert isinstance(feature, SequenceFeature), feature
        if feature.pooling != SequenceFeature.model_fields["pooling"].default:
            raise ValueError(
                f"features.{name}.pooling: model {self.model.name} reads item by item and pools "
                "nothing; remove it"
            )
        _check_text(self.model.name, self.data.items is not None, name, feature)
        if self.model.name == "bert4rec" and self.max_length < 2:
            raise ValueError(
                f"features.{name}.max_length 1: bert4rec reads one item less, as the mask takes a "
                "place; give 2 or more"
            )
        width, heads = self.embedding.embedding_dim, getattr(self.model, "heads", 1)
        if width % heads:
            raise ValueError(
                f"embedding.embedding_dim {width} is the total width of all heads and must be a "
                f"multiple of model.heads {heads}"
            )
        return self


def _check_text(model: str, given: bool, name: str, feature: SequenceFeature) -> None:
    """Errors: `ValueError` for a catalogue that the model does not read, or none for one that does,
    and for settings of ids that the catalogue decides."""
    if given != SEQUENCE_MODELS[model].reads_text:
        readers = ", ".join(key for key, kind in SEQUENCE_MODELS.items() if kind.reads_text)
        raise ValueError(
            f"model {model} knows items by their ids and reads no text; remove data.items, or "
            f"take {readers}"
            if given
            else f"model {model} reads the text of items; say where the catalogue is, data.items: "
            "{source: items.parquet, item: item, attributes: [title]}"
        )
    own = feature.id_settings() if given else ""
    if own:
        raise ValueError(f"features.{name}: {own}: the items are those of data.items; remove it")
