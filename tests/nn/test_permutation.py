"""Permutations are nflows' and follow their seed."""

import pytest
import torch

from fastgen.nn import Permutation, RandomPermutation, ReversePermutation
from tests.nn.transform_properties import PROPERTIES, Case

CASES = [
    Case("vectors", lambda: Permutation([2, 0, 3, 1]), (4,)),
    Case("images", lambda: Permutation(torch.tensor([1, 2, 0])), (3, 2, 2)),
    Case("reverse", lambda: ReversePermutation(4), (4,)),
    Case("random", lambda: RandomPermutation(4), (4,)),
    Case("rows", lambda: Permutation([1, 0, 2], dim=2), (2, 3)),
]


@pytest.mark.parametrize("check", PROPERTIES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_property(case, check):
    check(case)


def test_feature_i_is_feature_permutation_i():
    x = torch.arange(8.0).reshape(2, 4)
    y, logabsdet = Permutation([2, 0, 3, 1])(x)
    assert y.tolist() == [[2, 0, 3, 1], [6, 4, 7, 5]] and logabsdet.tolist() == [0, 0]
    assert ReversePermutation(4)(x)[0].tolist() == [[3, 2, 1, 0], [7, 6, 5, 4]]


@pytest.mark.parametrize("name", ["RandomPermutation", "ReversePermutation"])
def test_is_nflows(name):
    permutations = pytest.importorskip("nflows.transforms.permutations")
    theirs = getattr(permutations, name)(6)
    ours = RandomPermutation(6)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 6)
    assert torch.equal(ours(x)[0], theirs(x)[0]) and torch.equal(ours.inverse(x)[0], theirs.inverse(x)[0])


def test_random_permutation_follows_the_seed():
    orders = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        orders.append(RandomPermutation(20).permutation.tolist())
    assert orders[0] == orders[1] != orders[2] and sorted(orders[2]) == list(range(20))


def test_refuses():
    for wrong in ([0, 2], [[0, 1]], [1, 1], [0.0, 0.5]):
        with pytest.raises(ValueError, match=r"permutation: expected the numbers 0 \.\. features - 1"):
            Permutation(wrong)
    with pytest.raises(ValueError, match="features: expected a positive int, got 0"):
        ReversePermutation(0)
    with pytest.raises(ValueError, match=r"x: expected 4 features in dimension 1, got \(2, 3\)"):
        RandomPermutation(4)(torch.randn(2, 3))
    with pytest.raises(TypeError, match=r"x: expected a floating dtype, got torch.int64"):
        RandomPermutation(4).inverse(torch.zeros(2, 4, dtype=torch.int64))
