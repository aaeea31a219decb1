from saishiki.export import engines


def test_engines_names_what_it_exports() -> None:
    assert engines.__all__ == sorted(engines.__all__)
    assert all(hasattr(engines, name) for name in engines.__all__)
