"""The tiny models in a folder, and clients of a service that serves them."""

import functools
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import httpx
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI

from service.app import create_app
from service.batching import Batcher
from service.lanes import Job
from service.repository import Repository
from service.settings import Settings
from tests.service import bundles, linear_odes, ppca
from tests.service.living import Told, serving_one


class Content(TypedDict, total=False):
    """What a request may carry, in httpx's words."""

    params: Mapping[str, Any]
    json: Any
    content: bytes | AsyncIterator[bytes]
    headers: Mapping[str, str] | Mapping[bytes, bytes]


class Client:
    """httpx on an app in this process: each call is a request on the app's event loop."""

    def __init__(self, app: FastAPI, portal: BlockingPortal) -> None:
        self.app = app
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://service")
        self._portal = portal

    def request(self, method: str, path: str, **content: Unpack[Content]) -> httpx.Response:
        call = functools.partial(self._client.request, method, path, **content)
        return self._portal.call(call)

    def get(self, path: str, **content: Unpack[Content]) -> httpx.Response:
        return self.request("GET", path, **content)

    def post(self, path: str, **content: Unpack[Content]) -> httpx.Response:
        return self.request("POST", path, **content)


MakeClient = Callable[..., Client]


def ask(client: Client, path: str, **body: object) -> dict[str, Any]:
    """Return the JSON of an answer that is none but good."""
    answer = client.post(f"/{path}", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every tiny model in one version."""
    folder = tmp_path_factory.mktemp("models")
    for tiny in bundles.ALL:
        tiny.publish(folder)
    return folder


@pytest.fixture(scope="session")
def make_client(models: Path) -> Iterator[MakeClient]:
    """A function that starts a service with some settings and returns a client of it."""
    with ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal())

        def make(*, wait: bool = True, **settings: object) -> Client:
            quiet = {"device": "cpu", "threads": 1, "access_log": "off"}
            settings = {"models": models, **quiet, **settings}
            app = create_app(Settings.model_validate(settings))
            lifespan = app.router.lifespan_context(app)
            stack.enter_context(portal.wrap_async_context_manager(lifespan))
            deadline = time.monotonic() + 30
            while wait and not app.state.context.repository.loaded:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            return Client(app, portal)

        yield make


@pytest.fixture(scope="session")
def client(make_client: MakeClient) -> Client:
    """A client of a service that serves every tiny model, all settings at their defaults."""
    return make_client()


@pytest.fixture(scope="session")
def latent(make_client: MakeClient, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """A client of a service of the models whose latents depend on each other, given x."""
    folder = tmp_path_factory.mktemp("latent")
    for tiny in ppca.LATENT:
        tiny.publish(folder)
    return make_client(models=folder)


@pytest.fixture(scope="session")
def solved(make_client: MakeClient, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """A client of a service of continuous flows, and of one flow that is none."""
    folder = tmp_path_factory.mktemp("solved")
    usual = replace(bundles.AFFINE, name="usual", held_out=(1.0, 2.0, 3.0, 4.0))
    noisy = replace(bundles.GRAINS, name="noisy", held_out=(10.0, 20.0), held_out_draws=64)
    for tiny in (
        linear_odes.SPIRAL,
        linear_odes.DRIFT,
        linear_odes.LED,
        bundles.AFFINE,
        usual,
        noisy,
    ):
        tiny.publish(folder)
    return make_client(models=folder, max_steps=100)


@pytest.fixture(scope="session")
def rejecting(make_client: MakeClient, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """A client of a service of GANs that keep their critics, and of one that does not."""
    folder = tmp_path_factory.mktemp("rejecting")
    for tiny in (*bundles.REJECTING, bundles.TILES):
        tiny.publish(folder)
    return make_client(models=folder)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job[Any]]:
    """What every batcher was asked for since the test began, in order."""
    asked: list[Job[Any]] = []
    run = Batcher.run

    async def record(self: Batcher, job: Job[Any]) -> None:
        asked.append(job)
        await run(self, job)

    monkeypatch.setattr(Batcher, "run", record)
    return asked


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def living(tmp_path: Path, told: Told) -> Iterator[Repository]:
    """A repository that is polled by hand, and serves version 1 of `steps`."""
    with serving_one(tmp_path, told) as repository:
        yield repository
