"""How text becomes tokens: words, each of one or more pieces."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

from recsys.types import InputError

Tokenizer = Callable[[str], list[list[str]]]
"""Text -> its words in order, each as its pieces."""

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def words(text: str) -> list[list[str]]:
    """Runs of letters and digits without regard to case, each a word of one piece.

    **Example**

    >>> words("Schindler's List (1993)")
    [["schindler's"], ['list'], ['1993']]
    """
    return [[word] for word in _WORD.findall(text.casefold())]


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
            f"{where}: reading it takes the library tokenizers; pip install tokenizers, or write "
            "words"
        ) from None
    try:
        pieces = Pieces.from_file(str(path))
    except Exception as error:  # the library raises nothing more special
        reason = " ".join(str(error).split())
        raise InputError(f"{where}: is no tokenizer.json ({reason})") from None

    def split(text: str) -> list[list[str]]:
        found = pieces.encode(text, add_special_tokens=False)
        pairs = zip(found.word_ids, found.tokens, strict=True)
        return [[token for _, token in word] for _, word in groupby(pairs, lambda pair: pair[0])]

    return split
