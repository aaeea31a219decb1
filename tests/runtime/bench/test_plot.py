import importlib

import pytest
from PIL import Image

from saishiki.runtime.bench import plot
from saishiki.runtime.bench.plot import check_plot, figure_of, write_plot
from saishiki.runtime.errors import SaishikiError


@pytest.fixture
def report(made):
    rows = [
        made.row("step engine", (0.9,)),
        made.row("step host overhead", (0.05,)),
        made.row("around the steps", (0.5,)),
        made.row("batch", (16.0,), sizes=made.sizes | {"batch": 2}, images_per_s=125.0),
        made.row("callers", (20.0,), sizes=made.sizes | {"callers": 4}, images_per_s=150.0),
    ]
    return made.report(made.runner((10.0, 10.0, 13.0), rows=rows), made.runner((20.0,), backend="tensorrt"))


@pytest.fixture
def needs_matplotlib():
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'saishiki[bench]'")


@pytest.mark.usefixtures("needs_matplotlib")
def test_the_figure_shows_the_reports_numbers(report):
    latency, shares, throughput = figure_of(report).axes
    assert [bar.get_width() for bar in latency.patches] == [10.0, 20.0]
    assert [text.get_text() for text in latency.texts] == ["10 / 13", "20 / 20"]
    assert [label.get_text() for label in latency.get_yticklabels()] == ["onnxruntime:cpu:fp32", "tensorrt:cpu:fp32"]
    assert [bar.get_width() for bar in shares.patches] == pytest.approx([90.0, 5.0, 5.0])
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in throughput.lines}
    assert lines == {
        "onnxruntime:cpu:fp32, batch": ([1, 2], [100.0, 125.0]),
        "onnxruntime:cpu:fp32, callers": ([1, 4], [100.0, 150.0]),
    }


@pytest.mark.usefixtures("needs_matplotlib")
def test_svg_and_png_by_suffix(report, tmp_path):
    write_plot(tmp_path / "a.svg", report)
    write_plot(tmp_path / "a.PNG", report)
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")
    assert min(Image.open(tmp_path / "a.PNG").size) > 300
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.PNG", "a.svg"]


@pytest.mark.usefixtures("needs_matplotlib")
def test_a_quick_report_says_so_in_the_plot(made):
    figure = figure_of(made.report(quick=True))
    assert figure.get_suptitle().endswith("(quick run: not a measurement)")
    assert "10 steps on a processor, 2 cores" in figure.get_suptitle()


@pytest.mark.usefixtures("needs_matplotlib")
def test_nothing_is_left_of_a_plot_that_cannot_be_drawn(made, tmp_path, monkeypatch):
    monkeypatch.setattr(plot, "figure_of", lambda report: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_plot(tmp_path / "a.svg", made.report())
    assert list(tmp_path.iterdir()) == []


def test_targets_that_cannot_be_plotted(tmp_path):
    with pytest.raises(SaishikiError, match=r"has the suffix '\.pdf': use one of \.svg, \.png"):
        check_plot(tmp_path / "a.pdf")
    with pytest.raises(FileNotFoundError, match="none does not exist"):
        check_plot(tmp_path / "none" / "a.svg")


def test_a_missing_matplotlib_names_the_extra(tmp_path, monkeypatch):
    def absent(name, package=None):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(SaishikiError, match=r"a plot needs matplotlib .*run: pip install 'saishiki\[bench\]'"):
        check_plot(tmp_path / "a.svg")
