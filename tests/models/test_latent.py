"""Paths and planes of latents."""

import math

import pytest
import torch

from fastgen.models.latent import latent_map, latent_path, latent_plane


def test_linear_paths_go_in_equal_steps():
    a, b = torch.randn(2, 3, 4, 2, dtype=torch.float64)
    path = latent_path(a, b, 5)
    assert path.shape == (5, 3, 4, 2)
    torch.testing.assert_close(path.diff(dim=0), ((b - a) / 4).expand(4, -1, -1, -1))


def test_spherical_paths_turn_in_equal_angles_and_keep_the_length():
    a, b = torch.nn.functional.normalize(torch.randn(2, 5, 16, dtype=torch.float64), dim=2)
    path = latent_path(a, b, 7, "spherical")
    torch.testing.assert_close(path.norm(dim=2), torch.ones(7, 5, dtype=torch.float64))
    angles = (path[:-1] * path[1:]).sum(2).arccos()
    whole = (a * b).sum(1).arccos()
    torch.testing.assert_close(angles, (whole / 6).expand(6, -1))
    torch.testing.assert_close(path[0], a)
    torch.testing.assert_close(path[-1], b)


def test_spherical_paths_between_parallel_latents_are_lines():
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    b = torch.tensor([[3.0, 0.0], [-1.0, 0.0], [1.0, 1.0]])
    path = latent_path(a, b, 3, "spherical")
    assert path.isfinite().all()
    torch.testing.assert_close(path[1, :2], torch.tensor([[2.0, 0.0], [0.0, 0.0]]))


def test_paths_refuse():
    a = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="steps: expected an int of at least 2, got 1"):
        latent_path(a, a, 1)
    with pytest.raises(ValueError, match="how: expected"):
        latent_path(a, a, 3, "curved")
    with pytest.raises(ValueError, match="b: expected the shape of a"):
        latent_path(a, a[:1], 3)


def test_the_plane_is_that_of_the_widest_directions():
    scales = torch.tensor([0.1, 4.0, 0.2, 2.0, 0.1], dtype=torch.float64)
    codes = torch.randn(5000, 5, dtype=torch.float64) * scales + 1
    mean, axes = latent_plane(codes)
    torch.testing.assert_close(mean, codes.mean(0))
    torch.testing.assert_close(axes.norm(dim=1), torch.tensor([4.0, 2.0], dtype=torch.float64), rtol=0.05, atol=0)
    assert axes[0, 1].abs() > 3.8 and axes[1, 3].abs() > 1.9


def test_the_map_stands_at_the_quantiles():
    codes = torch.randn(4000, 2, dtype=torch.float64) * torch.tensor([2.0, 0.5]) + torch.tensor([1.0, -1.0])
    z = latent_map(codes, 9).view(9, 9, 2)
    # The middle is the mean, rows go down, columns to the right.
    torch.testing.assert_close(z[4, 4], codes.mean(0))
    assert (z[:, :, 0].diff(dim=1) > 0).all() and (z[:, :, 1].diff(dim=0) < 0).all()
    standard = (z[0, :, 0] - codes[:, 0].mean()) / codes[:, 0].std()
    share = 0.5 * (1 + torch.erf(standard / math.sqrt(2)))
    torch.testing.assert_close(share, (torch.arange(9, dtype=torch.float64) + 0.5) / 9)
    with pytest.raises(ValueError, match="codes: expected at least 3 of at least 2 numbers"):
        latent_map(codes[:, :1], 3)
    with pytest.raises(ValueError, match="resolution: expected a positive int, got 0"):
        latent_map(codes, 0)
