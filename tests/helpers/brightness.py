"""A bundle that classifies: it tells bright images from dark ones, and knows what smooth images are like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from medkit_classify import calibrate
from medkit_classify.calibration import FeatureDistance
from PIL import Image as Picture

from medkit.bundles.bundle import Bundle
from medkit.pipe.records import sha256_of

SIZE = 12
STEEP = 40.0
"""The logit of `bright` is this times the brightness over a half, that of `dark` the opposite."""


def write_bundle(root: Path, *, dims: int = 2, calibrated: bool = True, **block: Any) -> Path:
    """A bundle that tells bright images from dark ones by the mean of a layer that squares nothing and adds nothing."""
    for folder in ("configs", "models", "docs"):
        (root / folder).mkdir(parents=True)
    compose = {"_target_": "Compose"}
    config = {
        "imports": ["$import collections", "$import torch"],
        "bundle_root": ".",
        "encoder": {"_target_": f"torch.nn.Conv{dims}d", "in_channels": 1, "out_channels": 2, "kernel_size": 1},
        "network_def": f"$torch.nn.Sequential(collections.OrderedDict(encoder=@encoder, act=torch.nn.ReLU(), "
        f"pool=torch.nn.AdaptiveAvgPool{dims}d(1), flatten=torch.nn.Flatten(), head=torch.nn.Linear(2, 2)))",
        "network": "$@network_def",
        "preprocessing": {**compose, "transforms": [
            {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
            {"_target_": "Lambdad", "keys": "image", "func": "$lambda x: x[:1] / 255"},
            {"_target_": "Resized", "keys": "image", "spatial_size": [SIZE] * dims, "mode": "area"},
        ]},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {**compose, "transforms": [{"_target_": "Activationsd", "keys": "pred", "softmax": True}]},
    }  # fmt: skip
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    weights = {
        "encoder.weight": torch.tensor([1.0, -1.0]).reshape(2, 1, *[1] * dims),
        "encoder.bias": torch.tensor([0.0, 1.0]),
        "head.weight": torch.tensor([[0.0, STEEP], [STEEP, 0.0]]),
        "head.bias": torch.tensor([-STEEP / 2, -STEEP / 2]),
    }
    torch.save(weights, root / "models" / "model.pt")
    tensor = {"type": "image", "format": "magnitude", "num_channels": 1, "spatial_shape": [SIZE] * dims}
    made = {"type": "probabilities", "format": "classes", "num_channels": 2, "spatial_shape": [1, 2],
            "channel_def": {"0": "dark", "1": "bright"}}  # fmt: skip
    if calibrated:
        block["calibration"] = {
            "temperature": 2.0, "threshold": 1.0, "layers": ["encoder"], "file": "models/calibration.pt",
            "weights_sha256": sha256_of(root / "models" / "model.pt"),
        }  # fmt: skip
    metadata = {
        "version": "0.3.0", "network_data_format": {"inputs": {"image": tensor}, "outputs": {"pred": made}},
        "medkit": {"task": "classify", "next_step": {"bright": "Dim the light."}, **block},
    }  # fmt: skip
    (root / "configs" / "metadata.json").write_text(json.dumps(metadata))
    if calibrated:
        _learn(root, dims)
    return root


def _learn(root: Path, dims: int) -> None:
    """Where the statistics of smooth images lie."""
    rng = np.random.default_rng(0)
    bundle = Bundle(root, "toy", "classify")
    runner, _ = calibrate.load(bundle, ["encoder"])
    images = torch.tensor(np.stack([smooth(rng.uniform(0.2, 0.8), rng, dims) for _ in range(200)]) / 255)
    with torch.no_grad():
        runner.recorder.clear()
        runner.network.network(images[:, None].float())
    statistics = runner.recorder.statistics()
    assert statistics is not None
    found = FeatureDistance.fitted(statistics.double().numpy())
    torch.save(found.state(), root / "models" / "calibration.pt")
    metadata = json.loads((root / "configs" / "metadata.json").read_text())
    limit = float(found.distances(statistics.double().numpy()).max())
    metadata["medkit"]["calibration"]["threshold"] = 1.2 * limit
    (root / "configs" / "metadata.json").write_text(json.dumps(metadata))


def smooth(level: float, rng: np.random.Generator, dims: int = 2) -> np.ndarray:
    """A slope about a brightness, 0 to 255."""
    ramp = np.stack(np.meshgrid(*[np.linspace(-0.1, 0.1, SIZE)] * dims, indexing="ij"))
    return 255 * np.clip(level + np.tensordot(rng.uniform(-1, 1, dims), ramp, 1), 0, 1)


def picture(path: Path, level: float, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(smooth(level, np.random.default_rng(seed)).astype(np.uint8)).save(path)
    return path
