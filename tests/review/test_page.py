"""The page of `medkit report` in a real browser: it loads nothing, sorts, filters, and keeps and exports marks."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browsers import Opened, chromium, serious_faults
from results import failed_record, group, write_picture, write_result

pytestmark = pytest.mark.slow

Run = Callable[..., "Outcome"]  # noqa: F821
EVIL = "</script><img src=x onerror=hacked=1>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from chromium()


@pytest.fixture
def results(tmp_path: Path) -> list[Path]:
    return group(tmp_path)


@pytest.fixture
def report(medkit: Run, results: list[Path], tmp_path: Path) -> Path:
    """A page of 14 cases of two tasks: one failed, one to look at, one outlier."""
    (tmp_path / "r.jsonl").write_text(failed_record(tmp_path / "scans/bad.nii.gz", "no image"))
    other = write_result(tmp_path / "o/s00_x.nii.gz", tmp_path / "scans/s00.nii.gz", task="other", metrics={"size": 3})
    arguments = ["--qc", tmp_path / "qc", "-o", tmp_path / "r.html", "--no-pictures"]
    assert medkit("report", *results, other, tmp_path / "r.jsonl", *arguments).code == 0
    return tmp_path / "r.html"


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Opened]:
    page = Opened(browser, report)
    yield page
    assert page.complaints == []
    assert page.elsewhere() == []
    page.context.close()


def test_failures_come_first_and_pictures_are_shown(opened: Opened) -> None:
    assert opened.subjects()[:2] == ["bad", "s01"]
    assert opened.card().startswith("bad")
    opened.page.keyboard.press("j")
    assert opened.card().startswith("s01")
    assert "cut off" in opened.page.locator(".reasons").inner_text()
    opened.page.wait_for_function("() => document.querySelector('#picture img').naturalWidth > 0")
    opened.page.keyboard.press("k")
    assert opened.card().startswith("bad")


def test_sorting(opened: Opened) -> None:
    opened.page.select_option("#task", "label")
    head = opened.page.locator("#heads th", has_text="caudate")
    head.locator("button").click()
    assert opened.subjects()[:3] == ["s00", "s01", "s03"]
    assert opened.subjects()[-2:] == ["s02", "bad"]  # what has no value comes last
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").click()
    assert opened.subjects()[0] == "s02"
    assert opened.subjects()[-1] == "bad"
    assert head.get_attribute("aria-sort") == "descending"


def test_filters(opened: Opened) -> None:
    page = opened.page
    page.select_option("#task", "other")
    assert opened.subjects() == ["s00"]
    page.click("text=Clear filters")
    page.wait_for_function("() => document.querySelectorAll('#rows tr').length == 14")
    for flag, found in (("failed", ["bad"]), ("look", ["s01"]), ("outlier", ["s02"])):
        page.select_option("#flags", flag)
        assert opened.subjects() == found
    page.select_option("#flags", "")
    page.fill("#search", "cut OFF")
    assert opened.subjects() == ["s01"]
    page.fill("#search", "")
    page.select_option("#metric", label="volumes_mm3.caudate")
    page.fill("#least", "1100")
    page.fill("#most", "1200")
    assert opened.subjects() == ["s10", "s11"]


def test_marks_survive_a_reload_and_come_back_by_exclude_and_by_marks(
    opened: Opened, browser: Any, medkit: Run, toy: Run, results: list[Path], tmp_path: Path
) -> None:
    page = opened.page
    page.fill("#search", "s05")
    page.keyboard.press("Escape")
    page.keyboard.press("2")
    page.keyboard.press("c")
    page.keyboard.type('moved, "badly" 1')
    page.keyboard.press("Escape")
    page.fill("#search", "")
    page.keyboard.press("Escape")
    page.click("#rows button:text-is('s06')")
    page.click("[data-mark=artefact]")
    page.keyboard.press("j")
    page.keyboard.press("1")
    page.keyboard.press("0")
    opened.load()
    assert "2 marked" in page.locator("#summary").inner_text()
    page.click("#rows button:text-is('s05')")
    assert page.locator("[data-mark=fail]").get_attribute("aria-pressed") == "true"
    assert page.input_value("#comment") == 'moved, "badly" 1'
    with page.expect_download() as download:
        page.click("#export")
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    assert [(row["stem"], row["task"], row["mark"]) for row in rows] == [
        ("s05", "label", "fail"),
        ("s06", "label", "artefact"),
    ]
    assert rows[0]["comment"] == 'moved, "badly" 1'
    assert set(rows[0]) == {"path", "scan", "stem", "task", "mark", "comment"}

    done = toy("run", "pair", *sorted((tmp_path / "scans").glob("*.nii.gz")), "-o", tmp_path / "p", "--exclude", file)
    assert done.code == 0, done.err
    assert "1 of 12 inputs left out, failed in marks.csv: s05.nii.gz" in done.err
    assert "fits no input" not in done.err

    again = tmp_path / "again.html"
    assert medkit("report", *results, "--marks", file, "-o", again, "--no-pictures").code == 0
    second = Opened(browser, again)
    assert "2 marked" in second.page.locator("#summary").inner_text()
    second.page.select_option("#marked", "fail")
    assert second.subjects() == ["s05"]
    second.context.close()


def test_marks_of_another_report_are_not_taken_over(opened: Opened, medkit: Run, tmp_path: Path) -> None:
    opened.page.keyboard.press("1")
    other = tmp_path / "other.html"
    assert medkit("report", tmp_path / "r.jsonl", "-o", other).code == 0
    page = opened.context.new_page()
    page.goto(other.as_uri())
    page.wait_for_selector("#card-name")
    assert ", 0 marked" in page.locator("#summary").inner_text()


def test_an_outlier_leads_to_its_case(opened: Opened) -> None:
    page = opened.page
    page.click("[data-view=metrics]")
    first = page.locator("#charts figure").first
    assert "caudate" in first.inner_text() or "total_mm3" in first.inner_text()
    first.locator(".names button").click()
    assert opened.card().startswith("s02")
    assert page.locator("#view-cases").is_visible()
    assert page.evaluate("document.activeElement.id") == "card"


def test_keys_can_be_turned_off_and_are_no_keys_while_typing(opened: Opened) -> None:
    page = opened.page
    page.keyboard.press("/")
    page.keyboard.type("j1")
    assert page.input_value("#search") == "j1"
    page.fill("#search", "")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.uncheck("#keys")
    page.keyboard.press("Escape")
    before = opened.card()
    page.keyboard.press("j")
    assert opened.card() == before


def test_the_provenance_and_the_colours(opened: Opened) -> None:
    opened.page.click("#rows button:text-is('s03')")
    tree = opened.page.locator(".tree").inner_text()
    assert "bundle toys 1.2.3" in tree
    assert "scans/s03.nii.gz" in tree
    assert "clean: true" in tree
    assert opened.page.locator(".swatch").count() == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_fault_of_accessibility(browser: Any, report: Path, scheme: str) -> None:
    opened = Opened(browser, report, color_scheme=scheme, bypass_csp=True)
    page = opened.page
    page.keyboard.press("j")
    page.keyboard.press("2")

    assert serious_faults(page) == []
    for view in ("pictures", "metrics"):
        page.click(f"[data-view={view}]")
        assert serious_faults(page) == [], view
    page.keyboard.press("?")
    assert serious_faults(page) == []
    opened.context.close()


def test_phone(browser: Any, report: Path) -> None:
    opened = Opened(browser, report, viewport={"width": 390, "height": 844})
    for view in ("cases", "pictures", "metrics"):
        opened.page.click(f"[data-view={view}]")
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390, view
        size = opened.page.evaluate("parseFloat(getComputedStyle(document.querySelector('#summary')).fontSize)")
        assert size >= 12
    opened.page.click("[data-view=cases]")
    opened.page.click("#rows button:text-is('s04')")
    assert opened.card().startswith("s04")
    assert opened.page.locator("#card-name").is_visible()
    opened.context.close()


def test_texts_stay_texts(browser: Any, medkit: Run, tmp_path: Path) -> None:
    name = "<img src=x onerror=hacked=1>"
    scan = tmp_path / f"{name}.nii.gz"
    scan.write_bytes(b"")
    label = {"warnings": [EVIL], "metrics": {EVIL: 1.0, "class": EVIL}, "look": True}
    write_result(tmp_path / "o" / f"{name}_dseg.nii.gz", scan, more={"arguments": {EVIL: EVIL}}, **label)
    (tmp_path / "m.csv").write_text(f'stem,mark,comment\n"{name}",fail,"{EVIL}"\n')
    arguments = ["-o", tmp_path / "r.html", "--title", EVIL, "--marks", tmp_path / "m.csv", "--no-pictures"]
    assert medkit("report", tmp_path / "o", *arguments).code == 0
    opened = Opened(browser, tmp_path / "r.html")
    for view in ("pictures", "metrics", "cases"):
        opened.page.click(f"[data-view={view}]")
    assert opened.page.locator("#title").inner_text() == EVIL
    assert opened.page.evaluate("typeof hacked") == "undefined"
    assert opened.page.locator("img").count() == 0
    assert opened.complaints == []
    assert opened.elsewhere() == []
    opened.context.close()


def test_the_pictures_of_a_folder(browser: Any, medkit: Run, results: list[Path], tmp_path: Path) -> None:
    write_picture(tmp_path / "qc", results[0], size=(300, 400))
    done = medkit("report", results[0], "--qc", tmp_path / "qc", "-o", tmp_path / "page", "--folder")
    assert done.code == 0, done.err
    opened = Opened(browser, tmp_path / "page/index.html")
    opened.page.wait_for_function("() => document.querySelector('#picture img').naturalWidth == 400")
    assert [url for url in opened.elsewhere() if not url.startswith((tmp_path / "page").as_uri())] == []
    assert opened.complaints == []
    opened.context.close()
