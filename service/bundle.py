"""The contract between training and serving: a folder `models/<name>/<version>/`.

Training publishes bundles, serving reads them, and nothing else is shared. This module knows
files; what a manifest may say is `service.manifest`. docs/bundle.md tells people how to make a
bundle from any PyTorch model.
"""

import errno
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from pydantic import ValidationError

from service import external, golden, graphs
from service.errors import BundleInvalid
from service.interface import Role
from service.manifest import Graph, Manifest
from service.tensors import Array

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 2**20
"""A shipped one has 9,000."""
MAX_DIGITS = 18
"""Of a whole number in the manifest: it then has 64 bits."""
MAX_FILE_BYTES = 2**31 - 1
"""Of one file: no ONNX file without outside weights can be larger."""

Stamp = frozenset[tuple[str, int, int, int]]
"""Of each file of a version: its name, its number, its bytes, when it was changed."""

_VERSION = re.compile(r"[1-9][0-9]{0,14}")
"""As a folder. Fifteen digits are a number that JavaScript can hold."""


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are known to be those of its manifest.

    Args:
        folder: Where it lies.
        manifest: What it says of itself.
        files: The graphs, with the weights that they share, and the golden vectors; of the bytes
            whose hashes were checked. What is loaded later is these, so the folder may change
            meanwhile.
    """

    folder: Path
    manifest: Manifest
    files: Mapping[str, bytes]

    def graph(self, role: Role) -> bytes:
        """Return the ONNX file of a role."""
        return self.files[self.manifest.graphs[role].file]

    @cached_property
    def identity(self) -> str:
        """SHA-256 of the manifest. It holds those of all files, so equal means the same bundle."""
        return digest(self.manifest.model_dump_json().encode())

    @cached_property
    def golden(self) -> dict[str, Array]:
        """The golden vectors, by "<role>.<tensor>"."""
        file = self.manifest.golden.file
        return golden.read(self.files[file], self.manifest, where=f"{self.folder / file}")


def digest(data: bytes) -> str:
    """Return the SHA-256 of some bytes in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def read(folder: Path) -> Bundle:
    """Return the bundle in a folder after checking everything that needs no runtime.

    Schema, name and version against the folder, hashes, that no file lies elsewhere, forbidden
    operators, tensors of each graph, golden vectors. What only a device can tell (do the golden
    vectors come out?) is tried by `service.proof`.

    Raises:
        BundleInvalid: One sentence that says which file or field is wrong, and how.
    """
    if folder.resolve() != folder.parent.parent.resolve() / folder.parent.name / folder.name:
        raise BundleInvalid(f"{folder} is reached by a link, and may lie anywhere.", field="name")
    manifest = _read_manifest(folder)
    if (folder.parent.name, folder.name) != (manifest.name, str(manifest.version)):
        raise BundleInvalid(
            f"{folder}: the manifest says {manifest.name} version {manifest.version}, so the "
            f"folder must be {manifest.name}/{manifest.version}.",
            field="name",
        )
    hashes = {graph.file: graph.sha256 for graph in manifest.graphs.values()}
    hashes[manifest.golden.file] = manifest.golden.sha256
    if manifest.weights is not None:
        hashes[manifest.weights.file] = manifest.weights.sha256
    files = {name: _read_checked(folder / name, sha256) for name, sha256 in hashes.items()}
    bundle = Bundle(folder, manifest, whole(manifest, files, folder=folder))
    for file, sharing in _by_file(manifest).items():
        outputs = {spec.name: spec for graph in sharing for spec in graph.outputs}
        where = f"{folder / file}"
        graphs.check(bundle.files[file], sharing[0].inputs, tuple(outputs.values()), where=where)
    bundle.golden  # noqa: B018  # it is checked when it is read
    return bundle


def whole(
    manifest: Manifest, files: Mapping[str, bytes], *, folder: Path = Path()
) -> Mapping[str, bytes]:
    """Return the files that a manifest names, each graph with its weights.

    Args:
        manifest: Of a bundle.
        files: Those that lie, or will lie, in its folder.
        folder: For messages.

    Raises:
        BundleInvalid: A graph asks for weights that are not there.
    """
    if manifest.weights is None:
        return files
    weights = files[manifest.weights.file]
    joined = {
        file: external.joined(files[file], weights, where=f"{folder / file}")
        for file in dict.fromkeys(graph.file for graph in manifest.graphs.values())
    }
    return {manifest.golden.file: files[manifest.golden.file], **joined}


def _by_file(manifest: Manifest) -> dict[str, list[Graph]]:
    """Return the graphs of each file.

    Raises:
        BundleInvalid: Roles that share one do not agree on what it is.
    """
    found: dict[str, list[Graph]] = {}
    for role, graph in manifest.graphs.items():
        first = found.setdefault(graph.file, [graph])[0]
        if first is graph:
            continue
        for part in ("sha256", "inputs"):
            if getattr(first, part) != getattr(graph, part):
                raise BundleInvalid(
                    f"graphs.{role}.{part} differs from that of another role of {graph.file}.",
                    field=f"graphs.{role}.{part}",
                )
        found[graph.file].append(graph)
    return found


def versions(models: Path, name: str) -> list[int]:
    """Return the versions of a model that lie in `models/<name>/`, newest first.

    Raises:
        OSError: The folder is there and cannot be looked into, so that nobody knows.
    """
    try:
        entries = os.listdir(models / name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted((int(entry) for entry in entries if _VERSION.fullmatch(entry)), reverse=True)


def names(models: Path) -> list[str]:
    """Return the names of the models that have a version in a folder, in order."""
    try:
        return list(lying(models))
    except (FileNotFoundError, NotADirectoryError):
        return []


def lying(
    models: Path, known: Mapping[str, tuple[int, ...]] = MappingProxyType({})
) -> dict[str, tuple[int, ...]]:
    """Return by name, in order, the versions that lie in a folder of models, newest first.

    Args:
        models: Folder of all models.
        known: What lay there before. It is believed of a model that cannot be looked into.

    Raises:
        OSError: The folder itself cannot be looked into, so that nobody knows.
    """
    # What is hidden is none of ours, and what cannot be printed could not be told either.
    entries = sorted(e for e in os.listdir(models) if e[0] != "." and e.isprintable())
    found: dict[str, tuple[int, ...]] = {}
    for entry in entries:
        try:
            found[entry] = tuple(versions(models, entry))
        except OSError as error:  # for a moment, or for good, as lost+found on a volume
            _pass_over(models / entry, error.strerror)
            found[entry] = known.get(entry, ())
    return {name: numbers for name, numbers in found.items() if numbers}


@functools.lru_cache(maxsize=128)
def _pass_over(folder: Path, why: str) -> None:
    """Say once, and not at every look, that nobody can tell what is in a folder."""
    log.warning("cannot look into %s: %s", folder, why)


def stamp(folder: Path) -> Stamp | None:
    """Return what tells whether a version's files have changed since, without reading them.

    None if nobody can tell.
    """
    try:
        with os.scandir(folder) as entries:
            statuses = {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except OSError:
        return None
    return frozenset(
        (name, status.st_ino, status.st_size, status.st_mtime_ns)
        for name, status in statuses.items()
    )


def locate(folder: Path, name: str) -> Path | None:
    """Return where a file of a bundle would lie, or None if a link leads out of the folder."""
    path = folder / name
    return path if path.resolve().parent == folder.resolve() else None


def publish(models: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Path:
    """Write a bundle so that it appears all at once, and return its folder.

    It is written beside its place under a hidden name, read back with every check of `read`, and
    renamed. A reader never sees half a bundle, and a bundle that would be refused is not there.

    Args:
        models: Folder of all models.
        manifest: Its version must not exist yet.
        files: Contents by name: the graphs, the golden vectors, and whatever a person looks at.

    Raises:
        BundleInvalid: The version exists, or the bundle would be refused by `read`.
    """
    place = models / manifest.name / str(manifest.version)
    if place.exists():
        raise BundleInvalid(f"{place} exists already. Versions are never overwritten.")
    place.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(prefix=".publishing-", dir=place.parent))
    try:
        folder = workshop / manifest.name / str(manifest.version)
        folder.mkdir(parents=True)
        text = manifest.model_dump_json(indent=2) + "\n"
        for name, data in {**files, MANIFEST: text.encode()}.items():
            _write_file(folder / name, data)
        read(folder)
        folder.rename(place)
    finally:
        shutil.rmtree(workshop)
    return place


def _write_file(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not os.path.lexists(path):
        raise BundleInvalid(
            f"{folder}: there is no {MANIFEST}, so this is no bundle.", field=MANIFEST
        )
    text = _read_file(path, most=MAX_MANIFEST_BYTES)
    try:
        manifest = Manifest.model_validate_json(text)
        json.loads(
            text, object_pairs_hook=_once_each, parse_int=_whole, parse_constant=_no_constant
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        others = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise BundleInvalid(
            f"{path}: {field + ': ' if field else ''}{first['msg']}{others}.",
            field=field or MANIFEST,
        ) from error
    except _NotPlain as error:
        raise BundleInvalid(f"{path}: {error}.", field=MANIFEST) from error
    return manifest


class _NotPlain(Exception):
    """JSON that not all readers read alike, or that cannot be told to a client."""


def _once_each(pairs: list[tuple[str, object]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise _NotPlain(f"{key} stands there twice")
        seen.add(key)


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _NotPlain(f"a number has {len(digits)} digits; at most {MAX_DIGITS} are read")
    return int(digits)


def _no_constant(name: str) -> None:
    raise _NotPlain(f"{name} is no number of JSON")


def _read_checked(path: Path, sha256: str) -> bytes:
    data = _read_file(path, most=MAX_FILE_BYTES)
    if digest(data) != sha256:
        raise BundleInvalid(
            f"{path}: its SHA-256 is not the manifest's. The file was changed or cut short.",
            field=path.name,
        )
    return data


def _read_file(path: Path, *, most: int) -> bytes:
    """Return what a file holds; never wait for a pipe, follow a link, or read without end.

    Raises:
        BundleInvalid: It is no plain file of this folder, too large, or not ours to read.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                why = "it is no plain file"
            elif status.st_size > most:
                why = f"it has {status.st_size} bytes; at most {most} are read"
            else:
                with open(file, "rb", closefd=False) as opened:
                    return opened.read(most)
        finally:
            os.close(file)
    except FileNotFoundError:
        why = "named in the manifest, and not there"
    except OSError as error:
        is_link = error.errno == errno.ELOOP
        why = "it is a link, and what it leads to is not in the bundle" if is_link else ""
        why = why or f"it cannot be read ({error.strerror})"
    raise BundleInvalid(f"{path}: {why}.", field=path.name)
