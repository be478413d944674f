"""The configs of a new bundle that learns labels: training and inference, with the same steps before the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medkit.bundles.standard import evaluation
from medkit.training.creation.architectures import Architecture

BOTH = ["image", "label"]
"""Keys of an item."""


@dataclass(frozen=True)
class Wishes:
    """What a new bundle is for."""

    classes: tuple[str, ...]
    """Names of the labels 1, 2 and so on; 0 is the background."""
    channels: tuple[str, ...] = ("image",)
    """Names of the channels of an image."""
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """mm that images are resampled to."""
    patch: tuple[int, int, int] = (96, 96, 96)
    """Voxels that the network sees at once."""
    modality: str = "MR"
    """MR or CT."""

    @property
    def outputs(self) -> int:
        """Number of channels of the network's output."""
        return len(self.classes) + 1


def inference_config(network: Architecture, wishes: Wishes) -> dict[str, Any]:
    """Return the config that labels images: by overlapping patches, back on the grid of the image."""
    return {
        "imports": ["$import pathlib", "$import torch"],
        **_places("$[{'image': " + _files(wishes) + "]"),
        **_common(network, wishes),
        "preprocessing": _compose([*_load(["image"], wishes), _typed("image")]),
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {
            "_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "shuffle": False, "num_workers": 0,
        },
        "inferer": _sliding(),
        "postprocessing": _compose([
            {"_target_": "Activationsd", "keys": "pred", "softmax": True},
            {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image",
             "nearest_interp": False, "to_tensor": True},
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_postfix": "dseg",
             "output_dtype": "$torch.int16", "separate_folder": False, "resample": False},
        ]),
        **evaluation(),
    }  # fmt: skip


def train_config(network: Architecture, wishes: Wishes) -> dict[str, Any]:
    """Return the config that learns labels from images with labels, on random patches."""
    return {
        "imports": ["$import torch", "$import monai"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "datalist_keys": BOTH,
        "train_datalist": "$monai.data.load_decathlon_datalist(@dataset_dir + '/dataset.json', True, 'training')",
        "val_datalist": "$monai.data.load_decathlon_datalist(@dataset_dir + '/dataset.json', True, 'validation')",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "seed": 0,
        "steps": 2000,
        "epoch_length": 100,
        "val_interval": 1,
        "learning_rate": network.rate,
        **_common(network, wishes),
        "loss": {"_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True},
        "optimizer": {
            "_target_": "torch.optim.AdamW", "params": "$@network.parameters()", "lr": "@learning_rate",
            "weight_decay": 0.0001,
        },
        "progress": {"_target_": "medkit.training.Progress", "steps": "@steps"},
        "load": _compose([
            *_load(BOTH, wishes),
            {"_target_": "SpatialPadd", "keys": BOTH, "spatial_size": "@patch_size"},
            {"_target_": "EnsureTyped", "keys": BOTH, "dtype": ["$torch.float32", "$torch.uint8"]},
        ]),
        "train": _train(),
        "validate": _validate(),
        "run": ["$@train::trainer.run()"],
    }  # fmt: skip


def _train() -> dict[str, Any]:
    return {
        "cache": {
            "_target_": "CacheDataset", "data": "@train_datalist", "transform": "@load", "num_workers": 2,
            "progress": False,
        },
        "preprocessing": _compose([
            {"_target_": "RandCropByPosNegLabeld", "keys": BOTH, "label_key": "label", "spatial_size": "@patch_size",
             "pos": 2, "neg": 1, "num_samples": 1},
            {"_target_": "RandAffined", "keys": BOTH, "prob": 0.5, "rotate_range": [0.2, 0.2, 0.2],
             "scale_range": [0.1, 0.1, 0.1], "mode": ["bilinear", "nearest"], "padding_mode": "border"},
            {"_target_": "RandGaussianNoised", "keys": "image", "prob": 0.3, "std": 0.05},
            {"_target_": "RandGaussianSmoothd", "keys": "image", "prob": 0.2},
            {"_target_": "RandScaleIntensityd", "keys": "image", "prob": 0.3, "factors": 0.2},
            {"_target_": "RandShiftIntensityd", "keys": "image", "prob": 0.3, "offsets": 0.1},
            {"_target_": "SelectItemsd", "keys": BOTH},
            {**_typed("image"), "keys": BOTH},
        ]),
        "dataset": {
            "_target_": "medkit.training.Samples", "data": "@train::cache", "transform": "@train::preprocessing",
            "seed": "@seed",
        },
        "dataloader": {
            "_target_": "DataLoader", "dataset": "@train::dataset", "batch_size": 1, "num_workers": 0,
            "sampler": {"_target_": "medkit.training.SampleNumbers"},
        },
        "inferer": {"_target_": "SimpleInferer"},
        "handlers": [
            {"_target_": "ValidationHandler", "interval": "@val_interval", "validator": "@validate::evaluator"},
            {"_target_": "medkit.training.Cosine", "optimizer": "@optimizer", "progress": "@progress", "warm_up": 0.02},
            {"_target_": "medkit.training.ClipGradients", "max_norm": 3.0},
        ],
        "trainer": {
            "_target_": "SupervisedTrainer", "max_epochs": "$-(-@steps // @epoch_length)",
            "epoch_length": "@epoch_length", "device": "@device", "train_data_loader": "@train::dataloader",
            "network": "@network", "loss_function": "@loss", "optimizer": "@optimizer", "inferer": "@train::inferer",
            "train_handlers": "@train::handlers",
        },
    }  # fmt: skip


def _validate() -> dict[str, Any]:
    return {
        "dataset": {
            "_target_": "CacheDataset", "data": "@val_datalist", "transform": "@load", "num_workers": 2,
            "progress": False,
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@validate::dataset", "batch_size": 1, "num_workers": 0},
        "inferer": _sliding(),
        "postprocessing": _compose([
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {"_target_": "AsDiscreted", "keys": ["pred", "label"], "to_onehot": "@classes"},
        ]),
        "handlers": [],
        "evaluator": {
            "_target_": "SupervisedEvaluator", "device": "@device", "val_data_loader": "@validate::dataloader",
            "network": "@network", "inferer": "@validate::inferer", "postprocessing": "@validate::postprocessing",
            "val_handlers": "@validate::handlers",
            "key_val_metric": {"Dice": {
                "_target_": "MeanDice", "include_background": False, "save_details": True,
                "output_transform": "$monai.handlers.from_engine(['pred', 'label'])",
            }},
        },
    }  # fmt: skip


# ---- parts of both


def _places(datalist: str) -> dict[str, Any]:
    return {
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": datalist,
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    }


def _files(wishes: Wishes) -> str:
    """Return the end of the expression that lists the images in a folder; several channels have nnU-Net's names."""
    folder = "sorted(pathlib.Path(@dataset_dir)"
    if len(wishes.channels) == 1:
        return f"str(p)}} for p in {folder}.glob('*.nii.gz'))"
    several = f"[str(p).replace('_0000.', f'_{{n:04d}}.') for n in range({len(wishes.channels)})]"
    return f"{several}}} for p in {folder}.glob('*_0000.nii.gz'))"


def _common(network: Architecture, wishes: Wishes) -> dict[str, Any]:
    window = {"window": [-1000.0, 1000.0]} if wishes.modality == "CT" else {}
    node = {**network.node(len(wishes.channels), wishes.outputs), "out_channels": "@classes"}
    return {
        "classes": wishes.outputs,
        "spacing": list(wishes.spacing),
        "patch_size": list(wishes.patch),
        **window,
        "network_def": node,
        "network": "$@network_def.to(@device)",
    }


def _load(keys: Sequence[str], wishes: Wishes) -> list[dict[str, Any]]:
    """Return the steps from files to images of one spacing, direction and scale."""
    every = list(keys) if len(keys) > 1 else keys[0]
    modes = ["bilinear", "nearest"][: len(keys)] if len(keys) > 1 else "bilinear"
    scale: dict[str, Any] = {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True, "channel_wise": True}
    if wishes.modality == "CT":
        scale = {
            "_target_": "ScaleIntensityRanged", "keys": "image", "a_min": "$@window[0]", "a_max": "$@window[1]",
            "b_min": 0.0, "b_max": 1.0, "clip": True,
        }  # fmt: skip
    return [
        {"_target_": "LoadImaged", "keys": every, "ensure_channel_first": True},
        {"_target_": "Orientationd", "keys": every, "axcodes": "RAS", "labels": None},
        {"_target_": "Spacingd", "keys": every, "pixdim": "@spacing", "mode": modes},
        scale,
    ]


def _compose(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"_target_": "Compose", "transforms": list(steps)}


def _typed(key: str) -> dict[str, Any]:
    return {"_target_": "EnsureTyped", "keys": key, "device": "@device"}


def _sliding() -> dict[str, Any]:
    return {"_target_": "SlidingWindowInferer", "roi_size": "@patch_size", "sw_batch_size": 1, "overlap": 0.25,
            "mode": "gaussian"}  # fmt: skip
