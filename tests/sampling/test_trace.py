"""The tracer: every way of writing a masked network, every operator with a rule, and refusals by name."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastgen import explain
from fastgen.ops import gated_activation
from fastgen.sampling import UnsupportedModelError, VerificationError
from fastgen.sampling.trace import trace
from tests.sampling.exactness import assert_draws_as_naive, assert_same_outputs, sampler
from tests.sampling.random_networks import ChannelNorm, Masked, causal_mask

CHANNELS = 8
SHAPE = (1, 5, 6)


def double(module: nn.Module) -> nn.Module:
    return module.double()


class Sandwich(nn.Module):
    """A masked convolution, what is tested, and a masked convolution to the logits."""

    def __init__(self, middle, channels: int = CHANNELS, out: int | None = None):
        super().__init__()
        self.first = Masked("A", 1, channels, 3)
        self.middle = middle
        self.last = Masked("B", out or channels, 5, 3)

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


# ---- styles of user code


class WeightTimesMaskInPlace(nn.Conv2d):
    """The commonest tutorial code: the weight itself is masked before every use."""

    def __init__(self, kind, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("mask", causal_mask(kind, *self.kernel_size).expand_as(self.weight).clone())

    def forward(self, x):
        self.weight.data *= self.mask
        return super().forward(x)


class DenseMasked(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Masked("A", 1, CHANNELS, 7), Masked("B", CHANNELS, CHANNELS, 3)])
        self.head = double(nn.Conv2d(CHANNELS, 5, 1))

    def forward(self, x):
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.head(x)


class MaskedInPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            WeightTimesMaskInPlace("A", 1, CHANNELS, 5, padding=2, bias=False),
            nn.BatchNorm2d(CHANNELS),
            nn.ReLU(inplace=True),
            WeightTimesMaskInPlace("B", CHANNELS, CHANNELS, 5, padding=2),
            nn.ReLU(True),
            nn.Conv2d(CHANNELS, 5, 1),
        ).double()
        nn.init.normal_(self.net[1].running_mean)
        nn.init.uniform_(self.net[1].running_var, 0.5, 2)

    def forward(self, x):
        return self.net(x)


class TwoStacks(nn.Module):
    """Gated PixelCNN with cropped convolutions: a vertical stack and a horizontal one."""

    def __init__(self, layers=3):
        super().__init__()
        sizes = [1] + [CHANNELS] * layers
        self.vertical = nn.ModuleList(nn.Conv2d(c, 2 * CHANNELS, (2, 3)) for c in sizes[:-1])
        self.horizontal = nn.ModuleList(nn.Conv2d(c, 2 * CHANNELS, (1, 1 + (i > 0))) for i, c in enumerate(sizes[:-1]))
        self.down = nn.ModuleList(nn.Conv2d(2 * CHANNELS, 2 * CHANNELS, 1) for _ in range(layers))
        self.out = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 1) for _ in range(layers))
        self.head = nn.Conv2d(CHANNELS, 5, 1)
        self.double()

    @staticmethod
    def gate(x):
        a, b = x.chunk(2, 1)
        return torch.tanh(a) * torch.sigmoid(b)

    def forward(self, x):
        v = h = x
        for i, (vertical, horizontal) in enumerate(zip(self.vertical, self.horizontal, strict=True)):
            v_new = vertical(F.pad(v, (1, 1, 1, 0)))
            below = F.pad(v_new, (0, 0, 1, 0))[:, :, :-1]
            h_new = horizontal(F.pad(h, (1, 0, 0, 0))[..., : h.shape[-1] + (i > 0)]) + self.down[i](below)
            h_new = self.out[i](self.gate(h_new))
            h = h_new if i == 0 else h + h_new
            v = self.gate(v_new)
        return self.head(F.relu(h))


class WeightNormed(nn.Module):
    """Shifted convolutions with weight normalisation, old and new, and the shift written into a tensor of zeros."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.utils.weight_norm(double(nn.Conv2d(2, CHANNELS, (2, 3))))
        self.second = torch.nn.utils.parametrizations.weight_norm(double(nn.Conv2d(CHANNELS, CHANNELS, (2, 2))))
        self.left = torch.nn.utils.parametrizations.weight_norm(double(nn.Conv2d(2, CHANNELS, (1, 2))))
        self.head = double(nn.Conv2d(2 * CHANNELS, 5, 1))

    def forward(self, x):
        x = torch.cat([x, torch.ones_like(x)], 1)
        u = self.first(F.pad(x, (1, 1, 1, 0)))
        down = torch.zeros_like(u)
        down[:, :, 1:] = u[:, :, :-1]
        left = self.left(F.pad(x, (2, 0, 0, 0))[..., :-1])
        y = down + left
        y = y + self.second(F.pad(F.elu(y), (1, 0, 1, 0)))
        return self.head(F.elu(torch.cat([y, -y], 1)))


@pytest.mark.parametrize("network", [DenseMasked, MaskedInPlace, TwoStacks, WeightNormed])
def test_styles_of_user_code_are_exact(network):
    model = network()
    cached = sampler(model, SHAPE)
    assert_same_outputs(cached.program, model)
    assert_draws_as_naive(cached, model)


# ---- operators with a rule

NHWC = (0, 2, 3, 1)
NCHW = (0, 3, 1, 2)
matrix = torch.randn(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
stencil = torch.randn(CHANNELS, 2, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
position_map = torch.randn(1, CHANNELS, 5, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
per_channel = position_map[:, :, :1, :1]
other_matrix = position_map[0, :, 0].contiguous()

OPERATORS = {
    # activations
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu6": F.relu6,
    "elu": F.elu,
    "elu_alpha": lambda x: F.elu(x, 0.5),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 0.5),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.3),
    "prelu": double(nn.PReLU(CHANNELS)),
    "softplus": lambda x: F.softplus(x, 2.0),
    "logsigmoid": F.logsigmoid,
    "softsign": F.softsign,
    "glu": lambda x: F.glu(torch.cat([x, x.flip(1)], 1), 1),
    # arithmetic
    "exp": torch.exp,
    "log": lambda x: torch.log(x.abs() + 1),
    "log1p": lambda x: torch.log1p(x.square()),
    "expm1": torch.expm1,
    "sqrt": lambda x: torch.sqrt(x**2 + 0.1),
    "rsqrt": lambda x: torch.rsqrt(x * x + 0.1),
    "erf": torch.erf,
    "sin_cos": lambda x: torch.sin(x) - torch.cos(x),
    "neg": lambda x: -x,
    "pow": lambda x: (x.abs() + 0.1) ** 1.5,
    "reciprocal": lambda x: 1 / (x.square() + 1),
    "number_minus": lambda x: 1.5 - x,
    "divide": lambda x: x / (x.square() + 1),
    "add_alpha": lambda x: torch.add(x, x.tanh(), alpha=0.3),
    "clamp": lambda x: x.clamp(-0.2, 0.3),
    "clamp_min": lambda x: x.clamp(min=0.1),
    "maximum": lambda x: torch.maximum(x, -x) - torch.minimum(x, x * 2),
    "addcmul": lambda x: torch.addcmul(x, x.tanh(), x, value=0.5),
    "lerp_by_hand": lambda x: x + 0.3 * (x.relu() - x),
    # constants
    "per_channel": lambda x: (x * per_channel + per_channel) / (per_channel.abs() + 1) - per_channel,
    "position_map": lambda x: x * position_map + position_map,
    "constant_over": lambda x: per_channel / (x.square() + 1),
    "where": lambda x: torch.where(position_map > 0, x, 0.5),
    "masked_fill": lambda x: x.masked_fill(position_map > 0, 0.25),
    "linspace": lambda x: x + torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype),
    # copies
    "copies": lambda x: x.clone().contiguous().detach().to(torch.float64),
    "dropout_off": nn.Dropout(0.5),
    "identity": nn.Identity(),
    # normalisation
    "layer_norm": ChannelNorm(CHANNELS),
    "group_norm_by_hand": lambda x: (x - x.mean(1, keepdim=True)) / (x.square().mean(1, keepdim=True) + 1).sqrt(),
    "layer_norm_plain": lambda x: F.layer_norm(x.permute(*NHWC), (CHANNELS,)).permute(*NCHW),
    # sums over channels
    "linear_nhwc": lambda x: F.linear(x.permute(*NHWC), matrix, per_channel.flatten()).permute(*NCHW),
    "linear_no_bias": lambda x: F.linear(x.permute(*NHWC), matrix).permute(*NCHW),
    "matmul_flat": lambda x: (matrix @ x.flatten(2)).unflatten(2, x.shape[2:]),
    "matmul_nhwc": lambda x: (x.permute(*NHWC) @ matrix).permute(*NCHW),
    "einsum": lambda x: torch.einsum("oc,bchw->bohw", matrix, x),
    "einsum_grouped": lambda x: torch.einsum(
        "goc,bgchw->bgohw", matrix.reshape(2, 4, 8)[:, :, :4], x.unflatten(1, (2, 4))
    ).flatten(1, 2),
    "sum_channels": lambda x: x + x.sum(1, keepdim=True) * 0.1,
    "mean_groups": lambda x: x - x.unflatten(1, (2, 4)).mean(2).repeat_interleave(4, 1),
    # shapes
    "cat_constant": lambda x: torch.cat([x[:, :-1], torch.full_like(x[:, :1], 0.7)], 1),
    "cat_map": lambda x: torch.cat([x[:, :4], position_map[:, :4].expand(len(x), -1, -1, -1)], 1),
    "split": lambda x: torch.cat([piece.tanh() for piece in x.split([3, 5], 1)][::-1], 1),
    "unbind_stack": lambda x: torch.stack([c * i for i, c in enumerate(x.unbind(1))], 1),
    "channel_shuffle": lambda x: x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2),
    "channel_step": lambda x: torch.cat([x[:, ::2], x[:, 1::2]], 1),
    "channel_index": lambda x: x[:, [3, 1, 0, 2, 7, 6, 5, 4]],
    "interleave": lambda x: torch.stack([x[:, :4], x[:, 4:]], 2).flatten(1, 2),
    "repeat": lambda x: x[:, :2].repeat(1, 4, 1, 1),
    "expand": lambda x: x[:, :1].expand(-1, CHANNELS, -1, -1),
    "broadcast_channel": lambda x: x * x[:, 2:3],
    "squeeze": lambda x: x.unsqueeze(2).squeeze(2),
    "flatten_all": lambda x: x.permute(*NHWC).reshape(-1, CHANNELS).tanh().reshape(2, 5, 6, CHANNELS).permute(*NCHW),
    "pad_ones": lambda x: F.pad(x, (1, 0, 1, 0), value=1.0)[:, :, :-1, :-1],
    "shift_cat_zeros": lambda x: torch.cat([torch.zeros_like(x[:, :, :1]), x[:, :, :-1]], 2),
    "shift_cat_row": lambda x: torch.cat([position_map[:, :, :1].expand(2, -1, -1, -1), x[:, :, :-1]], 2),
    "shift_right": lambda x: F.pad(x, (1, -1)),
    "rows_apart": lambda x: torch.cat([x[:, :, r : r + 1] * (r + 1) for r in range(x.shape[2])], 2),
    # convolutions
    "conv_grouped": double(nn.Conv2d(CHANNELS, CHANNELS, (2, 1), padding=(1, 0), groups=4)),
    "depthwise": double(nn.Conv2d(CHANNELS, CHANNELS, (1, 2), padding=(0, 1), groups=CHANNELS)),
    "functional_grouped": lambda x: F.conv2d(F.pad(x, (2, 0, 2, 0)), stencil, groups=4),
    "avg_pool_causal": lambda x: F.avg_pool2d(F.pad(x, (1, 0, 1, 0)), 2, 1),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_with_a_rule_are_exact(name):
    operator = OPERATORS[name]
    middle = operator if isinstance(operator, nn.Module) else Function(operator)
    crop = Function(lambda x: x[:, :, : SHAPE[1], : SHAPE[2]])
    model = Sandwich(nn.Sequential(middle, crop))
    assert_same_outputs(sampler(model, SHAPE).program, model)


def up_and_down(up):
    """A network at half resolution whose position (r, c) has seen nothing from (2r, 2c) on."""
    return nn.Sequential(
        Function(lambda x: F.pad(x, (1, 0, 1, 0))[:, :, :-1, :-1]),
        double(nn.Conv2d(CHANNELS, CHANNELS, 2, stride=2)),
        Function(lambda x: F.pad(x, (0, 0, 1, 0))[:, :, :-1]),
        up,
    )


def down(x):
    return F.pad(x, (0, 0, 1, -1))


def by_hand(x):
    batch, channels, height, width = x.shape
    x = x.view(batch, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(batch, channels // 4, height * 2, width * 2)


def unshuffle_by_hand(x):
    batch, channels, height, width = x.shape
    x = x.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return x.reshape(batch, channels * 4, height // 2, width // 2)


@pytest.mark.parametrize(
    ("middle", "out"),
    [
        (up_and_down(nn.Upsample(scale_factor=2)), CHANNELS),
        (up_and_down(double(nn.ConvTranspose2d(CHANNELS, CHANNELS, 2, stride=2))), CHANNELS),
        (up_and_down(double(nn.ConvTranspose2d(CHANNELS, CHANNELS, 2, stride=2, groups=2))), CHANNELS),
        (up_and_down(nn.PixelShuffle(2)), CHANNELS // 4),
        (up_and_down(Function(by_hand)), CHANNELS // 4),
        (nn.Sequential(nn.PixelUnshuffle(2), Function(down), nn.PixelShuffle(2)), CHANNELS),
        (nn.Sequential(Function(unshuffle_by_hand), Function(down), Function(by_hand)), None),
        (nn.Sequential(Function(lambda x: F.pad(x, (2, -2))[:, :, ::2, ::2]), nn.Upsample(scale_factor=2)), CHANNELS),
    ],
    ids=["nearest", "transposed", "grouped", "shuffle", "by_hand", "unshuffle", "by_hand_both", "step"],
)
def test_changes_of_resolution_are_exact(middle, out):
    model = Sandwich(middle, out=out)
    cached = sampler(model, (1, 4, 6))
    assert_same_outputs(cached.program, model)
    assert_draws_as_naive(cached, model)


def test_large_groups_get_convolutions_of_their_own():
    model = Sandwich(double(nn.Conv2d(32, 32, 1, groups=2)), channels=32)
    program = sampler(model, SHAPE).program
    assert {tap.weight.shape for node in program.nodes for tap in node.taps} >= {(16, 16)}
    assert_same_outputs(program, model)


# ---- in place


IN_PLACE = {
    "residual_after_relu_": lambda x: x.relu_() + 1,
    "iadd": lambda x: x.__iadd__(x.tanh()),
    "mul_": lambda x: x.mul_(0.5).add_(position_map),
    "halves": lambda x: (x[:, :4].tanh_(), x[:, 4:].sigmoid_(), x)[2],
    "rows": lambda x: (x[:, :, 0].zero_(), x)[1],
    "fill_columns": lambda x: (x[..., 2:4].fill_(0.5), x)[1],
    "setitem": lambda x: assign(torch.ones_like(x), x),
}


def assign(y, x):
    y[:, 1:, 1:] = x[:, :-1, :-1]
    return y


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_operators_are_exact(name):
    model = Sandwich(Function(IN_PLACE[name]))
    assert_same_outputs(sampler(model, SHAPE).program, model)


def test_a_view_of_overwritten_memory_is_refused():
    def overwrite(x):
        old = x.permute(0, 2, 3, 1)
        x.relu_()
        return old.permute(0, 3, 1, 2)

    message = r"middle: aten\.permute\S* reads a tensor whose memory aten\.relu_\S* in middle overwrote"
    with pytest.raises(UnsupportedModelError, match=message):
        trace(Sandwich(Function(overwrite)), SHAPE)


def test_views_that_do_not_overlap_may_be_overwritten_apart():
    def gate(x):
        a, b = x.chunk(2, 1)
        a.tanh_()
        return torch.cat([a, b.sigmoid_()], 1)

    model = Sandwich(Function(gate))
    assert_same_outputs(sampler(model, SHAPE).program, model)


class PlainPython(nn.Module):
    """An autograd.Function of the older style, a buffer that the image is written into, numbers read by Python."""

    class Tanh(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.tanh()

        @staticmethod
        def backward(ctx, grad):
            raise NotImplementedError

    def __init__(self):
        super().__init__()
        self.register_buffer("memory", torch.zeros(2, CHANNELS, *SHAPE[1:], dtype=torch.float64))

    def forward(self, x):
        self.memory.copy_(self.Tanh.apply(x))
        return self.memory * torch.arange(3).tolist()[2] * float(torch.ones(3).mul_(2).numpy().sum())


def test_what_python_does_with_tensors_is_left_to_it():
    model = Sandwich(PlainPython())
    assert_same_outputs(sampler(model, SHAPE).program, model)


# ---- refusals


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(CHANNELS, 2, batch_first=True).double()

    def forward(self, x):
        y = x.flatten(2).transpose(1, 2)
        mask = torch.ones(y.shape[1], y.shape[1], dtype=torch.bool).triu(1)
        return self.attend(y, y, y, attn_mask=mask)[0].transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize(
    ("middle", "message"),
    [
        (nn.GroupNorm(2, CHANNELS).double(), r"middle: aten\.native_group_norm\.default has no one-pixel rule"),
        (Attention(), r"middle"),
        (Function(lambda x: x.flatten(2).softmax(-1).view_as(x)), r"middle: aten\._softmax\.default has no"),
        (Function(lambda x: x - x.mean((2, 3), keepdim=True)), r"middle: sums over positions"),
        (Function(lambda x: x.cumsum(3)), r"middle: aten\.cumsum\.default"),
        (Function(lambda x: x.flip(3)), r"middle: no rule for flipping positions"),
        (Function(lambda x: x.roll(1, 3)), r"middle: aten\.roll\.default"),
        (Function(lambda x: F.pad(x, (1, 0, 0, 0), mode="reflect")[..., :-1]), r"middle: aten\.reflection_pad"),
        (Function(lambda x: F.max_pool2d(x, 2, 1, 1)[..., :5, :6]), r"middle: aten\.max_pool2d"),
        (nn.BatchNorm2d(CHANNELS, track_running_stats=False).double(), r"middle: batch normalisation by the sta"),
        (Function(lambda x: x * torch.arange(2.0).double().view(2, 1, 1, 1)), r"middle: a constant differs"),
        (Function(lambda x: x + torch.rand_like(x)), r"middle: aten\.rand_like\.default makes the network random"),
        (Function(lambda x: x if x.sum() > 0 else -x), r"middle: "),
        (Function(lambda x: x + float(x[0, 0, 0, 0])), r"middle: no rule for slicing"),
        (Function(lambda x: x + float(x.max())), r"middle: aten\.max\.default"),
        (Function(lambda x: x.float().double()), r"middle: aten\._to_copy\.default converts the image"),
        (Function(lambda x: F.layer_norm(x, x.shape[1:])), r"middle: layer normalisation over more than the channels"),
        (Function(lambda x: F.conv2d(torch.ones_like(x), x[:, :, :1, :1])), r"middle: a convolution whose weights"),
        (Function(lambda x: x.transpose(2, 3)[:, :, :5]), r"last: convolution expects"),
        (Function(lambda x: x.masked_fill(position_map > 0, -torch.inf)), r"middle: "),
    ],
)
def test_what_has_no_rule_is_refused_by_module_and_operator(middle, message):
    with pytest.raises(UnsupportedModelError, match=message):
        trace(Sandwich(middle), SHAPE)


def test_code_that_branches_on_values_is_caught_by_verification():
    class Branching(DenseMasked):
        calls = 0

        def forward(self, x):
            Branching.calls += 1
            return super().forward(x) * (1 if Branching.calls == 1 else 2)

    with pytest.raises(VerificationError, match="differs from the network"):
        sampler(Branching(), SHAPE)


def test_dropout_in_training_code_is_caught():
    with pytest.raises((UnsupportedModelError, VerificationError)):
        sampler(Sandwich(Function(lambda x: F.dropout(x, 0.5, training=True))), SHAPE)


def test_tracing_leaves_the_model_and_the_random_state_alone():
    model = DenseMasked()
    model.train()
    model.head.eval()
    state = torch.random.get_rng_state()
    sampler(model, SHAPE)
    assert model.training and model.layers[0].training and not model.head.training
    assert torch.equal(state, torch.random.get_rng_state())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_modes_of_the_caller_do_not_matter():
    model = DenseMasked()
    with torch.inference_mode():
        assert_draws_as_naive(sampler(model, SHAPE), model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cached = sampler(model, SHAPE)
    assert_same_outputs(cached.program, model)
    assert_same_outputs(sampler(torch.compile(model), SHAPE).program, model)


def test_tracing_is_of_the_calling_thread():
    class Slow(Sandwich):
        """While it is traced, another thread calls a kernel and the model itself."""

        def forward(self, x):
            x = self.first(x)
            if tracing == threading.get_ident():
                told.append(pool.submit(explain, gated_activation, torch.randn(2, 8)).result()[0].backend)
                outputs.append(pool.submit(self, image).result())
            return self.last(self.middle(x).cumsum(3) if refused else self.middle(x))

    told, outputs, tracing, refused = [], [], None, False
    model, image = Slow(nn.Tanh()).eval(), torch.randn(2, *SHAPE, dtype=torch.float64)
    expected = model(image)
    tracing = threading.get_ident()
    with ThreadPoolExecutor(1) as pool:
        program = sampler(model, SHAPE).program
        refused = True
        # The module that another thread ran last is not blamed.
        with pytest.raises(UnsupportedModelError, match=r"^\(model\): aten\.cumsum"):
            trace(model, SHAPE)
    assert set(told) == {"cpp"}
    assert torch.equal(outputs[0], expected)
    tracing = None
    refused = False
    assert_same_outputs(program, model)


def test_the_librarys_own_operators_are_traced_as_plain_torch():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = Masked("A", 1, 2 * CHANNELS, 3)
            self.head = double(nn.Conv2d(CHANNELS, 5, 1))

        def forward(self, x):
            return self.head(gated_activation(self.first(x)))

    model = Gated()
    cached = sampler(model, SHAPE)
    assert "gate" in {node.function for node in cached.program.nodes}
    assert_draws_as_naive(cached, model)


# ---- conditioning


class Labelled(nn.Module):
    """Labels as a bias of each layer, as a map, and as extra channels."""

    def __init__(self, classes=4):
        super().__init__()
        self.embed = nn.Embedding(classes, CHANNELS)
        self.to_map = nn.Linear(CHANNELS, 30)
        self.scale = nn.Linear(classes, CHANNELS)
        self.first = Masked("A", 1, CHANNELS, 5)
        self.second = Masked("B", CHANNELS + 1, CHANNELS, 3)
        self.head = nn.Conv2d(CHANNELS, 5, 1)
        self.classes = classes
        self.double()

    def forward(self, x, labels):
        embedded = self.embed(labels)
        plane = torch.tanh(self.to_map(embedded)).view(-1, 1, 5, 6)
        y = torch.relu(self.first(x) + embedded[:, :, None, None])
        y = self.second(torch.cat([y, plane], 1))
        y = y * self.scale(F.one_hot(labels, self.classes).double())[..., None, None]
        return self.head(torch.relu(y))


def test_labels_are_recomputed_for_every_batch():
    model = Labelled()
    cached = sampler(model, SHAPE, condition=torch.tensor([0, 1]))
    assert cached.program.conditioned
    for labels in (torch.tensor([3, 2, 2, 0, 1]), torch.tensor([1]), torch.tensor([0, 3])):
        assert_draws_as_naive(cached, model, n=len(labels), labels=labels)


def test_a_label_bias_is_not_spread_over_the_grid():
    program = sampler(Labelled(), SHAPE, condition=torch.tensor([0, 1])).program
    shapes = {tuple(program.nodes[index].data.shape[1:3]) for index in program.conditioned}
    assert shapes == {(1, 1), (5, 6)}


def test_a_condition_may_be_several_tensors():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = Masked("A", 1, 5, 3)

        def forward(self, x, a, b):
            return self.first(x) + a[:, None, None, None] * b[:, None, None, None]

    model = Two()
    condition = (torch.tensor([0.5, 2.0]).double(), torch.tensor([1.0, -1.0]).double())
    cached = sampler(model, SHAPE, condition=condition)
    assert_draws_as_naive(cached, model, n=2, labels=condition)


def test_training_on_does_not_change_a_frozen_sampler():
    model = Labelled()
    cached = sampler(model, SHAPE, condition=torch.tensor([0, 1]), freeze=True)
    noise = torch.rand(cached.steps, 2, 1, dtype=torch.float64)
    before = cached.sample(2, noise=noise, labels=torch.tensor([2, 3]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-3)
    assert torch.equal(before, cached.sample(2, noise=noise, labels=torch.tensor([2, 3])))


def test_labels_that_do_not_fit_are_refused():
    cached = sampler(Labelled(), SHAPE, condition=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="labels: expected the condition"):
        cached.sample(2)
    with pytest.raises(ValueError, match="labels: expected 3 rows"):
        cached.sample(3, labels=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="labels: expected none"):
        sampler(DenseMasked(), SHAPE).sample(2, labels=torch.tensor([0, 1]))


# ---- bad arguments


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"shape": (1, 5)}, ValueError, "shape: expected"),
        ({"shape": (1, 0, 6)}, ValueError, "shape: expected"),
        ({"colors": 2}, ValueError, "colors: expected 1 or the 1"),
        ({"condition": [1, 2]}, TypeError, "condition: expected a tensor"),
        ({"condition": torch.zeros(0)}, ValueError, "condition: expected one row"),
        ({"forward": lambda x: (x, x)}, TypeError, "forward: expected one tensor"),
        ({"forward": lambda x: x[:, :, 1:]}, ValueError, r"forward: expected an output \[B, K, 5, 6\]"),
    ],
)
def test_bad_arguments_are_refused(options, error, message):
    options = {"shape": SHAPE, **options}
    with pytest.raises(error, match=message):
        trace(DenseMasked(), options.pop("shape"), **options)


def test_half_precision_is_refused():
    with pytest.raises(TypeError, match="float32 or float64"):
        trace(DenseMasked().half(), SHAPE)


def test_an_output_that_ignores_the_image_is_refused():
    with pytest.raises(UnsupportedModelError, match="does not depend on the image"):
        trace(nn.Identity(), SHAPE, forward=lambda x: torch.zeros(2, 5, 5, 6))
