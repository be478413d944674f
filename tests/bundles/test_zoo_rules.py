"""What MONAI's model zoo asks of a bundle, and that the bundles of this distribution have all of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from places import REPOSITORY
from strangers import change_json, write_sound

from medkit.bundles.config import read_data
from medkit.bundles.verify import OK, READ, check_files
from medkit.bundles.zoo_rules import LARGEST, zoo_notes

BUNDLES = sorted(path for path in (REPOSITORY / "bundles").iterdir() if (path / "configs").is_dir())


@pytest.mark.parametrize("root", BUNDLES, ids=lambda path: path.name)
def test_the_bundles_of_this_distribution(root: Path) -> None:
    assert list(zoo_notes(root)) == []
    for name in READ:
        assert check_files(name, root).status == OK, check_files(name, root).messages
    metadata = json.loads((root / "configs" / "metadata.json").read_bytes())
    for key in ("intended_use", "limits", "eval_metrics", "data_source", "references", "copyright", "authors"):
        assert metadata.get(key), key
    assert len(metadata["intended_use"]) > len("Research. Not a medical device. "), "for whom?"
    assert all(isinstance(value, int | float) for value in metadata["eval_metrics"].values())
    assert next(iter(metadata["changelog"])) == metadata["version"], "the newest version comes first"
    assert "Apache License" in (root / "LICENSE").read_text()[:200]
    assert len((root / "docs" / "data_license.txt").read_text()) > 50
    assert "\n## Limits\n" in (root / "docs" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("root", BUNDLES, ids=lambda path: path.name)
def test_networks_take_their_weights(root: Path) -> None:
    """The zoo's last check, without the export, which `test_verify` covers: `network_def` takes models/model.pt."""
    import torch

    from medkit.bundles.checks.outcomes import outcome
    from medkit.bundles.checks.subject import CheckedBundle

    torch.set_num_threads(1)
    for name in ("properties", "weights"):
        status, messages = outcome(name, CheckedBundle(root))
        assert status == OK, (name, messages)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A bundle that has all."""
    made = write_sound(tmp_path / "halves")
    change_json(made / "configs" / "metadata.json", name="Halves", schema="https://nowhere/meta_schema.json")
    config = read_data((made / "configs" / "train.json").read_bytes(), "train.json")
    config["val_interval"] = 1
    config["output_dir"] = "."
    (made / "configs" / "train.json").write_text(json.dumps(config))
    assert list(zoo_notes(made)) == []
    return made


def large(*entries: dict[str, Any]) -> Callable[[Path], object]:
    return lambda root: (root / "large_files.yml").write_text(json.dumps({"large_files": list(entries)}))


def remove(name: str) -> Callable[[Path], object]:
    return lambda root: (root / name).unlink()


def without(config: str, *ids: str) -> Callable[[Path], object]:
    return lambda root: change_json(root / "configs" / f"{config}.json", **dict.fromkeys(ids))


LINK = "https://nowhere/model.pt"


@pytest.mark.parametrize(
    ("change", "notes"),
    [
        (remove("LICENSE"), ["no LICENSE"]),
        (remove("docs/README.md"), ["no docs/README.md"]),
        (remove("models/model.pt"), ["no models/model.pt, and no large_files.yml that says where it is"]),
        (remove("configs/inference.json"), ["no configs/inference.json, .yaml or .yml"]),
        (without("metadata", "name", "schema"), ["metadata: no name", "metadata: no schema"]),
        (
            without("inference", "network_def", "output_dir"),
            ["inference.json: no id network_def", "inference.json: no id output_dir"],
        ),
        (
            without("train", "device", "val_interval"),
            ["train.json: no id device", "train.json: no id val_interval"],
        ),
        (
            lambda root: change_json(root / "configs" / "train.json", validate={"dataset": {"_target_": "Dataset"}}),
            [f"train.json: no id validate::{key}" for key in ("evaluator", "handlers", "dataset::data")],
        ),
        (
            lambda root: (root / "models" / "big.pt").write_bytes(bytes(LARGEST + 1)),
            ["models/big.pt has 25 MB: files of more than 25 MB have to be in large_files.yml"],
        ),
        (large({"path": "models/model.ts"}), ["large_files.yml: expected large_files, a list of entries with path"]),
        (large({"path": "../x.pt", "url": LINK}), ["large_files.yml: ../x.pt leads out of the bundle"]),
        (large({"path": "models/x.pt", "url": "x.pt"}), ["large_files.yml: models/x.pt: x.pt is no link"]),
        (
            large({"path": "models/x.pt", "url": LINK, "hash_val": "00", "hash_type": "crc"}),
            ["large_files.yml: models/x.pt: hash_type crc: expected md5, sha1, sha256 and sha512"],
        ),
    ],
)
def test_what_is_missing_is_said(root: Path, change: Callable[[Path], object], notes: list[str]) -> None:
    change(root)
    found = list(zoo_notes(root))
    assert len(found) == len(notes), found
    assert all(line.startswith(note) for line, note in zip(found, notes, strict=True)), found
    check = check_files("zoo", root)
    assert check.status == OK, "what only the zoo asks for is no fault"
    assert check.messages[0] == f"MONAI's model zoo would ask for more: {found[0]}"


def test_weights_that_are_downloaded_may_be_absent(root: Path) -> None:
    (root / "models" / "model.pt").unlink()
    large({"path": "models/model.pt", "url": LINK, "hash_val": "", "hash_type": ""})(root)
    assert list(zoo_notes(root)) == []


def test_a_name_with_blanks(root: Path) -> None:
    assert "its name my bundle" in next(zoo_notes(root.rename(root.with_name("my bundle"))))
