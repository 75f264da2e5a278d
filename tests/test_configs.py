"""Every shipped config is complete: it parses, and its model builds and scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import reference
from recsys.config import load_config
from recsys.embeddings import EMBEDDINGS
from recsys.models import MODELS
from recsys.models.sequence import SEQUENCE_MODELS
from recsys.selection import SELECTIONS

DOCS = Path(__file__).parents[1] / "docs"
CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_loads_and_is_named_like_its_file(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem.replace("_", "-")
    assert config.seed == 2021


def test_the_reference_is_that_of_the_code() -> None:
    """`recsys config reference > docs/CONFIG.md` writes it."""
    page = (DOCS / "CONFIG.md").read_text()
    assert page == reference.run()
    kinds = [*EMBEDDINGS, *MODELS, *SEQUENCE_MODELS, *SELECTIONS]
    for kind in kinds:
        assert page.count(f": {kind}}}`") == 1, kind
