"""Every model says where it comes from, in `recsys models` and in its docstring alike."""

from __future__ import annotations

import pytest

from recsys.models import MODELS
from recsys.models.papers import PAPERS


def test_every_model_has_a_paper() -> None:
    assert set(PAPERS) == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_the_docstring_cites_the_same_paper(name: str) -> None:
    cited = " ".join((MODELS[name].__doc__ or "").split())
    paper = PAPERS[name]
    assert paper.url in cited
    assert paper.authors in cited
    assert str(paper.year) in cited
