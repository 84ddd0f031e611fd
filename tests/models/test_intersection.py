"""IDR's eq. 3 against the closed form: a sphere whose radius and centre, and a camera that, move."""

import pytest
import torch

from nsr.models.intersection import differentiable_intersection


def sphere_hit(origin, direction, centre, radius, side):
    """Distance of the first (side -1) or second (1) intersection with a sphere, differentiable in everything."""
    offset = origin - centre
    a, b = (direction**2).sum(-1), (offset * direction).sum(-1)
    return (-b + side * (b**2 - a * ((offset**2).sum(-1) - radius**2)).sqrt()) / a


@pytest.mark.parametrize(("start", "side"), [(-3.0, -1), (-0.2, 1)], ids=["from outside", "from inside"])
def test_value_and_first_derivatives_equal_the_exact_intersection(start, side):
    torch.manual_seed(0)
    origin = torch.tensor([[0.2, -0.1, start]], dtype=torch.float64).expand(6, 3).clone()
    target = 0.5 * (torch.rand(6, 3, dtype=torch.float64) - 0.5)
    direction = torch.nn.functional.normalize(target - origin, dim=-1)
    centre = torch.tensor([0.1, 0.05, -0.02], dtype=torch.float64, requires_grad=True)
    radius = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    origin.requires_grad_()
    direction.requires_grad_()
    parameters = [centre, radius, origin, direction]

    exact = origin + sphere_hit(origin, direction, centre, radius, side)[:, None] * direction
    distance = sphere_hit(origin, direction, centre, radius, side).detach()
    points = origin + distance[:, None] * direction
    sdf = (points - centre).norm(dim=-1) - radius
    gradient = (points - centre) / (points - centre).norm(dim=-1, keepdim=True)
    ours = differentiable_intersection(points, direction, sdf, gradient, min_cosine=1e-6)

    assert torch.allclose(ours, exact, atol=1e-12)
    weights = torch.randn_like(exact)
    for got, expected in zip(
        torch.autograd.grad((ours * weights).sum(), parameters),
        torch.autograd.grad((exact * weights).sum(), parameters),
        strict=True,
    ):
        assert torch.allclose(got, expected, atol=1e-10)


def test_grazing_rays_have_bounded_derivative():
    points = torch.zeros(1, 3)
    direction = torch.tensor([[1.0, 0.0, 0.0]])
    gradient = torch.tensor([[1e-6, 1.0, 0.0]])  # the ray touches, and from behind
    sdf = torch.zeros(1, requires_grad=True)
    moved = differentiable_intersection(points, direction, sdf, gradient, min_cosine=0.1)
    (grad,) = torch.autograd.grad(moved[0, 0], sdf)
    assert abs(grad.item() - 10.0) < 1e-5
