"""What earlier stages of a pipe found out about a case: labels, volumes and warnings, from its sources' sidecars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medkit.task import Case, Record, lineage


@dataclass(frozen=True)
class Context:
    """What earlier stages found out about a case."""

    labels: Path | None = None
    """A label map of the image, from a record or an earlier stage."""
    volumes_mm3: Mapping[str, float] = field(default_factory=dict)
    """Name of a structure -> its volume."""
    warnings: tuple[str, ...] = ()
    """Warnings of earlier stages."""
    tasks: tuple[str, ...] = ()
    """Names of the earlier tasks, the last one first."""

    @classmethod
    def of(cls, case: Case) -> Context:
        """Read it from a case's record and the sidecars of its sources."""
        return replace(cls.of_record(case.record), labels=case.inputs.get("labels"))

    @classmethod
    def of_record(cls, record: Record) -> Context:
        """Read it from a record and the sidecars of its sources, without the label map."""
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
        """Return numbers that a bundle may learn from: volumes in mm3, and the number of warnings.

        Empty without volumes: warnings count only together with them, because `segment` returns both.
        """
        if not self.volumes_mm3:
            return {}
        volumes = {f"volume_{name}": float(value) for name, value in self.volumes_mm3.items()}
        return {**volumes, "warnings": float(len(self.warnings))}

    def details(self) -> dict[str, Any]:
        """Return what is known, for the sidecar; empty if there were no earlier stages."""
        if not (self.labels or self.tasks):
            return {}
        return {
            "context": {
                "after": list(self.tasks),
                "warnings": list(self.warnings),
                "labels": self.labels.name if self.labels else None,
                "volumes_mm3": dict(self.volumes_mm3),
            }
        }
