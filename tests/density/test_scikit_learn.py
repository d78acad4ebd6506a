"""scikit-learn's habits, with every estimator of fastgen.density."""

import copy
import inspect
import pickle
import sys

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.mixture import GaussianMixture as SklearnMixture
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KernelDensity as SklearnKernelDensity
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted

import fastgen.density
from fastgen.density import (
    DensityEstimator,
    Gaussian,
    GaussianMixture,
    InverseTransform,
    KernelDensity,
    NeuralCDF,
    outliers,
)
from tests.density.estimator_cases import two_hills

# What makes them quick, or says how each of them draws.
SMALL = {"hidden_features": 8, "steps": 20, "batch_size": 64, "random_state": 0}
EVERY = [
    value
    for value in vars(fastgen.density).values()
    if inspect.isclass(value) and issubclass(value, DensityEstimator) and value is not DensityEstimator
]
every = pytest.mark.parametrize("cls", EVERY, ids=lambda c: c.__name__)
pytestmark = pytest.mark.filterwarnings("ignore:.*did not (learn|converge)")


def make(cls, **kwargs):
    known = inspect.signature(cls).parameters
    return cls(**{name: value for name, value in SMALL.items() if name in known} | kwargs)


def another(cls):
    """An argument of a class, and a value of it that is not the default."""
    name, parameter = next(iter(inspect.signature(cls).parameters.items()))
    known = {"bandwidth": 0.5, "bin_width": 0.6, "order": 3, "k": 7}
    return name, known[name] if name in known else parameter.default + 1


@every
class TestConventions:
    def test_clone_and_parameters(self, cls):
        name, value = another(cls)
        model = make(cls, **{name: value}).fit(two_hills(60, 2))
        again = clone(model)
        assert type(again) is cls and repr(again) == repr(model) and again.get_params() == model.get_params()
        assert again.get_params()[name] == value and not vars(again).keys() - model.get_params().keys()
        assert again.set_params(**make(cls).get_params()) is again and repr(again) == repr(make(cls))
        with pytest.raises(ValueError, match="has no colour, expected some of"):
            again.set_params(colour=1)
        assert repr(again) == repr(make(cls))

    def test_arguments_that_were_set_are_checked(self, cls):
        model = make(cls)
        for name, value in model.get_params().items():
            wrong = clone(model).set_params(**{name: ("nonsense", value)})
            with pytest.raises((ValueError, TypeError), match=name):
                wrong.fit(two_hills(60, 2))

    def test_numbers_of_numpy(self, cls):
        data = two_hills(60, 2)
        for name, default in make(cls, **dict([another(cls)])).get_params().items():
            if isinstance(default, bool) or not isinstance(default, int | float):
                continue
            for kind in (np.int64, np.int32) if isinstance(default, int) else (np.float32, np.float64):
                # Also after clone, which wants them back as they were given.
                model = clone(make(cls, **{name: kind(default)})).fit(data)
                expected = make(cls, **{name: type(default)(kind(default))}).fit(data)
                np.testing.assert_allclose(model.score_samples(data), expected.score_samples(data), rtol=1e-6)

    def test_grid_search_and_cross_validation(self, cls):
        data, (name, value) = two_hills(90, 2), another(cls)
        first = value if name == "order" else getattr(make(cls), name)
        search = GridSearchCV(make(cls), {name: [first, value]}, cv=3).fit(data)
        assert search.best_params_[name] in (first, value)
        assert search.score(data) == search.best_estimator_.score(data)
        scores = cross_val_score(make(cls), data, cv=3)
        folds = np.array_split(np.arange(90), 3)
        for fold, score in zip(folds, scores, strict=True):
            train = np.delete(data, fold, 0)
            assert make(cls).fit(train).score(data[fold]) == pytest.approx(score, nan_ok=True)

    def test_pipeline(self, cls):
        data = two_hills(60, 2)
        pipeline = make_pipeline(StandardScaler(), make(cls)).fit(data)
        scaled = StandardScaler().fit_transform(data)
        model = make(cls).fit(scaled)
        np.testing.assert_allclose(pipeline.score_samples(data), model.score_samples(scaled), rtol=1e-9)
        assert pipeline.score(data) == pytest.approx(model.score(scaled))
        check_is_fitted(pipeline)
        with pytest.raises(NotFittedError):
            check_is_fitted(Pipeline([("model", make(cls))])[-1])

    def test_y_is_ignored(self, cls):
        data = two_hills(60, 2)
        model, y = make(cls).fit(data, None), np.zeros(60)
        expected = make(cls).fit(data).score(data)
        assert make(cls).fit(data, y=y).score(data, y) == model.score(data) == expected
        mean = cls is GaussianMixture
        total = model.score_samples(data).sum()
        assert expected == pytest.approx(total / len(data) if mean else total)

    def test_not_fitted(self, cls, monkeypatch):
        data = two_hills(60, 2)
        for call in (lambda m: m.score_samples(data), lambda m: m.score(data), lambda m: m.sample()):
            with pytest.raises(NotFittedError, match=f"{cls.__name__} is not fitted yet"):
                call(make(cls))
        # Where nobody has imported scikit-learn.
        monkeypatch.delitem(sys.modules, "sklearn.exceptions")
        with pytest.raises(ValueError, match="is not fitted yet") as caught:
            make(cls).score(data)
        assert caught.type is ValueError

    def test_lists_and_data_frames(self, cls, tmp_path):
        pandas = pytest.importorskip("pandas")
        data = two_hills(60, 2)
        expected = make(cls).fit(data).score_samples(data)
        frame = pandas.DataFrame(data, columns=["height", "weight"])
        for given in (data.tolist(), [*data], tuple(map(tuple, data)), frame):
            model = make(cls).fit(given)
            found = model.score_samples(given)
            assert isinstance(found, np.ndarray) and found.dtype == np.float64
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(model.score_samples(data), expected)
            assert model.score(given) == make(cls).fit(data).score(data)
        for call in (model.score_samples, model.score, lambda x: outliers(model, x)):
            with pytest.raises(ValueError, match="expected the columns height, weight, got weight, height"):
                call(frame[["weight", "height"]])
        model.save(tmp_path / "model")
        loaded = cls.load(tmp_path / "model")
        loaded.save(tmp_path / "model")
        assert cls.load(tmp_path / "model").feature_names_in_ == ["height", "weight"]
        assert not hasattr(model.fit(data), "feature_names_in_")
        np.testing.assert_array_equal(
            make(cls).fit(frame["height"]).score_samples(data[:, :1]),
            make(cls).fit(data[:, 0].tolist()).score_samples(data[:, 0]),
        )
        mixed = frame.astype({"height": object, "weight": "Float64"})
        for objects in (data.astype(object), mixed):
            np.testing.assert_array_equal(model.score_samples(objects), model.score_samples(data))
        for wrong, said in ((csr_matrix(data), "sparse"), (data.astype(str).astype(object), "floating or integer")):
            with pytest.raises(TypeError, match=said):
                model.fit(wrong)
        with pytest.raises(ValueError, match="rows of one length"):
            model.fit([[1.0, 2.0], [3.0]])
        with pytest.raises(TypeError, match="floating or integer dtype, got"):
            model.fit(pandas.DataFrame({"a": ["x", "y"]}))

    def test_samples(self, cls):
        model = make(cls).fit(two_hills(60, 2))
        if cls.__name__ == "KNNDensity":
            return
        seeded = model.sample(3, random_state=0)
        for same in (
            model.sample(np.int64(3), np.int64(0)),
            model.sample(n_samples=3, random_state=0),
            model.sample(n_samples=np.int32(3), random_state=torch.Generator().manual_seed(0)),
        ):
            np.testing.assert_array_equal(same, seeded)
        for kind in (np.random.RandomState, np.random.default_rng):
            state = kind(0)
            first, second = model.sample(2, state), model.sample(2, state)
            np.testing.assert_array_equal(first, model.sample(2, kind(0)))
            assert (first != second).any()
        with pytest.raises(ValueError, match="another name of n"):
            model.sample(2, n_samples=2)
        with pytest.raises(ValueError, match="n: expected a positive int"):
            model.sample(n_samples=0)

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_copies(self, cls, copied):
        data = two_hills(60, 2)
        model = make(cls).fit(data)
        np.testing.assert_array_equal(copied(model).score_samples(data), model.score_samples(data))

    def test_wherever_it_is_called_from(self, cls):
        """Under autocast and in inference mode."""
        data = torch.from_numpy(two_hills(60, 2)).float()

        def everything():
            model = make(cls).fit(data)
            drawn = () if cls.__name__ == "KNNDensity" else (model.sample(3, 0),)
            return model.score_samples(data), torch.tensor(model.score(data)), *drawn

        expected = everything()
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(everything(), expected, rtol=0, atol=0)
        with torch.inference_mode():
            torch.testing.assert_close(everything(), expected)
        half = data.bfloat16()
        model = make(cls).fit(half)
        # The sum of numbers that have not been rounded.
        assert model.score(half) == pytest.approx(model.score(half.float()), rel=1e-6)


# Checks that are not met on purpose.
NOT_MET = {
    "check_do_not_raise_errors_in_init_or_set_params": "arguments out of range raise at once, where they are written",
    "check_fit1d": "a vector [N] stands for [N, 1]",
}


@pytest.mark.filterwarnings("ignore")
@every
def test_check_estimator(cls):
    results = check_estimator(make(cls), expected_failed_checks=NOT_MET, on_skip=None)
    assert {r["check_name"] for r in results if r["status"] == "xfail"} == NOT_MET.keys()
    assert sum(r["status"] == "passed" for r in results) > 30


def test_every_estimator_is_here():
    assert len(EVERY) >= 7 and NeuralCDF in EVERY


def test_scores_are_scikit_learns():
    data, new = two_hills(80, 2), two_hills(30, 2, seed=1)
    theirs = SklearnKernelDensity(bandwidth=0.4, rtol=0, atol=0).fit(data)
    assert KernelDensity(0.4).fit(data).score(new) == pytest.approx(theirs.score(new))
    theirs = SklearnMixture().fit(data)
    ours = GaussianMixture().fit(data)
    assert ours.score(new) == pytest.approx(theirs.score(new)) and ours.bic(new) == pytest.approx(theirs.bic(new))
    with pytest.raises(ValueError, match="at least 1 point"):
        ours.score(new[:0])


def test_rules_beside_scikit_learns():
    """Theirs are in units of the data, ours follow its spread: the same for points of unit variance."""
    data, new = two_hills(80, 2), two_hills(30, 2, seed=1)
    for rule, bandwidth in (("scott", 80 ** (-1 / 6)), ("silverman", (80 * (2 + 2) / 4) ** (-1 / 6))):
        theirs = SklearnKernelDensity(bandwidth=rule, rtol=0, atol=0).fit(data).score_samples(new)
        np.testing.assert_allclose(KernelDensity(bandwidth).fit(data).score_samples(new), theirs, rtol=1e-9)
        scale = data.std(0, ddof=1)
        theirs = SklearnKernelDensity(bandwidth=rule, rtol=0, atol=0).fit(data / scale).score_samples(new / scale)
        found = KernelDensity(rule).fit(data).score_samples(new)
        np.testing.assert_allclose(found, theirs - np.log(scale).sum(), rtol=1e-9)


def test_random_states_as_arguments():
    data = two_hills(60, 2)
    one, other = (GaussianMixture(2, random_state=np.random.RandomState(s)).fit(data).means_ for s in (0, 0))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_inverse_transform_draws_alike():
    model = InverseTransform(lambda x: x.clamp(0, 1), support=(0, 1))
    expected = model.sample(5, 0)
    torch.testing.assert_close(model.sample(n_samples=np.int64(5), random_state=np.int64(0)), expected)
    assert model.sample(2, np.random.RandomState(0)).shape == (2, 1)


def test_outliers_of_lists():
    data = two_hills(50, 2)
    model = Gaussian().fit(data)
    np.testing.assert_array_equal(outliers(model, data.tolist(), np.float32(0.1)), outliers(model, data, 0.1))
