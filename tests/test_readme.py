"""The README tells the truth: its config runs, and its commands do what they say."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

README = (Path(__file__).parents[1] / "README.md").read_text()
OWN, NEXT, NEW, TUNE = "Your own log", "What comes next", "New items", "Which settings?"
MAKEFILE = (Path(__file__).parents[1] / "Makefile").read_text()


def blocks(language: str, section: str) -> list[str]:
    """The blocks of one language under one heading."""
    text = README.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.S | re.M)


def commands(section: str) -> list[list[str]]:
    """The words of its ``recsys`` commands."""
    return [
        shlex.split(line, comments=True)
        for block in blocks("sh", section)
        for line in block.splitlines()
        if line.startswith("recsys ")
    ]


def run(words: list[str], folder: Path) -> None:
    """One of them in ``folder``, where patterns name what there is; it must not even warn."""
    expanded = [str(path) for word in words[1:] for path in (sorted(folder.glob(word)) or [word])]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *expanded],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, (words, done.stderr)
    assert "Warning" not in done.stderr, done.stderr


def clicks(rows: int, seed: int) -> pa.Table:
    """The log that the README's own-data section describes."""
    rng = np.random.default_rng(seed)
    items = rng.integers(0, 50, rows)
    return pa.table(
        {
            "clicked": pa.array((rng.random(rows) < 0.2 + 0.5 * (items % 2)).astype(np.int8)),
            "time": pa.array(np.sort(rng.integers(0, 10**9, rows)), pa.timestamp("s")),
            "user": pa.array([f"u{u}" for u in rng.integers(0, 100, rows)]),
            "item": pa.array([f"i{i}" for i in items]),
            "price": pa.array(rng.gamma(2, 10, rows), mask=rng.random(rows) < 0.1),
            "tags": pa.array([[f"t{t}" for t in rng.integers(0, 9, n % 4)] for n in range(rows)]),
            "history": pa.array(
                [[f"i{i}" for i in rng.integers(0, 50, n % 6)] for n in range(rows)]
            ),
        }
    )


def write_shop(folder: Path) -> None:
    """The config and the log of the README's own-data section."""
    (folder / "clicks").mkdir()
    for part in range(2):
        pq.write_table(clicks(1500, part), folder / "clicks" / f"{part}.parquet")
    (config,) = blocks("yaml", OWN)
    (folder / "shop.yaml").write_text(config)


def test_own_log_section_works_as_written(tmp_path: Path) -> None:
    write_shop(tmp_path)
    pq.write_table(clicks(200, 9).drop_columns(["clicked"]), tmp_path / "new.parquet")
    named = [words[1] for words in commands(OWN)]
    assert named == ["outrank", "train", "score", "serve", "importance", "compare", "ui"]
    for words in commands(OWN):
        ending = ["--help"] if words[1] in ("serve", "ui") else []  # servers would run for ever
        run([*words, *ending], tmp_path)
    scored = pq.read_table(tmp_path / "scored.parquet")
    assert scored.column_names == ["user", "item", "score"]
    assert scored.num_rows == 200

    (code,) = blocks("python", OWN)
    (bundle,) = tmp_path.glob("runs/shop-deepfm-*/bundle")
    code = re.sub(r"runs/shop-deepfm-[0-9a-f]+/bundle", str(bundle), code)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\[0\.\d+\]\n", done.stdout)


def write_plays(path: Path) -> dict[str, pa.Array]:
    """The log that the README's sections on items describe."""
    rng = np.random.default_rng(0)
    users = rng.integers(0, 60, 1500)
    log = {
        "user": pa.array([f"u{u}" for u in users]),
        "item": pa.array([f"i{i}" for i in rng.integers(0, 30, 1500)]),
        "time": pa.array(np.arange(1500), pa.timestamp("s")),
    }
    pq.write_table(pa.table(log), path)
    return log


def test_next_items_section_works_as_written(tmp_path: Path) -> None:
    log = write_plays(tmp_path / "plays.parquet")
    (config,) = blocks("yaml", NEXT)
    (tmp_path / "next.yaml").write_text(config)
    assert [words[1] for words in commands(NEXT)] == ["train", "histories", "score", "export"]
    for words in commands(NEXT):
        run(words, tmp_path)
    best = pq.read_table(tmp_path / "best.parquet")
    assert sorted(best["user"].to_pylist()) == sorted(set(log["user"].to_pylist()))
    played: dict[str, set[str]] = {}
    for user, item in zip(log["user"].to_pylist(), log["item"].to_pylist(), strict=True):
        played.setdefault(user, set()).add(item)
    for row in best.to_pylist():
        assert len(row["items"]) == min(10, 30 - len(played[row["user"]]))
        assert not played[row["user"]] & set(row["items"])
    assert (tmp_path / "small" / "manifest.json").exists()


def test_new_items_section_works_as_written(tmp_path: Path) -> None:
    write_plays(tmp_path / "plays.parquet")
    for name, first in (("items", 0), ("new_items", 25)):
        items = {
            "item": [f"i{i}" for i in range(first, first + 30)],
            "title": [f"the {['red', 'green', 'blue'][i % 3]} thing" for i in range(30)],
            "tags": [[f"t{t}" for t in range(i % 4)] for i in range(30)],
        }
        pq.write_table(pa.table(items), tmp_path / f"{name}.parquet")
    (config,) = blocks("yaml", NEW)
    (tmp_path / "text.yaml").write_text(config)
    assert [words[1] for words in commands(NEW)] == ["train", "export"]
    for words in commands(NEW):
        run(words, tmp_path)
    items = pq.read_table(tmp_path / "tomorrow" / "items.parquet")["item"].to_pylist()
    assert "i54" in items
    assert "i3" not in items


def test_settings_section_works_as_written(tmp_path: Path) -> None:
    write_shop(tmp_path)
    (space,) = blocks("yaml", TUNE)
    (tmp_path / "space.yaml").write_text(space)
    search, best = commands(TUNE)
    assert search[1:4] == ["tune", "shop.yaml", "space.yaml"]
    assert search[4] == "--trials"
    run([*search[:5], "3"], tmp_path)
    run(best, tmp_path)
    (tuned,) = tmp_path.glob("runs/shop-deepfm-tuned-*/bundle")
    assert (tuned / "manifest.json").exists()


def test_make_targets_in_the_readme_exist() -> None:
    named = set(re.findall(r"make ([a-z-]+)", README))
    assert {"quickstart", "test"} <= named
    for target in named:
        assert re.search(rf"^{target}:", MAKEFILE, flags=re.M), target


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (Path(__file__).parents[1] / target).exists(), target
