"""Times and rates in words."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Return a duration in words.

    >>> duration(99), duration(600), duration(7200)
    ('99 s', '10 min', '2.0 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def rate_text(per_second: float) -> str:
    """Return a rate in words.

    >>> rate_text(12.3), rate_text(0.5), rate_text(0.002)
    ('12/s', '30/min', '7.2/h')
    """
    for factor, unit in ((1, "s"), (60, "min"), (3600, "h")):
        if per_second * factor >= 1 or unit == "h":
            return f"{per_second * factor:.{0 if per_second * factor >= 10 else 1}f}/{unit}"
    raise AssertionError("the last unit always returns")
