import numpy as np
import onnx_ir as ir

from saishiki.export.passes import PASSES, declare_interface, strip_metadata
from saishiki.runtime.signature import Signature

NOTHING = Signature((), (), {})
SECRET = "/home/someone/secret.py"


def small_model() -> ir.Model:
    """y = relu(x) + 1, with the exporter's kind of notes everywhere."""
    one = ir.Value(name="one", const_value=ir.tensor(np.ones(1, np.float32), name="one"))
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["N", 2]))
    relu = ir.node("Relu", [x], name="relu")
    add = ir.node("Add", [relu.outputs[0], one], name="add")
    y = add.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["N", 2])
    graph = ir.Graph([x], [y], nodes=[relu, add], initializers=[one], opset_imports={"": 23}, name="small")
    model = ir.Model(graph, ir_version=10, producer_name="someone", producer_version="1")
    for thing in (model, graph, x, one, y, relu, add, relu.outputs[0]):
        thing.metadata_props["trace"] = SECRET
        thing.doc_string = SECRET
    return model


def test_passes_are_in_order():
    assert (strip_metadata, declare_interface) == PASSES


def test_strip_metadata_removes_every_note_and_changes_no_result():
    from tests.export.passes.test_declare_interface import run

    model, x = small_model(), np.float32([[1, -2]])
    before = run(model, x)
    assert SECRET.encode() in ir.to_proto(model).SerializeToString()
    strip_metadata(model, NOTHING)
    proto = ir.to_proto(model)
    assert SECRET.encode() not in proto.SerializeToString()
    assert (proto.producer_name, proto.producer_version) == ("saishiki", "")
    assert [(node.op_type, node.name) for node in proto.graph.node] == [("Relu", "relu"), ("Add", "add")]
    assert [tensor.name for tensor in proto.graph.initializer] == ["one"]
    np.testing.assert_array_equal(run(model, x), before)


def test_strip_metadata_reaches_subgraphs():
    model = small_model()
    inner = small_model().graph
    condition = ir.Value(name="c", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    attributes = [ir.AttrGraph("then_branch", inner), ir.AttrGraph("else_branch", small_model().graph)]
    model.graph.inputs.append(condition)
    model.graph.append(ir.Node("", "If", [condition], attributes))
    strip_metadata(model, NOTHING)
    assert SECRET.encode() not in ir.to_proto(model).SerializeToString()
