"""cuDNN itself, where it is installed: every convolution of the networks has a plan, on GPUs that are not here."""

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest

from saishiki.runtime.backends.cuda import driver_problem
from saishiki.runtime.backends.cudnn.attention import Attention
from saishiki.runtime.backends.cudnn.convolution import Convolution
from saishiki.runtime.backends.cudnn.elsewhere import Planned, plan_elsewhere, plan_in_this_process, summary_of
from saishiki.runtime.backends.cudnn.libraries import why_cudnn_unavailable
from saishiki.runtime.backends.cudnn.matmul import Matmul
from saishiki.runtime.backends.cudnn.operation import Operation
from saishiki.runtime.backends.cudnn.planner import WORKSPACE_LIMIT_BYTES
from saishiki.runtime.errors import BackendError
from tests.runtime.backends.cudnn import wrong_convolutions
from tests.runtime.backends.cudnn.network_convolutions import animediffusion, square, stable_diffusion

Plan = Callable[..., tuple[Planned, ...]]

pytestmark = pytest.mark.slow

SMS = (80, 89, 90)
SHAPE = (2, 64, 64, 256, 256, (3, 3), 1, (1, 1, 1, 1), True)
X_BYTES = Convolution(*SHAPE).layouts()["x"].nbytes


@pytest.fixture(scope="module")
def needs_cudnn() -> None:
    if problem := why_cudnn_unavailable():
        pytest.skip(f"needs cuDNN, but no GPU: {problem}")


def test_networks_are_complete() -> None:
    """59 convolutions of 271 GFLOP, as the U-Net's definition has them."""
    convolutions = animediffusion()
    flops = sum(
        2 * op.output_size[0] * op.output_size[1] * op.filters * op.channels * op.kernel[0] * op.kernel[1]
        for op in convolutions
    )
    assert (len(convolutions), len(set(convolutions)), round(flops / 1e9)) == (59, 37, 271)


def test_the_animediffusion_list_is_what_the_network_computes() -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'saishiki[export]'")
    from saishiki.models.animediffusion import CONFIGS, AnimeDiffusion

    seen: Counter[tuple[int, int, int, int]] = Counter()

    def count(module, inputs, output) -> None:  # type: ignore[no-untyped-def]
        size = output.shape[2] if output.ndim == 4 else round(output.shape[2] ** 0.5)
        channels, filters = (-(-n // 8) * 8 for n in (module.in_channels, module.out_channels))
        seen[size, channels, filters, module.kernel_size[0]] += 1

    with torch.device("meta"):
        network = AnimeDiffusion(CONFIGS["published"]).denoise_fn
        for module in network.modules():
            if isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d):
                module.register_forward_hook(count)
        network(torch.zeros(1, 7, 256, 256), torch.zeros(1, dtype=torch.long))
    assert seen == Counter((op.height, op.channels, op.filters, op.kernel[0]) for op in animediffusion())


@pytest.fixture(scope="module")
def plan(needs_cudnn: None) -> Iterator[Plan]:
    """One process for all tests: loading the libraries takes longer than planning."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:

        def plan(operations: list[Operation], sm: int, limit: int = WORKSPACE_LIMIT_BYTES) -> tuple[Planned, ...]:
            return pool.submit(plan_in_this_process, operations, sm, limit).result()

        yield plan


@pytest.fixture(scope="module")
def planned(plan: Plan) -> dict[int, tuple[Planned, ...]]:
    return {sm: plan(list(dict.fromkeys([*animediffusion(), *stable_diffusion()])), sm) for sm in SMS}


@pytest.mark.parametrize("sm", SMS)
def test_every_convolution_has_a_plan(planned: dict[int, tuple[Planned, ...]], sm: int) -> None:
    plans = planned[sm]
    print(summary_of(plans, sm))
    assert [plan.operation for plan in plans] == list(dict.fromkeys([*animediffusion(), *stable_diffusion()]))
    assert min(plan.candidates for plan in plans) >= 8
    assert max(plan.workspace_bytes for plan in plans) <= 2**25


@pytest.mark.parametrize("sm", SMS)
def test_most_convolutions_need_no_workspace(planned: dict[int, tuple[Planned, ...]], sm: int) -> None:
    small = [plan for plan in planned[sm] if plan.workspace_bytes < 2**16]
    assert len(small) > len(planned[sm]) / 2


def test_hopper_has_kernels_of_its_own(planned: dict[int, tuple[Planned, ...]]) -> None:
    engines = {sm: Counter(plan.engine.partition("_")[0] for plan in planned[sm]) for sm in SMS}
    assert engines[90]["eng41"] > 20
    assert engines[80]["eng41"] == engines[89]["eng41"] == 0


@pytest.mark.parametrize("sm", SMS)
def test_linear_layers_have_plans(plan: Plan, sm: int) -> None:
    operations = [Matmul(rows, 320, 1280, residual) for rows in (1, 77, 2 * 4096) for residual in (False, True)]
    assert [planned.operation for planned in plan(operations, sm)] == operations


@pytest.mark.usefixtures("needs_cudnn")
def test_plan_elsewhere_plans_equal_operations_once() -> None:
    operation = square(64, 256, 256, 3)
    (planned,) = plan_elsewhere([operation, operation], 90)
    assert (planned.operation, planned.engine.partition("_")[0]) == (operation, "eng41")


# What is wrong is seen


@pytest.mark.parametrize("sm", SMS)
@pytest.mark.parametrize("wrong", ["BiasFirst", "BiasInFloat", "BiasPerImage"])
def test_what_is_not_precompiled_has_no_plan(plan: Plan, wrong: str, sm: int) -> None:
    operation: Operation = getattr(wrong_convolutions, wrong)(*SHAPE)
    with pytest.raises(
        BackendError, match=rf"has no plan for {wrong}\(batch=2, .* on sm_{sm}: .*use the triton backend"
    ):
        plan([operation], sm)


@pytest.mark.parametrize("sm", SMS)
@pytest.mark.parametrize("wrong", ["Nchw", "SlicedInput"])
def test_what_is_transposed_needs_a_workspace(plan: Plan, wrong: str, sm: int) -> None:
    """As large as the tensor, for every engine; what it should be needs next to none."""
    operation: Operation = getattr(wrong_convolutions, wrong)(*SHAPE)
    with pytest.raises(BackendError, match=rf"{wrong}\(batch=2"):
        plan([operation], sm, X_BYTES - 1)
    assert plan([operation], sm)[0].workspace_bytes >= X_BYTES
    assert plan([Convolution(*SHAPE)], sm, 2**16)[0].workspace_bytes < 2**16


def test_attention_cannot_be_planned_without_a_driver(plan: Plan) -> None:
    if not driver_problem():
        pytest.skip("needs a machine without an NVIDIA driver")
    with pytest.raises(BackendError, match=r"Attention\(batch=1, heads=4, queries=1024.*takes an NVIDIA driver"):
        plan([Attention(1, 4, 1024, 1024, 128, 128**-0.5)], 90)


def test_an_unknown_gpu(plan: Plan) -> None:
    with pytest.raises(ValueError, match="no properties of a GPU of compute capability 75"):
        plan([square(64, 8, 8, 1)], 75)
