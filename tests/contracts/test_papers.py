"""Every model says where it comes from, in `recsys models` and in its docstring alike."""

from __future__ import annotations

import pytest

from recsys.models import MODELS
from recsys.models.papers import PAPERS
from recsys.models.sequence import SEQUENCE_MODELS

EVERY = {**MODELS, **SEQUENCE_MODELS}


def test_every_model_has_a_paper() -> None:
    assert set(PAPERS) == set(EVERY)


@pytest.mark.parametrize("name", EVERY)
def test_the_docstring_cites_the_same_paper(name: str) -> None:
    cited = " ".join((EVERY[name].__doc__ or "").split())
    paper = PAPERS[name]
    assert paper.url in cited
    assert paper.authors in cited
    assert str(paper.year) in cited
