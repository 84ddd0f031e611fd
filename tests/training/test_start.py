"""How much of the start a budget has time for."""

import pytest
import torch

from nsr.training.start import FULL, HURRIED, share_of_start


@pytest.mark.parametrize(
    ("budget", "device", "share"),
    [
        (0.0, "cpu", 1.0),  # a run that ends by steps
        (FULL, "cpu", 1.0),
        (60.0, "cpu", 1.0),
        (FULL / 2, "cpu", 0.5),
        (1e-3, "cpu", HURRIED),
        (5.0, "cuda", 1.0),
    ],
)
def test_short_budgets_hurry_the_start_on_a_cpu(budget, device, share):
    assert share_of_start(budget, torch.device(device)) == pytest.approx(share)
