"""Bundles that try to run code in every known way; each way leaves a file, the canary."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

from tiny import METADATA, TRAIN, write_bundle

NETWORK = {k: v for k, v in TRAIN["network"].items() if k != "dropout"}
INFERENCE: dict[str, Any] = {
    "imports": ["$import pathlib"],
    "bundle_root": ".",
    "dataset_dir": "$@bundle_root + '/data'",
    "output_dir": "$@bundle_root + '/eval'",
    "datalist": "$[{'image': str(p)} for p in sorted(pathlib.Path(@dataset_dir).glob('*.nii.gz'))]",
    "device": "$torch.device('cpu')",
    "network_def": NETWORK,
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
            {"_target_": "Spacingd", "keys": "image", "pixdim": [12.0, 12.0, 12.0]},
            {"_target_": "DivisiblePadd", "keys": "image", "k": 4},
        ],
    },
    "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
    "inferer": {"_target_": "SimpleInferer"},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"},
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "resample": False},
        ],
    },
    "handlers": [
        {
            "_target_": "CheckpointLoader",
            "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@network"},
        }
    ],
    "evaluator": {
        "_target_": "SupervisedEvaluator",
        "device": "@device",
        "val_data_loader": "@dataloader",
        "network": "@network",
        "inferer": "@inferer",
        "postprocessing": "@postprocessing",
        "val_handlers": "@handlers",
    },
    "run": ["$@evaluator.run()"],
}
"""A complete inference config for the tiny network."""


def write_sound(root: Path, task: str = "halves", *, weights: bool = True, **changes: Any) -> Path:
    """Write a bundle with all that a bundle must have; `changes` as in `write_bundle`."""
    write_bundle(root, task, network=NETWORK, **changes)
    write_json(root / "configs" / "inference.json", INFERENCE)
    tensors = json.loads(json.dumps(METADATA["network_data_format"]))
    for side in tensors.values():
        for tensor in side.values():
            tensor["spatial_shape"] = ["4*n", "4*n", "4*n"]
    change_json(root / "configs" / "metadata.json", network_data_format=tensors)
    if weights:
        import torch
        from monai.networks.nets import UNet

        torch.manual_seed(0)
        torch.save(UNet(**{k: v for k, v in NETWORK.items() if k != "_target_"}).state_dict(), root / "models/model.pt")
    return root


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def change_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; `None` removes one."""
    content = json.loads(path.read_bytes()) | changes
    write_json(path, {k: v for k, v in content.items() if v is not None})


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


def write_hostile(root: Path, canary: Path) -> Path:
    """Write a bundle that makes the file `canary` as soon as any of its code runs."""
    touch = f"open({str(canary)!r}, 'w')"
    write_sound(root, weights=False)
    three = f"$__import__('pathlib').Path({str(canary)!r}).touch() or 3"
    for name, network in (("inference", "network_def"), ("train", "network")):
        change_json(
            root / "configs" / f"{name}.json", imports=["$import os"], **{network: NETWORK | {"spatial_dims": three}}
        )
    change_json(root / "configs" / "metadata.json", task=f"${touch}", name="\x1b[31mred", version="0.1.0")
    (root / "configs" / "more.yaml").write_text(
        f"a: !!python/object/apply:os.mknod [{str(canary)!r}]\n", encoding="utf-8"
    )
    (root / "configs" / "logging.conf").write_text(f"[handler_x]\nclass=StreamHandler\nargs=({touch},)\n")
    (root / "scripts").mkdir()
    (root / "scripts" / "__init__.py").write_text(f"{touch}\n")
    (root / "sitecustomize.py").write_text(f"{touch}\n")
    (root / "models" / "model.pt").write_bytes(pickle.dumps(Evil(canary)))
    return root


def write_zip(path: Path, root: Path, top: str | None = None, **more: str) -> Path:
    """Zip a folder below `top` (None: its name); `more`: further members, name -> content."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(p for p in root.rglob("*") if p.is_file()):
            archive.write(file, f"{root.name if top is None else top}/{file.relative_to(root)}".lstrip("/"))
        for name, content in more.items():
            archive.writestr(name, content)
    return path
