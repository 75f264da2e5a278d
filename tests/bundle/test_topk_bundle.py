"""Bundles that recommend: exact lists, proved in a process without recsys."""

import json
import math
import os
import shutil
from pathlib import Path
from typing import List

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recsys.bundle import VerifyError, topk
from recsys.bundle.folder import script
from recsys.bundle.topk import expected_lists, export_top_k, verify_top_k
from recsys.bundle.topk_graph import TopKGraph
from recsys.features.lookup import VocabularyLookup
from recsys.layers.item_search import ItemSearch
from recsys.layers.top_k import best_pairs
from serving.bundle import BundleDamaged, BundleMissing, open_bundle
from serving.encode import Batch, InputField, encode
from serving.ids import ids_of
from serving.topk import TopK

INPUTS = (InputField("history", "history", "ids", "text"),)
SPECIALS = 2


class HistoryEncoder(nn.Module):
    """Raw ids of the vocabulary to 2, 3, ...; null 0, unknown 1."""

    def __init__(self, vocabulary: pa.Array) -> None:
        super().__init__()
        self.lookup = VocabularyLookup(ids=ids_of(vocabulary, "item"), oov_ids=1)

    def forward(self, raw: Batch) -> Batch:
        lists: List[Tensor] = []
        for ids in raw.lists:
            lists.append(self.lookup(ids.reshape(-1)).reshape(ids.shape))
        return Batch(raw.ids, raw.floats.to(torch.float32), lists, raw.lengths)


class LastItem(nn.Module):
    """The query is a linear map of the last item's vector, a start vector without one."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.specials: int = SPECIALS
        self.table = nn.Parameter(torch.randn(size, dim))
        self.bias = nn.Parameter(torch.randn(size) / 10)
        self.head = nn.Linear(dim, dim)
        self.start = nn.Parameter(torch.randn(dim))

    def forward(self, batch: Batch) -> Tensor:
        ids = nn.functional.pad(batch.lists[0], [0, 1])  # (B, L + 1)
        last = ids.gather(1, (batch.lengths - 1).clamp(min=0))[:, 0]
        vectors = self.head(self.table.index_select(0, last))
        return torch.where(batch.lengths > 0, vectors, self.start)  # (B, D)

    @torch.jit.export
    def item_vectors(self) -> Tensor:
        return self.table

    @torch.jit.export
    def item_bias(self) -> Tensor:
        return self.bias


def vocabulary(size: int, kind: str = "text") -> pa.Array:
    if kind == "int":
        return pa.array([7 + 3 * i for i in range(size)], pa.int64())
    return pa.array([f"item {i}" for i in range(size)])


def modules(size: int = 80, dim: int = 8, kind: str = "text") -> tuple[LastItem, HistoryEncoder]:
    torch.manual_seed(5)
    return LastItem(size + SPECIALS, dim), HistoryEncoder(vocabulary(size, kind))


def raw_items(size: int, kind: str = "text") -> pa.Array:
    values = vocabulary(size, kind)
    return pa.concat_arrays([pa.nulls(SPECIALS, values.type), values])


def histories(rows: int, size: int, kind: str = "text") -> pa.Table:
    generator = np.random.default_rng(1)
    values = vocabulary(size, kind).to_pylist()
    lists: list[list[object] | None] = []
    for row in range(rows):
        some = generator.integers(0, size, generator.integers(0, 12))
        lists.append(None if row % 9 == 8 else [values[i] for i in some])
    column = pa.array(lists, pa.list_(vocabulary(1, kind).type))
    return pa.table({"user": [f"u{i}" for i in range(rows)], "history": column})


def exported(out: Path, *, kind: str = "text", filter_seen: bool = True, size: int = 80) -> Path:
    model, encoder = modules(size, kind=kind)
    inputs = [InputField("history", "history", "ids", "int" if kind == "int" else "text")]
    report = export_top_k(
        model,
        encoder,
        inputs,
        out,
        items=raw_items(size, kind),
        k=5,
        filter_seen=filter_seen,
        manifest={"config": {"name": "run"}},
        rows=histories(40, size, kind),
    )
    assert report.rows == 121
    assert report.max_abs_diff <= 1e-6
    return out


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("bundles") / "b")


def slow(
    model: LastItem, queries: Tensor, seen: list[list[int]], k: int
) -> tuple[list[list[int]], Tensor]:
    """Every score on its own, sorted by score and then id."""
    scores = (queries.unsqueeze(1) * model.table.unsqueeze(0)).sum(2) + model.bias
    lists = []
    for row, known in enumerate(seen):
        left = [v for v in range(SPECIALS, scores.shape[1]) if v not in set(known)]
        lists.append(sorted(left, key=lambda v: (-scores[row, v].item(), v))[:k])
    return lists, scores


@pytest.mark.parametrize("filter_seen", [True, False])
@pytest.mark.parametrize("k", [1, 5, 200])
@torch.no_grad()
def test_the_graph_returns_the_true_best(filter_seen: bool, k: int) -> None:
    model, encoder = modules()
    graph = TopKGraph(encoder=encoder, model=model, k=k, filter_seen=filter_seen).eval()
    raw = encode(histories(30, 80), INPUTS)
    batch = encoder(raw)
    seen = [
        row[:length].tolist() if filter_seen else []
        for row, length in zip(batch.lists[0], batch.lengths[:, 0], strict=True)
    ]
    lists, scores = slow(model, model(batch), seen, k)
    for made in (graph, script(graph)):
        for _ in range(2):  # without and with a prepared index
            ids, values = made(*raw)
            assert ids.shape == values.shape == (30, k)
            for row, expected in enumerate(lists):
                found = len(expected)
                assert ids[row, :found].tolist() == expected
                assert (ids[row, found:] == -1).all()
                assert (values[row, found:] == -torch.inf).all()
                close = torch.isclose(values[row, :found], scores[row, expected], rtol=0, atol=1e-5)
                assert close.all()
            made.prepare()


@st.composite
def catalogues(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    size, dim = draw(st.integers(1, 700)), draw(st.integers(1, 20))
    rows = draw(st.integers(1, 4))
    spread = draw(st.sampled_from([1e-6, 1.0, 1e4]))
    vectors = torch.randn(size, dim, generator=generator) * spread
    if draw(st.booleans()):  # ties: few distinct vectors
        vectors = vectors[torch.randint(0, min(3, size), (size,), generator=generator)]
    if draw(st.booleans()):  # some items far larger than others
        vectors *= torch.rand(size, 1, generator=generator) ** 4
    bias = torch.randn(size, generator=generator) * draw(st.sampled_from([0.0, 1.0]))
    queries = torch.randn(rows, dim, generator=generator) * draw(st.sampled_from([0.0, 1.0]))
    seen = torch.randint(0, size, (rows, draw(st.integers(0, 5))), generator=generator)
    return vectors, bias, queries, seen, draw(st.integers(1, 40))


@settings(max_examples=120, deadline=None)
@given(catalogues())
def test_search_is_exact(case: tuple[Tensor, Tensor, Tensor, Tensor, int]) -> None:
    vectors, bias, queries, seen, k = case
    searcher = ItemSearch()
    index = searcher.index(vectors, bias, 1)
    searcher.cells = 2000  # one query at a time for most
    searcher.pairs = 50
    ids, scores = searcher(index, queries, seen, k)
    for row in range(len(queries)):
        exact = (vectors * queries[row]).sum(1) + bias
        left = [v for v in range(1, len(bias)) if v not in seen[row].tolist()]
        expected = sorted(left, key=lambda v: (-exact[v].item(), v))[:k]
        assert ids[row][ids[row] >= 0].tolist() == expected
        assert scores[row, : len(expected)].tolist() == exact[expected].tolist()


def test_equal_items_go_by_id_in_a_large_catalogue() -> None:
    searcher = ItemSearch()
    vectors = torch.randn(1, 16).repeat(5000, 1)
    vectors[3000:3003] *= 0.5
    query = vectors[:1].clone()
    ids, scores = searcher(
        searcher.index(vectors, torch.zeros(5000), 2), query, query[:, :0].long(), 4
    )
    assert ids.tolist() == [[2, 3, 4, 5]]
    assert len(set(scores[0].tolist())) == 1


def test_numbers_that_are_none_are_never_found() -> None:
    searcher = ItemSearch()
    vectors = torch.ones(200, 4)
    vectors[5, 2], vectors[6, 0] = torch.nan, torch.inf
    bias = torch.arange(200.0)
    bias[199] = torch.nan
    index = searcher.index(vectors, bias, 2)
    none = torch.zeros(1, 0, dtype=torch.int64)
    ids, _ = searcher(index, torch.ones(1, 4), none, 197)
    assert ids[0, :2].tolist() == [198, 197]
    assert ids[0, -2:].tolist() == [-1, -1]
    assert sorted(ids[0].tolist())[2:] == sorted(set(range(2, 199)) - {5, 6})
    assert torch.isnan(bias[199])  # the caller's bias is left alone
    assert bias[0] == 0
    assert (searcher(index, torch.full((1, 4), torch.nan), none, 3)[0] == -1).all()


def test_best_pairs_of_no_pairs() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    ids, scores = best_pairs(none, none, torch.zeros(0), 2, 3)
    assert ids.tolist() == [[-1] * 3] * 2
    assert (scores == -torch.inf).all()
    assert best_pairs(none, none, torch.zeros(0), 0, 3)[0].shape == (0, 3)


def test_manifest_and_files(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["task"] == "top_k"
    assert manifest["k"] == 5
    assert manifest["filter_seen"] is True
    assert manifest["config"] == {"name": "run"}
    assert [column["name"] for column in manifest["output"]] == ["ids", "scores"]
    assert manifest["verified"]["rows"] == 121
    assert sorted(manifest["files"]) == ["items.parquet", "model.ts", "weights.safetensors"]
    assert pq.read_table(bundle / "items.parquet").column("item").to_pylist() == [
        None,
        None,
        *vocabulary(80).to_pylist(),
    ]
    assert os.listdir(bundle.parent) == ["b"]


@pytest.mark.parametrize("kind", ["text", "int"])
def test_the_bundle_recommends_as_the_modules_do(kind: str, bundle: Path, tmp_path: Path) -> None:
    path = bundle if kind == "text" else exported(tmp_path / "b", kind=kind)
    model, encoder = modules(kind=kind)
    graph = TopKGraph(encoder=encoder, model=model, k=5, filter_seen=True).eval()
    rows = histories(30, 80, kind)
    got = TopK(path).recommend(rows)
    expected = expected_lists(graph, open_bundle(path).inputs, rows, raw_items(80, kind))
    assert got.items.to_pylist() == expected.column("items").to_pylist()
    assert got.scores.to_pylist() == expected.column("scores").to_pylist()


def test_altered_weights_fail_the_proof(bundle: Path) -> None:
    model, encoder = modules()
    rows = histories(20, 80)
    with torch.no_grad():
        model.bias[40] += 50
    graph = TopKGraph(encoder=encoder, model=model, k=5, filter_seen=True).eval()
    with pytest.raises(VerifyError, match=r"row 0 is recommended .* by the bundle but \['item 38'"):
        verify_top_k(bundle, rows, expected_lists(graph, INPUTS, rows, raw_items(80)))


@pytest.mark.parametrize("other", [1.01, math.nan])
def test_scores_apart_fail_the_proof(
    other: float, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = pa.table({"items": [["a"], [], ["b", "c"]], "scores": [[3.0], [], [2.0, 1.0]]})
    got = pa.table({"items": [["a"], [], ["b", "c"]], "scores": [[3.0], [], [2.0, other]]})
    monkeypatch.setattr(topk, "answers_elsewhere", lambda *_: got)
    with pytest.raises(VerifyError, match=r"row 2 scores .*, 1 of 3 scores differ"):
        verify_top_k(bundle, histories(3, 80), live)


def test_an_unproved_bundle_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = topk.expected_lists

    def reversed_lists(*arguments: object) -> pa.Table:
        table = honest(*arguments)  # type: ignore[arg-type]
        lists = [row[::-1] for row in table.column("items").to_pylist()]
        return table.set_column(0, "items", pa.array(lists))

    monkeypatch.setattr(topk, "expected_lists", reversed_lists)
    with pytest.raises(VerifyError, match="row 0 is recommended"):
        exported(tmp_path / "b")
    assert os.listdir(tmp_path) == []


def test_changed_or_missing_items_are_refused(bundle: Path, tmp_path: Path) -> None:
    path = shutil.copytree(bundle, tmp_path / "b")
    items = path / "items.parquet"
    content = items.read_bytes()
    items.write_bytes(content[:-1] + b"x")
    with pytest.raises(BundleDamaged, match=r"items\.parquet: sha256 differs"):
        open_bundle(path)
    items.unlink()
    with pytest.raises(BundleMissing, match=r"items\.parquet: listed"):
        open_bundle(path)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["files"]["items.parquet"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleDamaged, match=r"items\.parquet is not listed"):
        open_bundle(path)


def test_every_id_needs_an_item(tmp_path: Path) -> None:
    model, encoder = modules()
    items = pa.array([None, None, None, *vocabulary(80).to_pylist()[1:]])
    with pytest.raises(AssertionError, match="no raw item"):
        export_top_k(
            model,
            encoder,
            INPUTS,
            tmp_path / "b",
            items=items,
            k=5,
            filter_seen=True,
            manifest={},
            rows=histories(4, 80),
        )
    assert not (tmp_path / "b").exists()
