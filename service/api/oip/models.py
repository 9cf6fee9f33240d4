"""What the Open Inference Protocol calls models: each graph of each bundle, and its sampling.

A name is `<model>.<task>`, such as `mnist-vae.decode`. A task is the role of a graph, or
`sample`, which every model has.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from starlette.requests import Request

from service.api import context
from service.api.context import Context
from service.api.oip import parameters
from service.api.oip.parameters import Parameters
from service.api.oip.wire import DATATYPE, Signature
from service.engine import Engine
from service.errors import ModelNotFound
from service.interface import Role, TensorSpec
from service.repository import Repository
from service.settings import Settings

Task = Role | Literal["sample"]
SAMPLE: Literal["sample"] = "sample"

ROWS = TensorSpec(name="rows", dtype="uint8", shape=("batch", 1))
"""Of `sample`: a byte for each row that is wanted, whatever it holds. Many clients cannot send
a request without an input, and none but a tensor has a batch size that a load test can set."""


@dataclass(frozen=True)
class Served:
    """One model of the protocol."""

    engine: Engine
    task: Task

    @property
    def name(self) -> str:
        """What clients call it."""
        return f"{self.engine.manifest.name}.{self.task}"

    @property
    def version(self) -> str:
        """Of the bundle. The protocol's versions are strings."""
        return str(self.engine.manifest.version)

    @property
    def signature(self) -> Signature:
        """Its tensors, as the manifest has them."""
        manifest = self.engine.manifest
        if self.task == SAMPLE:
            inputs, outputs = manifest.signature("decode")
            # Noise and labels may be the service's own; a context is always the client's.
            made = (spec for spec in inputs if spec.name != "context")
            return Signature((ROWS,), (*outputs, *made), frozenset({ROWS.name}))
        graph = manifest.graphs[self.task]
        inputs = tuple(map(_as_column, graph.inputs))
        # Where there is no other input, nothing else would say how many rows are wanted.
        noise = frozenset(spec.name for spec in inputs if spec.noise and len(inputs) > 1)
        return Signature(inputs, graph.outputs, noise)

    @property
    def parameters(self) -> type[Parameters]:
        """What it may be told."""
        if self.task == SAMPLE:
            return parameters.SampleParameters
        signature = self.signature
        noisy = [spec for spec in signature.inputs if spec.name in signature.optional]
        if not noisy:
            return Parameters
        return (
            parameters.DrawParameters if "draws" in noisy[0].shape else parameters.NoiseParameters
        )


def _as_column(spec: TensorSpec) -> TensorSpec:
    """Return how an input is asked for: a label or a rate as a column.

    perf_analyzer cannot send a tensor that has no axis but the batch's. (n) is read as well.
    """
    return spec.model_copy(update={"shape": ("batch", 1)}) if spec.shape == ("batch",) else spec


async def find(request: Request, name: str, version: str | None) -> Served:
    """Return the model of this name, after loading it if it is an older version.

    Raises:
        ModelNotFound: No such model, task or version.
        NotReady: It is still being loaded.
        DeadlineExceeded: Loading it takes longer than the request may.
    """
    here = context.of(request)
    base, _, task = name.rpartition(".")
    if base not in here.repository.models:
        known = ", ".join(served.name for served in newest(here.repository)) or "none"
        raise ModelNotFound(f"There is no model {name[:100]!r}. There are: {known}.", field="model")
    number = None
    if version is not None:
        if not (version.isascii() and version.isdecimal() and len(version) < 20):
            raise ModelNotFound(f"{name} has no version {version[:40]!r}.", field="version")
        number = int(version)
    tasks = _tasks(await here.engine(request, base, number))
    for served in tasks:
        if served.task == task:
            return served
    known = ", ".join(served.name for served in tasks)
    raise ModelNotFound(f"There is no model {name[:100]!r}. {base} has: {known}.", field="model")


def newest(repository: Repository) -> Iterator[Served]:
    """Yield what serves requests that name no version."""
    for model in repository.models.values():
        if model.engine:
            yield from _tasks(model.engine)


def loaded(repository: Repository) -> Iterator[Served]:
    """Yield all that is loaded, older versions too."""
    for model in repository.models.values():
        for engine in model.engines.values():
            yield from _tasks(engine)


def _tasks(engine: Engine) -> list[Served]:
    roles = [role for role in get_args(Role) if role in engine.manifest.graphs]
    return [Served(engine, task) for task in (SAMPLE, *roles)]


def index(repository: Repository) -> Iterator[dict[str, str]]:
    """Yield what became of every version, in Triton's words.

    What is not loaded has no graphs that anybody has seen, and stands there for its sampling.
    """
    for served in loaded(repository):
        yield _entry(served.name, served.version, "READY")
    for model in repository.models.values():
        for version in model.versions:
            name = f"{model.name}.{SAMPLE}"
            match model.state_of(version):
                case "failed":
                    yield _entry(name, str(version), "UNAVAILABLE", model.problems[version])
                case "loading":
                    yield _entry(name, str(version), "LOADING")
                case "unloaded":
                    yield _entry(name, str(version), "UNAVAILABLE", "It is not loaded now.")


def _entry(name: str, version: str, state: str, reason: str = "") -> dict[str, str]:
    return {"name": name, "version": version, "state": state, "reason": reason}


def metadata(served: Served, here: Context) -> dict[str, Any]:
    """Return the protocol's description of a model. -1 is an axis that each call chooses."""
    signature = served.signature
    return {
        "name": served.name,
        "versions": _versions(served, here),
        "platform": "onnx_onnxv1",
        "inputs": [_tensor(spec) for spec in signature.inputs],
        "outputs": [_tensor(spec) for spec in signature.outputs],
    }


def _versions(served: Served, here: Context) -> list[str]:
    """Return the versions that a request may name, oldest first."""
    model = here.repository.models.get(served.engine.manifest.name)
    if model is None or not here.settings.old_versions:
        return [served.version]
    return [str(version) for version in sorted({*model.sound, *model.engines})]


def configuration(served: Served, settings: Settings) -> dict[str, Any]:
    """Return as much of Triton's model configuration as is true here.

    The dimensions leave out the axis of the batch, whose most is `max_batch_size`.
    """
    signature = served.signature
    return {
        "name": served.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "version_policy": {"specific": {"versions": [int(served.version)]}},
        # Rows of different requests share a run, and none waits for company.
        "dynamic_batching": {"max_queue_delay_microseconds": 0},
        "max_batch_size": context.most_rows(served.engine, settings),
        "input": [
            {**_dimensions(spec), "optional": spec.name in signature.optional}
            for spec in signature.inputs
        ],
        "output": [_dimensions(spec) for spec in signature.outputs],
        "instance_group": [
            {
                "name": served.name,
                "kind": "KIND_GPU" if served.engine.device.kind == "cuda" else "KIND_CPU",
                "count": 1,
            }
        ],
        "model_transaction_policy": {"decoupled": False},
        "response_cache": {"enable": False},
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    shape = [axis if isinstance(axis, int) else -1 for axis in spec.shape]
    return {"name": spec.name, "datatype": DATATYPE[spec.dtype], "shape": shape}


def _dimensions(spec: TensorSpec) -> dict[str, Any]:
    tensor = _tensor(spec)
    return {
        "name": spec.name,
        "data_type": f"TYPE_{tensor['datatype']}",
        "dims": tensor["shape"][1:],
    }
