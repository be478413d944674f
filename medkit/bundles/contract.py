"""What a bundle takes and returns, read from its metadata and its config as data: nothing is executed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from medkit.bundles.bundle import Bundle
from medkit.bundles.config import class_name, walk
from medkit.bundles.keys import keys_of, loaded, saved, sources, transforms
from medkit.bundles.layers import read_configs, value_at
from medkit.bundles.places import preprocessing_of
from medkit.errors import BundleError, listed

OutputKind = Literal["labels", "image", "table", "boxes", "points"]
SUFFIX: Mapping[OutputKind, str] = {
    "labels": "dseg", "image": "pred", "table": "class", "boxes": "boxes", "points": "points",
}  # fmt: skip
"""Kind of output -> what is added to an input's stem."""
PLACES = ("boxes", "points")
"""Kinds of output that are places in the body instead of values on a grid."""
_BOXES = {"object", "dict", "box", "boxes", "detection"}
"""Types and formats of outputs that are boxes around what was found."""
_HEATMAPS = {"heatmap", "heatmaps"}
"""Types and formats of outputs that show a landmark in each channel, at the peak."""
_POINTS = {"tuples", "points", "landmarks", "coordinates", *_HEATMAPS}
"""Types and formats of outputs that are landmarks."""
_NO_INPUT = {"noise": "noise", "latent": "random numbers", "timesteps": "noise"}
"""Types of input that are not images, which networks that generate images take -> what they are."""
_LABELS = {
    "segmentation", "segmentations", "seg", "label", "labels", "labelmap", "labelmaps", "mask", "masks",
    "classification", "onehot", "multiclass", "multilabel", "binary", "binarymask", "discrete", "regions", "instances",
}  # fmt: skip
"""Formats of outputs that are labels, as authors write them, in the form that `_word` returns."""
_IMAGES = {"magnitude", "hounsfield", "kspace", "raw", "rgb", "gray", "grey", "image", "regression", "probabilities"}
"""Formats of outputs that are images."""
NO_IMAGES = {"label", "labels", "mask", "seg"}
"""Keys of training data that are not images; inference does not need them unless another transform reads them."""
_CLICKS = "AddClickSignals"
"""MONAI's transform for networks that the user points to a place; without clicks it fails."""


@dataclass(frozen=True)
class Contract:
    """The files that a bundle takes and those that it returns."""

    kind: OutputKind
    results: tuple[str, ...]
    """Keys of MONAI's dictionary that hold results, the main one first."""
    keys: tuple[str, ...]
    """Keys under which images are loaded, the main one first."""
    optional: tuple[str, ...]
    """Those of `keys` that a case need not have."""
    channels: tuple[str, ...]
    """Names of the input's channels, such as `t1`, each of which may be a separate file; empty without names."""
    classes: Mapping[int, str]
    """Channel of the output -> name of its class."""
    planar: bool
    """Whether the network works on 2D slices."""
    aspects: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Independent questions that a classifier answers, such as contrast and usability -> the channels of their classes;
    empty if all classes exclude each other."""
    kinds: Mapping[str, OutputKind] = field(default_factory=dict)
    """Key of a result -> what it is, for those besides the main one."""
    suffixes: Mapping[str, str] = field(default_factory=dict)
    """Key of a result -> what is added to an input's stem, for those besides the main one."""
    named_channels: bool = True
    """Whether the names in `channels` are the metadata's; else they are numbers."""
    multiple: int = 0
    """The input's sizes are multiples of this number of voxels, by the metadata; 0 if they do not state one."""
    numbers: bool = False
    """Whether `classes` are the numbers of labels in one channel, instead of channels."""
    heatmaps: bool = False
    """Whether landmarks are the peaks of channels, instead of coordinates."""

    @property
    def accepts(self) -> tuple[str, ...]:
        """Roles under which a record may name further files besides its own path."""
        more = self.channels if len(self.channels) > 1 else ()
        return tuple(dict.fromkeys([*self.keys[1:], *more]))


def contract_of(bundle: Bundle) -> Contract:
    """Return what a bundle takes and returns. Raises BundleError, with the reason, if medkit cannot run the bundle."""
    given, made = _described(bundle)
    content = read_configs(bundle)
    if any(class_name(node).startswith(_CLICKS) for _, node in walk(content)):
        raise BundleError(
            f"bundle {bundle.name}: needs a user who clicks ({_CLICKS}): medkit has only images, and would need a "
            f"window to click in, as MONAI Label has"
        )
    _require_images(bundle, content)
    keys = loaded(content, preprocessing_of(content)) or ("image",)
    classes = _names_of(made.get("channel_def")) or _names_of(made.get("label_def"))
    kind = _kind(bundle, made, content)
    endings = (saved(content, keys) if kind not in PLACES else {}) or {"pred": ""}
    main, *more = endings
    # facts that come with an image are a channel too, but not one that a file has
    channels = _channels(given) if len(keys) == 1 and "context" not in bundle.block else ()
    return Contract(
        kind=kind,
        results=tuple(endings),
        keys=keys,
        optional=tuple(key for key in keys[1:] if key in NO_IMAGES and key not in sources(content)),
        channels=channels or (_numbered(given) if len(keys) == 1 and "context" not in bundle.block else ()),
        classes=classes,
        planar=len(given.get("spatial_shape") or ()) == 2,
        aspects=_aspects(bundle, classes),
        kinds={key: kind if main != "pred" else _kind_of_key(bundle, key, content) for key in more},
        suffixes=_suffixes(more, endings, SUFFIX[kind]),
        named_channels=bool(channels),
        multiple=max((int(n) for n in re.findall(r"(\d+)\s*\*", str(given.get("spatial_shape")))), default=0),
        numbers=_count(made) == 1 and len(classes) > 1,
        heatmaps=kind == "points" and not _HEATMAPS.isdisjoint(_words(made)),
    )


def kind_of_output(bundle: Bundle) -> OutputKind | None:
    """Return what a bundle returns; None if medkit cannot run it."""
    try:
        return contract_of(bundle).kind
    except BundleError:
        return None


def _described(bundle: Bundle) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the metadata's description of the network's input and output. Raises BundleError if there is no image."""
    formats = bundle.metadata.get("network_data_format")
    formats = formats if isinstance(formats, Mapping) else {}
    inputs, outputs = formats.get("inputs") or {}, formats.get("outputs") or {}
    others = [key.removesuffix("_data_format") for key in bundle.metadata if key.endswith("_data_format")]
    if (not inputs or not outputs) and (networks := [name for name in others if name != "network"]):
        raise BundleError(
            f"bundle {bundle.name}: generates images by several networks ({listed(networks)}): it takes no image, and "
            f"medkit would need a task without inputs; python -m monai.bundle run makes them"
        )
    if not inputs or not outputs:
        raise BundleError(f"bundle {bundle.name}: its metadata do not describe its inputs and outputs")
    given = inputs.get("image") or next(iter(inputs.values()))
    for tensor in (given, *inputs.values()):
        words = [word for key in ("type", "format") if (word := _word(tensor.get(key))) in _NO_INPUT]
        if words:
            raise BundleError(
                f"bundle {bundle.name}: makes images from {_NO_INPUT[words[0]]}: it takes no image, and medkit would "
                f"need a task without inputs; python -m monai.bundle run makes them"
            )
    return given, outputs.get("pred") or next(iter(outputs.values()))


def _require_images(bundle: Bundle, content: Mapping[str, Any]) -> None:
    """Raise BundleError if the transforms before the network are all known, and none of them loads an image."""
    slides = [class_name(node) for _, node in walk(content) if "WSI" in class_name(node)]
    if slides:
        raise BundleError(
            f"bundle {bundle.name}: works on whole slides ({slides[0]}), for which medkit would need a reader, such as "
            f"OpenSlide, and a result for each patch; python -m monai.bundle run reads them"
        )
    name = preprocessing_of(content)
    if name is not None and any(
        len(list(_numbers_in(node.get("indices")))) > 3 for node in transforms(value_at(content, name), "Transpose")
    ):
        raise BundleError(
            f"bundle {bundle.name}: its preprocessing takes files of four axes (Transpose), such as planes over time: "
            f"medkit hands it single images, and would need to hand it all frames of a file at once"
        )
    if name is None or transforms(content, "LoadImage"):
        return
    parts = [(place, node) for place, node in walk(value_at(content, name))]
    nodes = [node for place, node in parts if len(place) > 0 and class_name(node)]
    hidden = any(isinstance(value, str) and value.startswith(("$", "@")) and len(place) < 3 for place, value in parts)
    loaders = [class_name(node) for node in nodes if class_name(node).startswith("Load")]
    if not hidden and nodes and not any("LoadImage" in str(value) for _, value in parts):
        other = f", but reads files by {loaders[0]}" if loaders else ""
        raise BundleError(
            f"bundle {bundle.name}: its preprocessing loads no image{other}: expected a LoadImaged, which medkit can "
            f"hand its images to"
        )


def _numbers_in(value: Any) -> Iterator[int]:
    return (part for part in value if isinstance(part, int)) if isinstance(value, list) else iter(())


def _names_of(stated: Any) -> dict[int, str]:
    """Return number -> name: from a list of names, or from an object, number -> name or name -> number."""
    if isinstance(stated, list):
        return {n: str(name) for n, name in enumerate(stated)}
    if not isinstance(stated, Mapping):
        return {}
    pairs = [(n, name) if str(n).isdigit() else (name, n) for n, name in stated.items()]
    return {int(n): str(name) for n, name in pairs if str(n).isdigit()}


def _aspects(bundle: Bundle, classes: Mapping[int, str]) -> dict[str, tuple[int, ...]]:
    """Return aspect -> channels of its classes, from `medkit.aspects` in the metadata (aspect -> names of classes)."""
    stated = bundle.block.get("aspects") or {}
    numbers = {name: n for n, name in classes.items()}
    named = [name for names in stated.values() for name in names]
    if stated and sorted(named) != sorted(numbers):
        raise BundleError(
            f"bundle {bundle.name}: expected each class in one of its aspects: {', '.join(numbers)}; "
            f"got {', '.join(map(str, named))}"
        )
    return {str(aspect): tuple(numbers[name] for name in names) for aspect, names in stated.items()}


def _kind(bundle: Bundle, made: Mapping[str, Any], content: Any) -> OutputKind:
    what, form = _words(made)
    if not _POINTS.isdisjoint((what, form)):
        return "points"
    if not _BOXES.isdisjoint((what, form)):
        return "boxes"
    if form in ("classes", "classification", "labels") and not _has_place(made):
        return "table"
    if form in _LABELS or what in _LABELS:
        return "labels"
    discrete = form not in _IMAGES and "pred" in _discrete(content)
    return "labels" if discrete and _has_place(made) else "image"


def _kind_of_key(bundle: Bundle, key: str, content: Any) -> OutputKind:
    """Return what a result besides the main one is: as the metadata state, or by the transforms that make it."""
    outputs = (bundle.metadata.get("network_data_format") or {}).get("outputs") or {}
    if isinstance(stated := outputs.get(key), Mapping):
        if (kind := _kind(bundle, stated, content)) in PLACES:
            raise BundleError(f"bundle {bundle.name}: finds {kind} besides other results; medkit writes either of them")
        return kind
    return "labels" if key in _discrete(content) else "image"


def _discrete(content: Any) -> set[str]:
    """Return the keys whose values are made labels of: by the largest channel, by a threshold, or by rounding."""
    return set(keys_of(content, "AsDiscrete"))


def _suffixes(keys: list[str], endings: Mapping[str, str], main: str) -> dict[str, str]:
    """Return key -> the ending that the bundle gives its files, or the key if that does not tell files apart."""
    found = {key: "".join(c for c in endings[key] if c.isalnum()) for key in keys}
    taken = [main, "probseg", *(ending for key, ending in endings.items() if key not in keys), *found.values()]
    return {
        key: text if text and taken.count(text) == 1 else "".join(c for c in key if c.isalnum())
        for key, text in found.items()
    }


def _word(value: Any) -> str:
    """Return a word of the metadata in lower case, without hyphens and underscores."""
    return re.sub(r"[-_\s]", "", str(value or "")).lower()


def _words(made: Mapping[str, Any]) -> tuple[str, str]:
    """Return the type and the format that metadata state of an output."""
    return _word(made.get("type")), _word(made.get("format"))


def _has_place(made: Mapping[str, Any]) -> bool:
    """Return whether an output has spatial axes; metadata describe a classifier's as (1, classes)."""
    shape = list(made.get("spatial_shape") or ())
    return bool(shape) and shape not in ([1, made.get("num_channels")], [1, 1], [1], [made.get("num_channels")])


def _count(tensor: Mapping[str, Any]) -> int:
    stated = tensor.get("num_channels")
    return int(str(stated)) if str(stated).isdigit() else 1


def _numbered(given: Mapping[str, Any]) -> tuple[str, ...]:
    """Return names for channels without names; none for one channel, and for the colours of a picture."""
    count = _count(given)
    colours = {_word(given.get("type")), _word(given.get("format"))} & {"rgb", "png"}
    picture = len(given.get("spatial_shape") or ()) == 2 and count in (3, 4)
    return tuple(f"channel_{n}" for n in range(count)) if count > 1 and not (colours or picture) else ()


def _channels(given: Mapping[str, Any]) -> tuple[str, ...]:
    count, names = _count(given), given.get("channel_def")
    texts = list(names.values()) if isinstance(names, Mapping) else names if isinstance(names, list) else []
    slugs = [re.sub(r"[^a-z0-9]+", "_", str(name).lower()).strip("_").removesuffix("_image") for name in texts]
    return tuple(slugs) if len(set(slugs)) == count else ()
