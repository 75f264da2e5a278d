"""How text becomes tokens: words, each of one or more pieces."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable
from functools import cache
from itertools import groupby
from pathlib import Path
from unicodedata import category, normalize

import numpy as np

from recsys.types import InputError

Tokenizer = Callable[[str], list[list[str]]]
"""Text -> its words in order, each as its pieces."""


@cache
def _word() -> re.Pattern[str]:
    r"""Letters and digits with their marks, of which Python's ``\w`` knows nothing: vowels of many
    scripts are marks."""
    marks = "".join(c for c in map(chr, range(sys.maxunicode)) if category(c).startswith("M"))
    part = rf"[^\W_](?:[^\W_]|[{marks}])*"
    return re.compile(rf"{part}(?:['’]{part})*")


def words(text: str) -> list[list[str]]:
    """Runs of letters and digits without regard to case, each a word of one piece.

    **Example**

    >>> words("Schindler's List (1993)")
    [["schindler's"], ['list'], ['1993']]
    """
    return [[word] for word in _word().findall(normalize("NFC", text).casefold())]


def tokenizer_digest(name: str, root: str | os.PathLike[str] | None = None) -> np.ndarray:
    """(32,) uint8, sha256 of the file that `open_tokenizer` reads; zeros for ``words``."""
    if name == "words":
        return np.zeros(32, np.uint8)
    path = Path(root or ".") / name
    return np.frombuffer(hashlib.sha256(path.read_bytes()).digest(), np.uint8).copy()


def open_tokenizer(name: str, root: str | os.PathLike[str] | None = None) -> Tokenizer:
    """``words``, or the ``tokenizer.json`` of Hugging Face's `tokenizers` at the path ``name``
    (relative ones resolve against ``root``). Errors: `InputError` for a file that is none, and
    where the library is not installed."""
    if name == "words":
        return words
    path = Path(root or ".") / name
    where = f"data.items.tokenizer {path}"
    if not path.is_file():
        raise InputError(f"{where}: no such file; write words, or give a tokenizer.json")
    try:
        from tokenizers import Tokenizer as Pieces
    except ImportError:
        raise InputError(
            f"{where}: reading it takes the library tokenizers; pip install 'recsys[text]', or "
            "write words"
        ) from None
    try:
        pieces = Pieces.from_file(str(path))
    except Exception as error:  # the library raises nothing more special
        reason = " ".join(str(error).split())
        raise InputError(f"{where}: is no tokenizer.json ({reason})") from None

    pieces.no_padding()  # files are often saved with the settings of one use
    pieces.no_truncation()

    def split(text: str) -> list[list[str]]:
        found = pieces.encode(text, add_special_tokens=False)
        pairs = zip(found.word_ids, found.tokens, strict=True)
        words = groupby(pairs, lambda pair: pair[0])
        return [[token for _, token in word] for place, word in words if place is not None]

    return split
