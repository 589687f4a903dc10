"""Every objective on every network: one suite, so that a new one is tested by being registered."""

import pytest
import torch

from dopr_robot.optim import DoPr
from dopr_robot.policies import NETWORKS, OBJECTIVES, POLICIES, load_policy, save_policy

PAIRS = [f"{objective}_{network}" for objective in OBJECTIVES for network in NETWORKS]
DRAWS = {"flow", "diffusion", "mixture", "bet"}
"""Objectives whose actions differ from draw to draw."""

THIRD = [
    f"{objective}_{network}"
    for row, objective in enumerate(OBJECTIVES)
    for column, network in enumerate(NETWORKS)
    if (row + column) % 3 == 0
]
"""Every objective on two networks or more, and every network under two objectives or more."""

pairs = pytest.mark.parametrize("name", PAIRS)


def objective_of(policy) -> str:
    return policy.config.objective["name"]


def shake(policy) -> None:
    """Weights of some size everywhere: some networks begin at zero."""
    torch.manual_seed(1)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.3)


def test_every_pair_is_registered():
    assert len(PAIRS) >= 36 and set(PAIRS) <= set(POLICIES)


@pytest.mark.parametrize("name", THIRD)
def test_the_loss_falls_by_nine_tenths_on_one_batch(name, small, batch):
    policy, data = small(name), batch()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    losses = []
    for step in range(200):
        # Four draws of noise in turn, so that a falling loss is learning and not luck.
        torch.manual_seed(step % 4)
        loss, parts = policy(data)
        losses.append(loss.item())
        # A likelihood may fall below zero, so the fall is measured from where it began.
        if len(losses) > 4 and sum(losses[-4:]) / 4 < losses[0] - 0.9 * abs(losses[0]):
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    else:
        pytest.fail(f"from {losses[0]:.3f} to {sum(losses[-4:]) / 4:.3f}")
    assert sum(parts.values()).item() == pytest.approx(losses[-1], abs=1e-5)


@pairs
def test_dopr_covers_every_matrix_and_every_parameter_moves(name, small, batch):
    policy, data = small(name), batch(16)
    before = {key: value.clone() for key, value in policy.named_parameters()}
    optimizer = DoPr(torch.optim.AdamW(policy.parameters(), lr=1e-2, weight_decay=0.0), policy)
    for step in range(4):
        torch.manual_seed(step)
        policy(data)[0].backward()
        optimizer.step()
        if step == 2:  # networks that begin at zero pass no gradient in the first steps
            still = [key for key, value in policy.named_parameters() if not value.grad.any()]
            assert not still
        optimizer.zero_grad()
    assert not [key for key, value in policy.named_parameters() if torch.equal(value, before[key])]
    coverage = optimizer.coverage()
    assert not coverage.never_fired
    # What is added and multiplies nothing, positions and queries, is a table and no matrix.
    left = [row.name for row in coverage if len(row.shape) > 1 and not row.preconditioned]
    assert all(key.endswith(("position", "query")) for key in left), left


@pairs
def test_actions_depend_on_the_row_s_own_generator(name, small, batch, generators):
    policy = small(name).eval()
    shake(policy)
    seen = batch(3)["observation"]
    together = policy.act(seen, generators(5, 6, 7))
    assert together.shape == (3, 2, 2) and together.isfinite().all()
    second = {key: value[1:2] for key, value in seen.items()}
    alone = policy.act(second, generators(6))
    assert torch.allclose(together[1:2], alone, atol=1e-4)
    other = torch.cat([policy.act(second, generators(seed)) for seed in range(8, 20)])
    spread = other.std(0).max()
    assert (spread > 1e-3) if objective_of(policy) in DRAWS else (spread == 0)


@pairs
def test_saved_and_loaded_policies_act_alike(name, small, batch, generators, tmp_path):
    policy = small(name).eval()
    shake(policy)
    save_policy(policy, tmp_path)
    loaded = load_policy(tmp_path)
    seen = batch(2)["observation"]
    assert torch.equal(policy.act(seen, generators(1, 2)), loaded.act(seen, generators(1, 2)))
    assert loaded.spec == policy.spec


@pairs
def test_gradients_are_those_of_the_loss(name, small, batch):
    """Against differences in float64, along random directions of all parameters together."""
    policy = small(name).double()
    shake(policy)
    data = batch(2)
    data = {
        "observation": {key: value.double() for key, value in data["observation"].items()},
        "action": data["action"].double(),
    }
    keys, values = zip(*policy.named_parameters(), strict=True)

    def loss_at(*parameters: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return torch.func.functional_call(policy, dict(zip(keys, parameters, strict=True)), (data,))[0]

    start = [value.detach().clone().requires_grad_() for value in values]
    gradients = torch.autograd.grad(loss_at(*start), start)
    chance, step = torch.Generator().manual_seed(0), 1e-6
    for _ in range(3):
        way = [torch.randn(value.shape, generator=chance, dtype=value.dtype) for value in values]
        with torch.no_grad():
            ahead, behind = (loss_at(*(v + s * w for v, w in zip(start, way, strict=True))) for s in (step, -step))
        slope = sum((gradient * w).sum() for gradient, w in zip(gradients, way, strict=True))
        torch.testing.assert_close(slope, (ahead - behind) / (2 * step), rtol=1e-4, atol=1e-5)
