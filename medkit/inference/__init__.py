"""Running the network of any MONAI bundle: its config, its weights, its inputs and outputs, and the memory it needs.

`medkit.inference.task` puts the parts together. These are the names that plugins may use.
"""

from __future__ import annotations

from medkit.bundles.bundle import AUTO, WEIGHTS, Bundle
from medkit.bundles.config import build_without_monai, read_config
from medkit.bundles.contract import contract_of
from medkit.inference.choice import NONE, bundle_or_none, check_hounsfield, modality_of
from medkit.inference.inputs import Feed, feed_of, is_picture
from medkit.inference.loading import RunSettings, bundle_identity, open_bundle
from medkit.inference.opened import InferenceConfig, InferenceParts
from medkit.inference.options import BundleOptions, bundle_options
from medkit.inference.outputs import to_image, to_labels, to_table
from medkit.inference.runner import BundleRunner, LoadedBundle
from medkit.inference.task import bundle_task
from medkit.inference.transforms import Prepared
from medkit.machine.precision import choose_device, choose_precision

__all__ = [
    "AUTO",
    "NONE",
    "WEIGHTS",
    "Bundle",
    "BundleOptions",
    "BundleRunner",
    "Feed",
    "InferenceConfig",
    "InferenceParts",
    "LoadedBundle",
    "Prepared",
    "RunSettings",
    "build_without_monai",
    "bundle_identity",
    "bundle_options",
    "bundle_or_none",
    "bundle_task",
    "check_hounsfield",
    "choose_device",
    "choose_precision",
    "contract_of",
    "feed_of",
    "is_picture",
    "modality_of",
    "open_bundle",
    "read_config",
    "to_image",
    "to_labels",
    "to_table",
]
