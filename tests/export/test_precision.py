import pytest
import torch
from torch import nn

from saishiki.export.precision import (
    FP16_MAX,
    RangeScan,
    RoundedToHalf,
    fp32_modules,
    islands_of,
    scan_ranges,
)

LIMIT = FP16_MAX / 8


def rand(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


class Peaky(nn.Module):
    """Linear, then up to about 1e6 and down again behind a norm; takes and gives fp32."""

    def __init__(self, size=64):
        super().__init__()
        self.before = nn.Linear(size, size)
        self.middle = nn.Sequential(nn.Linear(size, size), nn.LayerNorm(size))
        self.after = nn.Linear(size, size)
        with torch.no_grad():
            self.middle[0].weight.mul_(1e6)

    def forward(self, x):
        x = self.before(x.to(self.after.weight.dtype))
        return self.after(self.middle(x)).to(torch.float32)


@pytest.fixture
def peaky():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Peaky()


def test_scan_ranges_of_a_known_module():
    module = nn.Sequential(Scale(-3.0), nn.Sequential(Scale(100.0), Scale(0.5)), nn.ReLU())
    calls = [{"input": torch.tensor([1.0, -2.0])}, {"input": torch.tensor([0.5, 4.0])}]
    scan = scan_ranges(module, calls)
    assert scan.largest == {"0": 12.0, "1": 600.0, "1.0": 1200.0, "1.1": 600.0, "2": 300.0, "": 300.0}
    assert scan.peak() == ("1.0", 1200.0)


def test_scan_ranges_leaves_no_hooks_behind():
    module = nn.Sequential(nn.Identity())
    scan_ranges(module, [{"input": torch.ones(1)}])
    with pytest.raises(TypeError):
        scan_ranges(module, [{"wrong": torch.ones(1)}])
    assert [len(part._forward_hooks) for part in module.modules()] == [0, 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scan_ranges_of_a_network_that_gives_nan(value):
    with pytest.raises(ValueError, match=r"^0 gives NaN or infinite values in fp32, .* take an earlier one"):
        scan_ranges(nn.Sequential(Scale(value), nn.ReLU()), [{"input": torch.ones(2)}])


def test_scan_ranges_counts_weights_that_fp16_cannot_hold():
    module = nn.Sequential(nn.Linear(1, 1, bias=False))
    module[0].weight.data.fill_(1e5)
    scan = scan_ranges(module, [{"input": torch.full((1, 1), 1e-3)}])
    assert scan.largest == {"0": pytest.approx(1e5), "": pytest.approx(100)}
    assert fp32_modules(scan) == ("",)


@pytest.mark.parametrize(
    ("largest", "kept"),
    [
        pytest.param({"": 1, "a": LIMIT}, (), id="at-the-limit"),
        pytest.param({"": 1, "a": LIMIT * 1.01}, ("",), id="child-of-the-root"),
        pytest.param({"": 1, "a": 1, "a.b": 1e6}, ("a",), id="parent"),
        pytest.param({"": 1, "a": 1, "a.b": 1e5, "a.b.c": 1e6}, ("a",), id="grandparent"),
        pytest.param({"": 1, "a": 1, "a.blocks.0": 1e6}, ("a",), id="container-without-output"),
        pytest.param({"": 1, "a": 1, "a.b": 1, "a.b.c": 1e6, "a.d": 1e6}, ("a",), id="inner-island-in-outer"),
        pytest.param({"": 1, "a": 1, "a.b": 1e6, "ab": 1, "ab.c": 1e6}, ("a", "ab"), id="two-of-like-names"),
        pytest.param({"": 1e6, "a": 1}, (), id="root-alone"),
    ],
)
def test_fp32_modules(largest, kept):
    assert fp32_modules(RangeScan(largest)) == kept


@pytest.mark.parametrize(
    ("kept", "inside"),
    [(("a.b", "a.c.d", "ab.c"), ("b", "c.d")), (("a",), ("",)), (("b",), ()), ((), ())],
)
def test_islands_of(kept, inside):
    assert islands_of("a", kept) == inside


def test_fp32_modules_around_a_large_activation(peaky):
    scan = scan_ranges(peaky, [{"x": rand(8, 64)}])
    assert scan.largest["middle.0"] > 1e6
    assert fp32_modules(scan) == ("middle",)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        pytest.param(lambda: nn.Linear(256, 64), (16, 256), id="linear"),
        pytest.param(lambda: nn.Conv2d(32, 16, 3, padding=1), (2, 32, 9, 11), id="conv"),
        pytest.param(lambda: nn.Sequential(nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 64)), (16, 64), id="mlp"),
    ],
)
@pytest.mark.parametrize("mean", [0.0, 10.0])
def test_rounded_to_half_errs_like_pytorchs_own_half(module, shape, mean):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = module().eval()
    x = (rand(*shape) + mean).half().float()
    with torch.inference_mode():
        want = network.double()(x.double())
        network.float()
        rounded = RoundedToHalf(network)(input=x)
        own = network.half()(x.half())
    errors = [float((got.double() - want).norm() / want.norm()) for got in (rounded, own)]
    assert 1e-5 < errors[0] < 3e-3
    assert 1 / 3 < errors[0] / errors[1] < 3


def test_rounded_to_half_gives_only_halves():
    module = nn.Linear(8, 8)
    rounded = RoundedToHalf(module)
    with torch.inference_mode():
        output = rounded(input=rand(2, 8))
    assert torch.equal(output, output.half().float())


def test_rounded_to_half_rounds_weights_where_they_are_used():
    """1 + 2^-12 is 1 in fp16, and so the difference of the weights is lost."""
    module = nn.Linear(2, 1, bias=False)
    weight = torch.tensor([[1 + 2**-12, -1.0]])
    module.weight.data = weight.clone()
    with torch.inference_mode():
        assert module(torch.ones(1, 2)).item() == 2**-12
        assert RoundedToHalf(module)(input=torch.ones(1, 2)).item() == 0
        assert RoundedToHalf(module, [""])(input=torch.ones(1, 2)).item() == 2**-12
    assert torch.equal(module.weight, weight)


def test_rounded_to_half_leaves_no_hooks_behind(peaky):
    rounded = RoundedToHalf(peaky, ["middle"])
    with torch.inference_mode():
        rounded(x=rand(2, 64))
        with pytest.raises(TypeError):
            rounded(wrong=rand(2, 64))
    assert [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in peaky.modules()] == [0] * 6


def test_scan_ranges_of_several_outputs():
    class Pair(nn.Module):
        def forward(self, x):
            return x, {"twice": 2 * x, "where": x.argmax(), "none": None}

    assert scan_ranges(Pair(), [{"x": torch.tensor([1.0, -5.0])}]).largest == {"": 10.0}


def test_rounded_to_half_rounds_every_part_of_a_split():
    class Split(nn.Module):
        def forward(self, x):
            return torch.split(x, [1, 2], dim=1)

    with torch.inference_mode():
        parts = RoundedToHalf(Split())(x=rand(3, 3))
    assert all(torch.equal(part, part.half().float()) for part in parts)


def test_rounded_to_half_keeps_islands(peaky):
    x = rand(8, 64)
    with torch.inference_mode():
        want = peaky(x)
        assert not RoundedToHalf(peaky)(x=x).isfinite().all()
        rounded = RoundedToHalf(peaky, ["middle"])
        got = rounded(x=x)
    assert 1e-5 < (got - want).norm() / want.norm() < 5e-3
    assert torch.equal(got, got.half().float())
