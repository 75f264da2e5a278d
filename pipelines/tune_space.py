"""The space of a search for settings: which keys of a config are tried, and which values."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import FiniteFloat, ValidationError, field_validator, model_validator

from recsys.config import AnyRunConfig, parse_config, put, read_yaml
from recsys.config_errors import problems
from recsys.types import FrozenConfig, InputError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

TUNED = ("features.", "embedding", "model", "selection", "train.", "data.items.")
"""What keys start with. Trials are compared on the same rows by the same metric."""

Values = dict[str, Any]
"""Key of the config -> value."""


class Range(FrozenConfig):
    """All numbers from ``low`` to ``high``, ends included, or the whole ones where a config takes
    no others. ``log``: evenly by magnitude."""

    low: int | FiniteFloat
    high: int | FiniteFloat
    log: bool = False

    @field_validator("low", "high", mode="before")
    @classmethod
    def _is_number(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError(f"{value} is no number")
        return value

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low} must be above 0 for log: true")
        return self

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)


class Space:
    """Domains by dotted key of the config: a `Range`, or the list of values to choose from, which
    may be whole mappings (``embedding: [{method: full}, {method: hash, budget: 0.5}]``)."""

    def __init__(self, domains: Mapping[str, Range | list[Any]]) -> None:
        self.domains = dict(domains)

    @classmethod
    def load(cls, path: Path, config: AnyRunConfig) -> Space:
        """Reads a YAML file of ``KEY: DOMAIN``. Errors: `InputError` for a key that ``config``
        cannot have, and a domain of which it can have no value."""
        tree = read_yaml(path, "space")
        if not isinstance(tree, dict) or not tree:
            raise InputError(
                f"space {path}: must be a mapping of keys of a config, such as "
                "train.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}"
            )
        for key in map(str, tree):
            if not key.startswith(TUNED) or key == "train.monitor":
                raise InputError(
                    f"space {path}: {key}: trials are compared on the same rows by the same "
                    "metric; give keys of features, embedding, model, selection or train"
                )
            inner = next((other for other in tree if str(other).startswith(f"{key}.")), None)
            if inner is not None:
                raise InputError(
                    f"space {path}: {inner}: lies within {key}, which is given, too; put it into "
                    "its values, or leave one of the two out"
                )
        space = cls({key: _domain(value, f"space {path}: {key}") for key, value in tree.items()})
        for key, domain in space.domains.items():
            ends = [domain.low, domain.high] if isinstance(domain, Range) else domain
            reasons = [_refusal(config, {key: value}) for value in ends]
            if None not in reasons:
                raise InputError(f"space {path}: {key}: no value fits the config: {reasons[0]}")
            if isinstance(domain, Range) and not _refusal(config, {key: domain.low + 0.5}):
                low, high = float(domain.low), float(domain.high)
                space.domains[key] = Range(low=low, high=high, log=domain.log)
        return space

    def plain(self) -> Values:
        """As JSON."""
        return {
            key: domain.model_dump() if isinstance(domain, Range) else domain
            for key, domain in self.domains.items()
        }

    def distributions(self) -> dict[str, BaseDistribution]:
        """For optuna, which takes only scalars: choices are their JSON there."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        found: dict[str, BaseDistribution] = {}
        for key, domain in self.domains.items():
            if isinstance(domain, list):
                found[key] = CategoricalDistribution([json.dumps(value) for value in domain])
            elif domain.whole:
                found[key] = IntDistribution(int(domain.low), int(domain.high), log=domain.log)
            else:
                found[key] = FloatDistribution(domain.low, domain.high, log=domain.log)
        return found

    def values(self, params: Mapping[str, Any]) -> Values:
        """What optuna suggests, as values of the config."""
        return {
            key: json.loads(params[key]) if isinstance(domain, list) else params[key]
            for key, domain in self.domains.items()
        }

    def params(self, config: AnyRunConfig) -> Values | None:
        """What ``config`` itself has, as optuna would suggest it; None if it is outside."""
        found: Values = {}
        for key, domain in self.domains.items():
            value: Any = config.model_dump(mode="json")
            for part in key.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if isinstance(domain, Range):
                number = isinstance(value, int | float) and not isinstance(value, bool)
                if not number or not domain.low <= value <= domain.high:
                    return None
                if domain.whole and value != int(value):
                    return None
                found[key] = int(value) if domain.whole else float(value)
                continue
            same = [choice for choice in domain if _has(config, key, choice)]
            if not same:
                return None
            found[key] = json.dumps(same[0])
        return found


def with_values(config: AnyRunConfig, values: Values, **more: Any) -> AnyRunConfig:
    """``config`` with other ``values``, and ``more`` of its own keys. Errors: `InputError` for
    values that it cannot have together."""
    tree = config.model_dump(mode="json", exclude_unset=True) | more
    for key, value in values.items():
        put(tree, key, copy.deepcopy(value), where=key)
    said = ", ".join(f"{key}={json.dumps(value)}" for key, value in values.items())
    return parse_config(tree, where=said)


def _domain(value: Any, where: str) -> Range | list[Any]:
    if isinstance(value, list):
        try:
            different = {json.dumps(entry) for entry in value}
        except TypeError as error:
            raise InputError(f"{where}: {error}; put quotes around it") from None
        if not 1 < len(different) == len(value):
            raise InputError(f"{where}: must list two or more different values")
        return value
    try:
        return Range.model_validate(value)
    except ValidationError as error:
        raise InputError(
            f"{where}: must be a list of values, or {{low: A, high: B}} with log: true if you "
            f"like: {problems(error, Range)}"
        ) from error


def _refusal(config: AnyRunConfig, values: Values) -> str | None:
    try:
        with_values(config, values)
    except InputError as error:
        return str(error)
    return None


def _has(config: AnyRunConfig, key: str, choice: Any) -> bool:
    try:
        return with_values(config, {key: choice}).fingerprint == config.fingerprint
    except InputError:
        return False
