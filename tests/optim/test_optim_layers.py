"""Recurrent layers, embedding bags, bilinear layers and stacks of experts, against the formula computed densely in float64."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from dopr_robot.optim import ActivationPreconditioner, DoPr

DOUBLE = torch.float64


def exact(model: nn.Module, **options) -> ActivationPreconditioner:
    return ActivationPreconditioner(model, damping=0.1, form="batch", **options)


def dense(gradient: Tensor, z: Tensor) -> Tensor:
    """``G (S + 0.1 tr(S)/d I)^-1`` for a gradient [rows, d] and inputs [..., d]."""
    z = z.detach().flatten(0, -2)
    moment = z.T @ z / len(z)
    return gradient @ torch.linalg.inv(
        moment + 0.1 * moment.trace() / len(moment) * torch.eye(len(moment), dtype=DOUBLE)
    )


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def scalar(y: Tensor) -> Tensor:
    """A loss whose gradient differs between all entries."""
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).sin().view(y.shape)
    return (weights * y).sum() + y.square().mean()


def assert_close(actual: Tensor, expected: Tensor) -> None:
    error = float((actual - expected).detach().norm() / expected.detach().norm())
    assert error < 1e-9, f"relative error {error:.2e}"


CELLS = {nn.RNN: nn.RNNCell, nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell}


def steps_of(
    module: nn.RNNBase, sequences: list[Tensor], start: Tensor, memory: Tensor
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """What each weight of a module is multiplied by, cell by cell and sequence by sequence, and what reaches the top."""
    inputs: dict[str, Tensor] = {}
    directions = 1 + module.bidirectional
    for layer in range(module.num_layers):
        outputs = []
        for direction in range(directions):
            suffix = f"l{layer}" + "_reverse" * direction
            names = [f"{part}_{suffix}" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            cell = CELLS[type(module)](sequences[0].shape[1], module.hidden_size, dtype=DOUBLE)
            cell.load_state_dict({name.split("_l")[0]: getattr(module, name) for name in names})
            seen, before, hidden = [], [], []
            for number, sequence in enumerate(sequences):
                h = start[layer * directions + direction, number]
                c = memory[layer * directions + direction, number]
                states = []
                for x in sequence.flip(0) if direction else sequence:
                    seen.append(x)
                    before.append(h)
                    if isinstance(cell, nn.LSTMCell):
                        h, c = cell(x, (h, c))
                    else:
                        h = cell(x, h)
                    states.append(h)
                hidden.append(torch.stack(states[::-1] if direction else states))
            inputs |= {names[0]: torch.stack(seen), names[1]: torch.stack(before)}
            outputs.append(hidden)
        sequences = [torch.cat(parts, 1) for parts in zip(*outputs, strict=True)]
    return {name: z.detach() for name, z in inputs.items()}, sequences


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("both", [False, True], ids=["forward", "both ways"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", CELLS)
def test_recurrent(kind, layers, both, packed):
    torch.manual_seed(0)
    module = kind(3, 4, layers, bidirectional=both, batch_first=True, dtype=DOUBLE)
    plain = copy.deepcopy(module)
    lengths = [2, 6, 3] if packed else [5, 5, 5]
    sequences = [torch.randn(length, 3, dtype=DOUBLE) for length in lengths]
    start, memory = torch.randn(2, layers * (1 + both), 3, 4, dtype=DOUBLE)
    x = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    if packed:
        x = pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
    hx = (start, memory) if kind is nn.LSTM else start
    preconditioner = exact(module)
    output, _ = module(x, hx)
    expected, _ = plain(x, hx)
    top = output.data if isinstance(output, PackedSequence) else output
    assert_close(top, expected.data if isinstance(expected, PackedSequence) else expected)
    scalar(top).backward()
    before = gradients(module)
    preconditioner.precondition_()
    inputs, _ = steps_of(plain, sequences, start, memory)
    assert set(inputs) == {name for name in before if name.startswith("weight")}
    for name, z in inputs.items():
        assert_close(getattr(module, name).grad, dense(before[name], z))


def test_recurrent_whose_last_state_alone_is_used_with_biases():
    torch.manual_seed(0)
    module = nn.GRU(3, 4, 2, dtype=DOUBLE)
    plain = copy.deepcopy(module)
    preconditioner = exact(module, include_bias=True)
    x = torch.randn(5, 2, 3, dtype=DOUBLE)
    scalar(module(x)[1][0]).backward()  # the lower layer's: nothing reaches the upper one
    before = gradients(module)
    preconditioner.precondition_()
    zeros = torch.zeros(2, 2, 4, dtype=DOUBLE)
    inputs, _ = steps_of(plain, list(x.unbind(1)), zeros, zeros)
    for part in ("ih", "hh"):
        z = inputs[f"weight_{part}_l0"]
        z = torch.cat([z, torch.ones_like(z[:, :1])], 1)
        whole = torch.cat([before[f"weight_{part}_l0"], before[f"bias_{part}_l0"][:, None]], 1)
        expected = dense(whole, z)
        assert_close(getattr(module, f"weight_{part}_l0").grad, expected[:, :-1])
        assert_close(getattr(module, f"bias_{part}_l0").grad, expected[:, -1])
        assert not getattr(module, f"weight_{part}_l1").grad.any()


def test_recurrent_with_dropout_between_its_layers():
    torch.manual_seed(0)
    module = nn.LSTM(3, 4, 2, dropout=0.5, dtype=DOUBLE)
    plain = copy.deepcopy(module)
    preconditioner = exact(module)
    x = torch.randn(5, 2, 3, dtype=DOUBLE)
    torch.manual_seed(1)
    output, _ = module(x)
    torch.manual_seed(1)
    assert_close(output, plain(x)[0])
    scalar(output).backward()
    before = gradients(module)
    preconditioner.precondition_()
    lower = nn.LSTM(3, 4, dtype=DOUBLE)
    lower.load_state_dict({name: getattr(plain, name) for name in lower.state_dict()})
    torch.manual_seed(1)
    z = F.dropout(lower(x)[0], 0.5)
    assert_close(module.weight_ih_l1.grad, dense(before["weight_ih_l1"], z))


def test_recurrent_mask_leaves_padding_out():
    torch.manual_seed(0)
    module = nn.GRU(3, 4, batch_first=True, dtype=DOUBLE)
    plain = copy.deepcopy(module)
    optimizer = DoPr(torch.optim.SGD(module.parameters(), lr=1.0), module, damping=0.1, form="batch")
    x = torch.randn(2, 5, 3, dtype=DOUBLE)
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    with optimizer.token_mask(mask):
        scalar(module(x)[0][mask]).backward()
    before = gradients(module)
    optimizer.preconditioner.precondition_()
    zeros = torch.zeros(1, 2, 4, dtype=DOUBLE)
    inputs, _ = steps_of(plain, [x[0], x[1, :2]], zeros, zeros)
    for name, z in inputs.items():
        assert_close(getattr(module, name).grad, dense(before[name], z))


@pytest.mark.parametrize("kind", CELLS.values())
def test_cells(kind):
    torch.manual_seed(0)
    cell = kind(3, 4, dtype=DOUBLE)
    preconditioner = exact(cell)
    x, h, c = (torch.randn(6, size, dtype=DOUBLE) for size in (3, 4, 4))
    seen = [torch.zeros_like(h), h]
    loss = 0.0
    for state in (None, h):
        output = cell(x) if state is None else cell(x, (state, c) if kind is nn.LSTMCell else state)
        loss = loss + scalar(output[0] if kind is nn.LSTMCell else output)
    loss.backward()
    before = gradients(cell)
    preconditioner.precondition_()
    assert_close(cell.weight_ih.grad, dense(before["weight_ih"], x))
    assert_close(cell.weight_hh.grad, dense(before["weight_hh"], torch.cat(seen)))


def test_recurrent_trains_as_before_in_every_form():
    for form in ("auto", "average", "low_rank", "sketch"):
        torch.manual_seed(0)
        module = nn.Sequential(nn.LSTM(3, 4, 2, batch_first=True, proj_size=2))
        optimizer = DoPr(torch.optim.AdamW(module.parameters(), lr=1e-2), module, form=form)
        for _ in range(3):
            module(torch.randn(2, 5, 3))[0].square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        rows = {row.name: row for row in optimizer.coverage()}
        assert rows["0.weight_hh_l1"].preconditioned
        assert "never leave the kernel" in rows["0.weight_hr_l0"].how


@pytest.mark.parametrize("include_bias", [False, True])
def test_bilinear(include_bias):
    torch.manual_seed(0)
    layer = nn.Bilinear(3, 4, 5, dtype=DOUBLE)
    preconditioner = exact(layer, include_bias=include_bias)
    a, b = torch.randn(2, 7, 3, dtype=DOUBLE), torch.randn(2, 7, 4, dtype=DOUBLE)
    scalar(layer(a, input2=b)).backward()
    before = gradients(layer)
    preconditioner.precondition_()
    z = torch.einsum("bti,btj->btij", a, b).flatten(2)
    gradient = before["weight"].flatten(1)
    if include_bias:
        z = torch.cat([z, torch.ones_like(z[..., :1])], -1)
        gradient = torch.cat([gradient, before["bias"][:, None]], 1)
    expected = dense(gradient, z)
    assert_close(layer.weight.grad.flatten(1), expected[:, :12])
    if include_bias:
        assert_close(layer.bias.grad, expected[:, 12])


@pytest.mark.parametrize("form", ["rows", "offsets", "last offset"])
@pytest.mark.parametrize("mode", ["sum", "mean", "weighted"])
def test_embedding_bag(mode, form):
    torch.manual_seed(0)
    options = {"mode": "mean" if mode == "mean" else "sum", "padding_idx": 2, "dtype": DOUBLE}
    layer = nn.EmbeddingBag(9, 4, include_last_offset=form == "last offset", **options)
    preconditioner = exact(layer)
    tokens = torch.tensor([[0, 1, 1, 2], [2, 2, 8, 1], [7, 7, 7, 0]])
    weights = torch.rand(3, 4, dtype=DOUBLE) if mode == "weighted" else None
    bags = [(row, None if weights is None else weights[i]) for i, row in enumerate(tokens)]
    if form == "rows":
        output = layer(tokens, per_sample_weights=weights)
    else:
        starts = [0, 4, 4, 8] + ([12] if form == "last offset" else [])  # the second bag is empty
        bags.insert(1, (tokens[0, :0], None))
        flat = None if weights is None else weights.flatten()
        output = layer(tokens.flatten(), torch.tensor(starts), flat)
    z = torch.zeros(len(bags), 9, dtype=DOUBLE)
    for row, (bag, weight) in zip(z, bags, strict=True):
        for i, token in enumerate(bag):
            if token != 2:
                row[token] += 1 if weight is None else weight[i]
        if mode == "mean" and row.any():
            row /= row.sum()
    assert_close(output, z @ layer.weight)
    scalar(output).backward()
    before = layer.weight.grad.clone()
    preconditioner.precondition_()
    frequency = z.square().mean(0)
    damping = 0.1 * frequency.mean()
    assert_close(layer.weight.grad, before / (frequency + damping)[:, None])
    assert "as if uncorrelated" in str(preconditioner.coverage())


def test_what_is_left_says_why():
    model = nn.ModuleDict(
        {
            "largest": nn.EmbeddingBag(5, 4, mode="max"),
            "sparse": nn.EmbeddingBag(5, 4, sparse=True),
            "weight_norm": parametrizations.weight_norm(nn.Linear(3, 2)),
            "spectral_norm": parametrizations.spectral_norm(nn.Linear(3, 2)),
            "linear": nn.Linear(3, 2),
        }
    )
    rows = {row.name: row.how for row in exact(model).coverage()}
    assert "maximum over a bag" in rows["largest.weight"]
    assert "gradient is sparse" in rows["sparse.weight"]
    assert "parametrized (WeightNorm)" in rows["weight_norm.parametrizations.weight.original1"]
    assert "parametrized (SpectralNorm)" in rows["spectral_norm.parametrizations.weight.original"]


@pytest.mark.parametrize("way", ["compiled", "without the model"])
def test_recurrent_is_seen(way):
    torch._dynamo.reset()
    torch.manual_seed(0)
    module = nn.GRU(3, 4, 2, batch_first=True, dtype=DOUBLE)
    plain = copy.deepcopy(module)
    optimizers = [
        DoPr(
            torch.optim.SGD(each.parameters(), lr=0.1), None if way == "without the model" and each is module else each
        )
        for each in (module, plain)
    ]
    run = torch.compile(module, backend="aot_eager") if way == "compiled" else module
    for _ in range(3):
        x = torch.randn(2, 5, 3, dtype=DOUBLE)
        for forward, optimizer in zip((run, plain), optimizers, strict=True):
            scalar(forward(x)[0]).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert optimizers[0].coverage().matrix_share == 1
    for actual, expected in zip(module.parameters(), plain.parameters(), strict=True):
        assert_close(actual, expected)


class Stack(nn.Module):
    """Four experts: each way of multiplying is what it says."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        shape = (4, 3, 5) if way in ("bmm transposed", "einsum [in, out]") else (4, 5, 3)
        self.weight = nn.Parameter(torch.randn(shape, dtype=DOUBLE))

    def forward(self, x: Tensor, which: Tensor) -> Tensor:
        """``x`` [n, 3] by the experts ``which`` [n], in order; [n, 5]. Where all experts take all of x: [4, n, 5]."""
        w, many = self.weight, torch.bincount(which, minlength=4)
        match self.way:
            case "loop":
                return torch.cat([F.linear(part, w[e]) for e, part in enumerate(x.split(many.tolist())) if len(part)])
            case "halves":
                parts = [(w[e], part) for e, part in enumerate(x.split(many.tolist())) if len(part)]
                return torch.cat([torch.cat([part @ m[:2].T, part @ m[2:].mT], -1) for m, part in parts])
            case "iterated":
                return torch.stack([m @ x.T for m in w]).mT
            case "bmm transposed":
                return torch.bmm(x.expand(4, -1, -1), w)
            case "matmul":
                return x @ w.transpose(1, 2)
            case "einsum":
                return torch.einsum("nd,efd->nef", x, w).transpose(0, 1)
            case "einsum [in, out]":
                return torch.einsum("end, edf -> enf", x.expand(4, -1, -1), w)
            case "taken":
                return torch.bmm(w[which], x.unsqueeze(-1)).squeeze(-1)
            case "scaled":
                return F.linear(x, 2 * w[0]) + F.linear(x, w[1])
        raise AssertionError(self.way)


WAYS = ("loop", "halves", "iterated", "bmm transposed", "matmul", "einsum", "einsum [in, out]", "taken")


@pytest.mark.parametrize("form", ["batch", "average"])
@pytest.mark.parametrize("way", WAYS)
def test_stack_of_experts(way, form):
    torch.manual_seed(0)
    module = Stack(way)
    optimizer = DoPr(torch.optim.SGD(module.parameters(), lr=1.0), module, damping=0.1, form=form)
    assert "once a product with it was seen" in str(optimizer.coverage())
    x, which = torch.randn(12, 3, dtype=DOUBLE), torch.tensor([0] * 5 + [1] + [3] * 6)  # none goes to the third
    output = module(x, which)
    scalar(output).backward()
    before = module.weight.grad.clone()
    optimizer.preconditioner.precondition_()
    for expert in range(4):
        z = x if output.dim() == 3 else x[which == expert]
        gradient, actual = (
            each[expert].T if "transposed" in way or "in, out" in way else each[expert]
            for each in (before, module.weight.grad)
        )
        if len(z):
            assert_close(actual, dense(gradient, z))
        else:
            assert not actual.any()
    assert optimizer.coverage().matrix_share == 1
    assert "4 matrices, each with its own S" in str(optimizer.coverage())


def test_stack_used_otherwise_is_left_to_the_base():
    torch.manual_seed(0)
    module = Stack("scaled")
    module.linear = nn.Linear(3, 3, dtype=DOUBLE)
    optimizer = DoPr(torch.optim.SGD(module.parameters(), lr=1.0), module, form="batch")
    module(module.linear(torch.randn(4, 3, dtype=DOUBLE)), torch.arange(4)).square().sum().backward()
    before = module.weight.grad.clone()
    optimizer.preconditioner.precondition_()
    assert torch.equal(module.weight.grad, before)
    assert "used otherwise too (by mul)" in str(optimizer.coverage())


@pytest.mark.parametrize("way", ["eager", "grouped_mm", "batched_mm"])
def test_mixtral(way):
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = MixtralConfig(vocab_size=20, num_hidden_layers=1, num_local_experts=4, **sizes)
    config._experts_implementation = way
    torch.manual_seed(0)
    model = MixtralForCausalLM(config)
    optimizer = DoPr(torch.optim.AdamW(model.parameters(), lr=1e-3), model, damping=0.1)
    experts = model.model.layers[0].mlp.experts
    seen = {}
    experts.register_forward_pre_hook(lambda module, args: seen.update(zip("xkw", args, strict=True)))
    tokens = torch.randint(0, 20, (2, 5))
    for step in range(2):
        model(input_ids=tokens, labels=tokens).loss.backward()
        if step == 0:
            before = gradients(experts)
            optimizer.preconditioner.precondition_()
            x, chosen = seen["x"].detach().double(), seen["k"]
            for expert in chosen.unique():
                z = x[(chosen == expert).any(-1)]
                gate, up = F.linear(z, experts.gate_up_proj[expert].double()).chunk(2, -1)
                for name, inputs in (("gate_up_proj", z), ("down_proj", F.silu(gate) * up)):
                    expected = dense(before[name][expert].double(), inputs)
                    assert (getattr(experts, name).grad[expert] - expected).norm() < 1e-4 * expected.norm()
        else:
            optimizer.step()
        optimizer.zero_grad()
    left = [row.name for row in optimizer.coverage() if len(row.shape) > 1 and not row.preconditioned]
    assert left == ["model.layers.0.mlp.gate.weight"]  # a router that multiplies by itself, without a linear layer
    assert optimizer.coverage().never_fired == []


@pytest.mark.sim
def test_lstm_of_robomimic():
    import robomimic.utils.obs_utils as ObsUtils
    from robomimic.algo import algo_factory
    from robomimic.config import config_factory

    config = config_factory("bc")
    config.observation.modalities.obs.low_dim = ["object"]
    with config.unlocked():
        config.algo.rnn.enabled, config.algo.rnn.hidden_dim, config.algo.rnn.num_layers = True, 16, 2
        config.train.seq_length = 5
    ObsUtils.initialize_obs_utils_with_config(config)
    algo = algo_factory("bc", config, {"object": [10]}, ac_dim=7, device=torch.device("cpu"))
    optimizer = algo.optimizers["policy"] = DoPr(algo.optimizers["policy"], algo.nets["policy"])
    algo.set_train()
    batch = {"obs": {"object": torch.randn(8, 5, 10)}, "actions": torch.rand(8, 5, 7)}
    for _ in range(3):
        algo.train_on_batch(algo.process_batch_for_training(batch), epoch=0)
    assert optimizer.coverage().matrix_share == 1
    assert optimizer.coverage().never_fired == []
