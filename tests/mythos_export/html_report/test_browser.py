"""The report as people meet it: in a real browser, on a laptop and a phone, light and dark, by keyboard."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mythos_export.bundle import Bundle
from mythos_export.html_report.write import REPORT, remake_report
from mythos_export.records.measurements import Evaluation, Latency

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

LAPTOP, PHONE = 1280, 375
_PAPER = 718  # CSS pixels of A4 within a browser's margins
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless",
    "--no-sandbox",  # root has no other way
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """A headless Chromium. Without one the tests are skipped, but not in CI."""
    chromium = next(filter(None, map(shutil.which, _BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        words = "no Chromium with its driver here; Debian's packages are chromium and chromium-driver"
        pytest.fail(words) if os.environ.get("CI") else pytest.skip(words)
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = chromium
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with Chrome(options=options, service=Service(driver)) as chrome:
        yield chrome


@pytest.fixture(scope="module")
def reports(proven_int8: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report with everything in it, and one with as little as there can be."""
    folder = tmp_path_factory.mktemp("reports")
    full = Path(shutil.copytree(proven_int8, folder / "full"))
    scores = [
        {"hops": hops, "loops": loops, "correct": 15, "total": 20, "low": 0.5, "high": 0.9}
        for hops in range(1, 13)
        for loops in (1, 2, 4, 8, 12, 16)
    ]
    accuracy = {"precision": "int8", "prompts": 240, "trained_hops": 6, "loops": [1, 2, 4, 8, 12, 16]}
    accuracy |= {"scores": scores, "reference": scores, "differing": 0}
    measurements = [
        {
            "runtime": "onnxruntime 1.31.1",
            "loops": loops,
            "past": past,
            "ms_per_token": loops + past / 512,
            "threads": 2,
        }
        for loops in (1, 4, 16)
        for past in (128, 1024, 8192)
    ]
    latency = {"precision": "int8", "machine": "a test", "measured": "2026-11-22", "measurements": measurements}
    remake_report(Bundle.open(full), Evaluation.model_validate(accuracy), Latency.model_validate(latency))
    return {"full": full / REPORT, "least": tiny_bundle / REPORT}


@pytest.fixture(params=["full", "least"])
def report(request: pytest.FixtureRequest, reports: dict[str, Path]) -> Path:
    """Either of them."""
    return reports[request.param]


def show(browser: Chrome, report: Path, width: int = LAPTOP, *, dark: bool = False, media: str = "") -> None:
    """Open a report in a window of that width."""
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [theme]})
    browser.get_log("browser"), browser.get_log("performance")  # of what came before
    browser.get(report.resolve().as_uri())


def ask(browser: Chrome, script: str) -> Any:
    return browser.execute_script(script)


def test_it_fetches_nothing_and_complains_of_nothing(browser: Chrome, report: Path) -> None:
    show(browser, report)
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert report.resolve().as_uri() in asked, "the log sees requests"
    assert [url for url in asked if not url.startswith("data:")] == [report.resolve().as_uri()]
    assert browser.get_log("browser") == []
    assert ask(browser, "return document.title").endswith("report of a mythos-export bundle")


def test_what_would_be_fetched_or_run_is_not(browser: Chrome, report: Path, tmp_path: Path) -> None:
    """Were markup ever to get through, the page's own policy stops it: plant some."""
    page = report.read_text(encoding="utf-8")
    planted = (
        "<script>document.title='run'</script><img src='https://example.invalid/x.png' alt=''><p style='color:red'>"
    )
    infected = tmp_path / "infected.html"
    infected.write_text(page.replace("<main", planted + "<main"), encoding="utf-8")
    show(browser, infected)
    assert ask(browser, "return document.title") != "run"
    complaints = " ".join(entry["message"] for entry in browser.get_log("browser"))
    assert complaints.count("Content Security Policy") >= 3


@pytest.mark.parametrize("width", [LAPTOP, PHONE])
def test_the_page_is_no_wider_than_the_window(browser: Chrome, report: Path, width: int) -> None:
    show(browser, report, width)
    assert ask(browser, "return document.documentElement.scrollWidth") <= width
    ask(browser, "document.querySelectorAll('details').forEach(each => each.open = true)")
    assert ask(browser, "return document.documentElement.scrollWidth") <= width, "tables scroll in boxes of their own"


@pytest.mark.parametrize("width", [LAPTOP, PHONE])
def test_no_word_of_a_tile_is_cut_off(browser: Chrome, report: Path, width: int) -> None:
    show(browser, report, width)
    tiles = "[...document.querySelectorAll('.tiles > div')]"
    assert ask(browser, f"return {tiles}.length") == 6
    assert ask(browser, f"return {tiles}.filter(each => each.scrollWidth > each.clientWidth).length") == 0


@pytest.mark.parametrize("width", [LAPTOP, PHONE])
def test_letters_in_pictures_are_large_enough_and_within_them(
    browser: Chrome, reports: dict[str, Path], width: int
) -> None:
    show(browser, reports["full"], width)
    found = ask(
        browser,
        """return [...document.querySelectorAll('svg')].flatMap(svg => {
            const box = svg.viewBox.baseVal, scale = svg.getBoundingClientRect().width / box.width;
            return [...svg.querySelectorAll('text')].map(text => {
                const at = text.getBBox(), size = parseFloat(getComputedStyle(text).fontSize) * scale;
                const inside = at.x >= -1 && at.x + at.width <= box.width + 1 && at.y >= -1
                    && at.y + at.height <= box.height + 1;
                return [text.textContent, size, inside];
            });
        })""",
    )
    assert len(found) > 10
    for text, size, inside in found:
        assert size >= 9, f"{text!r} is {size:.1f} pixels high"
        assert inside, f"{text!r} leaves its picture"


@pytest.mark.parametrize(("width", "dark"), [(LAPTOP, False), (PHONE, True)])
def test_it_is_accessible(browser: Chrome, report: Path, width: int, dark: bool) -> None:
    """By axe-core's rules, contrast among them."""
    from axe_core_python.selenium import Axe

    show(browser, report, width, dark=dark)
    ask(browser, "document.querySelectorAll('details').forEach(each => each.open = true)")
    found = Axe().run(browser)
    assert len(found["passes"]) > 20
    assert [(each["id"], each["help"], each["nodes"][0]["html"][:300]) for each in found["violations"]] == []
    # Its pictures are too many colours for axe; test_report.py holds their shades against their letters.
    unsure = {each["id"] for each in found["incomplete"]} - {"color-contrast"}
    assert unsure == set()


def test_the_themes_differ(browser: Chrome, report: Path) -> None:
    grounds = []
    for dark in (False, True):
        show(browser, report, dark=dark)
        grounds.append(ask(browser, "return getComputedStyle(document.body).backgroundColor"))
    assert grounds[0] != grounds[1]


def test_every_control_is_reached_by_keyboard_in_order_and_seen(browser: Chrome, report: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    show(browser, report)
    wanted = ask(browser, "return document.querySelectorAll('a, summary, [tabindex=\"0\"]').length")
    closed = ask(browser, "return document.querySelectorAll('details [tabindex=\"0\"]').length")
    seen = []
    for _ in range(wanted - closed):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        seen.append(
            ask(
                browser,
                """const now = document.activeElement, box = now.getBoundingClientRect();
                return [now.tagName, getComputedStyle(now).outlineStyle, box.left >= 0 && box.width > 0,
                    [...document.querySelectorAll('*')].indexOf(now)]""",
            )
        )
    assert seen[0][0] == "A" and len({place for *_, place in seen}) == len(seen)
    assert [tag for tag, *_ in seen].count("SUMMARY") == ask(
        browser, "return document.querySelectorAll('summary').length"
    )
    assert all(outline == "solid" and visible for _, outline, visible, _ in seen)
    assert [place for *_, place in seen] == sorted(place for *_, place in seen)


def test_a_fold_opens_by_keyboard(browser: Chrome, reports: dict[str, Path]) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    show(browser, reports["full"])
    summary = browser.find_element(By.TAG_NAME, "summary")
    summary.send_keys(Keys.ENTER)
    assert ask(browser, "return document.querySelector('details').open")
    assert ask(browser, "return document.querySelector('details table').getBoundingClientRect().height") > 0


def test_on_paper_the_numbers_are_there(browser: Chrome, reports: dict[str, Path]) -> None:
    show(browser, reports["full"], media="print")
    height = ask(browser, "return document.querySelector('details table').getBoundingClientRect().height")
    assert height > 0, "folds are open"
    assert ask(browser, "return getComputedStyle(document.querySelector('nav')).display") == "none"
    show(browser, reports["full"], _PAPER, media="print")
    assert ask(browser, "return document.documentElement.scrollWidth") <= _PAPER, "or the browser shrinks everything"
