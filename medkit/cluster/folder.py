"""The folder of a submission: the frozen list, the two scripts, and what the jobs leave there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medkit.cluster.request import Request
from medkit.errors import InputError, MedkitError, UsageError
from medkit.pipe.atomic import write_atomically
from medkit.pipe.records import absolute, record_from_json


@dataclass(frozen=True)
class JobFolder:
    """The names of files in the folder of a submission."""

    root: Path
    """The folder, absolute; results lie in it too, unless the commands name another one."""

    @property
    def inputs(self) -> Path:
        """The frozen list, one input per line: line K + i * N belongs to shard K of N."""
        return self.root / "inputs.txt"

    @property
    def job_script(self) -> Path:
        """What the scheduler runs."""
        return self.root / "job.sh"

    @property
    def shard_script(self) -> Path:
        """What works on one shard, with or without a scheduler."""
        return self.root / "shard.sh"

    @property
    def state(self) -> Path:
        """The submission as JSON."""
        return self.root / "submission.json"

    @property
    def records(self) -> Path:
        """The folder that all stages of all shards add their records to."""
        return self.root / "records"

    @property
    def logs(self) -> Path:
        """The folder of what the jobs print."""
        return self.root / "logs"

    @property
    def exit_codes(self) -> Path:
        """The folder with a file for each shard that has ended, named after its number."""
        return self.root / "shards"

    def lines(self) -> list[str]:
        """Return the frozen list; empty if there is none."""
        try:
            return os.fsdecode(self.inputs.read_bytes()).split("\n")[:-1]
        except FileNotFoundError:
            return []

    def exit_code(self, shard: int) -> int | None:
        """Return the exit code of a shard; None if it has not ended, or was killed."""
        try:
            return int((self.exit_codes / str(shard)).read_text())
        except (OSError, ValueError):
            return None

    def freeze(self, lines: Iterable[str]) -> str:
        """Write the list of inputs and return its sha256."""
        content = os.fsencode("".join(f"{line}\n" for line in lines))
        for folder in (self.root, self.records, self.logs, self.exit_codes):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.inputs, content)
        return digest_of(content)


@dataclass(frozen=True)
class Submission:
    """What was submitted."""

    scheduler: str
    """`slurm`, `pbs`, `sge` or `lsf`."""
    pipeline: str
    """The user's shell commands."""
    workdir: str
    """The folder they run in: relative paths of the list and of the commands are relative to it."""
    shards: int
    """The number of shards."""
    sha256: str
    """The digest of the frozen list."""
    request: Request
    """What each job asks for."""
    max_running: int | None = None
    """How many jobs may run at once."""
    jobs: tuple[str, ...] = ()
    """The scheduler's numbers of the jobs, reruns last."""
    submitted: str = ""
    """When the last of them was submitted, as ISO 8601 writes it."""

    def write(self, folder: JobFolder) -> None:
        """Write it into its folder."""
        write_atomically(folder.state, json.dumps(asdict(self), indent=1) + "\n")

    @staticmethod
    def read(folder: JobFolder) -> Submission | None:
        """Return the submission of a folder; None if there is none. Raises InputError for a damaged file."""
        try:
            data: dict[str, Any] = json.loads(folder.state.read_bytes())
            request = Request(**_with_tuples(data.pop("request")))
            return Submission(request=request, **_with_tuples(data))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{folder.state}: expected a submission of medkit submit, got {error}") from None


def _with_tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


def digest_of(content: bytes) -> str:
    """Return the sha256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def path_of(line: str, workdir: Path) -> str:
    """Return the absolute path that a line of the list stands for; a line that is no record or path, as it is."""
    if line.startswith("{"):
        try:
            return str(record_from_json(json.loads(line), workdir).path)
        except (ValueError, RecursionError, MedkitError):
            return line
    return line if "\0" in line else str(absolute(line, workdir))


def find_folder(path: str) -> JobFolder:
    """Return the folder of a submission, or of records alone. Raises UsageError if it is neither."""
    folder = JobFolder(absolute(path))
    if not (folder.inputs.exists() or folder.records.is_dir()):
        raise UsageError(f"{path}: expected the -o of medkit submit, or a folder with records/ or inputs.txt in it")
    return folder
