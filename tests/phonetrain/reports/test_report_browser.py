"""The page in headless Chromium: nothing overlaps, nothing is asked of the net, and it fits a phone and the dark."""

import os
import shutil

import pytest

from phonetrain.reports.report import report
from tests.phonetrain.reports.test_report import lived
from tests.training import fit_tiny, resume_tiny

playwright = pytest.importorskip("playwright.sync_api", reason="needs `pip install playwright`")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")

OVERLAPS = """() => [...document.querySelectorAll("svg")].flatMap(svg => {
  const texts = [...svg.querySelectorAll("text")].filter(text => text.textContent.trim());
  const boxes = texts.map(text => text.getBoundingClientRect());
  const found = [];
  for (let i = 0; i < boxes.length; i++) for (let j = 0; j < i; j++) {
    const wide = Math.min(boxes[i].right, boxes[j].right) - Math.max(boxes[i].left, boxes[j].left);
    const high = Math.min(boxes[i].bottom, boxes[j].bottom) - Math.max(boxes[i].top, boxes[j].top);
    // Boxes of letters are a little higher than the letters.
    if (wide > 1 && high > 0.35 * Math.min(boxes[i].height, boxes[j].height))
      found.push(texts[j].textContent + " | " + texts[i].textContent);
  }
  return found;
})"""
# The contrast of each text's colour to the paper, as WCAG 2 has it; only the lowest.
CONTRAST = """() => {
  const light = colour => { const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const ratios = [...document.querySelectorAll("svg text, svg tspan, p, td, th, h1, h2, b, span, li, pre")]
    .filter(each => each.textContent.trim()).map(each => {
      const style = getComputedStyle(each), ink = light(each.closest("svg") ? style.fill : style.color);
      return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05); });
  return Math.min(...ratios);
}"""


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs Chromium on the path, or its place in CHROMIUM")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def pages(learnable_corpus, tmp_path_factory):
    """The page of a trained run, of one with many changes and a rollback, and of several with two seeds."""
    root = tmp_path_factory.mktemp("pages")
    run = fit_tiny(learnable_corpus, root / "one", "epochs=2")
    again = fit_tiny(learnable_corpus, root / "two", "epochs=2", "seed=1")
    other = resume_tiny(fit_tiny(learnable_corpus, root / "three", "epochs=1", "model.dropout=0.3"), "epochs=2",
                        "schedule.on_extend=hold", "optimizer.lr=5e-4")  # fmt: skip
    busy = lived(root / "busy")
    for step in (21, 22, 23, 38):
        busy.append_event("config_changed", segment=1 if step < 35 else 2, epoch=2, step=step, by="resume",
                          key="optimizer.weight_decay", old=None, new=step / 1000)  # fmt: skip
    return [report(run), report(other), report(busy), report([run, again, other], root / "several.html")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 400])
def test_page_is_readable_on_a_desk_and_a_phone_in_the_light_and_in_the_dark(browser, pages, width, scheme):
    view = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    for path in pages:
        tab, said, asked = view.new_page(), [], []
        tab.on("console", lambda message, said=said: said.append(message.text))
        tab.on("pageerror", lambda error, said=said: said.append(str(error)))
        tab.on("request", lambda request, asked=asked: asked.append(request.url))
        tab.goto(path.as_uri())
        assert said == [] and [url for url in asked if not url.startswith(("data:", path.as_uri()))] == []
        assert tab.evaluate(OVERLAPS) == []
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate(CONTRAST) >= 3.0
        dark = tab.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert dark == (scheme == "dark")
        if shots := os.environ.get("SHOTS"):
            tab.screenshot(path=f"{shots}/{path.parent.name}-{path.stem}-{width}-{scheme}.png", full_page=True)
        tab.close()
    view.close()
