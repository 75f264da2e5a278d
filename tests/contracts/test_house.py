"""Rules of the house that no reviewer should have to remember."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("recsys", "serving", "pipelines", "benchmarks")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
FORBIDDEN = {
    "serving": {"recsys", "pipelines", "torchrec", "mlflow", "pydantic", "fbgemm_gpu"},
    "recsys": {"pipelines", "benchmarks"},
    "pipelines": {"benchmarks", "mlflow"},
    "benchmarks": set(),
}
ONLY_IN = {"mlflow": "recsys/training/tracking", "torchrec": "recsys/embeddings/torchrec_store.py"}
UNSAFE_CALLS = {"eval", "exec"}
UNSAFE_ATTRIBUTES = {("torch", "load"), ("yaml", "load"), ("yaml", "unsafe_load")}


def _ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _imports(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=_ids)
def test_imports_go_one_way(path: Path) -> None:
    imported = _imports(ast.parse(path.read_text()))
    assert not imported & FORBIDDEN[path.relative_to(ROOT).parts[0]]
    if not _ids(path).startswith("benchmarks"):
        for package, place in ONLY_IN.items():
            assert package not in imported or _ids(path).startswith(place)


@pytest.mark.parametrize("path", FILES, ids=_ids)
def test_files_stay_small(path: Path) -> None:
    limit = 200 if path.parent == ROOT / "recsys" / "models" else 300
    assert len(path.read_text().splitlines()) <= limit


@pytest.mark.parametrize("path", FILES, ids=_ids)
def test_nothing_unpickles_or_evaluates(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not _imports(tree) & {"pickle", "joblib", "dill", "cloudpickle", "shelve"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name):
                assert function.id not in UNSAFE_CALLS
            elif isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
                assert (function.value.id, function.attr) not in UNSAFE_ATTRIBUTES
