"""Export: a trained model becomes the manifest, graphs and golden vectors of a bundle.

Each graph is exported once, stripped of what would differ between two exports, run in the
runtime that will serve it, and compared with PyTorch in float64. A graph that is off by more
than its tolerance is not written. The recipe of the export itself (frozen parameters, two
exports with the same dynamic shapes, opset 20) was found by trial; see the comments.
"""

import copy
import datetime
import io
import logging
import subprocess
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn
from torch.export import Dim

from service import bundle, external
from service.interface import Interface, Role, TensorSpec
from service.manifest import (
    Figure,
    Golden,
    Graph,
    Manifest,
    Provenance,
    Rejection,
    Tolerance,
    Weights,
)
from service.tensors import Array
from training.family import outputs_of
from training.folded import folded
from training.measure import measured
from training.unrolled import unrolled
from training.vectors import GOLDEN_ROWS, answers, feeds

OPSET = 20
TOLERANCE = 1e-4
"""Allowed error of x, and of every log-density per dimension, against float64."""

# It warns of torchvision's operators once each; nothing here uses them.
logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)

_GAUSSIAN = ("mean", "scale", "scale_tril")
"""What an encoder says of q(z|x), and a refinement begins with."""
_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")


def build(
    graphs: Mapping[Role, nn.Module],
    interface: Interface,
    *,
    name: str,
    title: str,
    licence: str,
    version: int,
    events: Array,
    provenance: Provenance,
    figures: tuple[Figure, ...] = (),
    rejection: Rejection | None = None,
) -> tuple[Manifest, dict[str, bytes]]:
    """Return the manifest of a trained model and the files it names, ready to be published.

    Args:
        graphs: One module per role. Its forward takes the inputs of `interface.signature(role)`
            in that order, returns a tuple of the outputs in that order, draws no random numbers
            and works in float32 and float64. Roles of the same inputs may have one module, which
            returns the outputs of the first, then those of the next, and becomes one file.
        interface: What the model is.
        name: Of the model.
        title: What it is, in a few words.
        licence: Of the weights.
        version: Must not be published yet.
        events: Real x, shape (n, *event), for the golden vectors of graphs that read x.
        provenance: Where the weights come from.
        figures: How good the model was found to be.
        rejection: Of a model with a critic: what its samples are rejected by.

    Raises:
        service.errors.BundleInvalid: A graph does not repeat the float64 reference in ONNX
            Runtime. Nothing was written.
    """
    exports = _exports(graphs, interface, events)
    files, weights = external.parted({file: each.data for file, each in exports.items()})
    described = {
        role: _described(role, interface, file, files[file], each.tolerances)
        for file, each in exports.items()
        for role in each.roles
    }
    if weights:
        files[external.FILE] = weights
    files["golden.npz"] = _npz({k: v for each in exports.values() for k, v in each.golden.items()})
    manifest = Manifest(
        **dict(interface),
        name=name,
        version=version,
        title=title,
        graphs=described,
        weights=Weights(sha256=bundle.digest(weights)) if weights else None,
        golden=Golden(sha256=bundle.digest(files["golden.npz"]), rows=GOLDEN_ROWS),
        rejection=rejection,
        evaluation=figures,
        provenance=provenance,
        licence=licence,
    )
    return measured(manifest, files), files


def describe_origin(
    *,
    recipe: dict[str, Any],
    data: str,
    data_sha256: str,
    seed: int,
    wall_time_s: float,
    device: str,
    parameters: int,
) -> Provenance:
    """Return the provenance of a model trained here and now: what is given, and what is found.

    Args:
        recipe: The recipe as it was run, overrides included.
        data: Where the rows came from and how they were split, in a sentence.
        data_sha256: Of the rows.
        seed: Of the training.
        wall_time_s: Of the training, earlier sessions included.
        device: That trained, in words.
        parameters: How many numbers were fitted.
    """
    return Provenance(
        recipe=recipe,
        data=data,
        data_sha256=data_sha256,
        seed=seed,
        versions={package: metadata.version(package) for package in _PACKAGES},
        git_commit=commit_of(Path(__file__)),
        wall_time_s=round(wall_time_s, 1),
        device=device,
        parameters=parameters,
        created=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )


def to_onnx(
    module: nn.Module, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> bytes:
    """Return the module as an ONNX file whose batch and draws axes are free.

    Args:
        module: Its forward takes the inputs in order and returns a tuple of the outputs in order.
            Its parameters must not require gradients, or loops fail to export.
        inputs: Names, dtypes and shapes of the inputs.
        outputs: Likewise of the outputs.
    """
    # Examples of 1 would be taken for constants; 3 and 5 stay symbols.
    axes = {"batch": Dim("batch", min=1, max=4096), "draws": Dim("draws", min=1, max=4096)}
    examples = tuple(
        torch.zeros(spec.sized(batch=3, draws=5), dtype=getattr(torch, spec.dtype))
        for spec in inputs
    )
    shapes = tuple(
        {i: axes[a] for i, a in enumerate(spec.shape) if not isinstance(a, int)} for spec in inputs
    )
    module = folded(module)
    if getattr(module, "differentiates", False):
        module = unrolled(module, examples)
    graph = _Positional(module)
    with torch.no_grad(), warnings.catch_warnings():
        # Of torch's exporter about torch's own code; nobody here can act on them.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        # Inputs do share their axes: that is what one name for them means.
        warnings.filterwarnings("ignore", message="# The axis name", category=UserWarning)
        program = torch.export.export(graph, examples, dynamic_shapes=(shapes,), strict=False)
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            # Said twice, because otherwise the axes would be called s77.
            dynamic_shapes=(shapes,),
            # For the time being: an input called mean would clash with what torch.mean answers.
            input_names=[f"{spec.name}{_INPUT}" for spec in inputs],
            output_names=[spec.name for spec in outputs],
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    if exported is None:
        raise RuntimeError("torch.onnx.export returned nothing; this is a bug in its arguments")
    model = exported.model_proto
    _rename(model.graph, [spec.name for spec in inputs])
    return _stripped(model)


_INPUT = "__input"
_INNER = "__inner"


def _rename(graph: onnx.GraphProto, inputs: Sequence[str]) -> None:
    """Give inputs their names, and values inside that have them already other ones."""
    names = {name: f"{name}{_INNER}" for name in inputs}
    names |= {f"{name}{_INPUT}": name for name in inputs}
    for value in (*graph.input, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


class _Positional(nn.Module):
    """Gives every graph the same Python signature, whatever its forward calls its arguments."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: torch.Tensor) -> Any:  # noqa: ANN401 - a tuple of any length
        return self.module(*inputs)


def _stripped(model: onnx.ModelProto) -> bytes:
    """Return the model without stack traces, which hold local paths and triple its size."""
    bodies = [model.graph, *model.functions]
    del model.metadata_props[:]
    model.graph.doc_string = ""
    while bodies:
        body = bodies.pop()
        del body.metadata_props[:]
        # Inner values carry names and shapes that no runtime needs.
        del body.value_info[:]
        for value in (*getattr(body, "input", ()), *getattr(body, "output", ())):
            if isinstance(value, onnx.ValueInfoProto):
                del value.metadata_props[:]
        for node in body.node:
            del node.metadata_props[:]
            node.doc_string = ""
            bodies += [a.g for a in node.attribute if a.HasField("g")]
    return bytes(model.SerializeToString(deterministic=True))


@dataclass(frozen=True)
class _Exported:
    """One module as a file, the roles that it has, and what its outputs are held to."""

    data: bytes
    roles: Sequence[Role]
    tolerances: dict[str, Tolerance]
    golden: dict[str, Array]


def _exports(
    graphs: Mapping[Role, nn.Module], interface: Interface, events: Array
) -> dict[str, _Exported]:
    """Return every module as a file, by its name."""
    found: dict[str, _Exported] = {}
    posterior: dict[str, Array] = {}
    for roles, module in _by_module(graphs):
        outputs = outputs_of(graphs, interface, roles[0])
        exported = _export(roles, module, outputs, interface, events, posterior)
        found[f"{roles[0]}.onnx"] = exported
        posterior |= {
            name: exported.golden[f"encode.{name}"]
            for name in _GAUSSIAN
            if f"encode.{name}" in exported.golden
        }
    return found


def _export(
    roles: Sequence[Role],
    trained: nn.Module,
    outputs: tuple[TensorSpec, ...],
    interface: Interface,
    events: Array,
    posterior: Mapping[str, Array],
) -> _Exported:
    """Return a module exported for all of its roles, with what each is held to."""
    module = copy.deepcopy(trained).cpu().float().eval().requires_grad_(False)
    inputs, _ = interface.signature(roles[0])
    data = to_onnx(module, inputs, outputs)
    fed = feeds(roles[0], module, interface, events, posterior)
    reference = answers(module, fed, outputs, torch.float64)
    single = answers(module, fed, outputs, torch.float32)
    tolerances = _tolerances(interface, reference, single)
    vectors = fed | reference
    golden = {
        f"{role}.{spec.name}": vectors[spec.name]
        for role in roles
        for spec in (*inputs, *interface.signature(role)[1])
    }
    return _Exported(data, roles, tolerances, golden)


def _described(
    role: Role, interface: Interface, file: str, data: bytes, tolerances: Mapping[str, Tolerance]
) -> Graph:
    """Return what the manifest says of the graph of one role."""
    inputs, outputs = interface.signature(role)
    return Graph(
        file=file,
        sha256=bundle.digest(data),
        inputs=inputs,
        outputs=outputs,
        tolerance={spec.name: tolerances[spec.name] for spec in outputs},
    )


def _by_module(graphs: Mapping[Role, nn.Module]) -> Iterator[tuple[list[Role], nn.Module]]:
    """Yield each module once, with the roles it has."""
    for module in dict.fromkeys(graphs.values()):
        yield [role for role, each in graphs.items() if each is module], module


def _tolerances(
    interface: Interface, reference: Mapping[str, Array], single: Mapping[str, Array]
) -> dict[str, Tolerance]:
    """Return what each output is held to, by its name."""
    return {
        name: _tolerance(
            name,
            interface,
            largest=max(1.0, float(np.abs(reference[name]).max())),
            rounding=float(np.abs(answer.astype(np.float64) - reference[name]).max()),
        )
        for name, answer in single.items()
    }


def _tolerance(name: str, interface: Interface, *, largest: float, rounding: float) -> Tolerance:
    """Return TOLERANCE for x, and for log-densities that much for each dimension.

    A divergence, the integral of which is one, is held to the same.

    Where float32 itself is as coarse, as in a steep flow or critic, an answer may be as far off as
    PyTorch's own answer without float64 throughout, four times over: other processors round
    otherwise.
    """
    match name.removeprefix("refined_"):
        case "pixels":
            return Tolerance(absolute=1)  # one grey level, where rounding is a tie
        case "x" | "w" | "velocity" | "log_ratio":
            return Tolerance(absolute=max(TOLERANCE * largest, 4 * rounding))
        case "kl" | "log_prior":
            return Tolerance(absolute=TOLERANCE * interface.latent.size, relative=1e-5)
        case "mean" | "scale" | "scale_tril" | "z":
            return Tolerance(absolute=max(1e-3, 4 * rounding), relative=1e-3)
        case _:
            return Tolerance(absolute=TOLERANCE * interface.event.size, relative=1e-5)


def commit_of(file: Path) -> str | None:
    """Return the commit that a file is of, with -dirty behind it where the checkout has changes.

    None where there is no git, no checkout, or one that does not hold the file: a package that
    is installed below somebody's checkout is none of its code.
    """
    try:
        _git(file, "ls-files", "--error-unmatch", file.name)
        # No tag in place of the hash.
        return _git(file, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None


def _git(file: Path, *arguments: str) -> str:
    run = subprocess.run(
        ["git", *arguments], cwd=file.parent, capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


def _npz(arrays: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()
