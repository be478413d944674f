"""Time to draw a training image, compared with the training step that uses it.

    python tests/benchmarks/synthesis.py DATA/brain_labelmaps [--runs 10] [--picture twelve.png]

Draws with the train config of the bundle brain_mri_segmentation and times a draw, and a step (forward, loss, backward,
optimizer) of its network, in turn, and prints the ratio of the medians. `--picture` writes twelve samples.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from monai.bundle import ConfigParser

from medkit.figures.mosaic import sample_sheet, write_png
from medkit.machine.precision import choose_precision, prepare

CONFIG = Path(__file__).parents[2] / "bundles" / "brain_mri_segmentation" / "configs" / "train.json"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("label_maps", type=Path)
    arguments.add_argument("--runs", type=int, default=10)
    arguments.add_argument("--picture", type=Path)
    given = arguments.parse_args()
    config = ConfigParser()
    config.read_config(CONFIG)
    config["dataset_dir"] = str(given.label_maps)
    config["train_datalist"] = [{"labels": str(p)} for p in sorted(given.label_maps.glob("*.nii.gz"))[:4]]
    config["ramp"] = 0
    samples = config.get_parsed_content("train::dataset")
    network, loss, optimizer = (config.get_parsed_content(name) for name in ("network", "loss", "optimizer"))
    prepare(network, choose_precision("auto", next(network.parameters()).device))
    draws, steps = [], []
    for number in range(given.runs + 1):
        began = time.perf_counter()
        sample = samples[number]
        drawn = time.perf_counter()
        loss(network(sample["image"][None].as_tensor()), sample["label"][None].as_tensor()).backward()
        optimizer.step()
        optimizer.zero_grad()
        draws.append(drawn - began)
        steps.append(time.perf_counter() - drawn)
    draw, step = (statistics.median(times[1:]) for times in (draws, steps))
    print(f"threads {torch.get_num_threads()}: draw {draw:.3f} s, step {step:.3f} s, ratio {draw / step:.2f}")
    if given.picture:
        twelve = [samples[n] for n in range(12)]
        write_png(sample_sheet([(s["image"][0].numpy(), s["label"][0].numpy()) for s in twelve]), given.picture)


if __name__ == "__main__":
    main()
