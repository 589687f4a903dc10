"""The policy as a whole: normalisation, mistakes, checkpoints."""

from dataclasses import fields

import pytest
import torch

from dopr_robot.errors import UnknownNameError, UserError
from dopr_robot.policies import NETWORKS, OBJECTIVES, ArraySpec, PolicySpec, make_policy, save_policy
from dopr_robot.policies.networks import Transformer, TransformerConfig
from dopr_robot.policies.options import RANGES
from dopr_robot.training import compose_config


def test_transformer_starts_as_zero():
    network = Transformer(
        TransformerConfig(dim=16, layers=1), input_dim=2, output_dim=2, horizon=4, condition_dim=3, n_obs_steps=1
    )
    assert not network(torch.randn(2, 4, 2), torch.rand(2), torch.randn(2, 1, 3)).any()


def test_normalisation_is_invertible_and_constants_stay_small(small, batch, known):
    policy = small("flow_unet")
    action = batch()["action"]
    normal = policy.normalizer.normalize("action", action)
    assert normal.abs().max() <= 1 + 1e-5
    assert torch.allclose(policy.normalizer.denormalize("action", normal), action, atol=1e-4)
    state = {**known["state"], "max": known["state"]["min"].copy()}
    policy.fit_normalizer({**known, "state": state})
    still = torch.from_numpy(known["state"]["min"]).float()
    assert torch.allclose(policy.normalizer.normalize("state", still), torch.zeros(3), atol=1e-5)
    assert torch.allclose(policy.normalizer.normalize("state", still + 0.1), torch.full((3,), 0.1), atol=1e-4)


def test_some_options_of_a_network_leave_it_the_one_that_the_policy_is_named_after(spec):
    policy = make_policy({"name": "flow_transformer", "network": {"dim": 16, "layers": 1}}, spec)
    assert policy.config.network == {**policy.config.network, "name": "transformer", "dim": 16, "layers": 1}
    assert isinstance(policy.network, Transformer)


def test_mistakes_are_told_in_one_line(spec, small, batch, generators, tmp_path):
    with pytest.raises(UnknownNameError, match="flow_unet"):
        make_policy({"name": "flow_unett"}, spec)
    with pytest.raises(UnknownNameError, match="channels"):
        make_policy({"name": "flow_unet", "network": {"name": "unet", "chanels": [8]}}, spec)
    with pytest.raises(UserError, match=r"policy\.network\.dim=wide: a whole number"):
        make_policy({"name": "flow_transformer", "network": {"name": "transformer", "dim": "wide"}}, spec)
    with pytest.raises(UserError, match="at most horizon - n_obs_steps \\+ 1 = 7"):
        PolicySpec(spec.observations, ArraySpec((2,)), n_obs_steps=2, horizon=8, n_action_steps=8)
    with pytest.raises(UserError, match="multiple of 4"):
        make_policy({"name": "flow_unet"}, PolicySpec(spec.observations, ArraySpec((2,)), horizon=10, n_action_steps=4))
    policy = small("flow_unet")
    seen = batch(1)["observation"]
    with pytest.raises(UserError, match="'goal' is missing"):
        policy.act({"state": seen["state"]}, generators(0))
    with pytest.raises(UserError, match="'state' has shape"):
        policy.act({**seen, "state": seen["state"][:, :1]}, generators(0))
    with pytest.raises(UserError, match="2 generators for a batch of 1"):
        policy.act(seen, generators(0, 1))
    with pytest.raises(UserError, match=r"actions have shape \[1, 3, 2\], the policy expects \['B', 4, 2\]"):
        policy.loss({"observation": seen, "action": torch.zeros(1, 3, 2)})
    with pytest.raises(RuntimeError, match="no statistics for 'state'"):
        make_policy({"name": "flow_mlp"}, spec).act(seen)
    with pytest.raises(RuntimeError, match="statistics"):
        save_policy(make_policy({"name": "flow_mlp"}, spec), tmp_path)


@pytest.mark.parametrize("steps", [{"horizon": 10**9}, {"n_obs_steps": -1}, {"n_action_steps": "8"}, {"horizon": True}])
def test_absurd_steps_are_refused_where_the_spec_is_made(steps, spec):
    with pytest.raises(UserError, match="has to be a whole number from 1 to 65,536"):
        PolicySpec(spec.observations, spec.action, **steps)


@pytest.mark.parametrize("shape", [(-1,), (0,), ("3",), (2.0,), (2**20, 2**20)])
def test_absurd_shapes_are_refused(shape):
    with pytest.raises(UserError, match="can not have the shape"):
        ArraySpec(shape)


@pytest.mark.parametrize("part", [*NETWORKS.values(), *OBJECTIVES.values()], ids=lambda part: part.config().name)
def test_every_number_among_the_options_has_a_range(part):
    """Damaged files ask for any number: none may be built that a range would have stopped."""
    numbers = [
        each.name for each in fields(part.config) if str(each.type) in ("int", "float", "float | None", "list[int]")
    ]
    assert set(numbers) <= set(RANGES)
    for name in numbers:
        for absurd in (-1, 10**9 + 1, float("nan"), "8"):
            with pytest.raises(UserError, match=rf"{name}=.* has to lie between"):
                part.config(**{name: absurd})


def test_options_that_are_mappings_are_set_from_the_command_line():
    settings = ["policy.encoder.embed={task: 2}", "policy.rotations={action: {3: axis_angle}}"]
    policy = compose_config(None, [*settings, "policy.normalization={state: meanstd}"]).policy
    assert policy["encoder"]["embed"] == {"task": 2} and policy["rotations"] == {"action": {3: "axis_angle"}}
    assert policy["normalization"] == {"state": "meanstd"}


@pytest.mark.parametrize("name", ["flow_unet", "regression_unet"])
def test_a_unet_can_see_the_observations_step_by_step(name, small, batch):
    policy = small(name, network={"local_condition": True})
    policy(batch())[0].backward()
    local = {key: value for key, value in policy.network.named_parameters() if key.startswith("local.")}
    assert len(local) == 2 * len([key for key in local if key.startswith("local.0.")])
    assert all(value.grad.any() for value in local.values())


@pytest.mark.parametrize("name", ["regression_lstm", "regression_causal_transformer"])
def test_networks_over_history_look_backwards_alone(name, small, batch):
    policy, data = small(name).eval(), batch(2)
    condition = policy.encoder(policy._normalized(data["observation"]))
    changed = condition.clone()
    changed[:, 1] += 1.0  # the newest observation, at step 1
    before, after = policy.network(None, None, condition), policy.network(None, None, changed)
    assert torch.allclose(before[:, 0], after[:, 0], atol=1e-6)
    assert ((before - after).abs().amax((0, 2))[1:] > 1e-4).all()
