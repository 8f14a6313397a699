"""The page on which people try the API: Swagger UI, its files from an installed package, served by ourselves.

Nothing on it comes from elsewhere, and the page's own policy keeps a browser from asking elsewhere.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Final

from litestar import Request, Response, Router, get
from litestar.exceptions import NotFoundException
from litestar.openapi.plugins import OpenAPIRenderPlugin
from litestar.params import FromPath

_TYPES: Final = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
    "start.js": "text/javascript",
}
_START: Final = b"""window.ui = SwaggerUIBundle({
  url: "/docs/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  tryItOutEnabled: true,
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis],
});
"""
_PAGE: Final = b"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'">
<title>vidflow API</title>
<link rel="icon" href="/docs/assets/favicon-32x32.png">
<link rel="stylesheet" href="/docs/assets/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/assets/swagger-ui-bundle.js"></script>
<script src="/docs/assets/start.js"></script>
</body>
</html>
"""


class SwaggerUiPage(OpenAPIRenderPlugin):
    """Litestar asks it for the page and lets it add the routes of the page's files."""

    def __init__(self) -> None:
        super().__init__(path="/")

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:  # noqa: ARG002 - Litestar's signature
        """The page; it fetches the document itself."""
        return _PAGE

    def receive_router(self, router: Router) -> None:
        """Adds the files' route."""
        router.register(asset)


@get("/assets/{name:str}", sync_to_thread=True, include_in_schema=False)
def asset(name: FromPath[str]) -> Response[bytes]:
    """A file of the page, of those that it needs."""
    if name not in _TYPES:
        raise NotFoundException
    content = _START if name == "start.js" else (_folder() / name).read_bytes()
    return Response(content, media_type=_TYPES[name], headers={"Cache-Control": "max-age=3600"})


def _folder() -> Path:
    """Where flask-swagger-ui keeps Swagger UI's files. The package is found, not imported: there is no Flask in this process."""
    found = importlib.util.find_spec("flask_swagger_ui")
    if found is None or found.origin is None:
        raise NotFoundException(
            detail="the page's files are not installed: install vidflow with its dependencies (flask-swagger-ui)"
        )
    return Path(found.origin).parent / "dist"
