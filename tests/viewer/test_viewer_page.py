"""niivue in a real browser: it draws a volume and its labels, from the page and from the folder, and loads nothing."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsers import Opened, chromium, need_niivue, serious_faults
from PIL import Image as Pillow
from results import write_result

from medkit.images.image import Image
from medkit.space import Grid

pytestmark = pytest.mark.slow

Run = Callable[..., "Outcome"]  # noqa: F821
READY = ".viewer[data-state=ready]"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    need_niivue()
    yield from chromium("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")


@pytest.fixture
def results(tmp_path: Path) -> list[Path]:
    """Two label maps of a bright cube: label 1, red, on the patient's right, label 2, blue, on the left."""
    affine = np.diag([-4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (46, -46, -46)
    grid = Grid((24, 24, 24), affine)
    made = []
    for name in ("a", "b"):
        image = np.full((1, 24, 24, 24), 10, np.int16)
        image[:, 4:20, 4:20, 4:20] = 500
        labels = np.zeros_like(image, np.uint8)
        labels[:, 8:12, 8:16, 8:16] = 1
        labels[:, 12:16, 8:16, 8:16] = 2
        Image(image, grid).write(tmp_path / f"{name}.nii.gz")
        result = write_result(
            tmp_path / f"{name}_dseg.nii.gz",
            tmp_path / f"{name}.nii.gz",
            more={"labels": {"1": "right <b>half</b>", "2": "left half"}},
        )
        Image(labels, grid).write(result)
        made.append(result)
    return made


def colours(page: Any) -> dict[str, int]:
    """How many pixels of the canvas are grey or white, reddish and bluish."""
    with Pillow.open(io.BytesIO(page.locator(".viewer canvas").screenshot())) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    return {
        "grey": int(((np.ptp(pixels, axis=2) < 12) & (red > 60)).sum()),
        "red": int(((red - blue > 40) & (green > 10)).sum()),
        "blue": int(((blue - red > 40) & (green > 10)).sum()),
    }


def test_a_page_shows_an_image_and_its_labels(browser: Any, medkit: Run, results: list[Path], tmp_path: Path) -> None:
    assert medkit("view", results[0], "-o", tmp_path / "x.html").code == 0
    opened = Opened(browser, tmp_path / "x.html", ready=READY, viewport={"width": 800, "height": 620})
    page = opened.page
    found = colours(page)
    assert min(found.values()) > 500, found
    page.click("button:has-text('left half')")
    said = page.inner_text(".place")
    assert said == "x -6.0, y -2.0, z -2.0 mm (RAS+): 500, left half (2)"
    page.focus(".viewer canvas")
    for _ in range(8):
        page.keyboard.press("ArrowLeft")
    page.wait_for_function("() => document.querySelector('.place').textContent.endsWith('no label')")
    page.locator(".viewer input[type=range]").fill("0")
    page.uncheck(".viewer input[type=checkbox]")
    page.wait_for_timeout(200)
    faint = colours(page)
    assert faint["blue"] < found["blue"] / 4
    assert opened.complaints == []
    assert opened.elsewhere() == []
    opened.context.close()


@pytest.mark.parametrize("folder", [False, True])
def test_a_report_shows_the_volumes_of_each_case(
    browser: Any, medkit: Run, results: list[Path], tmp_path: Path, folder: bool
) -> None:
    output = tmp_path / ("page" if folder else "r.html")
    done = medkit("report", *results, "--viewer", "-o", output, *(["--folder"] if folder else []))
    assert done.code == 0, done.err
    assert "volumes of 2 of 2 cases" in done.err
    opened = Opened(browser, output / "index.html" if folder else output, bypass_csp=False)
    page = opened.page
    assert page.locator(".viewer").count() == 0  # nothing is decoded before it is asked for
    page.keyboard.press("v")
    page.wait_for_selector(READY)
    found = colours(page)
    assert min(found.values()) > 200, found
    page.focus(".viewer canvas")
    page.keyboard.press("j")  # the page's keys, also from the canvas
    page.wait_for_function("() => document.querySelector('#card-name').textContent.startsWith('b')")
    page.wait_for_selector(READY)
    assert min(colours(page).values()) > 200
    page.keyboard.press("v")
    assert page.locator(".viewer").count() == 0
    assert opened.complaints == []
    assert [url for url in opened.elsewhere() if not url.startswith(f"{output.as_uri()}/")] == []
    opened.context.close()


def test_no_serious_fault_of_accessibility(browser: Any, medkit: Run, results: list[Path], tmp_path: Path) -> None:
    assert medkit("view", results[0], "-o", tmp_path / "x.html").code == 0
    opened = Opened(browser, tmp_path / "x.html", ready=READY, bypass_csp=True)
    assert serious_faults(opened.page) == []
    opened.context.close()
    assert medkit("report", results[0], "--viewer", "-o", tmp_path / "r.html").code == 0
    report = Opened(browser, tmp_path / "r.html", bypass_csp=True, viewport={"width": 900, "height": 620})
    report.page.keyboard.press("v")
    report.page.wait_for_selector(READY)
    assert serious_faults(report.page) == []
    report.context.close()
