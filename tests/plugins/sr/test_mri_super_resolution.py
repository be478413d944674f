"""The bundle mri_super_resolution: its configs under MONAI's own tools, `medkit train` and `medkit run sr`."""

from __future__ import annotations

import functools
import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import bundled
import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from outcome import Outcome
from places import BUNDLES

from medkit.synthesis.draw import Synthesis
from medkit.synthesis.labels import LabelTable
from medkit.synthesis.ranges import Random, Ranges
from medkit.synthesis.sampling import ScanImaged, Scanner, random_acquisition, scanned
from medkit.testing import run_medkit

ROOT = BUNDLES / "mri_super_resolution"
SMALL = {"channels": [4, 8]}
CPU = torch.device("cpu")

built = functools.partial(bundled.built, ROOT)


def weighted(root: Path, *, scale: float = 0.0) -> Path:
    """The bundle with a small network's weights: what it adds times `scale`."""
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns("models"))
    for name in ("inference", "train"):
        path = root / "configs" / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | SMALL))
    torch.manual_seed(0)
    parser = ConfigParser()
    parser.read_config(str(root / "configs" / "inference.json"))
    network = parser.get_parsed_content("network_def")
    for parameter in (*network.gain.parameters(), *network.added.parameters()):
        parameter.data.mul_(scale)
    (root / "models").mkdir()
    torch.save(network.state_dict(), root / "models" / "model.pt")
    return root


@pytest.fixture(autouse=True)
def own_code(clean_path: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle's own package is found, as under MONAI's commands and medkit's."""
    monkeypatch.syspath_prepend(str(ROOT))


def head(shape: tuple[int, ...] = (48, 52, 24)) -> np.ndarray:
    x = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    return np.where((x**2).sum(0) < 0.75, 600 + 250 * np.sin(7 * x[0]), 0.0).astype(np.float32)


def saved(path: Path, values: np.ndarray, spacing: Sequence[float]) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, np.diag([*spacing, 1.0])), path)
    return path


def voxels(path: str | Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


# ---- configs


def test_the_bundles_share_a_file() -> None:
    """Each has its own, since it is to run without the other."""
    other = ROOT.parent / "mri_enhancement" / "mri_enhancement" / "cosines.py"
    assert (ROOT / "mri_super_resolution" / "cosines.py").read_text() == other.read_text()


def test_the_network_takes_and_gives_what_the_metadata_says() -> None:
    bundled.verify_network(ROOT)


def test_the_configs_agree_and_the_weights_will_be_small() -> None:
    bundled.configs_agree(ROOT, "network_def", "channels", "given", "thick")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thick_slices_are_turned_to_the_last_axis_and_back(axis: int) -> None:
    """In training they lie there, so that the network knows where detail is missing; whatever the scan's own axes."""
    image = torch.zeros(1, 4, 20, 24, 28)
    image[:, 0] = torch.rand(20, 24, 28)
    image[:, 1 + axis] = 2.0
    told: list[torch.Tensor] = []

    def network(given: torch.Tensor) -> torch.Tensor:
        told.append(given)
        return given[:, :1]

    found = built("inference").get_parsed_content("inferer")(image, network)
    torch.testing.assert_close(found, image[:, :1])
    (given,) = told
    assert given.shape[1] == 3
    assert not any(n % 8 for n in given.shape[2:])
    assert given.shape[4] >= image.shape[2 + axis]
    assert [float(given[0, c].max()) for c in (1, 2)] == [2.0, 0.0]
    back = built("train").get_parsed_content("inferer")(image, network)
    assert torch.equal(back, image[:, :1])


def test_air_does_not_go_through_the_network() -> None:
    """What it finds in the head is what it would find in the whole, in its place."""
    image = 0.02 * torch.rand(1, 3, 96, 104, 88)
    image[:, :1, 40:56, 48:64, 16:40] = 0.5 + torch.rand(1, 1, 16, 16, 24)
    given: list[tuple[int, ...]] = []

    def network(part: torch.Tensor) -> torch.Tensor:
        given.append(tuple(part.shape[2:]))
        return 2 * part[:, :1]

    refined = importlib.import_module("mri_super_resolution").refined
    found = refined(image, network, 144)
    assert given == [(48, 48, 56)]
    inside = torch.zeros_like(image[:, :1], dtype=torch.bool)
    inside[..., 24:72, 32:80, 0:56] = True
    torch.testing.assert_close(found, torch.where(inside, 2 * image[:, :1], 0))
    assert not refined(torch.zeros(1, 3, 32, 32, 32), network, 144).any()


# ---- training pairs


def synthesis() -> Synthesis:
    table = LabelTable((0, 2, 500), (0, 1, 2), (0, 2, 0), {0: "background", 2: "brain"})
    ranges = Ranges(bias=0, noise=0, gamma=0, ghosting=0, salt_and_pepper=0)
    return Synthesis(table, (32, 32, 32), 1.0, ranges)


@pytest.mark.parametrize("seed", range(8))
def test_ways_to_scan(seed: int) -> None:
    random, scanner = Random(seed, CPU), Scanner()
    for _ in range(20):
        steps = random_acquisition((64, 60, 56), random, scanner).steps
        assert steps[0] == steps[1] <= steps[2]
        assert 1 <= steps[0] <= scanner.voxels[1] + 0.5
        assert steps[2] <= scanner.thickness[1]


def test_a_pair_is_what_was_scanned_and_what_it_lacks() -> None:
    clean = torch.rand(1, 32, 32, 32)
    scanner = Scanner(slices=1.0, thickness=(4.0, 4.0), coarse=0.0, whole=1.0, width=(1.0, 1.0), none=1.0)
    seen, lacking, steps = scanned(clean, 1.0, Random(0, CPU), scanner)
    assert steps.tolist() == [1.0, 1.0, 4.0]
    unit = float((clean / (seen + lacking)).median())
    torch.testing.assert_close(unit * (seen + lacking), clean, atol=1e-4, rtol=1e-4)
    assert float(seen.std()) < float(clean.std()) / unit
    noisy = scanned(clean, 1.0, Random(0, CPU), Scanner(none=0.0, noise=(0.2, 0.2)))
    assert float(noisy[1].std()) > 0.1


@pytest.mark.parametrize("kind", ["labels", "scan"])
def test_pairs_depend_on_the_seed_alone(kind: str) -> None:
    source = torch.zeros(1, 40, 40, 40)
    source[:, 8:32, 8:32, 8:32] = 2 if kind == "labels" else 0.7
    transform = ScanImaged("source", synthesis(), [Scanner(), Scanner(slices=0.0, voxels=(2.0, 2.0), whole=1.0)])
    pairs = []
    for seed in (1, 1, 2):
        transform.set_random_state(seed)
        pairs.append(transform({"source": source, "kind": kind}))
    assert pairs[0]["image"].shape == (4, 32, 32, 32)
    assert pairs[0]["label"].shape == (1, 32, 32, 32)
    assert torch.equal(pairs[0]["image"], pairs[1]["image"])
    assert torch.equal(pairs[0]["label"], pairs[1]["label"])
    assert not torch.equal(pairs[0]["image"], pairs[2]["image"])
    other = transform({"source": source, "kind": kind, "variant": 1})["image"]
    assert other[1:].unique().tolist() == [1.0]


# ---- training


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A datalist of label maps of a head and a scan, and the tables of the labels."""
    folder = bundled.write_sources(tmp_path / "sources")
    saved(folder / "scan.nii.gz", head((44, 40, 36)), (1, 1, 1))
    return folder


def train(*arguments: object, **changes: object) -> Path:
    small = {"epoch_length": 2, "shape": [32, 32, 32], "spacing": 4.0, "field_of_view": None} | SMALL | changes
    done = run_medkit(["train", "sr", "--bundle", str(ROOT), "--trust", *map(str, arguments), *bundled.as_sets(small),
                       "--precision", "float32"])  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.mark.slow
@pytest.mark.parametrize("config", sorted({p.stem for p in (ROOT / "configs").iterdir()} - {"metadata", "inference"}))
def test_every_config_trains(sources: Path, tmp_path: Path, config: str) -> None:
    name = config if config == "train" else f"train,{config}"
    made = train("--config", name, "--data", sources / "sources.json", "--steps", 4, "-o", tmp_path / "out")
    before = built(*name.split(","), **SMALL).get_parsed_content("network_def").state_dict()
    after = torch.load(made / "models" / "model.pt", weights_only=True)
    assert {k: v.shape for k, v in after.items()} == {k: v.shape for k, v in before.items()}
    assert (made / "training" / "log.csv").read_text().count("\n") >= 3


@pytest.mark.slow
def test_one_epoch_under_monai(sources: Path) -> None:
    maps = f"$[{{'source': '{sources}/map_0.nii.gz', 'kind': 'labels'}}]"
    changes = SMALL | {"dataset_dir": sources, "device": "cpu", "shape": [32, 32, 32], "train_datalist": maps,
                       "steps": 2, "epoch_length": 2, "val_datalist": maps}  # fmt: skip
    arguments = bundled.as_arguments(changes)
    bundled.monai_bundle(ROOT, "run", "--config_file", "configs/train.json", *arguments)


# ---- inference


@pytest.mark.slow
def test_inference_under_monai_is_that_of_medkit(sr: Callable[..., Outcome], tmp_path: Path) -> None:
    root = weighted(tmp_path / "bundle", scale=0.3)
    (tmp_path / "in").mkdir()
    source = saved(tmp_path / "in" / "a.nii.gz", head(), (1.0, 1.0, 2.0))
    given = {"dataset_dir": tmp_path / "in", "output_dir": tmp_path / "out", "device": "cpu"}
    bundled.monai_bundle(root, "run", "--config_file", "configs/inference.json", *bundled.as_arguments(given))
    (result,) = (tmp_path / "out").iterdir()
    done = sr(source, "--spacing", 1, "--bundle", root, "--precision", "float32")
    assert done.code == 0, done.err
    (record,) = done.records
    np.testing.assert_allclose(nibabel.load(result).affine, nibabel.load(record["path"]).affine, atol=1e-4)
    one, other = voxels(result), voxels(record["path"])
    inner = (slice(4, -4),) * 3
    # medkit corrects the result by the scan
    assert np.sqrt(np.mean((one - other)[inner] ** 2)) < 0.1 * 850
    assert np.corrcoef(one[inner].ravel(), other[inner].ravel())[0, 1] > 0.97


@pytest.fixture
def sr(toy: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Outcome]]:
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: object) -> Outcome:
        return toy("run", "sr", *arguments, "--trust", "--json", env={"TOY_PLUGINS": "medkit_sr"})

    return run


def test_the_plugin_adds_what_the_network_says(sr: Callable[..., Outcome], tmp_path: Path) -> None:
    """One that adds nothing leaves the B-spline; then what was scanned corrects it."""
    source = saved(tmp_path / "a.nii.gz", head(), (1.0, 1.0, 2.0))
    made = {}
    for name, scale in (("nothing", 0.0), ("much", 30.0)):
        done = sr(
            source, "--spacing", 1, "--bundle", weighted(tmp_path / name, scale=scale), "-o", tmp_path / f"o{name}"
        )
        assert done.code == 0, done.err
        (record,) = done.records
        assert record["medkit"]["superresolution"]["method"] == "network"
        assert record["medkit"]["choice"]["weights_sha256"]
        made[name] = voxels(record["path"])
    done = sr(source, "--spacing", 1, "--method", "backprojection", "-o", tmp_path / "o")
    without = voxels(done.records[0]["path"])
    near, far = (float(np.sqrt(np.mean((made[name] - without) ** 2))) for name in ("nothing", "much"))
    assert near < 10 < far


def test_no_network_of_mr_touches_a_ct_or_a_plane(sr: Callable[..., Outcome], tmp_path: Path) -> None:
    root = weighted(tmp_path / "bundle")
    ct = saved(tmp_path / "ct.nii.gz", np.where(head() > 0, head() / 10, -1000), (1, 1, 2))
    plane = saved(tmp_path / "plane.nii.gz", head()[:, :, 12], (1, 1, 1))
    for path, words in ((ct, "no network takes volumes of CT"), (plane, "no network takes planes")):
        done = sr(path, "--scale", 2, "--bundle", root)
        assert (done.code, words in done.err) == (3, True), done.err


def test_far_beyond_what_was_trained_is_a_warning(sr: Callable[..., Outcome], tmp_path: Path) -> None:
    source = saved(tmp_path / "a.nii.gz", head((24, 24, 12)), (1.0, 1.0, 8.0))
    done = sr(source, "--spacing", 1, "--bundle", weighted(tmp_path / "bundle"))
    assert any("trained on up to 6.4" in warning for warning in done.records[0]["medkit"]["warnings"])
