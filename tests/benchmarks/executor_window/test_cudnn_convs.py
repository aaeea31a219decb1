from typing import Any

import pytest
import torch
from battery.part import Options, SkippedError
from executor_window.cudnn_convs import (
    BIAS as BIAS_UID,
)
from executor_window.cudnn_convs import (
    RESIDUAL,
    W,
    X,
    Y,
    open_session,
    pack_of,
    plan_conv,
)
from executor_window.layers import Conv
from executor_window.operands import (
    BIAS,
    PLAIN,
    PROLOGUE,
    RESIDUAL_BIAS,
    SUMS,
    Variant,
    conv_reference,
    draw_operands,
    sums_reference,
)

DRY_RUN = Options(dry_run=True)
CONV = Conv(4, 6, 8, 16, 3, residual=False)
VARIANTS = (PLAIN, BIAS, RESIDUAL_BIAS, SUMS, PROLOGUE)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_plan_conv_describes_the_operations_and_the_layout(cudnn: Any, variant: Variant) -> None:
    operands = draw_operands(CONV, "cpu", 1)[0]
    graph = plan_conv(open_session(DRY_RUN), CONV, variant, precompiled=False)
    assert graph.build(2, "cpu")
    graph.run_with(operands, 2)()
    truth = conv_reference(operands, variant)
    torch.testing.assert_close(operands.y.double(), truth, rtol=1e-3, atol=2e-3)
    if variant.sums:
        torch.testing.assert_close(operands.sums.double(), sums_reference(truth), rtol=1e-5, atol=1e-4)


def test_plan_conv_adds_the_residual_before_the_bias(cudnn: Any) -> None:
    graph = plan_conv(open_session(DRY_RUN), CONV, RESIDUAL_BIAS, precompiled=True).graph
    conv, residual, bias = graph.nodes
    assert [node.op for node in graph.nodes] == ["conv", "add", "add"]
    assert (residual.inputs[0], residual.inputs[1].uid) == (conv, RESIDUAL)
    assert (bias.inputs[0], bias.inputs[1].uid, bias.inputs[1].data_type) == (residual, BIAS_UID, "HALF")
    assert bias.uid == Y


def test_plan_conv_precompiled_leaves_out_engines_that_are_compiled_now(cudnn: Any) -> None:
    assert plan_conv(open_session(DRY_RUN), CONV, BIAS, precompiled=True).graph.precompiled
    with pytest.raises(cudnn.cudnnGraphNotSupportedError, match="No valid engine"):
        plan_conv(open_session(DRY_RUN), CONV, SUMS, precompiled=True)


def test_built_leaves_out_what_cannot_be_built_and_keeps_the_reason(cudnn: Any) -> None:
    graph = plan_conv(open_session(DRY_RUN), CONV, BIAS, precompiled=True)
    assert list(graph.built("cpu")) == [0, 2, 3]
    assert graph.last_failure == "engine 1 is not for this device"
    assert {index: len(space) for index, space in graph.workspaces.items()} == {0: 1, 2: 32, 3: 48}


def test_pack_of_names_what_a_variant_reads() -> None:
    operands = draw_operands(CONV, "cpu", 1)[0]
    assert set(pack_of(operands, PLAIN)) == {X, W, Y}
    assert pack_of(operands, BIAS)[BIAS_UID] == operands.bias.data_ptr()
    assert len(set(pack_of(operands, SUMS).values())) == 7


def test_open_session_without_cudnn_is_skipped(no_cudnn: None) -> None:
    with pytest.raises(SkippedError, match="cudnn-frontend is not installed"):
        open_session(DRY_RUN)


def test_open_session_without_a_gpu_is_skipped(cudnn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("cudaGetDeviceCount failed\nmore")

    monkeypatch.setattr(cudnn, "create_handle", fail)
    with pytest.raises(SkippedError, match=r"no GPU to run on: cudaGetDeviceCount failed$"):
        open_session(DRY_RUN)


def test_open_session_of_a_dry_run_beside_a_gpu_is_skipped(cudnn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SkippedError, match="tensors on the CPU"):
        open_session(DRY_RUN)
