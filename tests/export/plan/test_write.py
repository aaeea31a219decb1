import json
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from saishiki.export import export_bundle, parse_profiles
from saishiki.export.engines import CUDA, parse_targets
from saishiki.export.plan import lower_graph
from saishiki.models.animediffusion import AnimeDiffusion
from saishiki.runtime import Colorizer
from saishiki.runtime.backends import open_backend
from saishiki.runtime.backends.cuda_backend import CudaBackend
from saishiki.runtime.backends.plans import read_plan
from saishiki.runtime.backends.protocol import no_progress
from saishiki.runtime.bench import session
from saishiki.runtime.bench.environment import describe_environment
from saishiki.runtime.bench.ops import timed_plans
from saishiki.runtime.bench.plan import QUICK
from saishiki.runtime.bench.runners import Chosen, Runner
from saishiki.runtime.bench.schema import (
    SCHEMA_VERSION,
    Memory,
    Report,
    RunnerResult,
    Stability,
    json_from_report,
)
from saishiki.runtime.bench.tables import plan_tables_of
from saishiki.runtime.bundle import Bundle, sha256_of_file
from saishiki.runtime.cli import main
from saishiki.runtime.errors import BackendError, BundleError
from saishiki.runtime.manifest import Certificate
from saishiki.runtime.noise import Noise
from saishiki.runtime.parity import measure, psnr_db
from saishiki.runtime.pipelines import AnimeDiffusionPipeline, Sampling
from saishiki.runtime.schedule import linear_betas
from tests.bundles import edit_manifest, flip_byte, rewrite_file
from tests.export.conftest import SMALLEST, request_for, save_network
from tests.pictures import draw_sketch, paint_reference
from tests.runtime.backends.interpreted_device import InterpretedDevice

PLAN = "engines/cuda/denoiser.plan.json"
WEIGHTS = "engines/cuda/weights.safetensors"


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """The smallest checkpoint that the kernels know the heads of, with plans for two sizes."""
    folder = tmp_path_factory.mktemp("planned")
    with torch.random.fork_rng():
        torch.manual_seed(12)
        network = AnimeDiffusion(replace(SMALLEST, attention_head=2))
    network.set_schedule(torch.from_numpy(linear_betas(SMALLEST.timesteps, 1e-6, 1e-2)))
    checkpoint = save_network(network, folder / "two_heads.safetensors")
    output = folder / "planned.saishiki"
    request = request_for(
        checkpoint, output, targets=parse_targets("onnx,cuda"), profiles=parse_profiles(["8", "16"], "1:2")
    )
    return export_bundle(request).bundle


@pytest.fixture
def copied(planned, tmp_path):
    return shutil.copytree(planned, tmp_path / "copy.saishiki")


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="needs Linux, which tells what is mapped")
def test_weights_are_let_go_once_they_are_read(planned):
    bundle = Bundle.open(planned)
    module = bundle.module("denoiser")
    graph = module.graphs["fp16"]
    lowered = lower_graph(bundle.path / graph.graph.path, module.signature, "fp16")
    for stored in lowered.weights.values():
        assert stored.read().size
    assert graph.weights.path not in Path("/proc/self/maps").read_text()


def test_parse_targets_knows_plans():
    assert parse_targets("onnx,cuda") == (CUDA,)
    assert str(CUDA) == "cuda any"


def test_every_module_has_a_plan_and_all_share_a_file_of_weights(planned):
    manifest = Bundle.open(planned).manifest
    engines = {name: module.engines for name, module in manifest.modules.items()}
    assert {name: [engine.backend for engine in found] for name, found in engines.items()} == {
        "time_projection": ["cuda"],
        "denoiser": ["cuda"],
    }
    files = {engine.weights.path for found in engines.values() for engine in found}
    assert files == {WEIGHTS}
    for entry in manifest.files():
        assert sha256_of_file(planned / entry.path) == entry.sha256
    (denoiser,) = engines["denoiser"]
    assert denoiser.layers == len(json.loads((planned / PLAN).read_text())["ops"])
    assert denoiser.fused_attentions == 1
    assert denoiser.activation_bytes > 16 * 16 * 64 * 2 * 2
    assert denoiser.key.precision == "fp16"


def test_a_plan_has_a_line_for_each_operation(planned):
    lines = (planned / PLAN).read_text().splitlines()
    assert sum(line.startswith(' {"op":"convolution"') for line in lines) == 11


def test_verify_on_the_interpreter_of_plans(planned):
    result = run("verify", planned, "--backend", "cuda-reference")
    assert result.exit_code == 0, result.output
    assert result.output.rstrip().endswith("passed")


def test_pictures_of_plans_are_those_of_the_graph(planned):
    sketch, reference = draw_sketch(16, 16), paint_reference(16, 16)
    images = []
    for backend, precision in (("onnxruntime", "fp32"), ("cuda-reference", "fp16")):
        with Colorizer.load(planned, backend=backend, device="cpu", precision=precision) as colorizer:
            images.append(np.asarray(colorizer(sketch, reference, seed=3, size=(16, 16)), np.float64))
    assert psnr_db(images[1], images[0], peak=255.0) >= 45
    assert images[0].std() > 10


@pytest.mark.slow
def test_pictures_of_kernels_are_those_of_the_graph(planned):
    """The whole of a run as a GPU would see it: weights, launches, recorded steps and the sampler's kernel."""
    bundle, device = Bundle.open(planned), InterpretedDevice()
    backend = CudaBackend(device)
    images = []
    for runner, precision in ((backend, "fp16"), (open_backend(bundle, "onnxruntime", "cpu"), "fp32")):
        pipeline = AnimeDiffusionPipeline.load(bundle, runner, precision)
        rng = np.random.default_rng(4)
        x_con, x_ref = (rng.uniform(-1, 1, (1, channels, 8, 8)).astype(np.float32) for channels in (1, 3))
        noise = Noise(start=rng.standard_normal((1, 3, 8, 8)).astype(np.float32), steps=None)
        sampling = Sampling(steps=2, eta=0.0, start="noise")
        images.append(pipeline(x_con, x_ref, sampling, noise, no_progress))
    assert psnr_db(images[0], images[1]) >= 45
    assert images[1].std() > 0.05
    assert device.guards_are_whole()
    assert any(name.startswith("convolution_norm_") for name in device.launched), "norms are folded on this GPU"
    assert device.graphs == 1, "both steps and the sampler are one graph"
    assert device.replays == 1
    backend.close()


def test_a_changed_weight_turns_verification_red(copied):
    name = next(name for name in load_file(copied / WEIGHTS) if name.endswith("output.2.weight.krsc"))

    def change(content):
        path = copied / "changed.safetensors"
        path.write_bytes(content)
        tensors, metadata = load_file(path), _metadata(path)
        tensors[name] = tensors[name] * np.float16(1.05)
        save_file(tensors, path, metadata=metadata)
        return path.read_bytes()

    rewrite_file(copied, WEIGHTS, change)
    certificate = verified(copied)
    assert certificate.verdict == "failed"
    assert [row.passed for row in certificate.rows if row.module == "denoiser"] == [False] * 4


def _metadata(path):
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return file.metadata()


def verified(path):
    bundle = Bundle.open(path)
    return measure(
        bundle, open_backend(bundle, "cuda-reference"), precisions=("fp16",), only_profiles=False, versions={}
    )


def edit_plan(bundle, edit):
    plan = json.loads((bundle / PLAN).read_text())
    edit(plan["ops"])
    rewrite_file(bundle, PLAN, lambda text: json.dumps(plan).encode())


def test_a_dropped_residual_turns_verification_red(copied):
    edit_plan(copied, lambda ops: next(op for op in ops if "residual" in op).pop("residual"))
    assert verified(copied).verdict == "failed"


def test_swapped_keys_and_values_turn_verification_red(copied):
    def swap(ops):
        (attention,) = (op for op in ops if op["op"] == "attention")
        attention["k"], attention["v"] = attention["v"], attention["k"]

    edit_plan(copied, swap)
    assert verified(copied).verdict == "failed"


def test_a_misspelt_field_is_refused(copied):
    rewrite_file(copied, PLAN, lambda text: text.replace(b'"residual":', b'"remainder":', 1))
    with pytest.raises(BundleError, match=r"not a valid plan .*remainder.*; export the checkpoint again"):
        verified(copied)


def test_a_damaged_file_is_named(copied):
    flip_byte(copied / WEIGHTS)
    with pytest.raises(BundleError, match=r"weights\.safetensors is damaged"):
        verified(copied)


def test_a_plan_of_another_version(copied):
    rewrite_file(copied, PLAN, lambda text: text.replace(b'"version": 1', b'"version": 7'))
    with pytest.raises(BundleError, match="a plan of version 7, but this Saishiki reads version 1; export"):
        verified(copied)


def test_a_plan_of_another_graph(copied):
    def edit(fields):
        fields["modules"]["denoiser"]["engines"][0]["key"]["graph"] = "0" * 64

    edit_manifest(copied, edit)
    with pytest.raises(BackendError, match="made of another graph"):
        verified(copied)


def test_weights_that_the_plan_does_not_expect(copied):
    rewrite_file(copied, PLAN, lambda text: text.replace(b'"shape":[64,3,3,64]', b'"shape":[64,3,3,72]', 1))
    with pytest.raises(BundleError, match=r"lacks denoiser/.* as the plan has it; export again"):
        verified(copied)


def test_bundles_without_plans_say_how_to_get_some(smallest_export):
    bundle = Bundle.open(smallest_export.bundle)
    with pytest.raises(BackendError, match="no plan of denoiser in fp16, none at all; export again with cuda among"):
        open_backend(bundle, "cuda-reference").load(bundle, "denoiser", "fp16")
    result = run("inspect", smallest_export.bundle, "--plan")
    assert result.exit_code == 1
    assert "it has no plans at all; export again with cuda among the targets" in result.output


def test_plans_exist_in_one_precision(planned):
    bundle = Bundle.open(planned)
    with pytest.raises(BackendError, match="no plan of denoiser in fp32, only one in fp16"):
        open_backend(bundle, "cuda-reference").load(bundle, "denoiser", "fp32")


def test_the_interpreter_runs_on_the_cpu_alone(planned):
    with pytest.raises(ValueError, match="cuda-reference runs on the CPU"):
        open_backend(Bundle.open(planned), "cuda-reference", "cuda:0")


def test_plans_are_never_interpreted_unasked(planned):
    bundle = Bundle.open(planned)
    assert open_backend(bundle, "auto", None).name == "onnxruntime"


def test_inspect_counts_the_launches_of_all_plans(planned):
    result = run("inspect", planned, "--plan")
    assert result.exit_code == 0, result.output
    for text in ("11 convolution", "1 attention", "time_projection", "not", "measured", "H200"):
        assert text in result.output


def test_inspect_lists_the_launches_of_one_plan(planned):
    result = run("inspect", planned, "--plan", "denoiser")
    assert result.exit_code == 0, result.output
    assert result.output.count("norm_statistics") == 2 * len(
        [op for op in json.loads((planned / PLAN).read_text())["ops"] if op["op"] == "norm_statistics"]
    )  # at both sizes


def test_inspect_counts_the_launches_of_a_gpu(planned):
    """On this one, convolutions normalise what they read themselves, but for what norms put together."""
    ops = json.loads((planned / PLAN).read_text())["ops"]
    for options, norms in (([], 10), (["--library", "triton", "--target", "sm89"], 4)):
        output = " ".join(run("inspect", planned, "--plan", *options).output.split())
        assert f"{norms} norm_apply" in output
        assert f"width 8: {len(ops) - 10 + norms} launches" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plan", "--library", "triton"], "--library and --target go together, and with --plan"),
        (["--library", "triton", "--target", "sm89"], "--library and --target go together, and with --plan"),
        (
            ["--plan", "--library", "triton", "--target", "sm75"],
            "no kernels are compiled for the target sm75",
        ),
    ],
    ids=["no target", "no plan", "unknown"],
)
def test_inspect_refuses_half_a_gpu(planned, options, message):
    result = run("inspect", planned, *options)
    assert result.exit_code == 2
    assert message in result.output


class Told:
    """A module that tells what its operations take: as many microseconds as they have predecessors and pixels."""

    def __init__(self, bundle):
        self.signature = bundle.module("denoiser").signature
        plan = read_plan(bundle, "denoiser", "fp16")
        self.plan = msgspec.structs.replace(plan, ops=plan.ops[:9])  # a plan may be run by fewer launches

    def ops_ms(self, *, noisy, **_):
        return {op: (1e-3 * place, 2.0, 0.0) for place, op in enumerate(self.plan.ops, start=noisy.shape[2])}


@pytest.fixture
def report(planned):
    """Of a run on a GPU."""
    bundle = Bundle.open(planned)
    plans = timed_plans(bundle, {"denoiser": Told(bundle), "time_projection": object()})
    runner = RunnerResult(
        backend="cuda-triton",
        device="cuda",
        precision="fp16",
        parity=Certificate("passed", "cuda", {}, (), ()),
        rows=(),
        memory=Memory(1, None, None, None),
        stability=Stability(1.0, 1.0, 0.0, 0.1, agree=True),
        plans=plans,
    )
    return Report(
        schema_version=SCHEMA_VERSION,
        started="",
        seconds=1.0,
        quick=False,
        bundle=session.identity_of(bundle),
        environment=describe_environment(),
        runners=(runner,),
        skipped={},
        notes=(),
    )


def test_a_report_has_the_times_of_operations_as_they_ran(report):
    (runner,) = report.runners
    assert [(plan.module, plan.sizes["height"]) for plan in runner.plans] == [("denoiser", 8), ("denoiser", 16)]
    for plan in runner.plans:
        size = plan.sizes["height"]
        assert [op.samples_us for op in plan.ops] == [pytest.approx((size + place, 2000.0, 0.0)) for place in range(9)]
        assert all(us > 1 for op in plan.ops for us in op.modelled_us.values())


@pytest.mark.parametrize("module", [None, "denoiser"])
def test_inspect_puts_measured_times_beside_modelled_ones(planned, report, module, tmp_path):
    path = tmp_path / "report.json"
    path.write_bytes(json_from_report(report))
    result = run("inspect", planned, "--plan", *filter(None, [module]), "--measured", path)
    assert result.exit_code == 0, result.output
    totals = [line.split("│")[1:-1] for line in result.output.splitlines() if line.startswith("│ all")]
    assert [cells[-1].strip() for cells in totals] == [f"{9 * size + 36:.1f}" for size in (8, 16)]
    modelled = [sum(op.modelled_us["H200"] for op in plan.ops) for plan in report.runners[0].plans]
    assert [cells[3].strip() for cells in totals] == [f"{us:.1f}" for us in modelled]


def test_inspect_refuses_times_of_other_plans(planned, report, tmp_path):
    path, (runner,) = tmp_path / "report.json", report.runners
    others = tuple(replace(plan, sha256="0" * 64) for plan in runner.plans)
    for plans in ((), others):
        path.write_bytes(json_from_report(replace(report, runners=(replace(runner, plans=plans),))))
        result = run("inspect", planned, "--plan", "denoiser", "--measured", path)
        assert result.exit_code == 1
        assert "it has no times of the plans of denoiser" in result.output
    result = run("inspect", planned, "--measured", path)
    assert result.exit_code == 2
    assert "give --plan too" in result.output
    result = run("inspect", planned, "--plan", "--measured", path, "--library", "triton", "--target", "sm89")
    assert result.exit_code == 2
    assert "leave --library and --target out" in result.output


def test_a_benchmark_models_every_plan_and_shows_what_ran_instead(planned, report, monkeypatch):
    monkeypatch.setattr(session, "_parity", lambda *_: None)
    monkeypatch.setattr(session, "_measured", lambda *_: replace(report.runners[0], plans=()))
    chosen = Chosen((Runner("onnxruntime", "cpu", "fp32"),), {}, named=True)
    modelled = session.run_bench(Bundle.open(planned), chosen, QUICK, lambda text: None)
    assert [plan.module for plan in modelled.plans] == ["time_projection"] + ["denoiser"] * 2
    assert [_last_column(table) for table in plan_tables_of(modelled)] == ["RTX 4090, µs"] * 3
    both = replace(modelled, runners=report.runners)
    assert [_last_column(table) for table in plan_tables_of(both)] == [
        "RTX 4090, µs",
        *["cuda-triton:cuda:fp16, µs"] * 2,
    ]


def _last_column(table):
    return table.columns[-1].header


def test_inspect_refuses_a_module_without_a_plan(planned):
    result = run("inspect", planned, "--plan", "decoder")
    assert result.exit_code == 1
    assert "no plan of decoder; it has plans of time_projection, denoiser" in result.output
