"""A small model over raw batches, with all that an exported graph has: hashing of ids, nulls,
normalised floats, bags, an embedding table, layers in the state they have in serving."""

from typing import List

import pyarrow as pa
import torch
from torch import Tensor, nn

from serving.encode import NULL_ID, Batch, InputField

INPUTS = (
    InputField("price", "price", "float", "float"),
    InputField("user", "user", "id", "text"),
    InputField("item", "item", "id", "int"),
    InputField("tags", "tags", "ids", "text", 3),
)


class Encoder(nn.Module):
    """Ids to [0, 97), null to 0; floats standardised, missing to -1."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([2.0], dtype=torch.float64))
        self.null: int = NULL_ID

    def reduce(self, ids: Tensor) -> Tensor:
        return torch.where(ids == self.null, torch.zeros_like(ids), ids.remainder(96) + 1)

    def forward(self, raw: Batch) -> Batch:
        floats = torch.nan_to_num(raw.floats - self.mean, nan=-1.0).to(torch.float32)  # (B, K)
        lists: List[Tensor] = [self.reduce(ids) for ids in raw.lists]
        return Batch(self.reduce(raw.ids), floats, lists, raw.lengths)


class IdMap(nn.Module):
    """Each field's block of rows, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.tensor([0, 97]))

    def forward(self, batch: Batch) -> Batch:
        lists: List[Tensor] = [ids + 2 * 97 for ids in batch.lists]
        return Batch(batch.ids + self.offset, batch.floats, lists, batch.lengths)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3 * 97, 4)
        self.top = nn.Sequential(nn.Linear(13, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, batch: Batch) -> Tensor:
        rows = batch.ids.size(0)
        ids = batch.lists[0]  # (B, L)
        valid = torch.arange(ids.size(1)).unsqueeze(0) < batch.lengths[:, :1]  # (B, L)
        bag = (self.table(ids) * valid.unsqueeze(2)).sum(1)  # (B, D)
        singles = self.table(batch.ids).reshape(rows, 8)  # (B, 2 * D)
        return self.top(torch.cat([singles, bag, batch.floats], 1)).squeeze(1)  # (B,)


def parts() -> tuple[Model, Encoder, IdMap]:
    """The three modules in the order `export` takes them, always with the same weights."""
    torch.manual_seed(7)
    return Model(), Encoder(), IdMap()


def table(rows: int = 50) -> pa.Table:
    """Raw rows with nulls, an extra column and every tenth list null."""
    return pa.table(
        {
            "key": [f"k{i}" for i in range(rows)],
            "price": [None if i % 7 == 3 else i / 10 for i in range(rows)],
            "user": [None if i % 5 == 2 else f"user {i % 11}" for i in range(rows)],
            "item": pa.array([None if i % 9 == 4 else i * 37 for i in range(rows)], pa.int32()),
            "tags": pa.array(
                [None if i % 10 == 9 else [f"t{j}" for j in range(i % 6)] for i in range(rows)],
                pa.list_(pa.string()),
            ),
        },
        schema=pa.schema(
            {
                "key": pa.string(),
                "price": pa.float64(),
                "user": pa.string(),
                "item": pa.int32(),
                "tags": pa.list_(pa.string()),
            }
        ),
    )
