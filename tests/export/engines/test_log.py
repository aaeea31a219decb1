import pytest

from saishiki.export.engines.log import BuildLog

PLAN = """Layers:
Name: __mye1_myl0_0, LayerType: shape_call, Inputs: []
Name: mha_q [profile 1]+mha_k [profile 1]_myl1_1, LayerType: gemm, Inputs: [ { Name: x, Dimensions: [-1,128] }]
Name: _gemm_mha_v2_myl0_9, LayerType: kgen, Inputs: [], Metadata: [ONNX Layer: mha]
Name: _gemm_mha_v2_myl1_9, LayerType: kgen, Inputs: [], Metadata: [ONNX Layer: mha]
"""


def test_build_log_counts_layers_and_fused_attentions() -> None:
    log = BuildLog()
    log.add(PLAN, is_error=False)
    assert (log.layers(), log.fused_attentions()) == (4, 2)


def test_build_log_keeps_the_memory_of_the_largest_profile() -> None:
    log = BuildLog()
    for memory in (80, 900, 300):
        log.add(f"Total Activation Memory: {memory} bytes", is_error=False)
    assert log.activation_bytes == 900


def test_build_log_prints_errors_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    log = BuildLog()
    log.add("out of tea", is_error=True)
    assert (log.errors, capsys.readouterr().err) == (["out of tea"], "out of tea\n")
