"""Switches between the native library and the PyTorch reference."""

import contextlib
import os

import jaxtyping
import pytest

from nsr import _ext


@contextlib.contextmanager
def use_backend(name: str):
    before = os.environ.get("NSR_BACKEND")
    os.environ["NSR_BACKEND"] = name
    try:
        yield
    finally:
        os.environ.pop("NSR_BACKEND")
        if before is not None:
            os.environ["NSR_BACKEND"] = before


@pytest.fixture
def backend():
    """`with backend("native"): ...`"""
    return use_backend


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
