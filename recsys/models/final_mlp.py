"""FinalMLP: two MLPs, each with its own view of the features, fused by a bilinear form."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import List, Literal

from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer
from recsys.layers import BilinearFusion, FeatureGate
from recsys.models.deep import DeepConfig
from recsys.types import Batch, FieldSpec, FrozenConfig, InputError


class GateConfig(FrozenConfig):
    """Feature selection. ``hidden_units`` of the two gate networks; ``context1``, ``context2``:
    the features that each reads, none for a learned vector in their place."""

    hidden_units: tuple[PositiveInt, ...] = (64,)
    context1: tuple[str, ...] = ()
    context2: tuple[str, ...] = ()


class FinalMLPConfig(FrozenConfig):
    """``mlp1``, ``mlp2``: the streams (keys of `DeepConfig`); ``heads`` of the fusion must divide
    the last width of both; ``gates``: feature selection, ``null`` for none."""

    name: Literal["final_mlp"] = "final_mlp"
    mlp1: DeepConfig = DeepConfig()
    mlp2: DeepConfig = DeepConfig()
    heads: PositiveInt = 1
    gates: GateConfig | None = GateConfig()

    @model_validator(mode="after")
    def _heads_fit(self) -> FinalMLPConfig:
        for name, mlp in (("mlp1", self.mlp1), ("mlp2", self.mlp2)):
            if mlp.hidden_units[-1] % self.heads:
                raise ValueError(
                    f"the last of {name}.hidden_units, {mlp.hidden_units[-1]}, must be a multiple "
                    f"of heads {self.heads}"
                )
        return self


class FinalMLP(nn.Module):
    """Two MLPs on differently gated field vectors ``x``, fused by `BilinearFusion`.

    ``logit = fusion(MLP_1(x * g_1), MLP_2(x * g_2))`` with `FeatureGate` ``g_i``. Mao et al.,
    FinalMLP, AAAI 2023, https://arxiv.org/abs/2304.00902, as FuxiCTR has it: gate networks have
    neither batch norm nor dropout, and read embeddings of their own. Deviations:

    - these embeddings are one more layer of the model, so a field that both gates read has one
      vector, not two, and fields that no gate reads hold rows that stay unused (they are counted
      in the memory report, and the L2 on all rows draws them to zero);
    - a learned context does not start from zeros, see `LearnedContext`.

    **Shape** batch of B rows -> logits ``(B,)``. Errors: `InputError` for a context that is no
    feature.
    """

    Config = FinalMLPConfig

    def __init__(
        self,
        config: FinalMLPConfig,
        fields: Sequence[FieldSpec],
        layers: Mapping[str, EmbeddingLayer],
    ) -> None:
        super().__init__()
        self.embedding = layers["embedding"]
        self.context = nn.ModuleList([layers["context"]] if "context" in layers else [])
        dim = layers["embedding"].dim
        width = len(fields) * dim
        # Optional parts are lists of none or one: the graph holds no dead branch.
        self.gates = nn.ModuleList()
        if config.gates is not None:
            names = {"context1": config.gates.context1, "context2": config.gates.context2}
            for key, context in names.items():
                places = _places(context, fields, key)
                self.gates.append(
                    FeatureGate(
                        places=places,
                        dim=layers["context"].dim if places else dim,
                        hidden_units=config.gates.hidden_units,
                        output_dim=width,
                    )
                )
        self.mlp1 = config.mlp1.mlp(width, output_dim=None)
        self.mlp2 = config.mlp2.mlp(width, output_dim=None)
        self.fusion = BilinearFusion(
            x_dim=self.mlp1.output_dim, y_dim=self.mlp2.output_dim, heads=config.heads
        )

    @staticmethod
    def tables(config: FinalMLPConfig, embedding_dim: int) -> dict[str, int]:
        """The embedding layers it asks for, name -> width."""
        tables = {"embedding": embedding_dim}
        if config.gates is not None and (config.gates.context1 or config.gates.context2):
            tables["context"] = embedding_dim
        return tables

    @staticmethod
    def example() -> FinalMLPConfig:
        """A tiny config for the laws."""
        return FinalMLPConfig(
            mlp1=DeepConfig(hidden_units=(16,)),
            mlp2=DeepConfig(hidden_units=(8,)),
            heads=2,
            gates=GateConfig(hidden_units=(8,)),
        )

    @staticmethod
    def check(config: FinalMLPConfig, fields: Sequence[FieldSpec]) -> None:
        """Refuses, when a config is read, contexts that are no features (`InputError`)."""
        if config.gates is not None:
            _places(config.gates.context1, fields, "context1")
            _places(config.gates.context2, fields, "context2")

    def forward(self, batch: Batch) -> Tensor:
        x = self.embedding(batch)  # (B, F, D)
        flat = x.flatten(1)  # (B, F*D)
        vectors = x
        for layer in self.context:
            vectors = layer(batch)  # (B, F, D)
        views: List[Tensor] = []
        for gate in self.gates:
            views.append(flat * gate(vectors))  # (B, F*D)
        if len(views) == 0:
            views = [flat, flat]
        return self.fusion(self.mlp1(views[0]), self.mlp2(views[1]))  # (B,)


def _places(names: Sequence[str], fields: Sequence[FieldSpec], key: str) -> list[int]:
    """Where the named fields are in the output of an embedding layer."""
    known = [field.name for field in fields if field.kind != "generated"]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"features: {', '.join(known)}"
            raise InputError(f"model.gates.{key}: {name!r} is no feature; {hint}")
    return [known.index(name) for name in names]
