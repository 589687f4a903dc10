"""Every objective on every network: one suite, so that a new one is tested by being registered."""

import json

import numpy as np
import pytest
import torch

from dopr_robot.errors import DamagedError, UnknownNameError, UserError
from dopr_robot.policies import POLICIES, ArraySpec, PolicySpec, load_policy, make_policy, save_policy
from dopr_robot.policies.networks import Transformer, TransformerConfig, UNet, UNetConfig

SMALL = {
    "unet": {"name": "unet", "channels": [8, 16], "time_dim": 16},
    "transformer": {"name": "transformer", "dim": 32, "layers": 2},
}
OBSERVATIONS = {"state": ArraySpec((3,)), "goal": ArraySpec((2, 2))}
PAIRS = ["diffusion_transformer", "diffusion_unet", "flow_transformer", "flow_unet"]


def statistics(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    made = {}
    for key, shape in {"state": (3,), "goal": (2, 2), "action": (2,)}.items():
        low = rng.normal(size=shape) * 10
        made[key] = {"min": low, "max": low + 4.0, "mean": low + 1.0, "std": np.full(shape, 0.5)}
    return made


def small_policy(name: str, **options):
    torch.manual_seed(0)
    spec = PolicySpec(
        OBSERVATIONS, ArraySpec((2,)), n_obs_steps=2, horizon=8, n_action_steps=4, task="somewhere/Task-v0"
    )
    network = SMALL[name.split("_")[1]]
    policy = make_policy({"name": name, "network": network, **options}, spec)
    policy.fit_normalizer(statistics())
    return policy


def batch(size: int = 8, seed: int = 0) -> dict:
    rng, known = np.random.default_rng(seed), statistics()

    def draw(key: str, *lead: int) -> torch.Tensor:
        low, high = known[key]["min"], known[key]["max"]
        return torch.from_numpy(rng.uniform(low, high, size=(*lead, *low.shape))).float()

    return {"observation": {key: draw(key, size, 2) for key in OBSERVATIONS}, "action": draw("action", size, 8)}


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_every_pair_is_registered():
    assert set(PAIRS) <= set(POLICIES)


@pytest.mark.parametrize("name", PAIRS)
def test_loss_falls_and_every_parameter_learns(name):
    policy, data = small_policy(name), batch()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    first, learned = None, dict.fromkeys(dict(policy.named_parameters()), False)
    for step in range(300):
        # Fixed noise, so that a falling loss is learning and not luck.
        torch.manual_seed(step % 4)
        loss, parts = policy(data)
        first = first or loss.item()
        loss.backward()
        for key, parameter in policy.named_parameters():
            learned[key] = learned[key] or (parameter.grad is not None and bool(parameter.grad.any()))
        optimizer.step()
        optimizer.zero_grad()
    assert all(learned.values()), [key for key, moved in learned.items() if not moved]
    assert loss.item() < 0.1 * first
    assert list(parts) == [name.split("_")[0]]


@pytest.mark.parametrize("name", PAIRS)
def test_actions_depend_on_the_row_s_own_generator(name):
    policy = small_policy(name).eval()
    torch.nn.init.normal_(list(policy.network.parameters())[-2], std=0.5)  # an untrained transformer answers 0
    seen = batch(3)["observation"]
    together = policy.act(seen, generators(5, 6, 7))
    assert together.shape == (3, 4, 2)
    alone = policy.act({key: value[1:2] for key, value in seen.items()}, generators(6))
    assert torch.allclose(together[1:2], alone, atol=1e-4)
    other = policy.act({key: value[1:2] for key, value in seen.items()}, generators(8))
    assert not torch.allclose(alone, other, atol=1e-2)


@pytest.mark.parametrize("name", PAIRS)
def test_saved_and_loaded_policies_act_alike(name, tmp_path):
    policy = small_policy(name).eval()
    save_policy(policy, tmp_path)
    loaded = load_policy(tmp_path)
    seen = batch(2)["observation"]
    assert torch.equal(policy.act(seen, generators(1, 2)), loaded.act(seen, generators(1, 2)))
    assert loaded.spec == policy.spec
    assert json.loads((tmp_path / "policy.json").read_text())["To"] == 2


@pytest.mark.parametrize(
    ("objective", "options"),
    [("diffusion", {"prediction": prediction, "sampler": sampler})
     for prediction in ("epsilon", "sample", "v_prediction") for sampler in ("ddpm", "ddim", "dpm_solver")]
    + [("flow", {"integrator": integrator, "time": time}) for integrator in ("euler", "midpoint", "heun") for time in ("uniform", "beta")],
)  # fmt: skip
def test_every_sampler_recovers_what_was_learned(objective, options):
    """One action for one observation: whatever is predicted and however it is sampled, acting has to give that action back."""
    options = {"name": objective, "steps": 10, **options}
    if options.get("sampler") == "ddpm":
        options["steps"] = 100
    policy = small_policy(f"{objective}_transformer", objective=options)
    target = statistics()["action"]["mean"]
    data = batch(64)
    data["action"] = torch.from_numpy(target).float().expand(64, 8, 2)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    for _ in range(250):
        loss, _ = policy(data)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    acted = policy.eval().act(data["observation"], torch.Generator().manual_seed(0))
    # The normalised range is 4 wide, so 0.4 is a tenth of it; noise alone is off by 2.
    assert (acted - torch.from_numpy(target)).abs().mean() < 0.4


@pytest.mark.parametrize("name", ["flow_unet", "flow_transformer"])
def test_gradients_are_those_of_the_loss(name):
    policy = small_policy(name).double()
    policy.objective.eval()
    data = {
        "observation": {k: v.double() for k, v in batch(2)["observation"].items()},
        "action": batch(2)["action"].double(),
    }
    parameter = policy.network.time.mlp[0].bias
    torch.nn.init.normal_(list(policy.network.parameters())[-2], std=0.1)

    def loss_at(bias: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return torch.func.functional_call(policy, {"network.time.mlp.0.bias": bias}, (data,))[0]

    assert torch.autograd.gradcheck(loss_at, parameter.detach().clone().requires_grad_(), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("channels", "time_dim", "action", "condition", "parameters"),
    [([256, 512, 1024], 256, 2, 20, 65_783_298), ([512, 1024, 2048], 128, 10, 23, 249_074_826)],
)
def test_unet_has_the_published_sizes(channels, time_dim, action, condition, parameters):
    with torch.device("meta"):
        network = UNet(
            UNetConfig(channels=channels, time_dim=time_dim),
            input_dim=action, output_dim=action, horizon=16, condition_dim=condition, n_obs_steps=2,
        )  # fmt: skip
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_transformer_starts_as_zero():
    network = Transformer(
        TransformerConfig(dim=16, layers=1), input_dim=2, output_dim=2, horizon=4, condition_dim=3, n_obs_steps=1
    )
    assert not network(torch.randn(2, 4, 2), torch.rand(2), torch.randn(2, 1, 3)).any()


def test_normalisation_is_invertible_and_constants_stay_small():
    policy = small_policy("flow_unet")
    action = batch()["action"]
    normal = policy.normalizer.normalize("action", action)
    assert normal.abs().max() <= 1 + 1e-5
    assert torch.allclose(policy.normalizer.denormalize("action", normal), action, atol=1e-4)
    known = statistics()
    known["state"]["max"] = known["state"]["min"].copy()
    policy.fit_normalizer(known)
    still = torch.from_numpy(known["state"]["min"]).float()
    assert torch.allclose(policy.normalizer.normalize("state", still), torch.zeros(3), atol=1e-5)
    assert torch.allclose(policy.normalizer.normalize("state", still + 0.1), torch.full((3,), 0.1), atol=1e-4)


def test_mistakes_are_told_in_one_line(tmp_path):
    spec = PolicySpec(OBSERVATIONS, ArraySpec((2,)), horizon=8, n_action_steps=4)
    with pytest.raises(UnknownNameError, match="flow_unet"):
        make_policy({"name": "flow_unett"}, spec)
    with pytest.raises(UnknownNameError, match="channels"):
        make_policy({"name": "flow_unet", "network": {"name": "unet", "chanels": [8]}}, spec)
    with pytest.raises(UserError, match=r"policy\.network.*dim: .*wide"):
        make_policy({"name": "flow_transformer", "network": {"name": "transformer", "dim": "wide"}}, spec)
    with pytest.raises(UserError, match="at most horizon - n_obs_steps \\+ 1 = 7"):
        PolicySpec(OBSERVATIONS, ArraySpec((2,)), n_obs_steps=2, horizon=8, n_action_steps=8)
    with pytest.raises(UserError, match="multiple of 4"):
        make_policy({"name": "flow_unet"}, PolicySpec(OBSERVATIONS, ArraySpec((2,)), horizon=10, n_action_steps=4))
    with pytest.raises(UserError, match="image"):
        make_policy({"name": "flow_unet"}, PolicySpec({"img": ArraySpec((96, 96, 3), "uint8")}, ArraySpec((2,))))
    policy = small_policy("flow_unet")
    seen = batch(1)["observation"]
    with pytest.raises(UserError, match="'goal' is missing"):
        policy.act({"state": seen["state"]}, generators(0))
    with pytest.raises(UserError, match="'state' has shape"):
        policy.act({**seen, "state": seen["state"][:, :1]}, generators(0))
    with pytest.raises(UserError, match="2 generators for a batch of 1"):
        policy.act(seen, generators(0, 1))
    with pytest.raises(RuntimeError, match="statistics"):
        save_policy(make_policy({"name": "flow_unet"}, spec), tmp_path)


def test_a_checkpoint_of_another_format_or_cut_short_is_refused(tmp_path):
    save_policy(small_policy("flow_unet"), tmp_path)
    weights = tmp_path / "policy.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DamagedError, match=r"policy\.safetensors"):
        load_policy(tmp_path)
    description = json.loads((tmp_path / "policy.json").read_text())
    (tmp_path / "policy.json").write_text(json.dumps({**description, "format_version": 99}))
    with pytest.raises(UserError, match=r"format_version 99.* reads 1"):
        load_policy(tmp_path)
    with pytest.raises(UserError, match="neither a run folder nor a checkpoint"):
        load_policy(tmp_path.parent)
