"""What a bundle reads of a case besides images, such as classes or points: keys of a record, and of `--set`.

A key is handed over if the bundle's own code, or an expression of its config, names it in quotes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medkit.bundles.bundle import Bundle
from medkit.bundles.config import walk
from medkit.bundles.contract import Contract
from medkit.bundles.layers import has_id, read_configs
from medkit.pipe.records import Record

_QUOTED = re.compile(r"""(['"])(\w+)\1""")


@dataclass(frozen=True)
class Prompts:
    """The keys that a bundle reads besides images, and their values for all cases."""

    keys: frozenset[str] = frozenset()
    """Keys that its code names."""
    labels: Mapping[str, int] = field(default_factory=dict)
    """Name of a structure -> its label: lists may hold names instead of labels."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """Key -> value for all cases."""

    def of(self, record: Record) -> dict[str, Any]:
        """Return key -> value for a case: what its record holds, else what was given for all."""
        own = {key: value for key, value in record.extra.items() if key in self.keys and value is not None}
        return {key: self._labels(value) for key, value in {**self.given, **own}.items()}

    def of_record(self, record: Record) -> dict[str, Any]:
        """Return key -> value as far as a record holds them."""
        return {key: value for key, value in self.of(record).items() if key in record.extra}

    def _labels(self, value: Any) -> Any:
        if isinstance(value, list) and value and all(isinstance(part, str) and part in self.labels for part in value):
            return [self.labels[part] for part in value]
        return value


def prompts_of(bundle: Bundle, contract: Contract, overrides: Mapping[str, Any]) -> Prompts:
    """Return what a bundle reads besides images; of `overrides`, values that are no ids of its config are handed over.

    Raises BundleError.
    """
    content = read_configs(bundle)
    keys = frozenset(_words(bundle.root, content)) - {"image", "pred", *contract.keys, *contract.results}
    labels = {name: number for number, name in contract.classes.items()} if contract.numbers else {}
    given = {key: value for key, value in overrides.items() if key in keys and not has_id(content, key)}
    return Prompts(keys, labels, given)


def _words(root: Path, content: Mapping[str, Any]) -> Iterator[str]:
    """Yield the words in quotes in a bundle's code and in the expressions of its config, and MONAI's `extra_keys`."""
    for path in sorted(root.rglob("*.py")):
        yield from (match[2] for match in _QUOTED.finditer(path.read_text(errors="replace")))
    for place, value in walk(content):
        if isinstance(value, str) and value.startswith("$"):
            yield from (match[2] for match in _QUOTED.finditer(value))
        elif isinstance(value, str) and "extra_keys" in place[-2:]:
            yield value
