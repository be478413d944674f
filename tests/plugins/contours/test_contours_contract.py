"""The contours plugin keeps the contract that every plugin keeps, in both directions."""

from __future__ import annotations

from pathlib import Path

from medkit.images.phantom import make_image
from medkit.testing import Arguments, Geometry, PluginContract


class TestContract(PluginContract):
    distribution = "medkit"
    plugin = "contours"
    dims = (3, 2)

    def make_input(self, task: str, folder: Path, geometry: Geometry) -> Path:
        path = folder / f"{geometry.name}_dseg.nii.gz"
        return make_image(
            path, geometry.shape, geometry.spacing, geometry.orientation, geometry.oblique_degrees, kind="labels"
        )


class TestContractWithMeshes(TestContract):
    dims = (3,)

    def arguments(self, task: str, folder: Path) -> Arguments:
        return ["--mesh"]
