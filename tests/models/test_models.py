import saishiki.models
import saishiki.models.animediffusion


def test_all_is_sorted_and_complete():
    for module in (saishiki.models, saishiki.models.animediffusion):
        assert sorted(module.__all__, key=_isort_key) == module.__all__
        assert [name for name in module.__all__ if not hasattr(module, name)] == []


def _isort_key(name: str) -> tuple[bool, bool, str]:
    """Constants, classes, functions; by name in each."""
    return not name.isupper(), name[0].islower(), name
