"""Pseudonyms, UIDs and shifts of dates that follow from a secret: the same for one person in every run.

All are keyed hashes (HMAC-SHA-256, RFC 2104) of what they replace. Whoever has the secret can make them again, nobody
else can, also not by trying all names: so the secret stays with the user and is in no output.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import secrets
import stat
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

from medkit.errors import UsageError
from medkit.privacy.private_files import write_private

PREFIX = "anon"
_LETTERS = 10
"""Letters of a pseudonym after the prefix, 5 bits each."""
_PSEUDONYM = re.compile(rf"{PREFIX}[a-z2-7]{{{_LETTERS}}}")
_SHORTEST = 32
"""Characters that a secret has at least: 128 bits as hexadecimal digits."""
_FIRST_SHIFT, _LAST_SHIFT = 366, 3650
"""Days by which the dates of a person are moved into the past: 1 to 10 years."""
_DATE = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})")
"""A date as DICOM writes it, or with the points of ACR-NEMA."""


def is_pseudonym(text: str) -> bool:
    """Return whether a text is a pseudonym of this form; such texts stay, so that a second run changes nothing."""
    return _PSEUDONYM.fullmatch(text.strip()) is not None


def default_secret() -> Path:
    """Return where the secret lies unless the user names another file."""
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "medkit" / "deidentify.secret"


def read_or_make_secret(path: Path) -> tuple[bytes, bool]:
    """Return the secret in a file, and whether it was made now; only the user may read the file.

    Raises UsageError for a file that others can read, or that holds too little.
    """
    made = False
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            made = write_private(path, secrets.token_hex(32) + "\n", replace=False)
        except OSError as error:
            raise UsageError(f"--secret {path}: cannot be made: {error.strerror}") from error
    return _read_secret(path), made


def _read_secret(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise UsageError(f"--secret {path}: others may read it; chmod 600 makes it yours alone")
            content = file.read().strip()
    except OSError as error:
        raise UsageError(f"--secret {path}: cannot be read: {error.strerror}") from error
    if len(content) < _SHORTEST:
        raise UsageError(f"--secret {path}: expected {_SHORTEST} characters or more, got {len(content)}")
    return content


@dataclass(frozen=True)
class Pseudonyms:
    """What replaces names, UIDs and dates."""

    secret: bytes = field(repr=False)

    def person(self, identity: str) -> str:
        """Return the pseudonym of a person, such as `anonq3k7xw2abc`.

        `identity` is what tells persons apart, usually the patient ID; case and spaces around it have no meaning.
        """
        if is_pseudonym(identity):
            return identity.strip()
        letters = base64.b32encode(self._digest("person", _plain(identity))).decode().lower()
        return PREFIX + letters[:_LETTERS]

    def uid(self, uid: str) -> str:
        """Return the UID that replaces another: below 2.25, which holds UIDs made from 128 bits (PS3.5 B.2)."""
        return f"2.25.{int.from_bytes(self._digest('uid', uid.strip())[:16], 'big')}"

    def short(self, text: str) -> str:
        """Return six letters that stand for a text, such as a UID in the name of a folder."""
        return base64.b32encode(self._digest("short", text)).decode().lower()[:6]

    def shift(self, identity: str) -> int:
        """Return the days by which all dates of a person are moved; less than 0."""
        number = int.from_bytes(self._digest("shift", _plain(identity))[:8], "big")
        return -(_FIRST_SHIFT + number % (_LAST_SHIFT - _FIRST_SHIFT + 1))

    def _digest(self, kind: str, text: str) -> bytes:
        return hmac.new(self.secret, f"{kind}:{text}".encode(), hashlib.sha256).digest()


def _plain(identity: str) -> str:
    return " ".join(identity.casefold().split())


def moved_date(text: str, days: int) -> str | None:
    """Return a date, or a date with time, moved by whole days, as DICOM writes it; None if the text is not a date.

    The time of day stays. An offset from UTC is dropped: it says where on earth the scanner is.

    >>> moved_date("20240229", -366), moved_date("20240301101500.25+0100", -1), moved_date("unknown", -1)
    ('20230228', '20240229101500.25', None)
    """
    match = _DATE.match(text.strip())
    if not match:
        return None
    try:
        moved = date(*map(int, match.groups())) + timedelta(days)
    except (ValueError, OverflowError):
        return None
    rest = re.fullmatch(r"(\d{0,6}(?:\.\d{1,6})?)\s*(?:[+-]\d{4})?", text.strip()[match.end() :])
    return None if rest is None else moved.isoformat().replace("-", "") + rest[1]
