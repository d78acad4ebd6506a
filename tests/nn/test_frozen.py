"""Every module that keeps something made of its weights, in every way of changing them, gives the numbers of those it
has: compared with another module that has never run before, with gradients, where nothing is kept.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import pkgutil
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

import fastgen.models
import fastgen.nn
from fastgen.models import GatedPixelCNN, PixelCNN, PixelCNNPP
from fastgen.models.autoregressive import AutoregressiveModel
from fastgen.models.flow import Flow, VectorFlow
from fastgen.nn import (
    MLP,
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    Compose,
    ConvNet,
    GatedPixelCNNLayer,
    InvertibleConv1x1,
    LULinear,
    MaskedAffineCoupling,
    MaskedAutoregressive,
    MaskedConv2d,
    RandomPermutation,
    RationalQuadraticCoupling,
    checkerboard_mask,
    freeze,
    frozen,
)
from fastgen.nn.coupling import Coupling, FeatureCoupling
from fastgen.nn.frozen import Freezable
from fastgen.nn.linear import InvertibleMatrix
from fastgen.nn.transform import Inverse
from tests.models.flow_cases import context_for, data_for
from tests.models.flow_cases import make as make_flow

D = 4


def mlp(a: int, b: int) -> MLP:
    return MLP(a, b, (5,))


def halves(ends: bool = False) -> list[int]:
    """Of a random side, so that two layers differ in their buffers too."""
    first = int(torch.rand(()) < 0.5)
    return [first, first, 1 - first, 1 - first] if ends else [first, 1 - first, first, 1 - first]


# Vectors, or images where the name says so.
LAYERS = {
    "lu": lambda: LULinear(D, identity_init=False),
    "conv1x1-image": lambda: InvertibleConv1x1(D),
    "masked-conv-image": lambda: MaskedConv2d("B", D, D, 3),
    "made": lambda: MaskedAutoregressive(D, 6),
    "made-random": lambda: MaskedAutoregressive(D, 9, use_residual_blocks=False, random_mask=True),
    "masked-mlp": lambda: MaskedAutoregressive(D, (5,), order=torch.randperm(D), transform="rational_quadratic"),
    "inverse": lambda: Inverse(MaskedAutoregressive(D, 6)),
    "affine": lambda: AffineCoupling(halves(), mlp),
    "additive": lambda: AdditiveCoupling(halves(ends=True), mlp),
    "spline": lambda: RationalQuadraticCoupling(halves(ends=True), mlp, 4, tail_bound=3.0),
    "checkerboard-image": lambda: MaskedAffineCoupling(
        checkerboard_mask(D, 4, 4, first=bool(torch.rand(()) < 0.5)), lambda a, b: ConvNet(a, b, 4)
    ),
    "permutation": lambda: RandomPermutation(D),
    "actnorm": lambda: ActNorm(D),
    "compose": lambda: Compose([ActNorm(D), LULinear(D), AffineCoupling(halves(), mlp), RandomPermutation(D)]),
    "fused": lambda: Flow(
        Compose([RationalQuadraticCoupling(halves(), mlp, 4), LULinear(D), RandomPermutation(D), ActNorm(D)]), (D,)
    ),
}
IMAGE_MODELS = {
    "pixelcnn": lambda: PixelCNN(image_size=2, levels=3, channels=4, layers=1, head_channels=4),
    "gated": lambda: GatedPixelCNN(image_size=2, levels=3, channels=4, layers=2, head_channels=4),
    "pixelcnnpp": lambda: PixelCNNPP(image_size=4, image_channels=3, channels=4, resnets=1, scales=2, num_mixtures=2),
}
# Of each kind of layers one.
FLOWS = ["nsf-lu", "nsf-permutation", "nsf-autoregressive", "maf", "iaf", "realnvp", "realnvp-one-scale", "glow-grey"]
MODULES = {**LAYERS, **{name: lambda name=name: make_flow(name) for name in FLOWS}}


def made(name: str, seed: int = 0) -> nn.Module:
    """In float64 and in eval mode, with random weights."""
    torch.manual_seed(seed)
    module = (MODULES | IMAGE_MODELS)[name]().double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def run(module: nn.Module, name: str) -> list[Tensor]:
    """Both directions where there are two."""
    with torch.random.fork_rng():
        torch.manual_seed(99)
        if isinstance(module, Flow):
            x, context = data_for(module, 3), context_for(module, 3)
            z, logabsdet = module(x, context)
            # Noise of its own images: others go far where nothing was trained.
            return [z, logabsdet, *module.inverse(0.9 * z, context)]
        x = torch.randn(3, D, 4, 4) if name.endswith("image") else torch.randn(3, D)
        y = module(x.double())
        return [y] if isinstance(y, Tensor) else [*y, *module.inverse(x.double())]


def expected(module: nn.Module, name: str) -> list[Tensor]:
    """By a module of the same state that was never run; autograd records, so that nothing is kept."""
    with torch.inference_mode(False), torch.enable_grad():
        fresh = made(name, seed=5)
        fresh.load_state_dict(module.state_dict())
        return [value.detach() for value in run(fresh, name)]


def check(module: nn.Module, name: str) -> None:
    torch.testing.assert_close([v.clone() for v in run(module, name)], expected(module, name), rtol=1e-8, atol=1e-8)


def owners(module: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    return [(part, name, p) for part in module.modules() for name, p in part._parameters.items() if p is not None]


# Ways to change the weights: (module, another of the same kind). PyTorch counts the first, or they move the tensors.
def in_place(module, other):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.9)


def by_an_optimiser_elsewhere(module, other):
    def step():
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, 0.1)
        torch.optim.SGD(module.parameters(), lr=0.3).step()
        module.zero_grad()

    if list(module.parameters()):
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()


def load_state_dict(module, other):
    module.load_state_dict(other.state_dict())


def load_state_dict_assigned(module, other):
    state = {
        k: v.clone() if "mask" in k or not v.is_floating_point() else 0.7 * v for k, v in module.state_dict().items()
    }
    module.load_state_dict(state, assign=True)


def assigned_data(module, other):
    for parameter in module.parameters():
        parameter.data = parameter.data * 1.1


def assigned_parameters(module, other):
    for part, name, parameter in owners(module):
        setattr(part, name, nn.Parameter(parameter.detach() * 0.8))


def swapped(module, other):
    for parameter, its in zip(module.parameters(), other.parameters(), strict=True):
        torch.utils.swap_tensors(parameter, nn.Parameter(its.detach().clone()))


def from_a_vector(module, other):
    if list(module.parameters()):
        vector = nn.utils.parameters_to_vector(module.parameters()).detach()
        nn.utils.vector_to_parameters(vector.roll(1), module.parameters())


def assigned_buffers(module, other):
    for part, its in zip(module.modules(), other.modules(), strict=True):
        for name, buffer in its._buffers.items():
            setattr(part, name, buffer)


def to_another_dtype_and_back(module, other):
    module.float()
    in_place(module, other)
    module.double()


def part_replaced(module, other):
    parts = [(p, n) for p in module.modules() for n, child in p._modules.items() if child is not None]
    for parent, name in [(p, n) for p, n in parts if list(p._modules[n].parameters())][-1:]:
        new = copy.deepcopy(getattr(parent, name))
        in_place(new, None)
        setattr(parent, name, new)


# Writes that PyTorch does not count.
def copied_through_data(module, other):
    for own, its in zip(module.state_dict().values(), other.state_dict().values(), strict=True):
        own.data.copy_(its)


def one_element_through_data(module, other):
    for parameter in module.parameters():
        if parameter.numel():
            parameter.data.view(-1)[parameter.numel() // 3] += 0.05


def through_numpy(module, other):
    for parameter in module.parameters():
        parameter.detach().numpy()[...] *= 0.9


COUNTED = [in_place, by_an_optimiser_elsewhere, load_state_dict, load_state_dict_assigned, assigned_data, swapped]
COUNTED += [assigned_parameters, from_a_vector, assigned_buffers, to_another_dtype_and_back, part_replaced]
UNCOUNTED = [copied_through_data, one_element_through_data, through_numpy]


@pytest.mark.parametrize("name", MODULES)
def test_the_numbers_are_those_of_the_weights(name):
    module = made(name)
    for seed, change in enumerate((*COUNTED, *UNCOUNTED), 1):
        mode = (torch.no_grad, torch.inference_mode)[seed % 2]
        with mode():
            run(module, name)
        change(module, made(name, seed))
        with mode():
            check(module, name)


@pytest.mark.parametrize("name", MODULES)
def test_a_frozen_module_notices_what_is_counted_or_moved(name):
    module = freeze(made(name))
    with torch.no_grad():
        for seed, change in enumerate(COUNTED, 1):
            run(module, name)
            change(module, made(name, seed))
            check(module, name)
        for seed, change in enumerate(UNCOUNTED, 1):
            change(freeze(module), made(name, seed))
            check(module.freeze() if isinstance(module, Freezable) else freeze(module), name)
        # Not frozen any longer.
        module.train().eval()
        run(module, name)
        one_element_through_data(module, None)
        check(module, name)


class Runs(nn.Module):
    """So that `functional_call` can ask for both directions."""

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()
        self.module, self.name = module, name

    def forward(self) -> tuple[Tensor, ...]:
        return tuple(run(self.module, self.name))


@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_functional_call_runs_the_weights_given(name, is_frozen):
    base = made(name)
    call = Runs(freeze(base) if is_frozen else base, name)
    with torch.no_grad():
        run(base, name)
        for seed in (1, 2, 3):
            other = made(name, seed)
            # Made anew, and gone after the call: the next ones lie where they lay.
            given = {f"module.{k}": v.clone() for k, v in (*other.named_parameters(), *other.named_buffers())}
            torch.testing.assert_close(list(functional_call(call, given)), expected(other, name), rtol=1e-8, atol=1e-8)
            del given
        check(base, name)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_vmap_over_stacked_weights(name, training):
    """On a base that has no numbers, of members whose masks and permutations differ."""
    members = [made(name, seed) for seed in (1, 2)]
    if any(p.p for member in members for p in member.modules() if isinstance(p, nn.Dropout)):
        training = False
    state = stack_module_state([Runs(member.train(training), name) for member in members])
    state = [{k: v.detach() for k, v in tensors.items()} for tensors in state]
    base = Runs(copy.deepcopy(members[0]), name).to("meta").train(training)
    with torch.no_grad():
        found = vmap(lambda *tensors: functional_call(base, tensors), randomness="same")(*state)
    for i, member in enumerate(members):
        true = expected(member, name) if not training else run(member, name)
        torch.testing.assert_close([v[i] for v in found], [v.detach() for v in true], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", MODULES)
def test_vmap_of_gradients(name):
    members = [made(name, seed) for seed in (1, 2)]
    params, buffers = stack_module_state([Runs(member, name) for member in members])
    params = {k: v.detach() for k, v in params.items()}
    base = Runs(made(name), name)
    with torch.no_grad():
        run(base.module, name)

    def loss(params, buffers):
        return sum(v.square().sum() for v in functional_call(base, (params, buffers)))

    found = vmap(torch.func.grad(loss), randomness="same")(params, buffers) if params else {}
    for i, member in enumerate(members if params else []):
        true = torch.autograd.grad(
            sum(v.square().sum() for v in run(member, name)), list(member.parameters()), allow_unused=True
        )
        for (key, _), gradient in zip(member.named_parameters(), true, strict=True):
            if gradient is not None:
                torch.testing.assert_close(found[f"module.{key}"][i], gradient, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", MODULES)
def test_forward_mode_sees_tangents_of_weights(name):
    module = made(name)
    call = Runs(module, name)
    primals = {f"module.{k}": v.detach().clone() for k, v in module.named_parameters()}
    tangents = {k: torch.randn_like(v) for k, v in primals.items()}
    if not primals or name == "realnvp-one-scale":
        pytest.skip("no parameters, or PyTorch's weight normalisation, which has no forward-mode derivative")
    with torch.no_grad():
        run(module, name)
        _, found = torch.func.jvp(lambda p: functional_call(call, p), (primals,), (tangents,))
    fresh = Runs(made(name), name)
    with torch.enable_grad():
        _, true = torch.func.jvp(lambda p: functional_call(fresh, p), (primals,), (tangents,))
    torch.testing.assert_close(found, true)


@pytest.mark.parametrize("name", MODULES)
def test_copies_are_not_frozen_and_follow_their_own_weights(name):
    module = freeze(made(name))
    with torch.no_grad():
        run(module, name)
        copies = [copy.deepcopy(module)]
        if name in ("lu", "conv1x1-image", "masked-conv-image", "permutation", "actnorm"):
            copies.append(pickle.loads(pickle.dumps(module)))
        for other in copies:
            one_element_through_data(other, None)
            check(other, name)
        check(module, name)


@pytest.mark.parametrize("name", ["lu", "masked-conv-image", "made", "fused"])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_parametrisations_are_followed(name, is_frozen):
    module = made(name)
    with torch.no_grad():
        run(freeze(module) if is_frozen else module, name)
        for part, key, parameter in owners(module):
            if parameter.dim() > 1:
                nn.utils.parametrizations.weight_norm(part, key)
            elif isinstance(part, LULinear):
                nn.utils.parametrize.register_parametrization(part, key, nn.Softplus())
        plain = made(name, 1)
        for _ in range(3):
            for parameter in module.parameters():
                parameter.data.mul_(0.9)
            with torch.no_grad():
                for (_, key, parameter), there in zip(owners(plain), places(module, plain), strict=True):
                    parameter.copy_(getattr(there, key))
            for own, its in zip(plain.buffers(), module.buffers(), strict=True):
                own.copy_(its)
            torch.testing.assert_close(run(module, name), expected(plain, name), rtol=1e-8, atol=1e-8)


def places(module: nn.Module, plain: nn.Module) -> list[nn.Module]:
    """The parts of `module` that the parameters of `plain` belong to."""
    paths = {part: path for path, part in plain.named_modules()}
    return [module.get_submodule(paths[part]) for part, _, _ in owners(plain)]


@pytest.mark.parametrize("name", ["lu", "conv1x1-image", "made", "fused", "compose"])
def test_weights_of_inference_mode(name):
    with torch.inference_mode():
        module = made(name)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            run(module, name)
        with torch.inference_mode():
            for parameter in module.parameters():
                parameter.mul_(0.9)
        with mode():
            check(module, name)


@pytest.mark.parametrize("name", ["lu", "masked-conv-image", "made", "affine", "checkerboard-image", "fused"])
def test_a_frozen_module_compiles_and_traces_as_one_graph(name):
    module = freeze(made(name))
    shape = (3, D, 4, 4) if name.endswith("image") else (3, D)
    x = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        true = module(x)
        torch._dynamo.reset()
        for same in (torch.compile(module, fullgraph=True, backend="aot_eager"), torch.jit.trace(module, x)):
            torch.testing.assert_close(same(x), true)


@pytest.mark.parametrize("compiled", [True, False])
def test_every_bit_counts(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setitem(frozen.UNUSABLE, "cpp", "as if it were not built")
    base = torch.randn(4, 6, 2)
    nan = torch.tensor([1.0, float("nan"), 0.0])
    for tensor in (base, base[:, ::2], base.transpose(0, 2), base[:0], nan, nan.bfloat16(), nan > 0, torch.tensor(3)):
        copies = frozen.Copies([tensor, base])
        assert copies.hold([tensor, base]) and copies.hold([tensor.clone(), base.contiguous()])
        assert not copies.hold([tensor]) and not copies.hold([tensor, base + 1])
        assert not copies.hold([tensor.reshape(1, *tensor.shape), base])
        for i in range(tensor.numel()):
            other = tensor.clone(memory_format=torch.contiguous_format)
            bits = other.view(-1).view(torch.uint8)
            bits[bits.numel() // tensor.numel() * i] ^= 1
            assert not copies.hold([other, base])
    zero = torch.zeros(2)
    assert not frozen.Copies([zero]).hold([-zero]) and not frozen.Copies([zero]).hold([zero.int()])


@pytest.mark.parametrize("name", ["lu", "made", "affine"])
def test_bits_are_compared_where_nothing_is_compiled(name, monkeypatch):
    monkeypatch.setitem(frozen.UNUSABLE, "cpp", "as if it were not built")
    module = made(name)
    with torch.no_grad():
        run(module, name)
        copied_through_data(module, made(name, 1))
        check(module, name)


def test_attributes_are_a_part_of_what_is_kept():
    flow, layer = made("fused"), made("lu")
    with torch.no_grad():
        run(flow, "fused")
        flow.transform.transforms[0].transform_net.activation = torch.tanh
        torch.testing.assert_close(run(flow, "fused")[0], flow.transform(run_input(flow))[0])
        run(layer, "lu")
        layer.eps = 0.5
        torch.testing.assert_close(layer(torch.ones(1, D).double())[0], layer.train()(torch.ones(1, D).double())[0])


def run_input(flow: Flow) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(99)
        return data_for(flow, 3)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_samples_are_those_of_the_weights(name):
    model = made(name)

    def follows() -> bool:
        draw = [model.sample(3, generator=torch.Generator().manual_seed(3), method=m) for m in ("cached", "naive")]
        return torch.equal(*draw)

    assert follows()
    sampler = model._kept.last("sampler")
    one_element_through_data(model, None)
    assert follows() and model._kept.last("sampler") is not sampler
    model.freeze()
    assert follows()
    sampler = model._kept.last("sampler")
    assert follows() and model._kept.last("sampler") is sampler
    in_place(model, None)
    assert follows() and model._kept.last("sampler") is not sampler


def test_every_class_that_keeps_something_is_tried_here():
    keeping = {
        cls
        for package in (fastgen.nn, fastgen.models)
        for info in pkgutil.iter_modules(package.__path__, package.__name__ + ".")
        for _, cls in inspect.getmembers(importlib.import_module(info.name), inspect.isclass)
        if issubclass(cls, nn.Module) and (issubclass(cls, Freezable) or "Kept(" in inspect.getsource(cls))
        if cls.__module__.startswith("fastgen.")
    }
    frames = {Freezable, InvertibleMatrix, Coupling, FeatureCoupling, AutoregressiveModel, VectorFlow}
    tried = {type(part) for name in MODULES | IMAGE_MODELS for part in made(name).modules()}
    # A model on top of one of these, which samples as that does.
    tried |= {fastgen.models.vqvae.CodePrior}
    assert keeping - frames <= tried, keeping - frames - tried
    assert GatedPixelCNNLayer in tried
