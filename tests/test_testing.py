"""medkit.testing: its images are what they say, and its checks find what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import nibabel
import numpy as np
import pytest
from places import REPOSITORY

from medkit.bundles.verify import bundle_problems
from medkit.images.image import read_image
from medkit.images.phantom import make_image
from medkit.testing import (
    GEOMETRIES,
    Geometry,
    PluginContract,
    assert_same_grid,
    options_without_help,
    record_problems,
    records,
    run_medkit,
)
from medkit.transforms.resampling import resample

TEMPLATE_BUNDLE = "medkit/templates/plugin/src/__package__/bundles/__bundle__"


def written(folder: Path, geometry: Geometry, **settings: object) -> Path:
    g = geometry
    path = folder / f"{g.name}.nii.gz"
    return make_image(path, g.shape, g.spacing, g.orientation, g.oblique_degrees, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: g.name)
def test_images_have_the_geometry_asked_for(tmp_path: Path, geometry: Geometry) -> None:
    image = nibabel.load(written(tmp_path, geometry))
    assert image.shape == geometry.shape
    np.testing.assert_allclose(image.header.get_zooms(), geometry.spacing, rtol=1e-6)
    assert int(image.header["qform_code"]) == int(image.header["sform_code"]) == 1
    np.testing.assert_allclose(image.header.get_qform(), image.header.get_sform(), atol=1e-4)
    assert "".join(nibabel.aff2axcodes(image.affine)) == geometry.orientation


def test_oblique_images_are_turned(tmp_path: Path) -> None:
    path = make_image(tmp_path / "a.nii", (20, 22, 24), (2, 2, 2), oblique_degrees=15)
    assert np.abs(nibabel.load(path).affine[:3, :3]).max() < 2 * np.cos(np.radians(14))


def test_one_seed_is_one_anatomy_in_any_orientation(tmp_path: Path) -> None:
    plain = read_image(make_image(tmp_path / "a.nii.gz", (40, 44, 36), (3, 3, 4)))
    flipped = read_image(make_image(tmp_path / "b.nii.gz", (36, 40, 44), (4, 3, 3), "ILA"))
    other = read_image(make_image(tmp_path / "c.nii.gz", (40, 44, 36), (3, 3, 4), seed=1))
    alike = [np.corrcoef(plain.data.ravel(), resample(i, plain.grid).data.ravel())[0, 1] for i in (flipped, other)]
    assert alike[0] > 0.99 > 0.9 > alike[1]


def test_labels_are_whole_numbers_of_the_same_anatomy(tmp_path: Path) -> None:
    labels = nibabel.load(make_image(tmp_path / "a_dseg.nii.gz", (40, 44, 36), (3, 3, 4), kind="labels"))
    image = nibabel.load(make_image(tmp_path / "a.nii.gz", (40, 44, 36), (3, 3, 4)))
    values, found = np.asarray(image.dataobj), np.asarray(labels.dataobj)
    assert found.dtype == np.uint8
    assert np.unique(found).tolist() == [0, 1, 2, 3]
    means = [values[found == n].mean() for n in range(4)]
    assert means == sorted(means)


def test_same_grid_notices_each_difference(tmp_path: Path) -> None:
    a = make_image(tmp_path / "a.nii.gz", (20, 22, 24), (2, 2, 2))
    assert_same_grid(a, make_image(tmp_path / "b.nii.gz", (20, 22, 24), (2, 2, 2), seed=3))
    others = {
        "shape": make_image(tmp_path / "shape.nii.gz", (20, 22, 25), (2, 2, 2)),
        "affines": make_image(tmp_path / "affine.nii.gz", (20, 22, 24), (2, 2, 2.001)),
        "qform and sform": tmp_path / "codes.nii.gz",
    }
    image = nibabel.load(a)
    image.set_sform(image.affine, 4)
    image.to_filename(others["qform and sform"])
    for what, path in others.items():
        with pytest.raises(AssertionError, match=what):
            assert_same_grid(a, path)


def test_variables_of_the_caller_do_not_reach_medkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDKIT_PLUGINS", "no-such-plugin")
    assert run_medkit(["plugins"]).returncode == 0
    assert run_medkit(["plugins"], env={"MEDKIT_PLUGINS": "no-such-plugin"}).returncode == 2


def test_importing_it_needs_no_pytest() -> None:
    script = "import sys; sys.modules['pytest'] = None; import medkit.testing; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def made_record(folder: Path) -> dict[str, object]:
    """The record of a mask that a plugin-like run made."""
    image = make_image(folder / "a.nii.gz", (20, 22, 24), (4, 4, 4))
    identity = ["transform", "apply", image, "--reference", image, "--json", "-o", folder / "out"]
    return dict(records(run_medkit(identity).stdout)[0])


def test_a_whole_record_has_no_problems_and_a_touched_result_has(tmp_path: Path) -> None:
    record = made_record(tmp_path)
    assert list(record_problems(record, "transform apply")) == []
    assert any("expected status ok of task other" in p for p in record_problems(record, "other"))
    with open(str(record["path"]), "ab") as file:
        file.write(b"x")
    assert any("sha256" in p for p in record_problems(record, "transform apply"))
    Path(str(record["path"])).unlink()
    assert any("does not exist" in p for p in record_problems(record, "transform apply"))
    (tmp_path / "out" / "a_transformed.json").unlink()
    assert any("sidecar" in p for p in record_problems(record, "transform apply"))


def test_options_without_help_are_found_in_groups_too() -> None:
    sub = click.Command("sub", params=[click.Option(["--bare"]), click.Option(["--told"], help="Told.")])
    group = click.Group("group", commands={"sub": sub}, params=[click.Argument(["inputs"])])
    assert options_without_help(group) == ["sub --bare"]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A whole bundle: that of the template of `medkit plugins new`."""
    source = REPOSITORY / TEMPLATE_BUNDLE
    for path in source.rglob("*.tmpl"):
        target = tmp_path / path.relative_to(source).with_suffix("")
        target.parent.mkdir(exist_ok=True)
        target.write_text(path.read_text())
    (tmp_path / "LICENSE").write_text("free")
    assert list(bundle_problems(tmp_path)) == []
    return tmp_path


@pytest.mark.parametrize("name", ["LICENSE", "docs/README.md", "configs/metadata.json", "configs/inference.json"])
def test_a_bundle_without_a_file_is_told(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    assert [p for p in bundle_problems(bundle) if name in p]


@pytest.mark.parametrize("text", ["/workspace/data", "$open('/home/me/x')", "~/models/a.pt", "C:\\data\\x"])
def test_a_path_of_one_machine_is_told(bundle: Path, text: str) -> None:
    (bundle / "configs" / "train.json").write_text(json.dumps({"a": [{"b": text}]}))
    assert [p for p in bundle_problems(bundle) if "absolute path" in p]


@pytest.mark.parametrize("text", ["$@a / 2", "https://example.org/x", "$@bundle_root + '/models/model.pt'", "a/b/c"])
def test_what_only_looks_like_a_path_is_not(bundle: Path, text: str) -> None:
    (bundle / "configs" / "train.json").write_text(json.dumps({"a": text}))
    assert list(bundle_problems(bundle)) == []


def test_metadata_is_told_what_it_lacks(bundle: Path) -> None:
    path = bundle / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    del metadata["authors"], metadata["network_data_format"]["inputs"]["image"]["dtype"]
    path.write_text(json.dumps(metadata))
    found = "\n".join(bundle_problems(bundle))
    assert "'authors' is a required property" in found
    assert "network_data_format.inputs.image: 'dtype' is a required property" in found
    path.write_text("{")
    assert "not valid JSON" in "\n".join(bundle_problems(bundle))


def test_a_plugin_that_is_not_installed_fails_the_contract() -> None:
    class Missing(PluginContract):
        distribution = "medkit-no-such-thing"

    with pytest.raises(AssertionError, match=r"no plugin .*medkit-no-such-thing"):
        Missing().test_is_installed_whole()
