"""Which values of label images a network can learn, read from its train config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from medkit.bundles.bundle import tensors
from medkit.bundles.config import class_name, walk
from medkit.training.data_layouts import is_label

if TYPE_CHECKING:
    from medkit.training.config import TrainConfig

_CHANGES = ("Lambda", "RandLambda", "ConvertToMultiChannel", "LabelTo", "LabelFilter", "KeepLargest", "FillHoles",
            "MapLabelValue", "EncodeLabels", "RemoveSmall")  # fmt: skip
"""How the names of MONAI's transforms begin that change the values of labels."""
_RESAMPLES = ("ResampleToMatch", "SpatialResample")
"""Transforms that bring images and labels onto one grid."""


@dataclass(frozen=True)
class LabelRule:
    """Which labels a config can learn from."""

    allowed: frozenset[int] | None = None
    """None: any."""
    mapped: Mapping[int, int] = field(default_factory=dict)
    """Values that the config replaces by others before it looks whether they are allowed."""
    unknown: str = ""
    """The transform that makes the allowed values unknown; empty if there is none."""
    resampled: bool = False
    """Whether the config itself brings images and labels onto one grid."""

    def strange(self, values: Sequence[int]) -> list[int]:
        """Return the values that the config cannot learn."""
        if self.allowed is None:
            return []
        return [value for value in values if self.mapped.get(value, value) not in self.allowed]

    @property
    def text(self) -> str:
        """The values that may occur, in words."""
        known = sorted({*self.mapped} or self.allowed or ())
        if known == list(range(len(known))):
            return f"labels 0 to {len(known) - 1}"
        return f"the {len(known)} labels {', '.join(map(str, known[:5]))} and so on, up to {known[-1]}"


def label_rule(config: TrainConfig, keys: Sequence[str]) -> LabelRule:
    """Return which labels the network of a config can learn from the files under `keys`.

    That is known if the config leaves labels as they are, or replaces them by MONAI's MapLabelValued or by a table.
    """
    nodes = list(_label_transforms(config.parser.config, [key for key in keys if is_label(key)]))
    resampled = any(class_name(node).startswith(_RESAMPLES) for _, node in walk(config.parser.config))
    for place, node in nodes:
        if class_name(node).startswith("EncodeLabels"):
            return LabelRule(frozenset(config.get(f"{place}::table").indices), resampled=resampled)
    count = _class_count(config)
    maps = [place for place, node in nodes if class_name(node).startswith("MapLabelValue")]
    if count is None:
        return LabelRule(unknown="their number is not stated", resampled=resampled)
    if maps:
        pairs = zip(config.get(f"{maps[0]}::orig_labels"), config.get(f"{maps[0]}::target_labels"), strict=True)
        mapped = {int(value): int(target) for value, target in pairs}
        return LabelRule(frozenset(range(count)), mapped, resampled=resampled)
    changed = [class_name(node) for _, node in nodes if _changes(node)]
    if changed:
        return LabelRule(unknown=changed[0], resampled=resampled)
    return LabelRule(frozenset(range(count)), resampled=resampled)


def _label_transforms(content: Any, keys: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield id and description of each transform of labels."""
    for place, node in walk(content):
        if not isinstance(node, Mapping) or "_target_" not in node:
            continue
        own = node.get("keys")
        if set([own] if isinstance(own, str) else own if isinstance(own, list) else ()) & set(keys):
            yield "::".join(place), node


def _changes(node: Mapping[str, Any]) -> bool:
    """Return whether a transform may change the values of labels: MONAI's that do, and those of others."""
    package = str(node["_target_"]).partition(".")[0]
    foreign = "." in str(node["_target_"]) and package != "monai"
    return foreign or class_name(node).startswith(_CHANGES)


def _class_count(config: TrainConfig) -> int | None:
    """Return the number of classes, the background included; None if neither config nor metadata state it."""
    stated = config.get("classes")
    if isinstance(stated, int):
        return max(2, stated)
    found = [tensor.get("num_channels") for _, tensor in tensors(config.bundle.metadata, "outputs")]
    return max(2, found[0]) if found and isinstance(found[0], int) else None
