"""Risks in files of weights, found without loading them: whether reading them would import or call anything.

PyTorch's files are zips of pickles, or bare pickles before version 1.6. `torch.load(weights_only=True)` runs only a few
of pickle's instructions and calls only names that torch lists as safe; a file with anything else looks like an attack.
The instructions are read here, for a pickle in any container; torch is asked which of the names it refuses.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Iterable, Iterator
from typing import IO

from medkit.bundles.archive import printable

MAX_PICKLE = 256 << 20
"""Largest pickle that is looked through, in bytes; weights themselves are stored outside the pickles."""

_SAFE_INSTRUCTIONS = {
    "PROTO", "STOP", "NEWOBJ", "REDUCE", "BUILD", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "MARK",
    "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "NONE", "NEWFALSE", "NEWTRUE", "EMPTY_TUPLE", "EMPTY_LIST",
    "EMPTY_DICT", "EMPTY_SET", "BINPERSID", "BININT", "BININT1", "BININT2", "BINFLOAT", "BINGET", "LONG_BINGET",
    "BINPUT", "LONG_BINPUT", "BINUNICODE", "SHORT_BINSTRING", "LONG1",
}  # fmt: skip
"""Instructions that `weights_only=True` runs, besides GLOBAL, whose names are looked at."""


def weight_risks(file: IO[bytes], name: str) -> Iterator[str]:
    """Yield what reading a file of weights could do besides filling arrays, a sentence each; `name`: the file's name.

    Nothing for a plain state dict. Imports torch if the file's pickles name anything.
    """
    head = file.read(4)
    file.seek(0)
    if name.endswith((".npy", ".npz")):
        yield from _array_risks(file, head)
    elif head == b"PK\x03\x04":  # as PyTorch decides: it looks at the start of a file, zipfile at the end
        yield from _zip_risks(file)
    elif head[:1] == b"\x80":
        yield from _bare_risks(file)
    elif name.endswith((".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".ts")):
        yield "neither a zip nor a pickle: torch.load could not read it safely"


def _zip_risks(file: IO[bytes]) -> Iterator[str]:
    try:
        with zipfile.ZipFile(file) as archive:
            yield from _archive_risks(archive)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        yield f"a zip that cannot be read: {printable(str(error))}"


def _archive_risks(archive: zipfile.ZipFile) -> Iterator[str]:
    names = archive.namelist()
    if len(set(names)) < len(names):
        yield "a zip with two files of one name: readers differ in which one they take"
    scripted = any("/code/" in name for name in names)
    if scripted:
        yield "TorchScript: a program, which torch.jit.load runs"
    for info in archive.infolist():
        # a TorchScript's pickles name its own classes, and Python's pickle does not read them
        if info.filename.endswith(".pkl") and not scripted:
            if info.file_size > MAX_PICKLE:
                yield f"a pickle of {info.file_size >> 20} MiB, too large to look through"
                continue
            with archive.open(info) as member:
                yield from _pickle_risks(member)


def _bare_risks(file: IO[bytes]) -> Iterator[str]:
    """Look at up to five pickles in a row: PyTorch's files before 1.6 are five pickles and then numbers."""
    found: dict[str, None] = {}
    for _ in range(5):
        before = file.tell()
        found |= dict.fromkeys(_pickle_risks(file))
        head = file.read(1)
        file.seek(file.tell() - len(head))
        if head != b"\x80" or file.tell() == before:
            break
    yield from found


def _pickle_risks(file: IO[bytes]) -> Iterator[str]:
    found: dict[str, None] = {}
    names: dict[str, None] = {}
    try:
        for operation, argument, _ in pickletools.genops(file):
            if operation.name == "GLOBAL":
                names[str(argument)] = None
            elif operation.name not in _SAFE_INSTRUCTIONS:
                found[f"pickle with {operation.name}, which weights_only=True does not run"] = None
    except Exception as error:  # whatever a hostile file makes the parser do
        found[f"pickle that cannot be followed: {printable(str(error))[:200]}"] = None
    yield from (f"pickle names {printable(name)}, which weights_only=True does not load" for name in _refused(names))
    yield from found


def _refused(names: Iterable[str]) -> list[str]:
    """Return which of `names` (module, a space, attribute) torch refuses with `weights_only=True`, sorted.

    torch answers for checkpoints only, so it gets one that names these and holds nothing else.
    """
    wanted = [name.partition(" ") for name in names]
    if not wanted:
        return []
    from torch.serialization import get_unsafe_globals_in_checkpoint

    listing = b"".join(f"c{module}\n{attribute}\n".encode() for module, _, attribute in wanted)
    checkpoint = io.BytesIO()
    with zipfile.ZipFile(checkpoint, "w") as archive:
        archive.writestr("names/version", b"3\n")
        archive.writestr("names/data.pkl", b"\x80\x02" + listing + b".")
    return sorted(get_unsafe_globals_in_checkpoint(io.BytesIO(checkpoint.getvalue())))


def _array_risks(file: IO[bytes], head: bytes) -> Iterator[str]:
    """Look for arrays of objects in NumPy's files: they are pickles."""
    if head == b"PK\x03\x04":
        try:
            with zipfile.ZipFile(file) as archive:
                for name in archive.namelist():
                    with archive.open(name) as member:
                        yield from _header_risks(member)
        except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError, OSError) as error:
            yield f"a zip that cannot be read: {printable(str(error))}"
    else:
        yield from _header_risks(file)


def _header_risks(file: IO[bytes]) -> Iterator[str]:
    if b"O'" in file.read(4096).split(b"\n")[0]:
        yield "an array of objects, which is a pickle"
