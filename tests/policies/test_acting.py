"""From plans to actions: ensembling, plans that are computed while the last one runs, and both in rollouts."""

import dataclasses

import pytest
import torch

from dopr_robot.errors import UserError
from dopr_robot.policies import PolicySpec, load_policy, make_policy, products, save_policy
from dopr_robot.policies.acting import ActingConfig
from dopr_robot.policies.objectives import Held, Limits
from dopr_robot.policies.policy import Policy


@dataclasses.dataclass
class PlannedConfig:
    """A policy whose plan is known beforehand."""

    name: str = "planned"
    n_obs_steps: int = 2
    horizon: int = 8
    n_action_steps: int = 3
    normalization: str = "none"
    acting: object = None


class Planned(Policy):
    """Plans ``[call + 10 * step]``, so that every action says where it came from."""

    def __init__(self, spec, config):
        super().__init__(spec, config)
        self.calls = 0
        self.held = []

    def _loss(self, observation, action):
        raise NotImplementedError

    def _sample(self, observation, generator, held):
        self.held.append(held)
        self.calls += 1
        rows = len(next(iter(observation.values())))
        plan = self.calls + 10.0 * torch.arange(self.horizon)
        return plan[None, :, None].expand(rows, -1, self.action_dim).clone()


@pytest.fixture
def planned(spec, known):
    def make(**acting):
        wide = PolicySpec(spec.observations, spec.action, n_obs_steps=2, horizon=8, n_action_steps=3)
        policy = Planned(wide, PlannedConfig(acting=ActingConfig(**acting)))
        policy.fit_normalizer(known)
        return policy

    return make


def test_a_plan_is_executed_from_the_newest_observation_on(planned, batch):
    policy = planned()
    assert not policy.remembers
    assert policy.act(batch(1)["observation"])[0, :, 0].tolist() == [11, 21, 31]


def test_an_ensemble_is_the_weighted_mean_of_all_plans_for_a_step(planned, batch):
    policy, memory, seen = planned(ensemble=True, decay=0.5), [{}], batch(1)["observation"]
    assert policy.remembers and policy.n_action_steps == 1
    executed = [policy.act(seen, memory=memory)[0, :, 0] for _ in range(10)]
    for call, actions in enumerate(executed, start=1):
        # Plan p was made at call p; for this step it has its entry 1 + call - p. A plan reaches 7 steps.
        plans = [p + 10.0 * (1 + call - p) for p in range(max(1, call - 6), call + 1)]
        weights = torch.exp(-0.5 * torch.arange(len(plans)))  # the oldest first
        assert actions.item() == pytest.approx(float((weights * torch.tensor(plans)).sum() / weights.sum()), rel=1e-5)


def test_with_a_delay_the_steps_under_way_are_the_last_plan_s(planned, batch):
    policy, memory, seen = planned(delay=2), [{}], batch(1)["observation"]
    first, second, third = (policy.act(seen, memory=memory)[0, :, 0].tolist() for _ in range(3))
    assert first == [11, 21, 31]  # nothing runs before the first plan
    assert second == [41, 51, 32]  # steps 4 and 5 of plan 1, then plan 2
    assert third == [42, 52, 33]
    held = policy.held[2]
    assert held.mask[0, :, 0].tolist() == [False, True, True, False, False, False, False, False]
    assert held.action[0, 1:3, 0].tolist() == [42, 52]


def test_rows_have_memories_of_their_own(planned, batch):
    policy, seen = planned(delay=2), batch(2)["observation"]
    old, new = {}, {}
    policy.act({key: value[:1] for key, value in seen.items()}, memory=[old])
    both = policy.act(seen, memory=[old, new])[:, :, 0]
    assert both.tolist() == [[41, 51, 32], [12, 22, 32]]
    with pytest.raises(UserError, match="1 memories for a batch of 2"):
        policy.act(seen, memory=[{}])


@pytest.mark.parametrize("name", ["flow_mlp", "diffusion_mlp"])
def test_a_sampler_continues_what_is_held(name, small, batch):
    """Two ways of moving, left or right all along: with the first steps held to one, the sampled rest goes the same way."""
    side = torch.where(torch.arange(128) % 2 == 0, -0.8, 0.8)[:, None, None].expand(128, 4, 2)
    data = batch(128)
    data["observation"] = {key: value[:1].expand_as(value) for key, value in data["observation"].items()}
    policy = small(name, {"steps": 10}, {"dim": 64})
    data["action"] = policy.normalizer.denormalize("action", side)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    for step in range(150):
        torch.manual_seed(step)
        policy(data)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    policy.eval()
    mask = torch.tensor([True, True, False, False])[None, :, None].expand(128, 4, 1)
    with torch.no_grad():
        condition = policy.encoder(policy._normalized(data["observation"]))
        sampled = policy.objective.sample(
            policy.network,
            condition,
            torch.Generator().manual_seed(0),
            Limits(*policy.normalizer.limits("action")),
            Held(side.clone(), mask),
        )
    assert torch.equal(sampled[:, :2], side[:, :2])
    same = (sampled[:, 2:] * side[:, 2:] > 0).float().mean()
    assert same > 0.9, same


def test_acting_is_part_of_the_checkpoint_and_can_be_chosen_anew(small, batch, tmp_path):
    policy = small("regression_mlp", acting={"ensemble": True})
    save_policy(policy, tmp_path)
    assert load_policy(tmp_path).n_action_steps == 1
    other = load_policy(tmp_path, acting={"ensemble": False, "delay": 1})
    assert other.n_action_steps == 2 and other.acting.config.delay == 1
    with pytest.raises(UserError, match="did you mean 'ensemble'"):
        load_policy(tmp_path, acting={"ensembel": True})


@pytest.mark.parametrize(
    ("name", "acting", "objective"),
    [
        (
            "flow_transformer",
            {"steps": 5, "integrator": "heun", "n_action_steps": 1},
            {"steps": 5, "integrator": "heun"},
        ),
        ("diffusion_mlp", {"sampler": "ddpm", "steps": 4, "clip": None}, {"sampler": "ddpm", "steps": 4, "clip": None}),
        ("mixture_mlp", {"low_noise": False}, {"low_noise": False}),
    ],
)
def test_a_checkpoint_plans_otherwise_and_its_weights_are_the_same(name, acting, objective, small, batch, tmp_path):
    policy = small(name)
    for parameter in policy.parameters():  # some networks begin at zero
        torch.nn.init.normal_(parameter, std=0.3)
    save_policy(policy, tmp_path)
    other = load_policy(tmp_path, acting=acting)
    assert other.n_action_steps == acting.get("n_action_steps", policy.n_action_steps)
    assert {key: other.config.objective[key] for key in objective} == objective and other.changed == acting
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in policy.state_dict().items())
    seen = batch(3)["observation"]
    as_trained, actions = (each.act(seen, torch.Generator().manual_seed(0)) for each in (load_policy(tmp_path), other))
    assert actions.shape[1] == other.n_action_steps and torch.isfinite(actions).all()
    assert not torch.allclose(actions, as_trained[:, : other.n_action_steps], rtol=1e-3)
    same = {key: policy.config.objective[key] for key in objective}
    assert load_policy(tmp_path, acting={**same, "n_action_steps": policy.n_action_steps}).changed == {}
    save_policy(other, tmp_path)
    again = load_policy(tmp_path)
    assert again.n_action_steps == other.n_action_steps and again.config.objective == other.config.objective


@pytest.mark.parametrize(
    ("acting", "message"),
    [
        ({"steps": 0}, "policy.objective.steps=0 has to lie between 1 and"),
        ({"integrator": "rk4"}, "integrator"),
        ({"time": "beta"}, "unknown option of acting 'time'"),
        ({"sampler": "ddim"}, "unknown option of acting 'sampler'"),
        ({"n_action_steps": 0}, "n_action_steps=0 has to be a whole number"),
        ({"n_action_steps": 2.5}, "n_action_steps=2.5"),
    ],
)
def test_what_a_checkpoint_can_not_plan_is_one_line(acting, message, small, tmp_path):
    save_policy(small("flow_transformer"), tmp_path)
    with pytest.raises(UserError) as caught:
        load_policy(tmp_path, acting=acting)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("acting", "message"),
    [
        ({"delay": -1}, "at least 0"),
        ({"delay": 3}, "delay=3 is more than n_action_steps=2"),
        ({"delay": 2}, "at most horizon - n_obs_steps + 1 = 3"),
        ({"ensemble": True, "delay": 1}, "exclude each other"),
        ({"decay": -0.1}, "decay=-0.1"),
        ({"compile": "fast"}, "policy.acting.compile='fast' is none of default, reduce-overhead"),
    ],
)
def test_what_the_horizon_does_not_allow_is_refused(acting, message, spec):
    with pytest.raises(UserError) as caught:
        make_policy({"name": "regression_mlp", "acting": acting}, spec)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_compiled_network_plans_what_the_eager_one_does(small, batch, tmp_path):
    """By its default mode, a C++ compiler included; batches of two sizes, since rollouts end one by one."""
    save_policy(small("flow_transformer"), tmp_path)
    eager, compiled = load_policy(tmp_path), load_policy(tmp_path, acting={"compile": "default"})
    for rows in (3, 1, 3):
        observation = batch(rows)["observation"]
        plans = [each.act(observation, torch.Generator().manual_seed(0)) for each in (eager, compiled)]
        torch.testing.assert_close(plans[1], plans[0], rtol=1e-4, atol=1e-5)
    assert compiled._compiled


def test_without_a_compiler_that_is_said_in_a_line(spec, monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(UserError, match=r"policy\.acting\.compile needs a C\+\+ compiler .*compile=null"):
        make_policy({"name": "regression_mlp", "acting": {"compile": "default"}}, spec)


@pytest.mark.parametrize(
    ("threads", "rows", "taken"), [(None, 1, 1), (2, 1, 2), (1, 64, 1), (None, 4096, 3), (8, 4096, 3)]
)
def test_a_small_plan_takes_one_thread_and_gives_the_others_back(small, spec, threads, rows, taken, monkeypatch):
    policy = small("flow_transformer", acting={"threads": threads})
    seen, within, before = set(), set(), torch.get_num_threads()
    policy.network.register_forward_hook(lambda *_: seen.add(torch.get_num_threads()))
    monkeypatch.setattr(products, "avx512_unused", lambda: True)
    monkeypatch.setattr(products, "_replace", lambda library: None)
    policy.network.register_forward_hook(lambda *_: within.add(products._users))
    observation = {key: torch.zeros(rows, spec.n_obs_steps, *each.shape) for key, each in spec.observations.items()}
    torch.set_num_threads(3)
    try:
        policy.eval().act(observation)
        assert seen == {taken} and torch.get_num_threads() == 3
        assert within == {int(rows > 1000)} and not products._users  # oneDNN's products are a large plan's
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("policy", ["flow_transformer", "diffusion_transformer"])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_plan_is_what_the_network_answers_called_at_every_step(small, spec, policy, rows):
    policy = small(policy).eval()
    generator = torch.Generator().manual_seed(0)
    for (
        each
    ) in policy.network.parameters():  # the gates of an untrained network are zero, and everything else without effect
        each.data.add_(torch.empty_like(each).uniform_(-0.2, 0.2, generator=generator))
    observation = {key: torch.rand(rows, spec.n_obs_steps, *each.shape) for key, each in spec.observations.items()}
    planned = policy.act(observation, torch.Generator().manual_seed(1))
    calls = []
    handle = policy.network.register_forward_hook(lambda *_: calls.append(1))
    stepped = policy.act(observation, torch.Generator().manual_seed(1))
    handle.remove()
    assert len(calls) == policy.config.objective["steps"]
    torch.testing.assert_close(planned, stepped, rtol=1e-4, atol=1e-4)
    policy.act(observation)
    assert len(calls) == policy.config.objective["steps"]


def test_a_layer_that_was_exchanged_is_asked(small, spec):
    """Adapters stand in the place of layers whose weights a plan would otherwise read."""

    class Adapter(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer, self.weight, self.bias = layer, layer.weight, layer.bias

        def forward(self, x):
            return self.layer(x) + 1.0

    policy = small("flow_transformer").eval()
    observation = {key: torch.rand(1, spec.n_obs_steps, *each.shape) for key, each in spec.observations.items()}
    before = policy.act(observation, torch.Generator().manual_seed(1))
    policy.network.head = Adapter(policy.network.head)
    after = policy.act(observation, torch.Generator().manual_seed(1))
    assert (after - before).abs().max() > 0.1
