"""A bundle like the zoo's `lung_nodule_ct_detection`: its ids, transforms and scripts, with a tiny RetinaNet.

Its weights are set by hand, so that it finds bright balls. The texts are our own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Config = dict[str, Any]

CHANNELS = 8
SPACING = (1.5, 1.5, 2.0)
"""mm; of the images that the network is given."""
AIR, BALL = -800.0, 200.0
"""HU around balls and in them."""

INFERENCE: Config = {
    "whether_raw_luna16": False,
    "whether_resampled_luna16": "$(not @whether_raw_luna16)",
    "imports": ["$import glob", "$import numpy", "$import os"],
    "bundle_root": ".",
    "image_key": "image",
    "ckpt_dir": "$@bundle_root + '/models'",
    "output_dir": "$@bundle_root + '/eval'",
    "output_filename": "result.json",
    "data_list_file_path": "$@bundle_root + '/LUNA16_datasplit/dataset_fold0.json'",
    "dataset_dir": "/datasets/LUNA16_Images_resample",
    "test_datalist": "$monai.data.load_decathlon_datalist(@data_list_file_path, data_list_key='validation')",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "amp": True,
    "load_pretrain": True,
    "spatial_dims": 3,
    "num_classes": 1,
    "force_sliding_window": False,
    "size_divisible": [8, 8, 8],
    "infer_patch_size": [96, 96, 96],
    "anchor_generator": {
        "_target_": "monai.apps.detection.utils.anchor_utils.AnchorGeneratorWithAnchorShape",
        "feature_map_scales": [1, 2],
        "base_anchor_shapes": [[6, 6, 4], [10, 10, 8]],
    },
    "feature_extractor": {"_target_": "scripts.pyramid.Pyramid", "channels": CHANNELS},
    "network_def": {
        "_target_": "RetinaNet", "spatial_dims": "@spatial_dims", "num_classes": "@num_classes", "num_anchors": 2,
        "feature_extractor": "@feature_extractor", "size_divisible": "@size_divisible", "use_list_output": False,
    },
    "network": "$@network_def.to(@device)",
    "detector": {
        "_target_": "RetinaNetDetector", "network": "@network", "anchor_generator": "@anchor_generator", "debug": False,
        "spatial_dims": "@spatial_dims", "num_classes": "@num_classes", "size_divisible": "@size_divisible",
    },
    "detector_ops": [
        "$@detector.set_target_keys(box_key='box', label_key='label')",
        "$@detector.set_box_selector_parameters(score_thresh=0.02,topk_candidates_per_level=100,nms_thresh=0.1,"
        "detections_per_img=30)",
        "$@detector.set_sliding_window_inferer(roi_size=@infer_patch_size,overlap=0.25,sw_batch_size=1,"
        "mode='constant',device='cpu')",
    ],
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "@image_key", "_disabled_": "@whether_raw_luna16"},
            {"_target_": "LoadImaged", "keys": "@image_key", "reader": "itkreader", "affine_lps_to_ras": True,
             "_disabled_": "@whether_resampled_luna16"},
            {"_target_": "EnsureChannelFirstd", "keys": "@image_key"},
            {"_target_": "Orientationd", "keys": "@image_key", "axcodes": "RAS"},
            {"_target_": "Spacingd", "keys": "@image_key", "pixdim": list(SPACING)},
            {"_target_": "ScaleIntensityRanged", "keys": "@image_key", "a_min": -1024.0, "a_max": 300.0,
             "b_min": 0.0, "b_max": 1.0, "clip": True},
            {"_target_": "EnsureTyped", "keys": "@image_key"},
        ],
    },
    "dataset": {"_target_": "Dataset", "data": "$@test_datalist", "transform": "@preprocessing"},
    "dataloader": {
        "_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "shuffle": False, "num_workers": 0,
        "collate_fn": "$monai.data.utils.no_collation",
    },
    "inferer": {
        "_target_": "scripts.detection_inferer.RetinaNetInferer",
        "detector": "@detector",
        "force_sliding_window": "@force_sliding_window",
    },
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "ClipBoxToImaged", "box_keys": "box", "label_keys": "label",
             "box_ref_image_keys": "@image_key", "remove_empty": True},
            {"_target_": "AffineBoxToWorldCoordinated", "box_keys": "box", "box_ref_image_keys": "@image_key",
             "affine_lps_to_ras": True},
            {"_target_": "ConvertBoxModed", "box_keys": "box", "src_mode": "xyzxyz", "dst_mode": "cccwhd"},
            {"_target_": "DeleteItemsd", "keys": ["@image_key"]},
        ],
    },
    "handlers": [
        {"_target_": "StatsHandler", "iteration_log": False},
        {
            "_target_": "scripts.detection_saver.DetectionSaver",
            "output_dir": "@output_dir",
            "filename": "@output_filename",
            "batch_transform": "$lambda x: [xx['image'].meta for xx in x]",
            "output_transform": "$lambda x: [@postprocessing({**xx['pred'],'image':xx['image']}) for xx in x]",
            "pred_box_key": "box", "pred_label_key": "label", "pred_score_key": "label_scores",
        },
    ],
    "evaluator": {
        "_target_": "scripts.evaluator.DetectionEvaluator", "_requires_": "@detector_ops", "device": "@device",
        "val_data_loader": "@dataloader", "network": "@network", "inferer": "@inferer", "val_handlers": "@handlers",
        "amp": "@amp",
    },
    "checkpointloader": {
        "_target_": "CheckpointLoader",
        "load_path": "$@bundle_root + '/models/model.pt'",
        "load_dict": {"model": "@network"},
    },
    "initialize": [
        "$setattr(torch.backends.cudnn, 'benchmark', False)",
        "$@checkpointloader(@evaluator) if @load_pretrain else None",
    ],
    "run": ["$@evaluator.run()"],
}  # fmt: skip

PYRAMID = '''
import torch
from torch import nn


class Pyramid(nn.Module):
    """Two maps of features, a half and a quarter as fine as the image; the zoo's backbone needs torchvision."""

    def __init__(self, channels):
        super().__init__()
        self.out_channels = channels
        steps = [nn.Conv3d(1, channels, 3, 2, 1), nn.ReLU(), nn.Conv3d(channels, channels, 3, 1, 1), nn.ReLU()]
        self.stem = nn.Sequential(*steps)
        self.down = nn.Sequential(nn.Conv3d(channels, channels, 3, 2, 1), nn.ReLU())

    def forward(self, image):
        fine = self.stem(image)
        return [fine, self.down(fine)]
'''
SCRIPTS = {
    "__init__.py": "from . import detection_inferer, detection_saver, evaluator, pyramid\n",
    "pyramid.py": PYRAMID,
    "detection_inferer.py": '''
from monai.inferers import Inferer


class RetinaNetInferer(Inferer):
    """Gives a list of images to a detector, by windows if they are large."""

    def __init__(self, detector, force_sliding_window=False):
        super().__init__()
        self.detector, self.force = detector, force_sliding_window

    def __call__(self, inputs, network, *args, **kwargs):
        self.detector.network = network
        self.detector.training = network.training
        window = getattr(self.detector.inferer, "roi_size", None)
        most = None if window is None else window[0] * window[1] * window[2]
        large = most is not None and any(image[0].numel() >= most for image in inputs)
        return self.detector(inputs, *args, use_inferer=self.force or large, **kwargs)
''',
    "detection_saver.py": '''
import json
import os

from monai.handlers import ClassificationSaver


class DetectionSaver(ClassificationSaver):
    """Writes what was found in all images into one file of JSON."""

    def __init__(self, pred_box_key="box", pred_label_key="label", pred_score_key="label_scores", **settings):
        super().__init__(saver=None, **settings)
        self.keys = (pred_box_key, pred_label_key, pred_score_key)

    def _finalize(self, engine):
        found = [{key: one[key].tolist() for key in self.keys} | {"image": name}
                 for one, name in zip(self._outputs, self._filenames)]
        with open(os.path.join(self.output_dir, self.filename), "w") as file:
            json.dump(found, file)
''',
    "evaluator.py": '''
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents


def as_lists(batch, device=None, non_blocking=False, **kwargs):
    return [item["image"].to(device=device, non_blocking=non_blocking, **kwargs) for item in batch], None


class DetectionEvaluator(SupervisedEvaluator):
    """A batch is a list of images, the answer a list of dictionaries."""

    def __init__(self, *args, prepare_batch=as_lists, **settings):
        super().__init__(*args, prepare_batch=prepare_batch, **settings)

    def _register_decollate(self):
        @self.on(IterationEvents.MODEL_COMPLETED)
        def apart(engine):
            output = {key: value for key, value in engine.state.output.items() if value is not None}
            engine.state.output = [
                {key: value[n] for key, value in output.items()} for n in range(len(output["image"]))
            ]
''',
}

METADATA: Config = {
    "version": "0.6.8",
    "changelog": {"0.6.8": "first"},
    "monai_version": "1.4.0",
    "pytorch_version": "2.4.0",
    "numpy_version": "1.24.4",
    "optional_packages_version": {"pytorch-ignite": "0.4.11"},
    "name": "Ball detection",
    "task": "Detection of balls",
    "description": "Finds bright balls.",
    "authors": "medkit's tests",
    "copyright": "the tests",
    "network_data_format": {
        "inputs": {"image": {
            "type": "image", "format": "magnitude", "modality": "CT", "num_channels": 1,
            "spatial_shape": ["8*n", "8*n", "8*n"], "dtype": "float16", "value_range": [0, 1], "is_patch_data": True,
            "channel_def": {"0": "image"},
        }},
        "outputs": {"pred": {
            "type": "object", "format": "dict", "dtype": "float16", "num_channels": 1, "spatial_shape": ["n", "n", "n"],
            "value_range": [-10000, 10000],
        }},
    },
}  # fmt: skip


def write(root: Path, weights: Path | None, *, metadata: Config | None = None, **changes: Any) -> Path:
    """Write the bundle; `changes` are ids of its config, `metadata` entries of its metadata."""
    for folder in ("configs", "docs", "models", "scripts"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "configs" / "inference.json").write_text(json.dumps(INFERENCE | changes))
    (root / "configs" / "metadata.json").write_text(json.dumps(METADATA | (metadata or {})))
    for name in ("LICENSE", "docs/README.md"):
        (root / name).write_text("our own\n")
    for name, text in SCRIPTS.items():
        (root / "scripts" / name).write_text(text)
    if weights is not None:
        (root / "models" / "model.pt").write_bytes(weights.read_bytes())
    return root


def write_scan(path: Path, affine: np.ndarray, shape: Sequence[int], balls: Sequence[Sequence[float]]) -> Path:
    """Write a CT with bright balls: each (x, y, z, radius), RAS+ mm."""
    import nibabel

    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    places = index @ affine[:3, :3].T + affine[:3, 3]
    data = np.full(shape, AIR) + np.random.default_rng(0).normal(0, 20, shape)
    for *centre, radius in balls:
        away = np.linalg.norm(places - centre, axis=-1)
        data += (BALL - AIR) * np.clip(radius + 0.5 - away, 0, 1)
    nibabel.save(nibabel.Nifti1Image(data.astype(np.float32), affine), path)
    return path


def write_weights(path: Path) -> Path:
    """Write weights by which the network finds bright balls: scores are the blurred image, boxes are the anchors."""
    import torch
    from monai.bundle import ConfigParser

    code: dict[str, Any] = {}
    exec(PYRAMID, code)
    parts = ("network_def", "spatial_dims", "num_classes", "size_divisible")
    parser = ConfigParser({name: INFERENCE[name] for name in parts})
    parser["feature_extractor"] = code["Pyramid"](CHANNELS)
    network = parser.get_parsed_content("network_def")
    state = network.state_dict()
    for name, tensor in state.items():
        if tensor.ndim == 5:
            tensor.zero_()
            blurs = name.startswith("feature_extractor") or name.startswith("classification_head.conv.0")
            for channel in range(min(tensor.shape[0], CHANNELS)):
                if blurs:
                    tensor[channel, channel % tensor.shape[1]] = 1 / 27
                elif "bbox" not in name and "regression" not in name:
                    tensor[channel, channel, 1, 1, 1] = 1
        elif name.endswith("bias"):
            tensor.zero_()
    # of the two anchors, the first one is preferred; MONAI places anchors half a stride, a voxel, beside their features
    state["classification_head.cls_logits.bias"].copy_(torch.tensor([-7.5, -11.0]))
    anchors = INFERENCE["anchor_generator"]["base_anchor_shapes"]
    moves = [[*(-1.0 / size for size in shape), 0.0, 0.0, 0.0] for shape in anchors]
    state["regression_head.bbox_reg.bias"].copy_(torch.tensor(moves).flatten())
    network.load_state_dict(state)
    torch.save(network.state_dict(), path)
    return path
