"""What the Open Inference Protocol calls models: each graph of each bundle, and its sampling.

A name is `<model>.<task>`, such as `mnist-vae.decode`. A task is the role of a graph, or
`sample`, which every model has.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from service.api import context
from service.api.oip import parameters
from service.api.oip.parameters import Parameters
from service.api.oip.wire import DATATYPE, Signature
from service.engine import Engine
from service.errors import ModelNotFound
from service.manifest import Role, TensorSpec
from service.repository import Repository
from service.settings import Settings
from service.shelf import Model

Task = Role | Literal["sample"]
SAMPLE: Literal["sample"] = "sample"

ROWS = TensorSpec(name="rows", dtype="uint8", shape=("batch", 1))
"""Of `sample`: a byte for each row that is wanted, whatever it holds. Many clients cannot send
a request without an input, and none but a tensor has a batch size that a load test can set."""


LABEL = TensorSpec(name="label", dtype="int64", shape=("batch", 1))
"""The label of each row, where a graph takes it. perf_analyzer cannot send a tensor that has no
axis but the batch's, so that (n, 1) is asked for here; (n) is read as well."""


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
        graphs = self.engine.manifest.graphs
        if self.task == SAMPLE:
            decode = graphs["decode"]
            outputs = (*decode.outputs, *decode.inputs)
            return Signature((ROWS,), outputs, frozenset({ROWS.name}))
        graph = graphs[self.task]
        inputs = tuple(LABEL if spec.name == LABEL.name else spec for spec in graph.inputs)
        noise = frozenset(spec.name for spec in inputs if spec.noise)
        return Signature(inputs, graph.outputs, noise)

    @property
    def parameters(self) -> type[Parameters]:
        """What it may be told."""
        if self.task == SAMPLE:
            return parameters.Sampled
        noisy = [spec for spec in self.signature.inputs if spec.noise]
        if not noisy:
            return Parameters
        return parameters.Estimated if "draws" in noisy[0].shape else parameters.Seeded


async def find(repository: Repository, name: str, version: str | None) -> Served:
    """Return the model of this name.

    Raises:
        ModelNotFound: No such model, task or version.
        NotReady: It is still being loaded.
    """
    base, _, task = name.rpartition(".")
    if base not in repository.models:
        known = ", ".join(served.name for served in ready(repository)) or "none"
        raise ModelNotFound(f"There is no model '{name[:100]}'. There are: {known}.", field="model")
    number = None
    if version is not None:
        if not (version.isascii() and version.isdecimal() and len(version) < 20):
            raise ModelNotFound(f"{name} has no version '{version[:40]}'.", field="version")
        number = int(version)
    engine = await repository.resolve(base, number)
    for served in _tasks(engine):
        if served.task == task:
            return served
    known = ", ".join(served.name for served in _tasks(engine))
    raise ModelNotFound(f"There is no model '{name[:100]}'. {base} has: {known}.", field="model")


def ready(repository: Repository) -> Iterator[Served]:
    """Yield every model that is served."""
    for model in repository.models.values():
        if model.engine:
            yield from _tasks(model.engine)


def _tasks(engine: Engine) -> Iterator[Served]:
    yield Served(engine, SAMPLE)
    for role in get_args(Role):
        if role in engine.manifest.graphs:
            yield Served(engine, role)


def index(repository: Repository) -> Iterator[dict[str, str]]:
    """Yield what became of every model, in Triton's words.

    What is not served has no graphs that anybody has seen, and stands there for its sampling.
    """
    for model in repository.models.values():
        if model.engine:
            for served in _tasks(model.engine):
                yield _entry(served.name, served.version, "READY")
        yield from _not_served(model)


def _not_served(model: Model) -> Iterator[dict[str, str]]:
    name = f"{model.name}.{SAMPLE}"
    if model.state == "loading":
        yield _entry(name, str(max(model.versions, default="")), "LOADING")
    for version, why in model.problems.items():
        yield _entry(name, str(version), "UNAVAILABLE", why)


def _entry(name: str, version: str, state: str, reason: str = "") -> dict[str, str]:
    return {"name": name, "version": version, "state": state, "reason": reason}


def metadata(served: Served) -> dict[str, Any]:
    """Return the protocol's description of a model. -1 is an axis that each call chooses."""
    signature = served.signature
    return {
        "name": served.name,
        "versions": [served.version],
        "platform": "onnx_onnxv1",
        "inputs": [_tensor(spec) for spec in signature.inputs],
        "outputs": [_tensor(spec) for spec in signature.outputs],
    }


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
