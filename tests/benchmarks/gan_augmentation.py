"""Does a GAN help with few labels? Chest X-rays of one class are turned into the other, as more training images.

    python tests/benchmarks/gan_augmentation.py [--data FOLDER] [--share 0.05] [--seeds 5] [--picture FILE]

For each seed a share of PneumoniaMNIST's training part is drawn, with its shares of classes. A CycleGAN
(`medkit.training.parts.cyclegan`, planar generators) learns on only these images to turn normal ones into ones with
pneumonia and back; every image then also yields one of the other class. The network of `chest_xray_classification`,
with its loss and augmentation, is trained once without and once with these images (a quarter of each batch), the same
steps both times. It prints AUC and accuracy on the official test set, their means and spreads, and the differences seed
by seed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.networks.layers import SkipConnection
from monai.networks.nets import PatchDiscriminator
from torch import nn

from medkit.evaluation.classes.metrics import roc_auc
from medkit.training.class_data import read_part
from medkit.training.parts.augmentation import AugmentedBatch, Changes
from medkit.training.parts.cyclegan import CycleInferer, CycleLoss, ImagePool, TrainDiscriminators

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "chest_xray"
SETS = ("pneumonia_a_pneumoniamnist.npz", "pneumonia_b_pneumoniamnist.npz")
BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "chest_xray_classification"
CYCLE_STEPS, CYCLE_BATCH, CYCLE_RATE = 1000, 16, 3e-4
STEPS, BATCH = 400, 64
MADE = 0.25
"""Share of a batch that is made, where made images are used."""
WIDTH = 32
"""Channels of the generators at half resolution."""


@dataclass(frozen=True, eq=False)
class Images:
    """Images and their classes."""

    values: torch.Tensor
    """(N, 1, 28, 28) float32, 0 to 1 from the 1st to the 99th percentile of each."""
    labels: torch.Tensor
    """(N,) int64: 0 normal, 1 pneumonia."""

    def of(self, number: int) -> torch.Tensor:
        """(n, 1, 28, 28) those of a class."""
        return self.values[self.labels == number]


def load(folder: Path, part: str) -> Images:
    """A part of the set, as the bundle sees it; of `train` no image twice, and none of the other parts."""
    kept: set[bytes] = set()
    if part == "train":
        kept = {s.key for other in ("val", "test") for s in read_part(folder / SETS[0], other)}
    samples = [
        sample
        for name in (SETS if part == "train" else SETS[:1])
        for sample in read_part(folder / name, part)
        if not (sample.key in kept or kept.add(sample.key))  # type: ignore[func-returns-value]
    ]
    stack = np.stack([sample.image for sample in samples]).astype(np.float32)[:, None]
    low, high = np.percentile(stack, (1, 99), axis=(2, 3), keepdims=True)
    values = np.clip((stack - low) / np.maximum(high - low, 1), 0, 1).astype(np.float32)
    return Images(torch.from_numpy(values), torch.tensor([sample.label for sample in samples]))


def drawn(images: Images, share: float, seed: int) -> Images:
    """A share of the images of each class."""
    rng = np.random.default_rng(seed)
    picked: list[int] = []
    for number in (0, 1):
        own = np.flatnonzero(images.labels.numpy() == number)
        picked += rng.choice(own, max(2, round(share * len(own))), replace=False).tolist()
    return Images(images.values[picked], images.labels[picked])


def generator() -> nn.Module:
    """Residual blocks at half resolution, added to the image; nearly the identity at first."""

    def block(width: int) -> nn.Module:
        layers = nn.Conv2d(width, width, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(width, width, 3, padding=1)
        return SkipConnection(nn.Sequential(*layers), mode="add")

    last = nn.ConvTranspose2d(WIDTH, 1, 2, 2)
    last.weight.data.mul_(0.1)
    blocks = (block(WIDTH) for _ in range(4))
    return SkipConnection(nn.Sequential(nn.Conv2d(1, WIDTH, 2, 2), *blocks, last), mode="add")


def batches(images: torch.Tensor, size: int, rng: np.random.Generator) -> Iterator[torch.Tensor]:
    """Endless batches, drawn with replacement."""
    while True:
        yield images[rng.integers(len(images), size=size)]


@dataclass
class _Engine:
    """What `TrainDiscriminators` reads of a trainer."""

    state: argparse.Namespace


def turned(images: Images, seed: int) -> Images:
    """Train a CycleGAN on the images, and return each of them turned into the other class."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    there, back = generator(), generator()
    discriminators = nn.ModuleDict({key: _discriminator() for key in ("source", "target")})
    loss = CycleLoss(discriminators)  # type: ignore[arg-type]
    optimizer, discriminator_optimizer = (
        torch.optim.Adam(parameters, CYCLE_RATE, betas=(0.5, 0.999))
        for parameters in ([*there.parameters(), *back.parameters()], discriminators.parameters())
    )
    pools = {key: ImagePool(50) for key in discriminators}
    train_discriminators = TrainDiscriminators(discriminators, discriminator_optimizer, pools)
    cycle = CycleInferer(back)
    sources, targets = (batches(images.of(number), CYCLE_BATCH, rng) for number in (0, 1))
    for step in range(CYCLE_STEPS):
        source, target = next(sources), next(targets)
        for group in (*optimizer.param_groups, *discriminator_optimizer.param_groups):
            group["lr"] = CYCLE_RATE * min(1.0, 2 * (1 - step / CYCLE_STEPS))
        optimizer.zero_grad()
        real = {"source": source, "target": target}
        made = cycle(source, there, target)
        total = loss(made, real)
        total.backward()
        optimizer.step()
        train_discriminators(_Engine(argparse.Namespace(output={"loss": total.detach(), "pred": made, "label": real})))
    with torch.no_grad():
        values = torch.cat([there(images.of(0)), back(images.of(1))]).clamp(0, 1)
    labels = torch.cat([torch.ones(len(images.of(0))), torch.zeros(len(images.of(1)))]).long()
    return Images(values, labels)


def _discriminator() -> nn.Module:
    return PatchDiscriminator(spatial_dims=2, in_channels=1, channels=16, num_layers_d=2, norm="INSTANCE")


def trained(images: Images, made: Images | None, seed: int) -> nn.Module:
    """The bundle's network after `STEPS` steps on the images, and on generated ones if there are any."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    config = ConfigParser()
    config.read_config(BUNDLE / "configs" / "train.json")
    config["device"] = "cpu"
    network = config.get_parsed_content("network_def")
    changes: Changes = config.get_parsed_content("changes")
    prepare = AugmentedBatch(2, changes)
    counts = torch.bincount(images.labels, minlength=2)
    loss = nn.CrossEntropyLoss(weight=counts.max() / counts, label_smoothing=float(config["label_smoothing"]))
    rate = float(config["learning_rate"])
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=STEPS, pct_start=0.1)
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.98), use_buffers=True
    )
    parts = [(images, BATCH)] if made is None else [(images, round((1 - MADE) * BATCH)), (made, round(MADE * BATCH))]
    network.train()
    for _ in range(STEPS):
        picks = [(part, rng.integers(len(part.labels), size=count)) for part, count in parts]
        batch = {
            "image": torch.cat([part.values[pick] for part, pick in picks]),
            "label": torch.cat([part.labels[pick] for part, pick in picks]),
        }
        x, y = prepare(batch, torch.device("cpu"))[:2]
        optimizer.zero_grad()
        loss(network(x), y).backward()
        optimizer.step()
        schedule.step()
        average.update_parameters(network)
    return average.module.eval()


def scores(network: nn.Module, test: Images) -> tuple[float, float]:
    """AUC and accuracy on the test images, mirror images averaged."""
    with torch.no_grad():
        seen = [network(x).softmax(1)[:, 1].numpy() for x in (test.values, test.values.flip(2))]
    probability, positive = np.mean(seen, axis=0), test.labels.numpy() == 1
    auc = roc_auc(probability, positive, np.ones((1, len(positive))))[0]
    return float(auc), float(((probability > 0.5) == positive).mean())


def picture(images: Images, made: Images, path: Path) -> None:
    """Write six images of each class above the images generated from them."""
    from PIL import Image as Picture

    columns = []
    order = torch.cat([images.of(0), images.of(1)])
    for n in [*range(6), *range(len(order) - 6, len(order))]:
        columns.append(np.concatenate([order[n, 0].numpy(), made.values[n, 0].numpy()]))
    grid = (255 * np.concatenate(columns, axis=1)).astype(np.uint8)
    Picture.fromarray(grid).resize((grid.shape[1] * 3, grid.shape[0] * 3), Picture.Resampling.NEAREST).save(path)


def main() -> None:
    """Runs and prints a row per seed and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    if not options.data.is_dir():
        raise SystemExit(f"the X-rays are not at {options.data}; give --data FOLDER")
    torch.set_num_threads(2)
    train, test = load(options.data, "train"), load(options.data, "test")
    print("| seed | images | AUC without | with | accuracy without | with | s |\n|---|---|---|---|---|---|---|")
    rows = []
    for seed in range(options.seeds):
        start = time.perf_counter()
        few = drawn(train, options.share, seed)
        made = turned(few, seed)
        without, own = (scores(trained(few, extra, seed), test) for extra in (None, made))
        rows.append((*without, *own))
        cells = (without[0], own[0], without[1], own[1])
        print(
            f"| {seed} | {len(few.labels)} | " + " | ".join(f"{c:.4f}" for c in cells),
            f"| {time.perf_counter() - start:.0f} |",
            flush=True,
        )
        if options.picture and seed == 0:
            picture(few, made, options.picture)
    for name, a, b in (("AUC", 0, 2), ("accuracy", 1, 3)):
        before, after = [row[a] for row in rows], [row[b] for row in rows]
        gains = [y - x for x, y in zip(before, after, strict=True)]
        print(f"{name}: without {_spread(before)}, with {_spread(after)}, difference {_spread(gains)}")


def _spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.4f} (sd {statistics.stdev(values) if len(values) > 1 else 0:.4f})"


if __name__ == "__main__":
    main()
