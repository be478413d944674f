"""The page: one file of HTML with all that it needs, or a folder of it, its pictures and its volumes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

from medkit import __version__
from medkit.pipe.marks import COLUMNS, MARKS
from medkit.review.cases import ReviewCase, digest_of
from medkit.review.files import common_folder, files_of, label_colours_of
from medkit.viewer.html import block, document
from medkit.viewer.niivue import niivue
from medkit.viewer.page import asset, niivue_block

_ASSETS = resources.files("medkit.review") / "assets"
PICTURES = "pictures"
"""The folder of pictures next to a page that is not one file."""
VOLUMES = "volumes"
"""The folder of volumes next to such a page."""


def page_of(
    cases: Sequence[ReviewCase],
    pictures: Mapping[str, str],
    *,
    title: str,
    made: str,
    volumes: Mapping[str, Any] | None = None,
) -> str:
    """Return the page as HTML.

    pictures: key of a case -> address of its picture, a `data:` URI or a path relative to the page.
    made: when the page was made, for its head.
    volumes: key of a case -> its volumes for the viewer, or the address of a document that holds them; None: the page
    has no viewer. Raises MedkitError if niivue is not installed.
    """
    styles = _asset("page.css")
    scripts = [_asset("page.js")]
    allowed = scripts
    first = ""
    if volumes is not None:
        styles += asset("viewer.css")
        scripts = [asset("viewer.js"), *scripts]
        allowed = [*scripts, niivue().script]
        first = niivue_block()
    data = _data(cases, pictures, volumes) | {"made": made}
    framed = any(isinstance(entry, str) for entry in (volumes or {}).values())
    parts = {
        "DATA": block("data", data),
        "SCRIPTS": "\n".join(f"<script>{text}</script>" for text in scripts),
        "LATER": "\n".join([first, *_later(cases, pictures, volumes or {})]),
    }
    return document(_asset("page.html"), parts, title=title, styles=styles, allowed=allowed, frames=framed)


def _asset(name: str) -> str:
    return _ASSETS.joinpath(name).read_text(encoding="utf-8")


def _later(cases: Sequence[ReviewCase], pictures: Mapping[str, str], volumes: Mapping[str, Any]) -> Iterator[str]:
    """Yield the elements behind the script, which shows the table while the browser reads them."""
    for number, case in enumerate(cases):
        if case.key in pictures:
            yield block(f"picture-{number}", pictures[case.key])
    for number, case in enumerate(cases):
        if case.key in volumes:
            yield block(f"volumes-{number}", volumes[case.key])


def _data(
    cases: Sequence[ReviewCase], pictures: Mapping[str, str], volumes: Mapping[str, Any] | None
) -> dict[str, Any]:
    metrics = list(dict.fromkeys(name for case in cases for name in case.values))
    numbers = {name: number for number, name in enumerate(metrics)}
    colours: dict[str, str] = {}
    for case in cases:
        colours |= label_colours_of(case.record)
    files = files_of(case.record for case in cases)
    return {
        "version": __version__,
        "digest": digest_of(cases),
        "folder": common_folder([case.path for case in cases if not case.error]),
        "marks": MARKS,
        "columns": COLUMNS,
        "metrics": metrics,
        "colours": colours,
        "files": files,
        "viewer": volumes is not None,
        "cases": [
            _case(case, numbers) | {"picture": case.key in pictures, "volumes": case.key in (volumes or {})}
            for case in cases
        ],
    }


def _case(case: ReviewCase, numbers: Mapping[str, int]) -> dict[str, Any]:
    return {
        "key": case.key,
        "path": str(case.path),
        "scan": str(case.scan),
        "stem": case.stem,
        "file": str(case.record.path),
        "subject": case.subject,
        "task": case.task,
        "group": case.group,
        "state": case.state,
        "error": case.error,
        "warnings": case.warnings,
        "seconds": case.record.medkit.get("seconds"),
        "values": {numbers[name]: value for name, value in case.values.items()},
        "answers": case.answers,
        "outliers": [numbers[name] for name in case.outliers],
        "mark": case.mark,
        "comment": case.comment,
    }
