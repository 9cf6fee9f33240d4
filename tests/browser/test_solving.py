"""The gallery's controls of continuous flows: what they choose is what every picture is of."""

import pytest

from tests.browser.conftest import Open
from tests.browser.test_gallery import digests, sources

pytestmark = pytest.mark.browser


def test_steps_of_a_continuous_flow_are_those_of_every_picture(open_page: Open) -> None:
    page = open_page("/?model=drift")
    usual = digests(page)
    assert not any("steps" in source for source in sources(page))
    page.get_by_label("Steps of midpoint").select_option("1")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.tile img')].every(i => i.src.includes('steps=1'))"
    )
    assert "steps=1" in page.url
    assert digests(page) != usual
    page.get_by_label("Steps of midpoint").select_option("40, its own")
    page.wait_for_function(
        "() => ![...document.querySelectorAll('.tile img')].some(i => i.src.includes('steps'))"
    )
    assert digests(page) == usual
    assert page.get_by_label("Guidance").count() == 0  # it was not trained for that
    page.get_by_role("link", name="tiles").click()
    assert page.get_by_label("Steps of").count() == 0


def test_guidance_is_that_of_every_picture(open_page: Open) -> None:
    page = open_page("/?model=led&label=1")
    usual = digests(page)
    page.get_by_label("Guidance").select_option("2")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.tile img')].every(i => i.src.includes('guidance=2'))"
    )
    assert "guidance=2" in page.url
    assert digests(page) != usual
    page.get_by_label("Guidance").select_option("0.5, its own")
    page.wait_for_function(
        "() => ![...document.querySelectorAll('.tile img')].some(i => i.src.includes('guidance'))"
    )
    assert digests(page) == usual
