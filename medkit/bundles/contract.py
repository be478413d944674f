"""What a bundle takes and returns, read from its metadata and its config as data: nothing is executed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from medkit.bundles.bundle import Bundle
from medkit.bundles.config import class_name, read_config, walk
from medkit.errors import BundleError

OutputKind = Literal["labels", "image", "table"]
SUFFIX: Mapping[OutputKind, str] = {"labels": "dseg", "image": "pred", "table": "class"}
"""Kind of output -> what is added to an input's stem."""
_NO_FILE = {"dict": "boxes", "object": "boxes", "points": "points", "tuples": "points"}
"""Types of output that medkit writes no file of -> what they are."""
_NO_INPUT = {"noise", "latent", "timesteps"}
"""Types of input that are not images: networks that generate images take them."""
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

    @property
    def accepts(self) -> tuple[str, ...]:
        """Roles under which a record may name further files besides its own path."""
        more = self.channels if len(self.channels) > 1 else ()
        return tuple(dict.fromkeys([*self.keys[1:], *more]))


def contract_of(bundle: Bundle, config: str = "inference") -> Contract:
    """Return what a bundle takes and returns. Raises BundleError, with the reason, if medkit cannot run the bundle."""
    formats = bundle.metadata.get("network_data_format") or {}
    inputs, outputs = formats.get("inputs") or {}, formats.get("outputs") or {}
    if not inputs or not outputs:
        raise BundleError(f"bundle {bundle.name}: its metadata do not describe its inputs and outputs")
    given = inputs.get("image") or next(iter(inputs.values()))
    made = outputs.get("pred") or next(iter(outputs.values()))
    if _NO_INPUT & {given.get("type"), given.get("format")}:
        raise BundleError(
            f"bundle {bundle.name}: makes images from {given.get('type')}: there is no image to run it on"
        )
    content = read_config(bundle.config(config))
    if any(class_name(node).startswith(_CLICKS) for _, node in walk(content)):
        raise BundleError(f"bundle {bundle.name}: needs a user who clicks ({_CLICKS}); medkit has only images")
    keys = tuple(dict.fromkeys(_keys_of(content, "LoadImaged"))) or ("image",)
    classes = _names_of(made.get("channel_def")) or _names_of(made.get("label_def"))
    saved = [key for key in dict.fromkeys(_keys_of(content, "SaveImaged")) if key not in keys]
    return Contract(
        kind=_kind(bundle, made),
        results=("pred",) if "pred" in saved or not saved else tuple(saved),
        keys=keys,
        optional=tuple(key for key in keys[1:] if key in NO_IMAGES and key not in _sources(content)),
        # facts that come with an image are a channel too, but not one that a file has
        channels=_channels(given) if len(keys) == 1 and "context" not in bundle.block else (),
        classes=classes,
        planar=len(given.get("spatial_shape") or ()) == 2,
        aspects=_aspects(bundle, classes),
    )


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


def _kind(bundle: Bundle, made: Mapping[str, Any]) -> OutputKind:
    what, form = (_word(made.get(key)) for key in ("type", "format"))
    for word in (what, form):
        if word in _NO_FILE:
            raise BundleError(f"bundle {bundle.name}: finds {_NO_FILE[word]}, which medkit cannot write to a file")
    if form in ("classes", "classification") and not _has_place(made):
        return "table"
    if form == "labels" and not _has_place(made):
        return "table"
    return "labels" if form in ("segmentation", "labels", "classification", "onehot") else "image"


def _word(value: Any) -> str:
    """Return a word of the metadata in lower case, without hyphens and underscores."""
    return re.sub(r"[-_\s]", "", str(value or "")).lower()


def _has_place(made: Mapping[str, Any]) -> bool:
    """Return whether an output has spatial axes; metadata describe a classifier's as (1, classes)."""
    shape = list(made.get("spatial_shape") or ())
    return bool(shape) and shape not in ([1, made.get("num_channels")], [1, 1], [1], [made.get("num_channels")])


def _channels(given: Mapping[str, Any]) -> tuple[str, ...]:
    count, names = int(given.get("num_channels") or 1), given.get("channel_def")
    texts = list(names.values()) if isinstance(names, Mapping) else names if isinstance(names, list) else []
    slugs = [re.sub(r"[^a-z0-9]+", "_", str(name).lower()).strip("_").removesuffix("_image") for name in texts]
    return tuple(slugs) if len(set(slugs)) == count else ()


def _keys_of(content: Any, target: str) -> Iterator[str]:
    """Yield the keys of all transforms of a class, with references to plain values resolved."""
    for _, node in walk(content):
        if class_name(node) == target:
            yield from _plain(content, node.get("keys"))


def _sources(content: Any) -> set[str]:
    """Return the keys from which transforms make others, such as the `source_key` of a crop."""
    nodes = [node for _, node in walk(content) if class_name(node) and "keys" in node]
    return {
        key for node in nodes for name in node.keys() - {"keys", "orig_keys"} for key in _plain(content, node[name])
    }


def _plain(content: Any, value: Any) -> Iterator[str]:
    """Yield the strings of a value, or of a list of them, with references resolved; expressions are left out."""
    if isinstance(value, list):
        for part in value:
            yield from _plain(content, part)
    elif isinstance(value, str) and value.startswith("@"):
        yield from _plain(content, content.get(value[1:]) if isinstance(content, dict) else None)
    elif isinstance(value, str) and (common := re.fullmatch(r"\$monai\.utils\.CommonKeys\.(\w+)", value)):
        yield common[1].lower()
    elif isinstance(value, str) and not value.startswith("$"):
        yield value
