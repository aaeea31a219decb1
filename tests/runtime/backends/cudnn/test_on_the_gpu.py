"""On a GPU: every engine of every kind of operation against fp64, in a graph and out of it, and choosing among them."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from saishiki.runtime.backends.cuda import CudaDevice
from saishiki.runtime.backends.cudnn.attention import Attention
from saishiki.runtime.backends.cudnn.choice import choose_plan
from saishiki.runtime.backends.cudnn.choice_cache import ChoiceCache, circumstances_of
from saishiki.runtime.backends.cudnn.convolution import Convolution
from saishiki.runtime.backends.cudnn.devices import GPUS, properties_of
from saishiki.runtime.backends.cudnn.execution_plan import ExecutionPlan
from saishiki.runtime.backends.cudnn.handle import Handle
from saishiki.runtime.backends.cudnn.libraries import load_cudnn, why_cudnn_unavailable
from saishiki.runtime.backends.cudnn.matmul import Matmul
from saishiki.runtime.backends.cudnn.operation import Operation
from saishiki.runtime.backends.cudnn.planner import Planner
from saishiki.runtime.backends.cudnn.timing import PlanTimer
from tests.runtime.backends.cudnn.host_memory import normal
from tests.runtime.backends.cudnn.references import (
    attention_reference,
    convolution_arrays,
    convolution_reference,
    matmul_arrays,
    matmul_reference,
)

pytestmark = pytest.mark.gpu

CONVOLUTIONS = {
    "3x3 residual": Convolution(2, 32, 32, 64, 64, (3, 3), 1, (1, 1, 1, 1), residual=True),
    "odd sizes": Convolution(1, 33, 47, 24, 40, (3, 3), 1, (1, 1, 1, 1)),
    "stride 2, padded below and right": Convolution(1, 32, 32, 64, 64, (3, 3), 2, (0, 0, 1, 1)),
    "1x1 of 8 channels": Convolution(1, 32, 32, 8, 64, (1, 1)),
}
MATMULS = {"rows": Matmul(77, 320, 640, residual=True), "one row": Matmul(1, 64, 64)}


class Gpu:
    """A GPU with cuDNN on it, and operands in its memory."""

    def __init__(self, device: CudaDevice, handle: Handle) -> None:
        self.device, self.handle = device, handle
        self.planner = Planner(load_cudnn(), int(device.target.removeprefix("sm")), handle.value)

    def upload(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.memory = {name: self.device.allocate(array.nbytes) for name, array in arrays.items()}
        for name, array in arrays.items():
            self.device.upload(self.memory[name], array)

    def run(self, plan: ExecutionPlan, shape: tuple[int, ...], *, captured: bool = False) -> np.ndarray:
        """y of a plan, in memory that was all NaN."""
        y = np.full(shape, np.nan, np.float16)
        addresses = {name: memory.address for name, memory in self.memory.items()}
        output, workspace = self.device.allocate(y.nbytes), self.device.allocate(plan.workspace_bytes)

        def enqueue() -> None:
            plan.execute(self.handle.value, addresses | {"y": output.address}, workspace.address)

        enqueue()
        work = self.device.capture(enqueue) if captured else enqueue
        self.device.upload(output, y)
        work()
        self.device.download(output, y)
        return y


@pytest.fixture
def gpu(needs_gpu: None) -> Iterator[Gpu]:
    if problem := why_cudnn_unavailable():
        pytest.skip(f"needs cuDNN: {problem}")
    device = CudaDevice(0)
    with Handle(load_cudnn(), device.stream) as handle:
        yield Gpu(device, handle)
    device.close()


def check_all(gpu: Gpu, operation: Operation, expected: np.ndarray) -> None:
    """Every engine that can be built is right, the same twice, and the same in a graph."""
    candidates = gpu.planner.candidates(operation)
    engines = [engine for engine in candidates.engines if candidates.can_be_built(engine)]
    assert engines
    for engine in engines:
        plan = candidates.build(engine)
        y = gpu.run(plan, expected.shape)
        # Rounded once; fp32 sums of a few hundred products.
        np.testing.assert_allclose(y, expected, rtol=2**-10, atol=4e-3, err_msg=engine)
        assert gpu.run(plan, expected.shape).tobytes() == y.tobytes(), engine
        assert gpu.run(plan, expected.shape, captured=True).tobytes() == y.tobytes(), engine


@pytest.mark.parametrize("operation", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolution_by_every_engine(gpu: Gpu, operation: Convolution) -> None:
    arrays = convolution_arrays(operation)
    gpu.upload(arrays)
    check_all(gpu, operation, convolution_reference(operation, arrays))


@pytest.mark.parametrize("operation", MATMULS.values(), ids=MATMULS)
def test_matmul_by_every_engine(gpu: Gpu, operation: Matmul) -> None:
    arrays = matmul_arrays(operation)
    gpu.upload(arrays)
    check_all(gpu, operation, matmul_reference(arrays))


@pytest.mark.parametrize("keys", [256, 77])
def test_attention_by_every_engine(gpu: Gpu, keys: int) -> None:
    operation = Attention(2, 3, 256, keys, 64, 0.125)
    q, k, v = (normal(2, tokens, 3, 64, seed=seed) for seed, tokens in enumerate((256, keys, keys)))
    gpu.upload({"q": q, "k": k, "v": v})
    check_all(gpu, operation, attention_reference(q, k, v, 0.125))


def test_the_chosen_plan_is_kept(gpu: Gpu, tmp_path: Path) -> None:
    operation = CONVOLUTIONS["3x3 residual"]
    cache = ChoiceCache(circumstances_of(gpu.planner, gpu=gpu.device.name, multiprocessors=1), tmp_path)
    timer = PlanTimer(gpu.device, gpu.handle.value)
    plan = choose_plan(gpu.planner, operation, cache=cache, time_ms=timer)
    kept = cache.read(operation)
    assert kept is not None
    assert 0.0005 < min(timing.ms for timing in kept.timings) < 1

    def timed_again(plan: ExecutionPlan) -> float:
        pytest.fail(f"{plan.engine} was timed again")

    assert choose_plan(gpu.planner, operation, cache=cache, time_ms=timed_again).engine == plan.engine
    arrays = convolution_arrays(operation)
    gpu.upload(arrays)
    expected = convolution_reference(operation, arrays)
    np.testing.assert_allclose(gpu.run(plan, expected.shape), expected, rtol=2**-10, atol=4e-3)


def test_the_tables_of_gpus_are_true(gpu: Gpu) -> None:
    frontend = load_cudnn().frontend
    true = json.loads(frontend.create_device_properties(0).serialize())
    tabled = GPUS.get(gpu.planner.sm, {})
    if tabled.get("deviceName") != true["deviceName"]:
        pytest.skip(f"needs one of {[entry['deviceName'] for entry in GPUS.values()]}, this is {true['deviceName']}")
    described = json.loads(properties_of(gpu.planner.sm))
    assert described.keys() == true.keys()
    varying = {"driverVer", "pciDeviceId", "cudaDeviceId", "totalGlobalMem"}
    assert {name: value for name, value in described.items() if name not in varying} == {
        name: value for name, value in true.items() if name not in varying
    }
