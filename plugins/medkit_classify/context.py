"""What came down the pipe with a case beside its image: labels, volumes, flags, from the sidecars of its sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medkit.task import Case, Record, lineage


@dataclass(frozen=True)
class Context:
    """What earlier stages say about a case."""

    labels: Path | None = None
    """A label map of the image, for which a record or an earlier stage gave it."""
    volumes_mm3: Mapping[str, float] = field(default_factory=dict)
    """Structure -> its volume."""
    warnings: tuple[str, ...] = ()
    """What earlier stages ask to look at."""
    tasks: tuple[str, ...] = ()
    """The tasks that came before, the last one first."""

    @classmethod
    def of(cls, case: Case) -> Context:
        """From a case's record and the sidecars of what it was made from."""
        return replace(cls.of_record(case.record), labels=case.inputs.get("labels"))

    @classmethod
    def of_record(cls, record: Record) -> Context:
        """From a record and the sidecars of what it was made from."""
        volumes: dict[str, float] = {}
        warnings: list[str] = []
        tasks: list[str] = []
        for stage in lineage(record):
            block = stage.medkit
            metrics = block.get("metrics")
            if isinstance(metrics, Mapping) and isinstance(found := metrics.get("volumes_mm3"), Mapping):
                volumes = {**found, **volumes}  # the latest stage counts
            warnings += [str(text) for text in block.get("warnings", ()) if text not in warnings]
            tasks += [str(block["task"])] if "task" in block else []
        return cls(None, volumes, tuple(warnings), tuple(tasks))

    def features(self) -> dict[str, float | None]:
        """Numbers that a bundle may learn from: volumes in mm3, and how many warnings there are. None without stages.

        Warnings count only where volumes came with them, as `segment` gives both.
        """
        if not self.volumes_mm3:
            return {}
        volumes = {f"volume_{name}": float(value) for name, value in self.volumes_mm3.items()}
        return {**volumes, "warnings": float(len(self.warnings))}

    def facts(self) -> dict[str, Any]:
        """For the sidecar; empty where nothing came but the image."""
        if not (self.labels or self.tasks):
            return {}
        out: dict[str, Any] = {"after": list(self.tasks), "warnings": list(self.warnings)}
        return {
            "context": out
            | {"labels": self.labels.name if self.labels else None, "volumes_mm3": dict(self.volumes_mm3)}
        }
