"""How large the page of `medkit report` is, and how fast it is made and opens in Chromium.

    python tests/benchmarks/report_page.py [--cases 300] [--picture PNG]

Each case has 96 metrics and a picture of `--qc`: the one that is named, or noise. A page counts as open when the table
and the picture of the first case stand on it. Needs playwright and Chromium.
"""

from __future__ import annotations

import argparse
import io
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from results import write_result

from medkit.run.pictures import OWNER, owner_digest

STRUCTURES = [f"structure {n}" for n in range(32)]
REPEATS = 5


def write_group(folder: Path, count: int, picture: Path | None) -> None:
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    with Pillow.open(picture) if picture else Pillow.effect_noise((1243, 716), 60) as opened:
        opened.convert("RGB").save(buffer, "PNG")
    (folder / "qc").mkdir()
    for number in range(count):
        scan = folder / "scans" / f"sub-{number:04}_T1w.nii.gz"
        values = rng.normal(1, 0.1, (3, len(STRUCTURES)))
        metrics = {
            name: dict(zip(STRUCTURES, row.round(4).tolist(), strict=True))
            for name, row in zip(("volumes_mm3", "confidence", "expected_dice"), values, strict=True)
        }
        result = write_result(folder / "out" / f"sub-{number:04}_dseg.nii.gz", scan, metrics=metrics)
        owned = with_text(buffer.getvalue(), OWNER, owner_digest(result, folder / "qc"))
        (folder / "qc" / f"{number}.png").write_bytes(owned)


def with_text(png: bytes, key: str, text: str) -> bytes:
    """A PNG with a text after its header, without compressing its pixels again."""
    content = b"tEXt" + key.encode() + b"\0" + text.encode()
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    return png[:33] + chunk + png[33:]


def seconds_to_open(page: Path, cases: int) -> tuple[list[float], float]:
    """The seconds on the clock, and the median of those that the page's own thread computes."""
    found, computed = [], []
    program = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for _ in range(REPEATS):
            tab = browser.new_page()
            session = tab.context.new_cdp_session(tab)
            session.send("Performance.enable", {"timeDomain": "threadTicks"})
            start = time.perf_counter()
            tab.goto(page.as_uri(), wait_until="commit")
            tab.wait_for_function(
                f"() => document.querySelectorAll('#rows tr').length == {cases} && "
                "document.querySelector('#picture img')?.naturalWidth > 0"
            )
            found.append(time.perf_counter() - start)
            measured = {entry["name"]: entry["value"] for entry in session.send("Performance.getMetrics")["metrics"]}
            computed.append(measured["TaskDuration"])
            tab.close()
        browser.close()
    return found, statistics.median(computed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_group(folder, given.cases, given.picture)
        print(f"{'form':<10}{'made s':>10}{'MB':>10}{'opens s':>10}{'worst s':>10}{'CPU s':>10}")
        for form, more in (("one file", ()), ("folder", ("--folder",))):
            output = folder / ("page" if more else "report.html")
            command = [
                sys.executable,
                "-m",
                "medkit",
                "report",
                folder / "out",
                "--qc",
                folder / "qc",
                "-o",
                output,
                *more,
            ]
            start = time.perf_counter()
            subprocess.run([*map(str, [*command, "-o", output, *more])], check=True, capture_output=True)
            made = time.perf_counter() - start
            page = output / "index.html" if more else output
            times, computed = seconds_to_open(page, given.cases)
            size = page.stat().st_size / 1e6
            row = f"{made:>10.1f}{size:>10.1f}{statistics.median(times):>10.2f}{max(times):>10.2f}{computed:>10.2f}"
            print(f"{form:<10}{row}", flush=True)


if __name__ == "__main__":
    main()
