"""Tables without their zeros give the same rows, script, and are as small as they say."""

import io

import pytest
import torch
from safetensors.torch import save

from recsys.embeddings.compact import (
    ColumnStore,
    CsrStore,
    PrefixStore,
    compact,
    described,
    empty,
    prefix_ranges,
)
from recsys.embeddings.store import Store, TorchStore
from recsys.settings import TrainConfig


def dense() -> torch.Tensor:
    return torch.randn(40, 6, generator=torch.Generator().manual_seed(1)) + 3


def columns() -> torch.Tensor:
    weight = dense()
    weight[:, [0, 2, 5]] = 0
    return weight


def scattered() -> torch.Tensor:
    weight = dense()
    weight[torch.rand(40, 6, generator=torch.Generator().manual_seed(2)) < 0.8] = 0
    weight[7] = 0
    return weight


def prefixes() -> torch.Tensor:
    """Ten rows of width 2, none of width 0, five of width 6, and the rest of width 1."""
    weight = dense()
    weight[:10, 2:] = 0
    weight[10:20] = 0
    weight[25:, 1:] = 0
    return weight


CASES = {
    "prefix": (prefixes, PrefixStore),
    "plain": (dense, TorchStore),
    "columns": (columns, ColumnStore),
    "csr": (scattered, CsrStore),
}


@pytest.mark.parametrize("name", CASES)
def test_same_rows_in_the_smallest_form(name: str) -> None:
    make, kind = CASES[name]
    weight = make()
    store = compact(weight)
    assert type(store) is kind
    rows = torch.tensor([[0, 7, 39], [3, 3, 12]])
    assert torch.equal(store(rows), weight[rows])
    assert store(rows[:0]).shape == (0, 3, 6)
    scripted = torch.jit.script(store)
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    assert torch.equal(torch.jit.load(buffer)(rows.int()), weight[rows])


@pytest.mark.parametrize("name", CASES)
def test_memory_is_what_a_file_holds(name: str) -> None:
    store = compact(CASES[name][0]())
    file = save(dict(store.state_dict()))
    payload = len(file) - 8 - int.from_bytes(file[:8], "little")
    assert store.memory(TrainConfig(), fetched=1).stored_bytes == payload


def test_bytes_of_compressed_rows() -> None:
    """4 + 1 bytes a value, 4 bytes a row and one end: 5 * nnz + 4 * (R + 1)."""
    weight = scattered()
    store = compact(weight)
    nonzero = int((weight != 0).sum())
    assert store.memory(TrainConfig(), fetched=1).stored_bytes == 5 * nonzero + 4 * 41


def test_rows_beyond_int32_are_not_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts of rows are int32, and would wrap silently."""
    assert isinstance(compact(scattered()), CsrStore)
    nonzero = int((scattered() != 0).sum())
    monkeypatch.setattr("recsys.embeddings.compact.LARGEST_START", nonzero - 1)
    assert not isinstance(compact(scattered()), CsrStore)


def test_bytes_and_values_of_prefixes() -> None:
    """Four bytes a float of a range, and its start, base (8 bytes) and width."""
    store = compact(prefixes())
    assert isinstance(store, PrefixStore)
    assert store.starts.tolist() == [0, 10, 20, 25]
    assert store.widths.tolist() == [2, 0, 6, 1]
    assert store.bases.tolist() == [0, 20, 20, 50]
    assert store.values.numel() == 10 * 2 + 5 * 6 + 15
    assert store.memory(TrainConfig(), fetched=1).stored_bytes == 4 * 65 + 4 * (4 + 8 + 1)
    assert torch.equal(store(torch.arange(40)), prefixes())


def test_prefix_exports_at_any_number_of_rows() -> None:
    store = compact(prefixes())
    rows = torch.export.Dim("rows", min=2)
    exported = torch.export.export(
        store, (torch.tensor([[0, 39], [11, 21]]),), dynamic_shapes=({0: rows},)
    ).module()
    for count in (2, 5):
        some = torch.arange(2 * count).view(count, 2) * 4 % 40
        assert torch.equal(exported(some), prefixes()[some])


def test_ranges_join_only_where_that_saves_bytes() -> None:
    """A range costs 13 bytes: a lone row of width 1 among those of width 4 joins them (it wastes
    12 bytes and saves two ranges), two wide rows of 20 columns among rows of none do not."""
    weight = torch.zeros(60, 20)
    weight[:20, :4] = 1
    weight[7, 1:] = 0
    weight[40:42] = 1
    starts, widths, held = prefix_ranges(weight)
    assert starts.tolist() == [0, 20, 40, 42]
    assert widths.tolist() == [4, 0, 20, 0]
    assert held == 20 * 4 + 2 * 20


def test_long_rows_of_equal_joins_take_few_rounds() -> None:
    """Alternating widths 3 and 4: every join saves the same."""
    weight = torch.ones(100_000, 4)
    weight[::2, 3] = 0
    starts, widths, held = prefix_ranges(weight)
    assert starts.tolist() == [0]
    assert widths.tolist() == [4]
    assert held == 400_000


def test_no_rows_and_no_columns() -> None:
    for shape in ((0, 3), (3, 0)):
        assert prefix_ranges(torch.zeros(shape))[2] == 0
        store = compact(torch.zeros(shape))
        assert store(torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 0, shape[1])


@pytest.mark.parametrize("name", CASES)
def test_an_empty_store_takes_saved_weights(name: str) -> None:
    store = compact(CASES[name][0]())
    fresh: Store = empty(described(store))
    fresh.load_state_dict(store.state_dict())
    rows = torch.arange(40)
    assert torch.equal(fresh(rows), store(rows))


def test_a_table_of_zeros() -> None:
    store = compact(torch.zeros(5, 3))
    assert torch.equal(store(torch.tensor([[4, 0]])), torch.zeros(1, 2, 3))
    assert torch.equal(CsrStore.of(torch.zeros(5, 3))(torch.tensor([4])), torch.zeros(1, 3))
