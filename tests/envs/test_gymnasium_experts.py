"""Learned experts: files made here, of networks that nobody trained, and those that the package ships."""

import json
from itertools import pairwise

import gymnasium
import numpy as np
import pytest
from safetensors.numpy import save_file

from dopr_robot import collect, seeds
from dopr_robot.collection import demonstrations
from dopr_robot.envs import get_task
from dopr_robot.envs.adapters import gymnasium_experts
from dopr_robot.envs.adapters.gymnasium_experts import Actor
from dopr_robot.envs.page import facts
from dopr_robot.errors import DamagedError, UserError

LEARNED = ("Humanoid", "Ant", "HalfCheetah", "Walker2d", "Hopper")
ABOUT = {
    "algorithm": "TD3", "library": "sbx-rl", "library_version": "0.28.0", "steps": 1000, "seed": 0, "episodes": 100,
    "gymnasium": "1.4.0", "mujoco": "4.0.0", "return_mean": 1234.5, "return_ci95": [1200.0, 1269.0],
}  # fmt: skip


def random_actor(task: str, *sizes: int) -> Actor:
    rng = np.random.default_rng(0)
    layers = [
        (rng.normal(0, a**-0.5, (a, b)).astype(np.float32), rng.normal(0, 0.1, b).astype(np.float32))
        for a, b in pairwise(sizes)
    ]
    return Actor(tuple(layers), task, ABOUT)


def test_an_actor_is_its_layers(tmp_path):
    actor = random_actor("Hopper-v5", 11, 20, 30, 3)
    actor.save(tmp_path / "actor.safetensors")
    loaded = Actor.load(tmp_path / "actor.safetensors", get_task("Hopper-v5"))
    assert loaded.provenance == ABOUT
    observed = np.random.default_rng(1).normal(size=(5, 11)).astype(np.float32)
    hidden = observed.astype(np.float64)
    for number, (weight, bias) in enumerate(actor.layers):
        hidden = (np.maximum(hidden, 0) if number else hidden) @ weight.astype(np.float64) + bias
    actions = loaded(observed, [-1, -1, 0], [1, 1, 4])
    assert actions == pytest.approx(np.tanh(hidden) * [1, 1, 2] + [0, 0, 2], abs=1e-5)
    alone = np.concatenate([loaded(row[None], [-1, -1, 0], [1, 1, 4]) for row in observed])
    assert np.array_equal(actions, alone)


def broken(path, fault):
    actor = random_actor("Hopper-v5", 11, 8, 3)
    if fault == "absent":
        return "is not there: Hopper-v5 has no actor"
    if fault == "other version":
        Actor(actor.layers, "Hopper-v4", ABOUT).save(path)
        return "is an actor of Hopper-v4, not of Hopper-v5"
    if fault == "other shape":
        random_actor("Hopper-v5", 12, 8, 3).save(path)
        return "makes 3 actions of 12 observed numbers, Hopper-v5 takes 3 of 11"
    if fault == "no file of tensors":
        path.write_bytes(b"weights")
    elif fault == "no provenance":
        save_file({"weight.0": np.zeros((11, 3)), "bias.0": np.zeros(3)}, path)
    elif fault == "layers apart":
        (first, second), path_ = actor.layers, path
        Actor((first, (second[0][:5], second[1])), "Hopper-v5", ABOUT).save(path_)
    elif fault == "not finite":
        weight, bias = actor.layers[0]
        Actor(((weight * np.nan, bias), actor.layers[1]), "Hopper-v5", ABOUT).save(path)
    elif fault == "no layers":
        save_file({}, path, {"task": "Hopper-v5", "provenance": json.dumps(ABOUT)})
    return "is no actor"


@pytest.mark.parametrize(
    "fault",
    [
        "absent",
        "other version",
        "other shape",
        "no file of tensors",
        "no provenance",
        "layers apart",
        "not finite",
        "no layers",
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, fault):
    path = tmp_path / "actor.safetensors"
    said = broken(path, fault)
    with pytest.raises(UserError, match=said) as refused:
        Actor.load(path, get_task("Hopper-v5"))
    assert "\n" not in str(refused.value) and "train_expert.py" in str(refused.value)


def test_a_spoiled_provenance_is_named(tmp_path):
    actor = random_actor("Hopper-v5", 11, 8, 3)
    Actor(actor.layers, "Hopper-v5", ABOUT | {"steps": "many"}).save(tmp_path / "actor.safetensors")
    with pytest.raises(DamagedError, match="steps is 'many': a whole number is expected"):
        Actor.load(tmp_path / "actor.safetensors", get_task("Hopper-v5"))


def test_the_expert_acts_as_its_actor_in_gymnasium():
    """Without noise an episode is that of the actor in the package's own environment, whatever runs beside it."""
    found = list(demonstrations("HalfCheetah-v5", range(3), noise=0.0, num_envs=2, max_steps=40))
    actor = Actor.load(gymnasium_experts.weights("HalfCheetah-v5"), get_task("HalfCheetah-v5"))
    env = gymnasium.make("HalfCheetah-v5")
    for episode in found:
        seen, _ = env.reset(seed=episode.seed)
        for state, action in zip(episode.arrays["state"], episode.arrays["action"], strict=True):
            assert np.array_equal(state, seen.astype(np.float32))
            assert np.array_equal(action, actor(seen[None], [-1] * 6, [1] * 6)[0])
            seen, *_ = env.step(action)


def test_it_collects_like_any_other(tmp_path):
    spec = get_task("HalfCheetah-v5")
    about = Actor.load(gymnasium_experts.weights(spec.id), spec).provenance
    said = dict(facts(spec))["expert"]
    assert (
        spec.has_expert
        and f"{about['algorithm']} of {about['library']} {about['library_version']}, {about['steps']:,} steps" in said
    )
    assert f"return without noise {about['return_mean']:,.0f} over 100 seeds" in said
    store = collect("HalfCheetah-v5", 1, tmp_path / "cheetah.zarr", noise=0.5)
    assert store.num_episodes == 1 and store.attributes.task == "HalfCheetah-v5"


@pytest.mark.parametrize("name", LEARNED)
def test_every_class_fits_its_task(name):
    spec, expert = get_task(f"{name}-v5"), getattr(gymnasium_experts, f"{name}Expert")
    assert expert.noise.shape == (len(spec.action.low),)
    assert expert.noise == pytest.approx(0.1 * np.array(spec.action.high))


@pytest.mark.parametrize("name", LEARNED)
def test_what_ships_runs_as_it_says(name):
    """Small, with its provenance, and as good in 200 steps as its return promises for 1,000."""
    spec = get_task(f"{name}-v5")
    path = gymnasium_experts.weights(spec.id)
    actor = Actor.load(path, spec)
    assert path.stat().st_size <= 2**20 and spec.has_expert
    about = actor.provenance
    assert (
        about["episodes"] == 100 and about["environment"] == spec.id and about["return_ci95"][0] < about["return_mean"]
    )
    (episode,) = demonstrations(spec.id, [seeds.block("final", 0, 1)[0]], noise=0.0, num_envs=1, max_steps=200)
    assert episode.success and episode.arrays["rewards"].sum() > 0.1 * about["return_mean"]
