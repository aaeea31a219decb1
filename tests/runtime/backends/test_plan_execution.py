import ctypes
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'saishiki[export]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

from saishiki.export.plan import lower_module  # noqa: E402
from saishiki.models.animediffusion import AnimeDiffusionConfig  # noqa: E402
from saishiki.models.animediffusion.modules import Denoiser, signatures  # noqa: E402
from saishiki.models.animediffusion.network import UNet  # noqa: E402
from saishiki.runtime.backends import cuda_backend  # noqa: E402
from saishiki.runtime.backends.convolution_tiles import NORM_TARGETS  # noqa: E402
from saishiki.runtime.backends.cuda import CudaDevice  # noqa: E402
from saishiki.runtime.backends.cuda_backend import CudaBackend, PlannedModule  # noqa: E402
from saishiki.runtime.backends.cudnn import CudnnPart, Planner  # noqa: E402
from saishiki.runtime.backends.device import InputUse  # noqa: E402
from saishiki.runtime.backends.launches import launches_of  # noqa: E402
from saishiki.runtime.backends.op_times import time_ops  # noqa: E402
from saishiki.runtime.backends.plan_execution import PlanExecution, upload_weights  # noqa: E402
from saishiki.runtime.backends.plan_on_gpu import plan_on_gpu  # noqa: E402
from saishiki.runtime.backends.plans import LoadedPlan  # noqa: E402
from saishiki.runtime.errors import BackendError  # noqa: E402
from saishiki.runtime.parity import relative_error  # noqa: E402
from saishiki.runtime.plan import interpret  # noqa: E402
from saishiki.runtime.plan.extents import Tensors  # noqa: E402
from saishiki.runtime.plan.ops import Attention, Convolution, Matmul  # noqa: E402
from tests.runtime.backends.cudnn.played_frontend import PlayedFrontend  # noqa: E402
from tests.runtime.backends.interpreted_device import InterpretedDevice  # noqa: E402

SIZES = {"batch": 2, "height": 8, "width": 12}


@pytest.fixture(scope="module")
def loaded():
    """AnimeDiffusion with two levels, as small as norms of 32 groups allow."""
    config = AnimeDiffusionConfig(7, 3, 64, 1, (1, 2), 2, False, 100)
    with torch.random.fork_rng():
        torch.manual_seed(6)
        unet = UNet(config)
    signature = signatures(config)["denoiser"]
    lowered = lower_module(Denoiser(unet), signature, {"batch": 2, "height": 8, "width": 12})
    return LoadedPlan(lowered.plan, signature, lowered.read_weights())


@pytest.fixture(scope="module")
def inputs(loaded):
    rng = np.random.default_rng(8)
    arrays = {spec.name: rng.standard_normal(spec.shape(SIZES)).astype(np.float32) for spec in loaded.signature.inputs}
    return arrays


def execution_on(device, loaded, sizes=SIZES, cudnn=None, alike=frozenset()):
    return PlanExecution(
        device,
        loaded,
        upload_weights(device, loaded),
        sizes,
        use=InputUse(frozenset({"noisy", "time"}), alike),
        sms=device.multiprocessors,
        cudnn=cudnn,
    )


def uploaded(device, execution, inputs):
    for name, array in inputs.items():
        device.upload(execution.memory[name], execution.rows(name, array[None])[0])


@pytest.mark.slow
def test_each_launch_computes_what_its_reference_does_and_touches_nothing_else(loaded, inputs):
    device = InterpretedDevice()
    execution = execution_on(device, loaded)
    uploaded(device, execution, inputs)
    extents, address = execution.extents, execution.address({})
    memory = host_view(execution, extents, address)
    for op in execution.ops:
        for name in op.writes():
            memory[name][:] = np.nan
        before = {name: array.copy() for name, array in memory.items()}
        wanted = {name: array.copy() for name, array in memory.items()}
        op.compute(Tensors(SIZES, wanted))
        for launch in launches_of(op, extents, address, sms=device.multiprocessors):
            device.launch(launch.kernel, **launch.arguments)
        for name, array in memory.items():
            if name in op.writes():
                assert relative_error(array, wanted[name]) < 2e-3, f"{name} of {op}"
            elif not overlaps(name, op.writes(), execution):
                np.testing.assert_array_equal(array, before[name], err_msg=f"{name}, which {op} does not write")
    want = interpret(loaded.plan, loaded.signature, loaded.weights, inputs)["eps"]
    assert 0 < relative_error(memory["eps"], want) < 1e-3
    assert device.guards_are_whole()


def host_view(execution, extents, address):
    """Every tensor of the plan where it lies on the device, which is memory of the host."""
    views = {}
    for name, extent in extents.of.items():
        if name not in execution.hoisted:
            content = (ctypes.c_uint8 * extent.nbytes).from_address(address(name))
            views[name] = np.frombuffer(content, extent.dtype).reshape(extent.shape)
    return views


def overlaps(name, written, execution):
    """Whether a buffer shares memory with one that is written: its own content is no longer needed then."""

    def ends(buffer):
        begin = execution.offsets[buffer]
        return begin, begin + execution.extents.nbytes(buffer)

    if name not in execution.offsets:
        return False
    begin, end = ends(name)
    return any(begin < ends(other)[1] and ends(other)[0] < end for other in written if other in execution.offsets)


@pytest.mark.slow
def test_cudnn_takes_the_convolutions_and_kernels_the_rest(loaded, inputs):
    sizes = SIZES | {"batch": 1}
    one = {name: array[:1] for name, array in inputs.items()}
    device, played = InterpretedDevice(), PlayedFrontend()
    part = CudnnPart(0, Planner(played.cudnn, 90).first_plan)
    execution = execution_on(device, loaded, sizes, part)
    uploaded(device, execution, one)
    execution.prepare()
    execution.enqueue({})
    eps = np.full((1, 3, 8, 12), np.nan, np.float32)
    device.download(execution.memory["eps"], eps)
    want = interpret(loaded.plan, loaded.signature, loaded.weights, one)["eps"]
    assert relative_error(eps, want) < 1e-3
    by_cudnn = sum(isinstance(op, Convolution | Matmul | Attention) for op in loaded.plan.ops)
    # A first and a last convolution read and write the interface's own images.
    assert len(played.executed) == by_cudnn - 2
    assert len(device.launched) == len(loaded.plan.ops) - len(played.executed)
    assert device.guards_are_whole()


@pytest.mark.parametrize("alike", [frozenset(), frozenset({"time"})], ids=["each its own", "alike"])
def test_a_step_of_several_pictures_is_left_to_kernels_unless_it_is_one_for_all(loaded, alike):
    device, played = InterpretedDevice(runs=False), PlayedFrontend()
    part = CudnnPart(0, Planner(played.cudnn, 90).first_plan)
    execution = execution_on(device, loaded, cudnn=part, alike=alike)
    execution.enqueue({})
    hoisted = sum(isinstance(op, Convolution) and op.bias == "time.hoisted" for op in loaded.plan.ops)
    by_kernels = sum(name.startswith("convolution_") for name in device.launched)
    assert by_kernels == 2 + (0 if alike else hoisted)
    assert hoisted > 0


@pytest.mark.parametrize("target", ["sm80", "sm86", "sm89", "sm90", "sm120"])
def test_every_launch_has_a_cubin_for_every_gpu(loaded, target):
    device = InterpretedDevice(target=target, multiprocessors=132, runs=False)
    own = replace(loaded, plan=plan_on_gpu(loaded.plan, target=target, library="triton"))
    execution = execution_on(device, own)
    execution.prepare()
    execution.enqueue({})
    assert len(device.launched) == len(own.plan.ops)
    folded = sum("convolution_norm_" in name for name in device.launched)
    assert len(loaded.plan.ops) - len(own.plan.ops) == folded
    assert (folded > 0) == (target in NORM_TARGETS)


def test_a_module_tells_the_time_of_each_operation(loaded, inputs, monkeypatch):
    monkeypatch.setattr(cuda_backend, "time_ops", partial(time_ops, repeats=2, replays=3))
    backend = CudaBackend(InterpretedDevice(runs=False))
    module = PlannedModule(backend, loaded)
    times = module.ops_ms(**inputs)
    assert list(times) == list(module.plan.ops)
    assert set(times.values()) == {(1.0,) * 3}


def test_a_misplaced_tensor_is_noticed(loaded):
    device = InterpretedDevice(runs=False)
    execution = execution_on(device, loaded)
    with pytest.raises(AssertionError, match="x_ptr lies in no memory"):
        execution.enqueue({"noisy": 4096})
    with pytest.raises(ValueError, match="must be a multiple of 16"):
        execution.enqueue({"noisy": execution.memory["noisy"].address + 8})


def test_too_little_memory_for_weights_is_told_before_any_is_taken(loaded):
    device = InterpretedDevice(runs=False, free=1_000_000)
    with pytest.raises(BackendError, match=r"weights need \d\.\d MB, and the GPU has 1\.0 MB left"):
        execution_on(device, loaded)
    assert device.allocated == []


def test_too_little_memory_for_buffers_is_told_before_any_is_taken(loaded):
    device = InterpretedDevice(runs=False)
    weights = upload_weights(device, loaded)
    taken, device.free = len(device.allocated), 100_000
    with pytest.raises(
        BackendError, match=r"the plan needs .* MB at .*'height': 8.*the GPU has 0\.1 MB left; use a smaller"
    ):
        PlanExecution(device, loaded, weights, SIZES, use=InputUse(), sms=2)
    assert len(device.allocated) == taken


def test_a_gpu_without_cubins_is_named(loaded):
    device = InterpretedDevice(target="sm75", runs=False)
    execution = execution_on(device, loaded)
    with pytest.raises(BackendError, match="is compiled for sm80, sm86, sm89, sm90, sm120, not for this GPU's sm75"):
        execution.enqueue({})


@pytest.mark.gpu
def test_on_a_gpu_as_in_numpy_and_the_same_bits_twice(loaded, inputs, needs_gpu):
    device = CudaDevice(0)
    execution = execution_on(device, loaded)
    outputs = []
    for _ in range(2):
        uploaded(device, execution, inputs)
        execution.prepare()
        execution.enqueue({})
        outputs.append(np.full(loaded.signature.outputs[0].shape(SIZES), np.nan, np.float32))
        device.download(execution.memory["eps"], outputs[-1])
    want = interpret(loaded.plan, loaded.signature, loaded.weights, inputs)["eps"]
    assert relative_error(outputs[0], want) < 1e-3
    np.testing.assert_array_equal(outputs[0], outputs[1])
