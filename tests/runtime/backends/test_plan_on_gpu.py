import pytest

from saishiki.runtime.backends.convolution_tiles import NORM_TARGETS
from saishiki.runtime.backends.cubins import read_cubin_index
from saishiki.runtime.backends.plan_on_gpu import plan_on_gpu
from saishiki.runtime.plan.fold_norms import fold_norms
from tests.runtime.plan import small_network

PLAN = small_network.plan("float16")


@pytest.mark.parametrize(
    ("target", "library", "folds"),
    [
        ("sm80", "triton", True),
        ("sm86", "triton", True),
        ("sm89", "triton", True),
        ("sm90", "triton", False),
        ("sm120", "triton", False),
        ("sm89", "cudnn", False),
        ("sm90", "cudnn", False),
    ],
)
def test_norms_are_folded_by_our_kernels_alone(target, library, folds):
    assert plan_on_gpu(PLAN, target=target, library=library) == (fold_norms(PLAN) if folds else PLAN)


def test_plans_in_fp32_are_computed_on_the_host():
    plan = small_network.plan("float32")
    assert plan_on_gpu(plan, target="sm89", library="triton") == plan


def test_the_kernels_are_compiled_where_norms_are_folded_and_nowhere_else():
    compiled = [cubin for cubin in read_cubin_index().cubins if cubin.constexprs.get("NORM")]
    tiles = {f"convolution_norm_{tile}_fp16" for tile in ("128x128", "128x64", "64x64")}
    assert {(cubin.name, cubin.target) for cubin in compiled} == {
        (name, target) for name in tiles for target in NORM_TARGETS
    }
