"""The page to try the API: Swagger UI, served from the files of an installed package.

The page loads nothing from other hosts, and its content security policy does not let the browser do so.
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
    """Renders the page for Litestar and registers the route of its files."""

    def __init__(self) -> None:
        super().__init__(path="/")

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:  # noqa: ARG002 - Litestar's signature
        """Return the page. It fetches the OpenAPI document itself."""
        return _PAGE

    def receive_router(self, router: Router) -> None:
        """Register the route of the page's files."""
        router.register(asset)


@get("/assets/{name:str}", sync_to_thread=True, include_in_schema=False)
def asset(name: FromPath[str]) -> Response[bytes]:
    """Return a file of the page."""
    if name not in _TYPES:
        raise NotFoundException
    content = _START if name == "start.js" else (_folder() / name).read_bytes()
    return Response(content, media_type=_TYPES[name], headers={"Cache-Control": "max-age=3600"})


def _folder() -> Path:
    """Return the folder of Swagger UI in flask-swagger-ui. The package is located but not imported, so that Flask is not loaded."""
    spec = importlib.util.find_spec("flask_swagger_ui")
    if spec is None or spec.origin is None:
        raise NotFoundException(
            detail="The page's files are not installed. Install vidflow with its dependencies (flask-swagger-ui)."
        )
    return Path(spec.origin).parent / "dist"
