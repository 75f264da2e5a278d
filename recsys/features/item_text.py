"""Items as text: what each item's attributes say, as tokens, and the ids of items that say any."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import pyarrow as pa
import torch

from recsys.features.base import State
from recsys.features.counting import VocabularyCollector
from recsys.features.item_tokens import ItemTextConfig, Tokens, read_items, read_tokens
from recsys.features.lookup import VocabularyLookup
from recsys.features.state import Features
from recsys.features.tokenizers import open_tokenizer, tokenizer_digest
from recsys.types import FieldSpec, InputError
from serving.encode import NULL_ID, ids_of
from serving.parquet import open_source

WORDS = "words"
"""Name of the field of words: whose rows the table of a model of text has."""

UNKNOWN = 1
"""The id of words that are not read: rarer ones, and those of later catalogues."""


@dataclass(frozen=True)
class ItemText:
    """Texts of all encoded item ids, V of them, as tokens.

    ``text`` (V,) int64: which text an item has; equal texts are one, text 0 is empty (special
    ids). ``ends`` (T,) int64: the tokens of text t are ``ends[t - 1]:ends[t]`` of ``tokens`` (N,)
    int64, encoded words; of which ``keys`` (N,) bool are of attributes' names, and ``pieces`` (N,)
    int64 their place in their word. ``counts`` (W,): how many items each encoded word is in.
    """

    text: np.ndarray
    ends: np.ndarray
    tokens: np.ndarray
    keys: np.ndarray
    pieces: np.ndarray
    counts: np.ndarray

    def field(self, most: int) -> FieldSpec:
        """The words as a field: ids of which a history has at most ``most``."""
        return FieldSpec(
            WORDS,
            "sequence",
            num_ids=len(self.counts),
            counts=self.counts,
            pooling="mean",
            max_length=most,
        )


def item_text(features: Features) -> ItemText | None:
    """The texts that `with_text` put into ``features``, if it did."""
    state = features.states.get(_state_name(features.fields[0].name))
    if state is None:
        return None
    return ItemText(**{part.name: state[part.name] for part in fields(ItemText)})


def word_state(features: Features) -> State:
    """The vocabulary of words: see `VocabularyCollector`; empty without text."""
    state = features.states.get(_state_name(features.fields[0].name), {})
    return {key: state[key] for key in ("ids", "counts") if key in state}


def with_text(
    features: Features,
    config: ItemTextConfig,
    root: str | os.PathLike[str] | None,
    *,
    keep_words: bool = False,
    progress: Callable[[int], None] | None = None,
) -> tuple[Features, pa.Array]:
    """``features`` of one sequence with the items of the catalogue as its ids, by falling training
    count, and their texts; and the catalogue's raw items.

    ``keep_words``: encode by the words that ``features`` has already, for a model that was trained
    with them. Memory: the catalogue's tokens. Errors: `InputError` for a catalogue that cannot be
    read, items of another type than the log's, an item that has two rows, no text at all, and for
    words kept of another tokenizer.
    """
    tokenizer = open_tokenizer(config.tokenizer, root)
    digest = tokenizer_digest(config.tokenizer, root)
    known = features.states.get(_state_name(features.fields[0].name), {}).get("tokenizer", digest)
    if keep_words and not np.array_equal(known, digest):
        raise InputError(
            f"data.items.tokenizer {config.tokenizer}: is another than the model was trained with, "
            "whose words it knows; put that one there"
        )
    source = open_source(config.source, root)
    items = read_items(source, config.item, features.inputs[0].dtype)
    raw = ids_of(items, config.item)
    tokens = read_tokens(source, config, tokenizer, progress)
    vocabulary: State = word_state(features) if keep_words else _vocabulary(tokens, config)
    texts, place = _texts(tokens, vocabulary, raw != NULL_ID)
    if len(texts["ends"]) == 1:
        raise InputError(
            f"{source.files[0]}: no item has a word that is read in "
            f"{', '.join(config.attributes)}; name other columns in data.items.attributes, or "
            "lower min_count"
        )
    name, said = features.fields[0].name, place > 0
    state, order = _by_count(features.states[name], raw[said])
    special = np.zeros(len(state["counts"]) - len(order), np.int64)
    text = np.concatenate([special, place[said][order]])
    words = {key: vocabulary[key] for key in ("ids", "counts")}
    own = {**texts, "text": text, **words, "tokenizer": digest}
    return replace(features, states={name: state, _state_name(name): own}), items


def _state_name(field: str) -> str:
    return f"{field}/text"


def _vocabulary(tokens: Tokens, config: ItemTextConfig) -> State:
    """Each word counted once an item."""
    pairs = np.unique(tokens.row * max(len(tokens.pieces), 1) + tokens.piece)
    counts = np.bincount(pairs % max(len(tokens.pieces), 1), minlength=len(tokens.pieces))
    collector = VocabularyCollector(min_count=config.min_count, max_size=None, oov_ids=UNKNOWN)
    collector.add(tokens.pieces, counts)
    return collector.state()


def _texts(
    tokens: Tokens, vocabulary: State, named: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The different texts, of known words, and which one each row (N,) has; 0 for none, and for
    rows that are not ``named`` (N,)."""
    lookup = VocabularyLookup(ids=vocabulary["ids"], oov_ids=UNKNOWN)
    encoded = lookup(torch.tensor(tokens.pieces)).numpy()[tokens.piece]
    known = encoded > UNKNOWN
    row, word, key, encoded = (x[known] for x in (tokens.row, tokens.word, tokens.key, encoded))
    first = np.flatnonzero(np.diff(word, prepend=-1))
    lengths = np.diff(np.append(first, len(word)))
    piece = np.arange(len(word)) - np.repeat(first, lengths)
    said = named & (np.bincount(row[~key], minlength=len(named)) > 0)  # names alone say nothing
    bounds = np.searchsorted(row, np.arange(len(named) + 1))
    place = np.zeros(len(named), np.int64)
    numbers: dict[bytes, int] = {b"": 0}
    taken: list[np.ndarray] = [np.zeros(0, np.int64)]
    coded = 2 * encoded + key
    for i in np.flatnonzero(said):
        part = slice(bounds[i], bounds[i + 1])
        content = np.concatenate([coded[part], piece[part]]).tobytes()
        place[i] = numbers.setdefault(content, len(numbers))
        if place[i] == len(taken):
            taken.append(np.arange(part.start, part.stop))
    chosen = np.concatenate(taken)
    ends = np.cumsum([len(part) for part in taken])
    texts = {
        "ends": ends,
        "tokens": encoded[chosen],
        "keys": key[chosen],
        "pieces": piece[chosen],
    }
    return texts, place


def _by_count(state: State, raw: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The state of the sequence with ``raw`` (N,) items as its ids, and their order in it."""
    special = state["counts"][: len(state["counts"]) - len(state["ids"])]
    seen = state["counts"][len(special) :]
    counts = np.zeros(len(raw), np.int64)
    _, theirs, ours = np.intersect1d(state["ids"], raw, return_indices=True)
    counts[ours] = seen[theirs]
    order = np.lexsort((raw, -counts))
    special = special.copy()
    special[1] += seen.sum() - counts.sum()
    return {"ids": raw[order], "counts": np.concatenate([special, counts[order]])}, order
