"""`medkit view`: a page, a picture, and the preview for terminals."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
from browsers import need_niivue
from PIL import Image as Pillow
from results import write_result

from medkit.images.image import Image
from medkit.space import Grid
from medkit.viewer import niivue, preview

Run = Callable[..., "Outcome"]  # noqa: F821


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A scan, and a label map that medkit made from it, with names."""
    grid = Grid((24, 22, 20), np.diag([2.0, 2.0, 2.0, 1.0]))
    rng = np.random.default_rng(0)
    Image((rng.random((1, *grid.shape)) * 500).astype(np.int16), grid).write(tmp_path / "scan.nii.gz")
    labels = np.zeros((1, *grid.shape), np.uint8)
    labels[:, 6:12, 6:16, 6:14] = 1
    labels[:, 12:18, 6:16, 6:14] = 2
    result = write_result(
        tmp_path / "scan_dseg.nii.gz", tmp_path / "scan.nii.gz", more={"labels": {"1": "left half", "2": "right half"}}
    )
    Image(labels, grid).write(result)
    return tmp_path / "scan.nii.gz", result


def blocks(text: str) -> np.ndarray:
    """The pixels (H, W, 3) that lines of half blocks show."""
    rows = []
    pattern = re.compile(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m▀")
    for line in text.splitlines():
        cells = [list(map(int, cell)) for cell in pattern.findall(line)]
        if cells:
            rows += [[cell[:3] for cell in cells], [cell[3:] for cell in cells]]
    return np.array(rows)


def drawn_sixels(text: str) -> np.ndarray:
    """The pixels (H, W, 3) that sixels show, in percent."""
    head, body = text.partition('"')[2].partition("#")[::2]
    width, height = map(int, head.split(";")[2:4])
    picture = np.zeros((height + 6, width, 3), int)
    colours: dict[int, list[int]] = {}
    x = y = colour = 0
    pattern = r"#(\d+);2;(\d+);(\d+);(\d+)|#(\d+)|!(\d+)([?-~])|([?-~])|([$-])"
    for n, r, g, b, chosen, times, repeated, single, move in re.findall(pattern, f"#{body}".partition("\x1b")[0]):
        if n:
            colours[int(n)] = [int(r), int(g), int(b)]
        elif chosen:
            colour = int(chosen)
        elif move:
            x, y = 0, y + (6 if move == "-" else 0)
        else:
            count = int(times or 1)
            for bit in range(6):
                if (ord(repeated or single) - 63) >> bit & 1:
                    picture[y + bit, x : x + count] = colours[colour]
            x += count
    return picture[:height]


def test_half_blocks_show_the_picture() -> None:
    picture = np.random.default_rng(1).integers(0, 255, (12, 20, 3), np.uint8)
    assert np.array_equal(blocks(preview.half_blocks(picture, 20, 6)), picture)
    assert blocks(preview.half_blocks(picture, 10, 50)).shape == (6, 10, 3)


def test_sixels_show_the_picture() -> None:
    picture = np.zeros((13, 17, 3), np.uint8)
    picture[2:9, 3:11] = (255, 0, 0)
    picture[7:, 9:] = (0, 153, 255)
    shown = drawn_sixels(preview.sixel(picture, 17, 13))
    assert np.abs(shown - picture.astype(int) * 100 / 255).max() < 1


def test_the_preview_shows_labels_over_their_scan(medkit: Run, pair: tuple[Path, Path]) -> None:
    done = medkit("view", "--terminal", input=f"{pair[1]}\n", env={"COLUMNS": "90", "LINES": "30"})
    assert done.code == 0, done.err
    shown = blocks(done.out)
    assert shown.shape[1] <= 90
    assert shown.shape[0] <= 60
    assert (shown[..., 0] - shown[..., 1] > 40).sum() > 50  # label 1 is red
    assert "1 left half" in done.out
    plain = blocks(medkit("view", "--terminal", pair[0], env={"COLUMNS": "90", "LINES": "30"}).out)
    assert np.array_equal(plain[..., 0], plain[..., 1])


def test_another_image_stands_below(medkit: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    other = Image(rng.random((1, 24, 22, 20)).astype(np.float32), Grid((24, 22, 20), np.diag([2.0, 2.0, 2.0, 1.0])))
    other.write(tmp_path / "map.nii.gz")
    size = {"COLUMNS": "200", "LINES": "100"}
    one = blocks(medkit("view", "--terminal", pair[0], env=size).out)
    two = blocks(medkit("view", "--terminal", pair[0], "--overlay", tmp_path / "map.nii.gz", env=size).out)
    assert two.shape[0] / two.shape[1] > 1.8 * one.shape[0] / one.shape[1]


def test_a_picture(medkit: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    done = medkit("view", pair[0], "--overlay", pair[1], "-o", tmp_path / "x.png")
    assert done.code == 0, done.err
    assert done.paths == [tmp_path / "x.png"]
    with Pillow.open(io.BytesIO((tmp_path / "x.png").read_bytes())) as picture:
        assert picture.width > 200
    again = medkit("view", pair[0], "-o", tmp_path / "x.png")
    assert again.code != 0
    assert "x.png: exists already" in again.err
    assert medkit("view", pair[0], "-o", tmp_path / "x.png", "--overwrite").code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{scan}"], "name a file (-o x.html or -o x.png)"),
        (["{scan}", "-o", "{folder}/x.jpg"], "ends in .html or .png"),
        (["{folder}/none.nii.gz", "--terminal"], "none.nii.gz: no such file"),
        (["{scan}", "--overlay", "{folder}/none.nii.gz", "--terminal"], "none.nii.gz: no such file"),
    ],
)
def test_refusals(medkit: Run, pair: tuple[Path, Path], tmp_path: Path, arguments: list[str], said: str) -> None:
    done = medkit("view", *(text.format(scan=pair[0], folder=tmp_path) for text in arguments))
    assert done.code != 0
    assert said in done.err
    assert done.out == ""


def test_one_image_at_a_time(medkit: Run, pair: tuple[Path, Path]) -> None:
    done = medkit("view", "--terminal", input=f"{pair[0]}\n{pair[1]}\n")
    assert done.code == 2
    assert "expected one image, got 2" in done.err


def test_without_niivue_the_error_says_what_to_install(
    medkit: Run, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    niivue.niivue.cache_clear()
    monkeypatch.setattr(niivue, "distribution", missing)
    for command in (["view", pair[0]], ["report", pair[1], "--viewer"]):
        done = medkit(*command, "-o", tmp_path / "x.html")
        assert done.code != 0
        assert 'pip install "medkit[viewer]"' in done.err
        assert not (tmp_path / "x.html").exists()


def test_a_name_that_is_not_utf8(medkit: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    need_niivue()
    source = pair[0].rename(tmp_path / os.fsdecode(b"caf\xe9.nii.gz"))
    done = medkit("view", source, "-o", tmp_path / "page.html")
    assert done.code == 0, done.err
    assert "caf\ufffd.nii.gz" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_page_is_small_and_has_the_licence(medkit: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    need_niivue()
    done = medkit("view", pair[0], "--overlay", pair[1], "-o", tmp_path / "x.html")
    assert done.code == 0, done.err
    text = (tmp_path / "x.html").read_text()
    assert len(text) < 700_000
    assert "Redistributions of source code must retain" in text
    assert "left half" in text
    assert f"{len(text) / 1e6:.1f} MB" in done.err


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "sixels"), [(b"\x1b[?62;4;22c", True), (b"\x1b[?6c", False)])
def test_a_terminal_is_asked_what_it_can(pair: tuple[Path, Path], answer: bytes, sixels: bool) -> None:
    main, other = pty.openpty()
    command = [sys.executable, "-m", "medkit", "view", str(pair[1])]
    environment = os.environ | {"TERM": "xterm-256color"}
    running = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, env=environment)
    os.close(other)
    found = b""
    answered = False
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if select.select([main], [], [], 1)[0]:
            try:
                chunk = os.read(main, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not chunk:
                break
            found += chunk
        if not answered and found.endswith(b"\x1b[c"):
            os.write(main, answer)
            answered = True
    assert running.wait(60) == 0, found
    os.close(main)
    assert (b"\x1bPq" in found) == sixels
    assert ("▀".encode() in found) != sixels
    assert b"left half" in found
