"""From the config of a sequence run and fitted features to its modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from recsys.build import embedding_layers, finalise_layers, table_memory
from recsys.data.item_space import special_ids
from recsys.embeddings import EmbeddingLayer, build_embeddings
from recsys.features import FeatureEncoder, Features
from recsys.features.item_text import ItemText, item_text
from recsys.models.sequence import SEQUENCE_MODELS
from recsys.models.sequence.items import ItemModel
from recsys.sequence_config import SequenceRunConfig
from recsys.settings import TrainConfig
from recsys.types import FieldSpec, InputError, MemoryReport


@dataclass(frozen=True)
class SequenceAssembly:
    """The modules of one run: raw `Batch` -> ``encoder`` -> ``model`` -> query vectors (B, D).

    There is no id map: the model looks items up by encoded id itself.
    """

    encoder: FeatureEncoder
    model: ItemModel

    @property
    def layers(self) -> list[EmbeddingLayer]:
        """Every embedding layer of the model."""
        return embedding_layers(self.model)

    def memory(self) -> MemoryReport:
        """Sizes of all tables."""
        return table_memory(self.model)

    def finalise(self) -> SequenceAssembly:
        """Puts the serving form of every embedding layer into the model; outputs stay equal."""
        finalise_layers(self.model)
        self.model.finalise()
        return self


def build_sequence(config: SequenceRunConfig, features: Features) -> SequenceAssembly:
    """Builds all modules from ``config.seed``: same config and features, same weights.

    Errors: `InputError` for a budget that the table method cannot serve, or serves with vectors
    whose width the model's heads do not divide.
    """
    torch.manual_seed(config.seed)
    model = sequence_model(
        config.model,
        features.fields[0],
        embedding=config.embedding,
        train=config.train,
        specials=special_ids(features),
        text=item_text(features),
    )
    return SequenceAssembly(features.encoder(), model)


def sequence_model(
    config: Any,
    field: FieldSpec,
    *,
    embedding: Any,
    train: TrainConfig,
    specials: int,
    text: ItemText | None = None,
) -> ItemModel:
    """The model of ``config`` over the items of ``field``, with fresh tables as ``embedding`` says.

    ``specials``: see `ItemModel`. ``text``: of the items, for a model that reads it. Errors: see
    `build_sequence`.
    """
    kind = SEQUENCE_MODELS[config.name]
    looked_up = _looked_up(config, field, text)
    dims = kind.tables(config, embedding.embedding_dim)
    _, layers = build_embeddings(embedding, [looked_up], dims, train=train)
    (width,), heads = [layer.dim for layer in layers.values()], getattr(config, "heads", 1)
    if width % heads:  # a budget may have narrowed them
        raise InputError(
            f"model.heads {heads} must divide the width of item vectors, which embedding.budget "
            f"makes {width}; give another of the two"
        )
    more = {} if text is None else {"text": text}
    model: ItemModel = kind(config, field, layers, specials=specials, **more)
    return model


def table_field(config: SequenceRunConfig, features: Features) -> FieldSpec:
    """The field whose ids are the rows of the model's table: the items, or the words of their
    text."""
    return _looked_up(config.model, features.fields[0], item_text(features))


def _looked_up(config: Any, items: FieldSpec, text: ItemText | None) -> FieldSpec:
    if text is None:
        return items
    field: FieldSpec = SEQUENCE_MODELS[config.name].word_field(config, text)
    return field
