"""The least work of an ONNX graph, layer by layer, and what its layers take."""
