"""What shifts cost a bundle as a table for people, as CSV, as JSON and as a picture."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict
from typing import Any

from medkit.evaluation.classes.report import TITLES as CLASS_TITLES
from medkit.evaluation.report import TITLES, aligned, finite, number_text
from medkit.figures.charts import SIZE, Series, line_chart, round_ticks, spread
from medkit.robustness.corruptions import SHIFTS
from medkit.robustness.run import AS_IT_IS, CorruptionRow, Robustness
from medkit.robustness.scores import MEASURES

_TITLES = TITLES | CLASS_TITLES
_KEY = 40
"""Pixels beside the axes for the names of the shifts."""


def table(done: Robustness) -> str:
    """Lines for people: shift and strength, the main measure with its fall, and the other measures."""
    main, *others = MEASURES[done.settings.kind]
    interval = ["95% from", "95% to"]
    head = ["shift", "strength", _TITLES[main], *interval, "fall", *interval, *(_TITLES[o] for o in others), "n"]
    rows = [head]
    for row in done.rows:
        value, fall = row.values[main], row.values[f"fall_{main}"]
        numbers = [value.value, value.low, value.high]
        falls = [fall.value, fall.low, fall.high] if row.shift != AS_IT_IS[0] else [math.nan] * 3
        texts = [number_text(n) for n in (*numbers, *falls, *(row.values[o].value for o in others))]
        rows.append([row.shift, _strength(row), *texts, str(row.n)])
    return f"{aligned(rows)}\n\n{_legend(done)}\n"


def csv_text(done: Robustness) -> str:
    """A row for each shift and strength: every measure and its fall, each with the ends of its interval."""
    names = [name for measure in MEASURES[done.settings.kind] for name in (measure, f"fall_{measure}")]
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    columns = [name + end for name in names for end in ("", "_low", "_high")]
    writer.writerow(["shift", "strength", "n", *columns])
    for row in done.rows:
        numbers = [n for name in names for n in asdict(row.values[name]).values()]
        writer.writerow([row.shift, row.strength, row.n, *("" if math.isnan(n) else repr(n) for n in numbers)])
    return out.getvalue()


def as_data(done: Robustness) -> dict[str, Any]:
    """JSON data; null for what is not defined."""
    data: dict[str, Any] = finite(
        {
            "bundle": done.bundle,
            "kind": done.settings.kind,
            "measure": MEASURES[done.settings.kind][0],
            "rows": [asdict(row) for row in done.rows],
            "strengths": {row.shift: SHIFTS[row.shift].what for row in done.rows if row.shift in SHIFTS},
            "failed": list(done.failures),
            "settings": {"seed": done.settings.seed},
        }
    )
    return data


def picture(done: Robustness) -> bytes:
    """A PNG: the main measure over how far the images are spoilt, a line for each shift."""
    main = MEASURES[done.settings.kind][0]
    clean, *rest = done.rows
    lines: dict[str, list[float]] = {}
    for row in rest:
        lines.setdefault(row.shift, [clean.values[main].value]).append(row.values[main].value)
    series = [
        Series(name, [(n, v) for n, v in enumerate(values) if math.isfinite(v)]) for name, values in lines.items()
    ]
    values = [value for line in series for _, value in line.points] or [0.0, 1.0]
    most = max((len(values) for values in lines.values()), default=2) - 1
    size = (SIZE[0] + _KEY, SIZE[1])
    across = ("strength, from the images as they are (0) to much", [float(n) for n in range(most + 1)])
    up = (_TITLES[main], round_ticks(*spread(values), 6))
    return line_chart(series, across, up, f"{done.bundle}: {clean.n} images", size=size, room=_KEY)


def _strength(row: CorruptionRow) -> str:
    return "-" if row.shift == AS_IT_IS[0] else f"{row.strength:g}"


def _legend(done: Robustness) -> str:
    """What the strengths mean."""
    used = dict.fromkeys(row.shift for row in done.rows if row.shift in SHIFTS)
    return "\n".join(f"{name}: {SHIFTS[name].what}" for name in used)
