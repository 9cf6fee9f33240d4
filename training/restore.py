"""Restoring: a published bundle becomes the PyTorch model that it was exported from.

A bundle keeps its weights in its graphs and nowhere else. The exporter leaves most of them under
their names (`module.model.decoder.0.weight`), but not all (found by trial):

- of a linear layer over more than two axes the weight is transposed, that of a masked one is
  multiplied with its mask, and both lose their names. Such weights come in the order of their use;
- scale and shift of a group normalisation become nameless factors and terms behind it, which come
  in the order of their use;
- what follows from a parameter alone is folded into a constant: the scale of p(x|z), which its
  module knows as a property, from its logarithm. There the equation is solved for the parameter;
- a part that was folded on purpose is there as the constants it was folded to (`folded.py`).

No guess is believed: a model is restored if it repeats all golden vectors in float64.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from pydantic import ValidationError
from torch import Tensor, nn

from service.bundle import Bundle
from service.interface import Event, Role
from service.tensors import Array
from training import recipe
from training.data import Data
from training.family import Family, outputs_of
from training.folded import folded, parts

AGREEMENT = 1e-6
"""Allowed difference from a golden vector, relative to 1 + its largest number. The same weights
come within 1e-12; other ones that pass would be as good."""
SOLVING_STEPS = 200
"""Of L-BFGS, at most: elementwise equations in one unknown each."""
_ORDER: tuple[Role, ...] = (
    "elbo", "log_density", "encode", "likelihood", "decode", "observe", "velocity", "enter",
    "critic",
)  # fmt: skip
"""Graphs, those first that use the weights in the order in which the model was built."""


class RestoreRefused(Exception):
    """The model cannot be made from its bundle; the message says why."""


def restore(bundle: Bundle, data: Data) -> Family:
    """Return the model of a bundle, in float32 on the CPU and in evaluation mode.

    Parameters that no graph needs, such as those of a GAN's critic, are not the trained ones.

    Args:
        bundle: Published by `python -m training`: its recipe says what to build.
        data: Events as the model knows them. A flow of features takes their moments from it, and
            so wants the rows that it was trained on; of others it does not matter which they are.

    Raises:
        RestoreRefused: The data has other events, the recipe is not of this version of the
            package, or the model does not repeat the golden vectors.
    """
    model = _built(bundle, data)
    # Some parts are constants in the graphs: those are looked for, and then unfolded.
    exported = folded(model)
    tensors = dict((*exported.named_parameters(), *exported.named_buffers()))
    files = [onnx.load_from_string(data) for data in _files(bundle)]
    found = _by_name(files, tensors)
    missing = {name: each for name, each in exported.named_parameters() if name not in found}
    found |= _by_order(files, missing)
    with torch.no_grad():
        found |= _of_groups(exported, bundle)
        for name, array in found.items():
            tensors[name].copy_(torch.from_numpy(array.copy()))
        model.load_state_dict(exported.state_dict(), strict=False)
        for place, part in parts(model).items():
            part.unfold(exported.get_submodule(place))
        # A GAN's critic is missing too, and not missed.
        if _difference(model, bundle) > 1:
            for name in missing.keys() - found.keys():
                _unfold(model, bundle, name, files)
    if not (worst := _difference(model, bundle)) <= 1:
        raise RestoreRefused(
            f"{bundle.folder}: the model that its recipe describes misses the golden vectors by "
            f"{worst:.2g} times what is allowed, so its figures would be of another model. Was it "
            f"made by another version of this package? Train it again with this one."
        )
    return model


def recipe_of(bundle: Bundle) -> recipe.Recipe:
    """Return the recipe that a bundle was made by.

    Raises:
        RestoreRefused: It is none of this version of the package.
    """
    try:
        return recipe.Recipe.model_validate(bundle.manifest.provenance.recipe)
    except ValidationError as error:
        first = error.errors()[0]
        raise RestoreRefused(
            f"{bundle.folder}: the recipe in its manifest is none of this package's version "
            f"({'.'.join(map(str, first['loc']))}: {first['msg']})"
        ) from error


def _built(bundle: Bundle, data: Data) -> Family:
    """Return the recipe's model with some weights, on what the data says of events.

    Raises:
        RestoreRefused: It would be a model of other events than the bundle's.
    """
    manifest = bundle.manifest
    if difference := _difference_of_events(manifest.event, data.event):
        raise RestoreRefused(f"{manifest.name} knows {difference}; give data like its own.")
    try:
        model = recipe.build(recipe_of(bundle), data).eval()
        model.release()
        model.requires_grad_(False)
    except recipe.RecipeInvalid as error:
        raise RestoreRefused(f"{manifest.name} does not fit this data: {error}") from error
    if model.interface.labels != manifest.labels:
        raise RestoreRefused(
            f"{manifest.name} knows the labels {_listing(manifest.labels)}; this data has "
            f"{_listing(model.interface.labels)}. Give data like its own."
        )
    known, given = (
        each.names if each else None for each in (manifest.context, model.interface.context)
    )
    if known != given:
        raise RestoreRefused(
            f"{manifest.name} is told the context {_listing(known)}; this data has "
            f"{_listing(given)}. Give data like its own."
        )
    graphs = model.graphs()
    for role in manifest.graphs:
        if role not in graphs or model.interface.signature(role) != manifest.signature(role):
            raise RestoreRefused(
                f"{bundle.folder}: its recipe makes a model with another {role} graph; it is of "
                f"another version of this package. Train it again with this one."
            )
    return model


def _listing(labels: tuple[str, ...] | None) -> str:
    return ", ".join(labels or ("none",))


def _difference_of_events(known: Event, given: Event) -> str:
    """Return "images of (1, 8, 8), and this data has ..."; "" where both are alike."""
    for words, name in (
        ("{}s", "kind"),
        ("events of shape {}", "shape"),
        ("columns {}", "features"),
        ("categories {}", "categories"),
    ):
        ours, theirs = getattr(known, name), getattr(given, name)
        if ours and ours != theirs:
            return f"{words.format(ours)}, and this data has {words.format(theirs)}"
    return ""


def _files(bundle: Bundle) -> Iterator[bytes]:
    """Yield the graphs' files."""
    graphs = bundle.manifest.graphs
    for file in dict.fromkeys(graphs[role].file for role in _ORDER if role in graphs):
        yield bundle.files[file]


def _by_name(files: Sequence[onnx.ModelProto], tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    """Return what the graphs say of tensors whose names they have kept."""
    named = [each for file in files for each in file.graph.initializer if _is_named(each)]
    found: dict[str, Array] = {}
    for name, tensor in tensors.items():
        for initializer in (each for wanted in _names(name) for each in named
                            if each.name.endswith(f".{wanted}")):  # fmt: skip
            if tuple(initializer.dims) == tensor.shape:
                found[name] = numpy_helper.to_array(initializer)
                break
    return found


def _names(name: str) -> list[str]:
    """Return a name and what it may have been: `encoder.0` has become `encoder.network.0`."""
    parts = name.split(".")
    return [name, *(".".join(parts[:k] + parts[k + 1 :]) for k in range(1, len(parts) - 1))]


def _by_order(files: Sequence[onnx.ModelProto], missing: Mapping[str, Tensor]) -> dict[str, Array]:
    """Return weights of linear layers that have lost their names, by shape in order of use."""
    found: dict[str, Array] = {}
    shapes = dict.fromkeys(tuple(tensor.shape) for tensor in missing.values() if tensor.ndim == 2)
    for shape in shapes:
        names = [name for name, tensor in missing.items() if tensor.shape == shape]
        for file in files:
            nameless = [array for array in _factors(file) if array.shape == shape]
            if len(nameless) == len(names):
                found |= dict(zip(names, nameless, strict=True))
                break
    return found


def _factors(file: onnx.ModelProto) -> Iterator[Array]:
    """Yield the nameless weights of matrix products, (output, input), in the order of their use."""
    constants = {each.name: each for each in file.graph.initializer}
    for node in file.graph.node:
        factor = constants.get(node.input[1]) if node.op_type in ("MatMul", "Gemm") else None
        if factor and not _is_named(factor):
            array = numpy_helper.to_array(factor)
            turned = any(each.name == "transB" and each.i for each in node.attribute)
            yield array if turned else array.T


def _of_groups(model: Family, bundle: Bundle) -> dict[str, Array]:
    """Return scales and shifts of group normalisations, in the order in which a graph uses them."""
    norms = {name: each for name, each in model.named_modules()
             if isinstance(each, nn.GroupNorm) and each.affine}  # fmt: skip
    used: list[str] = []
    hooks = [
        each.register_forward_hook(lambda *_, name=name: used.append(name))
        for name, each in norms.items()
    ]
    found: dict[str, Array] = {}
    for role in bundle.manifest.graphs if norms else ():
        used.clear()
        model.graphs()[role](*_golden_inputs(bundle, role))
        affine = list(_affine(onnx.load_from_string(bundle.graph(role))))
        if [len(scale) for scale, _ in affine] == [norms[name].num_channels for name in used]:
            for name, (scale, shift) in zip(used, affine, strict=True):
                found |= {f"{name}.weight": scale.ravel(), f"{name}.bias": shift.ravel()}
    for hook in hooks:
        hook.remove()
    return found


def _affine(file: onnx.ModelProto) -> Iterator[tuple[Array, Array]]:
    """Yield what each normalisation is multiplied by and what is then added, as they are used."""
    constants = {each.name: numpy_helper.to_array(each) for each in file.graph.initializer}
    users = {name: node for node in file.graph.node for name in node.input}
    for node in file.graph.node:
        if node.op_type == "InstanceNormalization":
            # The groups are put back into channels, scaled, and shifted.
            factor = users[users[node.output[0]].output[0]]
            term = users[factor.output[0]]
            if factor.op_type == "Mul" and term.op_type == "Add":
                scale, shift = (
                    next(constants[name] for name in each.input if name in constants)
                    for each in (factor, term)
                )
                yield scale, shift


def _golden_inputs(bundle: Bundle, role: Role) -> list[Tensor]:
    inputs = bundle.manifest.graphs[role].inputs
    return [torch.from_numpy(bundle.golden[f"{role}.{spec.name}"]) for spec in inputs]


def _is_named(initializer: onnx.TensorProto) -> bool:
    return initializer.name.startswith("module.")


def _difference(model: Family, bundle: Bundle) -> float:
    """Return the largest difference from the golden vectors, in units of what is allowed."""
    with torch.no_grad():
        exact = copy.deepcopy(model).double()
        # max() would pass over a NaN.
        return float(np.max([float(gap) for gap in _gaps(exact, bundle)])) / AGREEMENT


def _gaps(model: Family, bundle: Bundle) -> Iterator[Tensor]:
    """Yield how far each output of a float64 model is from its golden vector, relatively."""
    graphs = model.graphs()
    for role in bundle.manifest.graphs:
        vectors = _golden_inputs(bundle, role)
        feeds = (each.double() if each.is_floating_point() else each for each in vectors)
        answers = graphs[role](*feeds)
        for spec, answer in zip(outputs_of(graphs, model.interface, role), answers, strict=True):
            reference = bundle.golden.get(f"{role}.{spec.name}")
            if reference is not None and answer.is_floating_point():
                wanted = torch.from_numpy(reference)
                yield (answer - wanted).abs().max() / (1 + wanted.abs().max())


def _unfold(model: Family, bundle: Bundle, name: str, files: Sequence[onnx.ModelProto]) -> None:
    """Set a parameter that was folded to what a constant says of a property of its module.

    Of all constants that could be such a property, or its exponential, the one is meant with
    which the model repeats the golden vectors. Where there is none, nothing changes.
    """
    place, _, own = name.rpartition(".")
    before = copy.deepcopy(model.get_submodule(place)).double()
    properties = [each for each, kind in vars(type(before)).items() if isinstance(kind, property)]
    for property_name, target in product(properties, _constants(files)):
        owner = copy.deepcopy(before)
        parameter = owner.get_parameter(own).requires_grad_()
        if _solve(owner, property_name, parameter, target):
            kept = model.get_parameter(name).clone()
            model.get_parameter(name).copy_(parameter)
            if _difference(model, bundle) <= 1:
                return
            model.get_parameter(name).copy_(kept)


def _constants(files: Sequence[onnx.ModelProto]) -> Iterator[Tensor]:
    """Yield nameless constants of the graphs, each as it is and its logarithm, once."""
    seen: set[tuple[bytes, tuple[int, ...]]] = set()
    for file in files:
        for initializer in file.graph.initializer:
            if initializer.data_type != onnx.TensorProto.FLOAT or _is_named(initializer):
                continue
            array = numpy_helper.to_array(initializer)
            if (key := (array.tobytes(), array.shape)) not in seen:
                seen.add(key)
                value = torch.from_numpy(array.astype(np.float64))
                yield value
                yield value.log()


def _solve(owner: nn.Module, property_name: str, parameter: Tensor, target: Tensor) -> bool:
    """Change a parameter until a property of its module is the target; return whether it is."""
    first = getattr(owner, property_name)
    if not isinstance(first, Tensor) or first.shape != target.shape or not target.isfinite().all():
        return False
    optimiser = torch.optim.LBFGS(
        [parameter],
        max_iter=SOLVING_STEPS,
        tolerance_grad=0,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        total: Tensor = (getattr(owner, property_name) - target).square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimiser.step(loss)
        gap = getattr(owner, property_name).detach() - target
    return float(gap.abs().max()) < AGREEMENT
