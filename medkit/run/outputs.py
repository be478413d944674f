"""Where results go: names and folders of the files of a case."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medkit import __version__
from medkit.errors import OutputError, UsageError, listed
from medkit.pipe.atomic import write_atomically
from medkit.pipe.names import (
    GREY_PICTURES,
    WRITABLE_IMAGES,
    bids_root,
    is_bids,
    is_file_name,
    join_bids,
    kind_of_name,
    sidecar_path,
    space_label,
    split_bids,
    stem,
    suffix_of,
)
from medkit.pipe.records import read_sidecar

_BIDS_SUFFIX = {"labels": "dseg", "mask": "mask", "transform": "xfm"}


@dataclass(frozen=True)
class Output:
    """One file that a task makes for every case."""

    role: str
    """Its key in the record's `outputs`, such as `image` or `inverse_transform`."""
    kind: str
    """What it is: one of `medkit.specs.KINDS`."""
    suffix: str
    """What is added to the input's stem: `registered` makes `<stem>_registered.nii.gz`."""
    extension: str = ".nii.gz"
    """Suffix of its file, such as `.nii.gz`."""
    entities: Mapping[str, str] = field(default_factory=dict)
    """BIDS entities added for BIDS-named inputs; in a value, `{suffix}` stands for the input's own suffix (`T1w`) and
    `{space}` for the label of `reference`. If empty: `desc-<suffix>`."""
    reference: Path | None = None
    """The image whose space the file is in or leads to, for `{space}`."""
    extensions: Sequence[str] = ()
    """Further suffixes its file may have: an input's own if it is among them, and any of them by `-o`."""
    bids_suffix: str = ""
    """Suffix of its BIDS name; if empty, that of its kind or `suffix`."""
    as_picture: bool = False
    """Whether the result for a grey picture (PNG, JPEG) is a PNG, whatever `extension` is."""

    def name(self, source: Path) -> str:
        """Return the file name for an input: a BIDS derivative name for a BIDS name, else `<stem>_<suffix><ext>`."""
        own = suffix_of(source).lower()
        extension = own if own in self.extensions else self.extension
        if self.as_picture and own in GREY_PICTURES:
            extension = ".png"
        if not is_bids(source):
            return f"{stem(source)}_{self.suffix}{extension}"
        entities, bids_suffix = split_bids(source)
        space = space_label(self.reference, source) if self.reference else ""
        added = {k: v.format(suffix=bids_suffix, space=space) for k, v in self.entities.items()}
        usual = _BIDS_SUFFIX.get(self.kind, bids_suffix if self.kind == "image" else self.suffix)
        suffix = self.bids_suffix or usual
        if not added and suffix != self.suffix:
            added = {"desc": "".join(c for c in self.suffix if c.isalnum())}
        if suffix != bids_suffix and not any("{suffix}" in value for value in self.entities.values()):
            added |= _told_apart(source, (entities | added).get("desc", ""))
        return join_bids(entities | added, suffix) + extension


def _told_apart(source: Path, description: str) -> dict[str, str]:
    """Return the entity that tells the results of a T2w image from those of the T1w image of the same session.

    The results of a T1w image have none. Others are described (`desc-`) by the suffix of their scan.
    """
    suffix = split_bids(source)[1]
    return {} if suffix == "T1w" or kind_of_name(source) != "image" else {"desc": description + suffix}


@dataclass(frozen=True)
class Targets:
    """Where the files of one case go."""

    outputs: Mapping[str, Path]
    """Role -> final path, absolute; the main output first."""
    table: Path | None = None
    """The file that takes the results of all cases as rows, if a case has no files of its own."""

    @property
    def main(self) -> Path:
        """The output that the pipe passes on."""
        return next(iter(self.outputs.values())) if self.table is None else self.table

    @property
    def sidecar(self) -> Path:
        """The file next to the main output that holds the record."""
        return sidecar_path(self.main)

    @property
    def names(self) -> tuple[Path, ...]:
        """All final paths that only this case has, the sidecar included."""
        return (*self.outputs.values(), self.sidecar) if self.table is None else ()


def targets_of(source: Path, outputs: Sequence[Output], output: Path | None, keep_tree: Path | None) -> Targets:
    """Return the final paths for one input.

    `output` is a file (for the main output; the others get names derived from it), a folder, or None for the input's
    own folder. Raises OutputError if the input does not lie below `keep_tree`.
    """
    if output is not None and is_file_name(output):
        return Targets({o.role: _derived(output, o, outputs[0]) for o in outputs})
    folder = _folder(source, output, keep_tree)
    return Targets({o.role: folder / o.name(source) for o in outputs})


def _derived(main: Path, output: Output, first: Output) -> Path:
    if output is not first:
        # a table that has the main output's name but for the extension keeps to it: `x_dseg.tsv`, so `result.tsv`
        more = "" if output.suffix == first.suffix and output.extension != first.extension else f"_{output.suffix}"
        return main.with_name(f"{stem(main)}{more}{output.extension}")
    allowed = WRITABLE_IMAGES if output.extension in WRITABLE_IMAGES else (output.extension,)
    allowed = tuple(dict.fromkeys([*allowed, *output.extensions]))
    if suffix_of(main).lower() not in allowed:
        raise UsageError(f"--output {main}: expected a name that ends in {listed(allowed, 'or')}")
    return main


def _folder(source: Path, output: Path | None, keep_tree: Path | None) -> Path:
    if output is None:
        return source.parent
    root = keep_tree or bids_folder(source)
    if root is None:
        return output
    if not source.is_relative_to(root):
        raise OutputError(f"{source}: does not lie below --keep-tree {root}")
    return output / source.parent.relative_to(root)


def bids_folder(source: Path) -> Path | None:
    """Return the folder below which results of a BIDS-named input mirror its folders; None for other names."""
    return bids_root(source) if is_bids(source) else None


def describe_dataset(folder: Path) -> None:
    """Write BIDS's `dataset_description.json` of a derivative dataset into `folder`, unless there is one."""
    path = folder / "dataset_description.json"
    if path.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "Name": "medkit derivatives",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "medkit", "Version": __version__}],
    }
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def refuse_inputs(targets: Targets, inputs: Iterable[Path]) -> None:
    """Raise OutputError if a result would replace an input of its own case, which not even --overwrite may do."""
    for path in inputs:
        for target in targets.names:
            if target == path or _same_file(target, path):
                raise OutputError(f"{target}: is an input of this case; choose another -o")
            if _same_file(target, sidecar_path(path)) and not _is_own_sidecar(target, targets):
                raise OutputError(f"{target}: is the sidecar of {path.name}, an input of this case; choose another -o")


def _is_own_sidecar(path: Path, targets: Targets) -> bool:
    """Return whether a sidecar is that of an earlier result: `x.json` of `x.tfm`, which was made from `x.mat`."""
    record = read_sidecar(path) if path == targets.sidecar else None
    return record is not None and record.path == targets.main


def _same_file(a: Path, b: Path) -> bool:
    return a.exists() and b.exists() and a.samefile(b)
