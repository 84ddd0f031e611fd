"""Switches between the native library and the PyTorch reference."""

import jaxtyping
import pytest

from nsr import _ext


@pytest.fixture
def backend():
    """`with backend("native"): ...`"""
    return _ext.use_backend


@pytest.fixture
def unchecked_signatures():
    """As outside the tests: wrong arguments reach the checks of the functions themselves."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(autouse=True, scope="session")
def native_library():
    """The tests of the ops are about the native library: without it they fail, with its own message."""
    _ext.load()
