"""The images and the compose file, built and run for real."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.containers

ROOT = Path(__file__).parents[2]
# Starts a Docker engine and makes the base image where no registry can be reached.
ENGINE = ROOT.parent / "shared" / "tools" / "containers.sh"
SERVICE = "pushforward"

Docker = Callable[..., str]


def run(*command: str | Path, environment: dict[str, str]) -> str:
    """Return what a command printed, or fail with what it complained of."""
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.fail(f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout.strip()


def answers(environment: dict[str, str]) -> bool:
    """Whether there is a Docker engine at the other end."""
    asked = ["docker", "version"]
    return not subprocess.run(asked, env=environment, capture_output=True, check=False).returncode


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """The environment in which `docker` has an engine, which is stopped if it was started here."""
    here = dict(os.environ)
    if not (ENGINE.exists() and os.getuid() == 0):
        if shutil.which("docker") is None or not answers(here):
            pytest.skip("there is no Docker engine to build and run the images with")
        yield here
        return
    exported = run("bash", "-c", f'eval "$(bash {ENGINE} env)"; env -0', environment=here)
    there = dict(line.split("=", 1) for line in exported.split("\0") if line)
    found_running = answers(there)
    run("bash", ENGINE, "up", environment=here)
    try:
        yield there
    finally:
        if not found_running:
            run("bash", ENGINE, "down", environment=here)


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def docker(environment: dict[str, str], port: int) -> Docker:
    settings = {
        **environment,
        "COMPOSE_PROJECT_NAME": f"pushforward-test-{os.getpid()}",
        "PORT": str(port),
    }
    return lambda *command: run("docker", *command, environment=settings)


@pytest.fixture(scope="module")
def container(docker: Docker) -> Iterator[str]:
    """The id of the service's container, started by compose, healthy."""
    try:
        docker("compose", "up", "--build", "--detach", "--wait", "--wait-timeout", "180")
        yield docker("compose", "ps", "--quiet", SERVICE)
    finally:
        docker("compose", "--profile", "*", "down", "--volumes", "--timeout", "5")


def test_image_holds_the_service_and_no_torch(docker: Docker) -> None:
    docker("build", "--quiet", "--tag", "pushforward:test", ".")
    code = (
        "import importlib.util, json, service, onnxruntime;"
        "names = ('torch', 'sklearn', 'pytest');"
        "print(json.dumps([name for name in names if importlib.util.find_spec(name)]))"
    )
    assert json.loads(docker("run", "--rm", "pushforward:test", "python", "-c", code)) == []


def test_healthy_container_answers(container: str, port: int) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        assert client.get("/readyz").status_code == 200
        models = client.get("/models").raise_for_status().json()["models"]
        name = models[0]["name"]
        answer = client.get("/sample", params={"model": name, "n": 2, "seed": 7})
        assert len(answer.raise_for_status().json()["x"]) == 2
        assert client.get("/").raise_for_status().headers["content-type"].startswith("text/html")


def test_container_has_few_rights(docker: Docker, container: str) -> None:
    assert docker("exec", container, "id", "-u") != "0"
    host = json.loads(docker("inspect", "--format", "{{json .HostConfig}}", container))
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    mounts = json.loads(docker("inspect", "--format", "{{json .Mounts}}", container))
    assert [(mount["Destination"], mount["RW"]) for mount in mounts] == [("/models", False)]


def test_gpu_profile_reserves_the_device_and_leaves_the_cpu_service_out(docker: Docker) -> None:
    file = json.loads(docker("compose", "--profile", "gpu", "config", "--format", "json"))
    assert list(file["services"]) == ["pushforward-gpu"]
    service = file["services"]["pushforward-gpu"]
    assert service["build"]["target"] == "gpu"
    devices = service["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]


def test_sigterm_ends_the_container_within_seconds(docker: Docker, container: str) -> None:
    began = time.monotonic()
    docker("stop", "--time", "25", container)
    assert time.monotonic() - began < 10
    state = json.loads(docker("inspect", "--format", "{{json .State}}", container))
    # 143: ended by SIGTERM, which is what was asked; 137 would be SIGKILL.
    assert state["ExitCode"] in (0, 143)
