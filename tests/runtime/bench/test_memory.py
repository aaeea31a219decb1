from dataclasses import replace

import pytest

from saishiki.runtime.bench.memory import gpu_bytes_used, memory_of
from saishiki.runtime.bench.runners import Runner
from saishiki.runtime.manifest import EngineEntry, EngineKey, FileEntry


@pytest.mark.parametrize(
    ("device", "used"), [("cpu", None), ("cuda", 1 << 30), ("cuda:0", 1 << 30), ("cuda:1", None), ("cuda:2", None)]
)
def test_gpu_bytes_used(made, device, used):
    gpus = (made.gpu(), made.gpu(memory_used_bytes=None))
    assert gpu_bytes_used(Runner("tensorrt", device, "fp16"), lambda: gpus) == used


def test_memory_of_graphs_is_their_weights(opened, backend):
    graphs = {name: module.graphs for name, module in opened.manifest.modules.items()}
    memory = memory_of(opened, backend, "fp16", peak_rss_bytes=5, gpu_bytes=None)
    wanted = graphs["denoiser"]["fp16"].weights.bytes + graphs["time_projection"]["fp32"].weights.bytes
    assert (memory.weights_bytes, memory.activations_bytes, memory.peak_rss_bytes) == (wanted, None, 5)


def test_memory_of_engines_adds_their_scratch(opened, backend):
    key = EngineKey("", "", "", "fp16", "", "", "")
    engine = EngineEntry("tensorrt", "sm89", key, "", FileEntry("e", "", 70), 0.0, 0, 0, 11)

    class WithEngines:
        def check(self, bundle, module, precision):
            return engine if module == "denoiser" else replace(engine, activation_bytes=2)

    memory = memory_of(opened, WithEngines(), "fp16", peak_rss_bytes=None, gpu_bytes=9)
    assert (memory.weights_bytes, memory.activations_bytes, memory.gpu_bytes) == (140, 13, 9)
