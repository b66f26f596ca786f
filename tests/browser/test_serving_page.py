"""The server's own page in a real browser: behind a token, in both themes, by keyboard alone, under its own strict policy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from labserver import CHROMIUM, FLAGS

from aimass_lab.serving.launch import Server
from tests.serving.servers import guarded_server

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine, and no right to install it")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with guarded_server(tmp_path_factory.mktemp("page")) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, browser: Any, server: Server) -> Iterator[Any]:
    """The page before anybody showed a token; whatever it loads from elsewhere, or its policy forbids, fails the test."""
    context = browser.new_context(color_scheme=request.param, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(60_000)
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" and "status of 40" not in message.text else None)
    page.on("request", lambda request: troubles.append(request.url) if not request.url.startswith((server.url, "data:", "blob:")) else None)
    page.goto(server.url)
    page.wait_for_selector("#door:not([hidden])")
    yield page
    context.close()
    assert not troubles


def test_by_keyboard_from_the_token_to_an_answer(page: Any) -> None:
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.getElementById('door-error').textContent.includes('a valid token is needed')")
    page.keyboard.type("secret")
    page.keyboard.press("Enter")
    page.wait_for_selector("#room:not([hidden]) textarea")
    page.focus("textarea")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#answer pre")
    assert "stored answer" in page.inner_text("#timing")
    page.wait_for_function("() => [...document.querySelectorAll('#promises tbody tr')].filter(row => row.innerText.includes('kept')).length >= 3")
    page.fill("textarea", "[[1, 2, 3]]")
    page.press("textarea", "Control+Enter")
    page.wait_for_function("() => document.getElementById('answer').textContent.includes('the model wants [-1, 4]')")
    page.fill("textarea", "[[1, 2, 3, 4], [0, 0, 0, 0]]")
    page.press("textarea", "Control+Enter")
    page.wait_for_function("() => document.getElementById('answer').innerText.includes('[2, 3]')")
    page.wait_for_function("() => Number.parseFloat(document.querySelector('#tile-rate b').textContent) > 0")
    background, text = (page.evaluate(f"() => getComputedStyle(document.body).{name}.match(/\\d+/g).map(Number)") for name in ("backgroundColor", "color"))
    dark = page.evaluate("() => matchMedia('(prefers-color-scheme: dark)').matches")
    assert (sum(background) < sum(text)) == dark
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    page.click("#forget")
    assert page.evaluate("() => sessionStorage.getItem('token')") is None
