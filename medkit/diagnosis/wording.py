"""Texts that may be pasted into a public report: without names of people, of machines, and of places outside medkit."""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import re
import sysconfig
from pathlib import Path

import medkit

_PATH = re.compile(r"(?<![\w.:/])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\:;,'\"()\[\]<>|]+)+[/\\]?")
"""An absolute path, or one below somebody's home."""
_SHORTEST = 3
"""Length below which a name also occurs in ordinary words."""


class Wording:
    """What must not be said on this machine."""

    def __init__(self) -> None:
        own = Path(medkit.__file__).parent
        self.known = {
            str(own.parent): "",  # of a checkout; else it is the next folder
            sysconfig.get_path("purelib"): "site-packages/",
            sysconfig.get_path("stdlib"): "python/",
            str(own): "medkit/",
        }
        """Folders of programs -> what stands for them."""
        self.names = _names()

    def public(self, text: str) -> str:
        """Return a text in one line, with paths outside medkit and the libraries, and with names, left out."""
        text = _PATH.sub(lambda match: self._place(match[0]), " ".join(text.split()))
        for name in self.names:
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", "<name>", text)
        return text

    def _place(self, path: str) -> str:
        for folder, word in sorted(self.known.items(), key=lambda pair: -len(pair[0])):
            if path == folder or path.startswith(folder + os.sep):
                return word + path[len(folder) :].lstrip(os.sep)
        return "<path>"


def _names() -> list[str]:
    """Return the names of the user and of the machine, the longest first."""
    found = {platform.node(), platform.node().partition(".")[0], Path.home().name if "HOME" in os.environ else ""}
    with contextlib.suppress(KeyError, OSError):  # a user without a name
        found.add(getpass.getuser())
    return sorted((name for name in found if len(name) >= _SHORTEST and name != "root"), key=len, reverse=True)
