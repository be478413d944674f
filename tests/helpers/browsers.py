"""Pages in the system's Chromium, with all that they asked for and complained about."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest

SERIOUS = ("serious", "critical")


def need_niivue() -> None:
    """Skip a test if the package that carries niivue is not installed."""
    try:
        distribution("ipyniivue")
    except PackageNotFoundError:
        pytest.skip("ipyniivue is not installed (medkit[viewer] has it)")


def chromium(*arguments: str) -> Iterator[Any]:
    """Yield the browser; tests are skipped where there is none, or no playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (medkit[test] has it)")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium here (apt-get install chromium)")
    with playwright.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=found, args=["--no-sandbox", *arguments])
        yield opened
        opened.close()


class Opened:
    """A page in a browser."""

    def __init__(self, browser: Any, file: Path, *, ready: str = "#card-name", **context: Any) -> None:
        self.file = file
        self.ready = ready
        self.context = browser.new_context(**{"viewport": {"width": 1300, "height": 850}, **context})
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.load()

    def load(self) -> None:
        self.page.goto(self.file.as_uri())
        self.page.wait_for_selector(self.ready)

    def subjects(self) -> list[str]:
        return [str(text) for text in self.page.locator("#rows tr th button").all_inner_texts()]

    def card(self) -> str:
        return str(self.page.locator("#card-name").inner_text())

    def elsewhere(self) -> list[str]:
        """What was asked for besides the page itself."""
        return [url for url in self.requests if url != self.file.as_uri() and not url.startswith("data:")]


def serious_faults(page: Any) -> list[Any]:
    """What axe-core finds: rules and elements. The page must have been opened with `bypass_csp`."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed").Axe()
    faults = axe.run(page).response["violations"]
    return [(f["id"], [n["html"] for n in f["nodes"]][:3]) for f in faults if f["impact"] in SERIOUS]
