"""FGCNN: feature generation by a convolutional network, in front of any classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer
from recsys.layers import FeatureGeneration
from recsys.layers.losses import cross_entropy
from recsys.models.classifiers import CLASSIFIERS, ClassifierConfig
from recsys.models.deep import Widths
from recsys.models.pnn import PNNConfig
from recsys.types import Batch, FieldSpec, FrozenConfig, Target


class FGCNNConfig(FrozenConfig):
    """One entry per block in ``channels``, ``kernel_heights`` (odd), ``pooling`` and
    ``recombined`` (new features per row of a block); see `FeatureGeneration`.

    ``conv_batch_norm``: between convolution and tanh, as in FuxiCTR; not in the paper.
    ``classifier``: any model that reads field vectors; IPNN, the paper's, by default.
    """

    name: Literal["fgcnn"] = "fgcnn"
    channels: Widths = (14, 16, 18)
    kernel_heights: Widths = (7, 7, 7)
    pooling: Widths = (2, 2, 2)
    recombined: Widths = (2, 2, 2)
    conv_batch_norm: bool = True
    classifier: ClassifierConfig = PNNConfig()

    @model_validator(mode="after")
    def _can_work(self) -> FGCNNConfig:
        for key in ("kernel_heights", "pooling", "recombined"):
            if len(getattr(self, key)) != len(self.channels):
                raise ValueError(
                    f"{key} has {len(getattr(self, key))} entries and channels "
                    f"{len(self.channels)}; give one of each per block"
                )
        for height in self.kernel_heights:
            if height % 2 == 0:
                raise ValueError(
                    f"kernel_heights {height} has no middle row, so that its output would lose a "
                    f"field; use the odd height {height - 1 or 1} or {height + 1}"
                )
        if "embedding" not in CLASSIFIERS[self.classifier.name].tables(self.classifier, 1):
            raise ValueError(
                f"classifier {self.classifier.name} reads no field vectors, so that new features "
                "cannot reach it; choose another, such as pnn or deepfm"
            )
        return self


class Augmented(nn.Module):
    """Stands in for the embedding layer of a classifier: the field vectors, then the new ones.

    **Shape** batch of B rows -> ``(B, F + M, D)``.
    """

    def __init__(
        self, *, embedding: EmbeddingLayer, generation: EmbeddingLayer, generate: nn.Module
    ) -> None:
        super().__init__()
        self.dim = embedding.dim
        self.embedding = embedding
        self.generation = generation
        self.generate = generate

    def forward(self, batch: Batch) -> Tensor:
        new = self.generate(self.generation(batch))  # (B, M, D)
        return torch.cat([self.embedding(batch), new], dim=1)  # (B, F + M, D)


class FGCNN(nn.Module):
    """A classifier that is handed new features beside the fields.

    ``logit = classifier([E(x), generate(E'(x))])`` with two embedding tables: E of the classifier
    and E' of the generator, so that the gradients of one do not disturb the other. Liu et al.,
    Feature Generation by Convolutional Neural Network, WWW 2019, https://arxiv.org/abs/1904.04447.

    The classifier is any of `CLASSIFIERS` with its own settings. It sees the new features as
    fields of kind ``generated`` behind the others; further layers that it asks for, such as
    first-order weights, cover the raw fields only. Neighbours in the config are neighbours of the
    convolution: keep related features side by side.

    **Shape** batch of B rows -> logits ``(B,)``.
    """

    Config = FGCNNConfig

    def __init__(
        self,
        config: FGCNNConfig,
        fields: Sequence[FieldSpec],
        layers: Mapping[str, EmbeddingLayer],
    ) -> None:
        super().__init__()
        generate = FeatureGeneration(
            num_fields=len(fields),
            dim=layers["generation"].dim,
            output_dim=layers["embedding"].dim,
            channels=config.channels,
            heights=config.kernel_heights,
            pooling=config.pooling,
            recombined=config.recombined,
            batch_norm=config.conv_batch_norm,
        )
        new = [FieldSpec(f"generated {i + 1}", "generated") for i in range(generate.features)]
        vectors = Augmented(
            embedding=layers["embedding"], generation=layers["generation"], generate=generate
        )
        further = {name: layer for name, layer in layers.items() if name != "generation"}
        self.classifier = CLASSIFIERS[config.classifier.name](
            config.classifier, (*fields, *new), {**further, "embedding": vectors}
        )

    @staticmethod
    def tables(config: FGCNNConfig, embedding_dim: int) -> dict[str, int]:
        """The embedding layers it asks for, name -> width."""
        asked: dict[str, int] = CLASSIFIERS[config.classifier.name].tables(
            config.classifier, embedding_dim
        )
        assert "generation" not in asked, config.classifier.name
        return {**asked, "generation": embedding_dim}

    @staticmethod
    def check(config: FGCNNConfig, fields: Sequence[FieldSpec]) -> None:
        """Errors: `ValueError` for fields that the classifier cannot work with."""
        check = getattr(CLASSIFIERS[config.classifier.name], "check", None)
        if check is not None:
            check(config.classifier, fields)

    @staticmethod
    def example() -> FGCNNConfig:
        """A tiny config for the laws."""
        return FGCNNConfig(
            channels=(3, 4),
            kernel_heights=(3, 3),
            pooling=(2, 2),
            recombined=(2, 1),
            classifier=PNNConfig(hidden_units=(8, 8)),
        )

    def loss(self, batch: Batch, target: Target) -> Tensor:
        """The classifier's own loss, or the weighted cross-entropy of its logits: a scalar."""
        own: Any = getattr(self.classifier, "loss", None)
        if own is not None:
            loss: Tensor = own(batch, target)
            return loss
        return cross_entropy(self(batch), target.label, target.weight)

    def forward(self, batch: Batch) -> Tensor:
        logits: Tensor = self.classifier(batch)  # (B,)
        return logits
