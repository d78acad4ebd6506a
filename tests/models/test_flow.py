"""Every flow: inverse, Jacobian, gradients, samples, contexts, labels, precision, compilation."""

import copy
import io
import json
import math
from itertools import product

import pytest
import torch
from torch import nn

from fastgen.models import IAF, MAF, MODELS, Flow, Glow, NeuralSplineFlow, RealNVP
from tests.models.flow_cases import EVERY, VECTORS, context_for, data_for, make


@pytest.fixture(params=EVERY)
def flow(request):
    return make(request.param)


def test_names():
    flows = {"nsf": NeuralSplineFlow, "realnvp": RealNVP, "glow": Glow, "maf": MAF, "iaf": IAF}
    assert {name: MODELS[name] for name in flows} == flows


def test_config_and_state_dict_make_the_same_model(flow):
    config = json.loads(json.dumps(flow.config))
    other = type(flow).from_config(config).double().eval()
    assert other.config == flow.config
    x, context = data_for(flow, 3), context_for(flow, 3)
    assert not torch.equal(other.log_prob(x, context), flow.log_prob(x, context))
    file = io.BytesIO()
    torch.save(flow.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.log_prob(x, context), flow.log_prob(x, context))


def test_copies_are_independent(flow):
    x, context = data_for(flow, 3), context_for(flow, 3)
    before = flow.log_prob(x, context)
    with torch.no_grad():
        for parameter in copy.deepcopy(flow).parameters():
            parameter.mul_(2)
    assert torch.equal(flow.log_prob(x, context), before)


def test_decode_is_the_inverse_of_encode(flow):
    x, context = data_for(flow, 5), context_for(flow, 5)
    z, logabsdet = flow(x, context)
    assert z.shape == (5, flow.features)
    back, inverse_logabsdet = flow.inverse(z, context)
    torch.testing.assert_close(back, x, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(inverse_logabsdet, -logabsdet, rtol=1e-7, atol=1e-7)
    assert torch.equal(flow.encode(x, context), z)
    assert torch.equal(flow.decode(z, context), back)


def test_log_prob_is_the_change_of_variables_by_autograd(flow):
    x, context = data_for(flow, 2), context_for(flow, 2)
    expected = []
    for i in range(2):
        row = None if context is None else context[i : i + 1]
        jacobian = torch.autograd.functional.jacobian(lambda v, row=row: flow.encode(v[None], row)[0], x[i])
        normal = torch.distributions.Normal(0.0, 1.0).log_prob(flow.encode(x[i : i + 1], row)).sum()
        expected.append(normal + jacobian.reshape(flow.features, -1).slogdet()[1])
    torch.testing.assert_close(flow.log_prob(x, context), torch.stack(expected), rtol=1e-9, atol=1e-9)


def test_gradcheck_of_both_directions(flow):
    """In the data or noise, and in a context of real numbers."""
    x, context = data_for(flow, 2), context_for(flow, 2)
    with torch.no_grad():
        z = flow.encode(x, context)
    real = () if context is None or flow.num_classes is not None else (context.requires_grad_(),)
    for direction, value in ((flow.forward, x), (flow.inverse, z)):
        assert torch.autograd.gradcheck(
            lambda v, *c, run=direction: run(v, *c) if c else run(v, context),
            (value.requires_grad_(), *real),
            fast_mode=True,
            rtol=1e-4,
        )


@pytest.mark.parametrize(
    ("kind", "scale_map"),
    [(MAF, "softplus"), (MAF, "exp"), (IAF, "softplus"), (RealNVP, "tanh"), (RealNVP, "exp")],
)
def test_affine_flows_of_vectors_start_as_the_identity(kind, scale_map):
    flow = kind(3, hidden_features=16, scale_map=scale_map)
    x = 3 * torch.randn(50, 3)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
    torch.testing.assert_close(flow.log_prob(x), expected, rtol=1e-4, atol=1e-4)


def test_sample_decodes_noise(flow):
    context = context_for(flow, 3)
    x = flow.sample(4, context, generator=torch.Generator().manual_seed(7))
    rows = 4 if context is None else 12
    z = torch.randn(rows, flow.features, dtype=flow.dtype, generator=torch.Generator().manual_seed(7))
    expected = flow.decode(z, None if context is None else context.repeat_interleave(4, 0))
    assert x.shape == (4, *flow.shape) if context is None else (3, 4, *flow.shape)
    if flow.levels is None:
        torch.testing.assert_close(x.reshape(expected.shape), expected)
    else:
        assert x.dtype == torch.uint8 and x.max().item() < flow.levels
        assert torch.equal(x.reshape(expected.shape), expected.floor().clamp(0, flow.levels - 1).to(torch.uint8))


def test_sample_and_log_prob_agree_with_log_prob(flow):
    context = context_for(flow, 3)
    x, log_prob = flow.sample_and_log_prob(4, context, generator=torch.Generator().manual_seed(7))
    every = None if context is None else context.repeat_interleave(4, 0)
    assert log_prob.shape == ((4,) if context is None else (3, 4))
    torch.testing.assert_close(
        flow.log_prob(x.reshape(-1, *flow.shape), every), log_prob.flatten(), rtol=1e-7, atol=1e-6
    )
    if flow.levels is None:
        torch.testing.assert_close(x, flow.sample(4, context, generator=torch.Generator().manual_seed(7)))
    assert log_prob.requires_grad


def test_temperature(flow):
    context = context_for(flow, 1)
    cold = flow.sample(3, context, temperature=0.0).reshape(3, *flow.shape)
    assert (cold == cold[:1]).all()
    noise = {"generator": torch.Generator().manual_seed(7)}
    x = flow.sample(3, context, temperature=0.5, **noise).reshape(3, *flow.shape)
    z = 0.5 * torch.randn(3, flow.features, dtype=flow.dtype, generator=torch.Generator().manual_seed(7))
    expected = flow.decode(z, None if context is None else context.repeat_interleave(3, 0))
    if flow.levels is not None:
        expected = expected.floor().clamp(0, flow.levels - 1).to(torch.uint8)
    torch.testing.assert_close(x, expected)
    for wrong in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="temperature: expected a number of at least 0"):
            flow.sample(3, context, temperature=wrong)


@pytest.mark.parametrize(
    "name", [name for name in EVERY if EVERY[name][1].keys() & {"context_features", "num_classes"}]
)
def test_context_matters(name):
    flow = make(name)
    context = context_for(flow, 2)
    x = data_for(flow, 1).expand(2, *flow.shape)
    log_prob = flow.log_prob(x, context)
    assert log_prob[0] != log_prob[1]
    torch.testing.assert_close(flow.log_prob(x[:1], context[1:]), log_prob[1:])


def test_nan_stays_in_its_row(flow):
    x, context = data_for(flow, 3), context_for(flow, 3)
    clean = flow.log_prob(x, context)
    x[1].flatten()[0] = torch.nan
    log_prob = flow.log_prob(x, context)
    assert log_prob[1].isnan()
    torch.testing.assert_close(log_prob[[0, 2]], clean[[0, 2]])


def test_a_batch_may_be_empty(flow):
    x, context = data_for(flow, 2)[:0], context_for(flow, 2)
    context = None if context is None else context[:0]
    for scope in (torch.enable_grad(), torch.no_grad()):
        with scope:
            assert flow.log_prob(x, context).shape == (0,)
            assert flow.decode(flow.encode(x, context), context).shape == x.shape


def test_loss_is_the_mean(flow):
    context = context_for(flow, 4)
    if flow.levels is None:
        x = data_for(flow, 4)
        assert torch.equal(flow.loss(x, context), -flow.log_prob(x, context).mean())
        return
    images = torch.randint(flow.levels, (4, *flow.shape))
    seeded = [torch.Generator().manual_seed(3) for _ in range(3)]
    bound = flow.log_prob_bound(images, context, generator=seeded[0])
    assert torch.equal(flow.loss(images, context, generator=seeded[1]), -bound.mean())
    bits = flow.bits_per_dim(images, context, generator=seeded[2])
    torch.testing.assert_close(bits, -bound / (math.prod(flow.shape) * math.log(2)))


def test_every_parameter_learns(flow):
    x = data_for(flow, 6) if flow.levels is None else torch.randint(flow.levels, (6, *flow.shape))
    flow.train().loss(x, context_for(flow, 6)).backward()
    # The first output of an autoregressive network depends on nothing but its bias.
    silent = [name for name, p in flow.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("name", [name for name in EVERY if EVERY[name][1].get("dropout")])
def test_dropout_acts_in_training_alone(name):
    flow = make(name)
    x, context = data_for(flow, 3), context_for(flow, 3)
    assert torch.equal(flow.log_prob(x, context), flow.log_prob(x, context))
    flow.train()
    assert not torch.equal(flow.log_prob(x, context), flow.log_prob(x, context))
    seeded = [torch.Generator().manual_seed(1) for _ in range(2)]
    assert torch.equal(flow.sample(3, context, generator=seeded[0]), flow.sample(3, context, generator=seeded[1]))
    assert flow.training and all(module.training for module in flow.modules())


@pytest.mark.parametrize(
    "name", ["nsf", "nsf-lu", "nsf-autoregressive", "realnvp-classes", "maf", "iaf", "realnvp-one-scale", "glow-grey"]
)
def test_loss_compiles_to_one_graph(name):
    flow = make(name)
    x = data_for(flow, 4) if flow.levels is None else torch.randint(flow.levels, (4, *flow.shape))
    context = context_for(flow, 4)
    torch._dynamo.reset()
    compiled = torch.compile(flow.loss, fullgraph=True, backend="eager")
    torch.manual_seed(0)
    expected = flow.loss(x, context)
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(x, context), expected)


def test_half_precision_runs(flow):
    flow = flow.float()
    x, context = data_for(flow, 4), context_for(flow, 4)
    exact = flow.log_prob(x, context)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_prob = flow.log_prob(x, context)
    assert log_prob.dtype == torch.float32
    torch.testing.assert_close(log_prob, exact, rtol=0.1, atol=2.0)


def test_labels():
    flow = make("realnvp-images")
    x = flow.sample(4, labels=2, generator=torch.Generator().manual_seed(0))
    assert x.shape == (4, *flow.shape)
    same = flow.sample(4, labels=torch.full((4,), 2), generator=torch.Generator().manual_seed(0))
    as_context = flow.sample(4, torch.tensor([2]), generator=torch.Generator().manual_seed(0))
    assert torch.equal(x, same) and torch.equal(x, as_context[0])
    with pytest.raises(ValueError, match=r"labels: expected \[4\], got \(3,\)"):
        flow.sample(4, labels=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="labels: expected classes 0 to 2, got 3"):
        flow.sample(4, labels=3)
    with pytest.raises(ValueError, match="labels: expected None with a context or without num_classes"):
        make("nsf").sample(4, labels=1)


def test_any_transform_makes_a_flow():
    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.by = nn.Parameter(torch.ones(2))

        def forward(self, x, context=None):
            return x + self.by, x.new_zeros(len(x))

        def inverse(self, z, context=None):
            return z - self.by, z.new_zeros(len(z))

    flow = Flow(Shift(), (2,))
    x = torch.randn(5, 2)
    expected = torch.distributions.Normal(-1.0, 1.0).log_prob(x).sum(1)
    torch.testing.assert_close(flow.log_prob(x), expected)
    assert flow.sample(3).shape == (3, 2)


def test_a_flow_made_on_the_meta_device_becomes_what_is_loaded(flow):
    with torch.device("meta"):
        empty, assigned = (type(flow).from_config(flow.config) for _ in range(2))
    assert all(parameter.is_meta for parameter in empty.parameters())
    assigned.double().load_state_dict(flow.state_dict(), assign=True)
    empty = empty.double().to_empty(device="cpu")
    empty.load_state_dict(flow.state_dict())
    x, context = data_for(flow, 3), context_for(flow, 3)
    for other in (empty.eval(), assigned.eval()):
        torch.testing.assert_close(other.log_prob(x, context), flow.log_prob(x, context), rtol=1e-12, atol=1e-12)
        assert torch.equal(other.encode(x, context), flow.encode(x, context))


# Random flows of images leave the range of float16.
@pytest.mark.parametrize(
    ("name", "dtype"), [*product(EVERY, [torch.bfloat16]), *product(VECTORS, [torch.float16])], ids=str
)
def test_half_weights_run(name, dtype):
    flow = make(name).to(dtype)
    context = context_for(flow, 3)
    for scope in (torch.enable_grad(), torch.no_grad()):
        with scope:
            log_prob = flow.log_prob(data_for(flow, 3), context)
            x, drawn = flow.sample_and_log_prob(2, context)
        assert x.dtype == dtype and log_prob.dtype == drawn.dtype == torch.float32
        assert all(value.isfinite().all() for value in (x, log_prob, drawn))


@pytest.mark.parametrize("name", ["nsf-lu", "realnvp-one-scale", "maf", "maf-exp", "iaf"])
def test_exports_with_any_batch_size(name):
    flow = make(name)
    batch = torch.export.Dim("batch")
    arguments, x = ((data_for(flow, n), context_for(flow, n)) for n in (5, 7))
    dynamic_shapes = tuple(None if argument is None else {0: batch} for argument in arguments)
    exported = torch.export.export(flow, arguments, dynamic_shapes=dynamic_shapes)
    torch.testing.assert_close(exported.module()(*x), flow(*x))
