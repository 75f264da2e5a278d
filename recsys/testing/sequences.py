"""Laws of item-sequence models, and the small world to try them in."""

from __future__ import annotations

import copy
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from recsys.build_sequence import SequenceAssembly, build_sequence
from recsys.bundle.topk_graph import TopKGraph
from recsys.config import parse_config
from recsys.data.interactions import SequenceFiles, write_sequences
from recsys.data.item_space import fit_sequences, raw_items, train_items
from recsys.data.sequence_data import SequenceData, Windows, sequence_data
from recsys.features import Features
from recsys.features.item_text import with_text
from recsys.models.sequence import SEQUENCE_MODELS
from recsys.sequence_config import SequenceRunConfig
from recsys.testing.world import shake
from recsys.types import Batch, FrozenConfig
from serving.encode import encode
from serving.parquet import open_source

USERS, ITEMS, LENGTH = 40, 30, 6
COLUMN = "history"


@dataclass(frozen=True)
class SequenceWorld:
    """A small log of interactions as sequences, and the modules of one run over it. ``table`` holds
    raw histories: empty ones, null ones, long ones, and some with items that train never saw;
    ``items``: the raw item of each id."""

    config: SequenceRunConfig
    files: SequenceFiles
    features: Features
    items: pa.Array
    assembly: SequenceAssembly
    table: pa.Table
    folder: Path

    @property
    def model(self) -> Any:
        """The model under test."""
        return self.assembly.model

    def shaken(self) -> Any:
        """The model in evaluation mode, with weights that show differences."""
        model: Any = shake(self.assembly.model).eval()
        if model.reads_text:
            model.encode_items()
        return model

    def raw(self, first: int = 0, count: int | None = None) -> Batch:
        """Rows of ``table`` as the exported graph takes them."""
        return encode(self.table.slice(first, count), self.features.inputs)

    def rows(self, first: int = 0, count: int | None = None) -> Batch:
        """Rows of ``table`` as the model takes them."""
        batch: Batch = self.assembly.encoder(self.raw(first, count))
        return batch

    def data(self, split: str) -> SequenceData:
        """Encoded rows of ``train`` (windows), ``valid`` or ``test``."""
        windows: Windows | None = None
        if split == "train":
            windows = self.model.windows(self.config.max_length)
        source = getattr(self.files, split)
        return sequence_data(source, self.features, self.folder / "cache", windows=windows)

    def graph(self, k: int = 5) -> TopKGraph:
        """What a bundle holds, its model `shaken`."""
        model = self.shaken()
        return TopKGraph(encoder=self.assembly.encoder, model=model, k=k, filter_seen=True).eval()


def sequence_world(
    folder: Path,
    *,
    model: FrozenConfig | dict[str, Any],
    embedding: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    seed: int = 0,
) -> SequenceWorld:
    """Builds a `SequenceWorld` in ``folder``."""
    rng = np.random.default_rng(1)
    users = np.repeat(np.arange(USERS), rng.integers(3, 3 * LENGTH, USERS))
    drawn = [f"i{item}" for item in rng.integers(0, ITEMS, len(users)) ** 2 // ITEMS]
    times = np.arange(len(users))
    pq.write_table(pa.table({"user": users, "item": drawn, "at": times}), folder / "log.parquet")
    plain = model.model_dump(mode="json") if isinstance(model, FrozenConfig) else model
    text = {}
    if SEQUENCE_MODELS[plain["name"]].reads_text:
        text["items"] = _write_catalogue(folder / "items.parquet")
    config = parse_config(
        {
            "name": "sequences",
            "seed": seed,
            "data": {
                "source": "log.parquet",
                "user": "user",
                "item": "item",
                "timestamp": "at",
                "split": {"method": "leave_one_out"},
                **text,
            },
            "features": {COLUMN: {"type": "sequence", "max_length": LENGTH}},
            "embedding": embedding or {"method": "full", "embedding_dim": 8},
            "model": plain,
            "train": {"batch_size": 16, "learning_rate": 0.01, **(train or {})},
            "tracking": {"uri": None},
        }
    )
    assert isinstance(config, SequenceRunConfig), f"{config.model} is no sequence model"
    source = open_source("log.parquet", root=str(folder))
    files = write_sequences(source, config.data, COLUMN, folder / "sequences")
    features = fit_sequences(config.features, files.train)
    items = train_items(files.catalogue)
    if config.data.items is not None:
        features, items = with_text(features, config.data.items, str(folder))
    items = raw_items(items, features)
    lists = [[f"i{i}" for i in rng.integers(0, ITEMS + 9, n)] for n in rng.integers(0, 15, 46)]
    table = pa.table({COLUMN: pa.array([*lists[:3], [], None, *lists[3:]], pa.list_(pa.string()))})
    assembly = build_sequence(config, features)
    return SequenceWorld(config, files, features, items, assembly, table, folder)


def _write_catalogue(path: Path) -> dict[str, Any]:
    """Items with unequal words, some of them seen by nobody; returns ``data.items``."""
    words = ["red", "green", "old", "new", "fast"]
    names = [f"i{i}" for i in range(ITEMS + 5)]
    titles = [f"{words[i % 5]} thing {i // 2}" for i in range(len(names))]
    kinds = [words[i % 3 : i % 3 + i % 4] for i in range(len(names))]
    pq.write_table(pa.table({"item": names, "title": titles, "kind": kinds}), path)
    return {"source": path.name, "item": "item", "attributes": ["title", "kind"]}


def check_any_batch_size(world: SequenceWorld) -> None:
    """0, 1 and 5 rows, empty histories among them, give finite queries of shape (B, D)."""
    model = world.model.eval()
    for first, count in ((0, 0), (0, 1), (3, 1), (0, 5)):
        queries = model(world.rows(first, count))
        assert queries.shape == (count, model.item_vectors().shape[1])
        assert torch.isfinite(queries).all()


def check_a_row_asks_the_same_alone(world: SequenceWorld) -> None:
    """A query depends neither on the rows beside it nor on their lengths."""
    model = world.shaken()
    together = model(world.rows(0, 8))
    alone = torch.cat([model(world.rows(i, 1)) for i in range(8)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def check_unknown_items_are_passed_over(world: SequenceWorld) -> None:
    """Items that training did not know change no query, wherever they stand; a history of nothing
    else, or of nothing at all, asks for what is popular: no query."""
    model, first = world.shaken(), world.model.specials
    known = torch.tensor([[first, first + 2, first + 1, first + 3]])
    mixed = torch.tensor([[1, first, 0, first + 2, first + 1, 1, first + 3, 1]])
    nothing = torch.tensor([[1, 0, 1]])
    with torch.no_grad():
        asked, same, none, empty = (
            model(Batch(torch.zeros(1, 0), torch.zeros(1, 0), [ids], torch.tensor([[length]])))
            for ids, length in ((known, 4), (mixed, 8), (nothing, 3), (nothing, 0))
        )
    torch.testing.assert_close(asked, same, rtol=0, atol=1e-6)
    assert asked.any()
    assert not none.any()
    assert not empty.any()


def check_torch_export(world: SequenceWorld) -> None:
    """`torch.export` with any number of rows and any length gives the eager queries."""
    model, batch = world.shaken(), world.rows()
    rows, length = torch.export.Dim("rows", min=1), torch.export.Dim("length", min=1)
    shapes = (Batch({0: rows}, {0: rows}, [{0: rows, 1: length}], {0: rows}),)  # type: ignore[arg-type,list-item]
    exported = torch.export.export(model, (batch,), dynamic_shapes=shapes).module()
    for part in (batch, world.rows(0, 3)):
        with torch.no_grad():
            torch.testing.assert_close(exported(part), model(part), rtol=1e-5, atol=1e-5)


def check_items_by_block(world: SequenceWorld) -> None:
    """Item vectors are those of the catalogue, block by block, and there is a bias for each."""
    model = world.shaken()
    vectors = model.item_vectors()
    assert vectors.shape[0] == len(model.item_bias()) == world.features.fields[0].num_ids
    blocks = [model.catalogue(start, min(7, len(vectors) - start)) for start in _starts(vectors)]
    torch.testing.assert_close(torch.cat(blocks), vectors, atol=1e-6, rtol=0)


def check_every_parameter_gets_a_gradient(world: SequenceWorld) -> None:
    """No dead weights: some training batches reach every parameter."""
    model = world.shaken().train()
    torch.manual_seed(0)
    for batch, target in world.data("train").batches(16):
        loss = model.loss(batch, target)
        assert loss.shape == ()
        assert torch.isfinite(loss)
        loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} gets no gradient"
        grad = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
        assert grad.abs().sum() > 0, f"{name} gets a zero gradient"


def check_same_seed_same_weights(world: SequenceWorld) -> None:
    """Building twice gives equal weights; another seed gives others."""
    first, again = (build_sequence(world.config, world.features).model for _ in range(2))
    changed = world.config.model_copy(update={"seed": world.config.seed + 1})
    other = build_sequence(changed, world.features).model
    assert all(map(torch.equal, _tensors(first), _tensors(again)))
    assert not all(map(torch.equal, _tensors(first), _tensors(other)))


def check_script_equals_eager(world: SequenceWorld) -> None:
    """The scripted graph, saved and loaded, recommends as the eager one at any batch size."""
    module = world.graph()
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    buffer.seek(0)
    scripted = torch.jit.load(buffer)
    with torch.inference_mode():
        for count in (0, 1, 2, 7, 48):
            raw = world.raw(0, count)
            for own, other in zip(module(*raw), scripted(*raw), strict=True):
                torch.testing.assert_close(other, own, atol=1e-6, rtol=1e-6)


def check_weights_round_trip(world: SequenceWorld) -> None:
    """A state dict moved into a fresh build gives equal queries and items."""
    model = world.shaken()
    changed = world.config.model_copy(update={"seed": 99})
    fresh: Any = build_sequence(changed, world.features).model.eval()
    fresh.load_state_dict(copy.deepcopy(model.state_dict()))
    assert torch.equal(fresh(world.rows()), model(world.rows()))
    assert torch.equal(fresh.item_vectors(), model.item_vectors())
    assert torch.equal(fresh.item_bias(), model.item_bias())


def check_finalise_keeps_outputs(world: SequenceWorld) -> None:
    """The serving form of the tables gives equal queries and items, in no more bytes."""
    model = world.shaken()
    before, items, size = model(world.rows()), model.item_vectors(), world.assembly.memory()
    final: Any = world.assembly.finalise()
    torch.testing.assert_close(final.model(world.rows()), before, atol=1e-6, rtol=0)
    torch.testing.assert_close(final.model.item_vectors(), items, atol=1e-6, rtol=0)
    assert final.memory().stored_bytes <= size.stored_bytes


def _starts(vectors: Tensor) -> range:
    return range(0, len(vectors), 7)


def _tensors(model: nn.Module) -> list[Tensor]:
    return list(model.state_dict().values())


SEQUENCE_LAWS = [
    check_unknown_items_are_passed_over,
    check_torch_export,
    check_any_batch_size,
    check_a_row_asks_the_same_alone,
    check_items_by_block,
    check_every_parameter_gets_a_gradient,
    check_same_seed_same_weights,
    check_script_equals_eager,
    check_weights_round_trip,
    check_finalise_keeps_outputs,
]
