"""DIN: what it pools by, what it refuses, and what must never matter."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from recsys.config import parse_config
from recsys.embeddings import build_embeddings
from recsys.embeddings.full import FullConfig
from recsys.models.din import DIN, DINConfig
from recsys.models.dnn import DNN
from recsys.models.histories import HistoryConfig, histories
from recsys.settings import TrainConfig
from recsys.types import Batch, FieldSpec, InputError

ITEMS, GENRES, DIM = 12, 4, 6
FIELDS = (
    FieldSpec("user", "categorical", num_ids=5),
    FieldSpec("item", "categorical", num_ids=ITEMS),
    FieldSpec("genre", "categorical", num_ids=GENRES),
    FieldSpec("tags", "bag", num_ids=3, pooling="sum"),
    FieldSpec("seen", "sequence", ITEMS, shares="item", pooling="mean", max_length=4),
    FieldSpec("seen_genre", "sequence", GENRES, shares="genre", pooling="mean", max_length=4),
)
PAIR = {"candidate": ["item", "genre"], "sequence": ["seen", "seen_genre"]}


RATED = FieldSpec("rated", "sequence", num_ids=3, pooling="mean", max_length=4)
"""How the items of ``seen`` were rated: a column without a candidate."""


def model(seed: int = 0, kind: Any = DIN, fields: Any = FIELDS, **keys: Any) -> Any:
    if kind is DIN:
        units = {} if keys.get("pooling") == "mean" else {"attention_units": [6]}
        keys = {"histories": [PAIR], **units} | keys
    config = kind.Config(hidden_units=[7], **keys)
    torch.manual_seed(seed)
    table = FullConfig(method="full", embedding_dim=DIM, init_std=0.5)
    layers = build_embeddings(table, fields, kind.tables(config, DIM), train=TrainConfig())[1]
    return kind(config, fields, layers)


def batch(rows: int = 6, seed: int = 1) -> Batch:
    """Row indices as the id map gives them: items from 5, genres from 17, tags from 21."""
    made = torch.Generator().manual_seed(seed)

    def draw(low: int, count: int, *shape: int) -> Tensor:
        return torch.randint(low, low + count, shape, generator=made)

    ids = torch.cat([draw(0, 5, rows, 1), draw(5, 12, rows, 1), draw(17, 4, rows, 1)], 1)
    lists = [draw(21, 3, rows, 2, 1), draw(5, 12, rows, 4, 1), draw(17, 4, rows, 4, 1)]
    length = torch.arange(rows) % 5  # the first row has an empty history
    lengths = torch.stack([torch.ones_like(length), length, length], dim=1)
    return Batch(ids, torch.zeros(rows, 0), lists, lengths)


def test_logits_are_the_formula() -> None:
    """One row at a time, its history without padding, the MLP on [user, item, genre, tags, u]."""
    din, rows = model(attention_activation="sigmoid").eval(), batch()
    table = din.embedding.tables[0].weight.detach()
    unit = din.histories[0].pool
    for b in range(6):
        v = torch.cat([table[rows.ids[b, 1]], table[rows.ids[b, 2]]])
        u = torch.zeros(2 * DIM)
        for t in range(int(rows.lengths[b, 1])):
            h = torch.cat([table[rows.lists[1][b, t, 0]], table[rows.lists[2][b, t, 0]]])
            x = torch.cat([v, h, v - h, v * h])
            x = torch.sigmoid(unit.first.weight @ x + unit.first.bias)
            last = unit.rest[1].layers[0]
            u = u + (last.weight @ x + last.bias) * h
        tags = table[rows.lists[0][b, 0, 0]]
        parts = [table[rows.ids[b, 0]], v, tags, u]
        expected = din.mlp(torch.cat(parts).unsqueeze(0)).squeeze()
        torch.testing.assert_close(din(rows)[b], expected)


def test_what_only_events_have_faces_zeros() -> None:
    pair = {**PAIR, "sequence": [*PAIR["sequence"], "rated"]}
    din = model(fields=(*FIELDS, RATED), histories=[pair], attention_activation="sigmoid").eval()
    rows = batch()
    rated = (rows.lists[1] + 1) % 3 + 24
    rows = Batch(
        rows.ids,
        rows.floats,
        [*rows.lists, rated],
        torch.cat([rows.lengths, rows.lengths[:, 1:2]], 1),
    )
    table, b, unit = din.embedding.tables[0].weight.detach(), 4, din.histories[0].pool
    v = torch.cat([table[rows.ids[b, 1]], table[rows.ids[b, 2]], torch.zeros(DIM)])
    u = torch.zeros(3 * DIM)
    for t in range(4):
        h = torch.cat([table[column[b, t, 0]] for column in rows.lists[1:]])
        x = torch.sigmoid(unit.first.weight @ torch.cat([v, h, v - h, v * h]) + unit.first.bias)
        last = unit.rest[1].layers[0]
        u = u + (last.weight @ x + last.bias) * h
    parts = [table[rows.ids[b, 0]], v[: 2 * DIM], table[rows.lists[0][b, 0, 0]], u]
    torch.testing.assert_close(din(rows)[b], din.mlp(torch.cat(parts).unsqueeze(0)).squeeze())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("softmax", [False, True])
def test_padding_never_matters(softmax: bool, training: bool) -> None:
    din, same = (model(softmax=softmax).train(training) for _ in range(2))
    rows = batch()
    lists = [rows.lists[0]]
    for low, column in ((5, rows.lists[1]), (17, rows.lists[2])):
        mask = torch.arange(4) < rows.lengths[:, 1:2]
        other = torch.where(mask.unsqueeze(2), column, torch.full_like(column, low))
        lists.append(torch.cat([other, torch.full((6, 3, 1), low + 1)], dim=1))
    changed = Batch(rows.ids, rows.floats, lists, rows.lengths)
    torch.testing.assert_close(din(rows), same(changed))


def test_candidate_decides_the_attention() -> None:
    din, rows = model().eval(), batch()
    other = rows.ids.clone()
    other[:, 1] = (other[:, 1] - 5 + 1) % ITEMS + 5
    pool, seen = din.histories[0].pool, []
    for ids in (rows.ids, other):
        data = Batch(ids, rows.floats, rows.lists, rows.lengths)
        parts = [din.embedding.sequence(data, f) for f in (4, 5)]
        history = torch.cat([part[0] for part in parts], 2)
        x = din.embedding(data)
        seen.append(pool.weights(torch.cat([x[:, 1], x[:, 2]], 1), history, parts[0][1]))
    long = rows.lengths[:, 1] > 0
    assert ((seen[0] - seen[1]).abs().amax(1) > 1e-4).equal(long)


def test_mean_pooling_is_dnn_on_pooled_histories() -> None:
    """The baseline of a comparison is the same network, down to its weights."""
    din, dnn, rows = model(pooling="mean"), model(kind=DNN), batch()
    assert din.state_dict().keys() == dnn.state_dict().keys()
    dnn.load_state_dict(din.state_dict())
    torch.testing.assert_close(din(rows), dnn(rows))


def test_histories_are_inferred_from_shared_tables() -> None:
    found = histories(None, FIELDS)
    assert [(h.candidate, h.sequence) for h in found] == [
        (("item",), ("seen",)),
        (("genre",), ("seen_genre",)),
    ]
    assert len(model(histories=None).histories) == 2


def test_an_unused_sequence_stays_a_pooled_field() -> None:
    one = {"candidate": ["item"], "sequence": ["seen"]}
    din, rows = model(histories=[one]), batch()
    assert din.mlp.layers[0].in_features == 6 * DIM
    longer = rows.lists[2].clone()
    longer[4, 0] = 17 + (longer[4, 0] - 17 + 1) % GENRES
    lists = [*rows.lists[:2], longer]
    moved = din(Batch(rows.ids, rows.floats, lists, rows.lengths)) != din(rows)
    assert moved.tolist() == [False] * 4 + [True, False]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ({"candidate": ["items"], "sequence": ["seen"]}, "'items' is no categorical feature"),
        ({"candidate": ["item"], "sequence": ["tags"]}, "'tags' is no sequence feature"),
        ({"candidate": ["genre"], "sequence": ["seen"]}, "set features.seen.shares to genre"),
        ({"candidate": ["item"], "sequence": ["seen", "user"]}, "'user' is no sequence feature"),
    ],
)
def test_wrong_histories_are_refused(pair: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        histories([HistoryConfig(**pair)], FIELDS)


def test_columns_of_one_history_are_cut_alike() -> None:
    fields = (*FIELDS[:5], FieldSpec("seen_genre", "sequence", shares="genre", max_length=9))
    with pytest.raises(InputError, match="seen, seen_genre are cut to different lengths"):
        histories([HistoryConfig(**PAIR)], fields)


def config(model: dict[str, Any], **features: Any) -> Any:
    tree = {
        "name": "x",
        "data": {"train": "a.parquet", "label": "label"},
        "features": {"item": {"type": "categorical"}, **features},
        "embedding": {"method": "full"},
        "model": model,
    }
    return parse_config(tree)


def test_a_config_without_a_history_is_refused() -> None:
    with pytest.raises(InputError, match="needs a history: add a sequence feature that shares"):
        config({"name": "din"})
    own = {"type": "sequence", "max_length": 5}
    with pytest.raises(InputError, match="needs a history"):
        config({"name": "din"}, seen=own)
    config({"name": "din"}, seen={**own, "shares": "item"})
    with pytest.raises(InputError, match="name a sequence for each candidate"):
        config({"name": "din", "histories": [{"candidate": ["item", "b"], "sequence": ["a"]}]})


def ragged() -> Batch:
    """Row 4 lacks its genres; row 3 has one genre for its three items."""
    rows = batch()
    lengths = rows.lengths.clone()
    lengths[4, 2], lengths[3, 2] = 0, 1
    lists = [rows.lists[0], rows.lists[1], rows.lists[2][:, :3]]
    return Batch(rows.ids, rows.floats, lists, lengths)


def test_columns_out_of_line_fail_in_training_and_are_cut_in_scoring() -> None:
    with pytest.raises(InputError, match="seen_genre has 1 entries where seen has 3"):
        model().train()(ragged())
    din, rows = model().eval(), batch()
    lengths = rows.lengths.clone()
    lengths[4, 1:], lengths[3, 1:], lengths[5, 1:] = 0, 1, 0
    cut = Batch(rows.ids, rows.floats, rows.lists, lengths)
    torch.testing.assert_close(din(ragged())[:5], din(cut)[:5])


@pytest.mark.parametrize("keys", [{}, {"softmax": True}, {"pooling": "mean"}])
def test_script_and_export_equal_eager(keys: dict[str, Any]) -> None:
    din = model(**keys).eval()
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(din), buffer)
    buffer.seek(0)
    scripted = torch.jit.load(buffer)
    rows = {0: torch.export.Dim("rows", min=0)}
    lists = [{**rows, 1: torch.export.Dim(f"length{j}", min=0)} for j in range(3)]
    shapes = (Batch(rows, rows, lists, rows),)
    exported = torch.export.export(din, (batch(),), dynamic_shapes=shapes).module()
    for data in (*(batch(count) for count in (0, 1, 2, 7)), ragged()):
        torch.testing.assert_close(scripted(data), din(data))
        torch.testing.assert_close(exported(data), din(data))


def test_sparse_tables_train_alike() -> None:
    """Candidates and histories meet in one table: their gradients add up, dense or sparse."""
    grads = []
    for gradient in ("dense", "sparse"):
        torch.manual_seed(0)
        train = TrainConfig(embedding_gradient=gradient)  # type: ignore[arg-type]
        table = FullConfig(method="full", embedding_dim=DIM, init_std=0.5)
        layers = build_embeddings(table, FIELDS, {"embedding": DIM}, train=train)[1]
        keys = DINConfig(histories=[HistoryConfig(**PAIR)], hidden_units=(7,))  # type: ignore[arg-type]
        din = DIN(keys, FIELDS, layers)
        din(batch()).sum().backward()
        grad = din.embedding.tables[0].weight.grad
        assert grad is not None
        assert grad.is_sparse == (gradient == "sparse")
        grads.append(grad.to_dense())
    torch.testing.assert_close(*grads)


def descend(din: Any, rows: Callable[[int], tuple[Batch, Tensor]], *, steps: int) -> None:
    """Trains on fresh rows at every step."""
    adam = torch.optim.Adam(din.parameters(), lr=0.01)
    for _ in range(steps):
        data, label = rows(256)
        adam.zero_grad()
        F.binary_cross_entropy_with_logits(din(data), label).backward()
        adam.step()
    din.eval()


def test_planted_same_category_task() -> None:
    """A click wants an item of the candidate's category in the history: the candidate is learned to
    attend to its own kind, which a mean of the history cannot show."""
    items, length = 20, 6
    fields = (
        FieldSpec("item", "categorical", num_ids=items),
        FieldSpec("seen", "sequence", items, shares="item", pooling="mean", max_length=length),
    )
    rng = np.random.default_rng(0)

    def rows(count: int) -> tuple[Batch, Tensor]:
        candidate = rng.integers(0, items, (count, 1))
        seen = rng.integers(0, items, (count, length))
        label = (seen % 5 == candidate % 5).any(1)
        lists = [torch.from_numpy(seen).unsqueeze(2)]
        full = torch.full((count, 1), length)
        data = Batch(torch.from_numpy(candidate), torch.zeros(count, 0), lists, full)
        return data, torch.from_numpy(label).float()

    keys = {"histories": None, "attention_units": [16], "attention_activation": "dice"}
    din = model(fields=fields, softmax=True, **keys).train()
    descend(din, rows, steps=400)
    table = din.embedding.tables[0].weight
    hits = []
    for candidate in range(items):
        # one item of the candidate's category (not itself) among others, at a random place
        same = (candidate + 5) % items
        others = [i for i in range(items) if i % 5 != candidate % 5][: length - 1]
        place = int(rng.integers(0, length))
        seen = [*others[:place], same, *others[place:]]
        weights = din.histories[0].pool.weights(
            table[candidate].unsqueeze(0),
            table[seen].unsqueeze(0),
            torch.ones(1, length, dtype=torch.bool),
        )
        hits.append(int(weights.argmax()) == place)
    assert np.mean(hits) >= 0.9
    with torch.no_grad():
        data, label = rows(4096)
        assert ((din(data) > 0).float() == label).float().mean() > 0.9


def test_planted_ratings_of_the_own_kind() -> None:
    """The history holds one item of every kind; a click wants that the candidate's kind was rated
    high. A mean of the history cannot show which item had which rating."""
    kinds, length = 5, 5
    fields = (
        FieldSpec("kind", "categorical", num_ids=kinds),
        FieldSpec("seen", "sequence", kinds, shares="kind", pooling="mean", max_length=length),
        FieldSpec("rated", "sequence", 2, pooling="mean", max_length=length),
    )
    rng = np.random.default_rng(0)

    def rows(count: int) -> tuple[Batch, Tensor]:
        candidate = rng.integers(0, kinds, (count, 1))
        seen = rng.permuted(np.tile(np.arange(kinds), (count, 1)), axis=1)
        rated = rng.integers(0, 2, (count, length))
        label = (rated * (seen == candidate)).sum(1)
        lists = [torch.from_numpy(seen).unsqueeze(2), torch.from_numpy(rated + kinds).unsqueeze(2)]
        full = torch.full((count, 2), length)
        data = Batch(torch.from_numpy(candidate), torch.zeros(count, 0), lists, full)
        return data, torch.from_numpy(label).float()

    right = {}
    for pooling in ("attention", "mean"):
        pair = {"candidate": ["kind"], "sequence": ["seen", "rated"]}
        units = {"attention_units": [16]} if pooling == "attention" else {}
        din = model(fields=fields, histories=[pair], pooling=pooling, **units).train()
        descend(din, rows, steps=300)
        with torch.no_grad():
            data, label = rows(4096)
            right[pooling] = float(((din(data) > 0).float() == label).float().mean())
    assert right["attention"] > 0.95, right
    assert right["mean"] < 0.75, right
