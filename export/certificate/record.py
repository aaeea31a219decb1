"""Runs the reference on all that a certificate compares."""

from collections.abc import Collection, Mapping, MutableMapping
from dataclasses import dataclass
from itertools import chain, product

from saishiki.export.certificate.modules import RoundingErrors, record_module
from saishiki.export.certificate.runs import Records, Runs
from saishiki.export.certificate.sizes import corners_of, run_sizes
from saishiki.export.graphs import precisions_of
from saishiki.export.progress import Observer, Silent
from saishiki.models.family import Family, LoadedModel
from saishiki.runtime.manifest import ImageParity, ParityRow, Precision
from saishiki.runtime.signature import Array, Profile


@dataclass(frozen=True)
class Expectation:
    """The reference's results as tensors to store, and the rows that are still to be measured."""

    vectors: Mapping[str, Array]
    rows: tuple[ParityRow, ...]
    images: tuple[ImageParity, ...]


def record_reference(
    model: LoadedModel,
    family: Family,
    profiles: tuple[Profile, ...],
    kept_fp32: tuple[str, ...],
    *,
    asked: Collection[Precision],
    thorough: bool,
    vectors: MutableMapping[str, Array] | None = None,
    observer: Observer | None = None,
) -> Expectation:
    """Runs the reference on probes and keeps what it computes.

    Args:
        kept_fp32: the modules and submodules that fp16 graphs compute in fp32.
        asked: the precisions that graphs are written in.
        thorough: record runs of all steps at any size, and what rounding does there; else pictures above 128x128 get
            two steps, and both are done at a reduced size that only the ONNX graphs can run.
        vectors: where the tensors go, which may be more than the memory holds; None takes a dictionary.
    """
    vectors, observer = {} if vectors is None else vectors, observer or Silent()
    all_sizes = run_sizes(profiles)
    rows, total = [], len(model.modules) + len(model.runs) * len(all_sizes)
    for done, name in enumerate(model.modules):
        observer.part(name, done, total)
        errors = RoundingErrors(model, name, kept_fp32, thorough=thorough)
        precisions = precisions_of(name, asked, kept_fp32)
        for corner in corners_of(model.signatures[name], profiles):
            rows += record_module(model, name, corner, errors, vectors, precisions, budget=family.fp32_budget)
    records = Records(model, family, kept_fp32, vectors)
    runs = Runs(records, thorough=thorough)
    for done, (name, sizes) in enumerate(product(model.runs, all_sizes), start=len(model.modules)):
        observer.part(f"recording {name}", done, total)
        runs.add(name, sizes)
    images = tuple(chain.from_iterable(runs.rows.values()))
    return Expectation(vectors, tuple(rows), tuple(image for image in images if image.precision in asked))
