"""What all tests share: thread policy, shape checking, and where the large data are."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from nsr.utils.threads import set_thread_policy

set_thread_policy()  # before anything imports torch
sys.path.insert(0, str(Path(__file__).parent))  # for tests/support, whatever pytest's import mode

# Shapes in signatures are claims; in the tests they are checked at every call. NSR_TYPECHECK=0 turns that off.
CHECKED = ["nsr.ops", "nsr.geometry", "nsr.encoders", "nsr.models"]
if os.environ.get("NSR_TYPECHECK", "1") != "0":
    from jaxtyping import install_import_hook

    install_import_hook(CHECKED, "beartype.beartype")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scenes: $NSR_DATA, else ../shared/data beside the checkout. Skips where there is none."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("NSR_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"needs real scenes, and there is no {folder}; set NSR_DATA to their folder")
    return folder
