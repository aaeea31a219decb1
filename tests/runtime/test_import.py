import ast
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.pictures import draw_sketch, paint_reference

ROOT = Path(__file__).parents[2]
FOLDERS = ("runtime", "models", "kernels", "export")
FOREIGN = {"torch", "onnx", "triton", "diffusers"}
MAY_IMPORT = {
    "runtime": {"runtime"},
    "models": {"models", "kernels", "runtime"},
    "kernels": {"kernels", "runtime"},
    "export": {"export", "models", "kernels", "runtime"},
}

BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "onnx", "triton", "diffusers"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
"""


def python(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=120, **options
    )


def printed(code: str, *arguments: str) -> str:
    done = python("-c", code, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("saishiki", *parts)).removesuffix(".__init__")


def imports_of(source: str) -> Iterator[str]:
    """The absolute names of everything that a file imports, at the top or inside a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports say too little"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            yield from (argument.value for argument in node.args if isinstance(argument, ast.Constant))


def violations(folder: str, source: str) -> list[str]:
    """The imports in a file of one of the folders that point the wrong way."""
    found = []
    for name in imports_of(source):
        top, _, rest = name.partition(".")
        if top in (*FOLDERS, "tests", "benchmarks"):
            found.append(name)
        if top == "saishiki" and rest.partition(".")[0] not in MAY_IMPORT[folder]:
            found.append(name)
        if folder == "runtime" and top in FOREIGN:
            found.append(name)
    return found


# Which way imports point


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_point_one_way(folder):
    paths = sources(folder)
    assert len(paths) > 2
    wrong = {str(path.relative_to(ROOT)): violations(folder, path.read_text()) for path in paths}
    assert {path: names for path, names in wrong.items() if names} == {}


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("runtime", "import torch"),
        ("runtime", "def f():\n    from torch.nn import functional"),
        ("runtime", "import onnx.helper as h"),
        ("runtime", "importlib.import_module('triton')"),
        ("runtime", "from saishiki.models import FAMILIES"),
        ("runtime", "from saishiki import export"),
        ("kernels", "import saishiki.export"),
        ("models", "from saishiki.export.request import parse_profiles"),
        ("kernels", "from saishiki.models import FAMILIES"),
        ("export", "from tests.bundles import flip_byte"),
        ("export", "from benchmarks import roofline"),
        ("export", "from models import FAMILIES"),
        ("kernels", "import runtime.bundle"),
    ],
)
def test_a_wrong_import_is_found(folder, line):
    assert len(violations(folder, line)) == 1


def test_a_right_import_is_not_found():
    assert violations("runtime", "import onnxruntime\nfrom saishiki.runtime.backends import onnxruntime") == []
    assert violations("export", "import torch\nfrom saishiki.models import FAMILIES") == []


def test_folders_are_no_top_level_modules(tmp_path):
    code = "import importlib.util, saishiki.runtime; print([importlib.util.find_spec(name) for name in {}])"
    done = python("-c", code.format(FOLDERS), cwd=tmp_path)
    assert done.stdout.strip() == "[None, None, None, None]", done.stderr


# What a package exports


PACKAGES = [path for folder in FOLDERS for path in sources(folder) if path.name == "__init__.py"]


def re_exports(package: str, source: str) -> set[str]:
    """The names that an ``__init__.py`` takes from its own modules; fails where it does anything else.

    A lazy one may also have the machinery of PEP 562: a ``TYPE_CHECKING`` block, ``_MODULES`` and ``__getattr__``.
    """
    docstring, *body = ast.parse(source).body
    assert isinstance(docstring, ast.Expr)
    names = set()
    while body:
        node = body.pop(0)
        match node:
            case ast.If(test=ast.Name("TYPE_CHECKING"), orelse=[]):
                body = node.body + body
            case ast.ImportFrom(module=module) if module.startswith(package + "."):
                names |= {alias.asname or alias.name for alias in node.names}
            case ast.ImportFrom(module="importlib" | "typing") | ast.FunctionDef(name="__getattr__"):
                pass
            case ast.Assign(targets=[ast.Name("__all__" | "_MODULES")]):
                pass
            case _:
                pytest.fail(f"{package}: does more than re-export: {ast.unparse(node)}")
    return names


@pytest.mark.parametrize("path", PACKAGES, ids=[module_name(path) for path in PACKAGES])
def test_init_only_re_exports(path):
    name = module_name(path)
    if not name.startswith("saishiki.runtime"):
        pytest.importorskip("torch", reason="needs PyTorch: pip install 'saishiki[export]'")
    package = importlib.import_module(name)
    assert package.__all__ == sorted(package.__all__, key=_order)
    assert re_exports(name, path.read_text()) == set(package.__all__)
    assert [name for name in package.__all__ if not hasattr(package, name)] == []


@pytest.mark.parametrize("line", ["X = 1", "import numpy", "from os import path", "def f(): pass", "print('loaded')"])
def test_an_init_that_does_more_is_found(line):
    with pytest.raises(pytest.fail.Exception, match="does more than re-export"):
        re_exports("saishiki.models", f'"""Doc."""\nfrom saishiki.models.family import Family\n{line}')


def _order(name: str) -> tuple[int, str]:
    """Constants, classes, functions: as ruff sorts ``__all__`` (RUF022)."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def test_there_is_a_package_for_every_folder():
    folders = {path.parent for folder in FOLDERS for path in sources(folder)}
    assert {path.parent for path in PACKAGES} == folders


# What is loaded, and how long it takes


def test_import_loads_nothing_heavy():
    loaded = json.loads(printed("import json, sys, saishiki.runtime; print(json.dumps(sorted(sys.modules)))"))
    assert "saishiki.runtime.colorizer" in loaded
    tops = {name.partition(".")[0] for name in loaded}
    heavy = FOREIGN | {"onnxruntime", "tensorrt", "tensorrt_rtx", "cuda", "scipy", "cv2"}
    assert tops & heavy == set()
    others = {name for name in loaded if name.startswith("saishiki.") and not name.startswith("saishiki.runtime")}
    assert others == set()
    what_a_bundle_decides = {
        name for name in loaded if re.search("animediffusion|colorizediffusion|runtime.plan|samplers|tensorrt", name)
    }
    assert what_a_bundle_decides == set()


def test_import_without_torch_and_onnx():
    code = BLOCKED + "import saishiki.runtime, saishiki.runtime.cli; print(saishiki.runtime.Colorizer.__name__)"
    assert printed(code) == "Colorizer"
    assert "torch is blocked" in python("-c", BLOCKED + "import torch").stderr


def test_import_is_quick():
    """In units of what numpy alone takes, on the processor: a slow or busy machine stretches both."""
    code = (
        "from time import process_time; begin = process_time(); import numpy; alone = process_time() - begin\n"
        "import saishiki.runtime; print((process_time() - begin) / alone)"
    )
    ratios = []
    while len(ratios) < 8 and min(ratios, default=9) >= 3.5:
        ratios.append(float(printed(code)))
    assert min(ratios) < 3.5


def test_a_picture_without_torch_and_onnx(tiny_bundle, tmp_path):
    Image.fromarray(draw_sketch(45, 61)).save(tmp_path / "sketch.png")
    Image.fromarray(paint_reference(30, 30)).save(tmp_path / "reference.png")
    code = BLOCKED + (
        "from saishiki.runtime import Colorizer\n"
        "bundle, folder = sys.argv[1:]\n"
        "with Colorizer.load(bundle, backend='onnxruntime') as colorizer:\n"
        "    image = colorizer(folder + '/sketch.png', folder + '/reference.png', steps=2)\n"
        "assert not {'torch', 'onnx', 'triton', 'diffusers'} & sys.modules.keys()\n"
        "print(image.size)"
    )
    assert printed(code, str(tiny_bundle), str(tmp_path)) == "(61, 45)"


def test_verify_without_torch_and_onnx(tiny_bundle):
    code = (
        BLOCKED + "from saishiki.runtime.cli import main; main(['verify', *sys.argv[1:], '--backend', 'onnxruntime'])"
    )
    done = python("-c", code, str(tiny_bundle))
    assert (done.returncode, done.stdout.strip().splitlines()[-1]) == (0, "passed"), done.stderr
