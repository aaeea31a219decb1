import json
from typing import Any

import pytest
from executor_window.cudnn_library import (
    PROPERTIES,
    compare_properties,
    property_values,
    why_no_cudnn,
    written_properties,
)


def test_why_no_cudnn_names_what_to_install(no_cudnn: None) -> None:
    assert why_no_cudnn() == "cudnn-frontend is not installed; run: pip install 'nvidia-cudnn-frontend<1.28'"


def test_why_no_cudnn_where_it_is(cudnn: Any) -> None:
    assert why_no_cudnn() is None


def test_why_no_cudnn_where_it_does_not_load(cudnn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise OSError("libcudnn.so.9: cannot open shared object file")

    monkeypatch.setattr("executor_window.cudnn_library.importlib.import_module", fail)
    assert why_no_cudnn() == "cudnn-frontend does not load: libcudnn.so.9: cannot open shared object file"


@pytest.mark.parametrize("sm", sorted(PROPERTIES))
def test_written_properties_are_json_with_the_compute_capability(cudnn: Any, sm: int) -> None:
    assert json.loads(written_properties(cudnn, sm).serialize())["deviceVer"] == 10 * sm


def test_written_properties_of_an_unknown_gpu(cudnn: Any) -> None:
    with pytest.raises(ValueError, match=r"written down for sm75; expected one of \[80, 89, 90\]"):
        written_properties(cudnn, 75)


def test_compare_properties_names_what_differs() -> None:
    own = {**property_values(90), "multiProcessorCount": 114, "new": 1}
    del own["warpSize"]
    assert compare_properties(own, property_values(90)) == {
        "multiProcessorCount": {"device": 114, "written": 132},
        "new": {"device": 1, "written": None},
        "warpSize": {"device": None, "written": 32},
    }
    assert compare_properties(property_values(89), property_values(89)) == {}
