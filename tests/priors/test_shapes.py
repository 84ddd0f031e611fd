"""Prior surfaces: distances beyond their ball, gradients, placements, averages, and samples of meshes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from support.prior_balls import Ball, similarity
from torch import nn

from nsr.models.implicit_network import ImplicitNetwork, ImplicitNetworkConfig
from nsr.priors.averaging import average_weights, mean_distance
from nsr.priors.placement import candidate_placements, moved, similarity_scale, small_similarity
from nsr.priors.sdf_samples import align_rigidly, common_frame, sample_sdf
from nsr.priors.shape import ModelShape
from nsr.utils.errors import DataError


def test_beyond_its_ball_a_distance_goes_on_with_slope_one():
    ball = Ball()
    points = torch.tensor([[0.7, 0, 0], [2.0, 0, 0], [0, -5.0, 0], [0.0, 0, 0]])
    assert ball.sdf(points, ball.no_code()).tolist() == pytest.approx([0.2, 1.5, 4.5, -0.5], abs=1e-5)


def test_a_models_gradient_moves_its_points():
    config = ImplicitNetworkConfig(dims=(16, 16), skip_in=(), feature_size=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ImplicitNetwork(config)
    shape = ModelShape(network, 1.2, np.eye(4))
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(1)) - 0.5
    points.requires_grad_()
    (found,) = torch.autograd.grad(shape.sdf(points, shape.no_code()).sum(), points)
    again = points.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad(network.sdf(again).sum(), again)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(shape.sdf(points.detach(), shape.no_code()), network.sdf(points.detach()))


def test_small_similarities_are_the_ones_that_their_numbers_say():
    step = torch.tensor([0.0, 0.0, 0.3, 0.0, 0.0, 0.0, math.log(2.0)], dtype=torch.float64)
    np.testing.assert_allclose(small_similarity(step), similarity(2.0, (0, 0, 1), 0.3), atol=1e-12)
    np.testing.assert_allclose(small_similarity(torch.tensor([0.0, 0, 0, 1, 2, 3, 0]))[:3, 3], [1, 2, 3], atol=1e-6)
    assert float(similarity_scale(small_similarity(step))) == pytest.approx(2.0)
    x = torch.rand(5, 3, dtype=torch.float64)
    np.testing.assert_allclose(moved(x, small_similarity(step)), x @ small_similarity(step)[:3, :3].T)


def test_a_linearised_shape_has_the_derivatives_of_each_point():
    family = Ball(code_size=1)
    points = torch.rand(6, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    code = torch.tensor([-0.5])
    line = family.linearised(points, code)
    expected = torch.autograd.functional.jacobian(lambda c: family.sdf(points, c), code)
    torch.testing.assert_close(line.by_code, expected)
    by_point = torch.autograd.functional.jacobian(lambda x: family.sdf(x, code).sum(), points)
    torch.testing.assert_close(line.by_point, by_point)
    assert Ball().linearised(points, Ball().no_code()).by_code.shape == (6, 0)


def test_candidates_say_what_they_take_to_be_true():
    world_from_prior, world_from_scene = similarity(200.0, offset=(0, 50, 0)), similarity(100.0, offset=(0, 0, 30))
    begin = candidate_placements(world_from_prior, world_from_scene)
    x = np.array([0.1, 0.2, 0.3, 1.0])
    np.testing.assert_allclose(world_from_prior @ begin["world"] @ x, world_from_scene @ x)
    np.testing.assert_allclose(begin["centre"] @ x, [0.05, 0.1, 0.15, 1])
    np.testing.assert_allclose(begin["sphere"] @ x, x)


# ---------------------------------------------------------------------------------------------------------- averages


def networks(count: int, **changes) -> list[nn.Module]:
    config = replace(ImplicitNetworkConfig(dims=(60, 60), skip_in=(1,), feature_size=3), **changes)
    made = []
    with torch.random.fork_rng():
        for seed in range(count):
            torch.manual_seed(seed)
            network = ImplicitNetwork(config)
            for parameter in network.parameters():
                with torch.no_grad():
                    parameter.add_(0.3 * torch.randn(parameter.shape))
            made.append(network)
    return made


@pytest.mark.parametrize("weight_norm", [True, False])
def test_averages_are_of_the_weights_themselves(weight_norm):
    models = networks(4, weight_norm=weight_norm)
    into = models.pop()
    average_weights(models, into)
    for i in range(into.depth):
        torch.testing.assert_close(into.layer(i).weight, torch.stack([m.layer(i).weight for m in models]).mean(0))
        torch.testing.assert_close(into.layer(i).bias, torch.stack([m.layer(i).bias for m in models]).mean(0))
    if weight_norm:  # which the means of lengths and of directions are not
        first = into.layer(0).parametrizations.weight
        lengths = torch.stack([m.layer(0).parametrizations.weight.original0 for m in models]).mean(0)
        assert not torch.allclose(first.original0, lengths, rtol=1e-2)
    # It still trains: the split weights are parameters.
    into.sdf(torch.rand(5, 3)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in into.lin0.parameters())


def test_the_average_of_one_model_is_the_model():
    one, into = networks(2)
    average_weights([one], into)
    points = torch.rand(20, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(into.sdf(points), one.sdf(points))


def test_models_that_are_not_alike_are_not_averaged():
    one, other = networks(1)[0], networks(1, dims=(60, 62))[0]
    with pytest.raises(ValueError, match="not alike"):
        average_weights([one, other], networks(1)[0])
    with pytest.raises(ValueError, match="got none"):
        average_weights([], one)


def test_the_mean_surface_of_two_balls_lies_between_them():
    """In the common frame one ball is of radius 0.5 and the other of radius 1: its own frame is half as large."""
    half = similarity(0.5)
    mean = mean_distance([Ball(), Ball()], [np.eye(4), half])
    x = torch.tensor([[0.75, 0.0, 0.0], [0.0, 0.0, 0.9]])
    assert mean(x).tolist() == pytest.approx([0.0, 0.15], abs=1e-5)
    with pytest.raises(ValueError, match="as many places"):
        mean_distance([Ball()], [])


# ----------------------------------------------------------------------------------------------------------- samples


def test_the_common_frame_holds_all_surfaces():
    meshes = [trimesh.creation.icosphere(radius=r).apply_translation(t) for r, t in ((10.0, (0, 0, 0)), (5.0, (20, 0, 4)))]
    frame = common_frame(meshes)
    for mesh in meshes:
        inside = np.linalg.norm((mesh.vertices - frame[:3, 3]) / frame[0, 0], axis=-1)
        assert inside.max() < 0.95


def test_samples_are_signed_distances_of_the_prior_frame():
    mesh = trimesh.creation.icosphere(subdivisions=4, radius=30.0).apply_translation((5.0, 0, 0))
    frame = similarity(60.0, offset=(5.0, 0, 0))
    samples = sample_sdf(mesh, frame, 4000, np.random.default_rng(0))
    expected = samples.points.norm(dim=-1) - 0.5
    assert (samples.sdf - expected).abs().max() < 2e-3  # the icosphere's facets
    assert 0.3 < (samples.sdf < 0).float().mean() < 0.7
    assert (samples.sdf.abs() < 0.04).float().mean() > 0.5
    again = sample_sdf(mesh, frame, 4000, np.random.default_rng(0))
    assert torch.equal(samples.points, again.points)


def test_open_meshes_with_surfaces_inside_are_signed_like_closed_ones():
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.6)
    cut = ball.submesh([(ball.triangles[:, :, 2] > -0.35).all(axis=1)], append=True)  # an open neck
    inner = trimesh.creation.icosphere(subdivisions=2, radius=0.2)  # an eyeball
    samples = sample_sdf(trimesh.util.concatenate([cut, inner]), np.eye(4), 4000, np.random.default_rng(0))
    away = samples.points[:, 2] > 0.0  # from the opening, where it is a matter of taste
    radius = samples.points[away].norm(dim=-1)
    clear = ((radius - 0.6).abs() > 0.01) & ((radius - 0.2).abs() > 0.01)
    inside = samples.sdf[away][clear] < 0
    assert torch.equal(inside, radius[clear] < 0.6)


def test_a_mesh_turned_inside_out_is_refused():
    mesh = trimesh.creation.icosphere(radius=0.5)
    mesh.invert()
    with pytest.raises(DataError, match="face inwards"):
        sample_sdf(mesh, np.eye(4), 500, np.random.default_rng(0))
    with pytest.raises(DataError, match="no triangles"):
        sample_sdf(trimesh.Trimesh(np.zeros((3, 3)), np.zeros((0, 3), int)), np.eye(4), 10, np.random.default_rng(0))


def test_alignment_undoes_a_rigid_motion_and_leaves_the_size():
    reference = trimesh.creation.box((1.0, 2.0, 3.0)).subdivide().subdivide()
    moved = reference.copy().apply_transform(similarity(1.0, (1, 1, 0), math.radians(12), (4.0, -1.0, 2.0)))
    motion = align_rigidly(moved, reference)
    back = moved.vertices @ motion[:3, :3].T + motion[:3, 3]
    assert np.abs(back - reference.vertices).max() < 0.06
    assert np.linalg.det(motion[:3, :3]) == pytest.approx(1.0)
