"""Our ops inside ONNX graphs: one node each, with a model-local function of standard operators."""

from saishiki.export.functions.translation import FP32_OPERANDS, add_functions, translation_table

__all__ = ["FP32_OPERANDS", "add_functions", "translation_table"]
