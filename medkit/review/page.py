"""The page: one file of HTML with all that it needs, or a folder of it and its pictures.

The data lie in a block of JSON, and the script puts them on the page as text only: nothing that a file name or a
warning holds can become HTML or code. The page's own policy lets it load nothing, and run and show only what it brings.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from medkit import __version__
from medkit.pipe.marks import COLUMNS, MARKS
from medkit.review.cases import ReviewCase, digest_of
from medkit.review.files import common_folder, files_of, label_colours_of

_ASSETS = resources.files("medkit.review") / "assets"
PICTURES = "pictures"
"""The folder of pictures next to a page that is not one file."""


def page_of(
    cases: Sequence[ReviewCase], pictures: Mapping[str, str], *, title: str, made: str, viewer: str = ""
) -> str:
    """Return the page as HTML.

    pictures: key of a case -> address of its picture, a `data:` URI or a path relative to the page.
    made: when the page was made, for its head.
    viewer: a script that shows images, if the page is to have one; it finds the place `#viewer` in each case's card.
    """
    styles, script = (_ASSETS.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    scripts = [script, *filter(None, [viewer])]
    data = _data(cases, pictures) | {"made": made}
    parts = {
        "POLICY": _policy(styles, scripts),
        "TITLE": html.escape(title),
        "STYLES": styles,
        "DATA": _json(data),
        "PICTURES": _json([pictures.get(case.key) for case in cases]),
        "SCRIPTS": "\n".join(f"<script>{text}</script>" for text in scripts),
    }
    page = _ASSETS.joinpath("page.html").read_text(encoding="utf-8")
    for name, text in parts.items():
        page = page.replace(f"<!--{name}-->", text, 1)
    return page


def _policy(styles: str, scripts: Sequence[str]) -> str:
    """Return the page's Content-Security-Policy: only its own script and styles, and pictures next to it or in it."""
    allowed = " ".join(_hash(text) for text in scripts)
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_hash(styles)}; img-src data: 'self' file:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(value: Any) -> str:
    """Return JSON that ends no element of HTML, whatever texts it holds."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _data(cases: Sequence[ReviewCase], pictures: Mapping[str, str]) -> dict[str, Any]:
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
        "cases": [_case(case, numbers) for case in cases],
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
