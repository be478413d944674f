"""The log of a training, a table that is the same whether the training was interrupted or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from medkit.pipe.atomic import write_atomically


@dataclass(frozen=True)
class HistoryRow:
    """A row of the log."""

    step: int
    """Steps done."""
    seconds: float
    """Seconds since the start of training, those of earlier parts included."""
    learning_rate: float
    """Learning rate of the optimizer's first group."""
    loss: float
    """Mean over the steps since the row before; nan if no loss was finite."""
    metric: float | None
    """Metric of the validation at this step, if there was one."""


class History:
    """The rows so far, in memory and in `log.csv`; ranks that do not write have no path."""

    def __init__(self, path: Path | None, metric_name: str | None) -> None:
        self.path = path
        self.metric_name = metric_name
        self.rows: list[HistoryRow] = []

    def restore(self, rows: Sequence[Sequence[float | None]]) -> None:
        """Start with the rows of a checkpoint; rows that a killed run wrote after it are dropped."""
        self.rows = [HistoryRow(*row) for row in rows]  # type: ignore[arg-type]
        self._write()

    def add(self, row: HistoryRow) -> None:
        """Add a row; the file is made anew, since a full disk would take a part of a row."""
        self.rows.append(row)
        self._write()

    def _write(self) -> None:
        if self.path is None:
            return
        head = f"step,seconds,learning_rate,loss,{self.metric_name or 'metric'}\n"
        write_atomically(self.path, head + "".join(_line(row) for row in self.rows))

    def plain(self) -> list[tuple[float | None, ...]]:
        """Return the rows as a checkpoint stores them."""
        return [astuple(row) for row in self.rows]


def _line(row: HistoryRow) -> str:
    metric = "" if row.metric is None else f"{row.metric:.9g}"
    return f"{row.step},{row.seconds:.1f},{row.learning_rate:.9g},{row.loss:.9g},{metric}\n"
