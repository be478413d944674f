"""A tiny bundle to train: a network that tells the bright half of small images from the dark one."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

TRAIN: dict[str, Any] = {
    "bundle_root": ".",
    "dataset_dir": "$@bundle_root + '/data'",
    "device": "cpu",
    "seed": 0,
    "steps": 12,
    "epoch_length": 4,
    "datalist_keys": ["label"],
    "train_datalist": [],
    "val_datalist": [],
    "network": {
        "_target_": "monai.networks.nets.UNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 2,
        "channels": [2, 4],
        "strides": [2],
        "dropout": 0.2,
    },
    "optimizer": {"_target_": "torch.optim.AdamW", "params": "$@network.parameters()", "lr": 0.02},
    "progress": {"_target_": "medkit.training.Progress", "steps": "@steps"},
    "loss": {"_target_": "monai.losses.DiceLoss", "to_onehot_y": True, "softmax": True},
    "load": {
        "_target_": "monai.transforms.Compose",
        "transforms": [
            {"_target_": "monai.transforms.LoadImaged", "keys": "label", "ensure_channel_first": True},
            {"_target_": "monai.transforms.CopyItemsd", "keys": "label", "names": "image"},
            {"_target_": "monai.transforms.RandGaussianNoised", "keys": "image", "prob": 1.0, "std": 0.3},
        ],
    },
    "train": {
        "inferer": {"_target_": "monai.inferers.SimpleInferer"},
        "dataset": {
            "_target_": "medkit.training.Samples", "data": "@train_datalist", "transform": "@load", "seed": "@seed",
        },
        "dataloader": {
            "_target_": "monai.data.DataLoader", "dataset": "@train::dataset", "batch_size": 2,
            "sampler": {"_target_": "medkit.training.SampleNumbers"}, "num_workers": 0,
        },
        "handlers": [
            {"_target_": "monai.handlers.ValidationHandler", "interval": 1, "validator": "@validate::evaluator"},
            {"_target_": "medkit.training.Cosine", "optimizer": "@optimizer", "progress": "@progress", "warm_up": 0.1},
            {"_target_": "medkit.training.ClipGradients", "max_norm": 1.0},
            {"_target_": "tiny.Trouble"},
        ],
        "trainer": {
            "_target_": "monai.engines.SupervisedTrainer",
            "max_epochs": "$-(-@steps // @epoch_length)",
            "epoch_length": "@epoch_length",
            "device": "$torch.device(@device)",
            "train_data_loader": "@train::dataloader",
            "network": "@network",
            "optimizer": "@optimizer",
            "loss_function": "@loss",
            "inferer": "@train::inferer",
            "train_handlers": "@train::handlers",
        },
    },
    "validate": {
        "handlers": [{"_target_": "tiny.Trouble", "prefix": "validation "}],
        "dataset": {
            "_target_": "medkit.training.Samples", "data": "@val_datalist", "transform": "@load", "seed": 1,
            "length": 2,
        },
        "dataloader": {"_target_": "monai.data.DataLoader", "dataset": "@validate::dataset", "batch_size": 1},
        "postprocessing": {
            "_target_": "monai.transforms.Compose",
            "transforms": [
                {"_target_": "monai.transforms.AsDiscreted", "keys": ["pred", "label"], "argmax": [True, False],
                 "to_onehot": 2},
            ],
        },
        "evaluator": {
            "_target_": "monai.engines.SupervisedEvaluator",
            "device": "$torch.device(@device)",
            "val_data_loader": "@validate::dataloader",
            "network": "@network",
            "postprocessing": "@validate::postprocessing",
            "val_handlers": "@validate::handlers",
            "key_val_metric": {
                "Dice": {
                    "_target_": "monai.handlers.MeanDice",
                    "include_background": False,
                    "output_transform": "$monai.handlers.from_engine(['pred', 'label'])",
                },
            },
        },
    },
    "run": ["$@train::trainer.run()"],
}  # fmt: skip
"""A complete train config; tests change copies of it."""

_TENSOR = {
    "type": "image", "format": "magnitude", "num_channels": 1, "spatial_shape": [16, 16, 16], "dtype": "float32",
    "value_range": [0, 1], "is_patch_data": False, "channel_def": {"0": "image"},
}  # fmt: skip
METADATA: dict[str, Any] = {
    "version": "0.1.0",
    "changelog": {"0.1.0": "first"},
    "monai_version": "1.5.0",
    "pytorch_version": "2.4.0",
    "numpy_version": "1.26.0",
    "required_packages_version": {},
    "task": "telling two halves apart",
    "description": "for tests",
    "authors": "medkit",
    "copyright": "medkit",
    "network_data_format": {
        "inputs": {"image": _TENSOR},
        "outputs": {"pred": _TENSOR | {"num_channels": 2, "channel_def": {"0": "background", "1": "bright half"}}},
    },
}


class Trouble:
    """A handler that causes what the variable TINY_TROUBLE names, such as `SIGKILL@7` or `nan@3,4`, in those steps.

    It is a variable, because a config with another handler would be the config of another training. The handler of the
    evaluator obeys `validation SIGTERM@1`, in the validation of the first epoch.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix

    def attach(self, engine: Any) -> None:
        from monai.engines.utils import IterationEvents

        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        what, _, steps = os.environ.get("TINY_TROUBLE", "").partition("@")
        number = engine.state.epoch if self.prefix else engine.state.iteration
        if not what.startswith(self.prefix) or str(number) not in steps.split(","):
            return
        what = what.removeprefix(self.prefix)
        if what == "nan":
            engine.state.output["pred"] = engine.state.output["pred"] * float("nan")
        elif what == "bad":
            engine.state.output["pred"] = -engine.state.output["pred"]
        elif what == "wait":
            marks = Path(os.environ["TINY_MARKS"])
            (marks / f"{os.getpid()}.started").touch()
            while not (marks / "go").exists():
                time.sleep(0.05)
        elif what == "drift":
            for parameter in engine.network.parameters():
                parameter.data += 1
        elif what == "error":
            raise ValueError("no such luck")
        elif what == "group":
            os.killpg(0, signal.SIGTERM)
        elif what.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[what])


def write_bundle(root: Path, task: str = "halves", **changes: Any) -> Path:
    """Write the bundle; `changes` are ids of its train config, such as `steps=4`, with `::` written as `__`."""
    train = json.loads(json.dumps(TRAIN))
    for name, value in changes.items():
        *parents, last = name.split("__")
        place = train
        for parent in parents:
            place = place[parent]
        if value is None:
            del place[last]
        else:
            place[last] = value
    for folder in ("configs", "docs", "models"):
        (root / folder).mkdir(parents=True)
    (root / "configs" / "train.json").write_text(json.dumps(train))
    (root / "configs" / "inference.json").write_text('{"bundle_root": "."}')
    (root / "configs" / "metadata.json").write_text(json.dumps(METADATA | {"medkit": {"task": task}}))
    (root / "docs" / "README.md").write_text("# Halves\n\nWritten by its authors.\n")
    (root / "docs" / "data_license.txt").write_text("No data.\n")
    (root / "LICENSE").write_text("Apache-2.0\n")
    return root


def write_labels(folder: Path, count: int = 4) -> Path:
    """Write maps `case_00.nii.gz` and so on of 16^3 voxels, 0 and 1, each divided at another plane."""
    import nibabel
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        data = np.zeros((16, 16, 16), np.uint8)
        data[..., 5 + n % 6 :] = 1
        nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), folder / f"case_{n:02}.nii.gz")
    return folder
