"""The servers that are compared: how each is started, and how it is talked to."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks import environments, wire
from benchmarks.environments import FOLDER, ROOT

OURS = "pushforward"
SERVING = ROOT / ".venv-serve" / "bin" / "python"
"""As `make serve` runs it."""


@dataclass(frozen=True)
class Server:
    """One server.

    Args:
        name: In tables, and of its environment.
        title: Of its row.
        about: How it is set up, for the reader.
        wire: How it is talked to.
        arguments: After the interpreter; {port} is filled in.
        settings: Of its environment, likewise.
        ready: Path that answers 200 when it is ready.
    """

    name: str
    title: str
    about: str
    wire: wire.Wire
    arguments: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    ready: str = "/ready"

    @property
    def tuned(self) -> dict[str, str]:
        """Return its settings by the short names of `python -m benchmarks.tune`."""
        mark = "PEER_"
        return {k.removeprefix(mark): v for k, v in self.settings.items() if k.startswith(mark)}

    def command(self) -> list[str]:
        """Return the command, after its environment is made.

        Raises:
            InstallFailed: Its packages cannot be had here.
        """
        interpreter = SERVING if self.name == OURS else environments.python(self.name)
        return [str(interpreter), *self.arguments]

    def environment(self) -> dict[str, str]:
        """Return what is added to the environment of its process."""
        common = {"PYTHONPATH": str(ROOT), "ORT_DISABLE_TELEMETRY": "1"}
        return {**common, **self.settings}


def _script(name: str) -> tuple[str, ...]:
    return ("-m", f"benchmarks.peers.{name}", "{port}")


SERVERS = (
    Server(
        OURS,
        "Pushforward",
        "one process, as `make serve` starts it, but with no access log, as the others",
        wire.Ours(),
        ("-m", "service"),
        {
            "PUSHFORWARD_MODELS": str(ROOT / "models"),
            "PUSHFORWARD_PORT": "{port}",
            "PUSHFORWARD_DEVICE": "cpu",
            "PUSHFORWARD_LOG_LEVEL": "warning",
            "PUSHFORWARD_ACCESS_LOG": "off",
        },
        "/readyz",
    ),
    Server(
        "naive",
        "FastAPI, naive",
        "uvicorn, `def` endpoints in its pool of threads, one run a request",
        wire.Wire(),
        _script("naive"),
        {"PEER_WORKERS": "2"},
    ),
    Server(
        "litserve",
        "LitServe",
        "batches of requests, fast queue",
        wire.LitServe(),
        _script("litserve_app"),
        {"PEER_WORKERS": "2", "PEER_BATCH": "16", "PEER_WAIT_S": "0.001"},
        ready="/health",
    ),
    Server(
        "bentoml",
        "BentoML",
        "log-densities as JSON in adaptive batches, the rest one run a request",
        wire.BentoML(),
        (
            "-m",
            "bentoml",
            "serve",
            "benchmarks.peers.bentoml_app:Peer",
            "--host",
            "127.0.0.1",
            "--port",
            "{port}",
        ),
        {
            "PEER_WORKERS": "2",
            "PEER_THREADS": "1",
            "BENTOML_DO_NOT_TRACK": "True",
            "BENTOML_HOME": str(FOLDER / "bentoml" / "home"),
        },
        "/readyz",
    ),
    Server(
        "triton",
        "Triton",
        "tritonserver of the wheel nvidia-pytriton; Python backend with ONNX Runtime in it (the "
        "wheel has no ONNX Runtime backend); 2 instances, dynamic batches of up to 16 requests",
        wire.Triton(),
        _script("triton_app"),
        ready="/v2/health/ready",
    ),
    Server(
        "ray",
        "Ray Serve",
        "replicas of each model, `serve.batch`",
        wire.Ray(),
        _script("ray_app"),
        {
            "PEER_WORKERS": "2",
            "PEER_BATCH": "16",
            "PEER_WAIT_S": "0.001",
            "RAY_USAGE_STATS_ENABLED": "0",
            "HOME": str(FOLDER / "ray"),
        },
        "/log-density",
    ),
)
