"""Catalogues as tokens: whose text, which words, and which ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.data.item_space import fit_sequences, raw_items, special_ids
from recsys.features import Features
from recsys.features.item_text import ItemText, item_text, with_text, word_state
from recsys.features.item_tokens import ItemTextConfig
from recsys.features.sequence import Sequence
from recsys.features.tokenizers import open_tokenizer, words
from recsys.types import InputError
from serving.encode import ids_of
from serving.parquet import open_source

LOG = [["a", "b", "a"], ["c", "a", "z"]]  # z has no row in the catalogue
CATALOGUE = {
    "item": ["b", "a", "new", "c", "empty", None],
    "title": ["Red Hat", "red shoe", "Red Hat", "Blue  shoe!", None, "Nobody's"],
    "tags": [["x"], [], ["x"], ["x", None, "y"], None, ["q"]],
}


def fitted(folder: Path, log: list[list[str]] = LOG) -> Features:
    pq.write_table(pa.table({"history": log}), folder / "log.parquet")
    feature = Sequence(type="sequence", max_length=5)
    return fit_sequences({"history": feature}, open_source(folder / "log.parquet"))


def read(
    folder: Path, catalogue: dict[str, list] = CATALOGUE, **settings: object
) -> tuple[Features, pa.Array]:
    pq.write_table(pa.table(catalogue), folder / "items.parquet")
    config = {"source": "items.parquet", "item": "item", "attributes": ["title", "tags"]}
    return with_text(fitted(folder), ItemTextConfig(**{**config, **settings}), folder)


def text_of(features: Features) -> ItemText:
    text = item_text(features)
    assert text is not None
    return text


def said(features: Features, items: pa.Array) -> dict[str, list[tuple[str, bool, int]]]:
    """Raw item -> its tokens: word, whether it is of an attribute's name, place in its word."""
    text, raw = text_of(features), raw_items(items, features).to_pylist()
    state = word_state(features)
    every = ["red", "hat", "shoe", "blue", "x", "y", "title", "tags", "nobody's", "q"]
    names = dict(zip(ids_of(pa.array(every), "w").tolist(), every, strict=True))
    known = {2 + i: names[word] for i, word in enumerate(state["ids"].tolist())}
    found = {}
    for encoded in range(special_ids(features), len(raw)):
        t = text.text[encoded]
        place = range(text.ends[t - 1], text.ends[t])
        found[raw[encoded]] = [
            (known[int(text.tokens[i])], bool(text.keys[i]), int(text.pieces[i])) for i in place
        ]
    return found


def test_words() -> None:
    assert words("The Dog's bone_42, (ÉCOLE)") == [["the"], ["dog's"], ["bone"], ["42"], ["école"]]
    assert words(" -- ") == []
    assert words("हिन्दी फिल्म") == [["हिन्दी"], ["फिल्म"]], "vowels are marks"
    assert words("cafe\u0301") == words("CAFÉ")


def test_values_of_any_plain_type_are_text(tmp_path: Path) -> None:
    features, items = read(
        tmp_path,
        {
            "item": ["a", "b", "c"],
            "title": pa.array(["red", None, "hat"]).dictionary_encode(),
            "year": pa.array([1999.0, float("nan"), None]),
            "tags": [["x", None], [None], None],
        },
        attributes=["title", "year", "tags"],
    )
    known = item_text(features)
    assert known is not None
    assert set(raw_items(items, features).to_pylist()) == {None, "a", "c"}, "b says nothing"
    assert len(known.counts) == 2 + len(["title", "year", "tags", "red", "hat", "1999", "0", "x"])


@pytest.mark.parametrize(
    "values", [[b"red", b"hat"], [[["x"]], [["y"]]], [{"a": 1}, {"a": 2}]], ids=str
)
def test_values_that_are_no_text(tmp_path: Path, values: list) -> None:
    with pytest.raises(InputError, match="title"):
        read(tmp_path, {"item": ["a", "b"], "title": values, "tags": [[], []]})


def test_attributes_are_names_and_values_in_order(tmp_path: Path) -> None:
    features, items = read(tmp_path)
    tokens = said(features, items)
    key = [("title", True, 0)]
    assert tokens["a"] == [*key, ("red", False, 0), ("shoe", False, 0)], "its list is empty"
    assert tokens["c"] == [
        *key,
        ("blue", False, 0),
        ("shoe", False, 0),
        ("tags", True, 0),
        ("x", False, 0),
        ("y", False, 0),
    ]


def test_the_items_are_those_with_text_by_training_count(tmp_path: Path) -> None:
    """New ones last; those without text, and items without a row, count as unseen."""
    features, items = read(tmp_path)
    raw = raw_items(items, features).to_pylist()
    assert raw[:3] == [None, None, "a"]
    assert set(raw[3:5]) == {"b", "c"}
    assert raw[5:] == ["new"]
    counts = features.fields[0].counts
    assert counts is not None
    assert counts.tolist() == [0, 1, 3, 1, 1, 0]  # z once
    assert special_ids(features) == 2


def test_equal_texts_are_one(tmp_path: Path) -> None:
    features, items = read(tmp_path)
    raw, text = raw_items(items, features).to_pylist(), text_of(features)
    assert text.text[raw.index("new")] == text.text[raw.index("b")] > 0
    assert text.text[raw.index("a")] != text.text[raw.index("b")]
    assert len(text.ends) == 4, "the empty one and three others"
    assert text.text[:2].tolist() == [0, 0]


def test_rare_words_are_not_read_and_long_values_are_cut(tmp_path: Path) -> None:
    features, items = read(tmp_path, min_count=2, max_tokens=1)
    tokens = said(features, items)
    read_of_c = [word for word, key, _ in tokens["c"] if not key]
    assert read_of_c == ["x"], "blue is rare, shoe and y are cut"
    assert [word for word, key, _ in tokens["b"] if not key] == ["red", "x"]


def test_later_catalogues_are_read_by_the_words_of_the_first(tmp_path: Path) -> None:
    features, _ = read(tmp_path)
    later = {"item": ["n1", "n2", "a"], "title": ["red y", "unheard", "red shoe"]}
    pq.write_table(pa.table(later), tmp_path / "later.parquet")
    config = ItemTextConfig(source="later.parquet", item="item", attributes=("title",))
    again, items = with_text(features, config, tmp_path, keep_words=True)
    assert np.array_equal(word_state(again)["ids"], word_state(features)["ids"])
    tokens = said(again, items)
    assert set(tokens) == {"n1", "a"}, "of n2 nothing can be read"
    assert [word for word, _, _ in tokens["n1"]] == ["title", "red", "y"]
    assert again.fields[0].counts is not None
    assert again.fields[0].counts.tolist() == [0, 3, 3, 0]  # a as often as before


def test_saved_and_loaded_texts_are_equal(tmp_path: Path) -> None:
    features, _ = read(tmp_path)
    features.save(tmp_path / "features")
    loaded = Features.load(tmp_path / "features")
    assert loaded.fingerprint == features.fingerprint
    assert vars(text_of(loaded)).keys() == vars(text_of(features)).keys()
    for name, values in vars(text_of(features)).items():
        assert np.array_equal(getattr(text_of(loaded), name), values)


@pytest.mark.parametrize(
    ("catalogue", "says"),
    [
        ({"item": ["a", "b", "a"]}, "row 2 of the group: item 'a' of column 'item' is in the"),
        ({"item": [1, 2, 3]}, "column 'item' is int64, but the log's items are text"),
        (
            {"item": ["a", "b", "c"], "title": [None, "!", ""]},
            "no item has a word that is read in",
        ),
        ({"item": ["a", "b", "c"], "title": ["x"] * 3, "tags": None}, "tags"),
    ],
)
def test_catalogues_that_cannot_be_read(tmp_path: Path, catalogue: dict, says: str) -> None:
    plain = {"title": pa.nulls(3, pa.string()), "tags": pa.nulls(3, pa.list_(pa.string()))}
    columns = {name: values for name, values in {**plain, **catalogue}.items() if values}
    with pytest.raises(InputError, match="(?s)" + says.replace("(", r"\(")):
        read(tmp_path, {k: v for k, v in columns.items() if v is not None})


def test_words_of_pieces_from_a_tokenizer_file(tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers")
    made = library.Tokenizer(
        library.models.WordPiece({"red": 0, "sh": 1, "##oe": 2, "[UNK]": 3}, unk_token="[UNK]")
    )
    made.pre_tokenizer = library.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    split = open_tokenizer("tokenizer.json", tmp_path)
    made.enable_padding(length=8)
    made.enable_truncation(2)
    made.save(str(tmp_path / "tokenizer.json"))
    assert open_tokenizer("tokenizer.json", tmp_path)("red shoe red") == split("red shoe red")
    assert split("red shoe red") == [["red"], ["sh", "##oe"], ["red"]]
    features, _ = read(
        tmp_path,
        {"item": ["a", "b"], "title": ["shoe", "red"], "tags": [[], []]},
        tokenizer="tokenizer.json",
    )
    assert 1 in text_of(features).pieces.tolist()
    columns = {"source": "items.parquet", "item": "item", "attributes": ["title", "tags"]}
    config = ItemTextConfig(**columns, tokenizer="tokenizer.json")
    again, _ = with_text(features, config, tmp_path, keep_words=True)
    assert np.array_equal(text_of(again).tokens, text_of(features).tokens)
    made.enable_truncation(3)
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match=r"tokenizer.json: is another than the model was trained"):
        with_text(features, config, tmp_path, keep_words=True)


def test_a_tokenizer_that_is_none(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    with pytest.raises(InputError, match="no such file; write words, or give a"):
        open_tokenizer("missing.json", tmp_path)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(InputError, match=r"bad.json: is no tokenizer.json \("):
        open_tokenizer("bad.json", tmp_path)
