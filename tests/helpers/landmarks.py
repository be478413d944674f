"""A bundle that finds landmarks: heatmaps around spots of known brightness, or their coordinates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

NAMES = ("AC", "PC", "tip")
LEVELS = (40.0, 70.0, 100.0)
"""Brightness of each landmark's spot."""
WIDTH = 6.0
"""mm; a spot is a Gaussian with this standard deviation."""

_NET = """
import torch


class Heatmaps(torch.nn.Module):
    \"\"\"A channel for each level: its own part of a scan whose frames are the spots, one for each landmark.\"\"\"

    def __init__(self, channels):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1, channels, 1, 1, 1))

    def forward(self, image):
        return image * self.scale


class Coordinates(Heatmaps):
    \"\"\"Numbers for each landmark: the voxel of the largest value.\"\"\"

    def forward(self, image):
        maps = super().forward(image)[0]
        flat = maps.flatten(1).argmax(1)
        places = torch.stack(torch.unravel_index(flat, maps.shape[1:]))
        return places.T[None].float()
"""


def _tensor(**changes: Any) -> dict[str, Any]:
    return {
        "type": "image", "format": "magnitude", "num_channels": 3, "spatial_shape": ["n", "n", "n"], "dtype": "float32",
        "value_range": [0, 1], "is_patch_data": False, "channel_def": dict(enumerate(NAMES)),
    } | changes  # fmt: skip


HEATMAPS = _tensor(format="heatmap")
COORDINATES = _tensor(type="tuples", format="points", spatial_shape=[3, 3], channel_def={"0": "i", "1": "j", "2": "k"})


def write(
    root: Path,
    made: Mapping[str, Any] = HEATMAPS,
    *,
    block: Mapping[str, Any] | None = None,
    invert: bool = False,
    scale: Sequence[float] = (1.0, 1.0, 1.0),
) -> Path:
    """Write the bundle.

    `made`: its output in the metadata; `block`: medkit's; `invert`: heatmaps go back to the scan; `scale`: of
    each channel.
    """
    import torch

    for folder in ("configs", "docs", "models", "scripts"):
        (root / folder).mkdir(parents=True)
    heatmaps = made["format"] == "heatmap"
    steps: list[dict[str, Any]] = [{"_target_": "EnsureTyped", "keys": "pred"}]
    if invert:
        steps.append({"_target_": "Invertd", "keys": "pred", "orig_keys": "image", "transform": "@preprocessing"})
    config = {
        "bundle_root": ".",
        "device": "cpu",
        "network_def": {"_target_": f"scripts.net.{'Heatmaps' if heatmaps else 'Coordinates'}", "channels": 3},
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": [
            {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
            {"_target_": "Spacingd", "keys": "image", "pixdim": [3.0, 3.0, 3.0]},
            {"_target_": "EnsureTyped", "keys": "image"},
        ]},
        "dataset": {"_target_": "Dataset", "data": [], "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset"},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {"_target_": "Compose", "transforms": steps},
        "evaluator": {
            "_target_": "SupervisedEvaluator", "device": "@device", "val_data_loader": "@dataloader",
            "network": "@network", "inferer": "@inferer", "postprocessing": "@postprocessing",
        },
        "run": ["$@evaluator.run()"],
    }  # fmt: skip
    metadata = {
        "version": "0.1.0", "name": "landmarks", "task": "landmarks", "medkit": dict(block or {}),
        "network_data_format": {"inputs": {"image": _tensor()}, "outputs": {"pred": dict(made)}},
    }  # fmt: skip
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    (root / "configs" / "metadata.json").write_text(json.dumps(metadata))
    (root / "scripts" / "net.py").write_text(_NET)
    (root / "scripts" / "__init__.py").write_text("")
    torch.save({"scale": torch.tensor(scale).reshape(1, 3, 1, 1, 1)}, root / "models" / "model.pt")
    return root


def write_spots(path: Path, affine: np.ndarray, shape: tuple[int, int, int], places: Sequence[Sequence[float]]) -> Path:
    """Write a scan of a frame for each landmark, with a spot at its place, RAS+ mm."""
    import nibabel

    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    voxels = index @ affine[:3, :3].T + affine[:3, 3]
    frames = [
        level * np.exp(-((voxels - place) ** 2).sum(-1) / (2 * WIDTH**2))
        for level, place in zip(LEVELS, places, strict=True)
    ]  # fmt: skip
    nibabel.save(nibabel.Nifti1Image(np.stack(frames, axis=-1).astype(np.float32), affine), path)
    return path
