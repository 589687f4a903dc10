import math

import numpy as np
import pytest
import torch

from dopr_robot import seeds
from dopr_robot.errors import UserError
from dopr_robot.evaluation.rollouts import rollout
from dopr_robot.evaluation.rollouts.episode import Job
from dopr_robot.evaluation.rollouts.rollout import Rollout
from dopr_robot.policies import products

EPISODES = 40


def jobs(n=EPISODES):
    return [Job(episode, seed) for episode, seed in enumerate(seeds.block("final", 0, n))]


def run(policy, make_env, kind="attain", horizon=20, episodes=EPISODES, **kwargs):
    records = []
    faults = Rollout(policy, make_env, kind, horizon, {"closeness": "max"}).run(
        jobs(episodes), records.append, **kwargs
    )
    return sorted(records, key=lambda record: record.episode), faults


@pytest.fixture
def reference(policy, make_point):
    return run(policy, make_point(), num_envs=1)[0]


def test_outcomes_are_of_every_kind(reference):
    assert {record.outcome for record in reference} == {"success", "timeout", "failure"}
    failed = next(record for record in reference if record.outcome == "failure")
    assert failed.cause == "left the arena" and failed.first_failure_step == failed.length
    assert all(record.length == 20 for record in reference if record.outcome == "timeout")


@pytest.mark.parametrize(("num_envs", "workers"), [(7, 1), (7, 2), (32, 2), (32, 3), (None, None)])
def test_records_do_not_depend_on_copies_or_threads(policy, make_point, reference, num_envs, workers):
    records, _ = run(policy, make_point(), num_envs=num_envs, workers=workers)
    assert [record.to_json() for record in records] == [record.to_json() for record in reference]


def test_records_do_not_depend_on_the_vectorisation(policy, make_point, reference):
    records, _ = run(policy, make_point(workers=True), num_envs=3)
    assert [record.to_json() for record in records] == [record.to_json() for record in reference]


def test_records_do_not_depend_on_torch_threads(policy, make_point, reference):
    torch.set_num_threads(2)
    records, _ = run(policy, make_point(), num_envs=16)
    assert torch.get_num_threads() == 2
    assert [record.to_json() for record in records] == [record.to_json() for record in reference]


def test_a_part_of_the_episodes_gives_the_same_records(policy, make_point, reference):
    records = []
    Rollout(policy, make_point(), "attain", 20, {"closeness": "max"}).run(jobs()[25:], records.append)
    assert sorted(r.to_json() for r in records) == sorted(r.to_json() for r in reference[25:])


def test_another_seed_gives_another_episode(reference):
    assert len({record.initial_state_sha256 for record in reference}) == EPISODES


def test_records_against_a_plain_loop(make_point, point_policy):
    """Receding horizon, history and bookkeeping, done once more by hand for one episode."""
    policy, job = point_policy(), jobs()[5]
    env = make_point()(1).envs[0]
    observation, _ = env.reset(seed=job.seed)
    history = [observation, observation]
    generator = torch.Generator().manual_seed(job.seed)
    rewards, closeness, step, success = [], [], 0, False
    while not success and step < 20:
        batch = {
            key: torch.tensor(np.stack([o[key] for o in history[-2:]]), dtype=torch.float32).repeat(16, 1, 1)
            for key in observation
        }
        others = [torch.Generator() for _ in range(15)]
        chunk = policy.act(batch, [*others[:5], generator, *others[5:]])[5].detach().numpy()
        for action in chunk:
            observation, reward, terminated, _, info = env.step(np.clip(action, -0.1, 0.1))
            history.append(observation)
            rewards.append(reward)
            closeness.append(info["closeness"])
            step += 1
            success = info["success"]
            if terminated or step == 20:
                break
    (record,) = [r for r in run(policy, make_point(), num_envs=4, episodes=8)[0] if r.episode == 5]
    assert (record.length, record.outcome == "success") == (step, success)
    assert record.return_ == pytest.approx(math.fsum(rewards), rel=1e-6)
    assert record.metrics["closeness"] == pytest.approx(max(closeness), rel=1e-4)


@pytest.mark.parametrize("num_envs", [1, 7])
def test_a_policy_that_remembers_is_given_each_episodes_own_memory(make_point, point_policy, num_envs):
    class Remembering(point_policy):
        remembers = True

        def act(self, observation, generator, memory):
            actions = super().act(observation, generator)
            for row, each in enumerate(memory):
                each.setdefault("plans", []).append(actions[row])
                actions[row] = torch.stack(each["plans"]).mean(dim=0)
            return actions

    records, _ = run(Remembering(), make_point(), num_envs=num_envs)
    alone = [run(Remembering(), make_point(), episodes=number + 1, num_envs=1)[0][number] for number in (0, 9)]
    assert [records[0].to_json(), records[9].to_json()] == [record.to_json() for record in alone]


def test_sustain(policy, make_point):
    records, _ = run(policy, make_point(sustain=True), kind="sustain", horizon=40)
    assert {record.outcome for record in records} == {"success", "failure"}
    for record in records:
        assert record.first_success_step is None
        assert (record.first_failure_step is None) == (record.outcome == "success")
        assert record.length == (record.first_failure_step or 40)


@pytest.mark.parametrize("num_envs", [1, 8])
def test_an_exception_is_a_record_and_spares_its_neighbours(policy, make_point, reference, num_envs):
    long = next(r.episode for r in reference if r.outcome == "timeout")
    broken = jobs()[long].seed
    records, faults = run(policy, make_point(broken_seeds=frozenset([broken])), num_envs=num_envs)
    assert not faults
    assert records[long].outcome == "exception" and records[long].length == 4
    assert records[long].error == "RuntimeError: the point fell through the table"
    assert [r.to_json() for r in records if r.episode != long] == [r.to_json() for r in reference if r.episode != long]


def test_a_dead_worker_is_reported_and_costs_no_episode(policy, make_point, reference):
    killed = []

    def make(n, cores=None):
        env = make_point(workers=True)(n)
        if n > 1 and not killed:
            killed.append(env.processes[1])
            env.processes[1].kill()
        return env

    records, faults = run(policy, make, num_envs=3)
    assert len(faults) == 1 and "run again" in faults[0]
    assert [r.to_json() for r in records] == [r.to_json() for r in reference]


def test_an_action_that_is_not_finite_is_an_exception(make_point, point_policy, reference):
    class Faulty(point_policy):
        def act(self, observation, generator):
            actions = super().act(observation, generator)
            actions[observation["goal"][:, 0, 0] > 0.5] = math.nan
            return actions

    records, _ = run(Faulty(), make_point(), num_envs=8)
    wrong = [r for r in records if r.outcome == "exception"]
    assert wrong and all("not finite at step 1" in r.error and r.length == 0 for r in wrong)
    good = [r.to_json() for r in records if r.outcome != "exception"]
    assert good and set(good) <= {r.to_json() for r in reference}


def test_a_policy_that_raises_stops_the_rollout_and_keeps_what_ended(make_point, point_policy, reference):
    class Failing(point_policy):
        calls = 0

        def act(self, observation, generator):
            self.calls += 1
            if self.calls > 30:
                raise MemoryError("no room")
            return super().act(observation, generator)

    records = []
    with pytest.raises(MemoryError):
        Rollout(Failing(), make_point(), "attain", 20, {"closeness": "max"}).run(
            jobs(), records.append, num_envs=6, workers=2
        )
    assert 0 < len(records) < EPISODES
    assert {r.to_json() for r in records} <= {r.to_json() for r in reference}


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("action_dim", 3, "trained for another task"),
        ("observations", {"image": (3, 8, 8)}, "reads observation 'image', the task gives"),
        ("observations", {"goal": (3,)}, "has shape"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused(make_point, point_policy, attribute, value, message):
    policy = point_policy()
    setattr(policy, attribute, value)
    with pytest.raises(UserError, match=message):
        run(policy, make_point())


@pytest.mark.parametrize(("machine", "workers"), [(1, None), (4, None), (16, None), (16, 3), (2, 5)])
def test_groups_share_the_cores(policy, make_point, monkeypatch, machine, workers):
    """N groups of N processes each had the simulators' processes grow with the square of the cores."""
    monkeypatch.setattr(rollout, "cores", lambda: machine)
    made, make = [], make_point()

    def make_env(n, cores):
        made.append(cores)
        return make(n)

    Rollout(policy, make_env, "attain", 20, copies=2).run(jobs(), lambda record: None, workers=workers)
    assert len(made) == (workers or machine)
    assert sum(made) <= max(machine, len(made))


def test_large_products_are_those_that_fit_the_processor(make_point, policy, monkeypatch):
    within, act = [], policy.act

    def watched(observation, generator):
        within.append(products._users)
        return act(observation, generator)

    monkeypatch.setattr(policy, "act", watched)
    monkeypatch.setattr(products, "avx512_unused", lambda: True)
    monkeypatch.setattr(products, "_replace", lambda library: None)
    run(policy, make_point(), episodes=4)
    assert within and set(within) == {1} and not products._users
