"""Time that medkit adds to a bundle's network: ten cases in one pipe, ten processes, and only the network.

    python tests/benchmarks/bundles.py DATA/abdomen_ct/imagesTr_spleen_8.nii.gz [--cases N] [--overlap F]

The bundle has the structure and the sizes of the zoo's spleen_ct_segmentation, with random weights: a UNet of
16 to 256 channels on windows of 96^3 voxels of 1.5 x 1.5 x 2 mm. It prints seconds per case, and their ratio to the
network's own time, measured in this process on the same prepared case (median of three).
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import zoo

from medkit.bundles.bundle import Bundle
from medkit.inference.loading import RunSettings, load_stages
from medkit.machine.threads import granted_threads
from medkit.options import RunOptions
from medkit.pipe.records import record_of
from medkit.run.outputs import Targets
from medkit.run.task import Case, CasePlan, Runtime, Task

UNET = {
    "_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [16, 32, 64, 128, 256],
    "strides": [2, 2, 2, 2], "num_res_units": 2, "norm": "batch",
}  # fmt: skip


def write_bundle(root: Path, overlap: float) -> Path:
    """Write the zoo's bundle in its own sizes."""
    windows = {"_target_": "SlidingWindowInferer", "roi_size": [96] * 3, "sw_batch_size": 4, "overlap": overlap}
    zoo.write(root, "spleen_ct_segmentation", network_def=UNET, inferer=windows)
    config = root / "configs" / "inference.json"
    text = config.read_text()
    start = text.index('"pixdim"')
    config.write_text(text[:start] + '"pixdim": [1.5, 1.5, 2.0]' + text[text.index("]", start) + 1 :])
    return root


def network_seconds(root: Path, scan: Path) -> float:
    """Return the seconds of only the network on the prepared scan."""
    import torch

    torch.set_num_threads(granted_threads())
    runtime = Runtime("cpu", granted_threads(), 0)
    stages = load_stages(runtime, bundle=Bundle(root, root.name), settings=RunSettings({}))
    case = Case(CasePlan(record_of(scan), {"image": scan}, Targets({})), Task("t", ()), RunOptions(), runtime)
    prepared = stages.prepare(case)
    found = []
    for _ in range(3):
        began = time.perf_counter()
        stages.compute(case, prepared)
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def pipe_seconds(root: Path, scans: list[Path], output: Path) -> tuple[float, float]:
    """Seconds of a whole process, and from its first line to its last."""
    command = [sys.executable, "-m", "medkit", "run", "bundle", "--bundle", str(root), "--trust", "-o", str(output)]
    began = time.perf_counter()
    with subprocess.Popen([*command, *map(str, scans)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        lines = [time.perf_counter() for _ in process.stdout]
    if process.returncode or len(lines) != len(scans):
        raise SystemExit(f"{command} ended with {process.returncode} after {len(lines)} lines")
    return time.perf_counter() - began, lines[-1] - lines[0]


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--overlap", type=float, default=0.5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = write_bundle(folder / "spleen", given.overlap)
        scans = [Path(shutil.copy(given.scan, folder / f"scan{n}.nii.gz")) for n in range(given.cases)]
        network = network_seconds(root, scans[0])
        _, between = pipe_seconds(root, scans, folder / "pipe")
        alone = [pipe_seconds(root, [s], folder / "alone")[0] for s in scans[:3]]
        rows = {
            "the network alone": network,
            f"a case of {given.cases} in one pipe, from line to line": between / (given.cases - 1),
            "a process for a case (median of three)": statistics.median(alone),
        }
    print("| | s a case | to the network |\n|---|---|---|")
    for what, seconds in rows.items():
        print(f"| {what} | {seconds:.2f} | {seconds / network:.2f} |")


if __name__ == "__main__":
    main()
