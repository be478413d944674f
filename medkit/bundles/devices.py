"""Devices that a config names, such as `cuda:0` or `.cuda()`, replaced by the one at hand."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

from medkit.bundles.config import walk
from medkit.bundles.layers import has_id, value_at

_NAME = re.compile(r"(cuda|mps|xpu)(:\d*)?")
"""A device that not every machine has; with a colon at its end, the beginning of its name."""
_REFERENCE = re.compile(r"@(?:#|::)*\w+(?:(?:#|::)\w+)*")
_KEYS = re.compile(r"(^|_)device$|^map_location$")
"""Keys whose whole numbers are those of CUDA devices."""
_QUESTIONS = {"startswith", "endswith", "get", "find", "index", "count", "is_available", "device_count"}
"""Methods that look for a text."""


def on_device(config: Any, device: Any) -> Iterator[tuple[str, Any]]:
    """Yield id -> new value for each value of a config that names a device: a torch.device, the user's, replaces it."""
    replaced: set[tuple[str, ...]] = set()
    for place, value in walk(config):
        if place[:-1] in replaced:
            continue
        if _is_device(value, place[-1] if place else ""):
            replaced.add(place)
            yield "::".join(place), device
        elif isinstance(value, str) and value.startswith("$"):
            text = _replaced(value[1:], config, device)
            if text is not None:
                yield "::".join(place), f"${text}"


def _is_device(value: Any, key: str) -> bool:
    """Return whether a value of a config is a device, or a number or expression where a device is expected."""
    if isinstance(value, str):
        expression = re.match(r"\$\s*torch\.device\(.*(cuda|mps|xpu)", value) and _KEYS.search(key)
        return bool(_NAME.fullmatch(value) or expression)
    if isinstance(value, dict):
        return value.get("_target_") == "torch.device"
    return type(value) is int and _KEYS.search(key) is not None


def _replaced(text: str, config: Any, device: Any) -> str | None:
    """Return an expression with the devices that it names replaced; None if it names none, or is no expression."""
    text = text.replace("\n", " ").strip()
    names: dict[str, str] = {}

    def placeholder(match: re.Match[str]) -> str:
        word = f"r{len(names)}".ljust(len(match[0]), "_")[: len(match[0])]
        names[word] = match[0][1:]
        return word

    try:
        tree = ast.parse(_REFERENCE.sub(placeholder, text), mode="eval")
    except (SyntaxError, ValueError, RecursionError):
        return None
    numbers = {word for word, name in names.items() if has_id(config, name) and type(value_at(config, name)) is int}
    edits = sorted(_edits(tree.body, numbers, device), reverse=True)
    data = text.encode()  # the tree's places are those of bytes
    for start, end, new in edits:
        data = data[:start] + new.encode() + data[end:]
    return data.decode() if edits else None


def _edits(node: ast.AST, numbers: set[str], device: Any) -> Iterator[tuple[int, int, str]]:
    """Yield start, end and new text of each part of an expression that names a device."""
    new = _new_text(node, numbers, device)
    if new is not None:
        yield new
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield from _edits(node.func.value, numbers, device)
        return
    if isinstance(node, ast.Compare) or (isinstance(node, ast.Call) and _called(node) in _QUESTIONS):
        return
    if isinstance(node, ast.Call) and _called(node) in ("autocast", "GradScaler"):
        device = device.type
    parts: Mapping[str, Any] = dict(ast.iter_fields(node))
    for field, part in parts.items():
        if not (isinstance(node, ast.Subscript) and field == "slice"):
            for child in part if isinstance(part, list) else [part]:
                if isinstance(child, ast.AST):
                    yield from _edits(child, numbers, device)


def _new_text(node: Any, numbers: set[str], device: Any) -> tuple[int, int, str] | None:
    """Return start, end and new text of a part of an expression if it is a device; None if it is none."""
    if isinstance(node, ast.Call):
        first = node.args[0] if node.args else None
        if _called(node) == "device" and any(_is_name(part) for part in ast.walk(node)):
            return _end(node.func), _end(node), f"('{device}')"
        if _called(node) == "cuda" and isinstance(node.func, ast.Attribute):
            return _end(node.func.value), _end(node), f".to('{device}')"
        if _called(node) == "to" and _is_number(first, numbers):
            return first.col_offset, _end(first), f"'{device}'"  # type: ignore[union-attr]
    if _is_name(node):
        return node.col_offset, _end(node), f"'{device}'"
    return None


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _is_name(node: Any) -> bool:
    """Return whether a part of an expression is the name of a device, or is put together to one."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and _NAME.fullmatch(node.value) is not None
    if isinstance(node, ast.JoinedStr):
        return bool(node.values) and _is_name(node.values[0])
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mod) and _starts_name(node.left)


def _starts_name(node: Any) -> bool:
    text = node.value if isinstance(node, ast.Constant) else None
    return _is_name(node) or (isinstance(text, str) and re.fullmatch(r"(cuda|mps|xpu):%[ds]", text) is not None)


def _is_number(node: Any, numbers: set[str]) -> bool:
    if isinstance(node, ast.Constant):
        return type(node.value) is int
    return isinstance(node, ast.Name) and node.id in numbers


def _end(node: Any) -> int:
    return int(node.end_col_offset)
