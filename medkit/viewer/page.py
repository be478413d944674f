"""The page of `medkit view`: one file with an image, what lies over it, and niivue."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from importlib import resources
from typing import Any

from medkit.viewer.html import block, document
from medkit.viewer.niivue import niivue

_ASSETS = resources.files("medkit.viewer") / "assets"


def asset(name: str) -> str:
    """Return a file of `assets` as text."""
    return _ASSETS.joinpath(name).read_text(encoding="utf-8")


def niivue_block() -> str:
    """Return the element with niivue, compressed, and its licence. Raises MedkitError if niivue is not installed."""
    found = niivue()
    return block("niivue", {"script": base64.b64encode(found.packed()).decode(), "licence": found.licence})


def view_page(volumes: Mapping[str, Any], title: str) -> str:
    """Return the page that shows volumes, as `embedded` returns them."""
    styles = asset("view.css") + asset("viewer.css")
    scripts = [asset("viewer.js"), asset("view.js")]
    parts = {
        "BLOCKS": f"{niivue_block()}\n{block('volumes', volumes)}",
        "SCRIPTS": "\n".join(f"<script>{text}</script>" for text in scripts),
    }
    return document(asset("view.html"), parts, title=title, styles=styles, allowed=[*scripts, niivue().script])
