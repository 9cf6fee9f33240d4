"""Three ways to run a graph on a GPU: session.run, fixed buffers, a captured CUDA graph.

    python -m benchmarks.gpu            # all shipped images' graphs; needs CUDA

Prints a Markdown table: for each bucket of rows the median time of one run, inputs copied to the
device and outputs copied off it in all three.
"""

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from service import bundle
from service.bundle import Bundle
from service.errors import DeviceUnavailable
from service.interface import Role
from service.runtime import onnxruntime
from service.session import Device, Session, choose_device
from service.tensors import Array

MODELS = Path(__file__).parents[1] / "models"
BUCKETS = (1, 8, 64, 512)
SECONDS = 0.5

Feeds = dict[str, Array]


def main(names: Sequence[str]) -> int:
    """Print the table of some models. Return 2, after a sentence, where there is no CUDA."""
    try:
        device = choose_device("cuda")
    except DeviceUnavailable as error:
        print(f"There is nothing to measure here: {error.detail}", file=sys.stderr)
        return 2
    print("| model | rows | session.run, ms | IO binding, ms | CUDA graph, ms | rows/s at best |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in names or bundle.names(MODELS):
        newest = bundle.versions(MODELS, name)[0]
        for row in measure(bundle.read(MODELS / name / str(newest)), device):
            print(f"| {name} | {' | '.join(row)} |", flush=True)
    return 0


def measure(of: Bundle, device: Device) -> list[list[str]]:
    """Return a row of the table for each bucket."""
    role: Role = "velocity" if of.manifest.ode else "decode"
    served = Session(of, role, device)
    plain = onnxruntime.InferenceSession(
        of.graph(role), providers=[("CUDAExecutionProvider", {"use_tf32": "0"})], enable_fallback=0
    )
    outputs = [served.graph.outputs[0].name]
    rows = []
    for bucket in BUCKETS:
        feeds = inputs(served, bucket)
        bound = Buffers(plain, feeds, outputs)
        ways: list[Callable[[], object]] = [
            partial(plain.run, outputs, feeds),
            partial(bound.run, feeds),
        ]
        if served.is_captured:
            ways.append(partial(served.run, feeds, outputs))
        times = [median_ms(way) for way in ways]
        best = f"{bucket / min(times) * 1e3:,.0f}"
        cells = [f"{each:.3f}" for each in times] + ["none"] * (3 - len(times))
        rows.append([str(bucket), *cells, best])
    return rows


class Buffers:
    """A session whose inputs and outputs stay at fixed addresses on the device.

    Args:
        session: On CUDA.
        feeds: Inputs of the one shape that it is for.
        outputs: Which outputs.
        place: Kind of the device.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        feeds: Feeds,
        outputs: Sequence[str],
        place: str = "cuda",
    ) -> None:
        self._session = session
        self._binding = session.io_binding()
        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        self._inputs = {name: make(a.shape, a.dtype, place, 0) for name, a in feeds.items()}
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        sizes = zip(outputs, session.run(outputs, feeds), strict=True)
        self._outputs = {name: make(a.shape, a.dtype, place, 0) for name, a in sizes}
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def run(self, feeds: Feeds) -> list[Array]:
        """Return the outputs, copied off the device."""
        for name, array in feeds.items():
            self._inputs[name].update_inplace(array)
        self._session.run_with_iobinding(self._binding)
        return [value.numpy() for value in self._outputs.values()]


def inputs(session: Session, rows: int) -> Feeds:
    """Return random inputs of so many rows."""
    generator = np.random.default_rng(0)
    feeds: Feeds = {}
    for spec in session.graph.inputs:
        shape = [axis if isinstance(axis, int) else rows for axis in spec.shape]
        values = generator.uniform(size=shape) if spec.dtype == "float32" else np.zeros(shape)
        feeds[spec.name] = values.astype(spec.dtype)
    return feeds


def median_ms(run: Callable[[], object]) -> float:
    """Return the median time of a run in ms, after three that are not counted."""
    for _ in range(3):
        run()
    times = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return float(np.median(times)) * 1e3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
