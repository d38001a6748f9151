"""The page as a browser shows it: Debian's Chromium, which loads the file as a user's would."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcgemma.reports.content import report_of
from hpcgemma.reports.page import write_page
from hpcgemma.runs import tracking
from hpcgemma.runs.store import RunEntry
from hpcgemma.slurm.client import SlurmClient
from tests.reports.eventful import HOSTILE

PROGRAM = shutil.which("chromium")

pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="Chromium is not installed here; run tools/install_test_programs.sh browser"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser of this module's own; it ends with its driver, and that with this process."""
    from playwright.sync_api import sync_playwright

    # Root may not use Chromium's sandbox; what is loaded here is our own file.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=PROGRAM, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


class Shown:
    """A page in the browser, and what it complained of and asked for.

    Args:
        browser: The browser.
        file: The page's file.
        options: Of the browser's context, as its width.
    """

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.page = browser.new_context(**options).new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())


@pytest.fixture
def file(eventful: RunEntry) -> Path:
    """The report of the eventful run."""
    report = report_of(eventful, tracking.track([eventful], SlurmClient())[0])
    write_page(report, eventful.folder.report_file)
    return eventful.folder.report_file


def test_nothing_is_fetched_and_nothing_is_complained_of(browser: Any, file: Path) -> None:
    shown = Shown(browser, file)
    assert shown.page.locator("#charts figure").count() == 5
    assert shown.requests == [file.as_uri()]
    assert shown.complaints == []


def test_hostile_words_are_shown_and_not_run(browser: Any, file: Path) -> None:
    page = Shown(browser, file).page
    assert page.evaluate("typeof hacked") == "undefined"
    assert page.locator("img").count() == 0
    assert HOSTILE in page.locator("#attempts").inner_text()
    assert HOSTILE in page.locator("#incidents").inner_text()
    page.locator("summary", has_text="answers").click()
    assert HOSTILE in page.locator(".answer").first.inner_text()


def test_a_script_that_comes_in_all_the_same_is_not_run(browser: Any, file: Path) -> None:
    shown = Shown(browser, file)
    shown.page.evaluate(
        "() => { const added = document.createElement('script'); added.textContent = 'hacked = 3'; "
        "document.body.append(added); }"
    )
    assert shown.page.evaluate("typeof hacked") == "undefined"
    assert "Content Security Policy" in " ".join(shown.complaints)


def test_pointing_at_a_curve_shows_its_values_in_every_chart(browser: Any, file: Path) -> None:
    page = Shown(browser, file).page
    losses, rates = (page.locator("#charts figure").nth(number).locator(".u-value") for number in range(2))
    assert losses.all_inner_texts() == ["-", "-", "-"]
    chart = page.locator("#charts .u-over").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    step, loss, held_out = losses.all_inner_texts()
    assert 140 < int(step) < 160
    assert float(loss) == pytest.approx(6 / int(step) ** 0.5, rel=1e-4)
    assert held_out == "-"
    assert rates.all_inner_texts() == [step, "1.00e-4"]


def test_curves_are_drawn_and_a_logarithmic_axis_draws_them_otherwise(browser: Any, file: Path) -> None:
    page = Shown(browser, file).page
    chart = page.locator("#charts figure").first
    plain = chart.locator("canvas").evaluate("canvas => canvas.toDataURL()")
    chart.locator("input").check()
    logarithmic = chart.locator("canvas").evaluate("canvas => canvas.toDataURL()")
    assert plain != logarithmic
    colours = chart.locator("canvas").evaluate(
        "canvas => { const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height); "
        "const seen = new Set(); for (let i = 0; i < data.length; i += 4) "
        "if (data[i + 3] === 255) seen.add(`${data[i]},${data[i + 1]},${data[i + 2]}`); return [...seen]; }"
    )
    assert "0,114,178" in colours


def test_bars_have_their_colours_and_tell_what_they_are(browser: Any, file: Path) -> None:
    page = Shown(browser, file).page
    lost = page.locator("svg rect.lost")
    assert lost.count() == 2
    assert lost.last.evaluate("bar => getComputedStyle(bar).fill") == "rgb(213, 94, 0)"
    assert lost.last.locator("title").text_content() == "attempt 2: lost: made again later for 50 s, 37 steps"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_window_scrolls_down_only_and_both_schemes_can_be_read(browser: Any, file: Path, scheme: str) -> None:
    page = Shown(browser, file, viewport={"width": 360, "height": 700}, color_scheme=scheme).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    ink, paper = page.evaluate(
        "() => { const { color, backgroundColor } = getComputedStyle(document.body); return [color, backgroundColor] }"
    )
    light, dark = (sum(int(part) for part in each.strip("rgb()").split(",")) for each in (paper, ink))
    assert (light > dark) is (scheme == "light")
    assert abs(light - dark) > 400


def test_without_scripts_all_but_the_curves_is_there(browser: Any, file: Path) -> None:
    page = Shown(browser, file, java_script_enabled=False).page
    assert "scripts are switched off" in page.locator("noscript").inner_text()
    assert "37 steps" in page.locator("#attempts").inner_text()
