"""The documentation site builds without a warning and works in a browser, offline.

Skipped without mkdocs (the extra `docs`), and where there is no Chromium.
"""

from __future__ import annotations

import functools
import http.server
import importlib
import importlib.util
import json
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = Path("/usr/bin/chromium")
DOCUMENTED = (
    "innerloop",
    "innerloop.bounds",
    "innerloop.bounds.constants",
    "innerloop.bounds.linear",
    "innerloop.bounds.nonconvex",
    "innerloop.functional",
    "innerloop.learners",
    "innerloop.rl",
    "innerloop.studies.linear_regression",
)

needs_chromium = pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Chromium")
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None or not (ROOT / "mkdocs.yml").exists(),
    reason="needs innerloop[docs] and the repository",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def test_every_public_name_has_its_place(site):
    """By the inventory that other projects link with: at its own module or where it is public."""
    lines = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    names = {line.split()[0] for line in zlib.decompress(lines).decode().splitlines()}
    shown = {name.rpartition(".")[2] for name in names}
    missing = []
    for module in map(importlib.import_module, DOCUMENTED):
        for name in module.__all__:
            value = getattr(module, name)
            own = getattr(value, "__module__", None)
            places = {f"{module.__name__}.{name}", f"{own}.{name}"}
            if own is not None and getattr(value, "__name__", name) == name:
                found = bool(places & names)
            else:  # modules and plain values
                found = name in shown
            if not found:
                missing.append(f"{module.__name__}.{name}")
    assert missing == []


def test_search_finds_meta_grad(site):
    found = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    places = {page["location"] for page in found["docs"] if "meta_grad" in page["text"]}
    assert any(place.startswith("api/operations/") for place in places)


def test_nothing_is_loaded_from_another_host(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for mark in ('src="http', "src='http", 'stylesheet" href="http', "@import"):
            assert mark not in text, f"{page.relative_to(site)}: {mark}"


PROBE = b"""<!DOCTYPE html><title>probe</title>
<iframe id="page" src="/?q=meta_grad" width="1200" height="900"></iframe><img src="/wait">
<script>
setInterval(() => {
  const page = document.getElementById("page").contentDocument;
  const results = page ? [...page.querySelectorAll(".md-search-result__item a")] : [];
  const found = results.find((each) => each.textContent.includes("meta_grad"));
  if (found) fetch("/found", {method: "POST", body: found.href});
}, 100);
</script>"""


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the site, and a page that tells the test what a search found."""

    def do_GET(self):
        if self.path == "/probe":
            self.answer(PROBE)
        elif self.path == "/wait":  # the browser holds the page until it has loaded
            self.server.found.wait(60)
            self.answer(b"")
        else:
            super().do_GET()

    def do_POST(self):
        if not self.server.found.is_set():
            self.server.first = self.rfile.read(int(self.headers["Content-Length"])).decode()
            self.server.found.set()
        self.answer(b"")

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server(site):
    """The site, served on this machine alone."""
    handler = functools.partial(Handler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.found, server.first = threading.Event(), ""
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.found.set()
        server.shutdown()
        thread.join()


def shown(server, page, folder):
    """The document that a browser makes of a page."""
    command = [
        str(CHROMIUM),
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={folder}", "--dump-dom"),
        f"http://127.0.0.1:{server.server_address[1]}/{page}",
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout


@needs_chromium
@pytest.mark.parametrize(
    ("page", "wanted"),
    [
        ("", ["MAML without the slow loop", 'src="images/speed.svg"']),
        ("api/operations/", ["<math", "<munderover>", 'id="innerloop.functional.meta_grad"']),
    ],
    ids=["front", "formula"],
)
def test_pages_in_a_browser(page, wanted, server, tmp_path):
    document = shown(server, page, tmp_path)
    for text in wanted:
        assert text in document


@needs_chromium
def test_search_in_a_browser(server, tmp_path):
    shown(server, "probe", tmp_path)
    assert "/api/" in server.first
