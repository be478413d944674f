"""What a bundle takes and gives, read from its metadata and its config as text: nothing of it is executed here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from medkit.bundles.bundle import Bundle
from medkit.bundles.config import read_config, walk
from medkit.errors import BundleError

OutputKind = Literal["labels", "image", "table"]
SUFFIX: Mapping[OutputKind, str] = {"labels": "dseg", "image": "pred", "table": "class"}
"""What is added to an input's stem."""
_NO_FILE = {"dict": "boxes", "object": "boxes", "points": "points", "tuples": "points"}
_NO_INPUT = {"noise", "latent", "timesteps"}
NO_IMAGES = {"label", "labels", "mask", "seg"}
"""Keys of what is no image; training data has them, and inference can do without where nothing is made of them."""
_CLICKS = "AddClickSignals"
"""MONAI's transform for networks that are told where to look; without clicks it fails."""


@dataclass(frozen=True)
class Contract:
    """The files that go into a bundle and those that come out of it."""

    kind: OutputKind
    results: tuple[str, ...]
    """Keys of MONAI's dictionary that hold results, the main one first."""
    keys: tuple[str, ...]
    """Keys that images are loaded under, the main one first."""
    optional: tuple[str, ...]
    """Those of them that a case need not have."""
    channels: tuple[str, ...]
    """Names of the input's channels, such as `t1`, each of which may be a file of its own; none without names."""
    classes: Mapping[int, str]
    """Channel of the output -> its name."""
    planar: bool
    """Whether the network works on planes."""
    aspects: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """What a classifier says about an image beside each other, such as contrast and usability -> the channels of its
    classes; none where all classes exclude each other."""

    @property
    def accepts(self) -> tuple[str, ...]:
        """The roles under which a record may bring files beside its own path."""
        more = self.channels if len(self.channels) > 1 else ()
        return tuple(dict.fromkeys([*self.keys[1:], *more]))


def contract_of(bundle: Bundle, config: str = "inference") -> Contract:
    """What a bundle takes and gives. Raises BundleError, with the reason, for what medkit has no files for."""
    formats = bundle.metadata.get("network_data_format") or {}
    inputs, outputs = formats.get("inputs") or {}, formats.get("outputs") or {}
    if not inputs or not outputs:
        raise BundleError(f"bundle {bundle.name}: its metadata does not say what goes in and what comes out")
    given = inputs.get("image") or next(iter(inputs.values()))
    made = outputs.get("pred") or next(iter(outputs.values()))
    if _NO_INPUT & {given.get("type"), given.get("format")}:
        raise BundleError(
            f"bundle {bundle.name}: makes images from {given.get('type')}: there is no image to run it on"
        )
    content = read_config(bundle.config(config))
    if any(_class_of(node).startswith(_CLICKS) for node in walk(content)):
        raise BundleError(f"bundle {bundle.name}: works where somebody clicks ({_CLICKS}); medkit has images alone")
    keys = tuple(dict.fromkeys(_keys_of(content, "LoadImaged"))) or ("image",)
    classes = {int(n): str(name) for n, name in (made.get("channel_def") or {}).items() if str(n).isdigit()}
    saved = [key for key in dict.fromkeys(_keys_of(content, "SaveImaged")) if key not in keys]
    return Contract(
        kind=_kind(bundle, made),
        results=("pred",) if "pred" in saved or not saved else tuple(saved),
        keys=keys,
        optional=tuple(key for key in keys[1:] if key in NO_IMAGES and key not in _sources(content)),
        # facts beside an image are a channel that no file has
        channels=_channels(given) if len(keys) == 1 and "context" not in bundle.block else (),
        classes=classes,
        planar=len(given.get("spatial_shape") or ()) == 2,
        aspects=_aspects(bundle, classes),
    )


def _aspects(bundle: Bundle, classes: Mapping[int, str]) -> dict[str, tuple[int, ...]]:
    """What `medkit.aspects` in a bundle's metadata says: aspect -> the names of its classes."""
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
    what, form = made.get("type"), made.get("format")
    for word in (what, form):
        if word in _NO_FILE:
            raise BundleError(f"bundle {bundle.name}: finds {_NO_FILE[word]}, which medkit writes no file of")
    if form in ("classes", "classification") and not _has_place(made):
        return "table"
    if form == "labels" and not _has_place(made):
        return "table"
    return "labels" if form in ("segmentation", "labels", "classification") else "image"


def _has_place(made: Mapping[str, Any]) -> bool:
    """Whether an output has spatial axes: that of a classifier is said to be (1, classes)."""
    shape = list(made.get("spatial_shape") or ())
    return bool(shape) and shape not in ([1, made.get("num_channels")], [1, 1], [1], [made.get("num_channels")])


def _channels(given: Mapping[str, Any]) -> tuple[str, ...]:
    count, names = int(given.get("num_channels") or 1), given.get("channel_def") or {}
    slugs = [re.sub(r"[^a-z0-9]+", "_", str(name).lower()).strip("_").removesuffix("_image") for name in names.values()]
    return tuple(slugs) if len(set(slugs)) == count else ()


def _keys_of(content: Any, target: str) -> Iterator[str]:
    """The keys of all transforms of a class, references to plain values resolved."""
    for node in walk(content):
        if _class_of(node) == target:
            yield from _plain(content, node.get("keys"))


def _sources(content: Any) -> set[str]:
    """Keys that transforms of others are made from, such as the `source` of a crop."""
    nodes = [node for node in walk(content) if _class_of(node) and "keys" in node]
    return {
        key for node in nodes for name in node.keys() - {"keys", "orig_keys"} for key in _plain(content, node[name])
    }


def _class_of(node: Any) -> str:
    """The name of the class that a config's node is an object of; empty for none."""
    return str(node.get("_target_", "")).rpartition(".")[2] if isinstance(node, dict) else ""


def _plain(content: Any, value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for part in value:
            yield from _plain(content, part)
    elif isinstance(value, str) and value.startswith("@"):
        yield from _plain(content, content.get(value[1:]) if isinstance(content, dict) else None)
    elif isinstance(value, str) and (common := re.fullmatch(r"\$monai\.utils\.CommonKeys\.(\w+)", value)):
        yield common[1].lower()
    elif isinstance(value, str) and not value.startswith("$"):
        yield value
