"""Bundles whose network labels a voxel by the centre nearest to its intensity."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

NAMES = {"4": "left part", "9": "right part"}
CENTRES = (60.0, 451.0, 752.0)
"""Intensities that the channels stand for: the background, label 4, label 9."""


def write_bundle(
    root: Path, centres: Sequence[float] = CENTRES, names: Mapping[str, str] = NAMES, **block: Any
) -> Path:
    """A bundle on a grid of 3 mm; `centres`: of the background and of the labels in `names`, in their order."""
    for folder in ("configs", "models", "docs"):
        (root / folder).mkdir(parents=True)
    compose = {"_target_": "Compose"}
    config = {
        "bundle_root": ".",
        "mirror": False,
        "network_def": {"_target_": "torch.nn.Conv3d", "in_channels": 1, "kernel_size": 1,
                        "out_channels": len(centres)},
        "network": "$@network_def",
        "preprocessing": {**compose, "transforms": [
            {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
            {"_target_": "Spacingd", "keys": "image", "pixdim": [3.0, 3.0, 3.0], "mode": "bilinear"},
            {"_target_": "BorderPadd", "keys": "image", "spatial_border": 2},
        ]},
        "inferer": "$lambda x, network, *_, **__: (network(x) + network(x.flip(2)).flip(2)) / 2 if @mirror "
        "else network(x)",
        "postprocessing": {**compose, "transforms": [
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image",
             "nearest_interp": True, "to_tensor": True},
            {"_target_": "MapLabelValued", "keys": "pred", "orig_labels": list(range(len(centres))),
             "target_labels": [0, *map(int, names)]},
        ]},
    }  # fmt: skip
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    tensor = {"type": "image", "num_channels": 1, "spatial_shape": [16, 16, 16]}
    channels = {str(n): name for n, name in enumerate(["none", *names.values()])}
    made = {**tensor, "format": "segmentation", "num_channels": len(centres), "channel_def": channels}
    metadata = {
        "version": "0.3.0", "network_data_format": {"inputs": {"image": tensor}, "outputs": {"pred": made}},
        "medkit": {"task": "segment", "labels": dict(names), **block},
    }  # fmt: skip
    (root / "configs" / "metadata.json").write_text(json.dumps(metadata))
    # -(x - c)^2 without its square of x, over the variance of 50
    weight = torch.tensor([2 * c for c in centres]).reshape(-1, 1, 1, 1, 1) / 2500
    torch.save({"weight": weight, "bias": torch.tensor([-c * c for c in centres]) / 2500}, root / "models" / "model.pt")
    return root
