"""How long `medkit dicom list` takes over a folder of 2,000 files, and how much it reads of them.

python tests/benchmarks/studies.py [--files 2000]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))

from dicoms import image, write

ROUNDS = 3


def bytes_read(command: list[str]) -> tuple[float, int]:
    """Run a command; return its seconds and how many bytes it asked the system for (Linux)."""
    before = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        read = 0
        while process.poll() is None:
            try:
                lines = Path(f"/proc/{process.pid}/io").read_text().splitlines()
                read = int(lines[0].split()[1])
            except (OSError, IndexError):
                pass
            time.sleep(0.01)
    return time.perf_counter() - before, read


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    count = parser.parse_args().files
    with tempfile.TemporaryDirectory() as folder:
        stored = np.random.default_rng(0).integers(0, 900, (512, 512)).astype(np.int16)
        for number in range(count):
            data = image(1 + number // 200, stored, (0, 0, number % 200), InstanceNumber=number % 200 + 1)
            write(Path(folder) / "study" / f"{number:05}.dcm", data)
        total = sum(path.stat().st_size for path in Path(folder).rglob("*.dcm"))
        medkit = [sys.executable, "-m", "medkit", "dicom", "list"]
        (Path(folder) / "empty").mkdir()
        start = statistics.median(bytes_read([*medkit, f"{folder}/empty"])[0] for _ in range(ROUNDS))
        found = [bytes_read([*medkit, f"{folder}/study"]) for _ in range(ROUNDS)]
    seconds = statistics.median(one for one, _ in found)
    print(f"{count} files, {total / 2**20:.0f} MiB: {seconds:.1f} s, of which start {start:.1f} s; "
          f"read {found[0][1] / 2**20:.0f} MiB in all")  # fmt: skip


if __name__ == "__main__":
    main()
