"""The page in a real browser: everything is drawn, nothing overflows, nothing is fetched."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from stages.reporting.page import page
from tests.reporting.browser import Browser, browser, find_chromium
from tests.reporting.test_page import full_experiment

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the path")
# What Chromium itself asks for, page or no page, whatever its flags say.
BROWSERS_OWN = ("google.com", "googleapis.com", "gvt1.com")

# Of every picture: its size; the text in it that leaves it; and what of the page sticks out to the right.
PICTURES = "[...document.querySelectorAll('figure svg')].map(svg => svg.getBoundingClientRect().toJSON())"
CUT_TEXTS = """[...document.querySelectorAll('figure svg')].flatMap(svg => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(text => {
    const own = text.getBoundingClientRect();
    return own.left < box.left - 1 || own.right > box.right + 1 || own.top < box.top - 1 || own.bottom > box.bottom + 1;
  }).map(text => text.textContent);
})"""
OVERFLOWING = """[...document.querySelectorAll('body *')].filter(element =>
  !element.closest('svg') && !element.parentElement.closest('.scroll, .picture')
  && element.getBoundingClientRect().right > document.documentElement.clientWidth + 1
).map(element => element.outerHTML.slice(0, 80))"""
CONTRASTS = """(() => {
  const channels = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const luminance = colour => channels(colour).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const paper = luminance(getComputedStyle(document.body).backgroundColor);
  const against = colour => {
    const ink = luminance(colour);
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  };
  return [
    ...[...document.querySelectorAll('svg text')].map(text => against(getComputedStyle(text).fill)),
    ...[...document.querySelectorAll('p, td, th, figcaption, summary, a')].map(e => against(getComputedStyle(e).color)),
  ];
})()"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(page("Merged models, evaluated", [full_experiment()]), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert CHROMIUM is not None
    with browser(CHROMIUM, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_everything_is_drawn_and_nothing_fetched(
    chromium: Browser, report: Path, tmp_path: Path, width: int, scheme: Literal["light", "dark"], scripts: bool
) -> None:
    assert chromium.open(report, width=width, scheme=scheme, scripts=scripts) == [report.as_uri()]
    pictures = chromium.evaluate(PICTURES)
    # Accuracy, λ, the search: one for each of four tasks or models. Trade-off; masses; two matrices; a grid; two bars.
    assert len(pictures) == 4 + 4 + 1 + 4 + 4 + 2 + 1 + 2
    assert all(picture["width"] > 50 and picture["height"] > 50 for picture in pictures)
    assert chromium.evaluate(CUT_TEXTS) == []
    artefacts = Path(os.environ.get("ARTIFACTS", tmp_path))
    artefacts.mkdir(parents=True, exist_ok=True)
    screenshot = artefacts / f"report-{width}-{scheme}{'' if scripts else '-no-scripts'}.png"
    chromium.screenshot(screenshot)
    assert screenshot.read_bytes().startswith(b"\x89PNG")
    # With all tables open, which takes a click and no script.
    chromium.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    assert chromium.evaluate(OVERFLOWING) == []
    assert chromium.evaluate("document.documentElement.scrollWidth") == width
    assert min(chromium.evaluate(CONTRASTS)) >= 4.5  # WCAG 2.1, level AA
    background = chromium.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 254)", "dark": "rgb(20, 24, 29)"}[scheme]
    assert foreign(chromium) == []


def test_a_page_that_fetches_is_noticed(chromium: Browser, tmp_path: Path) -> None:
    """That the tests above can fail: by what the browser says, and by what the proxy is asked for."""
    file = tmp_path / "fetching.html"
    file.write_text('<img src="http://example.invalid/picture.png"><p style="width: 2000px">Wide</p>')
    before = len(chromium.requested)
    assert "http://example.invalid/picture.png" in chromium.open(file, width=400, scheme="light", scripts=True)
    assert any("http://example.invalid/picture.png" in line for line in chromium.requested[before:])
    assert chromium.evaluate(OVERFLOWING) != []
    del chromium.requested[before:]


def foreign(chromium: Browser) -> list[str]:
    """What the proxy has been asked for, but by the browser itself."""
    return [line for line in chromium.requested if not any(host in line for host in BROWSERS_OWN)]
