"""Seconds, memory and Dice of `brain_mri_segmentation` by torch, ONNX Runtime and OpenVINO on two threads.

    python tests/benchmarks/backends.py DATA/brain_t1_manual [--scans 4] [--part 128] [--runs 2]

The folder holds oasis_ID_t1.nii.gz and oasis_ID_labels.nii.gz, as for tests/benchmarks/segmentation.py. Measured is one
pass of the network (the bundle makes two) on the prepared scan, or on its middle of PART^3 voxels at 1 mm. All ways run
in one process, once more for each scan, and each time in another order. Ratios are to torch float32 on the same scan.
On a busy machine the ratio of processor seconds tells more than that of seconds: a way that waits takes none.

Memory is what the process takes more during a pass than before, besides the weights; freed memory is given back for
that, which `medkit run` does not do. Dice is the mean over structures: with the manual labels of the part, and with the
labels of torch float32.

int8 is OpenVINO's, calibrated by NNCF on the middle of the first scan, which is not scored, and its mirror image. It
shows what int8 would cost; medkit does not offer it.
"""

from __future__ import annotations

import argparse
import atexit
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from segmentation import BUNDLE, dice, table

OWN = "torch float32"
WAYS = (OWN, "torch bf16", "onnxruntime float32", "openvino float32", "openvino bf16", "openvino int8")
CALIBRATED = 96
"""Voxels along each axis of the part of a scan that int8 is calibrated on."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("data", type=Path)
    arguments.add_argument("--scans", type=int, default=4)
    arguments.add_argument("--part", type=int, help="voxels along each axis; not given: the whole scan")
    arguments.add_argument("--runs", type=int, default=2)
    arguments.add_argument("--threads", type=int, default=2)
    given = arguments.parse_args()
    from medkit.machine.threads import limit_torch

    limit_torch(given.threads)
    ids = sorted(p.name.split("_")[1] for p in given.data.glob("oasis_*_t1.nii.gz"))[: given.scans + 1]
    runner, prepare = opened(given.threads)
    mapping = table(given.data / "neuromorphometrics_to_freesurfer.tsv")
    values = np.array([int(n) for n in runner.bundle.metadata["medkit"]["labels"]])
    numbers = np.array([0, *sorted(values)])
    first, *scans = [prepare(given.data, name, mapping) for name in ids]
    calls = ways_of(runner, part_of(first, CALIBRATED)[0])
    scans = [part_of(scan, given.part) for scan in scans]
    rows: dict[str, list[dict[str, float]]] = {way: [] for way in calls}
    for number, (image, manual) in enumerate(scans):
        found: dict[str, dict[str, Any]] = {}
        for turn in range(given.runs):
            names = list(calls)
            shift = (number * given.runs + turn) % len(names)
            for way in names[shift:] + names[:shift]:
                told = timed(calls[way], image)
                known = found.setdefault(way, told)
                found[way] = told | {key: min(told[key], known[key]) for key in ("seconds", "processor")}
                found[way]["memory"] = max(told["memory"], known["memory"])  # some libraries keep what they took
        truth, base = numbers[found[OWN]["labels"]], found[OWN]
        for way, told in found.items():
            labels = numbers[told.pop("labels")]
            rows[way].append(
                {
                    **told,
                    "ratio": told["seconds"] / base["seconds"],
                    "own": told["processor"] / base["processor"],
                    "dice": float(np.nanmean(list(dice(labels, manual, list(numbers[1:])).values()))),
                    "same": float(np.nanmean(list(dice(labels, truth, list(numbers[1:])).values()))),
                }
            )
            print(f"{ids[number + 1]} {way}: {rows[way][-1]}", file=sys.stderr, flush=True)
    print("| way | seconds | ratio | ratio of processor seconds | memory (GB) | Dice, manual | Dice, torch float32 |")
    print("|---|---|---|---|---|---|---|")
    for way, own in rows.items():
        middle = {key: statistics.median(row[key] for row in own) for key in own[0]}
        mean = {key: statistics.mean(row[key] for row in own) for key in ("dice", "same")}
        print(
            f"| {way} | {middle['seconds']:.1f} | {middle['ratio']:.2f} | {middle['own']:.2f} | "
            f"{middle['memory'] / 1e9:.2f} | {mean['dice']:.4f} | {mean['same']:.4f} |"
        )
    size = " x ".join(map(str, scans[0][0].shape[2:]))
    print(f"\n{len(scans)} scans, such as {size} voxels; the shortest of {given.runs} runs; {given.threads} threads.")


def opened(threads: int) -> tuple[Any, Callable[..., Any]]:
    """Return the runner of the bundle, and what prepares a scan and its manual labels for it."""
    from medkit.bundles.bundle import Bundle
    from medkit.images.image import read_image
    from medkit.inference.loading import RunSettings, open_bundle
    from medkit.inference.task import bundle_task
    from medkit.options import RunOptions
    from medkit.pipe.records import record_of
    from medkit.run.outputs import Targets
    from medkit.run.task import Case, CasePlan, Runtime
    from medkit.space import Grid
    from medkit.transforms.resampling import resample

    runtime = Runtime("cpu", threads, 0)
    bundle, settings = Bundle(BUNDLE, BUNDLE.name), RunSettings({}, "float32")
    task = bundle_task("bundle", [bundle], settings)
    runner = open_bundle(runtime, bundle, settings)

    def prepare(data: Path, name: str, mapping: np.ndarray) -> tuple[Any, np.ndarray]:
        path = data / f"oasis_{name}_t1.nii.gz"
        case = Case(CasePlan(record_of(path), {"image": path}, Targets({})), task, RunOptions(), runtime)
        image = runner.prepare(case).item["image"]
        grid = Grid(tuple(image.shape[1:]), np.asarray(image.affine, np.float64), 3)
        labels = read_image(data / f"oasis_{name}_labels.nii.gz", labels=True)
        manual = resample(labels, grid, interpolation="nearest", outside=0).data[0]
        return image.as_tensor()[None], mapping[np.rint(manual).astype(np.int64)]

    return runner, prepare


def part_of(scan: tuple[Any, np.ndarray], part: int | None) -> tuple[Any, np.ndarray]:
    """Return the middle of an image (1, C, I, J, K) and of its labels (I, J, K)."""
    image, manual = scan
    if part is not None:
        for axis, size in enumerate(image.shape[2:]):
            start = max(0, (size - part) // 2)
            image = image.narrow(2 + axis, start, min(part, size))
            manual = manual.take(range(start, start + min(part, size)), axis)
    return image.contiguous(), manual


def ways_of(runner: Any, example: Any) -> dict[str, Callable[[Any], Any]]:
    """Return way -> what computes an image (1, C, I, J, K); int8 is calibrated on `example`."""
    import torch

    from medkit.inference.backends import CompiledNetwork, session_of
    from medkit.inference.onnx_network import converted
    from medkit.machine.precision import as_float, computing

    network = runner.network.network
    size = tuple(example.shape[1:])
    content = converted(network, size, lambda content: session_of("onnxruntime", content, "float32")).content
    calls: dict[str, Callable[[Any], Any]] = {}
    for way in WAYS:
        backend, precision = way.split()
        call: Any = network
        if backend != "torch":
            call = CompiledNetwork(network, backend, precision)
            model = quantised(content, example) if precision == "int8" else content
            call._session = session_of(backend, model, "float32" if precision == "int8" else precision)
        kind = precision if backend == "torch" else "float32"

        def compute(image: Any, call: Any = call, kind: str = kind) -> Any:
            with computing(kind, torch.device("cpu")):
                return as_float(call(image))

        calls[way] = compute
        compute(example[..., :32, :32, :32].contiguous())  # loaded
        print(f"{way}: ready", file=sys.stderr, flush=True)
    return calls


def quantised(content: bytes, example: Any) -> Path:
    """Return the file of a network in int8 for OpenVINO, calibrated on an image (1, C, I, J, K) and its mirror."""
    import nncf
    import openvino

    values = example.numpy()
    examples = nncf.Dataset([values, values[:, :, ::-1].copy()])
    made = nncf.quantize(openvino.Core().read_model(content), examples, subset_size=2)
    path = Path(tempfile.mkdtemp(prefix="medkit-int8-")) / "int8.xml"
    atexit.register(shutil.rmtree, path.parent)
    openvino.save_model(made, path, compress_to_fp16=False)
    return path


def timed(call: Callable[[Any], Any], image: Any) -> dict[str, Any]:
    """Run a network, and return seconds, processor seconds, bytes that it took meanwhile, and channels (I, J, K)."""
    before, most, ended = resident(), [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            most[0] = max(most[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began, spent = time.perf_counter(), time.process_time()
    answer = call(image)
    seconds, processor = time.perf_counter() - began, time.process_time() - spent
    ended.set()
    watcher.join()
    labels = answer[0].argmax(0).numpy()
    return {"seconds": seconds, "processor": processor, "memory": max(0, most[0] - before), "labels": labels}


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    main()
