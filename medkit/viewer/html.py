"""Pages of HTML that load nothing: their parts are put into a template, and their own policy allows only these.

Data lie in blocks of JSON, and scripts put them on the page as text only: nothing that a file name or a warning holds
can become HTML or code.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

_HEAD = resources.files("medkit.viewer") / "assets" / "head.html"


def document(
    body: str, parts: Mapping[str, str], *, title: str, styles: str, allowed: Sequence[str], frames: bool = False
) -> str:
    """Return a page: the head of all pages, and a template of its body with its parts.

    allowed: texts of the scripts that the page may run.
    frames: whether documents next to the page may be shown in frames.
    """
    head = {"POLICY": policy(styles, allowed, frames=frames), "TITLE": escaped(title), "STYLES": styles}
    return filled(_HEAD.read_text(encoding="utf-8"), head) + filled(body, parts)


def filled(template: str, parts: Mapping[str, str]) -> str:
    """Return a template with texts of HTML in place of its comments `<!--NAME-->`, each once."""
    for name, text in parts.items():
        before, _, after = template.partition(f"<!--{name}-->")
        template = f"{before}{text}{after}"
    return template


def policy(styles: str, scripts: Sequence[str], *, frames: bool = False) -> str:
    """Return a Content-Security-Policy: these scripts and styles, and pictures next to the page or in it.

    frames: whether documents next to the page may be shown in frames.
    """
    allowed = " ".join(_hash(text) for text in scripts)
    framed = "frame-src 'self' file:; " if frames else ""
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_hash(styles)}; img-src data: 'self' file:; {framed}"
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def escaped(text: str) -> str:
    """Return a text as HTML that shows it; bytes of a file's name that are not UTF-8 become U+FFFD."""
    return html.escape(text.encode(errors="surrogateescape").decode(errors="replace"))


def json_text(value: Any) -> str:
    """Return JSON that ends no element of HTML, whatever texts it holds."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def block(identity: str, value: Any) -> str:
    """Return a value as an element of JSON, which the page's script finds by its id."""
    return f'<script type="application/json" id="{identity}">{json_text(value)}</script>'
