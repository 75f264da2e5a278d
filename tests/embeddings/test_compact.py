"""Tables without their zeros give the same rows, script, and are as small as they say."""

import io

import pytest
import torch
from safetensors.torch import save

from recsys.embeddings.compact import ColumnStore, CsrStore, compact, described, empty
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


CASES = {
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
