"""The bases against torch's own or the method's published update, and by name."""

import copy
import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dopr_robot.optim import (
    ActivationPreconditioner,
    AdaMuon,
    DoPr,
    Lion,
    Muon,
    Signum,
    make_optimizer,
    newton_schulz,
    optimizer_names,
    parameter_groups,
    saved_options,
)

PAPER = (64, 48)  # a matrix of the sizes that the papers' ablations start from


def trajectory(parameter: Tensor, steps: int = 4) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn_like(parameter) for _ in range(steps)]


def run(optimizer: torch.optim.Optimizer, parameter: Tensor) -> Tensor:
    for gradient in trajectory(parameter):
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def matrix(seed: int = 0) -> nn.Parameter:
    torch.manual_seed(seed)
    return nn.Parameter(torch.randn(PAPER))


def test_muon_is_torchs_where_that_can_run():
    start, theirs = matrix().detach(), matrix()
    options = {"lr": 1e-2, "weight_decay": 0.1, "momentum": 0.95}
    run(torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **options), theirs)
    for dtype in (torch.bfloat16, torch.float32):
        ours = matrix()
        run(Muon([ours], ns_dtype=dtype, **options), ours)
        # Torch's iterates in bfloat16, whose rounding differs from one processor to another.
        assert (ours - theirs).norm() < 0.05 * (theirs - start).norm()


@pytest.mark.parametrize("shape", [(8, 8), (4, 20), (20, 4)])
def test_newton_schulz_nears_the_orthogonal_factor(shape):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    for _ in range(5):  # the same quintic on the singular values, which is what the iteration is meant to do
        s = s if _ else s / x.norm()
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(newton_schulz(x, dtype=torch.float64), u @ torch.diag(s) @ vh)
    assert s.min() > 0.6
    assert s.max() < 1.3


def test_muon_flattens_convolutions():
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(8, 4, 3))
    flat = nn.Parameter(kernel.detach().flatten(1).clone())
    gradient = torch.randn(8, 4, 3)
    kernel.grad, flat.grad = gradient, gradient.flatten(1)
    Muon([kernel], lr=0.1).step()
    Muon([flat], lr=0.1).step()
    torch.testing.assert_close(kernel.flatten(1), flat)


@pytest.mark.parametrize("make", [Muon, AdaMuon])
def test_what_is_no_hidden_matrix_goes_to_adamw(make):
    ours, theirs = matrix(), matrix()
    options = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.8, 0.95)}
    run(make([{"params": [ours], "use_muon": False}], **options), ours)
    run(torch.optim.AdamW([theirs], **options), theirs)
    torch.testing.assert_close(ours, theirs)
    with pytest.raises(ValueError, match="use_muon=False"):
        make([nn.Parameter(torch.zeros(3))])


def test_adamuon_is_the_papers_algorithm():
    ours, w = matrix(), matrix().detach()
    lr, decay, mu, eps = 1e-2, 0.1, 0.95, 1e-8
    m, v = torch.zeros(PAPER), torch.zeros(PAPER)
    for gradient in trajectory(w):
        m = mu * m + gradient
        o = newton_schulz(m.sign())
        v = mu * v + (1 - mu) * o * o
        scaled = o / (v.sqrt() + eps)
        w = w - lr * (0.2 * math.sqrt(w.numel()) / scaled.norm() * scaled + decay * w)
    run(AdaMuon([ours], lr=lr, weight_decay=decay, momentum=mu, nesterov=False), ours)
    torch.testing.assert_close(ours.detach(), w)


def test_signum_and_lion_are_their_papers_algorithms():
    lr, decay = 1e-2, 0.1
    ours, w, m = matrix(), matrix().detach(), torch.zeros(PAPER)
    for gradient in trajectory(w):
        m = 0.9 * m + 0.1 * gradient
        w = (1 - lr * decay) * w - lr * m.sign()
    run(Signum([ours], lr=lr, weight_decay=decay, momentum=0.9), ours)
    torch.testing.assert_close(ours.detach(), w)
    ours, w, m = matrix(), matrix().detach(), torch.zeros(PAPER)
    for gradient in trajectory(w):
        w = w - lr * ((0.9 * m + 0.1 * gradient).sign() + decay * w)
        m = 0.99 * m + 0.01 * gradient
    run(Lion([ours], lr=lr, weight_decay=decay), ours)
    torch.testing.assert_close(ours.detach(), w)


@settings(max_examples=25, deadline=None)
@given(
    scale=st.floats(1e-3, 1e3),
    name=st.sampled_from(["signum", "lion", "muon", "adamuon"]),
    seed=st.integers(0, 1000),
)
def test_sign_and_orthogonal_methods_do_not_depend_on_the_gradients_scale(scale, name, seed):
    make = {"signum": Signum, "lion": Lion, "muon": Muon, "adamuon": AdaMuon}[name]
    torch.manual_seed(seed)
    first = nn.Parameter(torch.randn(6, 5, dtype=torch.float64))
    second = nn.Parameter(first.detach().clone())
    gradient = torch.randn(6, 5, dtype=torch.float64)
    first.grad, second.grad = gradient, scale * gradient
    make([first], lr=0.1).step()
    make([second], lr=0.1).step()
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [Muon, AdaMuon, Signum, Lion])
@pytest.mark.parametrize("bad", [{"lr": -1.0}, {"weight_decay": -0.1}, {"lr": float("nan")}])
def test_bad_hyperparameters_name_the_value(make, bad):
    name, value = next(iter(bad.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        make([matrix()], **bad)


def policy() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(7, 6),
        nn.Linear(6, 8),
        nn.LayerNorm(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 8),
        nn.Tanh(),
        nn.Linear(8, 2),
    )


def test_names():
    bases = ["sgd", "adam", "adamw", "muon", "signum", "adamuon", "lion", "soap", "shampoo", "schedulefree_adamw"]
    assert optimizer_names() == [*bases, *(f"dopr_{name}" for name in bases)]


@pytest.mark.parametrize("name", optimizer_names())
def test_every_name_makes_one_optimizer_that_learns_and_resumes(name):
    model = policy()
    options = {"momentum": 0.9} if name.endswith("sgd") else {}
    options["lr"] = {"shampoo": 0.1, "soap": 0.01}.get(name.removeprefix("dopr_"), 3e-3)
    optimizer = make_optimizer(name, model, weight_decay=0.01, **options)
    assert isinstance(optimizer, DoPr) == name.startswith("dopr_")
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    tokens = torch.randint(0, 7, (32, 3))
    target = torch.randn(7, 2)[tokens].sum(1)
    losses = []

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            loss = (model(tokens) - target).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))

    train(model, optimizer, 40)
    assert losses[-1] < 0.8 * losses[0]
    twin = copy.deepcopy(model)
    second = make_optimizer(name, twin, weight_decay=0.01, **options)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 12)
    train(twin, second, 12)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_groups_decay_matrices_only_and_give_hidden_ones_to_muon():
    model = policy()
    names = {p: name for name, p in model.named_parameters()}
    groups = {
        (group["weight_decay"], group["use_muon"]): {names[p] for p in group["params"]}
        for group in parameter_groups(model, 0.1, split_matrices=True)
    }
    assert groups == {
        (0.1, True): {"1.weight", "5.weight"},
        (0.1, False): {"0.weight", "7.weight"},  # the embedding and the output
        (0.0, False): {"1.bias", "2.weight", "2.bias", "5.bias", "7.bias"},
    }
    assert all("use_muon" not in group for group in parameter_groups(model, 0.1))


def test_options_go_where_they_belong():
    optimizer = make_optimizer("dopr_adamw", policy(), lr=1e-3, betas=(0.8, 0.9), damping=0.3, update_every=5)
    assert optimizer.base.defaults["betas"] == (0.8, 0.9)
    assert optimizer.param_groups[0]["damping"] == 0.3
    assert optimizer.param_groups[0]["update_every"] == 5
    frozen = policy()
    frozen[1].requires_grad_(False)
    chosen = {p for group in make_optimizer("adamw", frozen, lr=1e-3).param_groups for p in group["params"]}
    assert not chosen & set(frozen[1].parameters())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dopr", {}, "unknown optimizer 'dopr'"),
        ("adamww", {}, "unknown optimizer 'adamww'"),
        ("dopr_dopr_sgd", {}, "unknown optimizer"),
        ("adamw", {"damping": 0.1}, "adamw has no option 'damping'"),
        ("dopr_adamw", {"dampin": 0.1}, "dopr_adamw has no option 'dampin'"),
    ],
)
def test_unknown_names_and_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(name, policy(), lr=1e-3, **options)


@pytest.mark.parametrize(
    ("options", "form"),
    [
        ({"rank": "auto", "update_every": 10, "stat_decay": 0.9}, "low_rank"),
        ({"rank": 16, "update_every": 1}, "low_rank"),
        ({"rank": None, "update_every": 10}, "average"),
        ({"rank": "auto", "update_every": 1, "stat_decay": 0.0}, "average"),
        ({}, "low_rank"),
        ({"form": "batch"}, "batch"),
    ],
)
def test_a_configuration_from_before_there_were_forms_means_what_it_meant(options, form):
    today = saved_options({"name": "dopr_adamw", **options})
    assert today["form"] == form
    make_optimizer(model=torch.nn.Linear(3, 2), lr=1e-3, **today)
    assert saved_options({"name": "adamw"}) == {"name": "adamw"}


@pytest.mark.parametrize("make", [DoPr, Muon, Signum, Lion])
def test_docstrings_name_every_option_with_its_default(make):
    documented = ActivationPreconditioner if make is DoPr else make
    for name, parameter in inspect.signature(documented).parameters.items():
        if parameter.default is inspect.Parameter.empty or name in ("model", "parameters"):
            continue
        assert f"``{name}={parameter.default!r}``".replace("'", '"') in make.__doc__, name


def test_a_dopr_shows_itself_in_a_line():
    model = policy()
    optimizer = make_optimizer("dopr_adamw", model, lr=1e-3, weight_decay=0.1, form="average")
    shown = "DoPr(AdamW(lr=0.001, weight_decay=0.1|0), form='average', damping=1.0; 4 weights, 100.0% of the entries of matrices; step 0)"
    assert repr(optimizer) == shown
    groups = [
        {"params": model[1].parameters(), "damping": 0.5},
        {"params": model[5].parameters(), "precondition": False},
    ]
    text = repr(DoPr(torch.optim.SGD(groups, lr=1e-3, momentum=0.9), model))
    assert text.startswith("DoPr(SGD(lr=0.001, weight_decay=0, momentum=0.9), form='batch', damping=0.5, 1.0; ")
    assert repr(DoPr(torch.optim.SGD(model.parameters(), lr=torch.tensor(0.1)), model)).startswith("DoPr(SGD(lr=")
