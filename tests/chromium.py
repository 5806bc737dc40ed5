"""Headless Chromium and the accessibility checker axe, for tests of pages.

A file is looked at by `screenshot` and `violations`; a page that is used, by `used_page` and `violations_of`, which
Playwright drives. Chromium is taken from the machine, and axe's script from the package `axe-playwright-python`; tests
that need one of them are skipped where it is missing (`needs_chromium`, `needs_axe`, `needs_playwright`).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AXE = find_spec("axe_playwright_python")

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
needs_axe = pytest.mark.skipif(
    CHROMIUM is None or AXE is None, reason="no Chromium, or no axe-playwright-python, is installed"
)
needs_playwright = pytest.mark.skipif(
    CHROMIUM is None or AXE is None or find_spec("playwright") is None,
    reason="no Chromium, axe-playwright-python or playwright is installed",
)

SCHEMES = {"light": [], "dark": ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"]}
"""Options for a page in a light or a dark setting of the browser."""

TIMEOUT_MS = 120_000
"""Milliseconds that a page is waited for, which is long for the sake of busy machines."""

_FOUND = re.compile(r'<pre id="axe-found">(.*?)</pre>', re.DOTALL)


def chromium(*arguments: str, scheme: str = "light", timeout: float = 120) -> bytes:
    """Return what headless Chromium prints."""
    assert CHROMIUM is not None
    fixed = ("--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--hide-scrollbars")
    command = [CHROMIUM, *fixed, *SCHEMES[scheme], *arguments]
    return subprocess.run(command, check=True, timeout=timeout, capture_output=True).stdout


def screenshot(address: str, path: Path, scheme: str = "light", size: tuple[int, int] = (1000, 3000)) -> Path:
    """Write what a window of a size, in pixels, shows of an address (`file:` or `http:`) as PNG."""
    width, height = size
    chromium(f"--window-size={width},{height}", f"--screenshot={path}", address, scheme=scheme)
    return path


def violations(document: str, folder: Path, scheme: str = "light") -> list[list[object]]:
    """Return what axe finds wrong with a document: rule, impact and elements of each violation.

    Args:
        document: HTML, such as that of a file; its scripts and its content security policy are left out.
        folder: where files may be written.
        scheme: of `SCHEMES`.
    """
    assert AXE is not None
    assert AXE.submodule_search_locations is not None
    shutil.copy(Path(AXE.submodule_search_locations[0], "axe.min.js"), folder / "axe.js")
    plain = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", document)
    plain = re.sub(r"<script.*?</script>", "", plain, flags=re.DOTALL)
    listed = "found.violations.map(one => [one.id, one.impact, one.nodes.map(node => node.html)])"
    written = f"JSON.stringify({listed}).replaceAll('<', '\\\\u003c')"
    shown = (
        f"document.body.innerHTML = '<pre id=\"axe-found\"></pre>'; document.body.firstChild.textContent = {written};"
    )
    page = folder / "checked.html"
    script = f'<script src="axe.js"></script><script>axe.run().then(found => {{ {shown} }});</script>'
    page.write_text(plain + script, encoding="utf-8")
    dump = chromium("--virtual-time-budget=60000", "--dump-dom", page.as_uri(), scheme=scheme).decode("utf-8")
    found = _FOUND.search(dump)
    assert found, "axe came to no end"
    return json.loads(found[1].replace("&amp;", "&").replace("&gt;", ">"))


@contextmanager
def used_page(scheme: str = "light", width: int = 1200, height: int = 900) -> Iterator[Page]:
    """Yield an empty page; fail at its end where a script threw an error or the console has one, but for answers
    that are errors by their status.

    Args:
        scheme: colours that the user prefers: `light` or `dark`.
        width, height: of the window, in pixels.
    """
    from playwright.sync_api import sync_playwright

    wrong: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            wrong.append(message.text)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": height})
        page.set_default_timeout(TIMEOUT_MS)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", hear)
        try:
            yield page
        finally:
            browser.close()
    assert wrong == []


def violations_of(page: Page) -> list[tuple[str, str, list[str]]]:
    """Return what axe finds wrong with a page as it is now: rule, impact, and the elements."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [(one["id"], one["impact"], [node["html"] for node in one["nodes"]]) for one in found]
