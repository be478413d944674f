"""How far corruptions lower a bundle's metric: as a table for people, as CSV, as JSON and as a picture."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict
from typing import Any

from medkit.evaluation.classes.report import TITLES as CLASS_TITLES
from medkit.evaluation.report import TITLES, finite, number_text
from medkit.figures.charts import SIZE, Series, line_chart, round_ticks, spread
from medkit.robustness.corruptions import CORRUPTIONS
from medkit.robustness.run import ORIGINAL, CorruptionRow, Robustness
from medkit.robustness.scores import MEASURES
from medkit.terminal.tables import Layout, aligned

_TITLES = TITLES | CLASS_TITLES
_KEY = 40
"""Pixels next to the axes for the names of the corruptions."""


def table(done: Robustness, layout: Layout = aligned) -> str:
    """Return lines for people: corruption and strength, the main measure and its fall, and the other measures."""
    main, *others = MEASURES[done.settings.kind]
    interval = ["95% from", "95% to"]
    head = ["shift", "strength", _TITLES[main], *interval, "fall", *interval, *(_TITLES[o] for o in others), "n"]
    rows = [head]
    for row in done.rows:
        value, fall = row.values[main], row.values[f"fall_{main}"]
        numbers = [value.value, value.low, value.high]
        falls = [fall.value, fall.low, fall.high] if row.corruption != ORIGINAL[0] else [math.nan] * 3
        texts = [number_text(n) for n in (*numbers, *falls, *(row.values[o].value for o in others))]
        rows.append([row.corruption, _strength(row), *texts, str(row.n)])
    return f"{layout(rows, 1)}\n\n{_legend(done)}\n"


def csv_text(done: Robustness) -> str:
    """Return a row for each corruption and strength: every measure and its fall, with the ends of their intervals."""
    names = [name for measure in MEASURES[done.settings.kind] for name in (measure, f"fall_{measure}")]
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    columns = [name + end for name in names for end in ("", "_low", "_high")]
    writer.writerow(["shift", "strength", "n", *columns])
    for row in done.rows:
        numbers = [n for name in names for n in asdict(row.values[name]).values()]
        writer.writerow([row.corruption, row.strength, row.n, *("" if math.isnan(n) else repr(n) for n in numbers)])
    return out.getvalue()


def as_data(done: Robustness) -> dict[str, Any]:
    """Return the same as JSON data; null for values that are not defined."""
    data: dict[str, Any] = finite(
        {
            "bundle": done.bundle,
            "kind": done.settings.kind,
            "measure": MEASURES[done.settings.kind][0],
            "rows": [_row_data(row) for row in done.rows],
            "strengths": _units(done),
            "failed": list(done.failures),
            "settings": {"seed": done.settings.seed},
        }
    )
    return data


def _row_data(row: CorruptionRow) -> dict[str, Any]:
    values = {name: asdict(estimate) for name, estimate in row.values.items()}
    return {"shift": row.corruption, "strength": row.strength, "n": row.n, "values": values}


def picture(done: Robustness) -> bytes:
    """Return a PNG: the main measure over the strength of the corruption, a line for each corruption."""
    main = MEASURES[done.settings.kind][0]
    clean, *rest = done.rows
    lines: dict[str, list[float]] = {}
    for row in rest:
        lines.setdefault(row.corruption, [clean.values[main].value]).append(row.values[main].value)
    series = [
        Series(name, [(n, v) for n, v in enumerate(values) if math.isfinite(v)]) for name, values in lines.items()
    ]
    values = [value for line in series for _, value in line.points] or [0.0, 1.0]
    most = max((len(values) for values in lines.values()), default=2) - 1
    size = (SIZE[0] + _KEY, SIZE[1])
    across = ("strength, from the original images (0) to strong", [float(n) for n in range(most + 1)])
    up = (_TITLES[main], round_ticks(*spread(values), 6, most=1 if max(values) <= 1 else math.inf))
    return line_chart(series, across, up, f"{done.bundle}: {clean.n} images", size=size, room=_KEY)


def _strength(row: CorruptionRow) -> str:
    return "-" if row.corruption == ORIGINAL[0] else f"{row.strength:g}"


def _legend(done: Robustness) -> str:
    """Return lines that explain the strengths."""
    return "\n".join(f"{name}: {unit}" for name, unit in _units(done).items())


def _units(done: Robustness) -> dict[str, str]:
    """Return corruption -> what its strengths measure, for the corruptions that were used."""
    return {row.corruption: CORRUPTIONS[row.corruption].unit for row in done.rows if row.corruption in CORRUPTIONS}
