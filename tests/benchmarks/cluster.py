"""The same cases in every mode: time of a case, results, failures, exit codes, memory.

    python tests/benchmarks/cluster.py [--cases 1000] [--broken 0.05] [--slurm]

The task is `double` of tests/helpers/toy.py on images of 8 x 8 x 8 voxels, a share of which are cut off. The modes: one
process; child processes, without and with Dask; shards, one or two at a time (`medkit submit` and `bash shard.sh K`);
shards and Dask workers on a Slurm of two nodes on this machine (`--slurm`); a shell loop, measured on 15 cases.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
sys.path.insert(0, str(HELPERS))

import slurm  # noqa: E402

from medkit.images.phantom import make_image  # noqa: E402


@dataclass(frozen=True)
class Mode:
    """What one mode has done."""

    name: str
    seconds: float
    cases: int
    code: int
    results: dict[str, str]
    """Name -> sha256."""
    failures: frozenset[str]
    """Names of the inputs that have failed, by their records."""
    early_mb: float
    """The largest memory of a process after a tenth of the cases."""
    late_mb: float
    """The same at the end."""


def bash(line: str, folder: Path, **variables: str) -> int:
    """Run a line of bash, and return its exit code."""
    path = f"{HELPERS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environ = os.environ | {"PYTHONPATH": path, "PATH": f"{folder}/bin:{os.environ['PATH']}"} | variables
    quiet = subprocess.DEVNULL
    return subprocess.run(["bash", "-c", line], cwd=folder, env=environ, stdout=quiet, stderr=quiet).returncode


def measure(name: str, line: str, folder: Path, cases: int, **variables: str) -> Mode:
    """Run one mode into a folder of its own."""
    out = folder / name.replace(" ", "-").replace(",", "")
    start = time.perf_counter()
    code = bash(
        line.format(out=out.name), folder, MEDKIT_RECORDS=str(out / "records"), MEDKIT_NO_PROGRESS="1", **variables
    )
    seconds = time.perf_counter() - start
    print(f"{name}: {seconds:.1f} s", file=sys.stderr, flush=True)
    found = sorted(records(out), key=lambda record: record["medkit"]["finished"])
    peaks = [record["medkit"].get("peak_rss_mb", 0) for record in found]
    failed = frozenset(Path(r["path"]).name for r in found if r["medkit"]["status"] == "failed")
    results = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.glob("*_double.nii.gz")}
    return Mode(name, seconds, cases, code, results, failed, max(peaks[: cases // 10]), max(peaks))


def records(out: Path) -> Iterator[dict[str, dict[str, object]]]:
    for path in (out / "records").glob("*.jsonl"):
        yield from map(json.loads, path.read_text().splitlines())


def make_cases(folder: Path, cases: int, broken: float) -> int:
    """Write the images and their list; return how many are broken."""
    (folder / "scans").mkdir()
    every = round(1 / broken)
    for number in range(cases):
        path = make_image(folder / f"scans/s{number:05}.nii.gz", (8, 8, 8), (4.0, 4.0, 4.0), seed=number)
        if number % every == 0:
            path.write_bytes(path.read_bytes()[:200])
    (folder / "list").write_text("".join(f"scans/s{number:05}.nii.gz\n" for number in range(cases)))
    jobs = {"memory": "500MB", "interface": "lo", "log-directory": str(folder / "logs")}
    (folder / "jobs.yaml").write_text(json.dumps({"jobqueue": {"slurm": jobs}}))
    (folder / "bin").mkdir()
    for name, text in (("medkit", f'exec {sys.executable} -m toy "$@"'), ("sbatch", "echo 1"), ("squeue", ":")):
        program = folder / "bin" / name
        program.write_text(f"#!/bin/bash\n{text}\n")
        program.chmod(0o755)
    return len(range(0, cases, every))


ONE = "medkit run double --list list -o {out}"
SHARDS = (
    "medkit submit slurm --list list --shards 8 -o {out} -- 'medkit run double'"
    " && seq 8 | xargs -P%d -n1 bash {out}/shard.sh; medkit status {out}"
)
DASK = f"{ONE} --executor dask"
ON_SLURM = (
    "rm -f bin/sbatch bin/squeue; medkit submit slurm --list list --shards 8 --mem 500M -o {out} -- 'medkit run double'"
    ' && until [ -z "$(squeue -h)" ]; do sleep 0.2; done; medkit status {out}'
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--broken", type=float, default=0.05)
    parser.add_argument("--slurm", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="medkit-") as name:
        folder = Path(name)
        broken = make_cases(folder, given.cases, given.broken)
        modes = [
            measure("one process", ONE, folder, given.cases),
            *(measure(f"workers {n}", f"{ONE} --workers {n}", folder, given.cases) for n in (1, 2, 4)),
            measure("Dask, workers 2", f"{DASK} --workers 2", folder, given.cases),
            *(measure(f"8 shards, {n} at a time", SHARDS % n, folder, given.cases) for n in (1, 2)),
        ]
        loop = 'for f in $(sed -n "2,16p" list); do medkit run double $f -o {out}; done'
        looped = measure("shell loop", loop, folder, 15)
        if given.slurm:
            with slurm.cluster() as configuration:
                where = {"SLURM_CONF": str(configuration)}
                modes += [
                    measure("8 shards on Slurm", ON_SLURM, folder, given.cases, **where),
                    measure(
                        "Dask, 2 jobs on Slurm", f"{DASK} --cluster jobs.yaml --jobs 2", folder, given.cases, **where
                    ),
                ]
    print(f"{given.cases} cases, {broken} broken\n")
    print("| mode | ms a case | exit code | results | failures | the same | MB after a tenth | MB at the end |")
    print("|---|---|---|---|---|---|---|---|")
    first = modes[0]
    for mode in (*modes, looped):
        same = (mode.results, mode.failures) == (first.results, first.failures) if mode is not looped else ""
        print(
            f"| {mode.name} | {1000 * mode.seconds / mode.cases:.0f} | {mode.code} | {len(mode.results)} | "
            f"{len(mode.failures)} | {same} | {mode.early_mb:.0f} | {mode.late_mb:.0f} |"
        )


if __name__ == "__main__":
    main()
