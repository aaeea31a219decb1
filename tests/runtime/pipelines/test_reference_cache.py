"""What a reference cache keeps, and what it lets go."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from saishiki.runtime.pipelines.reference_cache import Node, ReferenceCache, digest_of

KB = 256  # fp32 values


def node(key, values=KB, counted=None):
    def compute():
        if counted is not None:
            counted.append(key)
        return {"x": np.full(values, hash(key) % 7, np.float32)}

    return Node((key,), compute)


def test_a_node_is_computed_once():
    cache, counted = ReferenceCache(), []
    first, second = cache(node("a", counted=counted)), cache(node("a", counted=counted))
    assert counted == ["a"]
    assert first["x"] is second["x"]
    assert cache.bytes == 1024


def test_kept_tensors_cannot_be_changed():
    mine = np.zeros(4, np.float32)
    kept = ReferenceCache()(Node(("a",), lambda: {"x": mine[:2]}))
    with pytest.raises(ValueError, match="read-only"):
        kept["x"][0] = 1
    mine[0] = 1  # a view of somebody else's memory was copied
    assert kept["x"][0] == 0


def test_the_least_used_go_first():
    cache, counted = ReferenceCache(max_bytes=3 * 1024), []
    for key in ("a", "b", "c", "a", "d"):
        cache(node(key, counted=counted))
    assert cache.bytes == 3 * 1024
    counted.clear()
    for key in ("a", "c", "d", "b"):
        cache(node(key, counted=counted))
    assert counted == ["b"]


def test_what_is_larger_than_the_cache_is_not_kept():
    cache, counted = ReferenceCache(max_bytes=2 * 1024), []
    cache(node("a", counted=counted))
    for _ in range(2):
        cache(node("large", 3 * KB, counted))
    assert counted == ["a", "large", "large"]
    assert cache.bytes == 1024
    cache.clear()
    assert cache.bytes == 0


def test_a_lower_limit_acts_at_once():
    cache, counted = ReferenceCache(), []
    for key in "abc":
        cache(node(key, counted=counted))
    cache.limit(1024)
    assert (cache.bytes, list(cache._kept)) == (1024, [("c",)])
    cache.limit(0)
    for _ in range(2):
        cache(node("c", counted=counted))
    assert counted == ["a", "b", "c", "c", "c"]


def test_threads_share_a_cache():
    cache = ReferenceCache(max_bytes=5 * 1024)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda i: float(cache(node(i % 9))["x"][0]), range(400)))
    assert results == [float(hash(i % 9) % 7) for i in range(400)]
    assert cache.bytes == sum(tensors["x"].nbytes for tensors in cache._kept.values()) <= 5 * 1024


def test_a_failure_is_not_kept():
    cache, tries = ReferenceCache(), []

    def compute():
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("no")
        return {"x": np.zeros(1)}

    with pytest.raises(ValueError, match="no"):
        cache(Node(("a",), compute))
    assert cache(Node(("a",), compute))["x"].shape == (1,)


def test_digest_of_tells_content_shape_and_dtype():
    zeros = np.zeros((2, 3), np.uint8)
    others = [zeros.T, np.zeros(6, np.uint8), np.zeros((2, 3), np.int8), zeros + np.eye(2, 3, dtype=np.uint8)]
    assert digest_of(zeros) == digest_of(np.zeros((4, 3), np.uint8)[::2])
    assert len({digest_of(array) for array in (zeros, *others)}) == 5
