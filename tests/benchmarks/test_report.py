"""Medians, ratios and goals of the benchmark's report, on records made by hand."""

import pytest

from benchmarks.harness import TimedBatches
from benchmarks.report import goals, render, summarise

MILLION = "1000000-rows-1560000-ids"


def timed(system: str, stage: str, seconds: float, rows: int = 600) -> dict:
    turn = {"dataset": MILLION, "stage": stage, "system": system}
    return {**turn, "seconds": seconds, "rows_per_second": rows / seconds}


def watched(system: str, stage: str, peak: int) -> dict:
    return {"dataset": MILLION, "stage": stage, "system": system, "tree_peak_bytes": peak}


def both(system: str, stage: str, seconds: float, peak: int) -> list[dict]:
    return [timed(system, stage, seconds), watched(system, stage, peak)]


def test_summary_is_the_median_over_turns_and_relative_to_recsys() -> None:
    lines = summarise(
        [
            timed("recsys", "train", 2.0),
            timed("fuxictr", "train", 9.0),
            timed("recsys", "train", 3.0),
            timed("fuxictr", "train", 12.0),
            timed("recsys", "train", 40.0),  # a disturbed turn moves no median
            timed("fuxictr", "train", 15.0),
            watched("recsys", "train", 200),
            watched("fuxictr", "train", 500),
        ]
    )
    assert [line["system"] for line in lines] == ["recsys", "fuxictr"]
    ours, rival = lines
    assert (ours["turns"], rival["turns"]) == (3, 3)
    assert (ours["seconds"], ours["fastest"], ours["slowest"]) == (3.0, 2.0, 40.0)
    assert (ours["speed"], ours["memory"]) == (1.0, 1.0)
    assert rival["rows_per_second"] == pytest.approx(50.0)
    assert rival["speed"] == pytest.approx(0.25)  # 50 rows/s against 200
    assert rival["memory"] == pytest.approx(2.5)  # 500 bytes against 200


def test_goals_compare_with_the_rival_at_the_size_they_are_about() -> None:
    lines = summarise(
        [
            *both("recsys", "ingest", 2.0, 100),
            *both("fuxictr", "ingest", 22.0, 290),
            *both("recsys", "train", 2.0, 100),
            *both("fuxictr", "train", 5.0, 100),
        ]
    )
    reached = {
        (g["stage"], g["figure"]): (g["wanted"], g["measured"], g["met"]) for g in goals(lines)
    }
    assert reached == {
        ("ingest", "speed"): (10.0, 11.0, True),
        ("ingest", "memory"): (3.0, 2.9, False),
        ("train", "speed"): (3.0, 2.5, False),  # the goal of a million ids, not that of 120 k
    }


def test_a_failed_system_is_shown_and_leaves_no_ratio() -> None:
    lines = summarise(
        [
            *both("recsys", "train", 2.0, 100),
            {"dataset": MILLION, "stage": "train", "system": "fuxictr", "failed": "exit code 1"},
        ]
    )
    assert (lines[1]["turns"], lines[1]["failed"], lines[1]["speed"]) == (0, 1, None)
    assert goals(lines) == []
    assert ["fuxictr", "failed"] in [line.split() for line in render(lines, []).splitlines()]


def test_timed_batches_hands_out_exactly_warmup_and_steps_and_no_more() -> None:
    taken = []

    def loader():
        for batch in range(100):
            taken.append(batch)
            yield batch

    batches = TimedBatches(loader(), warmup=2, steps=3)
    seen = []
    for batch in batches:
        assert (batches.started > 0) == (batch >= 2)
        seen.append(batch)
    assert seen == taken == [0, 1, 2, 3, 4]
    assert 0 <= batches.waited <= batches.ended - batches.started
