"""What the planner tells the frontend about the GPU and the engines, and what plans and errors come of it."""

import pytest

from saishiki.runtime.backends.cudnn.convolution import Convolution
from saishiki.runtime.backends.cudnn.devices import GPUS, properties_of
from saishiki.runtime.backends.cudnn.planner import Planner, reason_of
from saishiki.runtime.errors import BackendError
from tests.runtime.backends.cudnn.played_frontend import PlayedFrontend

OPERATION = Convolution(1, 8, 8, 8, 8, (3, 3), 1, (1, 1, 1, 1))
ADDRESSES = {"x": 16, "w": 32, "bias": 48, "y": 64}


@pytest.fixture
def planner(played: PlayedFrontend) -> Planner:
    return Planner(played.cudnn, 89)


@pytest.mark.parametrize("sm", GPUS)
def test_planner_without_a_gpu_describes_one(played: PlayedFrontend, sm: int) -> None:
    Planner(played.cudnn, sm).candidates(OPERATION)
    options = played.graphs[0].options
    described = options.pop("device_property")
    assert (described.deviceVer, described.deviceName) == (sm * 10, GPUS[sm]["deviceName"])
    assert {name: getattr(value, "name", value) for name, value in options.items()} == {
        "io_data_type": "HALF",
        "intermediate_data_type": "FLOAT",
        "compute_data_type": "FLOAT",
        "sm_version": sm,
    }


def test_planner_on_a_gpu_takes_the_handle(played: PlayedFrontend) -> None:
    Planner(played.cudnn, 86, handle=77).candidates(OPERATION)
    options = played.graphs[0].options
    assert (options["handle"], options["sm_version"], "device_property" in options) == (77, 86, False)


def test_properties_of_an_unknown_gpu() -> None:
    with pytest.raises(ValueError, match="compute capability 75 are known here; expected one of 80, 89, 90"):
        properties_of(75)


def test_planner_leaves_out_what_is_not_exact(played: PlayedFrontend) -> None:
    Planner(played.cudnn, 90, workspace_limit_bytes=4096).candidates(OPERATION)
    assert played.graphs[0].log[2:] == [
        "validate",
        "build graph",
        "heuristics ['A', 'FALLBACK']",
        "without ['DOWN_CONVERT_INPUTS', 'FFT', 'NONDETERMINISTIC', 'REDUCED_PRECISION_REDUCTION', 'WINOGRAD']",
        "only ['TENSOR_CORE']",
        "without ['RUNTIME_COMPILATION']",
        "workspace 4096",
        "check",
    ]


def test_candidates_come_in_the_order_of_cudnn(played: PlayedFrontend, planner: Planner) -> None:
    played.engines = [("eng41", 1), ("eng10", 2), ("eng41", 3), ("eng0", 4)]
    candidates = planner.candidates(OPERATION)
    assert list(candidates.engines) == ["eng41", "eng10", "eng0"]
    assert candidates.build("eng41").workspace_bytes == 1  # the first of that name
    assert candidates.build("eng0").workspace_bytes == 4


def test_a_refused_operation_is_named(played: PlayedFrontend, planner: Planner) -> None:
    played.refusal = (
        'No valid engine configs for ___\n{"engineId":9}\nWarning: STATUS; Reason: Could not open libnvrtc\n'
        'Warning: STATUS; Reason: finalize\n\n{"engineId":4}\nWarning: STATUS; Reason: Could not open libnvrtc\n'
    )
    with pytest.raises(BackendError) as caught:
        planner.candidates(OPERATION)
    said = str(caught.value)
    assert said.startswith("cuDNN 9.19.0 has no plan for Convolution(batch=1, height=8, width=8, channels=8, filters=8")
    assert "on sm_89: No valid engine configs for ___; Could not open libnvrtc; use the triton backend" in said
    assert "pip install 'nvidia-cudnn-frontend" in said


def test_reason_of_an_error_without_words() -> None:
    assert reason_of(RuntimeError("")) == "no reason given"


def test_first_plan_skips_what_cannot_be_built(played: PlayedFrontend, planner: Planner) -> None:
    played.unbuildable = {"eng41_k2=7"}
    plan = planner.first_plan(OPERATION)
    assert (plan.engine, plan.workspace_bytes) == ("eng10_k2=5", 512)


def test_first_plan_where_none_can_be_built(played: PlayedFrontend, planner: Planner) -> None:
    played.unbuildable = {engine for engine, _ in played.engines}
    with pytest.raises(BackendError, match=r"none of cuDNN's 3 engines for Convolution\(.*Deselecting execution plan"):
        planner.first_plan(OPERATION)


def test_build_of_an_unknown_engine(planner: Planner) -> None:
    with pytest.raises(BackendError, match="eng99 is not among cuDNN's 3 candidates for Convolution"):
        planner.candidates(OPERATION).build("eng99")


# Running


@pytest.mark.parametrize(
    ("addresses", "workspace", "error", "message"),
    [
        ({"x": 16, "w": 32, "y": 64}, 256, TypeError, r"takes \['x', 'w', 'bias', 'y'\], got \['w', 'x', 'y'\]"),
        (ADDRESSES | {"residual": 80}, 256, TypeError, "takes"),
        (ADDRESSES | {"w": 40}, 256, ValueError, "w lies at 40, expected a multiple of 16"),
        (ADDRESSES, 8, ValueError, "workspace lies at 8, expected a multiple of 16"),
        (ADDRESSES, 0, ValueError, "eng10_k2=5 needs a workspace of 512 bytes, got none"),
    ],
)
def test_execute_with_wrong_addresses(
    played: PlayedFrontend,
    planner: Planner,
    addresses: dict[str, int],
    workspace: int,
    error: type[Exception],
    message: str,
) -> None:
    plan = planner.candidates(OPERATION).build("eng10_k2=5")
    with pytest.raises(error, match=message):
        plan.execute(77, addresses, workspace)
    assert played.executed == []


def test_execute_names_the_plan_that_fails(played: PlayedFrontend, planner: Planner) -> None:
    played.unrunnable = {"eng10_k2=5"}
    plan = planner.candidates(OPERATION).build("eng10_k2=5")
    with pytest.raises(
        BackendError, match=r"does not run Convolution\(.* by eng10_k2=5: CUDNN_STATUS_EXECUTION_FAILED"
    ):
        plan.execute(77, ADDRESSES, 256)
    assert played.executed == [("eng10_k2=5", 256, 77)]
