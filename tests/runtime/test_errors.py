import pytest

from saishiki import runtime
from saishiki.runtime import BackendError, BundleError, ImageError, SaishikiError
from saishiki.runtime import errors as errors_module


@pytest.mark.parametrize("kind", [BundleError, BackendError, ImageError])
def test_every_error_has_the_one_root(kind):
    with pytest.raises(SaishikiError, match="what was given"):
        raise kind("what was given")
    assert kind.__name__ in errors_module.__doc__
    assert kind.__name__ in runtime.__all__


def test_only_pictures_are_also_wrong_values():
    assert issubclass(ImageError, ValueError)
    assert not issubclass(BundleError, ValueError)
    assert not issubclass(BackendError, ValueError)


def test_no_more_than_four_classes():
    classes = [item for item in vars(errors_module).values() if isinstance(item, type)]
    assert set(classes) == {SaishikiError, BundleError, BackendError, ImageError}


def test_checkpoint_errors_have_the_same_root():
    pytest.importorskip("torch", reason="needs PyTorch: pip install 'saishiki[export]'")
    from saishiki.models import CheckpointError

    assert issubclass(CheckpointError, SaishikiError)
