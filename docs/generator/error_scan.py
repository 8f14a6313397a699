"""Find the error codes in vidflow's source, and who reports each of them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).parents[2] / "src" / "vidflow"
_CODE: Final = re.compile(r"[a-z][a-z_]+")
_STATUSES: Final = range(400, 600)

Constants = Mapping[str, str]


def find_codes() -> dict[str, set[int]]:
    """Return all error codes, each with the HTTP statuses that are given with it."""
    codes: dict[str, set[int]] = {}
    trees = [ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))]
    constants = {name: text for tree in trees for name, text in _constants(tree)}
    for tree in trees:
        for node in ast.walk(tree):
            for code, status in _codes_in(node, constants):
                codes.setdefault(code, set()).update({status} if status else ())
    return codes


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield the text constants of a module."""
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and (text := _text(node.value, {})):
            yield node.target.id, text


def _codes_in(node: ast.AST, constants: Constants) -> Iterator[tuple[str, int | None]]:
    if isinstance(node, ast.Call):
        yield from _codes_in_call(node, constants)
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            status, code = _status(key), _text(value, constants)
            if status and code:
                yield code, status
    elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(isinstance(target, ast.Name) and target.id == "default_code" for target in targets):
            yield from ((code, None) for code in _texts(node.value, constants))


def _codes_in_call(call: ast.Call, constants: Constants) -> Iterator[tuple[str, int | None]]:
    for before, after in zip(call.args, call.args[1:], strict=False):
        status, code = _status(before), _text(after, constants)
        if status and code:
            yield code, status
    for keyword in call.keywords:
        if keyword.arg == "code":
            yield from ((code, None) for code in _texts(keyword.value, constants))
    if call.args and isinstance(call.func, ast.Name) and call.func.id == "ErrorInfo":
        yield from ((code, None) for code in _texts(call.args[0], constants))


def _texts(node: ast.AST, constants: Constants) -> Iterator[str]:
    """Yield the codes that an expression may have: a text, or the alternatives of a condition."""
    if isinstance(node, ast.IfExp):
        yield from _texts(node.body, constants)
        yield from _texts(node.orelse, constants)
    elif code := _text(node, constants):
        yield code


def _text(node: ast.AST | None, constants: Constants) -> str | None:
    value = node.value if isinstance(node, ast.Constant) else None
    if isinstance(node, ast.Name):
        value = constants.get(node.id)
    return value if isinstance(value, str) and _CODE.fullmatch(value) else None


def _status(node: ast.AST | None) -> int | None:
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, int) and value in _STATUSES else None
