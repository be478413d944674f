"""What is in files of weights, found without loading them: whether reading them would import or call anything.

PyTorch's files are zips of pickles, or bare pickles before version 1.6. `torch.load(weights_only=True)` runs few of
pickle's instructions and calls what stands in a short list; a file with anything else is what an attack looks like.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Iterator
from typing import IO

from medkit.bundles.archive import printable

MAX_PICKLE = 256 << 20
"""Bytes of pickle that are looked through; weights themselves lie outside the pickles."""

_CALM = {
    "PROTO", "STOP", "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "MARK",
    "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "NONE", "NEWFALSE", "NEWTRUE", "EMPTY_TUPLE", "EMPTY_LIST",
    "EMPTY_DICT", "EMPTY_SET", "BINPERSID", "BININT", "BININT1", "BININT2", "BINFLOAT", "BINGET", "LONG_BINGET",
    "BINPUT", "LONG_BINPUT", "BINUNICODE", "SHORT_BINSTRING", "LONG1",
}  # fmt: skip
"""The instructions that `weights_only=True` runs."""
_CALM_NAMES = re.compile(
    r"collections\.(OrderedDict|Counter)|torch\.nn\.parameter\.Parameter|torch\.serialization\._get_layout"
    r"|torch\.(Size|Tensor|device)|torch(\.cuda)?\.\w+(Storage|Tensor)|torch\.storage\.(Typed|Untyped)Storage"
    r"|torch\.((b?float|complex|q?u?int|bits)\d\w*|bool)|_codecs\.encode"
    r"|(builtins|__builtin__)\.(bytearray|set|complex)"
    r"|torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_from_type_v2"
)
"""What `weights_only=True` lets a file name."""


def weight_risks(file: IO[bytes], name: str) -> Iterator[str]:
    """What reading a file of weights could do beyond filling arrays, a sentence each; none for a plain state dict."""
    head = file.read(4)
    file.seek(0)
    if name.endswith((".npy", ".npz")):
        yield from _array_risks(file, head)
    elif head == b"PK\x03\x04":  # as PyTorch decides, which looks at the beginning and not, as zipfile, at the end
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
        yield "a zip with two files of one name, which readers choose from differently"
    scripted = any("/code/" in name for name in names)
    if scripted:
        yield "TorchScript: a program of its own, which torch.jit.load runs"
    for info in archive.infolist():
        # the pickles of a TorchScript name its own classes and are not read by Python's pickle
        if info.filename.endswith(".pkl") and not scripted:
            if info.file_size > MAX_PICKLE:
                yield f"a pickle of {info.file_size >> 20} MB, too large to look through"
                continue
            with archive.open(info) as member:
                yield from _pickle_risks(member)


def _bare_risks(file: IO[bytes]) -> Iterator[str]:
    """PyTorch's files before 1.6 are five pickles and then numbers; others one pickle."""
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
    try:
        for operation, argument, _ in pickletools.genops(file):
            if operation.name in ("GLOBAL", "INST"):
                name = str(argument).replace(" ", ".")
                if operation.name == "INST" or not _CALM_NAMES.fullmatch(name):
                    found[f"pickle names {printable(name)}, which weights_only=True does not load"] = None
            elif operation.name not in _CALM:
                found[f"pickle with {operation.name}, which weights_only=True does not run"] = None
    except Exception as error:  # whatever a hostile file makes the parser do
        found[f"pickle that cannot be followed: {printable(str(error))[:200]}"] = None
    yield from found


def _array_risks(file: IO[bytes], head: bytes) -> Iterator[str]:
    """NumPy's arrays of objects are pickles."""
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
