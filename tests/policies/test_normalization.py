"""Scales and limits follow the demonstrations: what hardly moved, what lies far outside, and how far actions go."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dopr_robot.cli import main
from dopr_robot.datasets import Attributes, Store
from dopr_robot.experiment import begin
from dopr_robot.policies import ArraySpec, PolicySpec, load_policy, make_policy, save_policy
from dopr_robot.policies.normalization import Normalizer
from dopr_robot.policies.scaling import hardly_moved
from dopr_robot.training import compose_config


def of_rows(rows: np.ndarray) -> dict[str, np.ndarray]:
    return {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}


def demonstrated() -> np.ndarray:
    """A button that is pressed in 5 % of the steps, a joint that moves, and a valve that is open but for a moment."""
    joint = np.linspace(-2.0, 0.5, 1000)
    return np.stack([np.arange(1000) % 20 == 0, joint, np.arange(1000) != 3], axis=1).astype(np.float64)


def policy_of(name: str, normalization: str, objective: dict | None = None, **options):
    spec = PolicySpec({"state": ArraySpec((1,))}, ArraySpec((3,)), n_obs_steps=1, horizon=4, n_action_steps=4)
    config = {"name": name, "normalization": normalization, "objective": objective or {}, **options}
    policy = make_policy({**config, "network": {"dim": 8, "blocks": 1, "time_dim": 4}}, spec)
    policy.fit_normalizer({"state": of_rows(np.linspace(-1, 1, 9)[:, None]), "action": of_rows(demonstrated())})
    return policy


def acted(policy, target: float) -> torch.Tensor:
    """Actions ``[A]`` of a network that always answers that the clean sample is ``target``, in normalised units."""
    answers = {"diffusion": lambda x, t, c: torch.full_like(x, target), "flow": lambda x, t, c: target - x}
    name = policy.config.objective["name"]
    policy.network.forward = answers[name]
    return policy.act({"state": torch.zeros(1, 1, 1)}, torch.Generator().manual_seed(0))[0, -1]


SAMPLERS = [("flow", {"steps": 1})]
SAMPLERS += [("diffusion", {"prediction": "sample", "sampler": each}) for each in ("ddpm", "ddim", "dpm_solver")]


@pytest.mark.parametrize("mode", ["minmax", "meanstd", "none"])
@pytest.mark.parametrize(("name", "objective"), SAMPLERS, ids=lambda value: value if isinstance(value, str) else "")
def test_clipping_is_to_the_demonstrations_whatever_the_normalisation(name, objective, mode):
    low, high = (torch.tensor(each).float() for each in (demonstrated().min(0), demonstrated().max(0)))
    for factor in (1.0, 1.5):
        policy = policy_of(f"{name}_mlp", mode, {"name": name, **objective, "clip": factor})
        beyond = (factor - 1) * (high - low) / 2
        assert torch.allclose(acted(policy, 1e3), high + beyond, atol=1e-4)
        assert torch.allclose(acted(policy, -1e3), low - beyond, atol=1e-4)
        inside = policy.normalizer.denormalize("action", torch.full((3,), 0.2))
        assert torch.allclose(acted(policy, 0.2), inside.clamp(low - beyond, high + beyond), atol=1e-4)


@pytest.mark.parametrize("mode", ["minmax", "meanstd", "none"])
def test_six_numbers_of_a_rotation_reach_from_minus_one_to_one(mode):
    spec = PolicySpec({"state": ArraySpec((1,))}, ArraySpec((4,)))
    policy = make_policy({"name": "flow_mlp", "normalization": mode, "rotations": {"action": {0: "axis_angle"}}}, spec)
    rows = np.random.default_rng(0).normal(size=(50, 4))
    policy.fit_normalizer({"state": of_rows(rows[:, :1]), "action": of_rows(rows)})
    low, high = policy.normalizer.limits("action")
    assert low[:6].eq(-1).all() and high[:6].eq(1).all()
    gripper = policy.normalizer.denormalize("action", torch.stack([low, high]))[:, 6]
    assert gripper.numpy() == pytest.approx([rows[:, 3].min(), rows[:, 3].max()], abs=1e-5)


def test_a_checkpoint_from_before_there_were_limits_acts_as_it_did_and_says_so(tmp_path, caplog):
    policy = policy_of("diffusion_mlp", "meanstd")
    policy.normalizer.get_buffer("low:action").fill_(-1.0)
    policy.normalizer.get_buffer("high:action").fill_(1.0)
    seen = {"state": torch.zeros(1, 1, 1)}
    expected = policy.act(seen, torch.Generator().manual_seed(0))
    save_policy(policy, tmp_path)
    state = {key: value for key, value in policy.state_dict().items() if ".low:" not in key and ".high:" not in key}
    save_file(state, tmp_path / "policy.safetensors")
    description = json.loads((tmp_path / "policy.json").read_text())
    description["policy"]["objective"]["time_steps"] = 1000
    (tmp_path / "policy.json").write_text(json.dumps({**description, "format_version": 2}))
    before = load_policy(tmp_path)
    assert "is of format 2" in caplog.text and "normalization=meanstd" in caplog.text
    assert torch.equal(before.act(seen, torch.Generator().manual_seed(0)), expected)
    far = torch.full((1,), 1e6)
    assert torch.equal(before.normalizer.observe("state", far), before.normalizer.normalize("state", far))


ARM = [1.0, 2.0, 0.5, 1.5]  # half ranges of joints that move, rad


@pytest.mark.parametrize("mode", ["minmax", "meanstd"])
@pytest.mark.parametrize(
    ("halves", "still"),
    [
        ([*ARM, 1e-5], [4]),  # a parked joint's noise
        ([*ARM, 4e-4, 0.0], [4]),  # and one that never moved at all
        ([0.002, 0.003, 5e-7], [2]),  # millimetres of insertion, and what is fixed
        ([256.0, 256.0, 3.1, 0.004], []),  # pixels, radians, metres
        ([30_000.0, *ARM, 0.02], []),  # milliseconds before an arm and its gripper
        ([1e6, 1e6, 0.5], []),  # encoder counts and an open gripper
        ([4e-5, 3e-5, 1e-6], []),  # a magnetic field, tesla
        ([1e-5], []),  # nothing beside it to compare with
    ],
)
def test_what_hardly_moved_is_not_stretched_and_mixed_units_are(mode, halves, still):
    swing = np.sin(np.linspace(0, 20, 400))[:, None]
    statistics = of_rows(0.1 + swing * np.array(halves))
    assert hardly_moved(statistics, mode) == still
    normalizer = Normalizer({"state": (len(halves),)}, mode)
    normalizer.fit({"state": statistics})
    size = (normalizer.get_buffer("scale:state") * torch.tensor(statistics["std"])).numpy()
    for index, half in enumerate(halves):
        if half == 0.0:
            assert size[index] < 1e-12
        elif index in still:
            assert size[index] < 0.5
        else:
            assert size[index] == pytest.approx({"minmax": 0.7, "meanstd": 1.0}[mode], abs=0.05)
    if still == [4]:  # the parked joint is 0.001 rad off
        off = torch.full((len(halves),), 0.1)
        off[4] += 0.001
        assert normalizer.normalize("state", off)[4].abs() < 2


def test_observations_far_outside_are_held_at_ten_half_ranges():
    rows = np.stack([np.linspace(-1.0, 3.0, 50), np.full(50, 2.0)], axis=1)
    for mode in ("minmax", "meanstd"):
        normalizer = Normalizer({"state": (2,), "action": (2,)}, mode)
        normalizer.fit({"state": of_rows(rows), "action": of_rows(rows)})
        far = torch.tensor([[21.5, 2.0], [-19.5, 2.0], [20.9, 2.5], [1e9, 1e9]])
        held = normalizer.denormalize("state", normalizer.observe("state", far))
        assert torch.allclose(held, torch.tensor([[21.0, 2.0], [-19.0, 2.0], [20.9, 2.5], [21.0, 12.0]]), atol=1e-4)
        assert torch.allclose(normalizer.denormalize("action", normalizer.normalize("action", far)), far)
    normalizer = Normalizer({"state": (2,)}, "none")
    normalizer.fit({"state": of_rows(rows)})
    assert torch.equal(normalizer.observe("state", far), far)


def test_train_and_info_name_what_hardly_moved(tmp_path, capsys, caplog):
    path, rng = str(tmp_path / "arm.zarr"), np.random.default_rng(0)
    with Store.create(path, Attributes(control_hz=10, observations=("joints",))) as store:
        for seed in range(4):
            joints = rng.normal(size=(30, 3)) * [1.0, 1e-5, 0.5]
            store.append({"joints": joints.astype("f4"), "action": joints[:, ::2].astype("f4")}, seed=seed)
    assert main(["info", path]) == 0
    assert "still    joints[1] hardly move" in capsys.readouterr().out
    begin(
        compose_config(None, [f"data.store={path}", "policy=regression_mlp", "training.batch_size=8"]), tmp_path / "run"
    )
    assert "joints[1] hardly move in the demonstrations and are not stretched" in caplog.text
