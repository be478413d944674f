"""Time of a call before and around its work, compared with the cheapest comparable program.

    python tests/benchmarks/startup.py [--runs N]

- `medkit --help` and an empty Python program;
- a rigid registration of two 64^3 images, whole process, and only `import torch`;
- two registrations at once, as stages of a pipe, with waiting threads that sleep (which medkit asks OpenMP for) and
  with threads that spin (OpenMP's default).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from medkit.images.phantom import make_image

PYTHON = sys.executable


def seconds(*commands: list[str], **variables: str) -> float:
    """Wall seconds until all commands, started together, have ended."""
    start = time.perf_counter()
    running = [
        subprocess.Popen(c, env=os.environ | variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for c in commands
    ]
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit(f"{commands[0]} ended with {codes}")
    return time.perf_counter() - start


def registration(folder: Path, output: str, size: int) -> list[str]:
    """A rigid registration of two images of size^3 voxels."""
    images = [folder / f"{name}_{size}.nii.gz" for name in ("fixed", "moving")]
    for number, path in enumerate(images):
        if not path.exists():
            make_image(path, (size,) * 3, (192 / size,) * 3, oblique_degrees=8.0 * number)
    given = ["--type", "rigid", "--fixed", str(images[0]), str(images[1]), "--overwrite"]
    return [PYTHON, "-m", "medkit", "run", "register", *given, "-o", str(folder / output)]


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description="Start-up and side-by-side costs.")
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = registration(folder, "a", 64)
        pair = [registration(folder, output, 160) for output in ("a", "b")]
        rows = {
            "medkit --help / python -c pass": (
                lambda: seconds([PYTHON, "-m", "medkit", "--help"]),
                lambda: seconds([PYTHON, "-c", "pass"]),
            ),
            "rigid 64^3 / import torch": (lambda: seconds(small), lambda: seconds([PYTHON, "-c", "import torch"])),
            "two at once: sleeping / spinning threads": (
                lambda: seconds(*pair, OMP_WAIT_POLICY="PASSIVE"),
                lambda: seconds(*pair, OMP_WAIT_POLICY="ACTIVE"),
            ),
        }
        print("| what | median s | peer's | ratio | more than the peer, s |\n| --- | --- | --- | --- | --- |")
        for what, (ours, peer) in rows.items():
            ours(), peer()  # files into the cache
            timed = [(ours(), peer()) for _ in range(runs)]
            a, b = (statistics.median(column) for column in zip(*timed, strict=True))
            ratio = statistics.median(x / y for x, y in timed)
            print(f"| {what} | {a:.2f} | {b:.2f} | {ratio:.2f} | {a - b:.2f} |")


if __name__ == "__main__":
    main()
