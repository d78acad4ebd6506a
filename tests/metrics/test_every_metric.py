"""What people do with metrics, done with every metric of the package."""

import copy
import inspect
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.wrappers import MetricTracker, Running

from fastgen.metrics import (
    ClipMaximumMeanDiscrepancy,
    DensityCoverage,
    FrechetInceptionDistance,
    KernelInceptionDistance,
    MultiscaleStructuralSimilarity,
    PrecisionRecall,
    StructuralSimilarity,
    feature_extractor,
)
from fastgen.metrics.feature_metric import TwoSampleMetric
from fastgen.metrics.scores import extract
from tests.metrics.metric_cases import EVERY, SMALL, fed, is_random, make, numbers, updates

every = pytest.mark.parametrize("cls", EVERY, ids=lambda c: c.__name__)
# A `reset` of these may leave the real set.
KEEPING = [c for c in EVERY if issubclass(c, TwoSampleMetric) or c is FrechetInceptionDistance]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """How well its widths fit is shown elsewhere."""
    monkeypatch.setattr("fastgen.metrics.feature_likelihood._STEPS", 3)


def value(metric):
    return numbers(metric.compute())


def plain(cls, given=None, **kwargs):
    """The numbers after updates and nothing else."""
    return value(fed(make(cls, **kwargs), updates(cls) if given is None else given))


def close(found, expected, rel=1e-9):
    assert found == pytest.approx(expected, rel=rel, abs=1e-12)


def in_order(cls):
    """Arguments by which the value does not depend on what was drawn before."""
    return {"full": False} if "full" in inspect.signature(cls).parameters else {}


def test_all_are_found():
    assert len(EVERY) >= 15 and FrechetInceptionDistance in EVERY and StructuralSimilarity in EVERY


@every
class TestMemory:
    def test_of_the_caller_may_be_used_again(self, cls):
        metric = make(cls)
        for one in updates(cls):
            lent = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in one.items()}
            metric.update(**lent)
            for tensor in lent.values():
                if isinstance(tensor, torch.Tensor):
                    tensor.fill_(7)
        assert value(metric) == plain(cls)

    def test_of_optional_arguments_too(self, cls):
        names = inspect.signature(cls.update).parameters
        if not {"keys", "labels"} & names.keys():
            return
        metric, other = make(cls), make(cls)
        for one in updates(cls):
            n = len(one["imgs"])
            given = {"keys": torch.arange(n)} if "keys" in names else {}
            if "labels" in names and one["real"]:
                given = {"labels": torch.arange(n) % 6}
            lent = {name: tensor.clone() for name, tensor in given.items()}
            metric.update(**one, **lent)
            for tensor in lent.values():
                tensor.fill_(0)
            other.update(**one, **given)
        assert value(metric) == value(other)

    def test_of_an_extractor_may_be_used_again(self, cls):
        """As that of a captured graph is."""
        if "feature" not in inspect.signature(cls).parameters:
            return

        class Fixed(nn.Module):
            def forward(self, x):
                self.answer = getattr(self, "answer", torch.zeros(40, 6))
                self.answer.fill_(7)[: len(x)] = x
                return self.answer[: len(x)]

        assert plain(cls, feature=Fixed()) == plain(cls)

    def test_of_the_value_is_the_callers(self, cls):
        metric = fed(make(cls), updates(cls))
        found = metric.compute()
        expected = numbers(found)
        for tensor in found.values() if isinstance(found, dict) else found if isinstance(found, tuple) else [found]:
            tensor.fill_(7)
        if isinstance(found, dict):
            found.clear()
        assert value(metric) == expected


@every
class TestForward:
    def test_mixed_with_update(self, cls):
        """Where a batch alone has no value, `forward` says so and the metric stays as it was."""
        metric, expected = make(cls), make(cls)
        for i, one in enumerate(updates(cls)):
            expected.update(**one)
            if i % 2:
                try:
                    metric(**one)
                except ValueError:
                    metric.update(**one)
            else:
                metric.update(**one)
        assert metric.update_count == expected.update_count
        assert value(metric) == value(expected)

    def test_gives_the_value_of_the_batch(self, cls):
        if cls in KEEPING or "part" in inspect.signature(cls.update).parameters or cls.__name__ == "ModeCoverage":
            pytest.skip("one update is not enough for a value")
        metric = make(cls, **in_order(cls))
        for one in updates(cls, (9, 12)):
            assert numbers(metric(**one)) == plain(cls, [one], **in_order(cls))
        assert value(metric) == plain(cls, updates(cls, (9, 12)), **in_order(cls))

    def test_bad_batches_change_nothing(self, cls):
        metric = fed(make(cls), updates(cls))
        expected = value(metric)
        for one in updates(cls, (9,)):
            bad = {k: v[None] if isinstance(v, torch.Tensor) else v for k, v in one.items()}
            for call in (metric.update, metric.forward):
                with pytest.raises((ValueError, TypeError, RuntimeError, IndexError)):
                    call(**bad)
                assert metric.update_count == len(updates(cls)) and value(metric) == expected
        more = fed(metric, updates(cls, (7,)))
        assert value(more) == plain(cls, updates(cls) + updates(cls, (7,)))

    def test_a_failing_compute_loses_nothing(self, cls, monkeypatch):
        metric = fed(make(cls), updates(cls))
        with monkeypatch.context() as patch:
            patch.setattr(metric, "compute", lambda: 1 / 0)
            for one in updates(cls, (9,)):
                with pytest.raises(ZeroDivisionError):
                    metric(**one)
        assert value(metric) == plain(cls)


@pytest.mark.parametrize("cls", KEEPING, ids=lambda c: c.__name__)
class TestKeptRealFeatures:
    def test_forward_leaves_them(self, cls):
        given = updates(cls, (20, 12))
        real, fakes = [one for one in given if one["real"]], [one for one in given if not one["real"]]
        metric = fed(make(cls, reset_real_features=False), real)
        for fake in fakes:
            assert numbers(metric(**fake)) == plain(cls, [*real, fake])
        assert value(metric) == plain(cls, [*real, *fakes])
        metric.reset()
        assert value(fed(metric, fakes)) == plain(cls, [*real, *fakes])

    def test_a_batch_that_fails_leaves_them(self, cls):
        metric = fed(make(cls, reset_real_features=False), updates(cls))
        for call in (metric.update, metric.forward):
            for real in (True, False):
                with pytest.raises(ValueError, match="NaN"):
                    call(torch.full((9, 6), torch.nan), real=real)
        assert value(metric) == plain(cls)

    def test_members_of_a_group_that_keep_and_that_do_not(self, cls):
        given = updates(cls)
        both = MetricCollection({"keeps": make(cls, reset_real_features=False), "does_not": make(cls)})
        fed(both, given)
        both.reset()
        for one in given:
            if not one["real"]:
                both["keeps"].update(**one)
        assert value(both["keeps"]) == plain(cls)
        with pytest.raises(ValueError, match="at least"):
            both["does_not"].compute()


def test_moments_take_the_place_of_rows_in_forward_too(monkeypatch):
    monkeypatch.setattr("fastgen.metrics.frechet_inception_distance._CHUNK", 10)
    given = updates(FrechetInceptionDistance, (9, 12, 20))
    expected = plain(FrechetInceptionDistance, given)
    real, fakes = [one for one in given if one["real"]], [one for one in given if not one["real"]]
    metric = fed(FrechetInceptionDistance("given", reset_real_features=False), real)
    for fake in fakes:
        close(numbers(metric(**fake)), plain(FrechetInceptionDistance, [*real, fake]))
    assert len(metric.real_rows) == 0 and len(metric.fake_moments)
    close(value(metric), expected)


def test_the_reference_is_a_copy():
    real, fake = updates(FrechetInceptionDistance, (20,))
    one = FrechetInceptionDistance("given")
    one.update(**real)
    reference = one.statistics(real=True)
    metric = FrechetInceptionDistance("given", reference=reference)
    reference.mu.fill_(7), reference.sigma.fill_(7)
    expected = plain(FrechetInceptionDistance, [real, fake])
    close(numbers(metric(**fake)), expected)
    close(value(metric), expected)


def test_a_loader_may_use_its_batches_again():
    buffer, sizes = torch.empty(8, 3), range(5)

    def batches():
        for i in sizes:
            yield buffer.fill_(i)

    found = extract(feature_extractor("given"), batches())
    assert found.features[:, 0].tolist() == [i for i in sizes for _ in range(8)]
    assert len(found.keys.unique()) == len(sizes)


@pytest.mark.parametrize("wrap", [MetricTracker, lambda m: Running(m, 9), lambda m: m + 0, lambda m: m])
def test_within_wrappers_of_torchmetrics(wrap):
    given, metric = updates(StructuralSimilarity), wrap(StructuralSimilarity())
    if isinstance(metric, MetricTracker):
        metric.increment()
    for i, one in enumerate(given):
        metric(**one) if i % 2 else metric.update(**one)
    close(value(metric), plain(StructuralSimilarity))


def test_the_reported_case():
    """`forward` had added the kept real features to themselves, and FID of a reused buffer was zero."""
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(400, 8, generator=generator)
    fakes = [0.3 + torch.randn(400, 8, generator=generator) for _ in range(2)]
    metric = PrecisionRecall("given", reset_real_features=False)
    metric.update(real, real=True)
    found = [metric(fake, real=False) for fake in fakes]
    assert len(metric.rows("real_features")) == 400
    for fake, one in zip(fakes, found, strict=True):
        fresh = PrecisionRecall("given")
        fresh.update(real, real=True)
        fresh.update(fake, real=False)
        assert one == fresh.compute() and one["precision"] > 0.7


@every
class TestPrecision:
    def test_autocast_changes_nothing(self, cls):
        with torch.autocast("cpu", torch.bfloat16):
            found = plain(cls)
        assert found == plain(cls)

    def test_autocast_does_not_reach_an_extractor(self, cls):
        if "feature" not in inspect.signature(cls).parameters:
            return
        network = nn.Linear(6, 5)
        expected = plain(cls, feature=network)
        with torch.autocast("cpu", torch.bfloat16):
            assert plain(cls, feature=network) == expected
        if cls is not ClipMaximumMeanDiscrepancy:
            return
        # What a generator under autocast gives comes in half precision.
        half = updates(cls, dtype=torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            found = plain(cls, half, feature=network)
        assert found == plain(cls, [{**one, "imgs": one["imgs"].float()} for one in half], feature=network)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_widened(self, cls, dtype):
        half = updates(cls, dtype=dtype)
        wide = [{k: v.float() if isinstance(v, torch.Tensor) else v for k, v in one.items()} for one in half]
        assert plain(cls, half) == plain(cls, wide)

    @pytest.mark.parametrize("offset", [1e4, 1e5])
    def test_far_from_zero(self, cls, offset):
        """Float32 features are what they are; what is computed of them is as of the same numbers in float64."""
        if "feature" not in inspect.signature(cls).parameters:
            return
        given = [{k: v + offset if isinstance(v, torch.Tensor) else v for k, v in one.items()} for one in updates(cls)]
        # One width, for a choice of 25 may flip.
        chosen = {"bandwidth": 0.5} if "bandwidth" in inspect.signature(cls).parameters else {}
        close(plain(cls, given, **chosen), plain(cls, given, feature=Wide(), **chosen), rel=1e-4)

    def test_states_keep_their_precision(self, cls):
        """`half` of a module above, and the wider types that torchmetrics' `set_dtype` may ask for."""
        given = updates(cls)
        for change in (
            lambda m: nn.ModuleList([m]).half(),
            lambda m: nn.ModuleList([m]).to(torch.bfloat16),
            lambda m: m.half(),
            lambda m: m.set_dtype(torch.float16),
            lambda m: m.to("cpu", torch.float16),
            lambda m: m.set_dtype(torch.float64),
        ):
            metric = fed(make(cls), given[:3])
            change(metric)
            close(value(fed(metric, given[3:])), plain(cls), rel=1e-5)
        metric.set_dtype(torch.float16)
        assert value(metric).keys() == plain(cls).keys()


@every
class TestLife:
    def test_compute_twice_update_after_and_reset(self, cls):
        given = updates(cls)
        metric = fed(make(cls), given[:-3])
        if len(given) > 6:
            assert value(metric) == value(metric) == plain(cls, given[:-3])
        assert value(fed(metric, given[-3:])) == plain(cls)
        metric.reset()
        assert metric.update_count == 0
        assert value(fed(metric, given)) == plain(cls)

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: m.clone()])
    def test_copies_in_the_middle_go_on_alone(self, cls, copied):
        given = updates(cls)
        metric = fed(make(cls), given[:3])
        other = copied(metric)
        assert value(fed(other, given[3:])) == plain(cls)
        assert value(fed(metric, given[3:])) == plain(cls)

    def test_states_in_a_state_dict(self, cls, tmp_path):
        given = updates(cls)
        metric = fed(make(cls, **in_order(cls)), given[:3])
        assert not metric.state_dict()
        metric.persistent(True)
        torch.save(nn.ModuleDict({"m": metric}).state_dict(), tmp_path / "states.pt")
        states = torch.load(tmp_path / "states.pt", weights_only=True)
        other = fed(make(cls, **in_order(cls)), given)
        other.compute()
        nn.ModuleDict({"m": other}).load_state_dict(states)
        fed(other, given[3:])
        close(value(other), plain(cls, **in_order(cls)))
        # The loaded dict is the caller's.
        again = make(cls, **in_order(cls))
        nn.ModuleDict({"m": again}).load_state_dict(states)
        for state in states.values():
            for tensor in state if isinstance(state, list) else [state]:
                tensor.zero_()
        close(value(fed(again, given[3:])), plain(cls, **in_order(cls)))

    def test_merged_states(self, cls):
        given, kwargs = updates(cls), in_order(cls)
        expected = plain(cls, **kwargs)
        for states in (lambda m: m, lambda m: {k: v for k, v in m.metric_state.items() if k != "compute_group"}):
            metric, other = fed(make(cls, **kwargs), given[:3]), fed(make(cls, **kwargs), given[3:])
            if len(given) > 6:
                # What was computed before must not be given again.
                metric.compute()
            metric.merge_state(states(other))
            close(value(metric), expected)
            close(value(other), plain(cls, given[3:], **kwargs)) if len(given) > 6 else None
        with pytest.raises(ValueError, match="incoming_state"):
            metric.merge_state({})
        with pytest.raises(ValueError, match="incoming_state"):
            metric.merge_state(MetricCollection([]))
        close(value(metric), expected)

    def test_inference_mode(self, cls):
        expected = plain(cls)
        with torch.inference_mode():
            assert plain(cls) == expected
            metric = fed(make(cls), updates(cls)[:3])
            inside = updates(cls)
        assert value(fed(metric, inside[3:])) == expected
        with torch.inference_mode():
            assert value(fed(make(cls), inside)) == expected

    def test_gradients_do_not_pile_up(self, cls):
        given = [
            {k: v.requires_grad_() if isinstance(v, torch.Tensor) else v for k, v in one.items()}
            for one in updates(cls)
        ]
        metric = fed(make(cls), given)
        for one in given:
            try:
                metric(**one)
            except ValueError:
                metric.update(**one)
        for state in metric.metric_state.values():
            assert not any(tensor.requires_grad for tensor in (state if isinstance(state, list) else [state]))
        copy.deepcopy(metric)

    def test_empty_and_small_batches(self, cls):
        given = updates(cls)
        empty = [{k: v[:0] if isinstance(v, torch.Tensor) else v for k, v in one.items()} for one in given]
        for_each = [both for pair in zip(empty, given, strict=True) for both in pair]
        assert plain(cls, for_each) == plain(cls)
        metric = fed(make(cls), empty)
        with pytest.raises(ValueError, match=r"at least|expected"):
            metric.compute()
        if not is_random(cls):
            ones = [
                {k: v[i : i + 1] if isinstance(v, torch.Tensor) else v for k, v in one.items()}
                for one in given
                for i in range(len(next(v for v in one.values() if isinstance(v, torch.Tensor))))
            ]
            close(plain(cls, ones), plain(cls), rel=1e-6)

    def test_before_any_update(self, cls):
        with warnings.catch_warnings(), pytest.raises(ValueError, match=cls.__name__):
            warnings.simplefilter("ignore")
            make(cls).compute()

    def test_synchronisation(self, cls):
        """Of a world of one; two processes are in test_two_samples."""
        world = {"distributed_available_fn": lambda: True, "dist_sync_fn": lambda state, group: [state]}
        given = updates(cls)
        metric = make(cls, **world)
        # An error while the states are those of all processes.
        with warnings.catch_warnings(), pytest.raises(ValueError):
            warnings.simplefilter("ignore")
            metric.compute()
        for one in given[:3]:
            metric.update(**one)
        metric.sync(**{"dist_sync_fn": world["dist_sync_fn"]})
        metric.reset()
        close(value(fed(metric, given)), plain(cls))
        close(value(fed(metric, given)), plain(cls, given + given))
        assert plain(cls, sync_on_compute=False, **world) == plain(cls)
        step = make(cls, dist_sync_on_step=True, **world)
        for one in given:
            try:
                step(**one)
            except ValueError:
                step.update(**one)
        close(value(step), plain(cls))

    def test_numpys_numbers(self, cls):
        given = updates(cls)
        arguments = {}
        for parent in reversed(cls.__mro__):
            arguments |= inspect.signature(parent).parameters if parent.__module__.startswith("fastgen") else {}
        for name, parameter in arguments.items():
            number = SMALL.get(name, parameter.default)
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            kinds = (np.int64, np.int32) if isinstance(number, int) else (np.float32, np.float64)
            for kind in kinds:
                close(
                    plain(cls, given, **{name: kind(number)}), plain(cls, given, **{name: type(number)(kind(number))})
                )
            if isinstance(number, int):
                with pytest.raises(ValueError, match=name):
                    make(cls, **{name: "3"})


@every
class TestCollections:
    @pytest.mark.parametrize("groups", [True, False])
    def test_equal_each_alone(self, cls, groups):
        """All metrics that are fed alike, each twice."""
        same = [c for c in EVERY if [u.keys() for u in updates(c)] == [u.keys() for u in updates(cls)]]
        members = {f"{c.__name__}{i}": make(c) for c in same for i in range(2)}
        together = MetricCollection(members, compute_groups=groups)
        for i, one in enumerate(updates(cls)):
            try:
                together(**one) if i == 4 else together.update(**one)
            except ValueError:
                # The first says so, and none has taken it.
                together.update(**one)
        found = together.compute()
        assert found.keys() and len(together) == 2 * len(same)
        for name, metric in together.items():
            close(value(metric), plain(next(c for c in same if c.__name__ == name[:-1])))

    def test_first_batches_that_tell_nothing_apart(self, cls):
        """Members of different settings, whose states are the same at first by chance."""
        empty = [{k: v[:0] if isinstance(v, torch.Tensor) else v for k, v in one.items()} for one in updates(cls)]
        name = "feature" if "feature" in inspect.signature(cls).parameters else None
        settings = {name: nn.Linear(6, 5)} if name else {}
        together = MetricCollection({"a": make(cls), "b": make(cls, **settings)})
        fed(together, empty + updates(cls))
        close(value(together["a"]), plain(cls))
        close(value(together["b"]), plain(cls, **settings))


def test_similarities_of_one_collection():
    same, (x, y) = torch.rand(3, 1, 24, 24), torch.rand(2, 3, 1, 24, 24)
    members = {
        "one": StructuralSimilarity(),
        "wide": StructuralSimilarity(sigma=2.0),
        "range": StructuralSimilarity(data_range=3.0),
        "many": MultiscaleStructuralSimilarity(weights=(0.5, 0.5)),
    }
    together = MetricCollection(copy.deepcopy(members))
    for pair in ((same, same), (x, y)):
        together.update(*pair)
        for metric in members.values():
            metric.update(*pair)
    assert numbers(together.compute()) == {name: metric.compute().item() for name, metric in members.items()}
    assert len(set(numbers(together.compute()).values())) == 4


def test_metrics_of_the_same_features_share_them():
    class Counted(nn.Module):
        calls = 0

        def forward(self, x):
            Counted.calls += 1
            return x

    network = Counted()
    members = (PrecisionRecall, DensityCoverage, KernelInceptionDistance)
    together = MetricCollection([make(c, feature=network) for c in members])
    given = updates(PrecisionRecall)
    fed(together, given)
    # All of them at the first batch, one from then on.
    assert Counted.calls == len(members) + len(given) - 1
    assert list(together.compute_groups.values()) == [[c.__name__ for c in members]]


class Wide(nn.Module):
    def forward(self, x):
        return x.double()


class Network(nn.Module):
    """With all that a mode changes."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))

    def forward(self, *x):
        return self.layers(x[0].float())


class Distance(Network):
    def forward(self, a, b):
        return (self.layers(a.float().repeat(1, 2)[:, :6]) - self.layers(b.float().repeat(1, 2)[:, :6])).square().sum(1)


class LogLikelihood(Network):
    def forward(self, x, z):
        return -(x - self.layers(z.float().repeat(1, 3))).square().sum(1)


HELD = {"feature": Network, "distance": Distance, "log_likelihood": LogLikelihood}


@every
class TestNetworksThatAreHeld:
    def parts(self, cls):
        return [name for name in HELD if name in inspect.signature(cls).parameters]

    def test_they_stay_as_handed_in(self, cls):
        for name in self.parts(cls):
            for training in (False, True):
                network = HELD[name]().train(training)
                network.layers[0].weight.requires_grad_(False)
                before = copy.deepcopy(network.state_dict())
                parent = nn.ModuleDict({"own": nn.Linear(2, 2), "metric": make(cls, **{name: network})})
                for _ in range(2):
                    parent.train().requires_grad_(False)
                    parent.apply(lambda m: nn.init.zeros_(m.weight) if isinstance(m, nn.Linear) else None)
                    parent.eval().half().requires_grad_(True)
                assert all(module.training is training for module in network.modules())
                assert [p.requires_grad for p in network.parameters()] == [False, True, True, True]
                assert all(p.dtype == torch.float32 for p in network.parameters())
                torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
                # Neither an optimiser nor a checkpoint of the model takes them.
                assert [*parent.state_dict()] == ["own.weight", "own.bias"] == [n for n, _ in parent.named_parameters()]

    def test_their_statistics_do_not_move(self, cls):
        for name in self.parts(cls):
            network = HELD[name]().eval()
            before = copy.deepcopy(network.state_dict())
            parent = nn.ModuleDict({"metric": make(cls, **{name: network})}).train()
            fed(parent["metric"], updates(cls)).compute()
            torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
            assert all(p.grad is None for p in network.parameters())

    def test_they_work_in_eval_though_another_owner_trains_them(self, cls):
        for name in self.parts(cls):
            network = HELD[name]().eval()
            metric = make(cls, **{name: network})
            expected, before = value(fed(copy.deepcopy(metric), updates(cls))), copy.deepcopy(network.state_dict())
            nn.ModuleDict({"network": network, "metric": metric}).train()
            assert value(fed(metric, updates(cls))) == expected
            with pytest.raises((ValueError, TypeError, RuntimeError, IndexError)):
                metric.update(**{k: v[None] if isinstance(v, torch.Tensor) else v for k, v in updates(cls)[0].items()})
            torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
            assert all(module.training for module in network.modules())
            # And in eval mode whoever says so later.
            late = make(cls, **{name: network})
            network.eval()
            assert value(fed(late, updates(cls))) == expected

    def test_they_come_along_to_another_device(self, cls):
        for name in self.parts(cls):
            network = HELD[name]()
            nn.ModuleDict({"metric": make(cls, **{name: network})}).to("meta", torch.float16)
            assert {p.device.type for p in network.parameters()} == {"meta"}
            assert {p.dtype for p in network.parameters()} == {torch.float32}
