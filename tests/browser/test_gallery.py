"""The gallery in Chromium, against the real service with models of a few numbers."""

import hashlib
import io
import re
import urllib.request
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.browser.conftest import Open

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

pytestmark = pytest.mark.browser

PAGE = 40
"""IMAGES_A_PAGE of grid.js."""


def sources(page: "Page") -> list[str]:
    """Return the addresses of the tiles, once every picture has loaded."""
    page.wait_for_function(
        "count => { const all = [...document.querySelectorAll('.tile img')];"
        " return all.length === count && all.every(i => i.complete && i.naturalWidth > 0); }",
        arg=PAGE,
    )
    found: list[str] = page.eval_on_selector_all(".tile img", "all => all.map(i => i.src)")
    return found


def rows(page: "Page") -> list[int]:
    return [int(parse_qs(urlsplit(source).query)["start"][0]) for source in sources(page)]


def digests(page: "Page") -> list[str]:
    """Return what the bytes of each tile are, as the browser has them."""
    pictures: list[list[int]] = page.evaluate(
        "sources => Promise.all(sources.map(async source => "
        "[...new Uint8Array(await (await fetch(source, {headers: {Accept: 'image/png'}}))"
        ".arrayBuffer())]))",
        sources(page),
    )
    return [hashlib.sha256(bytes(picture)).hexdigest() for picture in pictures]


def picture(url: str) -> np.ndarray[Any, Any]:
    request = urllib.request.Request(url, headers={"Accept": "image/png"})
    with urllib.request.urlopen(request) as answer:
        return np.asarray(Image.open(io.BytesIO(answer.read())))


def coloured(page: "Page") -> int:
    """Return how many pixels of the plot are of no grey, once it is drawn."""
    page.wait_for_selector("canvas")
    # A canvas is there before anything is drawn on it.
    count: int = page.wait_for_function(
        "() => { const c = document.querySelector('canvas');"
        " const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        " let n = 0; for (let i = 0; i < d.length; i += 4)"
        " if (d[i + 3] > 100 && d[i + 1] - d[i] > 40) n++; return n; }"
    ).json_value()
    return count


def test_page_lists_every_model_with_what_it_can_do_and_its_figure(open_page: Open) -> None:
    page = open_page("/")
    listed = page.get_by_role("navigation", name="Models")
    for name in ("Affine", "Grains", "Ppca", "Tiles"):
        assert listed.get_by_text(name, exact=True).first.is_visible()
    affine = listed.get_by_role("link", name="Affine").inner_text()
    assert "Flow · samples, codes, densities" in affine
    assert "nll 1.5 ± 0.1 nats" in affine


def test_model_that_is_refused_says_why(open_page: Open) -> None:
    page = open_page("/")
    link = page.get_by_role("link", name="broken")
    assert "Not served. Version 1:" in link.inner_text()
    link.click()
    assert "no manifest.json" in page.get_by_role("alert").inner_text()
    assert page.get_by_label("Seed").is_hidden()


def test_page_opens_with_pictures_that_loaded(open_page: Open) -> None:
    page = open_page("/")
    assert page.get_by_role("heading", level=1).inner_text() == "Tiles"
    assert rows(page) == list(range(PAGE))
    assert page.get_by_role("button", name="sample row 17 of seed 7").is_visible()


def test_next_and_previous_move_by_a_page(open_page: Open) -> None:
    page = open_page("/?model=tiles&seed=3")
    first = sources(page)
    assert page.get_by_role("button", name="Previous").is_disabled()
    page.get_by_role("button", name="Next").click()
    assert rows(page) == list(range(PAGE, 2 * PAGE))
    assert "start=40" in page.url
    page.get_by_role("button", name="Previous").click()
    assert sources(page) == first


def test_arrow_keys_turn_pages_except_where_they_mean_something_else(open_page: Open) -> None:
    page = open_page("/?model=tiles")
    sources(page)
    page.keyboard.press("ArrowRight")
    assert rows(page)[0] == PAGE
    page.keyboard.press("ArrowLeft")
    assert rows(page)[0] == 0
    page.get_by_label("Seed").focus()
    page.keyboard.press("ArrowRight")
    assert rows(page)[0] == 0


def test_permalink_restores_the_same_view_with_the_same_bytes(open_page: Open) -> None:
    page = open_page("/?model=tiles")
    page.get_by_label("Seed").fill("12345678901234567")  # more than a JavaScript number holds
    page.keyboard.press("Enter")
    page.get_by_label("Label").select_option("light")
    page.get_by_role("button", name="Next").click()
    seen = digests(page)
    asked = parse_qs(urlsplit(page.url).query)
    assert asked == {
        "model": ["tiles"], "version": ["1"], "seed": ["12345678901234567"], "start": ["40"],
        "label": ["2"],
    }  # fmt: skip
    elsewhere = open_page(page.url.removeprefix(origin(page)))
    assert digests(elsewhere) == seen
    assert elsewhere.get_by_label("Seed").input_value() == "12345678901234567"
    assert elsewhere.get_by_label("Label").input_value() == "2"


def origin(page: "Page") -> str:
    parts = urlsplit(page.url)
    return f"{parts.scheme}://{parts.netloc}"


def test_back_and_forward_walk_through_what_was_seen(open_page: Open) -> None:
    page = open_page("/?model=tiles")
    seen = [sources(page)]
    page.get_by_role("button", name="Next").click()
    seen.append(sources(page))
    page.get_by_role("link", name="Affine").click()
    page.wait_for_selector("canvas")
    page.go_back()
    assert sources(page) == seen[1]
    page.go_back()
    assert sources(page) == seen[0]
    page.go_forward()
    assert sources(page) == seen[1]


def test_label_changes_the_pictures(open_page: Open) -> None:
    page = open_page("/?model=tiles")
    brightness = {}
    for label in ("dark", "light"):
        page.get_by_label("Label").select_option(label)
        brightness[label] = np.mean([picture(source) for source in sources(page)])
    assert brightness["light"] > brightness["dark"] + 50
    page.get_by_label("Label").select_option("any")
    assert "label" not in parse_qs(urlsplit(page.url).query)


def test_new_seed_shows_other_pictures_from_the_first_row_on(open_page: Open) -> None:
    page = open_page("/?model=tiles&start=80")
    before = digests(page)
    page.get_by_role("button", name="New seed").click()
    assert rows(page)[0] == 0
    assert page.get_by_label("Seed").input_value() != "7"
    assert not set(digests(page)) & set(before)


def test_temperature_is_asked_of_the_service(open_page: Open) -> None:
    page = open_page("/?model=tiles&label=1")
    assert "temperature" not in sources(page)[0]
    spread = np.std([picture(source) for source in sources(page)], axis=0).mean()
    page.get_by_label("Temperature").fill("0.1")
    page.wait_for_url("**temperature=0.1**")
    assert np.std([picture(source) for source in sources(page)], axis=0).mean() < spread / 4


def test_samples_that_the_critic_accepts_are_asked_of_the_service(open_page: Open) -> None:
    page = open_page("/?model=wide&temperature=0.5")
    assert page.get_by_label("Temperature").count() == 1
    page.get_by_label("Rejection").select_option("by its critic")
    page.wait_for_url("**rejection=true**")
    assert "temperature" not in page.url
    assert page.get_by_label("Temperature").count() == 0
    assert "rejection=true" in page.get_by_role("code").first.inner_text()
    page = open_page("/?model=affine")
    assert page.get_by_label("Rejection").count() == 0


def test_model_of_two_features_draws_its_points(open_page: Open) -> None:
    page = open_page("/?model=affine")
    assert coloured(page) > 2000
    plot = page.get_by_role("img", name=re.compile("Scatter plot of 1000 samples of seed 7"))
    assert plot.is_visible()
    page.get_by_role("button", name="Next").click()
    page.wait_for_url("**start=1000**")
    assert coloured(page) > 2000


def test_context_is_the_middle_of_its_range_until_a_slider_moves(open_page: Open) -> None:
    page = open_page("/?model=shifted")
    coloured(page)
    assert "context=0%2C0" in page.url
    assert "context=0%2C0" in page.locator("#curl").inner_text()
    assert "given left, right" in page.locator("#summary").inner_text()
    page.get_by_label("Given right").fill("1.5")
    page.wait_for_url("**context=0%2C1.5**")
    coloured(page)
    page.go_back()
    page.wait_for_url("**context=0%2C0**")
    assert page.get_by_label("Given right").input_value() == "0"
    page.get_by_role("link", name="affine").click()
    page.wait_for_url("**model=affine**")
    assert page.get_by_label("Given right").count() == 0


def test_pointing_at_a_point_tells_its_row(open_page: Open) -> None:
    page = open_page("/?model=affine")
    coloured(page)
    box = page.locator("canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    told = page.locator("figcaption").inner_text()
    assert re.fullmatch(r"Row \d+: left -?[\d.e-]+, right -?[\d.e-]+", told)


def test_model_of_more_features_lets_two_be_chosen(open_page: Open) -> None:
    page = open_page("/?model=ppca")
    page.wait_for_selector("canvas")
    page.get_by_label("Up").select_option("x2")
    page.get_by_role("img", name=re.compile("x0 from .*, x2 from")).wait_for()
    assert "vertical=2" in page.url


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("model=nosuch", "There is no model 'nosuch'."),
        ("model=tiles&version=9", "tiles has no version 9. It is served in: 1."),
        ("model=tiles&seed=abc", "field 'seed'"),
        ("model=affine&seed=-1", "field 'seed'"),
        ("model=affine&vertical=5", "The features are 0 to 1: left, right."),
    ],
)
def test_what_is_wrong_with_an_address_is_said_in_words(
    open_page: Open, query: str, sentence: str
) -> None:
    page = open_page(f"/?{query}", troubled=True)
    assert sentence in page.get_by_role("alert").inner_text()


def test_error_ends_when_another_choice_is_made(open_page: Open) -> None:
    page = open_page("/?model=nosuch&seed=abc", troubled=True)
    page.get_by_role("alert").wait_for()
    page.get_by_role("link", name="Tiles").click()
    page.get_by_text("field 'seed'").wait_for()
    page.get_by_role("button", name="New seed").click()
    assert len(sources(page)) == PAGE
    assert page.get_by_role("alert").count() == 0


def test_pictures_come_from_the_cache_when_a_page_is_seen_again(open_page: Open) -> None:
    page = open_page("/?model=tiles")
    sources(page)
    again = open_page(page.url.removeprefix(origin(page)), beside=page)
    sources(again)
    sizes = again.evaluate(
        "performance.getEntriesByType('resource').filter(e => e.name.includes('/sample?'))"
        ".map(e => e.transferSize)"
    )
    assert sizes == [0] * PAGE


def test_tile_opens_closer_and_steps_from_row_to_row(open_page: Open) -> None:
    page = open_page("/?model=tiles")
    tile = page.get_by_role("button", name="sample row 17 of seed 7")
    tile.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Row 17 of seed 7")
    assert dialog.get_by_role("img", name="sample row 17 of seed 7").is_visible()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("dialog", name="Row 18 of seed 7").is_visible()
    page.keyboard.press("Escape")
    assert page.get_by_role("dialog").count() == 0
    assert tile.evaluate("tile => tile === document.activeElement")
    assert rows(page)[0] == 0


def test_curl_line_makes_the_picture_that_is_shown(open_page: Open) -> None:
    page = open_page("/?model=grains&seed=5&start=40")
    call = re.fullmatch(
        r"curl '(.*)' -H 'Accept: image/png' -o grains-5-40\.png",
        page.locator("#curl", has_text="grains-5-40").inner_text(),
    )
    assert call is not None
    grid = picture(call[1])
    tiles = [picture(source) for source in sources(page)]
    lines = [np.concatenate(tiles[i : i + 8], axis=1) for i in range(0, PAGE, 8)]
    assert np.array_equal(grid, np.concatenate(lines))


def test_link_is_copied(open_page: Open) -> None:
    page = open_page("/?model=tiles&seed=11", permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy link").click()
    page.get_by_role("status").get_by_text("Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == page.url


@pytest.mark.parametrize("model", ["tiles", "affine", "ppca"])
def test_narrow_screen_needs_no_sideways_scrolling(open_page: Open, model: str) -> None:
    page = open_page(f"/?model={model}", width=360)
    page.wait_for_selector(".tile, canvas")
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_nothing_jumps_while_pictures_arrive(open_page: Open) -> None:
    page = open_page("/?model=tiles")
    sources(page)
    shift = page.evaluate(
        "() => new Promise(done => { let sum = 0; new PerformanceObserver(list => {"
        " for (const e of list.getEntries()) sum += e.value; }).observe("
        "{type: 'layout-shift', buffered: true}); setTimeout(() => done(sum), 200); })"
    )
    assert shift < 0.1  # "good" by web.dev/articles/cls


def answer_once(page: "Page", body: str) -> None:
    """Answer the first request for the list of models with this, the others as they are."""

    def answer(route: "Route") -> None:
        route.fulfill(body=body, content_type="application/json")

    page.route("**/models", answer, times=1)


def test_model_that_is_still_loading_is_shown_when_it_is_ready(open_page: Open) -> None:
    body = '{"default": null, "models": [{"name": "tiles", "state": "loading", "problems": {}}]}'
    page = open_page("/?model=tiles", prepare=lambda page: answer_once(page, body))
    page.get_by_text("Being loaded and checked").wait_for()
    assert len(sources(page)) == PAGE


def test_family_that_the_page_does_not_know_goes_by_its_own_name(open_page: Open) -> None:
    def rename(page: "Page") -> None:
        def answer(route: "Route") -> None:
            said = route.fetch().text().replace('"gan"', '"diffusion"')
            route.fulfill(body=said, content_type="application/json")

        page.route("**/models", answer)

    page = open_page("/?model=tiles", prepare=rename)
    assert "diffusion · samples" in page.locator("#model-tiles").inner_text()
    assert "diffusion" in page.locator("#summary").inner_text()


def test_service_without_models_says_what_to_do(open_page: Open) -> None:
    body = '{"default": null, "models": []}'
    page = open_page("/", prepare=lambda page: answer_once(page, body))
    assert "No model is served" in page.get_by_role("alert").inner_text()


def test_service_that_is_gone_is_said_to_be_gone(open_page: Open) -> None:
    def cut(page: "Page") -> None:
        page.route("**/models", lambda route: route.abort())

    page = open_page("/", troubled=True, prepare=cut)
    assert "The service does not answer" in page.get_by_role("alert").inner_text()
