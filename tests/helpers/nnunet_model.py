"""A tiny model of nnU-Net, made by hand, and what nnU-Net's rules make of an image with it.

The rules are written here once more, plainly: whole volumes by scikit-image's `resize`, one window after the other, the
network by torch's functions under nnU-Net's names of parameters.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from scipy.ndimage import binary_fill_holes, gaussian_filter, map_coordinates
from skimage.transform import resize
from torch.nn import functional

FEATURES = (4, 6, 8)
LABELS = {"background": 0, "left lung": 1, "right lung": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": [2]}
_IMAGE = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}


def architecture(dims: int, kernels: Sequence[Sequence[int]], strides: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The entry `architecture` of plans."""
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 3, "features_per_stage": list(FEATURES), "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
            "kernel_sizes": kernels, "strides": strides, "n_conv_per_stage": [2, 2, 2],
            "n_conv_per_stage_decoder": [2, 2], "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True}, "dropout_op": None, "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }  # fmt: skip


def configuration(dims: int = 3, **changes: Any) -> dict[str, Any]:
    """A configuration of CT with windows of 16 voxels of 1.5 mm."""
    kernels, strides = [[3] * dims] * 3, [[1] * dims, [2] * dims, [2] * dims]
    return {
        "preprocessor_name": "DefaultPreprocessor", "patch_size": [16] * dims, "spacing": [1.5] * dims,
        "normalization_schemes": ["CTNormalization"], "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape", "resampling_fn_data_kwargs": _IMAGE,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": _IMAGE | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": _IMAGE | {"order": 1},
        "architecture": architecture(dims, kernels, strides),
    } | changes  # fmt: skip


def plans(configurations: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """`plans.json`."""
    facts = {"mean": 20.0, "std": 150.0, "percentile_00_5": -400.0, "percentile_99_5": 300.0}
    return {
        "dataset_name": "Dataset001_Lungs", "plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2], "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": facts}, "configurations": configurations,
    } | changes  # fmt: skip


def dataset(**changes: Any) -> dict[str, Any]:
    """`dataset.json`."""
    return {"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz", "licence": "CC0-1.0"} | changes


def write_model(
    folder: Path, plan: dict[str, Any], data: dict[str, Any], name: str, folds: Sequence[int] = (0,), **changes: Any
) -> list[dict[str, torch.Tensor]]:
    """Write a model of the configuration `name`; return the weights of its folds."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plan))
    (folder / "dataset.json").write_text(json.dumps(data))
    dims = len(plan["configurations"][name]["patch_size"])
    heads = 2 if "regions_class_order" in data else len(data["labels"])
    made = []
    for fold in folds:
        weights = _weights(plan["configurations"][name], len(data["channel_names"]), heads, fold)
        place = folder / f"fold_{fold}" / "checkpoint_final.pth"
        place.parent.mkdir(exist_ok=True)
        checkpoint = {
            "network_weights": weights, "optimizer_state": {"state": {}}, "grad_scaler_state": None,
            "logging": {"ema_fg_dice": [np.float64(0.5)]}, "_best_ema": np.float32(0.5), "current_epoch": 1,
            "init_args": {"plans": plan, "configuration": name, "fold": fold, "device": torch.device("cpu")},
            "trainer_name": "nnUNetTrainer", "inference_allowed_mirroring_axes": tuple(range(dims)),
        }  # fmt: skip
        torch.save(checkpoint | changes, place)
        made.append(weights)
    return made


def _weights(own: dict[str, Any], channels: int, heads: int, seed: int) -> dict[str, torch.Tensor]:
    """Draw weights, under nnU-Net's names; those that nnU-Net's own state holds twice are there twice."""
    rng = torch.Generator().manual_seed(seed)
    arguments = own["architecture"]["arch_kwargs"]
    kernels, strides = arguments["kernel_sizes"], arguments["strides"]
    found: dict[str, torch.Tensor] = {}

    def draw(name: str, *shape: int, scale: float = 1.0, middle: float = 0.0) -> None:
        found[name] = middle + scale * torch.randn(*shape, generator=rng)

    def units(stage: str, source: int, features: int, kernel: Sequence[int]) -> None:
        for n, given in enumerate((source, features)):
            name = f"{stage}.convs.{n}"
            draw(f"{name}.conv.weight", features, given, *kernel, scale=(2 / given / np.prod(kernel)) ** 0.5)
            draw(f"{name}.conv.bias", features, scale=0.3)
            draw(f"{name}.norm.weight", features, scale=0.2, middle=1)
            draw(f"{name}.norm.bias", features, scale=0.2)
            for number, kind in enumerate(("conv", "norm")):
                for part in ("weight", "bias"):
                    found[f"{name}.all_modules.{number}.{part}"] = found[f"{name}.{kind}.{part}"]

    for n, features in enumerate(FEATURES):
        units(f"encoder.stages.{n}.0", FEATURES[n - 1] if n else channels, features, kernels[n])
    for n, level in enumerate((1, 0)):
        features = FEATURES[level]
        draw(f"decoder.transpconvs.{n}.weight", FEATURES[level + 1], features, *strides[level + 1], scale=0.4)
        draw(f"decoder.transpconvs.{n}.bias", features, scale=0.3)
        units(f"decoder.stages.{n}", 2 * features, features, kernels[level])
        draw(f"decoder.seg_layers.{n}.weight", heads, features, *[1] * len(kernels[0]))
        found[f"decoder.seg_layers.{n}.weight"] -= found[f"decoder.seg_layers.{n}.weight"].mean(1, keepdim=True)
        draw(f"decoder.seg_layers.{n}.bias", heads, scale=0.05)
    found |= {f"decoder.encoder.{k.removeprefix('encoder.')}": v for k, v in found.items() if k.startswith("encoder.")}
    return found


# ---- nnU-Net's rules


def network(weights: dict[str, torch.Tensor], arguments: dict[str, Any], image: torch.Tensor) -> torch.Tensor:
    """The logits of a plain U-Net for an image (1, C, ...)."""
    dims = image.dim() - 2
    conv = functional.conv2d if dims == 2 else functional.conv3d
    up = functional.conv_transpose2d if dims == 2 else functional.conv_transpose3d
    strides = arguments["strides"]

    def units(stage: str, x: torch.Tensor, stride: Any) -> torch.Tensor:
        for n, step in enumerate((stride, 1)):
            name = f"{stage}.convs.{n}"
            weight = weights[f"{name}.conv.weight"]
            x = conv(x, weight, weights[f"{name}.conv.bias"], step, [k // 2 for k in weight.shape[2:]])
            x = functional.instance_norm(x, weight=weights[f"{name}.norm.weight"], bias=weights[f"{name}.norm.bias"])
            x = functional.leaky_relu(x, 0.01)
        return x

    skips = [image]
    for n, stride in enumerate(strides):
        skips.append(units(f"encoder.stages.{n}.0", skips[-1], stride))
    x = skips.pop()
    for n in range(len(strides) - 1):
        names = f"decoder.transpconvs.{n}"
        x = up(x, weights[f"{names}.weight"], weights[f"{names}.bias"], strides[-1 - n])
        x = units(f"decoder.stages.{n}", torch.cat((x, skips.pop()), 1), 1)
    last = f"decoder.seg_layers.{len(strides) - 2}"
    return conv(x, weights[f"{last}.weight"], weights[f"{last}.bias"])


def _resized(image: np.ndarray, shape: Sequence[int], old: Sequence[float], new: Sequence[float], order: int) -> Any:
    """An image (I, J, K) of the spacing `old` in `shape` voxels of `new`: slice by slice if one of both is thick."""
    if image.shape == tuple(shape):
        return image
    thick = next((s for s in (old, new) if max(s) / min(s) > 3), None)
    axis = int(np.argmax(thick)) if thick is not None and list(thick).count(max(thick)) == 1 else None
    kind, image = image.dtype, image.astype(np.float64)
    if axis is None:
        return resize(image, shape, order, mode="edge", anti_aliasing=False).astype(kind)
    flat = [n for m, n in enumerate(shape) if m != axis]
    slices = [resize(part, flat, order, mode="edge", anti_aliasing=False) for part in np.moveaxis(image, axis, 0)]
    stack = np.stack(slices, axis)
    where = [(np.arange(n) + 0.5) * stack.shape[m] / n - 0.5 for m, n in enumerate(shape)]
    return map_coordinates(stack, np.meshgrid(*where, indexing="ij"), order=0, mode="nearest").astype(kind)


def _normalised(image: np.ndarray, plan: dict[str, Any], own: dict[str, Any]) -> np.ndarray:
    inside = binary_fill_holes((image != 0).any(0))
    result = image.copy()
    for n, scheme in enumerate(own["normalization_schemes"]):
        if scheme == "CTNormalization":
            facts = plan["foreground_intensity_properties_per_channel"][str(n)]
            clipped = np.clip(image[n], facts["percentile_00_5"], facts["percentile_99_5"])
            result[n] = (clipped - facts["mean"]) / facts["std"]
        else:
            where = inside if own["use_mask_for_norm"][n] else np.ones_like(inside)
            result[n][where] = (image[n][where] - image[n][where].mean()) / image[n][where].std()
    return result


def _logits(image: np.ndarray, own: dict[str, Any], weights: dict[str, torch.Tensor]) -> np.ndarray:
    """The logits of one fold for a prepared image (C, I, J, K), summed in half precision."""
    size = own["patch_size"]
    wanted = [1] * (3 - len(size)) + size
    missing = [max(w - n, 0) for w, n in zip(wanted, image.shape[1:], strict=True)]
    padded = np.pad(image, [(0, 0), *((n // 2, n - n // 2) for n in missing)])
    point = np.zeros(size)
    point[tuple(n // 2 for n in size)] = 1
    blurred = gaussian_filter(point, [n / 8 for n in size], mode="constant")
    gaussian = torch.from_numpy(10 * blurred / blurred.max()).half()
    gaussian[gaussian == 0] = gaussian[gaussian > 0].min()
    sides = []
    for n, w in zip(padded.shape[1:], wanted, strict=True):
        count = int(np.ceil((n - w) / (w / 2))) + 1
        sides.append([int(np.round((n - w) / max(count - 1, 1) * k)) for k in range(count)])
    axes = range(2, 2 + len(size))
    views = [c for n in range(len(size) + 1) for c in itertools.combinations(axes, n)]
    total: Any = None
    counts = torch.zeros(padded.shape[1:], dtype=torch.half)
    for starts in itertools.product(*sides):
        place = tuple(slice(s, s + w) for s, w in zip(starts, wanted, strict=True))
        window = torch.from_numpy(padded[(slice(None), *place)].copy())[None].reshape(1, len(image), *size)
        answers = [network(weights, own["architecture"]["arch_kwargs"], window.flip(v)).flip(v) for v in views]
        answer = (sum(answers) / len(views))[0] * gaussian
        total = torch.zeros((len(answer), *padded.shape[1:]), dtype=torch.half) if total is None else total
        total[(slice(None), *place)] += answer.reshape(total[(slice(None), *place)].shape)
        counts[place] += gaussian.reshape(counts[place].shape)
    inner = tuple(slice(n // 2, n // 2 + k) for n, k in zip(missing, image.shape[1:], strict=True))
    return (total / counts)[(slice(None), *inner)].numpy()


def expected_labels(
    paths: Sequence[Path], plan: dict[str, Any], data: dict[str, Any], name: str, folds: list[dict[str, torch.Tensor]]
) -> np.ndarray:
    """The labels, (I, J, K), that nnU-Net's rules make of an image, a file for each channel."""
    own = plan["configurations"][name]
    files = [nib.load(path) for path in paths]
    turn = [0, *(1 + axis for axis in plan["transpose_forward"])]
    image = np.stack([np.asarray(f.dataobj, np.float32).T for f in files]).transpose(turn)
    zooms = [float(n) for n in files[0].header.get_zooms()[::-1]]
    old = [zooms[axis] for axis in plan["transpose_forward"]]
    new = own["spacing"] if len(own["spacing"]) == 3 else [old[0], *own["spacing"]]
    where = np.argwhere((image != 0).any(0))
    box = tuple(slice(low, high) for low, high in zip(where.min(0), where.max(0) + 1, strict=True))
    crop = _normalised(image[(slice(None), *box)], plan, own)
    size = crop.shape[1:]
    shape = [round(o / n * k) for o, n, k in zip(old, new, size, strict=True)]
    prepared = np.stack([_resized(channel, shape, old, new, 3) for channel in crop])
    found = [_logits(prepared, own, weights) for weights in folds]
    logits = sum(found[1:], found[0]) / np.float16(len(found))
    logits = np.stack([_resized(channel, size, new, old, 1) for channel in logits])
    if order := data.get("regions_class_order"):
        labels = np.zeros(size, np.uint8)
        for number, channel in zip(order, logits, strict=True):
            labels[channel > 0] = number
    else:
        labels = logits.argmax(0)
    whole = np.zeros(image.shape[1:], np.uint8)
    whole[box] = labels
    return whole.transpose(np.argsort(plan["transpose_forward"])).T


def write_image(path: Path, shape: Sequence[int], spacing: Sequence[float], seed: int = 0, empty: int = 0) -> Path:
    """Write an image of smooth noise in Hounsfield units, whose last axis runs down; `empty`: rows of zeros first."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    voxels = (200 * noise / noise.std() + 20).round().astype(np.int16)
    voxels[voxels == 0] = 1
    voxels[:empty] = 0
    affine = np.diag([spacing[0], spacing[1], -spacing[2], 1.0])
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path
