import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from saishiki.export.passes import declare_interface
from saishiki.runtime.signature import Signature, TensorSpec
from tests.export.passes.test_strip_metadata import small_model

SIGNATURE = Signature(
    inputs=(TensorSpec("picture", "float32", ("batch", "2")),),
    outputs=(TensorSpec("result", "float32", ("batch", "2")),),
    multiples={},
)


def run(model, x):
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def test_declare_interface_names_inputs_and_outputs_and_changes_no_result():
    model, x = small_model(), np.float32([[1, -2], [3, 4], [5, -6]])
    before = run(model, x)
    declare_interface(model, SIGNATURE)
    assert [node.op_type for node in model.graph] == ["Relu", "Add"]
    proto = ir.to_proto(model)
    described = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }
    assert described == {"picture": ["batch", 2], "result": ["batch", 2]}
    np.testing.assert_array_equal(run(model, x), before)
    assert before.tolist() == [[2, 1], [4, 5], [6, 1]]


def test_declare_interface_another_number_of_inputs():
    signature = Signature(SIGNATURE.inputs * 2, SIGNATURE.outputs, {})
    with pytest.raises(ValueError, match=r"the exported graph has \['x'\], its signature \['picture', 'picture'\]"):
        declare_interface(small_model(), signature)


def test_declare_interface_another_number_of_outputs():
    with pytest.raises(ValueError, match=r"the exported graph has \['y'\], its signature \[\]"):
        declare_interface(small_model(), Signature(SIGNATURE.inputs, (), {}))


def test_declare_interface_another_dtype():
    half = Signature((TensorSpec("picture", "float16", ("batch", "2")),), SIGNATURE.outputs, {})
    with pytest.raises(ValueError, match=r"picture: float16 \(batch, 2\): the exported graph has x of FLOAT"):
        declare_interface(small_model(), half)
