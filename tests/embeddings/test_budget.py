"""Sizes as users write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.embeddings.budget import parse_bytes, size_text


def test_units() -> None:
    assert parse_bytes("10MB") == 10_000_000
    assert parse_bytes("1.5 KiB") == 1536
    assert parse_bytes("7b") == 7
    assert parse_bytes("2GB") == 2 * 10**9


@pytest.mark.parametrize("text", ["10", "MB", "-1MB", "10XB", "0.1B", "1e3KB", ""])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="budget"):
        parse_bytes(text)


@given(st.integers(1, 10**13))
def test_text_of_a_size_is_never_too_small(size: int) -> None:
    assert size <= parse_bytes(size_text(size)) <= size * 1.011 + 1
