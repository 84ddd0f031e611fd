"""Adam over touched entries against torch.optim.Adam, the reference, and its own promise to leave entries alone."""

import pytest
import torch
from torch.library import opcheck

from nsr.ops.adam import adam_touched_

RATES = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-15}


def randn(shape, seed, dtype):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("name", ["native", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1,), (7, 2), (40_001,)])
def test_equals_torch_adam_where_all_is_touched(backend, name, dtype, shape):
    expected = torch.nn.Parameter(randn(shape, 0, dtype))
    optimiser = torch.optim.Adam([expected], lr=RATES["lr"], betas=(0.9, 0.99), eps=RATES["eps"])
    value, mean, square = expected.detach().clone(), torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
    for step in range(1, 8):
        expected.grad = randn(shape, step, dtype)
        assert (expected.grad != 0).all()
        with backend(name):
            adam_touched_(value, expected.grad.clone(), mean, square, step=step, **RATES)
        optimiser.step()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(value, expected.detach(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["native", "reference"])
def test_untouched_entries_keep_value_and_moments(backend, name):
    n = 1003
    value, mean, square = (randn(n, s, torch.float32) for s in (0, 1, 2))
    square = square.abs()
    touched = torch.rand(n, generator=torch.Generator().manual_seed(3)) < 0.1
    grad = randn(n, 4, torch.float32) * touched  # contains -0.0, which is no gradient either
    before = value.clone(), mean.clone(), square.clone()
    kept = grad.clone()
    with backend(name):
        adam_touched_(value, grad, mean, square, step=5, **RATES)
    for old, new in zip(before, (value, mean, square), strict=True):
        assert torch.equal(old[~touched], new[~touched])
        assert (old[touched] != new[touched]).all()
    assert torch.equal(grad, kept)


def test_native_equals_reference_and_any_number_of_threads(backend):
    n, threads = 100_000, torch.get_num_threads()
    results = []
    try:
        for name, count in (("reference", 1), ("native", 1), ("native", 2)):
            torch.set_num_threads(count)
            value, mean, square = randn(n, 0, torch.float32), torch.zeros(n), torch.zeros(n)
            for step in range(1, 4):
                grad = randn(n, step, torch.float32) * (torch.arange(n) % 3 == step % 2)
                with backend(name):
                    adam_touched_(value, grad, mean, square, step=step, **RATES)
            results.append((value, mean, square))
    finally:
        torch.set_num_threads(threads)
    for reference, one, two in zip(*results, strict=True):
        assert torch.equal(one, two)
        torch.testing.assert_close(one, reference, rtol=1e-5, atol=1e-6)


def test_nan_gradient_shows():
    value, grad = torch.ones(20), torch.zeros(20)
    grad[3] = float("nan")
    adam_touched_(value, grad, torch.zeros(20), torch.zeros(20), step=1, **RATES)
    assert value.isnan().nonzero().tolist() == [[3]]


@pytest.mark.parametrize("name", ["native", "reference"])
def test_numbers_in_tensors(backend, name):
    """As numbers; and a step that is to be skipped changes nothing."""
    grad, found = randn(999, 9, torch.float32), []
    in_tensors = {"step": torch.tensor(7.0, dtype=torch.float64), "lr": torch.tensor(1e-2, dtype=torch.float64)}
    for numbers in ({"step": 7, "lr": 1e-2}, in_tensors | {"skip": torch.zeros(())}, in_tensors | {"skip": torch.ones(())}):
        value, mean, square = (randn(999, s, torch.float32).abs() for s in range(3))
        with backend(name):
            adam_touched_(value, grad, mean, square, **(RATES | numbers))
        found.append((value, mean, square))
    for as_numbers, as_tensors, skipped, s in zip(*found, range(3), strict=True):
        assert torch.equal(as_numbers, as_tensors)
        assert torch.equal(skipped, randn(999, s, torch.float32).abs())


@pytest.mark.usefixtures("unchecked_signatures")
def test_arguments_that_do_not_fit():
    a, b = torch.zeros(4), torch.zeros(5)
    with pytest.raises(ValueError, match="exp_avg is"):
        adam_touched_(a, a.clone(), b, a.clone(), step=1, **RATES)
    with pytest.raises(ValueError, match="step 0"):
        adam_touched_(a, a.clone(), a.clone(), a.clone(), step=0, **RATES)
    with pytest.raises(RuntimeError, match="skip of no dimensions"):
        adam_touched_(a, a.clone(), a.clone(), a.clone(), step=1, **RATES, skip=torch.zeros(1))


def test_opcheck():
    tensors = [randn(40, s, torch.float32) for s in range(3)]
    step, lr = torch.tensor(1.0, dtype=torch.float64), torch.tensor(1e-2, dtype=torch.float64)
    for skip in (None, torch.tensor(0.0)):
        opcheck(torch.ops.nsr.adam_touched_, (*tensors, tensors[0].abs(), step, lr, 0.9, 0.99, 1e-15, skip))
