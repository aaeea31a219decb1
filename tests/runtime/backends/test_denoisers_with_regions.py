"""Whole denoisers with regions, by the kernels that are shipped, in Triton's interpreter."""

import msgspec
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs PyTorch: pip install 'saishiki[export]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

from saishiki.runtime.backends.device import InputUse
from saishiki.runtime.backends.plan_execution import PlanExecution, upload_weights
from saishiki.runtime.parity import relative_error
from saishiki.runtime.pipelines.colorizediffusion import DenoiserVariant
from saishiki.runtime.plan import interpret
from saishiki.runtime.plan.ops import MaskedSplitCrossAttention, SplitProjection
from tests.runtime.backends.interpreted_device import SHARED_BYTES, InterpretedDevice
from tests.runtime.backends.small_denoisers import SIZES, inputs_of, small_denoiser

pytestmark = pytest.mark.slow

USE = InputUse(frozenset({"x", "time"}))
LORAS = {"split": True, "lora_fg": True, "lora_bg": True}
VARIANTS = {
    "selecting": ("v1.5", DenoiserVariant("both", **LORAS)),
    "merging": ("v1.5", DenoiserVariant("reference", **LORAS, merge=True)),
}


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS)
def loaded(request):
    return small_denoiser(*request.param)


def execution_on(device, loaded):
    weights = upload_weights(device, loaded)
    return PlanExecution(device, loaded, weights, SIZES, use=USE, sms=device.multiprocessors)


def predicted(device, execution, inputs):
    for name, array in inputs.items():
        device.upload(execution.memory[name], execution.rows(name, array[None])[0])
    execution.prepare()
    execution.enqueue({})
    out = np.full(execution.extents.shape("prediction"), np.nan, np.float32)
    device.download(execution.memory["prediction"], out)
    return out


def test_the_prediction_is_that_of_the_references(loaded):
    device, inputs = InterpretedDevice(), inputs_of(loaded)
    got = predicted(device, execution_on(device, loaded), inputs)
    assert device.guards_are_whole()

    def error(**changes):
        want = interpret(loaded.plan, loaded.signature, loaded.weights, inputs | changes)["prediction"]
        return relative_error(got, want)

    assert 0 < error() < 2e-3
    foreground = {name: 1 - array for name, array in inputs.items() if name.startswith("foreground_")}
    assert error(**foreground) > 1e-2
    if "merge_scale" in inputs:
        assert error(merge_scale=np.array([0.9], np.float32)) > 1e-2


def test_tokens_are_ordered_once_per_picture(loaded):
    device = InterpretedDevice(runs=False)
    execution = execution_on(device, loaded)
    merging = any("merge_scale" in op.reads() for op in loaded.plan.ops)
    by_region = [op for op in loaded.plan.ops if isinstance(op, MaskedSplitCrossAttention | SplitProjection)]
    assert len(by_region) == (1 if merging else 2)
    assert len({op.order for op in by_region}) == 1
    execution.prepare()
    assert device.launched.count("region_order") == 1
    device.launched.clear()
    execution.enqueue({})
    assert "region_order" not in device.launched
    assert sum("split" in name for name in device.launched) == len(by_region)


@pytest.mark.parametrize("target", SHARED_BYTES)
def test_every_launch_has_a_cubin_for_every_gpu(loaded, target):
    device = InterpretedDevice(target=target, multiprocessors=132, runs=False)
    execution = execution_on(device, loaded)
    execution.prepare()
    execution.enqueue({})
    assert device.launched


def test_swapped_weights_of_regions_are_seen(loaded):
    swapped = tuple(_swapped(op) for op in loaded.plan.ops)
    if swapped == loaded.plan.ops:
        pytest.skip("needs a denoiser with a weight for each region")
    wrong = msgspec.structs.replace(loaded.plan, ops=swapped)
    inputs = inputs_of(loaded)
    got = interpret(wrong, loaded.signature, loaded.weights, inputs)["prediction"]
    want = interpret(loaded.plan, loaded.signature, loaded.weights, inputs)["prediction"]
    assert relative_error(got, want) > 1e-2


def _swapped(op):
    if not isinstance(op, SplitProjection):
        return op
    return msgspec.structs.replace(op, foreground_weight=op.background_weight, background_weight=op.foreground_weight)
