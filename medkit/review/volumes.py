"""The volumes of a page with a viewer: in the page as long as there is room, or in a folder next to it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from medkit.review.pictures import ROOM
from medkit.review.writing import write_file
from medkit.viewer.html import block, filled, json_text, policy
from medkit.viewer.layers import Layers
from medkit.viewer.volumes import embedded

MOST_IN_FOLDER = 30_000_000
"""Most bytes for the volumes of a case in a folder: a browser holds them several times."""
_SENDING = 'parent.postMessage(JSON.parse(document.getElementById("volumes").textContent), "*");'
_DOCUMENT = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
    f'content="<!--POLICY-->"><title>volumes</title></head><body><!--DATA--><script>{_SENDING}</script></body></html>\n'
)


class PageVolumes:
    """The volumes of the cases of a page, taken in the order in which they come."""

    def __init__(self, folder: Path | None, count: int) -> None:
        """Begin for `count` cases; `folder` is that of the volumes, None if they lie in the page."""
        self.entries: dict[str, Any] = {}
        """Key of a case -> its volumes, or the address of their document."""
        self.size = 0
        """Bytes of all volumes."""
        self._folder = folder
        self._waiting = count
        self._least = 0

    @property
    def has_room(self) -> bool:
        """Whether the volumes of another case may fit."""
        return self._folder is not None or self._left >= self._least

    def add(self, key: str, layers: Layers | None) -> None:
        """Add the volumes of the next case, if it shows an image and there is room."""
        share = self._left // max(1, self._waiting)
        self._waiting -= 1
        if layers is None or not self.has_room:
            return
        if self._folder is not None:
            volumes = embedded(layers, MOST_IN_FOLDER, MOST_IN_FOLDER)
        else:
            volumes = embedded(layers, share, self._left)
            if volumes is None:
                self._least = self._left + 1  # a smaller case may come, but the first cases are those to look at
        if volumes is not None:
            self._keep(key, volumes)

    def remove_others(self) -> None:
        """Remove the volumes of a former page; other files stay."""
        if self._folder is not None:
            names = {Path(str(address)).name for address in self.entries.values()}
            for path in self._folder.glob("*.html"):
                if len(path.stem) == 20 and path.name not in names:
                    path.unlink()

    @property
    def _left(self) -> int:
        return ROOM // 2 - self.size

    def _keep(self, key: str, volumes: dict[str, Any]) -> None:
        if self._folder is None:
            self.entries[key] = volumes
            self.size += len(json_text(volumes))
            return
        content = filled(_DOCUMENT, {"POLICY": policy("", [_SENDING]), "DATA": block("volumes", volumes)}).encode()
        name = f"{hashlib.sha256(content).hexdigest()[:20]}.html"
        if not (self._folder / name).exists():
            write_file(self._folder / name, content)
        self.entries[key] = f"{self._folder.name}/{name}"
        self.size += len(content)
