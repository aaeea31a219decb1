import pytest

from saishiki.runtime.bench import runners
from saishiki.runtime.bench.runners import runners_here, runners_named
from saishiki.runtime.errors import BackendError
from tests.bundles import copy_bundle, edit_manifest


def names(chosen):
    return [str(runner) for runner in chosen.runners]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["onnxruntime"], ["onnxruntime:cpu:fp32"]),
        (["onnxruntime:cpu"], ["onnxruntime:cpu:fp32"]),
        (["onnxruntime:fp16"], ["onnxruntime:cpu:fp16"]),
        (["onnxruntime:cpu:fp16", " onnxruntime"], ["onnxruntime:cpu:fp16", "onnxruntime:cpu:fp32"]),
        (["onnxruntime", "onnxruntime:cpu:fp32"], ["onnxruntime:cpu:fp32"]),
    ],
)
def test_runners_named(opened, given, wanted):
    assert names(runners_named(opened, given)) == wanted


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("dml", ValueError, "unknown backend 'dml'"),
        ("", ValueError, "unknown runner ''; expected backend"),
        ("onnxruntime::fp16", ValueError, "unknown runner 'onnxruntime::fp16'"),
        ("onnxruntime:gpu", ValueError, "unknown device 'gpu'; expected cpu, cuda or cuda:N"),
        ("onnxruntime:cpu:int8", ValueError, "unknown device 'cpu:int8'"),
        ("tensorrt-rtx:cpu", ValueError, "tensorrt-rtx needs a GPU"),
    ],
)
def test_runners_that_mean_nothing(opened, name, error, message):
    with pytest.raises(error, match=message):
        runners_named(opened, [name])


def test_runners_named_that_cannot_run_are_an_error(opened, tiny_bundle, tmp_path, monkeypatch):
    with pytest.raises(BackendError, match="tensorrt"):
        runners_named(opened, ["onnxruntime", "tensorrt:cuda:7"])


def test_runners_here(opened, monkeypatch):
    found = {"tensorrt-rtx on cuda": "no GPU", "onnxruntime on cpu": None}
    monkeypatch.setattr(runners, "diagnose", lambda: found)
    chosen = runners_here(opened, best_precision_only=False)
    assert names(chosen) == ["onnxruntime:cpu:fp32", "onnxruntime:cpu:fp16"]
    assert chosen.skipped == {"tensorrt-rtx:cuda": "no GPU"}
    assert names(runners_here(opened, best_precision_only=True)) == ["onnxruntime:cpu:fp32"]


def test_runners_here_leaves_out_a_precision_without_a_graph(tiny_bundle, tmp_path):
    copy = copy_bundle(tiny_bundle, tmp_path)
    edit_manifest(copy, lambda fields: [module["graphs"].pop("fp16", None) for module in fields["modules"].values()])
    bundle = runners.Bundle.open(copy)
    assert names(runners_here(bundle, best_precision_only=False)) == ["onnxruntime:cpu:fp32"]
    with pytest.raises(BackendError, match="no module has a graph in fp16; export again"):
        runners_named(bundle, ["onnxruntime:cpu:fp16"])


def test_runners_where_nothing_works(opened, monkeypatch):
    monkeypatch.setattr(runners, "diagnose", lambda: {"onnxruntime on cpu": "not installed"})
    with pytest.raises(BackendError, match="no backend can run this bundle here; onnxruntime:cpu: not installed"):
        runners_here(opened, best_precision_only=False)
