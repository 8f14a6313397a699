"""A page in a browser, with its requests and its errors."""

from __future__ import annotations

from typing import Any


class ObservedPage:
    """A page that records which URLs it requested, which of them failed, and which errors its scripts reported."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.requested: list[str] = []
        self.failed: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.requested.append(request.url))
        page.on("requestfailed", lambda request: self.failed.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)
