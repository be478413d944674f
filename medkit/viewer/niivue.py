"""niivue, which draws volumes in a browser (BSD-2-Clause): the copy that the package `ipyniivue` carries.

That package is a widget for notebooks: one script with niivue inside. Only its class `Niivue` is used here, and neither
the package nor what it depends on is imported.
"""

from __future__ import annotations

import functools
import gzip
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from medkit.errors import MedkitError

_PACKAGE = "ipyniivue"
_INSTALL = 'pip install "medkit[viewer]"'
_UNUSED = re.compile(r'"(?:AGFzb[A-Za-z0-9+/=]{20000,}|[A-Za-z0-9%().*_\-\'!~]{100000,})"')
"""Texts that medkit needs not: decoders of Zarr as WebAssembly, and niivue once more, for pages that niivue writes."""
_CLASS = re.compile(r'"Creating new Niivue instance"\).{0,200}?=new ([\w$]+)\(')
_EXPORT = re.compile(r"export\{[^{}]*\};?\s*$")


@dataclass(frozen=True)
class Niivue:
    """The script that defines `medkitNiivue`, niivue's class, and the licence that goes with it."""

    script: str
    licence: str
    version: str
    """Of the package that carries it."""

    def packed(self) -> bytes:
        """Return the script as gzip, of which pages hold a third of a megabyte; equal scripts make equal bytes."""
        return gzip.compress(self.script.encode(), compresslevel=9, mtime=0)


@functools.cache
def niivue() -> Niivue:
    """Return niivue. Raises MedkitError, which states what to install, if it is missing or not as expected."""
    try:
        package = distribution(_PACKAGE)
    except PackageNotFoundError:
        raise MedkitError(f"the viewer needs niivue, which the package {_PACKAGE} carries: {_INSTALL}") from None
    licence = next((file for file in package.files or () if file.name == "LICENSE"), None)
    try:
        source = Path(str(package.locate_file(f"{_PACKAGE}/static/widget.js"))).read_text(encoding="utf-8")
        terms = Path(str(licence.locate())).read_text(encoding="utf-8") if licence else ""
        return Niivue(_script(source), terms, package.version)
    except (OSError, ValueError) as error:
        raise MedkitError(f"{_PACKAGE} {package.version}: {error}; the viewer was made for 2.4: {_INSTALL}") from None


def _script(source: str) -> str:
    """Return a script that defines `medkitNiivue`, from the module of the widget. Raises ValueError."""
    found = _CLASS.search(source)
    if found is None or not _EXPORT.search(source):
        raise ValueError("expected a script with the class of niivue, found none")
    body = _EXPORT.sub("", _UNUSED.sub('""', source))
    return f'(() => {{"use strict";{body}\nglobalThis.medkitNiivue = {found[1]};}})();'
