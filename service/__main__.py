"""The command: `python -m service` serves, `python -m service verify PATH...` checks bundles."""

import argparse
import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from service import backend, bundle, logs
from service.batching import Batcher
from service.engine import Engine
from service.errors import DeviceUnavailable, ServiceError
from service.session import Device, Limit
from service.settings import PREFIX, Settings, misspelt

SWITCH_S = 1e-3
"""How long a thread keeps the interpreter when another one wants it. Python's own 5 ms is long
beside the milliseconds in which a small request is answered."""


def main(arguments: Sequence[str]) -> int:
    """Return the exit status of the command: 0 well, 1 a bundle is bad, 2 it cannot begin."""
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description="Serve the bundles of PUSHFORWARD_MODELS over HTTP. docs/operations.md lists "
        "the settings.",
    )
    commands = parser.add_subparsers(dest="command")
    verifying = commands.add_parser(
        "verify", help="check bundles: files, tensors, and their golden vectors on this CPU"
    )
    verifying.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="a version, a model, or a models folder"
    )
    chosen = parser.parse_args(arguments)
    return verify(chosen.paths) if chosen.command else serve()


def serve() -> int:
    """Serve until a signal ends it. Return 2, after a sentence, if it cannot begin."""
    if unknown := misspelt(os.environ):
        return _cannot_begin(*unknown)
    try:
        settings = Settings()
        logs.set_up(settings.log_level, settings.log_format)
        serving = backend.make(settings)
    except ValidationError as error:
        return _cannot_begin(*map(_sentence, error.errors()))
    except DeviceUnavailable as error:
        return _cannot_begin(f"{PREFIX}DEVICE: {error.detail}")
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listening = socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:  # the port is taken or not ours to take, or no such address is here
        return _cannot_begin(
            f"{PREFIX}HOST, {PREFIX}PORT: cannot listen on {settings.host}: {error.strerror}."
        )
    # uvicorn raises the signal that stopped it once more when all is closed. A clean stop is no
    # failure, and process 1 of a container ignores a signal that has no handler.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    sys.setswitchinterval(SWITCH_S)
    with contextlib.suppress(KeyboardInterrupt), contextlib.closing(serving):
        serving.repository.start()
        _server().run(settings, serving, listening)
    return 0


def _server() -> ModuleType:
    """Return the module of the server, which is imported late.

    It brings the half of the service that knows HTTP, which keeps a core busy for a third of a
    second (measured). Models are loaded meanwhile.
    """
    gc.disable()  # what is imported is no garbage: looking for some takes a twentieth (measured)
    try:
        from service import server
    finally:
        gc.enable()
    return server


def _cannot_begin(*sentences: str) -> int:
    print(*sentences, sep="\n", file=sys.stderr)
    return 2


def _sentence(error: ErrorDetails) -> str:
    name = "_".join(map(str, error["loc"])).upper()
    message = error["msg"].removeprefix("Value error, ")
    return f"{PREFIX}{name}: {message}; got {error['input']!r}."


def verify(paths: Sequence[Path]) -> int:
    """Print what is true of each bundle. Return 1 if any is bad or a path holds none."""
    statuses = [_verify(folder) for path in paths for folder in _folders(path)]
    return max(statuses)


def _folders(path: Path) -> list[Path]:
    """Return the version folders in a models folder, in a model's, or the one this is."""
    path = path.resolve()
    if (path / bundle.MANIFEST).exists():
        return [path]
    own = [path / str(version) for version in bundle.versions(path.parent, path.name)]
    below = [
        path / name / str(version)
        for name in bundle.names(path)
        for version in bundle.versions(path, name)
    ]
    return own or below or [path]


def _verify(folder: Path) -> int:
    batcher = Batcher(devices=1)
    try:
        limit = Limit(Settings.model_fields["max_load_s"].default)
        engine = Engine(bundle.read(folder), Device("cpu"), batcher=batcher, limit=limit)
    except ServiceError as error:
        print(f"bad  {error.detail}")
        return 1
    except Exception as error:  # one unreadable bundle must not hide what is true of the others
        print(f"bad  {folder}: {type(error).__name__}: {error}")
        return 1
    finally:
        batcher.close()
    errors = ", ".join(
        f"{role}.{name} {error:.1e}"
        for role, proof in engine.proofs.items()
        for name, error in proof.errors.items()
    )
    print(f"ok   {folder.parent.name}/{folder.name}: off the golden vectors by at most {errors}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
