"""What the tests of the bundles of this distribution share: configs read, and MONAI called as its users call it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

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
