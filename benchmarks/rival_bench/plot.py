"""The report as one figure: the ablation as a waterfall, the rivals, and the layers under the roofline."""

import io
from pathlib import Path
from typing import Any

from rival_bench.entries import PUBLISHED
from saishiki.runtime.bench.files import write_whole

Row = dict[str, Any]
FORMATS = (".svg", ".png")
OURS, THEIRS, SLOWER, FAINT = "#2a6f97", "#8d99ae", "#c8553d", "#cccccc"


def check_plot(path: Path) -> None:
    """Raises ``ValueError`` for another suffix, ``ImportError`` where matplotlib is missing."""
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: expected a name that ends in {' or '.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"a plot needs matplotlib ({error}); install it with: pip install 'saishiki[bench]'"
        ) from error


def write_plot(result: Row, path: Path) -> None:
    """Draws a result of ``rivals.py`` and writes it whole or not at all."""
    check_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), layout="constrained")
    top, bottom = figure.subplots(2, 2, height_ratios=(1, 1.2))
    _draw_ablation(top[0], result["rows"])
    _draw_latencies(top[1], result["rows"])
    _draw_roofline(bottom[0], result["roofline"])
    _draw_farthest(bottom[1], result["roofline"])
    machine = result["environment"]
    restless = any(not times["warmup"]["stable"] for _, times in _timed(result["rows"], "image"))
    figure.suptitle(
        f"AnimeDiffusion {result['size_px']}x{result['size_px']}, {result['steps']} steps, batch 1: "
        f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}, "
        f"ONNX Runtime {machine['onnxruntime']}, commit {machine['commit']}"
        + ("\nnot all rows stood still before they were timed: the machine was not idle" if restless else ""),
        fontsize=10,
    )
    stream = io.BytesIO()
    figure.savefig(stream, format=path.suffix[1:], dpi=130)
    write_whole(path, stream.getvalue())


def _timed(rows: list[Row], subject: str) -> list[tuple[Row, Row]]:
    return [(row, row["times"][subject]) for row in rows if subject in row.get("times", {})]


def _draw_ablation(axes: Any, rows: list[Row]) -> None:
    """Each bar floats from where the row before ended; the last end is what is left."""
    chain = [(row, times) for row, times in _timed(rows, "image") if row["onto"] or row["name"] == PUBLISHED]
    before = {row["name"]: times["p50_ms"] for row, times in chain}
    for index, (row, times) in enumerate(chain):
        start = before.get(row["onto"], 0.0)
        colour = THEIRS if not row["onto"] else SLOWER if times["p50_ms"] > start else OURS
        axes.barh(index, times["p50_ms"] - start, left=start, color=colour)
        if index + 1 < len(chain):
            axes.plot([times["p50_ms"]] * 2, [index - 0.4, index + 1.4], color=FAINT, linewidth=0.8, zorder=0)
        ratio = f"  {times['p50_ms']:.4g} ms, {times.get('over_published', 1):.2f}x"
        axes.text(max(start, times["p50_ms"]), index, ratio, va="center", fontsize=8)
    _name_rows(axes, [row["name"] for row, _ in chain])
    axes.margins(x=0.25)
    missing = [row["name"] for row in rows if row["onto"] and "unavailable" in row]
    axes.set_title("whole image, one saving after the other (p50)", fontsize=10)
    axes.set_xlabel("ms" + (f"     not here: {', '.join(missing)}" if missing else ""), fontsize=8)


def _draw_latencies(axes: Any, rows: list[Row]) -> None:
    timed = sorted(_timed(rows, "image"), key=lambda pair: -pair[1]["p50_ms"])
    for index, (row, times) in enumerate(timed):
        axes.barh(index, times["p50_ms"], color=OURS if row["onto"] else THEIRS)
        axes.plot([times["p50_ms"], times["p99_ms"]], [index, index], color="black", linewidth=1)
    _name_rows(axes, [row["name"] for row, _ in timed])
    axes.set_title("whole image: p50 (bar) to p99 (line)", fontsize=10)
    axes.set_xlabel("ms", fontsize=8)


def _name_rows(axes: Any, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def _draw_roofline(axes: Any, roofline: Row) -> None:
    """Achieved GFLOP/s against intensity, matrix layers apart from the rest, under the measured ceilings."""
    copy, product = roofline["ceilings"]["copy_gb_per_s"], roofline["ceilings"]["matrix_product_gflop_per_s"]
    rows = [row for row in roofline["layer_rows"] if row.get("us") and row["gflop"]]
    for label, matrix, colour in (("convolutions, matrix products", True, OURS), ("other layers", False, THEIRS)):
        chosen = [row for row in rows if (row["op"] in ("Conv", "Gemm", "MatMul", "Attention")) == matrix]
        intensity = [1e3 * row["gflop"] / row["mb"] for row in chosen]
        axes.scatter(intensity, [1e6 * row["gflop"] / row["us"] for row in chosen], s=14, color=colour, label=label)
    ends = [0.1, product / copy, max(1e3, 10 * product / copy)]
    axes.plot(ends, [min(product, copy * x) for x in ends], color="black", linewidth=1)
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("FLOP per byte", fontsize=8)
    axes.set_ylabel("GFLOP/s", fontsize=8)
    axes.set_title(f"denoiser's layers, measured ceilings: {copy:g} GB/s, {product:g} GFLOP/s", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="lower right")


def _draw_farthest(axes: Any, roofline: Row) -> None:
    by_name = {row["layer"]: row for row in roofline["layer_rows"]}
    rows = [by_name[name] for name in roofline.get("farthest", ())]
    axes.barh(range(len(rows)), [row["us"] / 1e3 for row in rows], color=FAINT, label="taken")
    axes.barh(range(len(rows)), [row["floor_us"] / 1e3 for row in rows], color=OURS, label="floor")
    _name_rows(axes, [f"{row['op']} {'x'.join(map(str, row['shape'][1:]))}" for row in rows])
    axes.set_xlabel("ms", fontsize=8)
    axes.set_title("layers farthest from their floor", fontsize=10)
    if rows:
        axes.legend(fontsize=8, frameon=False, loc="lower right")
