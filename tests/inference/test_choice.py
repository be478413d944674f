"""`--bundle auto`: the bundle of a task that fits a case."""

from __future__ import annotations

import json
from pathlib import Path

import click
import nibabel
import numpy as np
import pytest
import zoo

from medkit.bundles.bundle import AUTO, Bundle, candidate_bundles
from medkit.errors import InputError, UsageError
from medkit.images.phantom import make_image
from medkit.inference import options as bundle_options
from medkit.inference.choice import bundle_for_case, check_hounsfield, modality_of
from medkit.inference.loading import RunSettings
from medkit.inference.options import BundleOptions
from medkit.inference.task import bundle_task
from medkit.options import RunOptions, task_options
from medkit.pipe.records import Record, read_sidecar, record_of
from medkit.plugins import Registry
from medkit.run.outputs import Targets
from medkit.run.task import Case, CasePlan, Runtime, Task
from medkit.specs import BundleSpec
from medkit.task import run_task

pytestmark = pytest.mark.usefixtures("clean_path")

CPU = Runtime("cpu", 1, 0)
NOTHING = Task("t", ())


def case_of(path: Path, kind: str = "image") -> Case:
    record = Record(path, kind) if kind != "image" else record_of(path)
    return Case(CasePlan(record, {"image": path}, Targets({})), NOTHING, RunOptions(), CPU)


def bundle(name: str, modality: str | None = None, kinds: tuple[str, ...] = ("image",), *, auto: bool = True) -> Bundle:
    spec = BundleSpec("t", name, Path(name), kinds, modality, auto)
    return Bundle(Path(name), name, "t", "medkit-a", spec=spec)


CT, MR, ANY, MASKS = bundle("ct", "CT"), bundle("mr", "MR"), bundle("any"), bundle("masks", None, ("mask",))


def hounsfield(path: Path) -> Path:
    values = np.where(np.indices((16, 16, 16))[0] < 4, -1000, 40).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([6.0, 6.0, 6.0, 1.0])), path)
    return path


@pytest.mark.parametrize(
    ("name", "modality", "words"),
    [("sub-1_T2w.nii.gz", "MR", "name"), ("sub-1_ct.nii.gz", "CT", "name"), ("scan.nii.gz", "MR", "Hounsfield")],
)
def test_the_modality_of_a_file(tmp_path: Path, name: str, modality: str, words: str) -> None:
    found, why = modality_of(case_of(make_image(tmp_path / name, (16, 16, 16), (6, 6, 6))))
    assert found == modality
    assert words in why


def test_the_modality_by_intensity(tmp_path: Path) -> None:
    found, why = modality_of(case_of(hounsfield(tmp_path / "a.nii.gz")))
    assert found == "CT"
    assert "HU" in why


def shifted(path: Path, target: Path, offset: int) -> Path:
    scan = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image((np.asarray(scan.dataobj) + offset).astype(np.int16), scan.affine), target)
    return target


def test_a_ct_stored_with_an_offset(tmp_path: Path) -> None:
    plain = hounsfield(tmp_path / "a.nii.gz")
    check_hounsfield(case_of(plain))
    found, why = modality_of(case_of(shifted(plain, tmp_path / "b.nii.gz", 1024)))
    assert (found, "or 1024 was added to them" in why) == ("MR", True)
    with pytest.raises(InputError, match=r"sub-1_ct.*expected Hounsfield .* from 24 to 1064; 1024 was added to them"):
        check_hounsfield(case_of(shifted(plain, tmp_path / "sub-1_ct.nii.gz", 1024)))
    with pytest.raises(InputError, match=r"got values from 2000 to 3040$"):
        check_hounsfield(case_of(shifted(plain, tmp_path / "sub-2_ct.nii.gz", 3000)))


@pytest.mark.parametrize("stated", [b"MR", b"CT", b"PT"])
def test_the_modality_of_dicom(tmp_path: Path, stated: bytes) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(bytes(128) + b"DICM" + b"\x08\x00\x60\x00CS\x02\x00" + stated)
    assert modality_of(case_of(path)) == (stated.decode(), "its DICOM header says so")


def test_the_bundle_that_fits(tmp_path: Path) -> None:
    image = case_of(make_image(tmp_path / "sub-1_T1w.nii.gz", (16, 16, 16), (6, 6, 6)))
    assert bundle_for_case(image, [CT])[0] is CT, "one bundle is asked for nothing"
    assert bundle_for_case(image, [CT, MR]) == (MR, "the only one for MR: its name says so")
    assert bundle_for_case(image, [CT, ANY])[0] is ANY
    assert bundle_for_case(image, [MR, ANY])[0] is MR, "what is made for it comes before what takes all"
    assert bundle_for_case(image, [MASKS, CT])[0] is CT
    assert bundle_for_case(case_of(image.path, "mask"), [MASKS, CT, MR]) == (MASKS, "the only one that takes mask")
    with pytest.raises(InputError, match=r"no bundle takes MR .*; choose with --bundle: ct \(CT\) and pt \(PT\)"):
        bundle_for_case(image, [CT, bundle("pt", "PT")])
    with pytest.raises(InputError, match="several bundles take MR"):
        bundle_for_case(image, [MR, bundle("other", "MR"), CT])


class _Registry:
    def __init__(self, *bundles: BundleSpec) -> None:
        self.plugins = [self]
        self.bundles, self.distribution = bundles, "medkit-a"


def test_what_auto_may_choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDKIT_BUNDLES", str(tmp_path / "none"))
    specs = [BundleSpec("t", n, Path(n), auto=n != "style") for n in ("one", "two", "style")]
    registry: Registry = _Registry(*specs)  # type: ignore[assignment]
    assert [b.name for b in candidate_bundles(AUTO, "t", registry, trust=False)] == ["one", "two"]
    assert [b.name for b in candidate_bundles("style", "t", registry, trust=False)] == ["style"]
    with pytest.raises(UsageError, match="no bundle is for it"):
        candidate_bundles(AUTO, "other", registry, trust=False)


def test_cases_go_to_the_bundles_that_fit_them(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    roots = [zoo.write(tmp_path / n, n) for n in ("spleen_ct_segmentation", "prostate_mri_anatomy")]
    both = [
        Bundle(root, root.name, "t", "medkit-a", spec=BundleSpec("t", root.name, root, modality=modality))
        for root, modality in zip(roots, ("CT", "MR"), strict=True)
    ]

    @click.command()
    @task_options
    def command(options: RunOptions) -> None:
        run_task(bundle_task("t", both, RunSettings({}, "float32")), options)

    scans = [make_image(tmp_path / "sub-1_T2w.nii.gz", (16, 16, 16), (3, 3, 4)), hounsfield(tmp_path / "a.nii.gz")]
    with pytest.raises(SystemExit) as stop:
        command([*map(str, scans), "-o", str(tmp_path / "out")])
    assert stop.value.code in (0, None)
    lines = capfd.readouterr().out.splitlines()
    records = [read_sidecar(Path(line).with_name(Path(line).name.replace(".nii.gz", ".json"))) for line in lines]
    chosen = [r.medkit["choice"] for r in records if r]
    assert [c["name"] for c in chosen] == ["prostate_mri_anatomy", "spleen_ct_segmentation"]
    assert "HU" in chosen[1]["reason"]


def test_bundles_that_give_different_files_are_no_choice(tmp_path: Path) -> None:
    names = ("spleen_ct_segmentation", "breast_density_classification")
    both = [Bundle(zoo.write(tmp_path / n, n), n) for n in names]
    with pytest.raises(UsageError, match="different files"):
        bundle_task("t", both, RunSettings({}))


def test_options_of_tasks_that_run_bundles() -> None:
    got: list[BundleOptions] = []

    @click.command()
    @bundle_options.bundle_options()
    def command(chosen: BundleOptions) -> None:
        got.append(chosen)

    command(["--set", "a::b=[1]", "--memory", "2G", "--precision", "bf16"], standalone_mode=False)
    command(["--bundle", "x", "--trust"], standalone_mode=False)
    assert got[0] == BundleOptions("auto", False, RunSettings({"a::b": [1]}, "bf16", 2 * 2**30))
    assert (got[1].name, got[1].trust) == ("x", True)
    assert json.dumps(got[0].settings.overrides)
