"""Markdown text of which generated pages consist."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any, Final, get_type_hints

import msgspec

GENERATED: Final = "% Generated from the code by `python -m docs.generator`. Do not edit.\n\n"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def code(text: object) -> str:
    """Return the text as code, or nothing for None and the empty text."""
    return f"`{text}`" if text not in {None, ""} else ""


def document(described: object) -> str:
    """Return an object's docstring as paragraphs."""
    return inspect.cleandoc(getattr(described, "__doc__", None) or "")


def fields_table(struct: type[msgspec.Struct]) -> str:
    """Return a table of a Struct's fields."""
    hints = get_type_hints(struct)
    rows = [
        (code(field.encode_name), code(type_name(hints[field.name])), _default(field))
        for field in msgspec.structs.fields(struct)
    ]
    return table(("field", "type", "default"), rows) if rows else "No fields.\n"


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    default: Any = field.default
    if default is msgspec.NODEFAULT:
        return ""
    return code(msgspec.json.encode(default).decode())


def type_name(hint: object) -> str:
    """Return the short name of a type."""
    text = re.sub(r"<class '([^']+)'>", r"\1", str(hint))
    text = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text)
    text = re.sub(r"\bOptional\[(\w+)\]", r"\1 | None", text)
    return text.replace("NoneType", "None")
