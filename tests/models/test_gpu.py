"""Models on a GPU: `make gpu` runs these."""

import copy

import pytest
import torch

pytestmark = pytest.mark.gpu


def test_scores_what_the_cpu_scores(model, images, labels):
    on_gpu = copy.deepcopy(model).cuda()
    on_device = None if labels is None else labels.cuda()
    expected = model.log_prob(images, labels)
    torch.testing.assert_close(on_gpu.log_prob(images.cuda(), on_device).cpu(), expected, rtol=1e-9, atol=0)
    single = on_gpu.float().log_prob(images.cuda(), on_device)
    torch.testing.assert_close(single.cpu().double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("method", ["cached", "naive"])
def test_draws_what_the_cpu_draws(model, labels, method):
    expected = model.sample(3, labels=labels, generator=torch.Generator().manual_seed(0), method="naive")
    model = model.cuda()
    labels = None if labels is None else labels.cuda()
    drawn = model.sample(3, labels=labels, generator=torch.Generator().manual_seed(0), method=method)
    assert drawn.is_cuda and torch.equal(drawn.cpu(), expected)


def test_gradients_are_the_cpu_gradients(model, images, labels):
    on_gpu = copy.deepcopy(model).cuda()
    model.loss(images, labels).backward()
    on_gpu.loss(images.cuda(), None if labels is None else labels.cuda()).backward()
    for expected, parameter in zip(model.parameters(), on_gpu.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad.cpu(), expected.grad, rtol=1e-8, atol=1e-10)
