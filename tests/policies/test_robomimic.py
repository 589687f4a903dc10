"""robomimic's algorithms as policies: its losses to the bit, our training, checkpoints and rollouts."""

import json
import sys

import numpy as np
import pytest
import torch

from dopr_robot.errors import MissingExtraError, UserError
from dopr_robot.optim import DoPr
from dopr_robot.policies import ArraySpec, PolicySpec, load_policy, make_policy, save_policy
from dopr_robot.policies.torchvision import make_importable

SMALL = {
    "robomimic_bc": (1, {"actor_layer_dims": [32]}),
    "robomimic_bc_rnn_gmm": (4, {"gmm": {"enabled": True, "num_modes": 2}, "rnn": {"enabled": True, "hidden_dim": 16}}),
    "robomimic_bc_transformer_gmm": (
        4,
        {
            "actor_layer_dims": [],
            "gmm": {"enabled": True, "num_modes": 2},
            "transformer": {"enabled": True, "embed_dim": 16, "num_layers": 1, "num_heads": 2},
        },
    ),
}
names = pytest.mark.parametrize("name", SMALL)


def spec_of(steps: int, **observations: ArraySpec) -> PolicySpec:
    vectors = {"eef": ArraySpec((3,)), "gripper": ArraySpec(())}
    return PolicySpec({**vectors, **observations}, ArraySpec((2,)), n_obs_steps=steps, horizon=steps, n_action_steps=1)


def small_robomimic(name: str, **options):
    steps, algo = SMALL[name]
    torch.manual_seed(0)
    policy = make_policy({"name": name, "robomimic": {"algo": algo}, **options}, spec_of(steps))
    shapes = {"eef": (3,), "gripper": (), "action": (2,)}
    policy.fit_normalizer(
        {
            key: {"min": -np.ones(shape), "max": np.ones(shape), "mean": np.zeros(shape), "std": np.ones(shape)}
            for key, shape in shapes.items()
        }
    )
    return policy


def draw(policy, size: int = 8):
    source, steps = torch.Generator().manual_seed(0), policy.n_obs_steps
    observation = {
        "eef": torch.rand(size, steps, 3, generator=source) * 2 - 1,
        "gripper": torch.rand(size, steps, generator=source) * 2 - 1,
    }
    return {"observation": observation, "action": torch.rand(size, steps, 2, generator=source) - 0.5}


@pytest.mark.sim
@names
def test_the_loss_is_robomimic_s_own(name):
    """The algorithm's own training step on the same batch, in its validation mode, says the same number."""
    policy = small_robomimic(name)
    data = draw(policy)
    for module in policy.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    mine = policy(data)[0]
    (algorithm,) = policy._algorithm
    observation = {"eef": data["observation"]["eef"], "gripper": data["observation"]["gripper"][..., None]}
    batch = algorithm.process_batch_for_training({"obs": observation, "actions": data["action"]})
    theirs = algorithm.train_on_batch(batch, epoch=0, validate=False)["losses"]["action_loss"]
    assert torch.allclose(mine, theirs, atol=1e-6)


@pytest.mark.sim
@names
def test_it_learns_under_dopr_and_acts_alike_after_loading(name, tmp_path, generators):
    policy = small_robomimic(name)
    data = draw(policy)
    optimizer = DoPr(torch.optim.AdamW(policy.parameters(), lr=3e-3), policy)
    losses = []
    for step in range(60):
        torch.manual_seed(step)
        loss, parts = policy(data)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert list(parts) == ["robomimic"] and min(losses) < losses[0] - 0.5 * abs(losses[0])
    save_policy(policy.eval(), tmp_path)
    loaded, seen = load_policy(tmp_path), data["observation"]
    seeds = generators(*range(8))
    together = loaded.act(seen, generators(*range(8)))
    assert together.shape == (8, 1, 2) and torch.equal(together, policy.act(seen, seeds))
    alone = loaded.act({key: value[5:6] for key, value in seen.items()}, generators(5))
    assert torch.allclose(alone, together[5:6], atol=1e-4)
    # Evaluation mode, in which robomimic narrows its mixture to 1e-4, leaves the loss as it is but for dropout.
    evaluated = policy.loss(data)[0].item()
    assert abs(evaluated - policy.train().loss(data)[0].item()) < 1.0


@pytest.mark.sim
def test_a_robomimic_json_config_builds_it_and_travels_in_the_checkpoint(tmp_path):
    make_importable()
    from robomimic.config import config_factory

    config = config_factory("bc")
    with config.values_unlocked():
        config.algo.gmm.enabled = True
        config.algo.rnn.enabled = True
        config.algo.rnn.hidden_dim = 24
        config.observation.modalities.obs.low_dim = ["robot0_eef_pos"]
    file = tmp_path / "bc.json"
    file.write_text(config.dump())
    policy = make_policy({"name": "robomimic_bc_rnn_gmm", "file": str(file)}, spec_of(4))
    assert policy.nets["policy"].nets["rnn"].nets.hidden_size == 24
    ones = {
        key: {n: np.ones(s) for n in ("min", "max", "mean", "std")}
        for key, s in (("eef", 3), ("gripper", ()), ("action", 2))
    }
    policy.fit_normalizer(ones)
    save_policy(policy, tmp_path)
    file.unlink()
    assert load_policy(tmp_path).nets["policy"].nets["rnn"].nets.hidden_size == 24
    file.write_text(json.dumps({"algo_name": "bcq"}))
    with pytest.raises(UserError, match=r"algo_name 'bcq'.* family 'bc'"):
        make_policy({"name": "robomimic_bc", "file": str(file)}, spec_of(1))


@pytest.mark.sim
def test_actions_that_its_networks_can_not_reach_are_refused():
    """They end in tanh: one standard deviation would be the furthest that a policy goes."""
    rows = np.random.default_rng(0).normal(size=(50, 3))
    of = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    known = {"eef": of, "action": {name: value[:2] for name, value in of.items()}}
    spec = PolicySpec({"eef": ArraySpec((3,))}, ArraySpec((2,)), n_obs_steps=1, horizon=1, n_action_steps=1)
    for mode, reach in (("meanstd", "2."), ("none", "2.")):
        policy = make_policy({"name": "robomimic_bc", "normalization": mode}, spec)
        with pytest.raises(UserError, match=rf"answer within \[-1, 1\] .* reach {reach}.*={mode}: set .*minmax"):
            policy.fit_normalizer(known)
    make_policy({"name": "robomimic_bc", "normalization": {"eef": "meanstd"}}, spec).fit_normalizer(known)


@pytest.mark.sim
def test_images_go_through_robomimic_s_encoder():
    core = {
        "core_class": "VisualCore",
        "core_kwargs": {"backbone_class": "ResNet18Conv", "pool_class": "SpatialSoftmax"},
    }
    torch.manual_seed(0)
    policy = make_policy(
        {"name": "robomimic_bc", "robomimic": {"observation": {"encoder": {"rgb": core}}}},
        spec_of(1, front=ArraySpec((48, 48, 3), "uint8")),
    )
    ones = {
        key: {n: np.ones(s) for n in ("min", "max", "mean", "std")}
        for key, s in (("eef", 3), ("gripper", ()), ("action", 2))
    }
    policy.fit_normalizer(ones)
    data = draw(policy, 2)
    data["observation"]["front"] = torch.randint(0, 256, (2, 1, 48, 48, 3), dtype=torch.uint8)
    policy(data)[0].backward()
    assert next(p for n, p in policy.named_parameters() if "front" in n).grad.any()


@pytest.mark.sim
def test_what_robomimic_does_not_have_or_can_not_do_is_refused():
    for options, message in (
        ({"robomimic": {"algo": {"gnn": {"enabled": True}}}}, "gnn"),
        ({"robomimic": {"algo": {"vae": {"enabled": True}}}}, "algo.vae"),
    ):
        with pytest.raises(UserError) as caught:
            make_policy({"name": "robomimic_bc", **options}, spec_of(1))
        assert message in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="has to equal"):
        make_policy({"name": "robomimic_bc_rnn_gmm"}, PolicySpec({"eef": ArraySpec((3,))}, ArraySpec((2,))))


def test_without_robomimic_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "robomimic", None)
    monkeypatch.setitem(sys.modules, "robomimic.algo", None)
    with pytest.raises(MissingExtraError, match=r"dopr-robot\[robomimic\]"):
        make_policy({"name": "robomimic_bc"}, spec_of(1))
