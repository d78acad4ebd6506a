"""Flows on a GPU: `make gpu` runs these."""

import copy

import pytest
import torch

from tests.models.flow_cases import EVERY, context_for, data_for, make

pytestmark = pytest.mark.gpu


@pytest.fixture(params=EVERY)
def flow(request):
    return make(request.param)


def on_gpu(flow, context):
    return copy.deepcopy(flow).cuda(), None if context is None else context.cuda()


def test_scores_what_the_cpu_scores(flow):
    x, context = data_for(flow, 5), context_for(flow, 5)
    moved, moved_context = on_gpu(flow, context)
    expected = flow.log_prob(x, context)
    torch.testing.assert_close(moved.log_prob(x.cuda(), moved_context).cpu(), expected, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(moved.log_prob(x.cuda(), moved_context).cpu(), expected, rtol=1e-9, atol=1e-9)


def test_draws_what_the_cpu_draws(flow):
    context = context_for(flow, 2)
    moved, moved_context = on_gpu(flow, context)
    expected = flow.sample(3, context, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        drawn = moved.sample(3, moved_context, generator=torch.Generator().manual_seed(0))
        assert drawn.is_cuda
        torch.testing.assert_close(drawn.cpu(), expected, rtol=1e-8, atol=1e-8)
    own = [torch.Generator("cuda").manual_seed(0) for _ in range(2)]
    assert torch.equal(*(moved.sample(3, moved_context, generator=generator) for generator in own))


def test_gradients_are_the_cpu_gradients(flow):
    x = data_for(flow, 5) if flow.levels is None else torch.randint(flow.levels, (5, *flow.shape))
    context = context_for(flow, 5)
    moved, moved_context = on_gpu(flow, context)
    flow.loss(x, context, generator=torch.Generator().manual_seed(0)).backward()
    moved.loss(x.cuda(), moved_context, generator=torch.Generator().manual_seed(0)).backward()
    for expected, parameter in zip(flow.parameters(), moved.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad.cpu(), expected.grad, rtol=1e-7, atol=1e-8)
