"""`Features`: everything that was fitted, as one frozen value.

On disk: ``features.json`` (format version, configs, raw inputs, fingerprint) and
``features.safetensors`` (the arrays). The fingerprint covers both, and is checked on loading.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from recsys.disk import readable
from recsys.features.base import InputKind, State
from recsys.features.encoder import FeatureEncoder, Route
from recsys.features.kinds import FeatureConfig
from recsys.types import FieldSpec, InputError, InputField

FORMAT = 1

_CONFIGS = TypeAdapter(dict[str, FeatureConfig])
_INPUTS = TypeAdapter(tuple[InputField, ...])


@dataclass(frozen=True)
class Features:
    """Fitted features.

    ``configs``: feature name -> config, in config order. ``inputs``: the raw inputs of the graph:
    ids, then floats, then lists; features over one column share an input (lists never do).
    ``states``: feature name -> fitted arrays, of the features that own a state.
    """

    configs: Mapping[str, FeatureConfig]
    inputs: tuple[InputField, ...]
    states: Mapping[str, State] = field(repr=False)

    @cached_property
    def fields(self) -> tuple[FieldSpec, ...]:
        """Fields as tables and models see them: categorical (null indicators and binned numbers
        among them), numeric, lists; each group in config order."""
        specs = [config.spec(name, self._state(name)) for name, config in self.configs.items()]
        return tuple(sorted(specs, key=_group))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of configs, inputs and arrays."""
        digest = hashlib.sha256(json.dumps(self._json(), sort_keys=True).encode())
        digest.update(json.dumps(list(self.configs)).encode())  # the order of fields counts
        for key, array in sorted(self._arrays().items()):
            digest.update(f"\n{key} {array.dtype.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def encoder(self) -> FeatureEncoder:
        """A new encoder: the scriptable module raw `Batch` -> encoded `Batch`."""
        return deepcopy(self._encoder)

    @cached_property
    def _encoder(self) -> FeatureEncoder:
        # Kept, because building the tables of vocabularies takes about half a second a million ids;
        # in threads, because numpy works on them without the interpreter lock.
        with ThreadPoolExecutor() as pool:
            return FeatureEncoder(routes=list(pool.map(self._route, self.fields)))

    def save(self, folder: str | Path) -> None:
        """Writes ``features.json`` and ``features.safetensors`` into an existing or new folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self._arrays(), folder / "features.safetensors")
        readable(folder / "features.safetensors")
        text = json.dumps({**self._json(), "fingerprint": self.fingerprint}, indent=1)
        (folder / "features.json").write_text(text + "\n", encoding="utf-8")

    @staticmethod
    def load(folder: str | Path) -> Features:
        """Reads what `save` wrote. Errors: `InputError` for a missing, damaged or newer file."""
        path = Path(folder) / "features.json"
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            arrays = load_file(path.with_suffix(".safetensors"))
        except (OSError, ValueError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"features in {folder}: cannot be read ({reason})") from error
        if not isinstance(tree, dict) or tree.get("format") != FORMAT:
            raise InputError(f"features in {folder}: format is not {FORMAT}; fit them again")
        try:
            configs = _CONFIGS.validate_python(tree.get("features"))
            inputs = _INPUTS.validate_python(tree.get("inputs"))
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise InputError(
                f"features in {folder}: features.json is damaged ({reason})"
            ) from error
        states: dict[str, dict[str, np.ndarray]] = {}
        for key, array in arrays.items():
            name, _, part = key.rpartition("/")
            states.setdefault(name, {})[part] = array
        features = Features(configs=configs, inputs=inputs, states=states)
        if features.fingerprint != tree.get("fingerprint"):
            raise InputError(f"features in {folder}: fingerprint differs, a file was changed")
        return features

    def _json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "features": {
                name: config.model_dump(mode="json", exclude_defaults=True)
                for name, config in self.configs.items()
            },
            "inputs": [asdict(item) for item in self.inputs],
        }

    def _arrays(self) -> dict[str, np.ndarray]:
        return {
            f"{name}/{part}": array
            for name, state in self.states.items()
            for part, array in state.items()
        }

    def _state(self, name: str) -> State:
        return self.states.get(self.configs[name].owner or name, {})

    def _route(self, spec: FieldSpec) -> Route:
        config = self.configs[spec.name]
        place = self._place(spec.name)
        kind = self.inputs[place].kind
        first = next(i for i, item in enumerate(self.inputs) if item.kind == kind)
        module = config.module(spec.name, self._state(spec.name))
        return Route(spec=spec, module=module, reads=kind, source=place - first)

    def _place(self, name: str) -> int:
        """Index of the raw input that a feature reads."""
        config = self.configs[name]
        for i, item in enumerate(self.inputs):
            own = item.name == name
            alike = item.kind != "ids" and item.column == config.source_column(name)
            if (own or alike) and item.kind == config.input_kind(item.dtype):
                return i
        raise AssertionError(f"no input for feature {name}")


def _group(spec: FieldSpec) -> int:
    if spec.is_list:
        return 2
    return 1 if spec.kind == "numeric" else 0


def field_of(name: str, config: FeatureConfig, family: str) -> InputField:
    """The raw input that a feature reads, whose column has this type family."""
    kind: InputKind = config.input_kind(family)
    dtype: Any = family
    return InputField(name, config.source_column(name), kind, dtype, config.keep_last)


def raw_inputs(
    configs: Mapping[str, FeatureConfig], families: Mapping[str, str]
) -> tuple[InputField, ...]:
    """The raw inputs of features whose columns have these type families: ids, floats, lists."""
    found: dict[tuple[str, ...], InputField] = {}
    for name, config in configs.items():
        item = field_of(name, config, families[name])
        found.setdefault((item.kind, item.column, name if item.kind == "ids" else ""), item)
    order = ("id", "float", "ids")
    return tuple(sorted(found.values(), key=lambda item: order.index(item.kind)))
