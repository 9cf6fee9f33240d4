"""The page and its files."""

import re

from tests.service.conftest import Client


def test_page_and_all_it_names_are_served(client: Client) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["cache-control"] == "no-cache"
    named = re.findall(r'(?:src|href)="(web/[^"]+)"', page.text)
    assert named
    for path in named:
        assert client.get(f"/{path}").status_code == 200


def test_no_path_leads_out_of_the_files(client: Client) -> None:
    for path in ("/web/../app.py", "/web/%2e%2e/app.py", "/web/..%2fapp.py"):
        assert client.get(path).status_code == 404
