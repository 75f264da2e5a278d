"""The modules of a bundle, alive again: what a TorchScript graph cannot tell, they can."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn

from recsys.build import build
from recsys.bundle.graph import ServingGraph
from recsys.config import RunConfig, parse_click_config
from recsys.embeddings.post_training import quantise_layers
from recsys.features import Features
from serving.bundle import FEATURES, WEIGHTS, Bundle, BundleError
from serving.encode import Batch

__all__ = ["CannotRebuild", "Rebuilt", "config_tree", "load_weights", "rebuild"]

_REASON = 160  # characters of what torch says about weights that do not fit


class CannotRebuild(BundleError):
    """The bundle scores, but its modules cannot be had from its manifest, features and weights."""


@dataclass(frozen=True)
class Rebuilt:
    """``graph``: the eager modules on the CPU, in evaluation mode, with the bundle's weights."""

    path: Path
    config: RunConfig
    features: Features
    graph: ServingGraph

    def check(self, raw: Batch, scores: np.ndarray) -> float:
        """The largest difference between the modules and ``scores`` (B,), the bundle's own for
        ``raw``. Raises `CannotRebuild` above the tolerance its export was proved with (1e-6)."""
        with torch.inference_mode():
            own = self.graph(raw.ids, raw.floats, raw.lists, raw.lengths).numpy()
        gap = float(np.abs(own - scores).max(initial=0.0))
        tolerance = self.config.export.tolerance
        if not gap <= tolerance:  # NaN too
            raise CannotRebuild(
                f"{self.path}: the model built again from it scores up to {gap:.1e} apart from the "
                f"bundle, more than {tolerance:.0e}; it was exported by another version: export "
                "it again with this one"
            )
        return gap


def rebuild(bundle: Bundle) -> Rebuilt:
    """Builds the modules of an opened bundle from its manifest, features and weights.

    Errors: `CannotRebuild` for a bundle without config, without a word on what its selection kept,
    or whose weights do not fit the modules that its config describes, `InputError` for a config or
    features that cannot be read. That the scores are the same is proved row by row: see
    `Rebuilt.check`.
    """
    config = parse_click_config(config_tree(bundle), where=f"config in {bundle.path}")
    features = Features.load(bundle.path / FEATURES)
    assembly = build(config, features)
    if assembly.selection is not None:
        try:
            assembly.selection.assume(bundle.manifest["selection"])
        except (KeyError, TypeError, ValueError) as error:
            raise CannotRebuild(
                f"{bundle.path}: its manifest does not say what its selection kept "
                f"({type(error).__name__}: {error}); export it again"
            ) from None
    parts = assembly.finalise()
    if config.export.quantise is not None:
        quantise_layers(parts.model, config.export.quantise)
    graph = ServingGraph(encoder=parts.encoder, id_map=parts.id_map, model=parts.model).eval()
    load_weights(graph, bundle)
    return Rebuilt(bundle.path, config, features, graph)


def config_tree(bundle: Bundle) -> dict[str, Any]:
    """The config of the run that exported the bundle; `CannotRebuild` without one."""
    tree = bundle.manifest.get("config")
    if not isinstance(tree, dict):
        raise CannotRebuild(f"{bundle.path}: holds no config; export it with its run's config")
    return tree


def load_weights(graph: nn.Module, bundle: Bundle) -> None:
    """Puts the bundle's weights into ``graph``; `CannotRebuild` if they do not fit."""
    try:
        load_model(graph, bundle.path / WEIGHTS)
    except (RuntimeError, SafetensorError) as error:
        lines = str(error).strip().splitlines()
        reason = " ".join(" ".join(lines[1:] or lines).split())[:_REASON]
        raise CannotRebuild(
            f"{bundle.path}: its weights do not fit the model that its config describes "
            f"({reason}); the bundle can score, but its model cannot be built again"
        ) from None
