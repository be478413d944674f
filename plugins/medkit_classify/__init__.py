"""Classification: networks that name what an image shows, and `medkit run classify`, which runs them."""

from __future__ import annotations

from pathlib import Path

from medkit import hookimpl
from medkit.specs import BundleSpec, TaskSpec

_BUNDLES = Path(__file__).parent / "bundles"


@hookimpl
def medkit_tasks() -> list[TaskSpec]:
    """Return the task `classify`."""
    return [
        TaskSpec(
            "classify",
            "Name what images show, with confidence.",
            "medkit_classify.command:classify",
            trained="medkit_classify.calibrate:after_training",
        )
    ]


@hookimpl
def medkit_bundles() -> list[BundleSpec]:
    """Return the bundles of the task `classify`."""
    return [
        BundleSpec("classify", "chest_xray_classification", _BUNDLES / "chest_xray_classification", modality="CR"),
        BundleSpec("classify", "lung_nodule_ct_classification", _BUNDLES / "lung_nodule_ct_classification",
                   modality="CT"),
        BundleSpec("classify", "adrenal_shape_classification", _BUNDLES / "adrenal_shape_classification",
                   kinds=("mask",)),
        BundleSpec("classify", "brain_mri_quality_classification", _BUNDLES / "brain_mri_quality_classification",
                   modality="MR"),
    ]  # fmt: skip
