"""Bundles built like those of the MONAI Model Zoo, with tiny networks and weights that the tests make.

Each `write(root, name)` follows the structure of the zoo's bundle of that name: ids, references, the order of its
transforms, where its checkpoint is named, the run id. The texts are our own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Config = dict[str, Any]

_DEVICE = "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')"
_MODEL = "$@bundle_root + '/models/model.pt'"


def _unet(classes: int, dims: int = 3, channels: int = 1) -> Config:
    return {
        "_target_": "UNet", "spatial_dims": dims, "in_channels": channels, "out_channels": classes, "channels": [2, 4],
        "strides": [2],
    }  # fmt: skip


def _compose(*steps: Config | None) -> Config:
    return {"_target_": "Compose", "transforms": [s for s in steps if s is not None]}


def _step(name: str, keys: Any = "image", **settings: Any) -> Config:
    return {"_target_": name, "keys": keys, **settings}


def _pred(name: str, **settings: Any) -> Config:
    return _step(name, "pred", **settings)


def _invert(nearest: bool = False, key: str = "image", **settings: Any) -> Config:
    return _pred(
        "Invertd", transform="@preprocessing", orig_keys=key, nearest_interp=nearest, to_tensor=True, **settings
    )


def _windows(**settings: Any) -> Config:
    return {
        "_target_": "SlidingWindowInferer",
        "roi_size": [16, 16, 16],
        "sw_batch_size": 2,
        "overlap": 0.5,
        **settings,
    }


_LOADER = {"_target_": "CheckpointLoader", "load_path": _MODEL, "load_dict": {"model": "@network"}}


def _evaluated(**more: Any) -> Config:
    """The ids that nearly all bundles share; the data is not there, as on a user's machine."""
    return {
        "bundle_root": ".",
        "device": _DEVICE,
        "dataset_dir": "/workspace/data",
        "output_dir": "$@bundle_root + '/eval'",
        "network": "$@network_def.to(@device)",
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {"_target_": "SimpleInferer"},
        "handlers": [{"_target_": "StatsHandler", "iteration_log": False}],
        "evaluator": {
            "_target_": "SupervisedEvaluator", "device": "@device", "val_data_loader": "@dataloader",
            "network": "@network", "inferer": "@inferer", "postprocessing": "@postprocessing",
            "val_handlers": "@handlers", "amp": True,
        },
    } | more  # fmt: skip


def _spleen(key: str = "@image_key") -> Config:
    """The zoo's commonest form: an id for the key, the checkpoint loaded by an expression of `initialize`."""
    return _evaluated(
        imports=["$import glob", "$import os"],
        image_key="image",
        datalist="$list(sorted(glob.glob(@dataset_dir + '/imagesTs/*.nii.gz')))",
        network_def=_unet(2),
        preprocessing=_compose(
            _step("LoadImaged", key),
            _step("EnsureChannelFirstd", key),
            _step("Orientationd", key, axcodes="RAS"),
            _step("Spacingd", key, pixdim=[4.0, 4.0, 5.0], mode="bilinear"),
            _step("ScaleIntensityRanged", key, a_min=0, a_max=100, b_min=0, b_max=1, clip=True),
            _step("EnsureTyped", key),
        ),
        dataset={"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
        inferer=_windows(),
        postprocessing=_compose(
            _pred("Activationsd", softmax=True),
            _invert(key=key),
            _pred("AsDiscreted", argmax=True),
            _pred("SaveImaged", output_dir="@output_dir", output_postfix="trans"),
        ),
        checkpointloader=_LOADER,
        initialize=["$@checkpointloader(@evaluator)"],
        run=["$@evaluator.run()"],
    )


def _brats() -> Config:
    """A list of four files a case; regions that overlap, merged by a lambda."""
    merge = "$lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, torch.where(x[[1]] > 0, 2, 0)))"
    return _spleen() | {
        "imports": ["$import torch"],
        "datalist": "$monai.data.load_decathlon_datalist('nowhere.json', data_list_key='testing')",
        "network_def": _unet(3, channels=4),
        "preprocessing": _compose(
            _step("LoadImaged", "@image_key", image_only=False),
            _step("NormalizeIntensityd", "@image_key", nonzero=True, channel_wise=True),
        ),
        "postprocessing": _compose(
            _pred("Activationsd", sigmoid=True),
            _invert(meta_keys="pred_meta_dict"),
            _pred("AsDiscreted", threshold=0.5),
            _pred("Lambdad", func=merge),
            _pred("SaveImaged", meta_keys="pred_meta_dict", output_dir="@output_dir"),
        ),
    }


def _whole_body() -> Config:
    """The weights' name is an id; labels are made before they are inverted."""
    config = _spleen()
    steps = config["preprocessing"]["transforms"]
    load = _LOADER | {"load_path": "$@bundle_root + '/models/' + @modelname"}
    return config | {
        "modelname": "model_lowres.pt",
        "displayable_configs": {"highres": False},
        "network_def": _unet(5),
        "preprocessing": _compose(
            steps[0], _step("EnsureTyped"), *steps[1:4], _step("NormalizeIntensityd", nonzero=True),
            _step("ScaleIntensityd", minv=-1.0, maxv=1.0),
        ),
        "postprocessing": _compose(
            _pred("Activationsd", softmax=True), _pred("AsDiscreted", argmax=True), _invert(nearest=True),
            _pred("SaveImaged", output_dir="@output_dir"),
        ),
        "checkpointloader": load,
    }  # fmt: skip


def _swin() -> Config:
    """The checkpoint's path is an id of its own."""
    return _spleen() | {
        "checkpoint": _MODEL,
        "network_def": _unet(14),  # theirs needs a package more
        "inferer": _windows(roi_size=[32, 32, 32]),
        "checkpointloader": _LOADER | {"load_path": "$@checkpoint"},
    }


def _prostate() -> Config:
    """The checkpoint among the handlers; labels are interpolated on their way back."""
    handler = _LOADER | {"map_location": {"_target_": "torch.device", "device": "@device"}}
    config = _spleen("image") | {
        "network_def": _unet(3),
        "initialize": ["$print('ready')"],
        "handlers": [handler],
    }
    config["postprocessing"] = _compose(
        _pred("AsDiscreted", argmax=True),
        _pred("KeepLargestConnectedComponentd", applied_labels=[1, 2]),
        _invert(meta_key_postfix="meta_dict"),
        _pred("SaveImaged", resample=False, output_dir="@output_dir"),
    )
    del config["checkpointloader"]
    return config


def _ventricles() -> Config:
    """A network of planes over a volume's slices; the run id is `evaluating`."""
    return _evaluated(
        imports=["$import glob"],
        ckpt_path=_MODEL,
        datalist="$list(sorted(glob.glob(@dataset_dir + '/*.nii*')))",
        network_def=_unet(4, dims=2),
        preprocessing=_compose(
            _step("LoadImaged", image_only=False),
            _step("EnsureChannelFirstd"),
            _step("ScaleIntensityd"),
            _step("EnsureTyped", device="@device"),
        ),
        inferer={"_target_": "SliceInferer", "roi_size": [16, 16], "spatial_dim": 2},
        postprocessing=_compose(
            _pred("Activationsd", softmax=True),
            _invert(meta_key_postfix="meta_dict"),
            _pred("AsDiscreted", argmax=True),
            _pred("SaveImaged", meta_keys="pred_meta_dict", output_dir="@output_dir"),
        ),
        handlers=[_LOADER | {"load_path": "@ckpt_path"}],
        evaluating=["$@evaluator.run()"],
    )


def _breast() -> Config:
    """Pictures in three colours; a network that would like to download weights; no data to be found."""
    return _evaluated(
        **{"import": ["$import glob", "$import os"]},
        model_dir="$@bundle_root + '/models'",
        datalist="$json.load(open('nowhere.json'))",
        network_def={
            "_target_": "EfficientNetBN", "model_name": "efficientnet-b0", "spatial_dims": 2, "in_channels": 3,
            "num_classes": 4, "pretrained": True,
        },
        preprocessing=_compose(
            _step("LoadImaged"),
            _step("EnsureChannelFirstd", channel_dim=2),
            _step("ScaleIntensityd", minv=0.0, maxv=1.0),
            _step("Resized", spatial_size=[64, 64]),
        ),
        postprocessing=_compose(_pred("Activationsd", sigmoid=True)),
        handlers=[_LOADER | {"load_path": "$@model_dir + '/model.pt'"}],
        evaluating=["$@evaluator.run()"],
    )  # fmt: skip


def _classification() -> Config:
    """YAML; the key of the data by MONAI's constants; classes made one-hot together with a label."""
    steps = [
        _step("LoadImaged", "@image"),
        _step("EnsureChannelFirstd", "@image"),
        _step("ScaleIntensityd", "@image"),
        _step("Resized", "@image", spatial_size=[32, 32]),
    ]
    return _evaluated(
        imports=["$import os", "$import json", "$import torch"],
        image="$monai.utils.CommonKeys.IMAGE",
        label="$monai.utils.CommonKeys.LABEL",
        pred="$monai.utils.CommonKeys.PRED",
        num_classes=4,
        ckpt_path=_MODEL,
        test_fp="$open('nowhere.json', 'r', encoding='utf8')",
        datalist="$json.load(@test_fp)",
        network_def={
            "_target_": "DenseNet", "spatial_dims": 2, "in_channels": 1, "out_channels": "@num_classes",
            "init_features": 4, "growth_rate": 2, "block_config": [1, 1],
        },
        transforms=steps,
        preprocessing={"_target_": "Compose", "transforms": "$@transforms"},
        postprocessing=_compose(
            _step("Activationsd", "@pred", softmax=True),
            _step("AsDiscreted", ["@pred", "@label"], argmax=[True, False], to_onehot="@num_classes"),
            _step("ToTensord", ["@pred", "@label"], device="@device"),
        ),
        val_handlers=[_LOADER | {"load_path": "@ckpt_path", "_disabled_": "$not os.path.exists(@ckpt_path)"}],
        initialize=["$setattr(torch.backends.cudnn, 'benchmark', True)"],
        run=["$@evaluator.run()"],
    )  # fmt: skip


def _template() -> Config:
    """YAML; the whole image at once; nothing is inverted."""
    return _evaluated(
        imports=["$import os", "$import torch", "$import glob"],
        image="$monai.utils.CommonKeys.IMAGE",
        pred="$monai.utils.CommonKeys.PRED",
        ckpt_path=_MODEL,
        datalist="$[{@image: i} for i in glob.glob(@dataset_dir + '/*')]",
        network_def=_unet(4),
        transforms=[
            _step("LoadImaged", "@image", image_only=True),
            _step("EnsureChannelFirstd", "@image"),
            _step("Orientationd", "@image", axcodes="RAS"),
            _step("SpatialPadd", "@image", spatial_size=[24, 24, 24]),
            _step("ScaleIntensityd", "@image"),
        ],
        preprocessing={"_target_": "Compose", "transforms": "$@transforms"},
        postprocessing=_compose(
            _step("Activationsd", "@pred", softmax=True),
            _step("AsDiscreted", "@pred", argmax=True),
            _step("SaveImaged", "@pred", output_dir="@output_dir", dtype="$None", output_postfix=""),
        ),
        handlers=[_LOADER | {"load_path": "@ckpt_path", "_disabled_": "$not os.path.exists(@ckpt_path)"}],
        run=["$@evaluator.run()"],
    )


def _kidneys() -> Config:
    """Three images a case under keys of their own, put together by the bundle's code; a label is loaded as well."""
    keys = ["artery", "vein", "excret"]
    return _evaluated(
        imports=["$import glob"],
        ckpt_dir="$@bundle_root + '/models'",
        datalist=[],
        network_def=_unet(3, channels=3),
        preprocessing=_compose(
            _step("LoadImaged", [*keys, "label"]),
            _step("EnsureChannelFirstd", keys),
            _step("Orientationd", keys, axcodes="RAS"),
            {"_target_": "scripts.join.ConcatImages"},
            _step("EnsureTyped"),
        ),
        inferer=_windows(),
        postprocessing=_compose(
            _invert(key="artery"),
            _pred("Activationsd", softmax=True),
            _pred("AsDiscreted", argmax=True),
            _pred("SaveImaged", output_dir="@output_dir"),
            _step("SaveImaged", "label", output_dir="@output_dir"),
        ),
        handlers=[_LOADER | {"load_path": "$@ckpt_dir + '/model.pt'", "strict": "True"}],
        inference=["$@evaluator.run()"],
    )


_JOIN = """
import torch


class ConcatImages:
    def __call__(self, data):
        return {**data, "image": torch.cat([data[k] for k in ("artery", "vein", "excret")])}
"""


def _registration() -> Config:
    """Transforms of files instead of dictionaries; own code; no `network`, no `postprocessing`; moved at random."""
    return {
        "imports": ["$import glob", "$import numpy as np"],
        "bundle_root": "./",
        "device": _DEVICE,
        "datalist": "$list(sorted(glob.glob('nowhere/*.jpeg')))[8500:8510]",
        "ckpt": _MODEL,
        "image_load": [
            {"_target_": "LoadImage", "image_only": True, "ensure_channel_first": True},
            {"_target_": "ScaleIntensity"},
            {"_target_": "EnsureType", "device": "@device"},
        ],
        "image_aug": [{"_target_": "RandAffine", "translate_range": 5, "prob": 1.0, "rotate_range": "$np.pi / 8"}],
        "preprocessing": {"_target_": "Compose", "transforms": "$@image_load + @image_aug"},
        "network_def": {"_target_": "scripts.net.Mean"},
        "handlers": [_LOADER | {"load_path": "@ckpt", "load_dict": {"model": "@network_def"}}],
        "inferer": {"_target_": "SimpleInferer"},
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "network": "@network_def",
            "postprocessing": _compose(*(_step("SaveImaged", [key], output_ext="png") for key in ("m_img", "pred"))),
        },
        "eval": ["$@evaluator.run()"],
    }


_NET = """
import torch


class Mean(torch.nn.Module):
    \"\"\"Stands for a registration: half the moving image and half the fixed one.\"\"\"

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((1, 2, 1, 1), 0.5))

    def forward(self, x):
        return (x * self.weight).sum(1, keepdim=True)
"""


def _enhancer() -> Config:
    """Image to image, in the form of the zoo's commonest bundles."""
    config = _spleen()
    config["network_def"] = _unet(1)
    config["postprocessing"] = _compose(_invert(), _pred("SaveImaged", output_dir="@output_dir"))
    return config


def _nuclei() -> Config:
    """Pictures in three colours, and where the nucleus lies as a fourth channel, made of the label."""
    return _evaluated(
        network_def={
            "_target_": "DenseNet", "spatial_dims": 2, "in_channels": 4, "out_channels": 4,
            "init_features": 4, "growth_rate": 2, "block_config": [1, 1],
        },
        preprocessing=_compose(
            _step("LoadImaged", ["image", "label"], dtype="uint8"),
            _step("EnsureChannelFirstd", ["image", "label"]),
            _step("ScaleIntensityRanged", a_min=0.0, a_max=255.0, b_min=-1.0, b_max=1.0),
            _step("AddLabelAsGuidanced", source="label"),
        ),
        postprocessing=_compose(_pred("Activationsd", softmax=True), _pred("SaveImaged", output_ext=".json")),
        checkpoint=_MODEL,
        handlers=[_LOADER | {"load_path": "$@checkpoint"}],
        run=["$@evaluator.run()"],
    )  # fmt: skip


def _clicks() -> Config:
    config = _nuclei()
    config["preprocessing"]["transforms"][-1] = {
        "_target_": "AddClickSignalsd", "image": "image", "foreground": "foreground", "gaussian": False,
    }  # fmt: skip
    return config


def _slides() -> Config:
    """The dataset reads, not the preprocessing."""
    return _nuclei() | {"preprocessing": _compose(_step("CastToTyped", dtype="float32"), _step("ToTensord"))}


def _searched() -> Config:
    """What a search has found is in a file of NumPy's arrays; devices are named where they are needed."""
    load = "$torch.load(@bundle_root + '/models/search.pt', map_location=torch.device('cuda'))"
    return _spleen() | {
        "found": load,
        "inferer": _windows(roi_size="$@found['window'].tolist()", device="$torch.device('cuda')"),
    }


def _detection() -> Config:
    return _spleen() | {"evaluator": {"_target_": "scripts.evaluator.DetectionEvaluator"}}


def _tensor(
    channels: int, kind: str = "image", form: str = "magnitude", shape: Any = (16, 16, 16), **more: Any
) -> Config:
    names = {str(n): f"thing {n}" for n in range(channels)}
    return {
        "type": kind, "format": form, "num_channels": channels, "spatial_shape": list(shape), "dtype": "float32",
        "value_range": [0, 1], "is_patch_data": True, "channel_def": names, **more,
    }  # fmt: skip


def _labels(channels: int, **more: Any) -> Config:
    return _tensor(channels, form="segmentation", **more)


_MR = {"channel_def": {"0": "T1c", "1": "T1", "2": "T2", "3": "FLAIR"}}
_PAIR = {"channel_def": {"0": "moving image", "1": "fixed image"}}
_CLASSES = {"kind": "probabilities", "form": "classes", "shape": (1, 4)}

ZOO: dict[str, tuple[Callable[[], Config], Config, Config]] = {
    "spleen_ct_segmentation": (_spleen, _tensor(1), _labels(2)),
    "brats_mri_segmentation": (_brats, _tensor(4, **_MR), _labels(3)),
    "wholeBody_ct_segmentation": (_whole_body, _tensor(1), _labels(5)),
    "swin_unetr_btcv_segmentation": (_swin, _tensor(1), _labels(14)),
    "prostate_mri_anatomy": (_prostate, _tensor(1), _tensor(3, form="labels")),
    "ventricular_short_axis_3label": (_ventricles, _tensor(1, shape=(16, 16)), _labels(4, shape=(16, 16))),
    "breast_density_classification": (_breast, _tensor(3, shape=(64, 64)), _tensor(4, form="labels", shape=(1, 4))),
    "classification_template": (_classification, _tensor(1, shape=(32, 32)), _tensor(4, **_CLASSES)),
    "segmentation_template": (_template, _tensor(1), _labels(4)),
    "renalStructures_CECT_segmentation": (_kidneys, _tensor(3), _labels(3)),
    "mednist_reg": (_registration, _tensor(2, shape=(16, 16), **_PAIR), _tensor(1, shape=(16, 16))),
    "enhancer": (_enhancer, _tensor(1), _tensor(1)),
    "pathology_nuclei_classification": (_nuclei, _tensor(4, shape=(16, 16)), _tensor(4, **_CLASSES)),
    "pathology_nuclick_annotation": (_clicks, _tensor(4, shape=(16, 16)), _labels(1, shape=(16, 16))),
    "pathology_tumor_detection": (_slides, _tensor(4, shape=(16, 16)), _tensor(4, **_CLASSES)),
    "pancreas_ct_dints_segmentation": (_searched, _tensor(1), _labels(2)),
    "lung_nodule_ct_detection": (_detection, _tensor(1), _tensor(1, kind="object", form="dict")),
    "brats_mri_generative_diffusion": (_spleen, _tensor(1, kind="noise", form="image"), _tensor(1, kind="feature")),
}
"""Name -> its config, its input and its output."""

_YAML = {"classification_template", "segmentation_template", "mednist_reg"}
_CODE = {"renalStructures_CECT_segmentation": ("join.py", _JOIN), "mednist_reg": ("net.py", _NET)}


def write(root: Path, name: str, *, weights: bool = True, **changes: Any) -> Path:
    """Writes the bundle; `changes` are ids of its config. Without `weights` there is no file of them."""
    make, given, made = ZOO[name]
    config = make() | changes
    for folder in ("configs", "docs", "models"):
        (root / folder).mkdir(parents=True)
    metadata = {
        "version": "0.1.0", "task": name, "name": name,
        "network_data_format": {"inputs": {"image": given}, "outputs": {"pred": made}},
    }  # fmt: skip
    (root / "configs" / "metadata.json").write_text(json.dumps(metadata))
    text, suffix = json.dumps(config), ".json"
    if name in _YAML:
        import yaml

        text, suffix = yaml.safe_dump(config), ".yaml"
    (root / "configs" / f"inference{suffix}").write_text(text)
    if code := _CODE.get(name):
        (root / "scripts").mkdir()
        (root / "scripts" / "__init__.py").touch()
        (root / "scripts" / code[0]).write_text(code[1])
    if weights:
        write_weights(root, config)
    return root


def write_weights(root: Path, config: Config) -> None:
    """Random weights, the same at every call: the state dict alone, as most of the zoo's files."""
    import torch
    from monai.bundle import ConfigParser

    target = str(config["network_def"].get("_target_"))
    if target.startswith("scripts."):
        torch.save({"weight": torch.full((1, 2, 1, 1), 0.5)}, root / "models" / "model.pt")
        return
    definition = config["network_def"] | ({"pretrained": False} if "pretrained" in config["network_def"] else {})
    parser = ConfigParser({**{k: v for k, v in config.items() if k == "num_classes"}, "network_def": definition})
    torch.manual_seed(7)
    network = parser.get_parsed_content("network_def")
    name = config.get("modelname", "model.pt")
    torch.save(network.state_dict(), root / "models" / str(name))


def forget_scripts() -> None:
    """Unloads the bundles' own code."""
    for module in [m for m in sys.modules if m.partition(".")[0] == "scripts"]:
        del sys.modules[module]
