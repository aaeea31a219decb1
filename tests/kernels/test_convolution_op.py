"""What ``torch`` sees of the convolutions, graphs, gradients and errors; and what is compiled of them."""

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

from saishiki.kernels.convolution import (  # noqa: E402
    VARIANTS,
    InputNorm,
    convolution,
    convolution_from_images,
    convolution_to_image,
)
from tests.kernels.drawing import draw  # noqa: E402

PADDING = (1, 1, 1, 1)


def image(*shape: int, seed: int) -> Any:
    return draw(*shape, seed=seed).contiguous(memory_format=torch.channels_last)


def tensors(batch: int = 2) -> tuple[Any, ...]:
    """x, weight, bias and residual; statistics, weight and bias of a norm."""
    x, weight, residual = image(batch, 8, 5, 3, seed=0), image(6, 8, 3, 3, seed=1), image(batch, 6, 3, 2, seed=3)
    return x, weight, draw(6, seed=2), residual, draw(batch, 2, 2, seed=4).abs(), draw(8, seed=5), draw(8, seed=6)


class Convolve(torch.nn.Module):  # type: ignore[misc,name-defined,unused-ignore]
    """The ops between others, for the graph tracers."""

    def forward(self, x: Any, weight: Any, bias: Any, residual: Any, *norm: Any) -> Any:
        how = {"stride": 2, "padding": PADDING}
        first = convolution_from_images(x.contiguous(), weight.bfloat16(), bias.bfloat16(), **how)
        inner = convolution(x, weight, bias, residual=residual, norm=InputNorm(*norm), **how)
        return 2 * inner + convolution_to_image(x, weight, bias, **how) - first.float()


def test_convolution_under_compile() -> None:
    compiled = torch.compile(Convolve(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*tensors()), Convolve()(*tensors()), rtol=0, atol=0)


def test_convolution_under_export() -> None:
    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = ({0: batch}, None, None, {0: batch}, ({0: batch}, None, None))
    program = torch.export.export(Convolve(), tensors(), dynamic_shapes=shapes)
    nodes = {node.target for node in program.graph.nodes if node.op == "call_function"}
    names = ("convolution", "convolution_from_images", "convolution_to_image")
    assert nodes >= {getattr(torch.ops.saishiki, name).default for name in names}
    torch.testing.assert_close(program.module()(*tensors(3)), Convolve()(*tensors(3)), rtol=0, atol=0)


def test_convolution_passes_the_checks_of_torch() -> None:
    x, weight, bias, *rest = tensors()
    torch.library.opcheck(torch.ops.saishiki.convolution.default, (x, weight, bias, 2, [*PADDING], *rest, True))
    to_image = torch.ops.saishiki.convolution_to_image.default
    torch.library.opcheck(to_image, (x, weight, bias, 1, [0, 1, 2, 0]))
    from_images = torch.ops.saishiki.convolution_from_images.default
    halves = (image(6, 11, 3, 3, seed=7).half().contiguous(memory_format=torch.channels_last), bias.half())
    images = (x.contiguous(), x[:, :3].contiguous())
    shape = tuple(convolution_from_images(images[0], *halves, x2=images[1], padding=PADDING).shape)
    for residual in (None, image(*shape, seed=8).half().contiguous(memory_format=torch.channels_last)):
        torch.library.opcheck(from_images, (*images, *halves, 1, [*PADDING], residual))


def test_convolution_refuses_a_gradient() -> None:
    x, weight, bias, *_ = tensors()
    weight.requires_grad_()
    with pytest.raises(NotImplementedError, match="saishiki::convolution has no gradient"):
        convolution(x, weight, bias).sum().backward()


def bad_arguments() -> list[Any]:
    x, weight, bias, _, statistics, vector, _ = tensors()
    turned = "x is not channels_last; call .contiguous(memory_format=torch.channels_last)"
    cases: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
        "x of rank 3": ({"x": x[0]}, ValueError, "expected x (B, C, H, W), got (8, 5, 3)"),
        "weight of rank 2": ({"weight": weight[:, :, 0, 0]}, ValueError, "expected weight (K, 8, R, S), got (6, 8)"),
        "padding of two": ({"padding": (1, 1)}, ValueError, "expected padding (top, left, bottom, right), got (1, 1)"),
        "padding below 0": ({"padding": (0, 0, -1, 0)}, ValueError, "padding from 0, got ConvolutionShape("),
        "stride 0": ({"stride": 0}, ValueError, "expected sizes and stride from 1"),
        "no images": ({"x": x[:0]}, ValueError, "expected sizes and stride from 1"),
        "too small an image": ({"x": x[:, :, :2], "residual": None}, ValueError, "smaller than the (3, 3) weights"),
        "x in fp64": ({"x": x.double()}, TypeError, "expected x in torch.float16 or torch.bfloat16 or torch.float32"),
        "x contiguous": ({"x": x.contiguous()}, ValueError, turned),
        "weight contiguous": ({"weight": weight.contiguous()}, ValueError, turned.replace("x", "weight", 1)),
        "weight in fp16": ({"weight": weight.half()}, TypeError, "expected weight in torch.float32, got torch.float16"),
        "weight of other channels": (
            {"weight": image(6, 7, 3, 3, seed=1)},
            ValueError,
            "expected weight of shape (6, 8, 3, 3), got (6, 7, 3, 3)",
        ),
        "bias of other filters": ({"bias": bias[:5]}, ValueError, "expected bias of shape (6,), got (5,)"),
        "bias of other images": (
            {"bias": bias.expand(3, 6).contiguous()},
            ValueError,
            "expected as many rows of bias as divide the 2 images, got 3",
        ),
        "bias in bf16": ({"bias": bias.bfloat16()}, TypeError, "expected bias in torch.float32, got torch.bfloat16"),
        "residual of the input's size": (
            {"residual": image(2, 6, 5, 3, seed=3)},
            ValueError,
            "expected residual of shape (2, 6, 3, 1), got (2, 6, 5, 3)",
        ),
        "residual contiguous": ({"residual": draw(2, 6, 3, 1, seed=3)}, ValueError, turned.replace("x", "residual", 1)),
        "three groups": (
            {"norm": InputNorm(statistics[:, [0, 0, 0]], vector, vector)},
            ValueError,
            "expected norm.statistics (B, groups, 2) with groups that divide the 8 channels, got (2, 3, 2)",
        ),
        "statistics in fp16": (
            {"norm": InputNorm(statistics.half(), vector, vector)},
            TypeError,
            "expected norm.statistics in torch.float32, got torch.float16",
        ),
        "norm of other channels": (
            {"norm": InputNorm(statistics, vector[:4], vector)},
            ValueError,
            "expected norm.weight of shape (8,), got (4,)",
        ),
    }
    return [pytest.param(*case, id=name) for name, case in cases.items()]


@pytest.mark.parametrize(("change", "error", "message"), bad_arguments())
def test_convolution_refuses(change: dict[str, Any], error: type[Exception], message: str) -> None:
    x, weight, bias, *_ = tensors()
    arguments = {"x": x, "weight": weight, "bias": bias, **change}
    with pytest.raises(error) as caught:
        convolution(**arguments)
    assert message in str(caught.value)


def test_convolution_of_images_refuses() -> None:
    x, weight, bias, *_ = tensors()
    halves = {"weight": weight.half().contiguous(memory_format=torch.channels_last), "bias": bias.half()}
    dense = x.contiguous()
    with pytest.raises(ValueError, match="expected images of at most 16 channels together, got 24"):
        convolution_from_images(dense, **halves, x2=dense.repeat(1, 2, 1, 1))
    with pytest.raises(TypeError, match=r"expected x in torch\.float32, got torch\.float16"):
        convolution_from_images(dense.half(), **halves)
    with pytest.raises(ValueError, match=r"expected x2 of shape \(2, 8, 5, 3\), got \(2, 8, 3, 3\)"):
        convolution_from_images(dense, **halves, x2=dense[:, :, :3].contiguous())
    with pytest.raises(ValueError, match=r"expected weight of shape \(6, 16, 3, 3\), got \(6, 8, 3, 3\)"):
        convolution_from_images(dense, **halves, x2=dense)
    with pytest.raises(TypeError, match=r"expected weight in torch\.float16 or torch\.bfloat16, got torch\.float32"):
        convolution_from_images(dense, weight, bias)
    with pytest.raises(ValueError, match="x is not channels_last"):
        convolution_to_image(dense, weight, bias)


def test_convolution_refuses_the_cpu_without_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saishiki.kernels.checks.INTERPRETED", False)
    given = (tensor.cpu() for tensor in tensors()[:3])
    with pytest.raises(
        ValueError, match=r"expected tensors on a CUDA device, got one on cpu; .* convolution_reference"
    ):
        convolution(*given)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_variants_name_every_argument(variant: Any) -> None:
    names = list(variant.kernel.arg_names)
    assert [*variant.signature, *variant.constexprs] == names
    assert {name for name in names if name.endswith("_ptr")} == {*variant.aligned, "bias_ptr"}
    for factors, divisor in variant.grid:
        assert all(variant.signature[factor] == "i32" for factor in factors)
        assert divisor >= 1
    assert (90 in variant.sms) == (not variant.constexprs.get("NORM", False))


def test_variants_are_distinct() -> None:
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS)
    made_of = [
        (id(each.kernel), tuple(each.constexprs.items()), tuple(each.signature.items()), each.num_stages)
        for each in VARIANTS
    ]
    assert len(set(made_of)) == len(VARIANTS)
