"""The options `--dicom` and `--dicom-source`, passed on as `DicomChoices`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from medkit.options import absolute_path, option, words

KINDS = {
    "seg": "segmentation",
    "image": "derived image series",
    "rtstruct": "outlines",
    "sr": "structured report",
}
"""Kind of DICOM object -> what it is, for help pages."""


@dataclass(frozen=True)
class DicomChoices:
    """Which DICOM objects to write, and for which series."""

    kinds: tuple[str, ...] = ()
    """Some of `KINDS`."""
    source: Path | None = None
    """The DICOM series of all cases; None: found by what the sidecars of each case say."""


def dicom_options(*kinds: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds the options; the function gets them as its argument `dicom`, a `DicomChoices`.

    kinds: those of `KINDS` that the task can write.
    """

    def known(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
        given = words(ctx, param, value)
        if unknown := [kind for kind in given if kind not in kinds]:
            raise click.BadParameter(f"{unknown[0]}: expected {' or '.join(kinds)}")
        return given

    what = ", ".join(f"{kind}: {KINDS[kind]}" for kind in kinds)
    add_kinds = option(
        "--dicom",
        "dicom_kinds",
        variable=False,
        group="Inputs and outputs",
        callback=known,
        metavar=",".join(kinds),
        help=f"Also write the result as DICOM ({what}), for the series that it comes from.",
    )
    add_source = option(
        "--dicom-source",
        variable=False,
        group="Inputs and outputs",
        callback=absolute_path,
        type=click.Path(exists=True),
        metavar="FOLDER",
        help="The DICOM series that --dicom is for.  [default: what the sidecars lead to]",
    )

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def with_dicom(*args: Any, dicom_kinds: tuple[str, ...], dicom_source: Path | None, **own: Any) -> Any:
            return function(*args, dicom=DicomChoices(dicom_kinds, dicom_source), **own)

        return add_kinds(add_source(with_dicom))

    return decorate
