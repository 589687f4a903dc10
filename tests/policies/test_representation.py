"""Rotations in six numbers and the action's conventions."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from dopr_robot.errors import UserError
from dopr_robot.policies import ArraySpec, PolicySpec, load_policy, make_policy, save_policy
from dopr_robot.policies.representation import ActionsConfig, Representation
from dopr_robot.policies.rotations import from_matrix, matrix_from_6d, matrix_to_6d, to_matrix

KINDS = ["quaternion_wxyz", "quaternion_xyzw", "axis_angle", "euler_xyz", "matrix"]
ROTATIONS = Rotation.random(200, rng=np.random.default_rng(0))


def numbers(rotation: Rotation, kind: str) -> torch.Tensor:
    value = {
        "quaternion_wxyz": lambda: np.roll(rotation.as_quat(canonical=True), 1, axis=-1),
        "quaternion_xyzw": lambda: rotation.as_quat(canonical=True),
        "axis_angle": rotation.as_rotvec,
        "euler_xyz": lambda: rotation.as_euler("xyz"),
        "matrix": lambda: rotation.as_matrix().reshape(-1, 9),
    }[kind]()
    return torch.from_numpy(value)


@pytest.mark.parametrize("kind", KINDS)
def test_rotations_agree_with_scipy_both_ways(kind):
    value, matrices = numbers(ROTATIONS, kind), torch.from_numpy(ROTATIONS.as_matrix())
    assert torch.allclose(to_matrix(value, kind), matrices, atol=1e-9)
    assert torch.allclose(from_matrix(matrices, kind), value, atol=1e-9)


def test_small_rotations_and_half_turns_come_back():
    for angle in (0.0, 1e-9, 1e-4, np.pi - 1e-6):
        vector = torch.tensor([[0.6, 0.0, 0.8]], dtype=torch.float64) * angle
        back = from_matrix(to_matrix(vector, "axis_angle"), "axis_angle")
        assert torch.allclose(back, vector, atol=1e-6), angle


def test_six_numbers_are_a_rotation_whatever_the_network_says():
    matrices = torch.from_numpy(ROTATIONS.as_matrix())
    assert torch.allclose(matrix_from_6d(matrix_to_6d(matrices)), matrices, atol=1e-12)
    made = matrix_from_6d(torch.randn(100, 6, dtype=torch.float64))
    assert torch.allclose(made @ made.mT, torch.eye(3, dtype=torch.float64).expand(100, 3, 3), atol=1e-9)
    assert torch.allclose(torch.linalg.det(made), torch.ones(100, dtype=torch.float64))


# A gripper's pose: what is observed is a position and a quaternion, what is commanded a position, a rotation vector and a width.
SPEC = PolicySpec(
    {"position": ArraySpec((3,)), "orientation": ArraySpec((4,)), "joints": ArraySpec((7,))},
    ArraySpec((7,)),
    n_obs_steps=2,
    horizon=6,
    n_action_steps=3,
)
POSES = {"orientation": {0: "quaternion_xyzw"}, "action": {3: "axis_angle"}}


def draw(size: int = 5):
    rng = np.random.default_rng(1)

    def turns(*lead: int) -> Rotation:
        return Rotation.random(int(np.prod(lead)), rng=rng)

    observation = {
        "position": torch.from_numpy(rng.normal(size=(size, 2, 3))),
        "orientation": torch.from_numpy(turns(size, 2).as_quat().reshape(size, 2, 4)),
        "joints": torch.from_numpy(rng.normal(size=(size, 2, 7))),
    }
    turned = turns(size, 6).as_rotvec().reshape(size, 6, 3)
    action = np.concatenate([rng.normal(size=(size, 6, 3)), turned, rng.uniform(size=(size, 6, 1))], axis=-1)
    return observation, torch.from_numpy(action)


@pytest.mark.parametrize("convention", ["absolute", "relative", "delta"])
def test_actions_come_back_from_every_convention(convention):
    reference = ["position", "orientation"]
    representation = Representation(SPEC, POSES, ActionsConfig(convention, reference))
    observation, action = draw()
    encoded = representation.encode(action, observation)
    assert encoded.shape == (5, 6, 3 + 6 + 1)
    assert torch.allclose(representation.decode(encoded, observation), action, atol=1e-6)


def test_relative_and_delta_are_what_they_say():
    """Entry by entry against numpy and scipy: positions by difference in the world, rotations in the reference's frame."""
    observation, action = draw()
    seen, turned = observation["position"], Rotation.from_quat(observation["orientation"][:, -1].numpy())
    config = {name: ActionsConfig(name, ["position", "orientation"]) for name in ("relative", "delta")}
    relative = Representation(SPEC, POSES, config["relative"]).encode(action, observation)
    assert torch.allclose(relative[..., :3], action[..., :3] - seen[:, -1:])
    expected = turned.inv() * Rotation.from_rotvec(action[:, 4, 3:6].numpy())
    assert torch.allclose(matrix_from_6d(relative[:, 4, 3:9]), torch.from_numpy(expected.as_matrix()), atol=1e-9)
    assert torch.equal(relative[..., 9], action[..., 6])  # the width stays absolute
    delta = Representation(SPEC, POSES, config["delta"]).encode(action, observation)
    assert torch.allclose(delta[:, :2, :3], action[:, :2, :3] - seen)
    assert torch.allclose(delta[:, 2:, :3], action[:, 2:, :3] - action[:, 1:-1, :3])
    expected = Rotation.from_rotvec(action[:, 3, 3:6].numpy()).inv() * Rotation.from_rotvec(action[:, 4, 3:6].numpy())
    assert torch.allclose(matrix_from_6d(delta[:, 4, 3:9]), torch.from_numpy(expected.as_matrix()), atol=1e-9)


@pytest.mark.parametrize("convention", ["absolute", "relative", "delta"])
def test_a_policy_of_poses_learns_acts_and_is_saved_with_its_convention(convention, tmp_path):
    torch.manual_seed(0)
    observation, action = ({key: value.float() for key, value in draw(16)[0].items()}, draw(16)[1].float())
    batch = {"observation": observation, "action": action}
    actions = {"convention": convention, "reference": ["position", "orientation"]}
    network = {"name": "mlp", "dim": 64, "blocks": 1}
    policy = make_policy({"name": "regression_mlp", "rotations": POSES, "actions": actions, "network": network}, SPEC)
    statistics = {
        key: {
            "min": value.amin((0, 1)),
            "max": value.amax((0, 1)),
            "mean": value.mean((0, 1)),
            "std": value.std((0, 1)),
        }
        for key, value in {**observation, "action": action}.items()
    }
    policy.fit_normalizer({key: {n: v.numpy() for n, v in each.items()} for key, each in statistics.items()})
    assert policy.fits == (convention != "absolute")
    if policy.fits:
        with pytest.raises(RuntimeError, match="statistics for 'action'"):
            save_policy(policy, tmp_path)
    policy.fit([batch])
    encoded = policy.representation.encode(action, observation)
    normal = policy.normalizer.normalize("action", encoded)
    assert normal.abs().max() <= 1 + 1e-5
    assert torch.equal(normal[..., 3:9], encoded[..., 3:9])  # six numbers of a rotation are left as they are
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    for _ in range(120):
        policy(batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    save_policy(policy.eval(), tmp_path)
    loaded = load_policy(tmp_path)
    acted, wanted = loaded.act(observation), action[:, 1:4]
    assert (acted[..., [0, 1, 2, 6]] - wanted[..., [0, 1, 2, 6]]).abs().mean() < 0.1
    apart = Rotation.from_rotvec(acted[..., 3:6].reshape(-1, 3).numpy()).inv() * Rotation.from_rotvec(
        wanted[..., 3:6].reshape(-1, 3).numpy()
    )
    assert apart.magnitude().mean() < 0.2
    assert loaded.config.actions.convention == convention


@pytest.mark.parametrize(
    ("rotations", "actions", "message"),
    [
        ({"pose": {0: "axis_angle"}}, {}, "unknown key in policy.rotations 'pose'"),
        ({"action": {3: "quaternion"}}, {}, "did you mean 'quaternion_"),
        ({"action": {5: "axis_angle"}}, {}, "takes entries 5 to 7, which action's 7 entries"),
        ({"action": {0: "axis_angle", 2: "axis_angle"}}, {}, "do not leave free"),
        ({}, {"convention": "incremental"}, "is none of absolute, delta, relative"),
        ({}, {"convention": "delta"}, r"needs policy.actions.reference=[...]"),
        ({}, {"convention": "delta", "reference": ["joint"]}, "did you mean 'joints'"),
        (POSES, {"convention": "delta", "reference": ["orientation"]}, "does not fit the action entry by entry"),
    ],
)
def test_what_does_not_fit_is_refused(rotations, actions, message):
    with pytest.raises(UserError) as caught:
        Representation(SPEC, rotations, ActionsConfig(**actions))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_actions_that_are_changes_already_are_not_changed_again():
    spec = PolicySpec(SPEC.observations, SPEC.action, horizon=6, n_action_steps=3, action_meaning={"absolute": False})
    with pytest.raises(UserError, match="changes already"):
        Representation(spec, {}, ActionsConfig("delta", ["joints"]))


def test_normalisation_can_differ_by_key(spec, known):
    policy = make_policy({"name": "regression_mlp", "normalization": {"state": "meanstd", "action": "none"}}, spec)
    policy.fit_normalizer(known)
    value = torch.from_numpy(known["state"]["mean"] + known["state"]["std"]).float()
    assert torch.allclose(policy.normalizer.normalize("state", value), torch.ones(3), atol=1e-4)
    assert torch.equal(policy.normalizer.normalize("action", torch.ones(2)), torch.ones(2))
    low = torch.from_numpy(known["goal"]["min"]).float()
    assert torch.allclose(policy.normalizer.normalize("goal", low), -torch.ones(2, 2), atol=1e-4)
    for wrong, message in (
        ({"stat": "none"}, "did you mean 'state'"),
        ("standard", "is none of minmax, meanstd, none"),
    ):
        with pytest.raises(UserError, match=message):
            make_policy({"name": "regression_mlp", "normalization": wrong}, spec)
