"""Engines from ONNX graphs: targets, keys, the build in a child process, and the cache."""

from saishiki.export.engines.build import build_engine
from saishiki.export.engines.cache import CachedEngine, cached_engine, copy_engine, prune
from saishiki.export.engines.header import EngineHeader, read_header
from saishiki.export.engines.key import engine_key, hash_of_key, profiles_text
from saishiki.export.engines.request import BuildReport, EngineBuildError
from saishiki.export.engines.target import CUDA, Builder, Target, installed_builder, parse_targets

__all__ = [
    "CUDA",
    "BuildReport",
    "Builder",
    "CachedEngine",
    "EngineBuildError",
    "EngineHeader",
    "Target",
    "build_engine",
    "cached_engine",
    "copy_engine",
    "engine_key",
    "hash_of_key",
    "installed_builder",
    "parse_targets",
    "profiles_text",
    "prune",
    "read_header",
]
