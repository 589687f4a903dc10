"""What is covered of models that people train: the project's policies, diffusers' networks, a Hugging Face GPT-2."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dopr_robot.optim import DoPr
from dopr_robot.policies import PolicySpec, make_policy
from dopr_robot.policies.networks import NETWORKS
from dopr_robot.policies.objectives import OBJECTIVES
from dopr_robot.policies.spec import ArraySpec

Case = tuple[nn.Module, Callable[[], Tensor]]


def unet2d_condition() -> Case:
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    sample, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 12)
    return model, lambda: model(sample, torch.tensor([3, 40]), text).sample.square().mean()


def dit() -> Case:
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=8, num_embeds_ada_norm=10
    )
    sample = torch.randn(2, 4, 8, 8)
    labels = torch.tensor([1, 7])
    return model, lambda: model(sample, torch.tensor([3, 40]), labels).sample.square().mean()


def gpt2() -> Case:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2))
    tokens = torch.randint(0, 50, (3, 12))
    return model, lambda: model(input_ids=tokens, labels=tokens).loss


def policy(name: str) -> Case:
    spec = PolicySpec({"state": ArraySpec((5,))}, ArraySpec((3,)), n_obs_steps=2, horizon=16, n_action_steps=8)
    model = make_policy({"name": name}, spec)
    limits = {"min": 0.0, "max": 1.0, "mean": 0.5, "std": 0.3}
    model.fit_normalizer(
        {
            key: {name: np.full(size, value) for name, value in limits.items()}
            for key, size in (("state", 5), ("action", 3))
        }
    )
    batch: dict[str, Any] = {"observation": {"state": torch.rand(24, 2, 5)}, "action": torch.rand(24, 16, 3)}
    if model.fits:
        model.fit([batch])
    return model, lambda: model.loss(batch)[0]


OTHERS = {"UNet2DConditionModel": unet2d_condition, "DiTTransformer2DModel": dit, "GPT-2": gpt2}
OURS = [*(f"flow_{network}" for network in NETWORKS), *(f"{objective}_mlp" for objective in OBJECTIVES)]
CASES = OTHERS | {name: lambda name=name: policy(name) for name in OURS}


@pytest.mark.parametrize("case", CASES)
def test_at_least_95_percent_of_the_matrices_are_covered_and_all_of_them_fire(case):
    torch.manual_seed(0)
    model, loss = CASES[case]()
    optimizer = DoPr(torch.optim.AdamW(model.parameters(), lr=1e-3), model)
    for _ in range(2):
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    coverage = optimizer.coverage()
    assert optimizer.preconditioner.step == 2
    assert coverage.never_fired == [], f"\n{coverage}"
    assert coverage.matrix_share >= 0.95, f"\n{coverage}"
    assert [row.name for row in coverage] == [name for name, _ in model.named_parameters()]
    left = [row for row in coverage if not row.preconditioned]
    assert all(row.how for row in left)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("regression_mlp", ["network.layers.0.weight"]),
        ("flow_transformer", ["network.embed.weight", "network.observe.0.weight"]),
        ("diffusion_unet", ["network.down.0.first.first.0.weight", "network.down.0.first.residual.weight"]),
        ("regression_lstm", ["network.history.observe.weight"]),
    ],
)
def test_input_layers_have_a_damping_of_their_own(name, first):
    torch.manual_seed(0)
    model = make_policy({"name": name}, PolicySpec({"state": ArraySpec((5,))}, ArraySpec((2,))))
    optimizer = DoPr(torch.optim.AdamW(model.parameters()), model, input_damping=0.25)
    own = [row.name for row in optimizer.coverage() if row.how.endswith("damping 0.25")]
    assert own == first
    assert "damping=1.0, input_damping=0.25" in repr(optimizer)


@pytest.mark.parametrize("form", ["batch", "average", "low_rank"])
def test_steps_with_a_damping_of_input_layers_are_those_of_a_group_with_it(form):
    trained = []
    for options, own in (({"input_damping": 0.1}, {}), ({}, {"damping": 0.1}), ({}, {})):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
        groups = [{"params": model[0].parameters(), **own}, {"params": model[1:].parameters()}]
        optimizer = DoPr(torch.optim.AdamW(groups, lr=1e-2), model, form=form, **options)
        for _ in range(3):
            model(torch.randn(16, 6)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        trained.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])


def test_a_damping_of_input_layers_goes_with_a_copy():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = copy.deepcopy(DoPr(torch.optim.SGD(model.parameters(), lr=0.1), model, input_damping=0.1))
    assert [factor.damping for factor in optimizer.preconditioner.factors] == [0.1, None]


class Wrapper(nn.Module):
    """As DDP is one."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


@pytest.mark.parametrize("of", [Wrapper, torch.compile, lambda m: [m], lambda m: [Wrapper(m)], lambda m: {"actor": m}])
def test_input_layers_of_a_model_that_is_wrapped_or_one_of_several(of):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = DoPr(torch.optim.SGD(model.parameters(), lr=0.1), of(model), input_damping=0.1)
    assert [factor.damping for factor in optimizer.preconditioner.factors] == [0.1, None, None]


def test_a_token_embedding_is_an_input_layer():
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10))
    optimizer = DoPr(torch.optim.SGD(model.parameters(), lr=0.1), model, input_damping=0.1)
    assert [factor.damping for factor in optimizer.preconditioner.factors] == [0.1, None, None]


def test_input_layers_that_are_not_to_be_found():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"input_damping=0\.1 needs the model"):
        DoPr(torch.optim.SGD(model.parameters(), lr=0.1), input_damping=0.1)
    with pytest.raises(ValueError, match="input_damping=0 must be a positive number"):
        DoPr(torch.optim.SGD(model.parameters(), lr=0.1), model, input_damping=0)
    square = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="input_damping: no layer of Linear is known to take its inputs: give those"):
        DoPr(torch.optim.SGD(square.parameters(), lr=0.1), square, input_damping=0.1)
