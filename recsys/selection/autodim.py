"""AutoDim: the width of each feature's vectors is searched by gradient, then trained anew.

Zhao et al., "AutoDim: Field-aware Embedding Dimension Search in Recommender Systems", WWW 2021,
https://arxiv.org/abs/2006.14827.

Search: a feature has candidates of widths 2, 4, 8, .. and D, each with a table and a projection to
D (`recsys.selection.width_search`); their sum, weighted by a Gumbel softmax, is the vector. Weights
learn on train without ``search_share`` of its rows, the logits of the softmax on that share alone,
in turn (first-order DARTS). Then each feature takes the candidate of largest logit, and the model
trains from its first weights on all of train, with a table of that width and a projection to D.

The size is what comes out: **no budget is met**. ``size_penalty`` leans towards small tables; it
joins the loss as ``size_penalty * (expected floats) / (floats at full width)``, in nats.

The published temperature, 1 - 5e-5 t down to 0.01, and rate of the logits, 1e-3, are meant for some
20,000 steps; a shorter search ends nearly where it began. Here the temperature falls to 0.01 over
the steps there are, and a logit can move by ``logit_step`` an epoch.

The published search normalises each projection over the batch. That makes the vector of an id that
was hardly ever met as long as any other: noise, whose products in a factorisation machine grow with
the width, so that the narrowest candidate wins (`benchmarks/RESULTS.md`). Here candidates start
equally long instead, learn under the L2 of the vectors, and nothing is normalised.

The projections have no bias, so that a feature without ids gives a vector of zeros, and lists are
pooled before them. Only looked-up rows are needed: tables may be trained densely or row-sparse. The
search holds about twice the floats of the full table (`EmbeddingLayer.memory` counts them), and a
copy of the first weights. First-order weights, one or two floats wide, are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer, IdMap
from recsys.embeddings.combine import OneRow
from recsys.embeddings.compact import compact, described, empty
from recsys.embeddings.store import TorchStore
from recsys.selection.autodim_search import Search
from recsys.selection.method import Selection
from recsys.selection.retrain import Retrain, Snapshot, snapshot_bytes
from recsys.selection.row_owners import row_owners
from recsys.selection.width_search import FieldProjections, WidthSearch
from recsys.settings import TrainConfig
from recsys.training.phase import Phase
from recsys.types import FrozenConfig, InputError

WIDTHS = (2, 4, 8, 16, 32, 64)


class AutoDimConfig(FrozenConfig):
    """``widths``: candidates beside the full width; those that are not below it are left out.
    ``search_epochs`` all run. ``search_share`` of train is what the logits learn on.
    ``logit_step``: how far one can move in an epoch (default 0.5). ``size_penalty``: see above.

    ``paper``: the published temperature, rate of the logits and batch norm.
    """

    method: Literal["autodim"]
    widths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = WIDTHS
    search_epochs: PositiveInt = 8
    search_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    logit_step: PositiveFloat | None = None
    size_penalty: Annotated[float, Field(ge=0)] = 0.0
    paper: bool = False

    @model_validator(mode="after")
    def _can_work(self) -> AutoDimConfig:
        if self.paper and self.logit_step is not None:
            raise ValueError("logit_step has no meaning with paper: logits have the rate 1e-3")
        if len(set(self.widths)) < len(self.widths):
            raise ValueError("widths must differ")
        return self


class AutoDim(Selection):
    """See the module's docstring. Errors: `InputError` for tables in which a vector is not one row
    of its feature's own, and where no layer is wide enough."""

    Config = AutoDimConfig

    def __init__(
        self, config: AutoDimConfig, layers: Sequence[EmbeddingLayer], train: TrainConfig
    ) -> None:
        self.config = config
        self.train = train
        self.layers = list(layers)
        self.searched = [layer for layer in layers if layer.dim > min(config.widths)]
        if not self.searched or not self.searched[0].tables:
            raise InputError(
                "selection.method autodim: no layer has tables wider than selection.widths begins; "
                "raise embedding.embedding_dim or lower widths"
            )
        self._sizes: Mapping[str, Any] | None = None  # what `assume` was told
        for place, layer in enumerate(self.searched):
            self._wrap(layer, torch.Generator().manual_seed(place))

    def _wrap(self, layer: EmbeddingLayer, generator: torch.Generator) -> None:
        if not isinstance(layer.combine, OneRow) or len(layer.float_tables) != 1:
            raise InputError(
                "selection.method autodim gives each feature one row of a width of its own; use "
                "embedding.method full or hash"
            )
        rows = row_owners(layer, "autodim")
        (store,), owner = layer.float_tables, rows.owner[0]
        self.names = rows.names
        spans = []
        for i in range(len(rows.names)):
            mine = (owner == i).nonzero().squeeze(1)
            spans.append((int(mine[0]), int(mine[-1]) + 1))
            between = owner[slice(*spans[-1])]  # rows of nobody are those that no id hashes to
            assert ((between == i) | (between < 0)).all(), "rows of a feature lie together"
        owners = [
            rows.names.index(field.shares or field.name) if layer.slots(f) else -1
            for f, field in enumerate(layer.fields)
        ]
        narrow = sorted(width for width in self.config.widths if width < layer.dim)
        # each candidate starts as columns of the full table in another order of rows: the same
        # distribution, whichever the table method chose, and nothing drawn
        weight = store.weight.detach()
        body = weight[:-1] if store.padding >= 0 else weight
        columns = [weight]
        for width in narrow:
            part = torch.zeros(len(weight), width)
            order = torch.randperm(len(body), generator=generator)
            part[: len(body)] = body[order, :width]
            columns.append(part)
        wide = TorchStore(
            weight=torch.cat(columns, 1), sparse=store.sparse, zero_row=store.padding >= 0
        )
        layer.stores[0] = wide
        layer.combine = WidthSearch(
            dim=layer.dim,
            widths=[layer.dim, *narrow],
            owners=owners,
            spans=spans,
            singles=layer.singles,
            normalised=self.config.paper,
            generator=generator,
        )

    @property
    def parts(self) -> list[WidthSearch]:
        """The searches of all layers that are searched."""
        return [cast(WidthSearch, layer.combine) for layer in self.searched]

    def widths(self) -> list[dict[str, int]]:
        """For each searched layer: feature -> width, as things are now."""
        found = []
        for part, choice in zip(self.parts, self.chosen(), strict=True):
            widths = [part.widths[c] for c in choice.tolist()]
            found.append(dict(zip(self.names, widths, strict=True)))
        return found

    def expected_share(self) -> Tensor:
        """Expected floats of all searched tables, as a share of those at full width."""
        expected, full = torch.zeros(()), 0
        for part in self.parts:
            counts = torch.tensor([float(stop - start) for start, stop in part.spans])
            sizes = torch.tensor([float(width) for width in part.widths])
            weights = torch.softmax(part.logits, 1)  # (features, candidates)
            joint = counts.to(weights) @ weights @ sizes.to(weights)
            expected = expected.to(joint) + joint
            full += int(counts.sum()) * part.dim
        return expected / full

    def phases(self) -> list[Phase]:
        snapshot = Snapshot(self)
        epochs = self.train.max_epochs
        return [Search(self, snapshot), Retrain(self, snapshot, "retrain", epochs)]

    # -- what `Retrain` and `Snapshot` use ---------------------------------------------------------

    def gate_tensors(self) -> set[int]:
        return {id(t) for p in self.parts for t in (p.logits, p.temperature, p.choice)}

    def chosen(self) -> list[Tensor]:
        """For each searched layer (features,): the candidates taken, or of largest logit."""
        return [p.choice.clone() if p.fixed else p.logits.detach().argmax(1) for p in self.parts]

    def close(self, kept: Sequence[Tensor]) -> None:
        for layer, part, choice in zip(self.searched, self.parts, kept, strict=True):
            part.fix(layer.float_tables[0].weight.detach(), choice)

    def harden(self) -> None:
        for part in self.parts:
            part.enter(searching=False)

    # -- serving -----------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        widths = self.widths()
        kept = parameters = 0
        forms = []
        for layer in self.layers:
            rows, dim = layer.float_tables[0].weight.size(0), layer.dim
            rows -= layer.float_tables[0].padding >= 0
            parameters += rows * dim
            if layer not in self.searched:
                kept += rows * dim
                forms.append([described(store.finalise()) for store in layer.tables])
                continue
            place = self.searched.index(layer)
            part, sizes = self.parts[place], list(widths[place].values())
            spans = zip(part.spans, sizes, strict=True)
            kept += sum((stop - start + dim) * width for (start, stop), width in spans)
            forms.append([described(compact(self._vectors(layer)))])
        rows = self.layers[0].float_tables[0].weight.size(0)
        rows -= self.layers[0].float_tables[0].padding >= 0
        return {
            "method": "autodim",
            "rows": rows,
            "rows_kept": rows,
            "parameters": parameters,
            "parameters_kept": kept,
            "widths": widths,
            "forms": forms,
        }

    def assume(self, report: Mapping[str, Any]) -> None:
        for form, *_ in report["forms"]:
            empty(form)  # a report that makes no sense is refused here, not when weights load
        self._sizes = report

    def pack(self, model: nn.Module, id_map: IdMap) -> IdMap:
        """Tables keep the columns of their feature's width, and projections follow them."""
        widths = self.widths() if self._sizes is None else self._sizes["widths"]
        for parent in list(model.modules()):
            for name, layer in list(parent.named_children()):
                if not isinstance(layer, EmbeddingLayer):
                    continue
                if layer not in self.searched:
                    setattr(parent, name, layer.finalise())
                    continue
                place = self.searched.index(layer)
                part = self.parts[place]
                if self._sizes is None:
                    store = compact(self._vectors(layer))
                else:
                    store = empty(self._sizes["forms"][self.layers.index(layer)][0])
                final = FieldProjections(
                    dim=layer.dim,
                    owners=part.owner.tolist(),
                    widths=[widths[place][feature] for feature in self.names],
                    singles=layer.singles,
                )
                final.fill(part.projection.view(part.features, part.dim, part.dim))
                setattr(parent, name, layer.over([store], combine=final))
        return id_map

    def training_bytes(self) -> int:
        """The first weights of all tables, which the retrain starts from."""
        return snapshot_bytes(self.layers)

    def _vectors(self, layer: EmbeddingLayer) -> Tensor:
        """The part of a searched table that is served, (R, D)."""
        return layer.float_tables[0].weight.detach()[:, : layer.dim].cpu().contiguous()
