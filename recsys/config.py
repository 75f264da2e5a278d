"""RunConfig: one YAML file is one complete run, read once into one frozen tree."""

from __future__ import annotations

import difflib
import hashlib
import json
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import Field, ValidationError, model_validator

from recsys.compatibility import check_parts
from recsys.embeddings import EmbeddingConfig
from recsys.features import FeatureConfig
from recsys.models import ModelConfig
from recsys.selection import SelectionConfig
from recsys.settings import DataConfig, ExportConfig, TrackingConfig, TrainConfig
from recsys.types import FrozenConfig, InputError

MONITORS = ("auc", "gauc", "pr_auc", "logloss", "ne", "ece")


class RunConfig(FrozenConfig):
    """One complete run.

    Errors: unknown keys, wrong values and parts that cannot work together are refused when the
    config is read, before any data is touched.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: int = 0
    data: DataConfig
    features: Annotated[dict[str, FeatureConfig], Field(min_length=1)]
    embedding: EmbeddingConfig
    model: ModelConfig
    selection: SelectionConfig | None = None
    train: TrainConfig = TrainConfig()
    tracking: TrackingConfig = TrackingConfig()
    export: ExportConfig = ExportConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> RunConfig:
        if self.train.monitor not in MONITORS:
            hint = _did_you_mean(self.train.monitor, MONITORS)
            raise ValueError(f"train.monitor {self.train.monitor!r} is no metric{hint}")
        if self.train.monitor == "gauc" and self.data.group is None:
            raise ValueError("train.monitor gauc needs data.group, the column of the user")
        check_parts(self.features, self.model, self.train)
        if self.selection is not None and self.train.store == "torchrec":
            raise ValueError(
                "train.store torchrec keeps optimiser state inside its tables, but selection "
                "starts every phase with fresh optimisers; set train.store torch"
            )
        for name, feature in self.features.items():
            column = getattr(feature, "column", None) or name
            if column == self.data.label:
                raise ValueError(f"features.{name} reads the label column {column!r}; remove it")
            shares = getattr(feature, "shares", None)
            if shares is not None and (shares not in self.features or shares == name):
                others = [other for other in self.features if other != name]
                raise ValueError(
                    f"features.{name}.shares names {shares!r}, which is no other feature"
                    f"{_did_you_mean(shares, others)}"
                )
        return self

    @property
    def fingerprint(self) -> str:
        """Digest of everything that decides the result of the run (not of where it is tracked).

        Keys that are not set do not count, so that a new optional key leaves old digests alone.
        """
        tree = self.model_dump(mode="json", exclude={"tracking", "export"}, exclude_none=True)
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads one YAML file and applies ``a.b=value`` overrides (values are YAML).

    Errors: `InputError` naming the file, the key and the remedy, for an unreadable file, an
    unknown key or a value that does not fit.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"config {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"config {path}: is not a UTF-8 text file") from error
    except yaml.YAMLError as error:
        line = " ".join(str(error).split())
        raise InputError(f"config {path}: is not valid YAML: {line}") from error
    if not isinstance(tree, dict):
        raise InputError(f"config {path}: must be a mapping with the keys {', '.join(_keys())}")
    for override in overrides:
        _apply(tree, override)
    return parse_config(tree, where=f"config {path}")


def parse_config(tree: Mapping[str, Any], *, where: str = "config") -> RunConfig:
    """Validates a plain mapping. Errors: `InputError`, one line, all problems in it."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        problems = "; ".join(_problem(dict(item)) for item in error.errors())
        raise InputError(f"{where}: {problems}") from error


def _keys() -> list[str]:
    return list(RunConfig.model_fields)


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"--set {override!r}: must be KEY=VALUE, for example train.max_epochs=3")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {override!r}: the value is not valid YAML") from error
    *parents, last = key.split(".")
    node: Any = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise InputError(f"--set {override!r}: {parent!r} holds a value, not keys")
    node[last] = value


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def _problem(error: dict[str, Any]) -> str:
    place = _place(error["loc"])
    if error["type"] == "extra_forbidden":
        known = _known_keys(error["loc"][:-1])
        return f"{place}: unknown key{_did_you_mean(str(error['loc'][-1]), known)}"
    if error["type"] == "union_tag_invalid":
        known = [tag.strip(" '") for tag in error["ctx"]["expected_tags"].split(",")]
        key = error["ctx"]["discriminator"].strip("'")
        return f"{place}.{key}: unknown value {error['ctx']['tag']!r}" + _did_you_mean(
            str(error["ctx"]["tag"]), known
        )
    if error["type"] == "union_tag_not_found":
        return f"{place}: the key {error['ctx']['discriminator']} is missing"
    if error["type"] == "missing":
        return f"{place}: this key is missing"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{place}: {message}" if place else message
    return f"{place}: {message} (given {error['input']!r})"


def _place(loc: tuple[Any, ...]) -> str:
    """The dotted key of a pydantic location: the tags of unions are no keys of the file."""
    parts: list[str] = []
    for kind, part in _steps(loc):
        if kind == "key":
            parts.append(str(part))
    return ".".join(parts)


def _known_keys(loc: tuple[Any, ...]) -> list[str]:
    node: Any = RunConfig
    for _, part in _steps(loc):
        node = _child(node, part)
    return list(node.model_fields) if _is_config(node) else []


def _steps(loc: tuple[Any, ...]) -> list[tuple[Literal["key", "tag"], Any]]:
    """Labels each part of a location by walking the tree of config classes along it."""
    node: Any = RunConfig
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
