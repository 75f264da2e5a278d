"""One YAML file is one complete run, read once into one frozen tree.

``model.name`` decides what kind: a `RunConfig` scores clicks, a `SequenceRunConfig` ranks items.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError

from recsys.config_errors import problems
from recsys.models import MODELS
from recsys.models.sequence import SEQUENCE_MODELS
from recsys.run_config import RunConfig
from recsys.sequence_config import SequenceRunConfig
from recsys.types import InputError
from serving.paths import without_secrets

__all__ = [
    "AnyRunConfig",
    "RunConfig",
    "SequenceRunConfig",
    "load_config",
    "parse_click_config",
    "parse_config",
    "public",
    "put",
    "read_yaml",
]

AnyRunConfig = RunConfig | SequenceRunConfig


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> AnyRunConfig:
    """Reads one YAML file and applies ``a.b=value`` overrides (values are YAML).

    Errors: `InputError` naming the file, the key and the remedy, for an unreadable file, an
    unknown key or a value that does not fit.
    """
    tree = read_yaml(path, "config")
    if not isinstance(tree, dict):
        keys = ", ".join(RunConfig.model_fields)
        raise InputError(f"config {path}: must be a mapping with the keys {keys}")
    for override in overrides:
        _apply(tree, override)
    return parse_config(tree, where=f"config {path}")


def read_yaml(path: str | Path, what: str) -> Any:
    """The content of the file of a ``what``. Errors: `InputError` for one that cannot be read, is
    not YAML, or has a key twice."""
    try:
        return _Loader(Path(path).read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise InputError(f"{what} {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{what} {path}: is not a UTF-8 text file") from error
    except yaml.YAMLError as error:
        line = " ".join(str(error).split())
        raise InputError(f"{what} {path}: is not valid YAML: {line}") from error


def put(tree: dict[str, Any], key: str, value: Any, *, where: str) -> None:
    """Sets the dotted ``key`` of ``tree``. Errors: `InputError` that starts with ``where``, if a
    parent of the key is no mapping."""
    *parents, last = key.split(".")
    node: Any = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise InputError(f"{where}: {parent!r} holds a value, not keys")
    node[last] = value


def parse_config(tree: Mapping[str, Any], *, where: str = "config") -> AnyRunConfig:
    """Validates a plain mapping. Errors: `InputError`, one line, all problems in it."""
    kind = _kind(tree)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        data = tree.get("data")
        of_clicks = isinstance(data, Mapping) and "label" in data and "item" not in data
        if kind is SequenceRunConfig and of_clicks:
            raise InputError(
                f"{where}: model {tree['model']['name']} recommends items; its data are a source "
                "of user, item and timestamp, with no label (see README, What comes next)"
            ) from error
        raise InputError(f"{where}: {problems(error, kind)}") from error


def parse_click_config(tree: Mapping[str, Any], *, where: str = "config") -> RunConfig:
    """`parse_config` where only a model of clicks makes sense; others are an `InputError`."""
    return _of_clicks(parse_config(tree, where=where), where)


def _of_clicks(config: AnyRunConfig, where: str) -> RunConfig:
    if isinstance(config, SequenceRunConfig):
        raise InputError(
            f"{where}: model {config.model.name} recommends items; this is for models that score "
            "clicks"
        )
    return config


def public(config: AnyRunConfig) -> dict[str, Any]:
    """``config`` as plain JSON for records that others read: no passwords in its URLs."""
    return cast(dict[str, Any], _public(config.model_dump(mode="json")))


def _public(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _public(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_public(part) for part in value]
    return without_secrets(value) if isinstance(value, str) else value


def _kind(tree: Mapping[str, Any]) -> type[RunConfig] | type[SequenceRunConfig]:
    """What the model's name stands for, or what the nearest name does if it is misspelt."""
    model = tree.get("model")
    name = model.get("name") if isinstance(model, Mapping) else None
    near = difflib.get_close_matches(str(name).lower(), [*MODELS, *SEQUENCE_MODELS], n=1)
    return SequenceRunConfig if near and near[0] in SEQUENCE_MODELS else RunConfig


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"--set {override!r}: must be KEY=VALUE, for example train.max_epochs=3")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {override!r}: the value is not valid YAML") from error
    put(tree, key, value, where=f"--set {override!r}")
