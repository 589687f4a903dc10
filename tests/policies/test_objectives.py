"""What each objective learns and how it samples it."""

import numpy as np
import pytest
import torch

from dopr_robot.errors import UserError
from dopr_robot.policies.objectives.sampling import categorical


def fit(policy, data, steps: int = 150, lr: float = 1e-2) -> None:
    """Train with AdamW, the rate falling to zero so that it comes to rest."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        policy(data)[0].backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    policy.eval()


SAMPLERS = {
    "epsilon": [("ddpm", 100), ("ddim", 10), ("dpm_solver", 10)],
    "sample": [("ddpm", 100), ("ddim", 10), ("dpm_solver", 10)],
    "v_prediction": [("ddpm", 100), ("ddim", 10), ("dpm_solver", 10)],
    "uniform": [("euler", 10), ("midpoint", 5), ("heun", 5)],
    "beta": [("euler", 10), ("midpoint", 5), ("heun", 5)],
}


@pytest.mark.parametrize("trained", SAMPLERS)
def test_every_sampler_recovers_what_was_learned(trained, small, batch, known):
    """One action for one observation: whatever is predicted and however it is sampled, acting has to give that action back."""
    flow = trained in ("uniform", "beta")
    objective, learned, sampled = ("flow", "time", "integrator") if flow else ("diffusion", "prediction", "sampler")
    network = {"dim": 64}
    policy = small(f"{objective}_mlp", {learned: trained}, network)
    target = torch.from_numpy(known["action"]["mean"]).float()
    data = {**batch(32), "action": target.expand(32, 4, 2)}
    fit(policy, data)
    for sampler, steps in SAMPLERS[trained]:
        acting = small(f"{objective}_mlp", {learned: trained, sampled: sampler, "steps": steps}, network).eval()
        acting.load_state_dict(policy.state_dict())
        acted = acting.act(data["observation"], torch.Generator().manual_seed(0))
        # The normalised range is 4 wide, so 0.4 is a tenth of it; noise alone is off by 2.
        assert (acted - target).abs().mean() < 0.4, sampler


@pytest.fixture(scope="module")
def two_ways(batch, known):
    """In one place, half of the demonstrations go left all along and half go right (at -0.8 and 0.8 of the range)."""
    side = torch.where(torch.arange(64) % 2 == 0, -0.8, 0.8)[:, None, None].expand(64, 4, 2)
    noise = 0.02 * torch.randn(64, 4, 2, generator=torch.Generator().manual_seed(0))
    centre = torch.from_numpy(known["action"]["min"] + 2.0).float()
    observation = {key: value[:1].expand(64, *value.shape[1:]) for key, value in batch()["observation"].items()}
    return {"observation": observation, "action": centre + 2.0 * (side + noise)}


def drawn(policy, data, known) -> np.ndarray:
    """64 plans' executed actions in units of the range, ``[64, Ta, A]``."""
    acted = policy.act(data["observation"], [torch.Generator().manual_seed(seed) for seed in range(64)])
    return (acted.numpy() - known["action"]["min"] - 2.0) / 2.0


@pytest.mark.parametrize(
    ("name", "objective"),
    [("flow_mlp", {"steps": 10}), ("diffusion_mlp", {"steps": 10}), ("mixture_mlp", {}), ("bet_mlp", {"bins": 2})],
)
def test_two_ways_of_doing_it_are_both_kept_and_not_mixed(name, objective, small, two_ways, known):
    policy = small(name, objective, {"dim": 128, "blocks": 2})
    policy.fit([two_ways])
    observation = {key: torch.cat([value] * 4) for key, value in two_ways["observation"].items()}
    fit(policy, {"observation": observation, "action": torch.cat([two_ways["action"]] * 4)}, 400, lr=3e-3)
    actions = drawn(policy, two_ways, known)
    assert (np.abs(np.abs(actions) - 0.8) < 0.3).mean() > 0.9
    right = actions > 0
    assert 0.2 < right.mean() < 0.8
    # A plan goes one way in all its steps.
    assert (right.all((1, 2)) | ~right.any((1, 2))).mean() > 0.9


def test_regression_goes_between_the_two_ways(small, two_ways, known):
    policy = small("regression_mlp", {}, {"dim": 64})
    fit(policy, two_ways)
    assert np.abs(drawn(policy, two_ways, known)).max() < 0.2


@pytest.mark.parametrize(("loss", "expected"), [("l2", 0.25), ("l1", 0.0), ("huber", 0.0)])
def test_regression_learns_mean_or_median(loss, expected, small, batch, known):
    """Three of four demonstrations say 0 and one says 1, in normalised units."""
    data = batch(64)
    data["observation"] = {key: value[:1].expand(64, *value.shape[1:]) for key, value in data["observation"].items()}
    normal = (torch.arange(64) % 4 == 0).float()[:, None, None].expand(64, 4, 2)
    data["action"] = torch.from_numpy(known["action"]["min"] + 2.0).float() + 2.0 * normal
    policy = small("regression_mlp", {"loss": loss, "delta": 0.01})
    fit(policy, data)
    assert np.abs(drawn(policy, data, known) - expected).max() < 0.05


def test_low_noise_evaluation_takes_the_means(small, two_ways, known):
    spread = {}
    for low_noise in (True, False):
        policy = small("mixture_mlp", {"low_noise": low_noise, "min_std": 0.1}, {"dim": 64})
        fit(policy, two_ways)
        actions = drawn(policy, two_ways, known)
        spread[low_noise] = actions[actions[:, 0, 0] > 0].std(0).max()
    assert spread[True] < 1e-3 and spread[False] > 0.05


def test_a_mixture_s_loss_is_its_likelihood(small, batch):
    """Against torch.distributions on the same network's answer."""
    policy = small("mixture_mlp", {"over": "step"})
    data = batch()
    normalized = policy.normalizer.normalize("action", data["action"])
    condition = policy.encoder(
        {key: policy.normalizer.normalize(key, value) for key, value in data["observation"].items()}
    )
    logits, mean, std = policy.network(None, None, condition).split((2, 4, 4), dim=-1)
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=logits),
        torch.distributions.Independent(
            torch.distributions.Normal(
                mean.unflatten(-1, (2, 2)), torch.nn.functional.softplus(std).unflatten(-1, (2, 2)) + 1e-4
            ),
            1,
        ),
    )
    assert torch.allclose(policy(data)[0], -mixture.log_prob(normalized).mean(), atol=1e-5)


def test_bins_are_the_data_s_clusters_and_part_of_the_weights(small, two_ways):
    policy = small("bet_mlp", {"bins": 2})
    policy.fit([two_ways])
    centres = policy.state_dict()["objective.centres"]
    assert torch.allclose(centres.mean((1, 2)).sort().values, torch.tensor([-0.8, 0.8]), atol=0.02)
    with pytest.raises(UserError, match=r"objective\.bins=65"):
        small("bet_mlp", {"bins": 65})


def test_act_s_style_is_normal_a_priori(small, batch):
    """At the posterior that ignores its input and is standard normal, the divergence is zero; else it is above."""
    policy = small("act_mlp")
    assert policy(batch())[1]["kl"] > 0
    torch.nn.init.zeros_(policy.objective.posterior.weight)
    torch.nn.init.zeros_(policy.objective.posterior.bias)
    assert policy(batch())[1]["kl"] == 0


def test_categories_are_drawn_as_often_as_they_should_be():
    probabilities = torch.tensor([0.1, 0.0, 0.6, 0.3]).expand(20_000, 1, 4)
    found = categorical(probabilities, torch.Generator().manual_seed(0))
    assert found.shape == (20_000, 1)
    shares = torch.bincount(found.flatten(), minlength=4) / 20_000
    assert torch.allclose(shares, probabilities[0, 0], atol=0.015) and shares[1] == 0


@pytest.mark.parametrize(
    ("name", "objective", "message"),
    [
        ("flow_mlp", {"integrator": "rk4"}, "objective.integrator='rk4' is none of euler, midpoint, heun"),
        ("flow_mlp", {"steps": 0}, "objective.steps=0 has to lie between 1 and 1,000,000"),
        ("diffusion_mlp", {"prediction": "noise"}, "is none of epsilon"),
        ("diffusion_mlp", {"steps": 101}, "steps=101 is more than train_steps=100"),
        ("regression_mlp", {"loss": "l3"}, "objective.loss='l3' is none of l2, l1, huber"),
        ("regression_mlp", {"delta": 0.0}, "delta=0.0 has to lie between 1e-09 and"),
        ("mixture_mlp", {"over": "chunk"}, "is none of sequence, step"),
        ("act_mlp", {"latent_dim": 0}, "latent_dim=0 has to lie between 1 and 65,536"),
        ("act_mlp", {"dim": 15}, "multiple of network.heads"),
        ("act_mlp", {"layers": 10_000_000}, "objective.layers=10000000 has to lie between 1 and 1,024"),
        ("flow_mlp", {"clip": -1.0}, "objective.clip=-1.0 has to lie between"),
        ("flow_mlp", {"clip": float("nan")}, "objective.clip=nan has to lie between"),
        ("diffusion_mlp", {"train_steps": -3}, "objective.train_steps=-3 has to lie between"),
        ("diffusion_mlp", {"beta_schedule": "quick"}, "beta_schedule='quick' is none of"),
    ],
)
def test_options_out_of_range_are_refused(name, objective, message, small):
    with pytest.raises(UserError) as caught:
        small(name, objective)
    assert message in str(caught.value) and "\n" not in str(caught.value)
