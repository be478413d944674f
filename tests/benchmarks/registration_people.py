"""Registration of many pairs and its peers: medians, means, pairs won against each peer, seconds.

    python tests/benchmarks/registration_people.py SET [--side reporting|tuning|all] [--limit N] [--only METHOD]...
        [--peers FOLDER] [--results FILE]

The sets are
- `adults`: pairs of `brain_t1_manual` (1003 and 1023 are most likely one person, and count as one), and `infants`:
  pairs of `infants`; scored by the mean Dice of the labels that both have, moved by nearest neighbour;
- `liver`: pairs of one person in several phases of breathing, mean TRE in mm of landmarks inside and outside the liver;
- `brain_multi`: one person, four contrasts, all ordered pairs, the moving scan turned by 10 degrees, shifted by 15 mm
  and bent by up to 9 mm (`registration_known.py`): mean TRE in mm of points of the brain, 8 mm apart;
- `ms_longitudinal`: two visits, NCC and mutual information in the brain, and the TRE with the second visit moved so;
- `prostate_mr_us`: MR to ultrasound, the Dice of the gland and the distance in mm between the centres of structures.

People are split into two sides by their number, and a pair lies on one side only if both of its people do: tune on
`tuning`, report on `reporting`. (Before this split the defaults were tuned on the pairs 1000:1001, 1002:1014, 1015:1017
and 1003:1000, so of the adults nobody is quite unseen; the infants are.) The sets of one person have no sides.

All methods run on a pair one after the other. `medkit run register` is a process with all its files: seconds are those
of the case, CPU seconds those of the whole process. A peer is a process too (`registration_peers.py`), of which only
the registration calls count. A peer that is not installed is left out with a line; `--peers` names a folder of
packages, as `pip install --target` fills it. A method that fails on a pair is named, counts as lost, and is tried again
by the next run.

`--results FILE` keeps each result as a line of JSON (set, pair, method, scores, seconds, cpu) as soon as it is there,
and what is there is not computed again. So a run can be stopped and resumed, and the table is made from the file and
this run. Start a new file when medkit has changed. Seconds of different moments on a busy machine are not comparable:
look at the CPU seconds then.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from registration import THREADS, Clock
from registration_known import brain_multi, ms_longitudinal
from registration_peers import PEERS
from registration_sets import SHARED, SIDES, Pair, adults, infants, liver, prostate

SETS: dict[str, tuple[Callable[[str, Path], Iterator[Pair]], str]] = {
    "adults": (adults, "reporting"),
    "infants": (infants, "reporting"),
    "liver": (liver, "all"),
    "brain_multi": (brain_multi, "all"),
    "ms_longitudinal": (ms_longitudinal, "all"),
    "prostate_mr_us": (prostate, "all"),
}
"""Name -> its pairs, and the side that is taken unless another one is asked for."""
ONE_PERSON = ("brain_multi", "ms_longitudinal")
"""Sets without sides."""
HIGHER_IS_BETTER = ("dice", "ncc", "mi")
"""All other scores are distances in mm."""


@dataclass(frozen=True)
class Outcome:
    """One method on one pair."""

    scores: Mapping[str, float]
    seconds: float
    cpu: float


Method = Callable[[Pair, Path], Outcome]
Results = dict[tuple[str, str], Outcome]
"""Pair and method -> what came of it."""


class MethodError(Exception):
    """A registration ended with an error."""


def before(pair: Pair, work: Path) -> Outcome:
    """Score the scans as they lie."""
    return Outcome(pair.score(None), 0.0, 0.0)


def medkit(pair: Pair, work: Path, options: tuple[str, ...] = ()) -> Outcome:
    """Run `medkit run register` as a user calls it."""
    command = [sys.executable, "-m", "medkit", "run", "register", "--fixed", str(pair.fixed), str(pair.moving)]
    clock = Clock()
    done = run([*command, *options, "--json", "-q", "-o", str(work)])
    cpu = clock.read()[1]
    record = json.loads(done)["medkit"]
    return scored(pair, Path(record["outputs"]["transform"]["path"]), record["seconds"], cpu)


def peer(pair: Pair, work: Path, name: str, packages: Path | None) -> Outcome:
    """Run another program in a process of its own, which finds its packages first."""
    script = Path(__file__).with_name("registration_peers.py")
    command = [sys.executable, str(script), name, str(pair.fixed), str(pair.moving), str(work)]
    if pair.unlike:
        command.append("--unlike")
    run(command, {"PYTHONPATH": str(packages.resolve())} if packages else {})
    measured = json.loads((work / "measured.json").read_text())
    return scored(pair, work / "whole.nii.gz", measured["seconds"], measured["cpu"])


def run(command: list[str], variables: Mapping[str, str] | None = None) -> str:
    """Return what a command prints; MethodError with the end of its errors."""
    environment = os.environ | dict(variables or {})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise MethodError(f"exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout


def scored(pair: Pair, transform: Path, seconds: float, cpu: float) -> Outcome:
    """Return the outcome of a registration by its transform file."""
    from medkit.transforms import read_transform

    return Outcome(pair.score(read_transform(transform)), seconds, cpu)


OURS = "medkit"
MEDKIT: dict[str, Method] = {
    "before": before,
    "medkit affine": partial(medkit, options=("--type", "affine")),
    OURS: medkit,
    "medkit fast": partial(medkit, options=("--quality", "fast")),
    "medkit best": partial(medkit, options=("--quality", "best")),
}
ON_REQUEST = ("medkit fast", "medkit best", "elastix, finer", "ANTs SyN", "FireANTs")
"""Only where asked for by `--only`."""


def chosen(only: list[str], packages: Path | None) -> dict[str, Method]:
    """Return the methods that are asked for and installed; a line on stderr for each that is not."""
    known = [*MEDKIT, *PEERS]
    if unknown := set(only) - set(known):
        raise SystemExit(f"expected --only to be among {known}, got {', '.join(sorted(unknown))}")
    methods: dict[str, Method] = {}
    for name in known:
        if name not in only and (only or name in ON_REQUEST):
            continue
        if name in MEDKIT:
            methods[name] = MEDKIT[name]
        elif installed(PEERS[name][0], packages):
            methods[name] = partial(peer, name=name, packages=packages)
        else:
            print(f"{name}: {PEERS[name][0]} is not installed, left out", file=sys.stderr)
    return methods


def installed(package: str, packages: Path | None) -> bool:
    """Tell whether a package is in the folder of packages or in this environment."""
    places = [str(packages), *sys.path] if packages else sys.path
    return any(importlib.metadata.distributions(name=package, path=places))


def read_results(path: Path | None, which: str) -> Results:
    """Return the kept results of a set; a last line that was cut off is removed from the file."""
    if path is None or not path.exists():
        return {}
    text = path.read_text()
    if text and not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        path.write_text(text)
    try:
        lines = [json.loads(line) for line in text.splitlines()]
    except ValueError as error:
        raise SystemExit(f"{path}: expected a result of this program as JSON in each line, got {error}") from error
    return {
        (line["pair"], line["method"]): Outcome(line["scores"], line["seconds"], line["cpu"])
        for line in lines
        if line["set"] == which
    }


def measure(pairs: Iterable[Pair], methods: Mapping[str, Method], which: str, kept: Path | None) -> Results:
    """Return the results of all methods on all pairs; new ones are added to the file `kept`."""
    results = read_results(kept, which)
    for pair in pairs:
        missing = [name for name in methods if (pair.name, name) not in results]
        if missing:
            pair.prepare()
        for name in missing:
            try:
                with tempfile.TemporaryDirectory() as work:
                    outcome = methods[name](pair, Path(work))
            except MethodError as failed:
                print(f"{pair.name}  {name}: failed, {failed}", flush=True)
                continue
            results[pair.name, name] = outcome
            if kept is not None:
                with kept.open("a") as file:
                    file.write(json.dumps({"set": which, "pair": pair.name, "method": name, **asdict(outcome)}) + "\n")
            values = ", ".join(f"{key} {value:.3f}" for key, value in outcome.scores.items())
            print(f"{pair.name}  {name}: {values}, {outcome.seconds:.1f} s, CPU {outcome.cpu:.1f} s", flush=True)
    return results


def summary(results: Results, pairs: list[Pair], methods: Iterable[str]) -> str:
    """Return a table for each group of pairs."""
    tables = []
    for group in dict.fromkeys(pair.group for pair in pairs):
        names = [pair.name for pair in pairs if pair.group == group]
        tables.append(f"{group or 'pairs'}: {len(names)}\n" + "\n".join(table(results, names, list(methods))))
    return "\n\n".join(tables)


def table(results: Results, pairs: list[str], methods: list[str]) -> Iterator[str]:
    """Yield the lines of a table: for each score its median, its mean and the share of pairs that medkit wins."""
    there = [results[pair, method] for pair in pairs for method in methods if (pair, method) in results]
    keys = list(dict.fromkeys(key for outcome in there for key in outcome.scores))
    heads = [f"{key}, median | mean | medkit wins" for key in keys]
    yield "| method | " + " | ".join([*heads, "seconds", "ratio", "CPU seconds"]) + " |"
    yield "|---" * (4 + 3 * len(keys)) + "|"
    for method in methods:
        done = [pair for pair in pairs if (pair, method) in results]
        failed = f" ({len(pairs) - len(done)} failed)" if len(done) < len(pairs) else ""
        if not done:
            yield f"| {method}{failed} |" + " - |" * (3 + 3 * len(keys))
            continue
        cells = []
        for key in keys:
            values = [results[pair, method].scores[key] for pair in done]
            cells += [f"{statistics.median(values):.3f}", f"{statistics.fmean(values):.3f}"]
            cells.append(won(results, pairs, method, key))
        yield f"| {method}{failed} | " + " | ".join(cells + times(results, done, method)) + " |"


def won(results: Results, pairs: list[str], method: str, key: str) -> str:
    """Return the share of pairs on which medkit's default is better than a method; who fails loses."""
    ran = [pair for pair in pairs if (pair, OURS) in results or (pair, method) in results]
    if method == OURS or all((pair, OURS) not in results for pair in ran):
        return "-"
    sign = 1 if key in HIGHER_IS_BETTER else -1

    def value(pair: str, of: str) -> float:
        return sign * results[pair, of].scores[key] if (pair, of) in results else -math.inf

    return f"{100 * statistics.fmean(value(pair, OURS) > value(pair, method) for pair in ran):.0f} %"


def times(results: Results, pairs: list[str], method: str) -> list[str]:
    """Return the median seconds, their ratio to those of medkit on the same pairs, and the median CPU seconds."""
    seconds, cpu = (statistics.median(getattr(results[p, method], what) for p in pairs) for what in ("seconds", "cpu"))
    ours = [results[pair, OURS].seconds for pair in pairs if (pair, OURS) in results]
    return [f"{seconds:.1f}", f"{seconds / statistics.median(ours):.1f}" if ours else "-", f"{cpu:.1f}"]


def main() -> None:
    """Run all methods on each pair in turn, print a line for each, and the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--side", choices=[*SIDES, "all"])
    parser.add_argument("--limit", type=int, help="Only so many pairs, evenly spread.")
    parser.add_argument("--only", action="append", default=[], metavar="METHOD")
    parser.add_argument("--peers", type=Path, help="A folder with the packages of peers.")
    parser.add_argument("--results", type=Path, metavar="FILE", help="Keep results here, and take what is there.")
    options = parser.parse_args()
    if not SHARED.is_dir():
        raise SystemExit(f"real scans are not at {SHARED}")
    if options.set in ONE_PERSON and options.side not in (None, "all"):
        raise SystemExit(f"{options.set} is one person and has no sides, got --side {options.side}")
    os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", THREADS)
    pairs_of_set, usual = SETS[options.set]
    side = options.side or usual
    if options.peers and not options.peers.is_dir():
        raise SystemExit(f"--peers: expected a folder, got {options.peers}")
    methods = chosen(options.only, options.peers)
    with tempfile.TemporaryDirectory() as folder:
        pairs = list(pairs_of_set(side, Path(folder)))
        if options.limit:
            pairs = pairs[:: max(1, len(pairs) // options.limit)][: options.limit]
        results = measure(pairs, methods, options.set, options.results)
    print(f"\n{options.set}, {side}\n\n{summary(results, pairs, methods)}")


if __name__ == "__main__":
    main()
