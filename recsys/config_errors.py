"""What is wrong with a config, in words: the key in the file, the value and the remedy."""

from __future__ import annotations

import difflib
import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError

from recsys.types import FrozenConfig


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """What follows a word that is not known: the nearest known one, or all of them."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    near = near or difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def problems(error: ValidationError, root: type[FrozenConfig]) -> str:
    """All problems of a tree that is no ``root``, in one line."""
    found = [dict(item) for item in error.errors()]
    # a list whose elements are all wrong is not too short, too
    inner = {item["loc"][:cut] for item in error.errors() for cut in (-1, -2)}
    wrong = [i for i in found if i["type"] != "too_short" or i["loc"] not in inner]
    return "; ".join(_problem(item, root) for item in wrong)


def _problem(error: dict[str, Any], root: type[FrozenConfig]) -> str:
    place = _place(error["loc"], root)
    if error["type"] == "extra_forbidden":
        known = _known_keys(error["loc"][:-1], root)
        return f"{place}: unknown key{did_you_mean(str(error['loc'][-1]), known)}"
    if error["type"] == "union_tag_invalid":
        known = [tag.strip(" '") for tag in error["ctx"]["expected_tags"].split(",")]
        key = error["ctx"]["discriminator"].strip("'")
        return f"{place}.{key}: unknown value {error['ctx']['tag']!r}" + did_you_mean(
            str(error["ctx"]["tag"]), known
        )
    if error["type"] == "union_tag_not_found":
        return f"{place}: the key {error['ctx']['discriminator']} is missing"
    if error["type"] == "missing":
        return f"{place}: this key is missing"
    message = error["msg"].removeprefix("Value error, ")
    message = _PLAIN.get(error["type"], message)
    if error["type"] == "value_error":
        return f"{place}: {message}" if place else message
    if isinstance(error["input"], bool) and error["type"] == "string_type":
        message += "; YAML reads no, off, yes and on as true or false: put quotes around it"
    given = f"{message} (given {error['input']!r})"
    return f"{place}: {given}" if place else given


_PLAIN = {
    "tuple_type": "must be a list, such as [a, b]",
    "list_type": "must be a list, such as [a, b]",
    "dict_type": "must be a mapping of keys",
    "model_type": "must be a mapping of keys",
    "model_attributes_type": "must be a mapping of keys",
}
"""What pydantic says in words of Python."""


def _place(loc: tuple[Any, ...], root: Any) -> str:
    """The dotted key of a pydantic location: the tags of unions are no keys of the file."""
    parts: list[str] = []
    for kind, part in _steps(loc, root):
        if kind == "key":
            parts.append(str(part))
    return ".".join(parts)


def _known_keys(loc: tuple[Any, ...], root: Any) -> list[str]:
    node = root
    for _, part in _steps(loc, root):
        node = _child(node, part)
    return list(node.model_fields) if _is_config(node) else []


def _steps(loc: tuple[Any, ...], root: Any) -> list[tuple[Literal["key", "tag"], Any]]:
    """Labels each part of a location by walking the tree of config classes along it."""
    node = root
    steps: list[tuple[Literal["key", "tag"], Any]] = []
    for part in loc:
        steps.append(("tag" if _is_union(node) else "key", part))
        node = _child(node, part)
    return steps


def _child(node: Any, part: Any) -> Any:
    node = _bare(node)
    if _is_config(node):
        found = node.model_fields.get(part)
        return _bare(found.annotation) if found is not None else None
    if get_origin(node) is dict:
        return _bare(get_args(node)[1])
    if get_origin(node) is tuple:
        return _bare(get_args(node)[0])
    if _is_union(node):
        for option in _options(node):
            for info in option.model_fields.values():
                if get_origin(info.annotation) is Literal and part in get_args(info.annotation):
                    return option
    return None


def _options(node: Any) -> list[Any]:
    """The choices of a union, those of unions inside it among them and ``None`` not; of any other
    type, itself."""
    if get_origin(node) is Annotated:
        return _options(get_args(node)[0])
    if get_origin(node) in (Union, types.UnionType):
        return [option for choice in get_args(node) for option in _options(choice)]
    return [] if node is types.NoneType else [node]


def _bare(node: Any) -> Any:
    options = _options(node)
    return options[0] if len(options) == 1 else node


def _is_config(node: Any) -> bool:
    return isinstance(node, type) and issubclass(node, FrozenConfig)


def _is_union(node: Any) -> bool:
    options = _options(node)
    return len(options) > 1 and all(_is_config(option) for option in options)
