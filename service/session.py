"""Sessions: one graph, loaded into ONNX Runtime on one device that has proved itself.

ONNX Runtime falls back to the CPU in three silent ways (at creation, at a fault, and node by
node). All are closed or made visible here: docs/operations.md, "Devices".
"""

import logging
import math
import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import onnx
from onnx import TensorProto, helper

from service.bundle import Bundle
from service.errors import BundleInvalid, DeviceUnavailable, EngineFailed
from service.interface import Role
from service.runtime import onnxruntime
from service.tensors import Array

log = logging.getLogger(__name__)

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

_CUDA_OPTIONS = {
    # Measured elsewhere: EXHAUSTIVE searches for half a second at each new shape.
    "cudnn_conv_algo_search": "HEURISTIC",
    # TF32 keeps 10 bits of mantissa: log-densities drift by 1e-3 relative.
    "use_tf32": "0",
    "do_copy_in_default_stream": "1",
    # Right only because row counts are padded to a few fixed buckets.
    "arena_extend_strategy": "kSameAsRequested",
}


@dataclass(frozen=True)
class Device:
    """Where graphs run.

    Args:
        kind: What really runs them.
        reason: Why it is not what `auto` would have preferred, or "".
    """

    kind: Literal["cpu", "cuda"]
    reason: str = ""


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> Device:
    """Return the device that serves, after it has run a graph.

    Raises:
        DeviceUnavailable: CUDA was asked for by name and cannot be proved to work.
    """
    if wanted == "cpu":
        return Device("cpu")
    try:
        _prove_cuda()
    except DeviceUnavailable as error:
        if wanted == "cuda":
            raise
        log.info("serving on the CPU: %s", error.detail)
        return Device("cpu", reason=error.detail)
    return Device("cuda")


def cores() -> int:
    """Return how many cores this process may use: its affinity, or less by a cgroup's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    allowed = allowed or 1
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
    except FileNotFoundError:  # not Linux, or cgroup v1
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, int(quota) // int(period)))


def _prove_cuda() -> None:
    """Run a small matrix product on CUDA, and only there.

    Raises:
        DeviceUnavailable: Saying which step failed.
    """
    if _PROVIDERS["cuda"] not in onnxruntime.get_available_providers():
        raise DeviceUnavailable(
            "this ONNX Runtime was built without CUDA. Install pushforward[gpu] instead of [cpu]."
        )
    onnxruntime.preload_dlls()  # the CUDA libraries of pip's own wheels, where they are installed
    tensors = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 2]) for n in "abc"]
    product = helper.make_node("MatMul", ["a", "b"], ["c"])
    graph = helper.make_graph([product], "proof", tensors[:2], tensors[2:])
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    ).SerializeToString()
    matrix = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)
    try:
        session = _create(model, Device("cuda"))
        (answer,) = session.run(None, {"a": matrix, "b": matrix})
    except Exception as error:  # ONNX Runtime has no common class for what can go wrong here
        raise DeviceUnavailable(f"CUDA cannot run a graph: {error}") from error
    if not np.array_equal(answer, matrix @ matrix) or _nodes(session).keys() != {"cuda"}:
        raise DeviceUnavailable("CUDA was asked for, and the graph ran elsewhere or wrongly.")


def _create(
    model: bytes, device: Device, index: int = 0, *, capture: bool = False
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # One thread inside a run: results then do not depend on how work was cut, and several runs
    # at once use the cores better (reference measurement: 1.9x with two).
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    # The search for buffers to reuse takes time quadratic in the nodes: nine tenths of loading
    # a flow of a thousand nodes (measured, ORT 1.31: 0.45 s, without it 0.05).
    # Speed, bytes and peak memory of runs are the same: memory patterns, which stay on, lay out
    # each bucket's buffers by their lifetimes.
    options.enable_mem_reuse = device.kind == "cuda"  # where it is not measured
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    providers: list[Any] = [_PROVIDERS["cpu"]]
    if device.kind == "cuda":
        own = {"device_id": str(index), "enable_cuda_graph": str(int(capture))}
        providers = [(_PROVIDERS["cuda"], _CUDA_OPTIONS | own)]
    # Without enable_fallback=0 a failing CUDA session is recreated on the CPU with a mere print.
    return onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)


def _nodes(session: onnxruntime.InferenceSession) -> dict[str, int]:
    """Return how many nodes each kind of device really runs."""
    kinds = {provider: kind for kind, provider in _PROVIDERS.items()}
    counts: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        counts[kinds.get(part.ep_name, part.ep_name)] += len(part.get_nodes())
    return dict(counts)


class Limit:
    """Ends what is run within it when its time is up: a graph may loop without end.

    Between two nodes, that is; a session that is being made cannot be stopped.

    Args:
        seconds: From its beginning; infinite by default.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self.seconds = seconds
        self.is_over = False
        self._options: list[onnxruntime.RunOptions] = []
        self._timer = threading.Timer(seconds, self.end)
        self._timer.daemon = True

    def watch(self, options: onnxruntime.RunOptions) -> onnxruntime.RunOptions:
        """Return the options of a run, which ends when the time is up."""
        self._options.append(options)
        if self.is_over:  # never set to False here: the timer may have just set it
            options.terminate = True
        return options

    def __enter__(self) -> Self:
        if self.seconds < math.inf:
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._options.clear()

    def end(self) -> None:
        """End what runs now, before the time is up."""
        self.is_over = True
        for options in self._options:
            options.terminate = True


class Session:
    """One graph of a bundle on one device.

    On a CPU it is safe to run from several threads at once. On CUDA it has buffers of its own
    for every shape, and if the graph allows it a CUDA graph that was captured on them: one
    thread at a time.

    Args:
        bundle: Where the graph comes from.
        role: Which; another role of the same file may be run by this session as well.
        device: What kind of device.
        index: Which of them.
        bind: Whether runs go through buffers on the device. Always so on CUDA.

    Raises:
        BundleInvalid: ONNX Runtime cannot load the graph, or not on this device.
    """

    def __init__(
        self, bundle: Bundle, role: Role, device: Device, index: int = 0, *, bind: bool = False
    ) -> None:
        self.role = role
        self.graph = bundle.manifest.graphs[role]
        self.where = f"{bundle.folder / self.graph.file}"
        self.is_captured = False
        """Whether runs replay a CUDA graph."""
        self.place = device.kind
        """The kind of device that runs it."""
        self._index = index
        self._bindings: dict[tuple[object, ...], Binding] = {}
        self._binds = bind or device.kind == "cuda"
        data = bundle.graph(role)
        self._session = self._load(data, device)
        self.nodes = _nodes(self._session)
        """How many nodes run where: {"cuda": 40, "cpu": 2}. Shape arithmetic stays on the CPU."""
        if device.kind not in self.nodes:
            raise BundleInvalid(
                f"{self.where}: none of its nodes runs on {device.kind}.",
                field=self.graph.file,
            )
        if device.kind == "cuda" and set(self.nodes) == {"cuda"} and not _branches(data):
            self._session = self._load(data, device, capture=True)
            self.is_captured = True

    def run(
        self,
        feeds: Mapping[str, Array],
        outputs: Sequence[str] | None = None,
        *,
        limit: "Limit | None" = None,
    ) -> dict[str, Array]:
        """Return the named outputs (default: those of its role) for these inputs.

        Args:
            feeds: By input.
            outputs: Which.
            limit: Ends the run when its time is up.

        Raises:
            EngineFailed: ONNX Runtime refused or failed.
        """
        outputs = outputs or [spec.name for spec in self.graph.outputs]
        try:
            if self._binds:
                values = self._bound(feeds, outputs, limit)
            else:
                options = limit.watch(onnxruntime.RunOptions()) if limit else None
                values = self._session.run(list(outputs), dict(feeds), options)
        except Exception as error:  # no common class, as above
            raise EngineFailed(f"{self.where} failed: {_sentence(error)}") from error
        return dict(zip(outputs, values, strict=True))

    def _bound(
        self, feeds: Mapping[str, Array], outputs: Sequence[str], limit: "Limit | None"
    ) -> list[Array]:
        # Always all outputs: a set of them that nobody asked for before would not be warm.
        key = tuple(array.shape for array in feeds.values())
        if key not in self._bindings:
            # A captured graph is known by its number; 0 is ONNX Runtime's own default.
            number = len(self._bindings) + 1 if self.is_captured else None
            self._bindings[key] = Binding(
                self._session,
                feeds,
                [each.name for each in self._session.get_outputs()],
                place=(self.place, self._index),
                number=number,
                limit=limit or Limit(),
            )
        return self._bindings[key].run(feeds, outputs)

    def _load(
        self, data: bytes, device: Device, *, capture: bool = False
    ) -> onnxruntime.InferenceSession:
        try:
            return _create(data, device, self._index, capture=capture)
        except Exception as error:  # no common class, as above
            raise BundleInvalid(
                f"{self.where}: ONNX Runtime cannot load it on {device.kind}: {_sentence(error)}",
                field=self.graph.file,
            ) from error


class Binding:
    """Buffers on a device for one shape of a graph: same addresses, run after run.

    Args:
        session: Runs the graph.
        feeds: Inputs of this shape.
        outputs: All that the graph has.
        place: Kind and index of the device.
        number: Of the CUDA graph that is captured on these buffers, if one is.
        limit: Ends the runs on these buffers when its time is up.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        feeds: Mapping[str, Array],
        outputs: Sequence[str],
        *,
        place: tuple[str, int],
        number: int | None,
        limit: "Limit",
    ) -> None:
        self._session = session
        self._options = limit.watch(onnxruntime.RunOptions())
        if number is not None:
            self._options.add_run_config_entry("gpu_graph_id", str(number))
        # Not made from the arrays themselves, which on a CPU would become the buffers.
        self._inputs = {
            name: onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                array.shape, array.dtype, *place
            )
            for name, array in feeds.items()
        }
        self._fill(feeds)
        # The first run says how large the outputs are; its buffers are kept for the others.
        first = session.io_binding()
        self._bind_inputs(first)
        for name in outputs:
            first.bind_output(name, *place)
        plain = limit.watch(onnxruntime.RunOptions())
        if number is not None:
            plain.add_run_config_entry("gpu_graph_id", "-1")  # captures nothing
        session.run_with_iobinding(first, plain)
        self._outputs = dict(zip(outputs, first.get_outputs(), strict=True))
        self._binding = session.io_binding()
        self._bind_inputs(self._binding)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def run(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> list[Array]:
        """Return some outputs, copied off the device."""
        self._fill(feeds)
        self._session.run_with_iobinding(self._binding, self._options)
        # On a CPU numpy() may be the buffer itself, which the next run overwrites.
        return [np.array(self._outputs[name].numpy()) for name in wanted]

    def _fill(self, feeds: Mapping[str, Array]) -> None:
        for name, array in feeds.items():
            self._inputs[name].update_inplace(np.ascontiguousarray(array))

    def _bind_inputs(self, binding: onnxruntime.IOBinding) -> None:
        for name, value in self._inputs.items():
            binding.bind_ortvalue_input(name, value)


def _sentence(error: Exception) -> str:
    return str(error).strip().rstrip(".") + "."


def _branches(data: bytes) -> bool:
    """Return whether a graph decides at run time what it runs, which none can capture."""
    operators = {node.op_type for node in onnx.load_model_from_string(data).graph.node}
    return not operators.isdisjoint({"If", "Loop", "Scan"})
