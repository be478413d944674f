"""The register plugin keeps the contract that every plugin keeps."""

from __future__ import annotations

from pathlib import Path

from medkit.images.phantom import make_image
from medkit.testing import Arguments, PluginContract


class TestContract(PluginContract):
    distribution = "medkit"
    plugin = "register"
    tasks = ("register",)
    grid = "reference"

    def arguments(self, task: str, folder: Path) -> Arguments:
        fixed = make_image(folder / "fixed.nii.gz", (44, 50, 40), (3.4, 3.1, 3.8), "RAS", oblique_degrees=5)
        return ["--fixed", fixed, "--quality", "fast"]

    def test_the_reference_is_the_fixed_image(self, task: str, tmp_path_factory: object) -> None:
        """So that `grid = "reference"` means the fixed image's grid."""
        runs = self._runs(task, tmp_path_factory)
        for source in runs.inputs:
            assert Path(runs.record_of(source)["SpatialReference"]).name == "fixed.nii.gz"


class TestPlanarContract(TestContract):
    """The same for 2D images, which have a 2D fixed image."""

    dims = (2,)

    def arguments(self, task: str, folder: Path) -> Arguments:
        return ["--fixed", make_image(folder / "fixed.nii.gz", (60, 66), (2.3, 2.2)), "--quality", "fast"]
