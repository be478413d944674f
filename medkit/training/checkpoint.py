"""The folder of a training, and its checkpoint: the state from which it continues as if it had never stopped."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from medkit.errors import OutputError, TrainingError
from medkit.pipe.atomic import locked, whole, write_atomically
from medkit.training.plan import TrainingPlan, differences

FORMAT = 1
"""Version of the checkpoint's layout."""


class RunFolder:
    """The new bundle's folder, which belongs to one training: `training/` holds its checkpoint, log and identity."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.training = root / "training"
        self.checkpoint = self.training / "checkpoint.pt"
        self.log = self.training / "log.csv"
        self.identity = self.training / "run.json"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for this process. Raises OutputError if another training holds it."""
        self.training.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(self.training / ".lock", wait=False, mode=0o666))
            except BlockingIOError:
                raise OutputError(f"{self.root}: another training is writing to it") from None
            for part in (*self.training.glob(".*.part"), *self.root.glob("*/.*.part")):
                part.unlink(missing_ok=True)  # of a run that was killed while it wrote
            yield

    def refuse_foreign(self, plan: TrainingPlan) -> None:
        """Raise OutputError if the folder is not the result of a training; write nothing."""
        if plan.bundle.root.resolve() == self.root.resolve():
            raise OutputError(f"-o {self.root}: is the bundle that is trained; name a new folder")
        if self.root.exists() and not self.root.is_dir():
            raise OutputError(f"-o {self.root}: is a file; name a new folder")
        if plan.bundle.root.resolve() in self.root.resolve().parents:
            raise OutputError(f"-o {self.root}: lies inside the bundle that is trained; name a folder outside")
        ours = (self.training / ".lock").exists()
        if self.root.is_dir() and not ours and any(self.root.iterdir()):
            raise OutputError(f"-o {self.root}: exists and is not the result of a training; name a new folder")
        if plan.resume and not self.checkpoint.is_file():
            raise OutputError(f"--resume: there is no checkpoint in {self.root}")

    def starts_anew(self, plan: TrainingPlan) -> bool:
        """Return whether the training has no checkpoint to continue from."""
        return plan.overwrite or not self.checkpoint.is_file()

    def state(self, plan: TrainingPlan, identity: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the checkpoint to continue from, or None to start. Raises OutputError and TrainingError."""
        if self.starts_anew(plan):
            return None
        if plan.resume is False:
            raise OutputError(f"-o {self.root}: holds a training; --no-resume needs --overwrite to replace it")
        found = json.loads(self.identity.read_bytes())
        if (there := found.get("ranks", 1)) != identity["ranks"]:
            raise OutputError(
                f"-o {self.root}: holds a training over {there} ranks, and this one has {identity['ranks']}: a step "
                f"has the samples of all ranks, so it continues with {there} only"
            )
        if other := differences(found, identity):
            raise OutputError(
                f"-o {self.root}: holds another training, which differs in {', '.join(other)}; "
                f"name another -o, or use --overwrite"
            )
        return self.load()

    def load(self) -> dict[str, Any]:
        """Return the checkpoint. Raises TrainingError if it is damaged or has the format of another medkit."""
        import torch

        try:
            content: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:
            raise TrainingError(f"{self.checkpoint}: cannot be read: {' '.join(str(error).split())[:200]}") from None
        if content.get("format") != FORMAT:
            raise TrainingError(f"{self.checkpoint}: expected format {FORMAT}, got {content.get('format')}")
        return content

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the checkpoint, completely or not at all. Raises TrainingError."""
        save_whole(self.checkpoint, {"format": FORMAT, **state})

    def start(self, plan: TrainingPlan, identity: Mapping[str, Any]) -> None:
        """Make the folder a copy of the bundle without its weights, ready for the training."""
        self.checkpoint.unlink(missing_ok=True)
        self.log.unlink(missing_ok=True)
        for name in ("configs", "docs", "models"):  # of the training that is replaced
            shutil.rmtree(self.root / name, ignore_errors=True)
        write_atomically(self.identity, json.dumps(identity, indent=1, default=str) + "\n")
        _copy(plan.bundle.root, self.root)


class _Written:
    """A file that remembers why it could not be written: torch reports it as a place in its own code."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write bytes. Raises OSError."""
        with self._remembered():
            return self._file.write(data)

    def flush(self) -> None:
        """Hand over to the system what was written. Raises OSError."""
        with self._remembered():
            self._file.flush()

    @contextlib.contextmanager
    def _remembered(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = error
            raise


def save_whole(path: Path, value: Mapping[str, Any]) -> None:
    """Save tensors as torch does, completely or not at all. Raises TrainingError if the file cannot be written."""
    import torch

    written = None
    try:
        with whole(path) as file:
            written = _Written(file)
            torch.save(value, cast(IO[bytes], written))
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else written and written.error
        if not cause:
            raise
        raise TrainingError(
            f"{path}: cannot be written: {cause.strerror}; run the same command again when it can be"
        ) from cause


def _copy(source: Path, target: Path) -> None:
    """Copy a bundle's files without its weights, former training and caches."""

    def left_out(folder: str, names: list[str]) -> set[str]:
        here = Path(folder).relative_to(source)
        skipped = {n for n in names if n in ("__pycache__", ".git") or n.endswith((".pyc", ".part"))}
        if here == Path():
            skipped |= {"training"} & set(names)
        if here == Path("models"):
            skipped |= {n for n in names if n in ("model.pt", "model.ts", "model.onnx")}
        if here == Path("docs"):
            skipped |= {"learning_curve.png"} & set(names)
        return skipped

    shutil.copytree(source, target, ignore=left_out, dirs_exist_ok=True)
    for folder in ("models", "docs"):
        (target / folder).mkdir(exist_ok=True)
