"""Every key of a config, with its type, default and meaning, as one Markdown page."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from typing import Any, get_args

from recsys.config import RunConfig, SequenceRunConfig
from recsys.types import FrozenConfig

HEAD = """# Keys of a config

Written by `recsys config reference > docs/CONFIG.md`. `recsys config show FILE` prints a config
with every default. Configs to start from are in [configs](../configs).
"""
TAGS = ("type", "method", "name")
"""Keys that say which of several mappings one is."""


def run() -> str:
    """The page: each mapping once."""
    seen: set[type] = set()
    parts = [HEAD, "# Models of clicks\n", *_sections("", RunConfig, seen)]
    parts += ["# Models that recommend items\n", *_sections("", SequenceRunConfig, seen)]
    return "\n".join(parts).rstrip() + "\n"


def _sections(path: str, kind: type[FrozenConfig], seen: set[type]) -> Iterator[str]:
    """The section of ``kind`` at the key ``path``, then those of the mappings in it."""
    if kind in seen:
        return
    seen.add(kind)
    tag = next((name for name in TAGS if _constant(kind, name) is not None), None)
    title = path or "the run"
    if tag is not None:
        title += f": {{{tag}: {_constant(kind, tag)}}}"
    yield f"## `{title}`\n"
    yield from (f"{text}\n" for text in _meaning(kind, tagged=tag is not None))
    schema = kind.model_json_schema()
    required = schema.get("required", ())
    rows = [
        f"| `{name}` | {_type(entry, schema)} | {_default(entry, name in required)} |"
        for name, entry in schema["properties"].items()
        if name != tag
    ]
    if rows:
        yield "\n".join(["| key | what | default |", "|---|---|---|", *rows]) + "\n"
    for name, field in kind.model_fields.items():
        below = f"{path}.{name}" if path else name
        if name == "features":
            below += ".NAME"
        for inner in _configs(field.annotation):
            yield from _sections(below, inner, seen)


def _configs(annotation: Any) -> list[type[FrozenConfig]]:
    """The mappings that a value of this type may hold, in order."""
    if isinstance(annotation, type) and issubclass(annotation, FrozenConfig):
        return [annotation]
    found = [kind for part in get_args(annotation) for kind in _configs(part)]
    return list(dict.fromkeys(found))


def _constant(kind: type[FrozenConfig], name: str) -> str | None:
    field = kind.model_fields.get(name)
    values = get_args(field.annotation) if field is not None else ()
    return values[0] if len(values) == 1 and isinstance(values[0], str) else None


def _meaning(kind: type[FrozenConfig], *, tagged: bool) -> list[str]:
    """What the class and those it builds on say of their keys; of one of several, first what its
    file says that it is, all of it where the class refers to it."""
    bases = [base for base in kind.__mro__ if issubclass(base, FrozenConfig)]
    texts = [inspect.cleandoc(base.__doc__) for base in bases[:-1] if base.__doc__]
    page = inspect.cleandoc(sys.modules[kind.__module__].__doc__ or "")
    if any("module's docstring" in text for text in texts):
        return [page, *(text for text in texts if "module's docstring" not in text)]
    return [*([page.split("\n\n")[0]] if tagged else []), *texts]


def _type(entry: dict[str, Any], schema: dict[str, Any]) -> str:
    options = entry.get("anyOf") or entry.get("oneOf")
    if options:
        return ", or ".join(dict.fromkeys(_type(option, schema) for option in options))
    if "$ref" in entry:
        target = schema["$defs"][entry["$ref"].rpartition("/")[2]]
        return "mapping, see below" if "properties" in target else _type(target, schema)
    if "const" in entry or "enum" in entry:
        values = entry.get("enum", [entry.get("const")])
        return ", ".join(f"`{value}`" for value in values)
    kind = entry.get("type")
    if kind == "array":
        parts = entry.get("prefixItems") or [entry.get("items", {})]
        return "list of " + ", ".join(dict.fromkeys(_type(part, schema) for part in parts))
    if kind == "object":
        return "mapping, see below"
    words = {
        "string": "text",
        "integer": "whole number",
        "null": "null",
        "boolean": "true or false",
    }
    bounds = (("exclusiveMinimum", "above"), ("minimum", "from"), ("exclusiveMaximum", "below"))
    found = [f"{word} {entry[key]:g}" for key, word in (*bounds, ("maximum", "to")) if key in entry]
    return " ".join([words.get(str(kind), str(kind)), *found])


def _default(entry: dict[str, Any], required: bool) -> str:
    if required:
        return "required"
    value = entry.get("default")
    return "see below" if isinstance(value, dict) else f"`{json.dumps(value)}`"
