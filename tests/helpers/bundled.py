"""What the tests of the bundles of this distribution share: configs read, and MONAI called as its users call it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel
import numpy as np
from monai.bundle import ConfigParser, verify_net_in_out


def built(root: Path, *names: str, **changes: object) -> ConfigParser:
    """A config of a bundle, and what is laid over it."""
    parser = ConfigParser()
    parser.read_config([str(root / "configs" / f"{name}.json") for name in names])
    for key, value in changes.items():
        parser[key] = value
    return parser


def monai_bundle(root: Path, *arguments: str) -> None:
    """`python -m monai.bundle` in a process of its own, in the bundle's folder."""
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", *arguments], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def as_arguments(values: Mapping[str, object]) -> Sequence[str]:
    """`--key value` for each."""
    return [part for key, value in values.items() for part in (f"--{key}", str(value))]


def verify_network(root: Path) -> None:
    """The network takes and gives what the metadata says."""
    verify_net_in_out(
        "network_def",
        meta_file=str(root / "configs" / "metadata.json"),
        config_file=str(root / "configs" / "inference.json"),
        device="cpu",
        bundle_root=str(root),
    )


def configs_agree(root: Path, *ids: str) -> None:
    """Training and inference say the same under `ids`, and the network's half-precision weights are under 5 MB."""
    one, other = built(root, "train"), built(root, "inference")
    for name in ids:
        assert one.get(name) == other.get(name), name
    network = other.get_parsed_content("network_def")
    count = sum(p.numel() for p in {id(p): p for p in network.parameters()}.values())
    assert 2 * count < 4_900_000


def as_sets(values: Mapping[str, object]) -> list[str]:
    """`--set key=value` for each."""
    return [word for key, value in values.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def write_sources(folder: Path) -> Path:
    """Two label maps of a head, the tables of the labels, and datalists: of these and a `scan.nii.gz`, and of these."""
    folder.mkdir()
    rows = ["0\t0\t0\tbackground", "2\t1\t2\tleft brain", "41\t1\t41\tright brain", "502\t2\t0\tbackground"]
    (folder / "labels.tsv").write_text("\n".join(["index\tintensity_class\ttarget\ttarget_name", *rows]) + "\n")
    priors = [f"{row.split()[0]}\t{n}\t{60 * n}\t5\t5\t2" for n, row in enumerate(rows)]
    (folder / "t1_priors.tsv").write_text("\n".join(["index\tt1_class\tmean\tmean_sd\tstd\tstd_sd", *priors]) + "\n")
    for n in range(2):
        labels = np.zeros((40, 40, 40), np.uint16)
        labels[3:37, 3:37, 3 + n : 37] = 502
        labels[6:20, 6:34, 6 + n : 34], labels[20:34, 6:34, 6 + n : 34] = 2, 41
        nibabel.save(nibabel.Nifti1Image(labels, np.diag([4.0, 4, 4, 1])), folder / f"map_{n}.nii.gz")
    maps = [{"source": f"map_{n}.nii.gz", "kind": "labels"} for n in range(2)]
    scan = {"source": "scan.nii.gz", "kind": "scan"}
    (folder / "sources.json").write_text(json.dumps({"training": [maps[0], scan], "validation": [maps[1], scan]}))
    (folder / "maps.json").write_text(json.dumps({"training": maps[:1], "validation": maps[1:]}))
    return folder
