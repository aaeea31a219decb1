import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'saishiki[export]'")

from saishiki.export.engines.mapped_weights import MappedWeights  # noqa: E402
from saishiki.export.engines.request import BuildRequest  # noqa: E402

MEGABYTES = 16


def graph_of(**places: dict[str, int | str] | None) -> bytes:
    """A graph with these weights, each at a place of a file, or in the graph itself."""
    weights = []
    for name, place in places.items():
        tensor = onnx.numpy_helper.from_array(np.zeros(4, np.float32), name)
        if place:
            onnx.external_data_helper.set_external_data(tensor, **place)
            tensor.ClearField("raw_data")
        weights.append(tensor)
    return bytes(onnx.helper.make_model(onnx.helper.make_graph([], "weights", [], [], weights)).SerializeToString())


def resident_bytes(file: Path) -> list[int]:
    """What is in memory of each mapping of the file in this process."""
    found, here = [], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split(maxsplit=5)
        if not first.endswith(":"):
            here = rest[-1] == str(file)
        elif here and first == "Rss:":
            found.append(int(rest[0]) * 1024)
    return found


def test_places_are_those_of_weights_in_files(tmp_path: Path) -> None:
    values = np.arange(8, dtype=np.float32)
    (tmp_path / "a.data").write_bytes(values.tobytes())
    (tmp_path / "b.data").write_bytes(values[::-1].tobytes())
    model = graph_of(
        inline=None,
        first={"location": "a.data", "offset": 0, "length": 16},
        second={"location": "a.data", "offset": 16, "length": 16},
        other={"location": "b.data", "offset": 0, "length": 16},
        beyond={"location": "a.data", "offset": 20, "length": 16},
        missing={"location": "c.data", "offset": 0, "length": 16},
        empty={"location": "a.data", "offset": 0, "length": 0},
    )
    with MappedWeights() as weights:
        found = {
            name: np.frombuffer(ctypes.string_at(*place), np.float32).tolist()
            for name, place in weights.places(model, tmp_path).items()
        }
    assert found == {"first": [0, 1, 2, 3], "second": [4, 5, 6, 7], "other": [7, 6, 5, 4]}


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: pages are left to other systems")
def test_return_pages_frees_memory_and_loses_nothing(tmp_path: Path) -> None:
    file, size = tmp_path / "a.data", MEGABYTES << 20
    content = np.random.default_rng(0).bytes(size)
    file.write_bytes(content)
    with MappedWeights() as weights:
        places = weights.places(graph_of(w={"location": "a.data", "offset": 0, "length": size}), tmp_path)
        assert ctypes.string_at(*places["w"]) == content
        assert resident_bytes(file) == [size]
        weights.return_pages()
        assert resident_bytes(file) == [0]
        assert ctypes.string_at(*places["w"]) == content
    assert resident_bytes(file) == []


BUILD = """
import json, sys
from pathlib import Path
import msgspec
from saishiki.export.engines import mapped_weights, worker
from saishiki.export.engines.request import BuildRequest
from tests.export.engines.test_mapped_weights import resident_bytes

file, how, seen = Path(sys.argv[1]), sys.argv[2], []
return_pages = mapped_weights.MappedWeights.return_pages

def watched(weights):
    if how == "returned":
        return_pages(weights)
    seen.append(resident_bytes(file))

mapped_weights.MappedWeights.return_pages = watched
worker.engine_from_onnx(msgspec.json.decode(sys.stdin.buffer.read(), type=BuildRequest))
print(json.dumps(seen))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: pages are left to other systems")
@pytest.mark.parametrize(("how", "share"), [("returned", 0), ("kept", 1)])
def test_engine_from_onnx_returns_the_pages_of_its_weights(
    weights_in_a_file: Any, tmp_path: Path, how: str, share: int
) -> None:
    """The builder reads them where they are mapped here, and the parser has no mapping of its own."""
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install 'saishiki[rtx]'")
    case, file = weights_in_a_file, weights_in_a_file.onnx.with_suffix(".data")
    request = BuildRequest(str(case.onnx), str(tmp_path), case.signature, case.profiles, case.target)
    command = [sys.executable, "-c", BUILD, str(file), how]
    done = subprocess.run(command, input=msgspec.json.encode(request), stdout=subprocess.PIPE, check=True)
    seen = json.loads(done.stdout)
    assert {len(mappings) for mappings in seen} == {1}
    assert seen[-1] == [share * file.stat().st_size]
