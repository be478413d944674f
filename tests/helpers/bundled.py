"""Helpers for the tests of this distribution's bundles: read configs, call MONAI as its users call it."""

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
    """Return a parser of a bundle's configs, with ids replaced by `changes`."""
    parser = ConfigParser()
    parser.read_config([str(root / "configs" / f"{name}.json") for name in names])
    for key, value in changes.items():
        parser[key] = value
    return parser


def monai_bundle(root: Path, *arguments: str) -> None:
    """Run `python -m monai.bundle` in a new process, in the bundle's folder."""
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", *arguments], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def as_arguments(values: Mapping[str, object]) -> Sequence[str]:
    """Return `--key value` for each."""
    return [part for key, value in values.items() for part in (f"--{key}", str(value))]


def verify_network(root: Path) -> None:
    """Check that the network's inputs and outputs are as the metadata states."""
    verify_net_in_out(
        "network_def",
        meta_file=str(root / "configs" / "metadata.json"),
        config_file=str(root / "configs" / "inference.json"),
        device="cpu",
        bundle_root=str(root),
    )


def configs_agree(root: Path, *ids: str) -> None:
    """Check that training and inference agree under `ids`, and that the half-precision weights are under 5 MB."""
    train, inference = built(root, "train"), built(root, "inference")
    for name in ids:
        assert train.get(name) == inference.get(name), name
    network = inference.get_parsed_content("network_def")
    count = sum(p.numel() for p in {id(p): p for p in network.parameters()}.values())
    assert 2 * count < 4_900_000


def as_sets(values: Mapping[str, object]) -> list[str]:
    """Return `--set key=value` for each."""
    return [word for key, value in values.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def write_sources(folder: Path) -> Path:
    """Write two label maps of a head, tables of their labels, and datalists: with and without a `scan.nii.gz`."""
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
    (folder / "sources.json").write_text(json.dumps({"training": [maps[0], scan], "validation": maps[1:]}))
    (folder / "maps.json").write_text(json.dumps({"training": maps[:1], "validation": maps[1:]}))
    return folder
