"""The daemon's page in Chromium: what is shown, by mouse, keyboard and screen reader, live."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from command_line import CommandLine
from daemon import Daemon

SIZES = {"phone": (400, 850), "desk": (1400, 1000)}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("page")
    na = CommandLine(folder / "host.db")
    null = ["--backend", "null"]
    na.well("network", "create", "web", "10.88.0.1/16", *null, "--cooldown", "600")
    na.well("network", "create", "lab", "10.90.0.1/22", "fd00:90::1/64", *null)
    na.well("allocate", "ci", "-n", "web", "--count", "3000")
    na.well("allocate", "gone", "-n", "web", "--count", "1000")
    na.well("release", "gone")
    na.well("reserve", "10.88.100.5", "db")
    na.well("allocate", "shop", "-n", "lab", "-p", "8080:80", "--label", "app=x")
    with Daemon(folder, "--page", "127.0.0.1:0") as made:
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    assert path, "chromium is not on PATH"
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


def address(daemon: Daemon) -> str:
    found = re.search(r"http://\S+", daemon.out.read_text())
    assert found is not None
    return found[0]


def opened(browser: Browser, daemon: Daemon, size: str, scheme: str) -> Page:
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,  # type: ignore[arg-type]
    )
    page = context.new_page()
    page.said = []  # type: ignore[attr-defined]
    page.on("console", lambda message: page.said.append(message.text))  # type: ignore[attr-defined]
    page.on("pageerror", lambda error: page.said.append(str(error)))  # type: ignore[attr-defined]
    page.asked = []  # type: ignore[attr-defined]
    page.on("request", lambda request: page.asked.append(request.url))  # type: ignore[attr-defined]
    page.goto(address(daemon))
    expect(page.locator("#state")).to_have_text("live")
    expect(page.locator("#leases tbody tr").first).to_be_visible()
    return page


@pytest.fixture
def desk(browser: Browser, daemon: Daemon) -> Iterator[Page]:
    page = opened(browser, daemon, "desk", "dark")
    yield page
    assert page.said == []  # type: ignore[attr-defined]
    page.context.close()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_it_is_readable_in_each_size_and_scheme(
    browser: Browser, daemon: Daemon, size: str, scheme: str, tmp_path: Path
) -> None:
    page = opened(browser, daemon, size, scheme)
    wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1], "nothing is to be scrolled sideways"
    low = page.evaluate(CONTRAST)
    assert low == [], "text of too little contrast (WCAG 2.1 AA)"
    kept = Path(os.environ.get("SCREENSHOTS", tmp_path))
    page.screenshot(path=str(kept / f"page-{size}-{scheme}.png"), full_page=True)
    assert page.said == []  # type: ignore[attr-defined]
    own = address(daemon).split("?", maxsplit=1)[0]
    assert all(url.startswith((own, "data:")) for url in page.asked)  # type: ignore[attr-defined]
    page.context.close()


def test_networks_say_how_full_they_are(desk: Page) -> None:
    row = desk.locator("#networks tbody tr", has_text="web")
    expect(row).to_contain_text("10.88.0.1/16")
    expect(row).to_contain_text("3,000")
    expect(row).to_contain_text("1,000")


def test_who_and_why_are_answered(desk: Page) -> None:
    desk.get_by_label("Address, port or owner").fill("tcp/8080")
    desk.get_by_role("button", name="Ask").click()
    answer = desk.locator("#answer")
    expect(answer).to_contain_text("port 8080/tcp is published by shop")
    expect(answer).to_contain_text("app=x")
    desk.get_by_label("Address, port or owner").fill("10.88.0.999")
    desk.get_by_role("button", name="Ask").click()
    expect(answer).to_contain_text("10.88.0.999")
    desk.said.clear()  # type: ignore[attr-defined]  # Chromium tells of the refusal itself


def test_what_is_held_is_searched(desk: Page) -> None:
    expect(desk.locator("#count")).to_contain_text("the first 25")
    desk.get_by_label("Search owners and addresses").fill("shop")
    expect(desk.locator("#count")).to_have_text("1 found")
    expect(desk.locator("#leases tbody tr")).to_contain_text(["10.90.0.2"])
    desk.get_by_label("Search owners and addresses").fill("<b>nothing</b>")
    expect(desk.locator("#count")).to_have_text("0 found")


def test_the_map_is_zoomed_by_keyboard_and_told_in_words(desk: Page) -> None:
    desk.get_by_label("Network", exact=True).select_option("web")
    part, cell, canvas = desk.locator("#part"), desk.locator("#cell"), desk.locator("#map")
    expect(part).to_contain_text("10.88.0.0/16")
    expect(canvas).to_have_attribute("aria-label", re.compile("3,000 in use"))
    canvas.focus()
    desk.keyboard.press("ArrowDown")
    desk.keyboard.press("ArrowUp")
    expect(cell).to_contain_text("10.88.0.0 to 10.88.0.15")
    expect(cell).to_contain_text("in use")
    desk.keyboard.press("Enter")
    expect(part).to_contain_text("10.88.0.0/24, a cell is an address")
    desk.keyboard.press("ArrowRight")
    desk.keyboard.press("Enter")
    expect(desk.locator("#answer")).to_contain_text("10.88.0.")
    canvas.focus()
    desk.keyboard.press("Escape")
    expect(part).to_contain_text("10.88.0.0/16")
    expect(desk.get_by_role("button", name="Zoom out")).to_be_disabled()


def test_the_map_is_zoomed_by_mouse(desk: Page) -> None:
    desk.get_by_label("Network", exact=True).select_option("web")
    expect(desk.locator("#part")).to_contain_text("10.88.0.0/16")
    desk.locator("#map").click(position={"x": 3, "y": 3})
    expect(desk.locator("#part")).to_contain_text("10.88.0.0/24")
    desk.get_by_role("button", name="Zoom out").click()
    expect(desk.locator("#part")).to_contain_text("10.88.0.0/16")


def test_events_come_live_and_the_tables_follow(desk: Page, daemon: Daemon) -> None:
    daemon.post("allocate", owner="live-one", network="lab", publish=["9000:90"])
    expect(desk.locator("#events li").first).to_contain_text("allocated: network lab")
    desk.get_by_label("Search owners and addresses").fill("live-one")
    expect(desk.locator("#count")).to_have_text("1 found")
    daemon.post("release", owner="live-one")
    expect(desk.locator("#events li").first).to_contain_text("released: owner live-one")
    expect(desk.locator("#count")).to_have_text("0 found")


def test_an_owner_that_is_markup_is_text(desk: Page, daemon: Daemon) -> None:
    daemon.post("allocate", owner="<img src=x onerror=alert(1)>", network="lab")
    expect(desk.locator("#events li").first).to_contain_text("<img src=x")
    assert desk.locator("img").count() == 0
    daemon.post("release", owner="<img src=x onerror=alert(1)>")


def test_all_of_it_is_reached_by_the_tab_key_and_has_a_name(desk: Page) -> None:
    seen = []
    for _ in range(60):
        desk.keyboard.press("Tab")
        seen.append(desk.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"network", "map", "what", "text", "events"} <= set(seen)
    unnamed = desk.evaluate(
        "[...document.querySelectorAll('button, input, select, canvas, a')].filter(e =>"
        " !(e.textContent.trim() || e.getAttribute('aria-label'))).map(e => e.outerHTML)"
    )
    assert unnamed == []
    for table in ("networks", "leases"):
        assert desk.locator(f"#{table} th[scope=col]").count() > 5


def test_a_daemon_that_comes_back_is_found_again(desk: Page, daemon: Daemon) -> None:
    where = address(daemon)
    daemon.stop()
    expect(desk.locator("#state")).to_contain_text("trying again")
    desk.said.clear()  # type: ignore[attr-defined]
    port = where.split(":")[2].split("/", maxsplit=1)[0]
    daemon._arguments = ("--page", f"127.0.0.1:{port}")
    daemon.out.write_text("")
    daemon.start()
    desk.goto(address(daemon))  # its token is another one
    expect(desk.locator("#state")).to_have_text("live")
    desk.said.clear()  # type: ignore[attr-defined]


# Text whose contrast to what is behind it is less than 4.5 to 1.
CONTRAST = """() => {
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = one => { for (; one; one = one.parentElement) { const c = parse(getComputedStyle(one).backgroundColor); if (c.length === 3 || c[3]) return c; } return [255, 255, 255]; };
  const low = [];
  for (const one of document.querySelectorAll('body *')) {
    const own = [...one.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !one.checkVisibility() || one.disabled || ['SCRIPT', 'STYLE'].includes(one.tagName)) continue;
    const [a, b] = [light(parse(getComputedStyle(one).color)), light(behind(one))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) low.push(one.tagName + ' ' + one.textContent.trim().slice(0, 30));
  }
  return [...new Set(low)];
}"""
