"""Vectors of the step in a batch: one for all pictures in a loop, where cuDNN takes them; each its own in a call."""

from types import SimpleNamespace

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

from saishiki.runtime.backends.cuda_backend import CudaBackend, PlannedModule
from saishiki.runtime.backends.cuda_reference import InterpretedModule
from saishiki.runtime.backends.cudnn import CudnnPart, Planner
from saishiki.runtime.backends.device import InputUse
from saishiki.runtime.backends.device_loop import use_of
from saishiki.runtime.backends.host_loop import run_loop_on_host
from saishiki.runtime.backends.plans import LoadedPlan
from saishiki.runtime.backends.protocol import DenoisingLoop, no_progress
from saishiki.runtime.parity import relative_error
from saishiki.runtime.plan import Buffer, HoistedVector, Plan, WeightSpec
from saishiki.runtime.plan.ops import Convolution
from saishiki.runtime.samplers import ddim_solver
from saishiki.runtime.schedule import DiffusionSchedule, ddim_schedule, linear_betas, schedule_buffers
from saishiki.runtime.signature import Signature, TensorSpec
from tests.runtime.backends.cudnn.played_frontend import PlayedFrontend
from tests.runtime.backends.interpreted_device import InterpretedDevice
from tests.runtime.plan.running import draw

IMAGE = ("batch", "3", "height", "width")
SIGNATURE = Signature(
    inputs=(TensorSpec("noisy", "float32", IMAGE), TensorSpec("time", "float32", ("batch", "16"))),
    outputs=(TensorSpec("eps", "float32", IMAGE),),
    multiples={},
)
WEIGHTS = {"first": (8, 1, 1, 8), "second": (8, 3, 3, 8), "last": (8, 1, 1, 8), "bias": (8,), "time.bias": (16,)}
PICTURES = ("batch", "height", "width", "8")
BATCH, STEPS = 2, 2


@pytest.fixture(scope="module")
def loaded():
    """Three convolutions, of which the second adds a vector of the step."""
    fp32 = {"time.bias"}
    weights = {
        name: draw(*shape, seed=seed, scale=0.4, dtype="float32" if name in fp32 else "float16")
        for seed, (name, shape) in enumerate(WEIGHTS.items())
    }
    weights["first"][..., 3:] = 0
    plan = Plan(
        version=1,
        dtype="float16",
        buffers={"a": Buffer("float16", PICTURES), "b": Buffer("float16", PICTURES)},
        hoisted={"time.hoisted": HoistedVector("time", "time.bias")},
        weights={name: WeightSpec(array.dtype.name, array.shape) for name, array in weights.items()},
        ops=(
            Convolution(("noisy",), "first", "bias", "a", from_images=True),
            Convolution(("a",), "second", "time.hoisted", "b", 1, (1, 1, 1, 1), bias_offset=8),
            Convolution(("b",), "last", "bias", "eps", to_image=True),
        ),
    )
    return LoadedPlan(plan, SIGNATURE, weights)


class Direct(InterpretedDevice):
    """Nothing is recorded: the played cuDNN computes at once."""

    def capture(self, work):
        return work


@pytest.fixture
def backend():
    played = PlayedFrontend()
    part = CudnnPart(0, Planner(played.cudnn, 90).first_plan)
    made = CudaBackend(Direct(), SimpleNamespace(part=part, close=lambda: None))
    made.played = played
    return made


def module_of(backend, loaded):
    module = PlannedModule(backend, loaded)
    backend._modules.append(module)
    return module


def times(rows):
    """(E, rows, 16)."""
    return draw(STEPS, rows, 16, seed=9, scale=2.0, dtype="float32")


def loop_of(per_step):
    schedule = DiffusionSchedule(schedule_buffers(linear_betas(1000, 1e-6, 1e-2)))
    return DenoisingLoop(
        solver=ddim_solver(ddim_schedule(schedule, steps=STEPS, eta=0.0)),
        state="noisy",
        x=draw(BATCH, 3, 4, 6, seed=8, dtype="float32"),
        constants=({},),
        per_step={"time": per_step},
        noise=None,
    )


def convolutions_of(backend):
    """How many of the plan's three our own kernels ran, and cuDNN, since the last time."""
    own = sum(name.startswith("convolution_") for name in backend.device.launched)
    counts = own, len(backend.played.executed)
    backend.device.launched.clear()
    backend.played.executed.clear()
    return counts


@pytest.mark.parametrize("rows", [1, BATCH], ids=["one for all", "each its own"])
def test_a_loop_is_that_of_the_interpreter(backend, loaded, rows):
    module, loop = module_of(backend, loaded), loop_of(times(rows))
    assert use_of(loop) == InputUse(frozenset({"noisy", "time"}), frozenset({"time"} if rows == 1 else ()))
    x = backend.run_loop(module, loop, no_progress)
    assert relative_error(x, run_loop_on_host(InterpretedModule(loaded), loop, no_progress)) < 1e-3
    own, by_cudnn = convolutions_of(backend)
    assert (own, by_cudnn) == ((2 * by_cudnn, by_cudnn) if rows == 1 else (own, 0))
    assert own > 0


def test_a_call_takes_each_picture_by_its_own_vector(backend, loaded):
    module, loop = module_of(backend, loaded), loop_of(times(1))
    backend.run_loop(module, loop, no_progress)
    convolutions_of(backend)
    inputs = {"noisy": loop.x, "time": times(BATCH)[0]}
    eps = module(**inputs)["eps"]
    want = InterpretedModule(loaded)(**inputs)["eps"]
    assert convolutions_of(backend)[1] == 0
    assert relative_error(eps, want) < 1e-3
    assert relative_error(promised(module, inputs), want) > 0.05, "the first picture's vector is taken for both"


def promised(module, inputs):
    """eps where it is promised, wrongly, that both vectors are the same."""
    module.execution_at = lambda sizes, use: PlannedModule.execution_at(
        module, sizes, InputUse(use.changing, frozenset({"time"}))
    )
    return module(**inputs)["eps"]
