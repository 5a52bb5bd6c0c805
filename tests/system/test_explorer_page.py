"""The explorer in a real browser: key, click, player, typing, dropping, zooming, keyboard, phone, hostile text."""

from __future__ import annotations

import csv
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile
import uvicorn
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright
from starlette.types import ASGIApp

from mmva_platform.annotation import open_annotation
from mmva_platform.settings import Settings

from ..unit.helpers.explored import HOSTILE, KEY, explorer_world
from ..unit.helpers.published import lively_bundle, publish_media, publish_points

pytestmark = [pytest.mark.slow, pytest.mark.system]
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@dataclass
class Site:
    """A running explorer, what lies in it, and what its pages did that they should not."""

    url: str
    media: Path
    rows: dict[str, dict[str, Any]]
    faults: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home, media = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(rng.integers(0, 20 * (number + 1), (90, 120, 3), np.uint8)).save(
            media / f"picture-{number}.png"
        )
    for number in range(6):
        wave = np.sin(np.arange(16_000 * 7) * (0.02 + 0.01 * number)) * np.linspace(0, 1, 16_000 * 7)
        soundfile.write(media / f"piece-{number}.wav", wave / 2, 16_000)
    for number, text in enumerate((HOSTILE, "an evening by the sea", "drums and " * 1500)):
        (media / f"words-{number}.txt").write_text(text)
    settings, bundle = Settings(home=home), lively_bundle(home / "bundle", 0)
    publish_media(home / "va", media, bundle, settings)
    (media / "picture-11.png").unlink()  # missing since
    crowd = [
        (f"crowd-{n}", "image" if n % 3 else "music", *rng.normal(0.5, 0.1, 2).clip(0, 1).tolist()) for n in range(3400)
    ]
    publish_points(home / "crowd", crowd, shard_items=2000)
    catalogs = {"mine": str(home / "va"), "crowd": str(home / "crowd")}
    app = explorer_world(catalogs, [media], bundle, settings, home).client.app
    rows = {row["id"]: row for row in open_annotation(str(home / "va")).table().to_pylist()}
    with served(app) as url:
        yield Site(url, media, rows)


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """The app on a free port of loopback, while the block lasts."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    assert chromium, "this test needs a browser: apt-get install chromium"
    expect.set_options(timeout=20_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


def is_fault(said: ConsoleMessage) -> bool:
    """Errors and warnings; not the browser's own note of a refused request, which the page has words for."""
    return said.type in {"error", "warning"} and not re.search(r"status of 4\d\d", said.text)


@pytest.fixture
def page(browser: Browser, site: Site, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page as it opens, with what it must never do written down: errors, requests elsewhere, keys in URLs."""
    options = {"viewport": {"width": 1280, "height": 860}} | getattr(request, "param", {})
    context = browser.new_context(**options)
    context.set_default_timeout(20_000)
    page, faults = context.new_page(), site.faults
    faults.clear()
    page.on("pageerror", lambda error: faults.append(f"error: {error}"))
    page.on("console", lambda said: faults.append(said.text) if is_fault(said) else None)
    page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))

    def look(asked: Any) -> None:
        parts = urlsplit(asked.url)
        if parts.scheme != "blob" and not asked.url.startswith(site.url):
            faults.append(f"request to {asked.url}")
        if KEY in asked.url:
            faults.append(f"key in {asked.url}")

    page.on("request", look)
    page.goto(site.url)
    yield page
    assert page.title() == "MMVA explorer"  # what the hostile caption would change
    assert faults == []
    context.close()


def unlock(page: Page) -> None:
    page.get_by_label("Key", exact=True).fill(KEY)
    page.get_by_role("button", name="Open").click()
    expect(page.locator("#kinds button")).to_have_count(3)
    expect(page.locator("#status")).to_contain_text("items in and around")


def click_item(page: Page, site: Site, name: str) -> None:
    """Click where an item's point is drawn."""
    box = page.locator("#plane").bounding_box()
    assert box
    share_x = 0.088 + (1 - 0.118) * site.rows[name]["valence"]
    share_y = 0.03 + (1 - 0.118) * (1 - site.rows[name]["arousal"])
    page.mouse.click(box["x"] + share_x * box["width"], box["y"] + share_y * box["height"])


def lonely(site: Site, modality: str) -> str:
    """The item of a modality that is furthest from every other point, so that a click can only mean it."""
    points = {name: np.array([row["valence"], row["arousal"]]) for name, row in site.rows.items()}
    names = [name for name, row in site.rows.items() if row["modality"] == modality and name != "picture-11.png"]
    return max(
        names, key=lambda name: min(np.linalg.norm(points[name] - at) for other, at in points.items() if other != name)
    )


def test_a_key_is_asked_for_and_kept_for_the_tab(page: Page, site: Site) -> None:
    page.get_by_label("Key", exact=True).fill("a wrong one")
    page.get_by_role("button", name="Open").click()
    expect(page.locator("#key-why")).to_have_text("The server does not know this key.")
    unlock(page)
    assert page.evaluate("[localStorage.length, document.cookie, location.href]") == [0, "", site.url]
    page.reload()
    expect(page.locator("#kinds button")).to_have_count(3)
    expect(page.locator("#key-dialog")).to_be_hidden()


def test_clicks_open_pictures_sound_and_captions(page: Page, site: Site) -> None:
    unlock(page)
    panel, picture = page.locator("#panel"), lonely(site, "image")
    click_item(page, site, picture)
    expect(panel.get_by_role("heading", name=picture)).to_be_visible()
    expect(panel.get_by_alt_text(f"Picture {picture}")).to_be_visible()
    assert panel.locator(".picture img").evaluate("image => image.naturalWidth") == 120
    expect(panel.get_by_role("heading", name="Nearest music")).to_be_visible()
    expect(panel.get_by_role("heading", name="Nearest images")).to_have_count(0)
    panel.locator(".hit", has_text="piece-").first.click()
    player = panel.locator("audio")
    expect(player).to_be_visible()
    player.evaluate("player => { player.currentTime = 3 }")
    expect(page.locator(".chart .now")).to_have_attribute("visibility", "visible")
    assert player.evaluate("player => Math.round(player.duration)") == 7
    expect(page.locator("#plane .curve")).to_have_count(1)
    click_item(page, site, lonely(site, "caption"))
    expect(panel.locator("blockquote")).not_to_have_text("…")
    words = page.evaluate("decodeURIComponent(location.hash)")
    assert words == f"#mine/{lonely(site, 'caption')}"  # a link to it


def test_hostile_and_long_captions_stay_text_and_missing_media_say_so(page: Page, site: Site) -> None:
    unlock(page)
    panel = page.locator("#panel")
    show = "id => { location.hash = `mine/${encodeURIComponent(id)}` }"
    for name, text in (("words-0.txt", HOSTILE), ("words-2.txt", "drums and drums")):
        page.evaluate(show, name)
        expect(panel.locator("blockquote")).to_contain_text(text)
        box = panel.locator("blockquote").bounding_box()
        assert box
        assert box["height"] < 300
    assert panel.locator("script, blockquote *").count() == 0
    # A link opens its item even if the plane writes the address before the event arrives.
    page.evaluate("location.hash = 'mine/words-0.txt'; history.replaceState(null, '', location.pathname)")
    expect(panel.locator("blockquote")).to_contain_text(HOSTILE)
    page.evaluate(show, "picture-11.png")
    expect(panel.locator(".missing")).to_have_text("The file no longer exists.")
    page.get_by_role("button", name="Jobs", exact=True).click()
    expect(panel.locator(".jobs li")).to_have_count(2)
    expect(panel.locator(".jobs")).to_contain_text(HOSTILE)
    expect(panel.locator(".jobs")).to_contain_text("40 of 160 items · about 1:35 left")
    assert panel.locator("progress").first.evaluate("bar => bar.position") == 0.25


def test_a_sentence_and_a_dropped_picture_find_their_music(page: Page, site: Site) -> None:
    unlock(page)
    panel = page.locator("#panel")
    page.get_by_label("Place something in the plane").fill("an evening by the sea")
    page.keyboard.press("Enter")
    expect(panel.get_by_role("heading", name="Your sentence")).to_be_focused()
    expect(panel.locator(".group").first).to_contain_text("Matching music")
    expect(page.locator("#plane .near.music")).to_have_count(4)
    expect(panel.locator(".hit", has_text="an evening by the sea")).to_contain_text("match 1.00")
    drop = """async bytes => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type: "image/png" }));
        for (const name of ["dragenter", "drop"]) {
            const told = { dataTransfer: transfer, bubbles: true, cancelable: true };
            document.body.dispatchEvent(new DragEvent(name, told));
        }
    }"""
    page.evaluate(drop, list((site.media / "picture-3.png").read_bytes()))
    expect(panel.get_by_role("heading", name="Your picture")).to_be_visible()
    expect(panel.get_by_alt_text("The picture that was dropped")).to_be_visible()
    expect(panel.locator(".hit", has_text="picture-3.png")).to_contain_text("match 1.00")
    page.evaluate(drop, list(b"%PDF-1.7"))
    expect(panel.get_by_role("alert")).to_contain_text("unrecognised data")


def test_a_crowd_becomes_points_when_zoomed(page: Page) -> None:
    unlock(page)
    page.get_by_label("Catalog").select_option("crowd")
    expect(page.locator("#status")).to_contain_text("3,400 items in and around this window; stronger is denser")
    page.locator("#plane").click()
    expect(page.get_by_role("heading", name="Around this place")).to_be_visible()
    expect(page).to_have_url(re.compile(r"#crowd\?near=0\.\d+"))
    page.reload()
    expect(page.get_by_role("heading", name="Around this place")).to_be_visible()
    expect(page.get_by_label("Catalog")).to_have_value("crowd")
    page.locator("#panel").get_by_label("Close").click()
    expect(page).to_have_url(re.compile("#crowd$"))
    page.locator("#plane").hover()
    for _ in range(3):
        page.mouse.wheel(0, -300)
    expect(page.locator("#status")).not_to_contain_text("denser")
    expect(page.locator("#zoom-reset")).not_to_have_text("1\u00d7")
    page.locator("#kinds button", has_text="Images").click()
    expect(page.locator("#kinds button", has_text="Images")).to_have_attribute("aria-pressed", "false")
    page.get_by_label("Show the whole plane").click()
    expect(page.locator("#status")).to_contain_text("1,134 items")
    expect(page.get_by_role("button", name="CSV")).to_be_enabled()
    page.locator("#kinds button", has_text="Music").click()
    expect(page.locator("#veil")).to_have_text("All modalities are hidden.")
    expect(page.get_by_role("button", name="CSV")).to_be_disabled()


def test_what_is_not_there_is_said(page: Page, site: Site) -> None:
    panel = page.locator("#panel")
    page.get_by_role("button", name="Cancel").click()
    expect(panel.get_by_role("alert")).to_have_text("A key is needed to look at this.")
    page.route("**/v1/explore", lambda route: route.fulfill(json={"catalogs": []}))
    panel.get_by_role("button", name="Try again").click()
    expect(panel.get_by_role("heading", name="No catalog yet")).to_be_visible()
    expect(page.locator("#place")).to_be_hidden()
    page.unroute("**/v1/explore")
    none = {"items": 0, "by_modality": {}, "moods": [], "model": {"name": "mmva", "version": None}}
    page.route("**/catalogs/mine", lambda route: route.fulfill(json=none))
    page.evaluate("key => sessionStorage.setItem('mmva-key', key)", KEY)
    page.reload()
    expect(panel.get_by_role("heading", name="An empty catalog")).to_be_visible()


def test_the_keyboard_is_enough(page: Page) -> None:
    unlock(page)
    order = []
    page.locator("#catalog").focus()
    for _ in range(17):
        order.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        page.keyboard.press("Tab")
    wanted = ["catalog", "show-jobs", "change-key", "mood", "width", "csv", "plane", "zoom-in", "sentence", "choose"]
    assert [name for name in order if name in wanted][: len(wanted)] == wanted
    page.locator("#plane").focus()
    said, heard = page.locator("#said"), []
    for arrow in ("ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown"):
        page.keyboard.press(arrow)
        heard.append(said.text_content())
    assert all("valence" in each or "No item" in each for each in heard)
    assert len(set(heard)) > 1
    page.keyboard.press("Enter")
    heading = page.locator("#panel h2")
    expect(heading).to_be_focused()
    expect(heading).not_to_have_text("Look around")
    hits = page.locator("#panel .hit")
    hits.first.focus()
    page.keyboard.press("ArrowDown")
    expect(hits.nth(1)).to_be_focused()
    name = hits.nth(1).locator(".name").text_content()
    page.keyboard.press("Enter")
    expect(heading).to_be_focused()
    if name and name.startswith("pi"):
        expect(heading).to_have_text(name)
    page.keyboard.press("Escape")
    expect(page.locator("#plane")).to_be_focused()
    expect(heading).to_have_text("Look around")
    page.keyboard.press("+")
    expect(page.locator("#zoom-reset")).to_have_text("2\u00d7")
    page.keyboard.press("0")
    expect(page.locator("#zoom-reset")).to_have_text("1\u00d7")


PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True, "color_scheme": "dark"}


@pytest.mark.parametrize("page", [PHONE], indirect=True)
def test_a_phone_shows_all_of_it(page: Page, site: Site) -> None:
    unlock(page)
    click_item(page, site, lonely(site, "music"))
    expect(page.locator("#panel audio")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    low = "[...document.querySelectorAll('button')].filter(b => b.offsetParent && b.offsetHeight < 32).length"
    assert page.evaluate(low) == 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"


def test_filters_and_window_are_in_the_address_and_a_link_shows_the_same(page: Page, site: Site) -> None:
    unlock(page)
    moods = sorted({row["mood"] for row in site.rows.values()})
    wanted = moods[0]
    count = sum(row["mood"] == wanted for row in site.rows.values())
    page.get_by_label("Mood").select_option(wanted)
    expect(page.locator("#status")).to_have_text(re.compile(rf"^{count} items? in and around this window"))
    page.get_by_role("button", name="Zoom in").click()
    expect(page).to_have_url(re.compile(r"at=[\d.,%C]+"))
    address = page.url
    assert f"mood={wanted}" in address
    page.reload()
    expect(page.get_by_label("Mood")).to_have_value(wanted)
    expect(page.locator("#zoom-reset")).to_have_text("2\u00d7")
    expect(page).to_have_url(address)
    page.get_by_role("button", name="Show the whole plane").click()
    page.get_by_label("Mood").select_option("any")
    expect(page).to_have_url(site.url)


def test_a_sentence_is_in_the_address(page: Page, site: Site) -> None:
    unlock(page)
    page.get_by_label("Place something in the plane").fill("an evening by the sea")
    page.get_by_role("button", name="Place").click()
    expect(page.locator("#panel blockquote")).to_have_text("an evening by the sea")
    expect(page).to_have_url(re.compile("text=an"))
    page.reload()
    expect(page.locator("#panel blockquote")).to_have_text("an evening by the sea")


def test_the_window_is_saved_as_csv(page: Page, site: Site) -> None:
    unlock(page)
    with page.expect_download() as saved:
        page.get_by_role("button", name="CSV").click()
    assert saved.value.suggested_filename == "items.csv"
    with Path(saved.value.path()).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["id"] for row in rows} == set(site.rows)


def test_a_key_in_the_address_is_taken_out_of_it(page: Page, site: Site) -> None:
    page.goto(f"{site.url}#key={KEY}")
    page.reload()
    expect(page.locator("#kinds button")).to_have_count(3)
    assert page.url == site.url
