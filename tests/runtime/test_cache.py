from pathlib import Path

import pytest

from saishiki.runtime.cache import cache_folder


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("SAISHIKI_CACHE", "~/own")
    assert cache_folder("engines") == Path("/home/someone/own/engines")
    monkeypatch.delenv("SAISHIKI_CACHE")
    assert cache_folder("engines") == Path("/xdg/saishiki/engines")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("engines") == Path("/home/someone/.cache/saishiki/engines")
