"""Small models of every kind, in float64 and in eval mode, with random images and labels to go with them."""

import pytest
import torch

from tests.models.autoregressive_cases import SMALL


@pytest.fixture(params=SMALL)
def model(request):
    kind, config = SMALL[request.param]
    return kind(**config).double().eval()


@pytest.fixture
def images(model):
    return torch.randint(model.levels, (3, *model.shape))


@pytest.fixture
def labels(model):
    return None if model.num_classes is None else torch.randint(model.num_classes, (3,))
