"""Pictures in a terminal, for work over ssh: coloured half blocks, or sixel where the terminal knows it."""

from __future__ import annotations

import itertools
import os
import select
import sys
import time
from typing import TYPE_CHECKING

import numpy as np

from medkit.viewer.layers import Layers

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_ANSWER_S = 1.0
"""How long a terminal may take to say what it can; over slow lines the answer may need a while."""
_SIXEL_COLOURS = 128
_MOST_LABELS = 40
"""Labels below the picture; more would scroll it away."""
_GAP = 4
"""Pixels between two planes."""


def three_planes(layers: Layers) -> np.ndarray:
    """Return an axial, a coronal and a sagittal slice next to each other, (H, W, 3) uint8, radiological.

    Labels are drawn over them; another overlay stands below, on the same planes.
    """
    from medkit.figures.overlays import draw_labels, rgb
    from medkit.figures.planes import choose_axes, choose_planes, label_points
    from medkit.figures.sampling import sample, sample_labels
    from medkit.figures.window import choose_window

    image, overlay = layers.image, layers.overlay
    window, frame = choose_window(image), choose_axes(image.grid)
    marked = label_points(overlay, frame) if overlay is not None and layers.labels else None
    planes = list(itertools.chain(*choose_planes(image, window, frame, marked, 1)))[:3]
    tiles = [rgb(window.grey(sample(image, plane, window.low))) for plane in planes]
    if overlay is None:
        return _beside(tiles)
    if layers.labels:
        pairs = zip(tiles, planes, strict=True)
        return _beside([draw_labels(tile, sample_labels(overlay, plane)) for tile, plane in pairs])
    own = choose_window(overlay)
    below = [rgb(own.grey(sample(overlay, plane, own.low))) for plane in planes]
    upper, lower = _beside(tiles), _beside(below)
    return np.vstack([upper, np.zeros((_GAP, upper.shape[1], 3), np.uint8), lower])


def _beside(tiles: list[np.ndarray]) -> np.ndarray:
    height = max(tile.shape[0] for tile in tiles)
    padded = [np.pad(tile, ((0, height - tile.shape[0]), (0, _GAP), (0, 0))) for tile in tiles]
    return np.hstack(padded)[:, :-_GAP]


def half_blocks(picture: np.ndarray, columns: int, lines: int) -> str:
    """Return a picture as lines of half blocks in 24-bit colours, at most `columns` wide and `lines` high."""
    from PIL import Image as Pillow

    small = np.asarray(_fitted(Pillow.fromarray(picture), columns, 2 * lines))
    if small.shape[0] % 2:
        small = np.pad(small, ((0, 1), (0, 0), (0, 0)))
    rows = []
    for upper, lower in zip(small[::2].tolist(), small[1::2].tolist(), strict=True):
        cells = ["\x1b[38;2;{};{};{};48;2;{};{};{}m▀".format(*up, *down) for up, down in zip(upper, lower, strict=True)]
        rows.append("".join(cells) + "\x1b[0m\n")
    return "".join(rows)


def sixel(picture: np.ndarray, width: int, height: int) -> str:
    """Return a picture as sixels (DEC STD 070), at most `width` x `height` pixels."""
    from PIL import Image as Pillow

    reduced = _fitted(Pillow.fromarray(picture), width, height).quantize(_SIXEL_COLOURS)
    indices = np.asarray(reduced)
    colours = np.asarray(reduced.getpalette(), np.int64).reshape(-1, 3)
    parts = [f'\x1bPq"1;1;{indices.shape[1]};{indices.shape[0]}']
    parts += [f"#{n};2;{r};{g};{b}" for n, (r, g, b) in enumerate((colours * 100 + 127) // 255)]
    for start in range(0, indices.shape[0], 6):
        band = indices[start : start + 6]
        weights = 1 << np.arange(len(band))[:, None]
        parts += [f"#{n}{_runs(((band == n) * weights).sum(axis=0))}$" for n in np.unique(band)]
        parts.append("-")
    return "".join(parts) + "\x1b\\\n"


def _runs(bits: np.ndarray) -> str:
    """Return a row of sixels, in which equal ones are counted."""
    found = []
    for value, group in itertools.groupby(bits.tolist()):
        count, character = len(list(group)), chr(63 + value)
        found.append(f"!{count}{character}" if count > 3 else character * count)
    return "".join(found)


def _fitted(picture: Picture, width: int, height: int) -> Picture:
    scale = min(width / picture.width, height / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, reducing_gap=2.0)


def legend(layers: Layers) -> str:
    """Return the labels of layers as lines with their colours; empty if there are none."""
    from medkit.figures.overlays import label_colours

    if layers.overlay is None or not layers.labels:
        return ""
    numbers = np.unique(layers.overlay.data[0])
    numbers = numbers[numbers != 0]
    if len(numbers) == 0:
        return "no labels: the label image is empty\n"
    names = layers.names or {}
    words = [
        "\x1b[38;2;{};{};{}m■\x1b[0m {}".format(*colour, f"{number} {names.get(int(number), '')}".strip())
        for number, colour in zip(numbers[:_MOST_LABELS], label_colours(numbers[:_MOST_LABELS]), strict=True)
    ]
    if len(numbers) > _MOST_LABELS:
        words.append(f"and {len(numbers) - _MOST_LABELS} more")
    return "  ".join(words) + "\n"


def for_terminal(layers: Layers) -> str:
    """Return the text that shows layers in this terminal: sixels if it says that it knows them, else half blocks."""
    picture = three_planes(layers)
    columns, lines = _size()
    if _knows_sixel():
        width, height = _pixels()
        return sixel(picture, width, height) + legend(layers)
    return half_blocks(picture, columns, max(4, lines - 4)) + legend(layers)


def _size() -> tuple[int, int]:
    import shutil

    size = shutil.get_terminal_size((80, 24))
    return max(20, size.columns), max(8, size.lines)


def _pixels() -> tuple[int, int]:
    """Return how many pixels a picture may have: nearly all of the terminal, as far as it says how many it has."""
    import fcntl
    import struct
    import termios

    lines, _, width, height = struct.unpack("HHHH", fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, b"\0" * 8))
    return (width, height * max(1, lines - 4) // lines) if width and height and lines else (800, 480)


def _knows_sixel() -> bool:
    """Ask the terminal for its attributes (DA1), of which 4 stands for sixel; False in a pipe or without an answer.

    The terminal is opened by its name: stdin may be a pipe with the name of the image.
    """
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return False
    import termios
    import tty

    try:
        terminal = os.open(os.ttyname(sys.stdout.fileno()), os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return False
    try:
        before = termios.tcgetattr(terminal)
        try:
            tty.setcbreak(terminal)
            os.write(terminal, b"\x1b[c")
            answer = _answer(terminal)
        finally:
            termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
    finally:
        os.close(terminal)
    return "4" in answer.partition("?")[2].rstrip("c").split(";")[1:]


def _answer(terminal: int) -> str:
    """Return what a terminal sends until the letter that ends its answer, or until time is up."""
    found = b""
    end = time.monotonic() + _ANSWER_S
    while not found.endswith(b"c") and (left := end - time.monotonic()) > 0:
        if select.select([terminal], [], [], left)[0]:
            found += os.read(terminal, 64)
    return found.decode("ascii", "replace")
