"""The gradient that reaches the base, against the formula computed densely in float64 from inputs found independently."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dopr_robot.optim import ActivationPreconditioner, DoPr

DAMPING = 0.1
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])


def dense(gradient: Tensor, z: Tensor, damping: float = DAMPING) -> Tensor:
    """``G (S + damping tr(S)/d I)^-1`` for a gradient [rows, d] and inputs [n, d]."""
    z = z.detach().double().reshape(-1, z.shape[-1])
    moment = z.T @ z / len(z)
    damped = moment + damping * moment.trace() / len(moment) * torch.eye(len(moment), dtype=torch.float64)
    return gradient.double() @ torch.linalg.inv(damped)


def exact(model: nn.Module, **options) -> ActivationPreconditioner:
    return ActivationPreconditioner(model, damping=DAMPING, form="batch", **options)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def scalar(y: Tensor) -> Tensor:
    """A loss whose gradient differs between all entries."""
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).sin().view(y.shape)
    return (weights * y).sum() + y.square().mean()


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    error = (actual.double() - expected).norm() / expected.norm()
    assert error < TOLERANCE[dtype], f"relative error {error:.2e}"


@dtypes
@pytest.mark.parametrize("shape", [(12, 7), (3, 5, 7), (2, 3, 4, 7)])
@pytest.mark.parametrize("include_bias", [False, True])
def test_linear(dtype, shape, include_bias):
    torch.manual_seed(0)
    layer = nn.Linear(7, 4, dtype=dtype)
    preconditioner = exact(layer, include_bias=include_bias)
    x = torch.randn(shape, dtype=dtype) + 0.5
    scalar(layer(x)).backward()
    before = gradients(layer)
    preconditioner.precondition_()
    if include_bias:
        z = torch.cat([x, torch.ones_like(x[..., :1])], -1)
        expected = dense(torch.cat([before["weight"], before["bias"][:, None]], 1), z)
        assert_close(layer.weight.grad, expected[:, :-1], dtype)
        assert_close(layer.bias.grad, expected[:, -1], dtype)
    else:
        assert_close(layer.weight.grad, dense(before["weight"], x), dtype)
        assert torch.equal(layer.bias.grad, before["bias"])


def patches(layer: nn.Module, x: Tensor) -> Tensor:
    """Inputs of a convolution's kernel, [groups, n, C/g x kernel], by torch's own unfold."""
    one = isinstance(layer, nn.Conv1d)
    pair = (lambda v, low: (low, v[0])) if one else (lambda v, low: tuple(v))
    x = x.unsqueeze(2) if one else x
    columns = F.unfold(
        x,
        pair(layer.kernel_size, 1),
        dilation=pair(layer.dilation, 1),
        padding=pair(layer.padding, 0),
        stride=pair(layer.stride, 1),
    )
    columns = columns.view(len(x), layer.groups, -1, columns.shape[-1])
    return columns.permute(1, 0, 3, 2).flatten(1, 2)


CONVOLUTIONS = {
    "1d": lambda dtype: (nn.Conv1d(4, 6, 3, padding=1, dtype=dtype), (5, 4, 9)),
    "1d strided": lambda dtype: (nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, dtype=dtype), (5, 4, 11)),
    "1d grouped": lambda dtype: (nn.Conv1d(4, 6, 5, padding=2, groups=2, dtype=dtype), (5, 4, 9)),
    "2d": lambda dtype: (nn.Conv2d(3, 4, 3, padding=(1, 0), dtype=dtype), (2, 3, 6, 7)),
    "2d strided": lambda dtype: (
        nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=1, dilation=(1, 2), dtype=dtype),
        (2, 3, 7, 8),
    ),
    "2d depthwise": lambda dtype: (nn.Conv2d(4, 8, 3, padding=1, groups=4, dtype=dtype), (2, 4, 6, 5)),
}


@dtypes
@pytest.mark.parametrize("include_bias", [False, True])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_unfolded(dtype, case, include_bias):
    torch.manual_seed(0)
    layer, shape = CONVOLUTIONS[case](dtype)
    preconditioner = exact(layer, conv="unfold", include_bias=include_bias)
    x = torch.randn(shape, dtype=dtype) + 0.5
    scalar(layer(x)).backward()
    before = gradients(layer)
    preconditioner.precondition_()
    rows = layer.out_channels // layer.groups
    for group, z in enumerate(patches(layer, x)):
        part = slice(group * rows, (group + 1) * rows)
        gradient = before["weight"][part].flatten(1)
        if include_bias:
            z = torch.cat([z, torch.ones_like(z[:, :1])], 1)
            expected = dense(torch.cat([gradient, before["bias"][part, None]], 1), z)
            assert_close(layer.bias.grad[part], expected[:, -1], dtype)
            expected = expected[:, :-1]
        else:
            expected = dense(gradient, z)
        assert_close(layer.weight.grad[part].flatten(1), expected, dtype)


@dtypes
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_sua(dtype, case):
    torch.manual_seed(0)
    layer, shape = CONVOLUTIONS[case](dtype)
    preconditioner = exact(layer, conv="sua")
    x = torch.randn(shape, dtype=dtype) + 0.5
    scalar(layer(x)).backward()
    before = layer.weight.grad.clone()
    preconditioner.precondition_()
    rows, width = layer.out_channels // layer.groups, layer.in_channels // layer.groups
    for group in range(layer.groups):
        channels = x[:, group * width : (group + 1) * width].flatten(2).transpose(1, 2)
        for out in range(group * rows, (group + 1) * rows):
            taps = before[out].flatten(1).T  # [taps, channels]
            assert_close(layer.weight.grad[out].flatten(1).T, dense(taps, channels), dtype)


@pytest.mark.parametrize("padding_mode", ["circular", "reflect"])
def test_convolution_with_another_padding(padding_mode):
    torch.manual_seed(0)
    layer = nn.Conv1d(3, 4, 5, padding=2, padding_mode=padding_mode, dtype=torch.float64)
    preconditioner = exact(layer, conv="unfold")
    x = torch.randn(4, 3, 9, dtype=torch.float64)
    scalar(layer(x)).backward()
    before = layer.weight.grad.flatten(1).clone()
    preconditioner.precondition_()
    padded = F.pad(x, (2, 2), mode=padding_mode)
    z = F.unfold(padded.unsqueeze(2), (1, 5)).transpose(1, 2)
    assert_close(layer.weight.grad.flatten(1), dense(before, z), torch.float64)


def test_transposed_convolution():
    torch.manual_seed(0)
    layer = nn.ConvTranspose1d(4, 3, 4, stride=2, padding=1, dtype=torch.float64)
    preconditioner = exact(layer)
    x = torch.randn(5, 4, 6, dtype=torch.float64)
    scalar(layer(x)).backward()
    before = layer.weight.grad.clone()
    preconditioner.precondition_()
    expected = dense(before.flatten(1).T, x.transpose(1, 2)).T.view_as(before)
    assert_close(layer.weight.grad, expected, torch.float64)


@dtypes
@pytest.mark.parametrize("padding_idx", [None, 2])
def test_embedding(dtype, padding_idx):
    torch.manual_seed(0)
    layer = nn.Embedding(9, 5, padding_idx=padding_idx, dtype=dtype)
    preconditioner = exact(layer)
    tokens = torch.tensor([[0, 1, 1, 2, 7], [2, 2, 8, 1, 0]])
    scalar(layer(tokens)).backward()
    before = layer.weight.grad.clone()
    preconditioner.precondition_()
    counted = tokens[tokens != padding_idx] if padding_idx is not None else tokens.flatten()
    one_hot = F.one_hot(counted, 9).to(dtype)
    assert_close(layer.weight.grad, dense(before.T, one_hot).T, dtype)


def attention_inputs(module: nn.MultiheadAttention, q: Tensor, k: Tensor, v: Tensor, **masks) -> Tensor:
    """What reaches the output projection, computed head by head from batch-first query, key and value."""
    size, heads = module.embed_dim, module.num_heads
    if module.in_proj_weight is not None:
        weights = module.in_proj_weight.chunk(3)
    else:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    biases = module.in_proj_bias.chunk(3)
    q, k, v = (F.linear(x, w, b) for x, w, b in zip((q, k, v), weights, biases, strict=True))
    q, k, v = (x.unflatten(-1, (heads, size // heads)).transpose(1, 2) for x in (q, k, v))
    logits = q @ k.mT / math.sqrt(size // heads)
    if "key_padding_mask" in masks:
        logits = logits.masked_fill(masks["key_padding_mask"][:, None, None, :], -math.inf)
    return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)


@dtypes
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", ["self", "cross", "three", "separate"])
@pytest.mark.parametrize("need_weights", [True, False])
def test_attention(dtype, batch_first, kind, need_weights):
    torch.manual_seed(0)
    sizes = {"kdim": 6, "vdim": 10} if kind == "separate" else {}
    module = nn.MultiheadAttention(8, 2, batch_first=batch_first, dtype=dtype, **sizes)
    nn.init.normal_(module.in_proj_bias)
    preconditioner = exact(module)
    q = torch.randn(3, 5, 8, dtype=dtype) + 0.3
    k = torch.randn(3, 6, sizes.get("kdim", 8), dtype=dtype) - 0.3
    v = torch.randn(3, 6, sizes.get("vdim", 8), dtype=dtype)
    q, k, v = {"self": (q, q, q), "cross": (q, k, k), "three": (q, k, v), "separate": (q, k, v)}[kind]

    def arranged(x):
        return x if batch_first else x.transpose(0, 1)

    streams = [arranged(q)] * 3 if kind == "self" else [arranged(q), arranged(k), arranged(v)]
    output, _ = module(*streams, need_weights=need_weights)
    scalar(output).backward()
    before = gradients(module)
    preconditioner.precondition_()
    if kind == "separate":
        for name, z in (("q_proj_weight", q), ("k_proj_weight", k), ("v_proj_weight", v)):
            assert_close(getattr(module, name).grad, dense(before[name], z), dtype)
    else:
        for part, gradient, z in zip(
            module.in_proj_weight.grad.chunk(3), before["in_proj_weight"].chunk(3), (q, k, v), strict=True
        ):
            assert_close(part, dense(gradient, z), dtype)
    inputs = attention_inputs(module, q, k, v)
    assert_close(module.out_proj.weight.grad, dense(before["out_proj.weight"], inputs), dtype)


@dtypes
def test_attention_with_biases(dtype):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, batch_first=True, dtype=dtype)
    preconditioner = exact(module, include_bias=True)
    x = torch.randn(3, 5, 8, dtype=dtype)
    scalar(module(x, x, x)[0]).backward()
    before = gradients(module)
    preconditioner.precondition_()
    for weight, bias, z in (
        ("in_proj_weight", "in_proj_bias", x),
        ("out_proj.weight", "out_proj.bias", attention_inputs(module, x, x, x)),
    ):
        z = torch.cat([z, torch.ones_like(z[..., :1])], -1)
        expected = dense(torch.cat([before[weight], before[bias][:, None]], 1), z)
        assert_close(module.get_parameter(weight).grad, expected[:, :-1], dtype)
        assert_close(module.get_parameter(bias).grad, expected[:, -1], dtype)


def test_attention_that_is_first_self_and_then_cross():
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    preconditioner = exact(module)
    x, y = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    (scalar(module(x, x, x)[0]) + scalar(module(x, y, y)[0]) + scalar(module(y, y, y)[0])).backward()
    before = module.in_proj_weight.grad.clone()
    preconditioner.precondition_()
    for part, gradient, streams in zip(
        module.in_proj_weight.grad.chunk(3), before.chunk(3), ([x, x, y], [x, y, y], [x, y, y]), strict=True
    ):
        assert_close(part, dense(gradient, torch.cat(streams)), torch.float64)


def test_transformer_encoder_fires_in_every_attention():
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0), 2)
    optimizer = DoPr(torch.optim.SGD(model.parameters(), lr=0.1), model)
    scalar(model(torch.randn(3, 5, 8))).backward()
    optimizer.step()
    assert optimizer.coverage().never_fired == []
    assert optimizer.coverage().matrix_share == 1


class Reused(nn.Module):
    """One linear layer, applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).tanh())


def test_module_used_twice_pools_its_inputs():
    torch.manual_seed(0)
    model = Reused()
    preconditioner = exact(model)
    x = torch.randn(7, 6, dtype=torch.float64)
    scalar(model(x)).backward()
    before = model.layer.weight.grad.clone()
    preconditioner.precondition_()
    z = torch.cat([x, model.layer(x).tanh()])
    assert_close(model.layer.weight.grad, dense(before, z), torch.float64)


def test_weights_tied_between_linear_layers_pool_their_inputs():
    torch.manual_seed(0)
    first, second = nn.Linear(6, 6, dtype=torch.float64), nn.Linear(6, 6, bias=False, dtype=torch.float64)
    second.weight = first.weight
    model = nn.Sequential(first, nn.Tanh(), second)
    preconditioner = exact(model)
    x = torch.randn(7, 6, dtype=torch.float64)
    scalar(model(x)).backward()
    before = first.weight.grad.clone()
    preconditioner.precondition_()
    z = torch.cat([x, first(x).tanh()])
    assert_close(first.weight.grad, dense(before, z), torch.float64)


class Tied(nn.Module):
    """An embedding whose table is the output layer, as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 5, dtype=torch.float64)
        self.head = nn.Linear(5, 9, bias=False, dtype=torch.float64)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens).tanh())


def test_table_that_embeds_and_reads_out_solves_for_both_sides():
    """The damped metric sum over uses |dW z|^2 is a matrix over all entries of the table: solve with it densely."""
    torch.manual_seed(0)
    model = Tied()
    preconditioner = exact(model)
    tokens = torch.randint(0, 9, (4, 6))
    scalar(model(tokens)).backward()
    before = model.head.weight.grad.clone()
    preconditioner.precondition_()
    n = tokens.numel()
    rows = torch.diag(torch.bincount(tokens.flatten(), minlength=9).double() / n)
    z = model.embedding(tokens).tanh().reshape(-1, 5).detach()
    columns = z.T @ z / n
    metric = torch.kron(rows, torch.eye(5, dtype=torch.float64)) + torch.kron(
        torch.eye(9, dtype=torch.float64), columns
    )
    metric += DAMPING * metric.trace() / len(metric) * torch.eye(len(metric), dtype=torch.float64)
    expected = torch.linalg.solve(metric, before.flatten()).view(9, 5)
    assert_close(model.head.weight.grad, expected, torch.float64)


def test_accumulation_over_unequal_micro_batches_equals_the_whole_batch():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    whole = copy.deepcopy(model)
    x = torch.randn(10, 5, dtype=torch.float64)
    preconditioner, other = exact(model), exact(whole)
    for part in x.split([3, 1, 6]):
        model(part).square().sum().backward()
    whole(x).square().sum().backward()
    preconditioner.precondition_()
    other.precondition_()
    for actual, expected in zip(model.parameters(), whole.parameters(), strict=True):
        assert_close(actual.grad, expected.grad, torch.float64)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("kind", ["linear", "attention"])
def test_checkpointing_counts_once(use_reentrant, kind):
    torch.manual_seed(0)
    if kind == "linear":
        block: nn.Module = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).double()
    else:
        block = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.0, batch_first=True).double()
    plain = copy.deepcopy(block)
    head = nn.Linear(6, 6).double()
    preconditioner, other = exact(nn.ModuleList([block, head])), exact(plain)
    x = torch.randn(7, 4, 6, dtype=torch.float64, requires_grad=True)
    first = head(checkpoint(block, x, use_reentrant=use_reentrant))
    scalar(first).backward()
    second = checkpoint(block, 2 * x.detach().requires_grad_(), use_reentrant=use_reentrant)
    scalar(head(second)).backward()
    scalar(head(plain(x))).backward()
    scalar(head(plain(2 * x))).backward()
    counts = {factor.name: float(torch.as_tensor(factor.counts["matrix"]).max()) for factor in preconditioner.factors}
    assert set(counts.values()) == {2 * 7 * 4} | {4 * 7 * 4}  # head was run for both
    preconditioner.precondition_()
    other.precondition_()
    for actual, expected in zip(block.parameters(), plain.parameters(), strict=True):
        assert_close(actual.grad, expected.grad, torch.float64)


def test_forwards_without_gradient_in_eval_or_of_copies_are_left_out():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    alone = copy.deepcopy(model)
    preconditioner, other = exact(model), exact(alone)
    x = torch.randn(8, 5, dtype=torch.float64)
    average = copy.deepcopy(model)
    with torch.no_grad():
        model(5 * x)
    model.eval()(7 * x)
    model.train()
    average(9 * x).sum().backward()
    scalar(model(x)).backward()
    scalar(alone(x)).backward()
    preconditioner.precondition_()
    other.precondition_()
    for actual, expected in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(actual.grad, expected.grad)


@pytest.mark.parametrize("batch_first", [True, False])
def test_masked_tokens_are_left_out(batch_first):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, batch_first=batch_first, dtype=torch.float64)
    linear, embedding = nn.Linear(8, 3, dtype=torch.float64), nn.Embedding(7, 8, dtype=torch.float64)
    model = nn.ModuleList([module, linear, embedding])
    preconditioner = exact(model)
    tokens = torch.randint(0, 7, (3, 5))
    lengths = torch.tensor([5, 2, 3])
    keep = torch.arange(5) < lengths[:, None]
    with preconditioner.token_mask(keep):
        x = embedding(tokens)
        arranged = x if batch_first else x.transpose(0, 1)
        y = module(arranged, arranged, arranged, key_padding_mask=~keep)[0]
        y = y if batch_first else y.transpose(0, 1)
        loss = scalar(linear(y)[keep])
    loss.backward()
    before = gradients(model)
    preconditioner.precondition_()
    inputs = attention_inputs(module, x, x, x, key_padding_mask=~keep)
    for name, z in (("0.in_proj_weight", x), ("0.out_proj.weight", inputs), ("1.weight", y)):
        assert_close(model.get_parameter(name).grad, dense(before[name], z[keep]), torch.float64)
    one_hot = F.one_hot(tokens[keep], 7).double()
    assert_close(embedding.weight.grad, dense(before["2.weight"].T, one_hot).T, torch.float64)


def test_mask_that_fits_nothing_is_an_error():
    model = nn.Linear(3, 2)
    preconditioner = exact(model)
    with (
        pytest.raises(ValueError, match=r"\(4, 5\) fits"),
        preconditioner.token_mask(torch.ones(4, 5, dtype=torch.bool)),
    ):
        model(torch.randn(4, 6, 3))


def test_transposed_linear_of_hugging_face():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    torch.manual_seed(0)
    layer = conv1d(4, 7).double()
    preconditioner = exact(layer)
    x = torch.randn(3, 5, 7, dtype=torch.float64)
    scalar(layer(x)).backward()
    before = layer.weight.grad.clone()
    preconditioner.precondition_()
    assert_close(layer.weight.grad, dense(before.T, x).T, torch.float64)


def test_running_average():
    torch.manual_seed(0)
    layer = nn.Linear(4, 3, bias=False, dtype=torch.float64)
    preconditioner = ActivationPreconditioner(layer, damping=DAMPING, form="average", stat_decay=0.8, update_every=1)
    moment = torch.zeros(4, 4, dtype=torch.float64)
    for step in range(5):
        x = torch.randn(6, 4, dtype=torch.float64)
        layer.zero_grad()
        scalar(layer(x)).backward()
        before = layer.weight.grad.clone()
        preconditioner.precondition_()
        batch = x.T @ x / 6
        moment = batch if step == 0 else 0.8 * moment + 0.2 * batch
    damped = moment + DAMPING * moment.trace() / 4 * torch.eye(4, dtype=torch.float64)
    assert_close(layer.weight.grad, before @ torch.linalg.inv(damped), torch.float64)


def test_leading_directions_are_exact_for_a_moment_of_their_rank_and_a_flat_rest():
    """Where S is a few directions on a flat floor, treating only those one by one loses nothing."""
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(200, 200, dtype=torch.float64)).Q
    x = basis * torch.cat([torch.linspace(30, 10, 8), torch.ones(192)]).double()
    layer = nn.Linear(200, 5, bias=False, dtype=torch.float64)
    preconditioner = ActivationPreconditioner(
        layer, damping=DAMPING, form="low_rank", stat_decay=0, update_every=2, rank=8
    )
    for _ in range(12):
        layer.zero_grad()
        scalar(layer(x)).backward()
        before = layer.weight.grad.clone()
        preconditioner.precondition_()
    expected = dense(before, x)
    assert (layer.weight.grad - expected).norm() / expected.norm() < 1e-3


def test_zero_inputs_leave_the_gradient_finite():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    nn.init.constant_(model[0].bias, -10.0)
    preconditioner = exact(model)
    model(torch.randn(5, 3)).sum().backward()
    preconditioner.precondition_()
    assert all(p.grad.isfinite().all() for p in model.parameters())
