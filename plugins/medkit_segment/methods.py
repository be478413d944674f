"""The values of the options that choose a method; without heavy imports."""

from __future__ import annotations

import math

import click

METHODS = ("network", "threshold", "grow")
"""Values of `--method`, the default first."""


def range_of(ctx: click.Context, param: click.Parameter, value: str) -> tuple[float, float] | None:
    """Return the limits of `--range LOW,HIGH`, None for `auto`."""
    if value == "auto":
        return None
    try:
        low, high = (float(word) for word in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value}: expected LOW,HIGH or auto") from None
    if math.isnan(low) or math.isnan(high) or low > high:
        raise click.BadParameter(f"{value}: expected LOW,HIGH with LOW not above HIGH, or auto")
    return low, high
