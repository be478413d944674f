"""The files of a bundle that is made of a model of nnU-Net: configs, metadata, weights, licence and card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit.bundles.bundle import INFERENCE, WEIGHTS
from medkit.bundles.standard import evaluation
from medkit.errors import listed, size_text
from medkit.nnunet.plans import Configuration, Plans
from medkit.nnunet.texts import plain_text

if TYPE_CHECKING:
    import torch

_VERSION = "1.0.0"


@dataclass(frozen=True)
class Model:
    """One configuration of a model, with the weights of its folds."""

    plans: Plans
    configuration: Configuration
    folds: tuple[str, ...]
    """Numbers of the folds, or `all`."""
    trainer: str
    mirror_axes: Sequence[int]
    """Axes of a window along which it is mirrored too."""
    network: torch.nn.Module
    """medkit.nnunet.FoldEnsemble, filled."""


def write_bundle(root: Path, models: Sequence[Model], orientation: str | None) -> None:
    """Write a bundle of the configurations of one model to the folder `root`; the first one is its default.

    `orientation`: directions that images are turned to first, instead of those of the model's reader.
    """
    import torch

    for folder in ("configs", "models", "docs"):
        (root / folder).mkdir(parents=True)
    for number, model in enumerate(models):
        name = model.configuration.name
        config, weights = (f"{INFERENCE}_{name}", f"models/{name}.pt") if number else (INFERENCE, WEIGHTS)
        _write_json(root / "configs" / f"{config}.json", _config(model, weights, orientation))
        torch.save(model.network.state_dict(), root / weights)
    _write_json(root / "configs" / "metadata.json", _metadata(models))
    (root / "LICENSE").write_text(_licence(models[0].plans))
    (root / "docs" / "README.md").write_text(_card(models))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=4) + "\n")


def _config(model: Model, weights: str, orientation: str | None) -> dict[str, Any]:
    """Return the config that runs a configuration."""
    own = model.configuration
    channels = len(model.plans.channels)
    first = "sorted(pathlib.Path(@dataset_dir)"
    datalist = f"$[{{'image': str(p)}} for p in {first}.glob('*.nii.gz'))]"
    if channels > 1:  # nnU-Net's names: the number of the channel at the end
        files = f"[str(p).replace('_0000.', f'_{{n:04d}}.') for n in range({channels})]"
        datalist = f"$[{{'image': {files}}} for p in {first}.glob('*_0000.nii.gz'))]"
    return {
        "imports": ["$import pathlib", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": datalist,
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "spacing": list(own.spacing),
        "patch_size": list(own.patch_size),
        "step": 0.5,
        "mirror_axes": list(model.mirror_axes),
        "orientation": orientation or own.orientation,
        "network_def": {"_target_": "medkit.nnunet.FoldEnsemble", "networks": [dict(own.network) for _ in model.folds]},
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
                {
                    "_target_": "medkit.nnunet.NnunetPreprocessd",
                    "keys": "image",
                    "spacing": "@spacing",
                    "normalization": [dict(channel) for channel in own.normalization],
                    "axes": list(own.axes),
                    "orientation": "@orientation",
                    "order": own.data_order,
                    "separate": own.data_separate,
                },
            ],
        },
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {
            "_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "shuffle": False, "num_workers": 0,
        },
        "inferer": {
            "_target_": "medkit.nnunet.NnunetInferer",
            "roi_size": "@patch_size",
            "step": "@step",
            "mirror_axes": "@mirror_axes",
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "medkit.nnunet.NnunetLabelsd",
                    "keys": "pred",
                    "spacing": "@spacing",
                    "regions": list(model.plans.heads().regions),
                    "order": own.logits_order,
                    "separate": own.logits_separate,
                },
                {
                    "_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_postfix": "dseg",
                    "output_dtype": "$torch.int32", "separate_folder": False, "resample": False,
                },
            ],
        },
        **evaluation(weights),
    }  # fmt: skip


def _metadata(models: Sequence[Model]) -> dict[str, Any]:
    first = models[0]
    own, heads, plans = first.configuration, first.plans.heads(), first.plans
    modality = "CT" if own.is_ct else "n/a"
    packages = {"medkit": f">={version('medkit')}"}
    packages |= {model.configuration.package: ">=0.4" for model in models if model.configuration.package}
    tensor = {"type": "image", "modality": modality, "spatial_shape": list(own.patch_size), "is_patch_data": True}
    given = {"format": "hounsfield" if own.is_ct else "magnitude", "num_channels": len(plans.channels)}
    made = {"format": "segmentation", "num_channels": len(heads.names)}
    common = {"dtype": "float32", "value_range": []}
    return {
        "version": _VERSION,
        "changelog": {_VERSION: "imported from nnU-Net v2"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": packages,
        "name": plans.name,
        "task": f"Segmentation of {len(heads.labels)} labels: {plain_text(listed(list(heads.labels.values())))}",
        "description": f"A model of nnU-Net v2, trained on {plans.name}: {listed([_words(m) for m in models])}.",
        "authors": "The authors of the model that it was imported from",
        "copyright": "The authors of the model that it was imported from; see LICENSE",
        "intended_use": "As the model's authors state. medkit has not tested it. Not a medical device.",
        "data_source": _stated(plans, "reference", "description", "name"),
        "data_type": "nibabel",
        "references": [
            "Isensee F. et al. nnU-Net: a self-configuring method for deep learning-based biomedical image "
            "segmentation. Nature Methods 18, 203-211, 2021."
        ],
        "network_data_format": {
            "inputs": {"image": {**tensor, **given, **common, "channel_def": _numbered(plans.channels)}},
            "outputs": {"pred": {**tensor, **made, **common, "channel_def": _numbered(heads.names)}},
        },
        "medkit": {"labels": {str(number): name for number, name in heads.labels.items()}},
    }


def _numbered(names: Sequence[str]) -> dict[str, str]:
    return {str(n): name for n, name in enumerate(names)}


def _words(model: Model) -> str:
    own = model.configuration
    folds = f"{len(model.folds)} folds" if len(model.folds) > 1 else f"fold {plain_text(model.folds[0])}"
    return f"{own.name} ({folds}, windows of {size_text(own.patch_size)} voxels)"


def _stated(plans: Plans, *keys: str) -> str:
    """Return the first of some texts of the data set that is not empty."""
    found = (plans.dataset.get(key) for key in keys)
    return next((plain_text(text) for text in found if isinstance(text, str) and text.strip()), plans.name)


def _licence(plans: Plans) -> str:
    stated = next((plans.dataset[key] for key in ("licence", "license") if plans.dataset.get(key)), None)
    if stated is None:
        return "The model that these weights come from does not state their licence: ask its authors.\n"
    return f"{plain_text(stated)}\n\nAs the model that these weights come from states it, in its dataset.json.\n"


def _card(models: Sequence[Model]) -> str:
    """Return the model card."""
    first = models[0]
    labels = first.plans.heads().labels
    rows = [f"| {number} | {name.replace('|', '/')} |" for number, name in labels.items()]
    configs = [
        _row(model, INFERENCE if model is first else f"{INFERENCE}_{model.configuration.name}") for model in models
    ]
    lines = [
        f"# {first.plans.name}",
        "",
        "A model of nnU-Net v2, imported by `medkit bundle import nnunet`. medkit writes the same labels as nnU-Net's",
        "predictor, without nnU-Net. How good they are is for the model's authors to say: medkit has not tested them.",
        "",
        f"Input: {listed(list(first.plans.channels))}.",
        "",
        "| `--config` | spacing | window | folds | trainer |",
        "| - | - | - | - | - |",
        *configs,
        "",
        "| label | meaning |",
        "| - | - |",
        *rows,
        "",
    ]
    return "\n".join(lines)


def _row(model: Model, config: str) -> str:
    own = model.configuration
    folds = listed([plain_text(fold) for fold in model.folds])
    sizes = f"{size_text(own.spacing, '.3g')} mm | {size_text(own.patch_size)}"
    return f"| `{config}` | {sizes} | {folds} | {plain_text(model.trainer)} |"
