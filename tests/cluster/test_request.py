"""What a job should ask for, from records."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from medkit.cluster.outcomes import CaseOutcome
from medkit.cluster.request import Request, completed, needs_of, raised

CASE = CaseOutcome("register", ("/a",), "/b", None, False, 60.0, 850.0, datetime(2026, 1, 1, tzinfo=UTC))


def test_memory_of_all_stages_and_time_of_a_shard() -> None:
    needs = needs_of([CASE, replace(CASE, seconds=120.0), replace(CASE, task="segment", peak_rss_mb=2850.0)])
    assert needs is not None
    assert needs.memory_mb == 5200  # 1.3 x (850 + 150 + 2850 + 150)
    assert needs.seconds_per_case == 90 + 60
    # 2 x 60 + 1.3 x (10 x 150 + 120) + 276 s until the end
    assert needs.warning_seconds == 276
    assert needs.minutes(10) == 50


@pytest.mark.parametrize("change", [{"error": "x"}, {"skipped": True}])
def test_failed_and_kept_cases_say_nothing(change: dict[str, object]) -> None:
    assert needs_of([replace(CASE, **change)]) is None  # type: ignore[arg-type]


def test_unknown_memory_is_not_guessed() -> None:
    needs = needs_of([CASE, replace(CASE, task="segment", peak_rss_mb=0.0)])
    assert needs is not None
    assert needs.memory_mb is None


@pytest.mark.parametrize(("asked", "expected"), [(1000, 2000), (3000, 6000), (20_000, 20_000)])
def test_after_a_kill_twice_as_much_unless_it_was_plenty(asked: int, expected: int) -> None:
    needs = needs_of([CASE], Request(memory_mb=asked))
    assert needs is not None
    assert needs.memory_mb == expected


def test_what_was_asked_for_stays() -> None:
    needs = needs_of([CASE])
    assert completed(Request(memory_mb=99), needs, 1) == Request(memory_mb=99, minutes=10, warning_seconds=198)
    assert completed(Request(), None, 1) == Request()


def test_a_second_try_never_asks_for_less() -> None:
    needs = needs_of([CASE])  # 1300 MB, 10 minutes
    first = Request(memory_mb=9000, minutes=120)
    assert raised(first, {}, needs, 1) == replace(first, warning_seconds=198)
    assert raised(Request(), {}, needs, 1) == Request(memory_mb=1300, minutes=10, warning_seconds=198)
    assert raised(first, {"memory_mb": 50, "minutes": 5}, needs, 1) == Request(1, 50, 5, warning_seconds=198)
    assert raised(first, {"cpus": 3}, None, 1) == replace(first, cpus=3)
