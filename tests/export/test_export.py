import subprocess
import sys

import pytest

from saishiki import export


def test_all_is_sorted_and_complete():
    assert sorted(export.__all__) == export.__all__
    assert [name for name in export.__all__ if getattr(export, name).__name__ != name] == []


def test_unknown_name():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        export.nothing  # noqa: B018


def test_importing_the_package_does_not_load_torch():
    code = "import sys, saishiki.export, saishiki.export.engines; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
