"""Games against the closed forms of their updates."""

import math

import numpy as np
import pytest
import torch

from fastgen.cli import main
from fastgen.cli.reports.dynamics_picture import REACH, clipped
from fastgen.gan.dynamics import METHODS, dirac_gan, play, quadratic, spectral_radius, update_matrix

STEPS = (0.01, 0.1, 0.35)


@pytest.mark.parametrize("h", STEPS)
@pytest.mark.parametrize(("a", "p"), [(1.0, 0.0), (1.0, 1.0), (10.0, 1.0), (3.0, 0.2)])
def test_radii_of_the_saddle(a, p, h):
    """With p = q the field's matrix has the eigenvalues mu = 2p +- ia."""
    game, mu = quadratic(a, p, p), complex(2 * p, a)
    assert spectral_radius(game, "simultaneous", h) == pytest.approx(abs(1 - h * mu), abs=1e-9)
    assert spectral_radius(game, "extragradient", h) == pytest.approx(abs(1 - h * mu + (h * mu) ** 2), abs=1e-9)
    # Optimistic: lambda^2 - (1 - 2 h mu) lambda - h mu = 0.
    root = ((1 - 2 * h * mu) ** 2 + 4 * h * mu) ** 0.5
    expected = max(abs((1 - 2 * h * mu + sign * root) / 2) for sign in (1, -1))
    assert spectral_radius(game, "optimistic", h) == pytest.approx(expected, abs=1e-9)
    # Alternating: [[1 - 2 h p, -h a], [h a (1 - 2 h p), 1 - 2 h p - h^2 a^2]].
    c = 1 - 2 * h * p
    trace, determinant = 2 * c - (h * a) ** 2, c**2
    root = complex(trace**2 - 4 * determinant) ** 0.5
    expected = max(abs((trace + sign * root) / 2) for sign in (1, -1))
    # A double root has only half of the digits.
    assert spectral_radius(game, "alternating", h) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("h", STEPS)
def test_the_bilinear_game(h):
    game = quadratic(2.0)
    assert spectral_radius(game, "simultaneous", h) == pytest.approx(math.sqrt(1 + 4 * h**2))
    assert spectral_radius(game, "alternating", h) == pytest.approx(1)
    assert spectral_radius(game, "extragradient", h) == pytest.approx(math.sqrt(1 - 4 * h**2 + 16 * h**4))
    assert spectral_radius(game, "extragradient", h) < 1


def test_optimism_wins_the_bilinear_game():
    assert spectral_radius(quadratic(1.0), "optimistic", 0.1) < 1
    # Past 1 / sqrt(3) it does not: the step of which the radius is 1.
    assert spectral_radius(quadratic(1.0), "optimistic", 1 / math.sqrt(3)) == pytest.approx(1)
    assert spectral_radius(quadratic(1.0), "optimistic", 0.7) > 1


@pytest.mark.parametrize("method", METHODS)
def test_trajectories_of_quadratic_games_are_powers_of_the_matrix(method):
    game, start = quadratic(1.5, 0.3, 0.4), (0.7, -0.2)
    path = play(game, method, start, 0.2, 25)
    assert path.shape == (26, 2) and path.dtype == torch.float64
    matrix = update_matrix(game, method, 0.2)
    state = torch.tensor([*start, *start], dtype=torch.float64)
    for z in path:
        torch.testing.assert_close(z, state[:2])
        state = matrix @ state


def test_simultaneous_steps_run_away_and_alternating_ones_circle():
    game = quadratic(1.0)
    away = play(game, "simultaneous", (1, 0), 0.1, 300).norm(dim=1)
    torch.testing.assert_close(away, 1.01 ** (torch.arange(301, dtype=torch.float64) / 2))
    circle = play(game, "alternating", (1, 0), 0.1, 10_000).norm(dim=1)
    assert circle.min() > 0.9 and circle.max() < 1.1


def test_dirac_gan_turns_for_ever_and_r1_ends_it():
    """Close to 0 it is the bilinear game with a = -1/2, and R1 adds r1 y^2 / 2 (Mescheder et al. 2018, lemma 2.2)."""
    h, r1 = 0.2, 0.5
    assert spectral_radius(dirac_gan(), "simultaneous", h) == pytest.approx(math.sqrt(1 + h**2 / 4))
    assert spectral_radius(dirac_gan(), "alternating", h) == pytest.approx(1)
    root = complex(r1**2 / 4 - 1 / 4) ** 0.5
    expected = max(abs(1 - h * (r1 / 2 + sign * root)) for sign in (1, -1))
    assert spectral_radius(dirac_gan(r1), "simultaneous", h) == pytest.approx(expected)
    assert expected < 1
    ends = play(dirac_gan(1.0), "alternating", (0.7, 0.7), 0.2, 500)[-1]
    assert ends.abs().max() < 1e-6


def test_refuses():
    game = quadratic()
    with pytest.raises(ValueError, match=r"method: expected one of simultaneous, .*, got 'newton'"):
        play(game, "newton", (1, 1), 0.1, 3)
    with pytest.raises(ValueError, match="step: expected a positive number, got 0"):
        spectral_radius(game, "optimistic", 0)
    with pytest.raises(ValueError, match="steps: expected at least 0"):
        play(game, "optimistic", (1, 1), 0.1, -1)


def test_command_draws_and_tells(tmp_path, capsys):
    out = tmp_path / "dynamics.png"
    assert main(["dynamics", "--step", "0.1", "-a", "1", "--steps", "30", "--out", str(out)]) == 0
    output = capsys.readouterr().out
    assert out.read_bytes()[:4] == b"\x89PNG"
    assert f"{math.sqrt(1.01):.6f}" in output and "Dirac-GAN with R1" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "x.jpg"], "--out is x.jpg, expected a name ending in one of"),
        (["--out", "no/where/x.png"], "is not a folder to write to"),
        (["--step", "0"], "step: expected a positive number"),
        (["--step", "nan"], "expected finite numbers"),
        (["--steps", "-1"], "steps: expected at least 0"),
    ],
)
def test_command_refuses(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(["dynamics", *options]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and message in errors
    assert not list(tmp_path.iterdir())


class TestClipped:
    def test_a_path_within_stays_as_it_is(self):
        path = play(quadratic(1.0), "alternating", (0.7, 0.7), 0.1, 50).numpy()
        assert np.array_equal(clipped(path), path)

    def test_a_step_out_of_the_picture_ends_at_its_edge(self):
        path = np.array([[0.5, 0.5], [0.5, 6.5], [-9.0, 100.0], [-1e300, 1e308], [np.inf, np.nan]])
        assert np.allclose(clipped(path), [[0.5, 0.5], [0.5, REACH], [np.nan, np.nan]], equal_nan=True)

    def test_one_that_comes_back_is_drawn_again(self):
        path = np.array([[0.0, 0.0], [8.0, 4.0], [4.0, -4.0], [1.0, -1.0]])
        expected = [[0, 0], [REACH, REACH / 2], [np.nan, np.nan], [REACH, -REACH], [1, -1]]
        assert np.allclose(clipped(path), expected, equal_nan=True)

    def test_beyond_all_numbers(self):
        assert np.allclose(clipped(np.array([[0.1, 0.2], [np.inf, 0.0]]))[0], [0.1, 0.2])

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("step", [0.5, 10.0, 1e3, 1e200])
    def test_nothing_beyond_the_edges_and_no_line_to_the_origin(self, method, step):
        for game in (quadratic(10.0), quadratic(10.0, 1.0, 1.0), dirac_gan(), dirac_gan(1.0)):
            path = play(game, method, (0.7, 0.7), step, 60).numpy()
            shown = clipped(path)
            assert np.nanmax(np.abs(shown)) <= REACH + 1e-9
            # Every point drawn is of the path, or lies on an edge.
            for point in shown[np.isfinite(shown).all(1)]:
                assert (path == point).all(1).any() or np.isclose(np.abs(point).max(), REACH)
