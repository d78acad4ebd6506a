"""What every estimator promises."""

import math

import numpy as np
import pytest
import torch

from fastgen.density import DensityEstimator
from tests.density.estimator_cases import ESTIMATORS, NORMALIZED, mass, two_hills


@pytest.fixture(params=ESTIMATORS)
def model(request):
    return ESTIMATORS[request.param]()


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("name", NORMALIZED)
def test_density_integrates_to_one(name, d):
    model = ESTIMATORS[name]().fit(two_hills(80, d))
    assert mass(model, d) == pytest.approx(1, abs=3e-3)


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("name", NORMALIZED)
def test_samples_fall_where_the_density_is(name, d):
    model = ESTIMATORS[name]().fit(two_hills(80, d))
    n = 10000
    samples = model.sample(n, random_state=0)
    assert samples.shape == (n, d)
    share = (np.abs(samples - 1) < 1).all(1).mean()
    noise = math.sqrt(share * (1 - share) / n)
    assert 0.05 < share < 0.95
    assert mass(model, d, 0.0, 2.0) == pytest.approx(share, abs=4 * noise + 2e-3)


def test_same_kind_out(model):
    data = two_hills(200, 2)
    expected = model.fit(data).score_samples(data[:50])
    assert isinstance(expected, np.ndarray) and expected.shape == (50,) and expected.dtype == np.float64
    assert model.score_samples(data[:50].astype(np.float32)).dtype == np.float32
    tensor = torch.from_numpy(data)
    scores = model.fit(tensor).score_samples(tensor[:50])
    assert isinstance(scores, torch.Tensor) and scores.dtype == torch.float64
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-9)
    for dtype in (torch.float32, torch.bfloat16):
        assert model.fit(tensor.to(dtype)).score_samples(tensor[:5].to(dtype)).dtype == dtype
        # The fitted points' dtype decides how it computes, the query's what comes out.
        assert model.score_samples(tensor[:5]).dtype == torch.float64
    # Not a contiguous array, not of this machine's byte order.
    np.testing.assert_allclose(model.fit(data[::-1][::-1].astype(">f8")).score_samples(data[:50]), expected, rtol=1e-9)


@pytest.mark.parametrize("name", NORMALIZED)
def test_samples_are_of_the_kind_of_the_data(name):
    model, data = ESTIMATORS[name](), two_hills(100, 2)
    one = model.fit(data).sample(3, random_state=1)
    assert isinstance(one, np.ndarray) and one.shape == (3, 2) and one.dtype == np.float64
    np.testing.assert_array_equal(one, model.sample(3, random_state=1))
    assert (one != model.sample(3, random_state=2)).all()
    tensor = model.fit(torch.from_numpy(data).float()).sample(3, torch.Generator().manual_seed(1))
    assert isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32
    assert model.sample().shape == (1, 2)
    for wrong in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="n: expected a positive int"):
            model.sample(wrong)
    for wrong in ("0", 1.0, True):
        with pytest.raises(TypeError, match="random_state: expected an int, a generator"):
            model.sample(1, random_state=wrong)


def test_a_vector_stands_for_a_column(model):
    data = two_hills(200, 1)
    expected = model.fit(data).score_samples(data)
    np.testing.assert_array_equal(model.fit(data[:, 0]).score_samples(data[:, 0]), expected)


def test_integers_are_numbers(model):
    data = np.round(two_hills(300, 2) * 20).astype(np.int64)
    expected = model.fit(data.astype(np.float64)).score_samples(data.astype(np.float64))
    scores = model.fit(data).score_samples(data)
    assert scores.dtype == np.float64
    np.testing.assert_array_equal(scores, expected)
    tensor = torch.from_numpy(data)
    scores = model.fit(tensor).score_samples(tensor)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, model.fit(tensor.float()).score_samples(tensor.float()), rtol=0, atol=0)


def test_the_data_are_not_kept_by_reference(model):
    data = torch.from_numpy(two_hills(100, 2))
    expected = model.fit(data).score_samples(data)
    query = data.clone()
    data.zero_()
    torch.testing.assert_close(model.score_samples(query), expected)


def test_saved_and_loaded(model, tmp_path):
    data = two_hills(150, 2).astype(np.float32)
    file = tmp_path / "model.safetensors"
    model.fit(data).save(file)
    model.save(str(file))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    for kind in (type(model), DensityEstimator):
        again = kind.load(file)
        assert type(again) is type(model) and repr(again) == repr(model)
        # Not to the bit: a library's sums of products depend on where the numbers lie in memory.
        np.testing.assert_allclose(again.score_samples(data), model.score_samples(data), rtol=1e-6, atol=1e-6)
        assert again.score_samples(data).dtype == np.float32


@pytest.mark.parametrize("name", NORMALIZED)
def test_loaded_samples_are_the_same(name, tmp_path):
    model = ESTIMATORS[name]().fit(two_hills(150, 2))
    model.save(tmp_path / "model")
    again = type(model).load(tmp_path / "model")
    np.testing.assert_array_equal(again.sample(5, random_state=3), model.sample(5, random_state=3))


def test_rows_that_are_no_numbers(model):
    data = two_hills(200, 2)
    model.fit(data)
    query = data[:5].copy()
    query[1, 0] = math.nan
    query[2, 1] = math.inf
    query[3] = math.nan, -math.inf
    scores = model.score_samples(query)
    assert np.isnan(scores[[1, 3]]).all() and scores[2] == -math.inf
    np.testing.assert_allclose(scores[[0, 4]], model.score_samples(data[[0, 4]]), rtol=1e-12)
    data[[3, 7], 0] = math.nan
    data[9, 1] = math.inf
    with pytest.raises(ValueError, match="X: expected finite numbers, 3 of 200 rows hold NaN or infinity"):
        model.fit(data)
    # Half fitted would be worse than not fitted.
    with pytest.raises(ValueError, match="is not fitted yet"):
        model.score_samples(query)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_refuses_units_whose_squares_overflow(model, scale):
    data = two_hills(50, 2).astype(np.float32)
    data[:, 1] *= scale
    with pytest.raises(ValueError, match=r"X: column 1 spans .*e.30, whose square float32 cannot hold"):
        model.fit(data)


def test_far_away_is_unlikely_not_an_error(model):
    data = two_hills(200, 2)
    near, far, further = model.fit(data).score_samples(np.array([[1.0, 1.0], [1e3, -1e3], [1e30, 1e30]]))
    assert near > -10 and near > far >= further and not math.isnan(further)


def test_no_queries(model):
    data = two_hills(100, 2)
    scores = model.fit(data).score_samples(data[:0])
    assert isinstance(scores, np.ndarray) and scores.shape == (0,)
    assert model.score_samples(torch.zeros(0, 2)).shape == (0,)


def test_refuses_data(model):
    data = two_hills(100, 2)
    for call in (model.score_samples, lambda x: model.sample(), lambda x: model.save("nowhere")):
        with pytest.raises(ValueError, match=f"{type(model).__name__} is not fitted yet: call fit"):
            call(data)
    for wrong in (np.zeros((0, 2)), torch.zeros(0, 2)):
        with pytest.raises(ValueError, match=r"X: expected at least \d+ points?, got \(0, 2\)"):
            model.fit(wrong)
    for wrong in (data[None], np.array(1.0), data[:, :0]):
        with pytest.raises(ValueError, match=r"X: expected \[n, d\] or \[n\], got \("):
            model.fit(wrong)
    for wrong in (None, "data", 3.0, {0: data}):
        with pytest.raises(TypeError, match="X: expected a tensor, a NumPy array, a DataFrame or lists"):
            model.fit(wrong)
    for wrong in (data > 0, data + 1j, data.astype(str), torch.zeros(3, 2, dtype=torch.bool)):
        with pytest.raises(TypeError, match="X: expected a floating or integer dtype, got"):
            model.fit(wrong)
    model.fit(data)
    for wrong in (data[:, :1], data[:, 0], np.zeros((4, 3))):
        with pytest.raises(ValueError, match=r"X: expected \[n, 2\], got \("):
            model.score_samples(wrong)
    with pytest.raises(ValueError, match="X: expected a tensor on cpu, where the estimator is, got meta"):
        model.score_samples(torch.zeros(4, 2, device="meta"))
    model.fit(data[:, 0])
    with pytest.raises(ValueError, match=r"X: expected \[n, 1\] or \[n\], got \(100, 2\)"):
        model.score_samples(data)


# The networks draw otherwise in float64.
@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "neural"])
@pytest.mark.parametrize("offset", [1e4, 1e5])
def test_float32_far_from_zero(name, offset):
    """What is computed of float32 points is as of the same numbers in float64."""
    points, queries = (torch.from_numpy(two_hills(300, 2, seed) + offset).float() for seed in (0, 1))
    found = ESTIMATORS[name]().fit(points).score_samples(queries)
    expected = ESTIMATORS[name]().fit(points.double()).score_samples(queries.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
