"""Names of files: suffixes, stems, sidecars, BIDS names, and the kind of file that a name suggests.

Only `is_file_name` looks at the disk, to see whether a path is a folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".ima")
"""Image files that medkit reads, besides `GREY_PICTURES`; longest first if one ends in another."""
ANALYZE_SUFFIXES = (".hdr", ".img")
"""Pairs of files that medkit does not read; their names are known so that an error can explain it."""
WRITABLE_IMAGES = (".nii.gz", ".nii", ".mgz", ".mgh", ".nrrd", ".mha", ".png", ".jpg", ".jpeg")
"""Image files that medkit writes: single files, so that one rename puts an image in place."""
TRANSFORM_SUFFIXES = (".tfm", ".txt", ".mat", ".h5", ".hdf5", ".xfm", ".lta")
"""Files that can only hold transforms."""
FIELD_SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr")
"""Image files that may hold a displacement field."""
H5_SUFFIXES = (".h5", ".hdf5")
"""ITK's form for any transform, ANTs' for composite ones."""
REGISTER_DAT = ".dat"
"""FreeSurfer's `register.dat`, which has a meaning only together with its two images (`medkit transform convert`)."""
MARKUP_SUFFIXES = (".mrk.json", ".fcsv")
"""3D Slicer's files of points; tables may hold points as well."""
TABLE_SUFFIXES = (".tsv", ".csv")
"""Tables, separated by tabs or commas."""
POLYGON_SUFFIXES = (".json",)
"""Files of polygons. Sidecars end in it too, but lie next to a file of the same stem and are no inputs themselves."""
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
"""Pictures; medkit reads those of `GREY_PICTURES`, bundles for pictures may read others."""
GREY_PICTURES = (".png", ".jpg", ".jpeg")
"""Pictures that medkit reads and writes as images of one plane, 8 or 16 bits of grey."""
KNOWN_SUFFIXES = (
    *(*IMAGE_SUFFIXES, *ANALYZE_SUFFIXES, *TRANSFORM_SUFFIXES, REGISTER_DAT),
    *(*MARKUP_SUFFIXES, *POLYGON_SUFFIXES, *TABLE_SUFFIXES, *PICTURE_SUFFIXES),
)
"""Everything that counts as a file's suffix; the rest of a name is its stem."""

LABEL_WORDS = "dseg|seg|segmentations?|aseg|wmparc|parc|parcellation|ribbon|labels?|labelmap"
"""Regular expression: last words of the names of label images, other than masks."""
LABEL_FOLDER = "labels(tr|ts|va|val)?"
"""Regular expression: folders of label images, such as nnU-Net's and the Decathlon's labelsTr."""

_BIDS_ORDER = (
    "sub ses sample task tracksys acq nuc voi ce trc stain rec dir run mod echo flip inv mt part proc hemi from to "
    "mode space split recording chunk seg res den label desc"
)
_ENTITY = re.compile(r"[A-Za-z]+-[A-Za-z0-9+]+")
_SERIES = re.compile(r"(.+?)/?#series=([^/#]+)", re.DOTALL)
_ZIP = ".zip"


def suffix_of(path: Path) -> str:
    """Return the known suffix of a file's name (`.nii.gz`, `.tfm`, ...), or an empty string.

    >>> suffix_of(Path("a/sub.01.NII.gz"))
    '.NII.gz'
    """
    name = path.name
    return next((name[-len(s) :] for s in KNOWN_SUFFIXES if name.lower().endswith(s) and len(name) > len(s)), "")


def stem(path: Path) -> str:
    """Return a name without its known suffix; all else is kept, so that different names rarely become equal.

    >>> stem(Path("a/sub.01.nii.gz")), stem(Path("b/series_3"))
    ('sub.01', 'series_3')
    """
    if named := split_series(path):
        place, label = named
        return f"{place.stem if place.suffix.lower() == _ZIP else place.name}_{label}"
    suffix = suffix_of(path)
    return path.name[: len(path.name) - len(suffix)]


def split_series(path: Path) -> tuple[Path, str] | None:
    """Return place and label of a path to one DICOM series of several; None for other paths.

    >>> split_series(Path("scans/study#series=12"))
    (PosixPath('scans/study'), '12')
    >>> stem(Path("scans/study.zip#series=12"))
    'study_12'
    """
    match = _SERIES.fullmatch(str(path))
    return (Path(match[1]), match[2]) if match else None


def join_series(place: Path, label: str) -> Path:
    """Return the path to one DICOM series of those in a folder or zip and below; the opposite of `split_series`."""
    return place.with_name(f"{place.name}#series={label}")


def sidecar_path(path: Path) -> Path:
    """Return where the record of a main output lies.

    >>> sidecar_path(Path("x.nii.gz")).name
    'x.json'
    """
    return path.with_name(stem(path) + ".json")


def shard_file(path: Path, shard: tuple[int, int]) -> Path:
    """Return the name that one of N shards uses in place of a file which all of them would write.

    >>> shard_file(Path("failed.txt"), (2, 8)).name, shard_file(Path("all.tsv"), (2, 8)).name
    ('failed.txt.2-of-8', 'all.2-of-8.tsv')
    """
    k, n = shard
    is_table = path.suffix.lower() in TABLE_SUFFIXES
    return path.with_name(f"{path.stem}.{k}-of-{n}{path.suffix}" if is_table else f"{path.name}.{k}-of-{n}")


def is_bids(path: Path) -> bool:
    """Return whether a name follows BIDS: `sub-<label>[_<entity>-<label>...]_<suffix>`."""
    *entities, suffix = stem(path).split("_")
    return (
        split_series(path) is None
        and bool(entities)
        and entities[0].startswith("sub-")
        and suffix.isalnum()
        and all(map(_ENTITY.fullmatch, entities))
    )


def split_bids(path: Path) -> tuple[dict[str, str], str]:
    """Return the entities and the suffix of a BIDS name.

    >>> split_bids(Path("sub-01_ses-2_T1w.nii.gz"))
    ({'sub': '01', 'ses': '2'}, 'T1w')
    """
    *entities, suffix = stem(path).split("_")
    pairs = (entity.partition("-") for entity in entities)
    return {key: value for key, _, value in pairs}, suffix


def join_bids(entities: Mapping[str, str], suffix: str) -> str:
    """Return a BIDS stem with its entities in the order of the specification (BIDS 1.10, appendix Entity table)."""
    order = _BIDS_ORDER.split()
    known = [k for k in order if k in entities]
    unknown = [k for k in entities if k not in order]
    return "_".join([f"{k}-{entities[k]}" for k in known + unknown] + [suffix])


def space_label(reference: Path, moving: Path | None = None) -> str:
    """Return the `space-` or `to-` label for a reference image.

    It is the template's name for `tpl-X`, the image type (`T1w`) for another type of scan of the moving image's own
    subject, else the letters and digits of the reference's stem: two runs of one type must not both be `T1w`.
    """
    if moving and is_bids(moving) and is_bids(reference) and _subject(moving) == _subject(reference):
        label = split_bids(reference)[1]
        if label != split_bids(moving)[1]:
            return label
    first = reference.name.split("_")[0]
    if first.startswith("tpl-"):
        return first[4:]
    return re.sub(r"[^A-Za-z0-9]", "", stem(reference)) or "reference"


def _subject(path: Path) -> tuple[str | None, str | None]:
    entities, _ = split_bids(path)
    return entities.get("sub"), entities.get("ses")


def bids_root(path: Path) -> Path | None:
    """Return the dataset's folder of a BIDS file; None if the file does not lie below its `sub-<label>` folder."""
    subject = f"sub-{split_bids(path)[0]['sub']}"
    return next((folder.parent for folder in path.parents if folder.name == subject), None)


def kind_of_name(path: Path) -> str:
    """Return the kind of file that a name suggests, for files without a sidecar.

    >>> kind_of_name(Path("aparc+aseg.mgz")), kind_of_name(Path("labelsTr/case_001.nii.gz"))
    ('labels', 'labels')
    """
    suffix = suffix_of(path).lower()
    if suffix in (*TRANSFORM_SUFFIXES, REGISTER_DAT):
        return "transform"
    if suffix in MARKUP_SUFFIXES:
        return "points"
    if suffix in TABLE_SUFFIXES:
        return "table"
    last = re.split(r"[_.+]", stem(path).lower())[-1]
    if last == "mask":
        return "mask"
    if last in ("xfm", "transform"):
        return "transform"
    in_folder = suffix in IMAGE_SUFFIXES and re.fullmatch(LABEL_FOLDER, path.parent.name.lower())
    return "labels" if in_folder or re.fullmatch(LABEL_WORDS, last) else "image"


def is_file_name(output: Path) -> bool:
    """Return whether -o names one file: it ends in a known suffix and is not a folder."""
    return bool(suffix_of(output)) and not output.is_dir()
