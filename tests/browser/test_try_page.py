"""The page to try the API in a real browser: it works, and it loads nothing from other hosts."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from tests.browser.observed_page import ObservedPage
from tests.integration.api_server import ready_api

from vidflow.settings import ApiOptions


@pytest.fixture(scope="module")
def client(database_url: str) -> Iterator[httpx.Client]:
    with ready_api(ApiOptions(database_url=database_url)) as client:
        yield client


def test_the_page_at_the_root_shows_every_endpoint_without_requests_to_other_hosts(
    client: httpx.Client, observed_page: ObservedPage
) -> None:
    observed_page.page.goto(f"{client.base_url}/")
    observed_page.page.wait_for_selector(".opblock-summary-path")
    paths = client.get("/docs/openapi.json").json()["paths"]
    shown = {
        text.strip().replace("\u200b", "")
        for text in observed_page.page.locator(".opblock-summary-path").all_inner_texts()
    }
    assert shown == set(paths)
    assert observed_page.requested
    assert all(url.startswith((f"{client.base_url}/", "data:")) for url in observed_page.requested), (
        observed_page.requested
    )
    assert (observed_page.failed, observed_page.errors) == ([], [])


def test_an_endpoint_can_be_tried_on_the_page(client: httpx.Client, observed_page: ObservedPage) -> None:
    observed_page.page.goto(f"{client.base_url}/docs")
    live = observed_page.page.locator(".opblock-get", has_text="/health/live")
    live.locator(".opblock-summary").click()
    live.get_by_role("button", name="Execute").click()
    response = live.locator(".live-responses-table .response")
    response.wait_for()
    assert response.locator(".response-col_status").inner_text().startswith("200")
    assert '"status": "ok"' in response.inner_text()
    assert f"{client.base_url}/health/live" in observed_page.requested
    assert (observed_page.failed, observed_page.errors) == ([], [])
