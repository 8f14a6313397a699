"""Write the generated pages: `python -m docs.generator`. tests/docs/test_generated.py fails if one is out of date."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from docs.generator import cli, error_codes, http_api, kafka_messages, lifecycle, metrics, tables

REFERENCE: Final = Path(__file__).parents[1] / "reference"
PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "_lifecycle.md": lifecycle.build_table,
    "lifecycle.svg": lifecycle.build_diagram,
    "cli.md": cli.build_page,
    "http-api.md": http_api.build_page,
    "openapi.json": http_api.build_document,
    "messages.md": kafka_messages.build_page,
    "asyncapi.json": kafka_messages.build_asyncapi,
    "tables.md": tables.build_page,
    "metrics.md": metrics.build_page,
    "errors.md": error_codes.build_page,
}


def main() -> None:
    """Write each page."""
    for name, build in PAGES.items():
        (REFERENCE / name).write_text(build())


if __name__ == "__main__":
    main()
