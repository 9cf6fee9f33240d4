"""Versions come and go under load, and no request notices."""

import asyncio
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from service import bundle
from service.app import create_app
from service.repository import Repository
from service.settings import Settings
from tests.service.bundles import step

CLIENTS = 24
Z = np.random.default_rng(0).normal(size=(5, 2))


class Load:
    """Clients that ask all the time, and what each of their requests came to."""

    def __init__(self, app: FastAPI) -> None:
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://service"
        )
        self.named: list[int | None] = [None]
        """Versions that are asked for in turn; None asks for whichever serves."""
        self.asking: Counter[int | None] = Counter()
        self.answers: Counter[int] = Counter()
        self.failures: list[str] = []
        self.is_over = False
        self.news = asyncio.Condition()

    async def ask(self, number: int) -> None:
        while not self.is_over:
            number += 1
            version = self.named[number % len(self.named)]
            body = {"model": "steps", "z": Z.tolist()} | ({"version": version} if version else {})
            self.asking[version] += 1
            answer = await self.client.post("/decode", json=body)
            self.asking[version] -= 1
            self.judge(answer, version)
            async with self.news:
                self.news.notify_all()
            await asyncio.sleep(0)  # as a socket would: nothing else here need wait for anything

    def judge(self, answer: httpx.Response, asked: int | None) -> None:
        said = answer.json()
        if answer.status_code != 200:
            self.failures.append(answer.text)
            return
        version = said["version"]
        self.answers[version] += 1
        if asked not in (None, version) or not np.allclose(said["x"], Z + version, atol=1e-5):
            self.failures.append(f"asked for {asked}: {answer.text}")
        if answer.headers["Pushforward-Version"] != str(version):
            self.failures.append(f"its header says another version than {version}")

    async def until(self, version: int) -> None:
        """Wait until some more requests were answered by a version."""
        enough = self.answers[version] + 2 * CLIENTS
        await self.hear(lambda: self.answers[version] >= enough)

    async def hear(self, fact: Callable[[], bool]) -> None:
        """Wait until the answers make something true, or until one is wrong."""
        async with self.news:
            await self.news.wait_for(lambda: fact() or bool(self.failures))


async def swap(app: FastAPI, models: Path) -> Load:
    """Publish 2, 3 and 4 and remove 1 while clients ask, and return what became of them."""
    load = Load(app)
    repository: Repository = app.state.context.repository
    async with app.router.lifespan_context(app), load.client, asyncio.TaskGroup() as clients:
        await asyncio.to_thread(repository._watcher.join)
        for number in range(CLIENTS):
            clients.create_task(load.ask(number))
        await load.until(1)
        for version in (2, 3, 4):
            await asyncio.to_thread(step(version).publish, models, version)
            await asyncio.to_thread(repository.poll)
            load.named.append(version)
            load.named.append(1)  # the addresses of what came first stay good
            await load.until(version)
            await load.until(1)
        load.named = [None, 2, 4]
        await load.hear(lambda: not load.asking[1])
        shutil.rmtree(models / "steps" / "1")
        await asyncio.to_thread(repository.poll)
        await load.until(4)
        gone = await load.client.post("/decode", json={"z": Z.tolist(), "version": 1})
        assert gone.json()["code"] == "model_not_found"
        about = (await load.client.get("/models/steps")).json()
        assert (about["version"], about["versions"]) == (4, [4, 3, 2])
        assert about["loaded"] == sorted(about["loaded"], reverse=True)
        assert about["loaded"][0] == 4
        load.is_over = True
    return load


@pytest.mark.parametrize("old_versions", [1, 2])
def test_versions_come_and_go_and_no_request_fails(tmp_path: Path, old_versions: int) -> None:
    step(1).publish(tmp_path)
    settings = {"models": tmp_path, "device": "cpu", "threads": 2, "poll_s": 0}
    app = create_app(Settings.model_validate({**settings, "old_versions": old_versions}))

    async def within_a_minute() -> Load:
        async with asyncio.timeout(60):
            return await swap(app, tmp_path)

    load = asyncio.run(within_a_minute())
    assert load.failures == []
    assert set(load.answers) == {1, 2, 3, 4}


def test_address_of_an_older_version_stays_good(tmp_path: Path) -> None:
    step(1).publish(tmp_path)
    app = create_app(Settings.model_validate({"models": tmp_path, "device": "cpu", "poll_s": 0}))
    address = "/sample?model=steps&version=1&seed=7&n=2"

    async def before_and_after() -> list[httpx.Response]:
        load = Load(app)
        repository: Repository = app.state.context.repository
        async with app.router.lifespan_context(app), load.client as client:
            await asyncio.to_thread(repository._watcher.join)
            answers = [await client.get(address)]
            for version in (2, 3, 4):
                step(version).publish(tmp_path, version)
                await asyncio.to_thread(repository.poll)
            answers.append(await client.get(address))
            answers.append(await client.get("/sample?model=steps&version=2&seed=7&n=2"))
        return answers

    first, again, other = asyncio.run(before_and_after())
    assert first.status_code == again.status_code == other.status_code == 200
    assert first.content == again.content
    assert first.headers["etag"] == again.headers["etag"] != other.headers["etag"]
    assert "immutable" in again.headers["cache-control"]


def test_request_waits_no_longer_for_an_older_version_than_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in (1, 2):
        step(version).publish(tmp_path, version)
    app = create_app(Settings.model_validate({"models": tmp_path, "device": "cpu", "poll_s": 0}))
    go, read = threading.Event(), bundle.read

    def wait_and_read(folder: Path) -> bundle.Bundle:
        assert go.wait(30)
        return read(folder)

    async def impatient_and_patient() -> list[httpx.Response]:
        load = Load(app)
        repository: Repository = app.state.context.repository
        body = {"model": "steps", "version": 1, "z": Z.tolist()}
        async with app.router.lifespan_context(app), load.client as client:
            await asyncio.to_thread(repository._watcher.join)
            monkeypatch.setattr(bundle, "read", wait_and_read)
            patient = asyncio.create_task(client.post("/decode", json=body))
            hurry = {"Pushforward-Timeout-Ms": "20"}
            answers = [await client.post("/decode", json=body, headers=hurry)]
            # Who asks for what is loaded does not wait for the loading.
            answers.append(await client.post("/decode", json={**body, "version": 2}))
            go.set()
            return [*answers, await patient]

    impatient, other, patient = asyncio.run(impatient_and_patient())
    assert (impatient.status_code, impatient.json()["code"]) == (504, "deadline_exceeded")
    assert (other.status_code, other.json()["version"]) == (200, 2)
    assert (patient.status_code, patient.json()["version"]) == (200, 1)
