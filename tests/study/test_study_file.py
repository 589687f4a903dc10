"""What a study file may say, and what is made of it."""

import numpy as np
import pytest
from filelock import FileLock

from dopr_robot import collect
from dopr_robot.errors import DoprError, UserError
from dopr_robot.study import load_study
from dopr_robot.study.choice import check_matched, choose
from dopr_robot.study.config import Study
from dopr_robot.study.naming import file_name, label, short_labels
from dopr_robot.study.run import run_study
from dopr_robot.study.table import references
from dopr_robot.study.tasks import TaskEntry, task_of

FILE = """
tasks: [{task: QuadrotorTrack, store: q.zarr}]
policies: [regression_mlp, {name: regression_mlp, network: {dim: 32}}]
optimizers: [adamw, {name: dopr_adamw, damping: 0.3}, muon, dopr_muon]
learning_rates: [1e-3, 3e-3]
seeds: [0, 1]
training: {steps: 40}
"""


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "study.yaml"
    made.write_text(FILE)
    return made


def test_arms_are_every_combination_and_differ_in_what_they_name(path):
    study = load_study(path)
    arms = study.arms()
    assert len(arms) == 2 * 4 * 2 * 2 == len({arm.name for arm in arms}) == len({arm.config_sha256() for arm in arms})
    assert [arm.seed for arm in arms] == [0] * 16 + [1] * 16
    config = arms[-1].config
    assert config.task.name == "dopr_robot/QuadrotorTrack-v0" and config.data.store == "q.zarr"
    assert (config.optimizer["name"], config.optimizer["lr"], config.training.seed) == ("dopr_muon", 3e-3, 1)
    assert config.policy["network"]["dim"] == 32 and config.training.steps == 40
    assert (config.training.threads, config.training.rollout_every, config.training.rollout_episodes) == (1, 10, 50)
    assert next(arm for arm in arms if "0.3" in arm.name).config.optimizer["damping"] == 0.3


def test_one_task_under_two_options_is_two_tasks_of_a_study(path):
    tasks = "tasks=[{task: Stack, store: a.zarr, options: {cubes: 3}}, {task: Stack, store: b.zarr}]"
    arms = load_study(path, [tasks, "seeds=[0]"]).arms()
    assert len(arms) == len({arm.name for arm in arms}) == 2 * 2 * 4 * 2
    assert {arm.key["task"] for arm in arms} == {"Stack cubes=3", "Stack"}
    assert task_of("Stack cubes=3").id == "dopr_robot/Stack-v0"
    three = next(arm for arm in arms if arm.key["task"] == "Stack cubes=3").config.task
    assert three.name == "dopr_robot/Stack-v0" and three.options == {"cubes": 3}


def test_one_task_from_several_demonstrations_is_told_apart_by_its_variant(path):
    entries = [("half", "episodes: 5"), ("once", "episodes: 10"), ("all clean", "")]
    tasks = ", ".join(f"{{task: QuadrotorTrack, store: q.zarr, variant: {name}, {more}}}" for name, more in entries)
    arms = load_study(path, [f"tasks=[{tasks}]", "seeds=[0]"]).arms()
    assert len(arms) == len({arm.name for arm in arms}) == 3 * 2 * 4 * 2
    assert {(arm.key["task"], arm.config.data.max_episodes) for arm in arms} == {
        ("QuadrotorTrack half", 5), ("QuadrotorTrack once", 10), ("QuadrotorTrack all clean", None),
    }  # fmt: skip
    assert task_of("QuadrotorTrack all clean").id == "dopr_robot/QuadrotorTrack-v0"
    whole = load_study(path, ["data.max_episodes=7", f"tasks=[{tasks}]"]).arms()
    assert {arm.config.data.max_episodes for arm in whole} == {5, 10, 7}
    twice = "{task: QuadrotorTrack, store: q.zarr}, {task: QuadrotorTrack, store: other.zarr}"
    for words in ([f"tasks=[{twice}]"], [f"tune={{tasks: [{twice}]}}", "tasks=[{task: Stack, store: s.zarr}]"]):
        with pytest.raises(UserError, match="names QuadrotorTrack twice: a variant tells"):
            load_study(path, words)


def test_a_variant_of_more_episodes_than_there_are_is_refused(path, tmp_path):
    store = collect("QuadrotorTrack", 2, tmp_path / "q.zarr").path
    entry = f"{{task: QuadrotorTrack, store: {store}, variant: twice, episodes: 4}}"
    with pytest.raises(UserError, match=r"episodes: 4 of QuadrotorTrack twice, and .* holds 2"):
        run_study(load_study(path, [f"tasks=[{entry}]", "training.batch_size=8"]), out=tmp_path / "out", workers=1)


def test_settings_on_the_command_line_go_over_the_file(path):
    study = load_study(path, ["training.steps=8", "seeds=[3]", "training.schedule=constant"])
    assert study.training["steps"] == 8 and study.seeds == [3] and study.training["validate_every"] == 2
    assert study.arms()[0].config.training.schedule == "constant"


def test_a_budget_gives_every_optimizer_as_many_rates_around_its_own(path):
    study = load_study(path, ["learning_rates={budget: 3, factor: 2}"])
    assert study.rates("adamw") == [1.5e-4, 3e-4, 6e-4] and study.rates("muon") == [5e-4, 1e-3, 2e-3]


def test_what_is_compared_with_what(path):
    assert references(load_study(path)) == {"dopr_adamw damping=0.3": "adamw", "muon": "adamw", "dopr_muon": "muon"}
    assert label({"name": "a", "network": {"dim": 3}}) == "a network.dim=3"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer=adamw", "did you mean 'optimizers'"),
        ("optimizers=[]", "a study needs optimizers"),
        ("optimizers=[adamw, adamw]", "names one twice"),
        ("learning_rates=[0]", "positive ones"),
        ("learning_rates={adamw: [1], dopr_adamw: [1], muon: [1, 2], dopr_muon: [1]}", "more rates than others"),
        ("learning_rates={adamw: [1]}", "has none for dopr_adamw damping=0.3"),
        ("learning_rates=3", "a study needs learning_rates"),
        ("evaluation.test_episodes=0", "at least 1"),
        ("evaluation.episodes=3", "unknown key of evaluation 'episodes'"),
        ("tasks=[PickPlace]", "of the form"),
        ("seeds=[a]", "seeds"),
        ("training", "not of the form key=value"),
    ],
)
def test_a_file_that_makes_no_study_is_refused_in_one_line(path, override, message):
    with pytest.raises(UserError) as caught:
        load_study(path, [override])
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.stepz=3", "did you mean 'training.steps'"),
        ("optimizers=[adamww]", "did you mean 'adamw'"),
        ("policies=[regresion_mlp]", "did you mean 'regression_mlp'"),
        ("optimizers=[{name: adamw, dampin: 3}]", "unknown config key 'optimizer.dampin'"),
        ("tasks=[{task: QuadrotorTrak, store: a}]", "did you mean 'QuadrotorTrack'"),
    ],
)
def test_names_that_an_arm_does_not_know_are_refused(path, override, message):
    with pytest.raises(UserError, match=message):
        study = load_study(path, [override])
        assert study.arms()[0].config


def record(**changes):
    common = {"task": "T", "policy": "p", "seed": 0, "optimizer": "adamw", "learning_rate": 1e-3, "error": None}
    hashes = {
        "initial_weights_sha256": "a",
        "first_batches_sha256": "b",
        "first_loss": 1.0,
        "selection_states_sha256": "c",
    }
    return {**common, **hashes, **changes}


@pytest.mark.parametrize(
    "key", ["initial_weights_sha256", "first_batches_sha256", "first_loss", "selection_states_sha256"]
)
def test_arms_that_did_not_begin_alike_are_no_matched_pair(key):
    check_matched([record(), record(optimizer="muon"), record(optimizer="muon", seed=1, **{key: "other"})])
    with pytest.raises(DoprError, match=f"no matched pair: {key}"):
        check_matched([record(), record(optimizer="muon", **{key: "other"})])


def test_the_rate_with_the_most_success_is_chosen_then_the_largest_return_then_the_least_loss(path):
    study = load_study(path, ["policies=[regression_mlp]", "optimizers=[adamw, muon, lion]"])
    successes = {("adamw", 1e-3): 5, ("adamw", 3e-3): 7, ("muon", 1e-3): 4, ("muon", 3e-3): 4}
    losses = {("adamw", 1e-3): 0.1, ("adamw", 3e-3): 0.9, ("muon", 1e-3): 0.3, ("muon", 3e-3): 0.2}
    returns = {("lion", 1e-3): 8.0, ("lion", 3e-3): 2.0}
    done = {}
    for arm in study.arms():
        key = (arm.key["optimizer"], arm.learning_rate)
        found = {
            "selection_successes": {"10": 0, "20": successes.get(key, 0)},
            "selection_episodes": 20,
            "selection_return": returns.get(key, 1.0),
            "validation_loss": losses.get(key, arm.learning_rate),
        }
        done[arm.name] = record(**arm.key, **found)
    assert {optimizer: candidate["lr"] for (_, _, optimizer, _), candidate in choose(study, done, {}).items()} == {
        "adamw": 3e-3, "muon": 3e-3, "lion": 1e-3,
    }  # fmt: skip


def test_entries_are_called_by_what_tells_them_apart():
    entries = [
        "adamw",
        {"name": "dopr_adamw", "damping": 0.1, "rank": 8},
        {"name": "dopr_adamw", "damping": 0.3, "rank": 8},
    ]
    assert list(short_labels(entries).values()) == ["adamw", "dopr_adamw damping=0.1", "dopr_adamw damping=0.3"]
    assert list(short_labels([{"name": "regression_mlp", "network": {"dim": 64}}]).values()) == ["regression_mlp"]
    former = {"name": "dopr_adamw", "damping": 0.1, "label": "dopr_adamw"}
    assert list(short_labels([former, entries[1] | {"damping": 1.0}]).values()) == [
        "dopr_adamw",
        "dopr_adamw damping=1.0 rank=8",
    ]
    beside = ["dopr_adamw", {"name": "dopr_adamw", "damping": 1.0}]
    assert list(short_labels(beside).values()) == ["dopr_adamw", "dopr_adamw damping=1.0"]


def test_a_label_is_what_an_entry_is_called_and_nothing_else(path):
    """So that records keep their names when a default changes."""
    named = "optimizers=[{name: adamw, label: base}, {name: dopr_adamw, damping: 0.3, label: dopr_adamw}]"
    study = load_study(path, [named, "policies=[{name: regression_mlp, label: small}]"])
    arms = {arm.key["optimizer"]: arm for arm in reversed(study.arms())}
    assert set(arms) == {"base", "dopr_adamw"} == set(short_labels(study.optimizers).values())
    assert arms["dopr_adamw"].config.optimizer["damping"] == 0.3 and "label" not in arms["base"].config.optimizer
    assert arms["base"].key["policy"] == "small" and "-small-base-" in arms["base"].name
    assert references(study) == {"dopr_adamw": "base"}
    before = load_study(path, ["optimizers=[adamw, {name: dopr_adamw, damping: 0.3}]", "policies=[regression_mlp]"])
    was = next(arm for arm in before.arms() if arm.key["optimizer"] == "dopr_adamw damping=0.3").decides()
    assert arms["dopr_adamw"].decides() | {"name": ""} == was | {"name": ""}
    with pytest.raises(UserError, match="optimizers names one twice: a, a"):
        load_study(path, ["optimizers=[{name: adamw, label: a}, {name: muon, label: a}]"])


def test_names_of_files_are_short_and_tell_apart():
    long = [f"Task-{'network.dim=64 ' * 30}{end}" for end in ("a", "b")]
    assert all(len(file_name(text)) == 120 for text in long) and file_name(long[0]) != file_name(long[1])
    assert file_name("a/../b c\n:d") == "a-..-b-c-d"


def test_a_folder_that_is_in_use_is_seen_before_a_store_is_read(tmp_path):
    study = Study(
        tasks=[TaskEntry("QuadrotorTrack", str(tmp_path / "nowhere.zarr"))],
        policies=["regression_mlp"],
        optimizers=["adamw"],
        learning_rates=[1e-3],
    )
    with pytest.raises(UserError, match=r"nowhere.zarr"):
        run_study(study, out=tmp_path / "new" / "out", workers=1)
    assert not (tmp_path / "new").exists()
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(UserError, match="another process"):
        run_study(study, out=tmp_path / "out", workers=1)


SEARCH = "search={budget: 6, space: {lr: {within: 10}, weight_decay: [0.0, 0.1], damping: {low: 0.01, high: 10}}}"
TUNE = "tune={tasks: [{task: PickPlace, store: p.zarr}, {task: Drawer, store: d.zarr}], seeds: [7]}"


def test_a_search_draws_as_many_for_each_optimizer_and_what_they_share_alike(path):
    study = load_study(
        path, ["learning_rates=null", SEARCH, "optimizers=[adamw, dopr_adamw, {name: dopr_adamw, damping: 0.3}, muon]"]
    )
    drawn = {label(entry): study.candidates(entry) for entry in study.optimizers}
    assert {len(each) for each in drawn.values()} == {6}
    shared = [(candidate["lr"], candidate["weight_decay"]) for candidate in drawn["adamw"]]
    assert shared == [(candidate["lr"], candidate["weight_decay"]) for candidate in drawn["dopr_adamw"]]
    assert set(drawn["adamw"][0]) == {"lr", "weight_decay"} == set(drawn["dopr_adamw damping=0.3"][0])
    assert all(3e-5 <= lr <= 3e-3 for lr, _ in shared) and all(1e-4 <= c["lr"] <= 1e-2 for c in drawn["muon"])
    thirds = np.floor(np.log10([lr / 3e-5 for lr, _ in shared]) * 3)  # every sixth of the range has one
    assert sorted(thirds) == [0, 1, 2, 3, 4, 5] and sorted(decay for _, decay in shared) == [0.0] * 3 + [0.1] * 3
    assert drawn == {label(entry): study.candidates(entry) for entry in study.optimizers}
    arm = study.arms()[-1]
    assert arm.config.optimizer["weight_decay"] == arm.key["hyperparameters"]["weight_decay"]
    assert len({arm.name for arm in study.arms()}) == len(study.arms())


def test_a_grid_is_every_combination(path):
    space = "search={space: {lr: [0.001, 0.003], weight_decay: [0.0, 0.1]}}"
    found = load_study(path, ["learning_rates=null", space]).candidates("adamw")
    assert [tuple(each.values()) for each in found] == [(0.001, 0.0), (0.001, 0.1), (0.003, 0.0), (0.003, 0.1)]


def test_what_is_chosen_on_other_tasks_is_one_for_each_policy_and_optimizer(path):
    study = load_study(path, [TUNE, "optimizers=[adamw, muon]", "policies=[regression_mlp]"])
    arms = study.arms()
    assert {(arm.entry.task, arm.seed) for arm in arms} == {("PickPlace", 7), ("Drawer", 7)} and len(arms) == 2 * 2 * 2
    success = {("PickPlace", 1e-3): 9, ("PickPlace", 3e-3): 0, ("Drawer", 1e-3): 0, ("Drawer", 3e-3): 8}
    done = {
        arm.name: record(
            **arm.key, selection_successes={"9": success[arm.entry.task, arm.learning_rate]}, selection_episodes=10,
            selection_return=0.0, validation_loss=0.1,
        )
        for arm in arms
    }  # fmt: skip
    final = study.final_arms(choose(study, done, {}))
    assert [(arm.entry.task, arm.learning_rate, arm.seed) for arm in final] == [
        ("QuadrotorTrack", 1e-3, 0),
        ("QuadrotorTrack", 1e-3, 1),
    ] * 2


def test_rates_chosen_on_the_first_seeds_are_run_for_all(path):
    study = load_study(path, ["select_seeds=1", "optimizers=[adamw]", "policies=[regression_mlp]"])
    assert [(arm.learning_rate, arm.seed) for arm in study.arms()] == [(1e-3, 0), (3e-3, 0)]
    final = study.final_arms({arm.choice: arm.candidate for arm in study.arms()})
    assert [(arm.learning_rate, arm.seed) for arm in final] == [(3e-3, 0), (3e-3, 1)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([SEARCH], "one of the two says what is tried"),
        (["learning_rates=null", "search={space: {weight_decay: [0.1]}}"], "has no lr"),
        (["learning_rates=null", "search={space: {lr: {low: 0.1, high: 0.01}}, budget: 3}"], "{low: 1e-4, high: 1e-2}"),
        (["learning_rates=null", "search={space: {lr: {within: 10}}}"], "search.budget says how many"),
        (["learning_rates=null", "search={space: {lr: [0.1, 0.1]}}"], "names one twice"),
        (["learning_rates=null", "search={space: {lr: [-0.1]}}"], "positive ones"),
        (["learning_rates=null", "search={space: {lr: [0.1], dampin: [0.1]}}"], "did you mean 'damping'"),
        (["learning_rates=null", "search={space: {lr: [0.1], damping: [0.1, 1]}}"], "search.budget draws as many"),
        (["learning_rates=null", "search={spaces: {}}"], "did you mean 'space'"),
        (["learning_rates=null", SEARCH, "optimizers=[adamww]"], "did you mean 'adamw'"),
        (["learning_rates={budget: 3}", "optimizers=[adamww]"], "did you mean 'adamw'"),
        (["select_seeds=3"], "from 1 to the number of seeds, 2"),
        (["tune={tasks: []}"], "tune has no tasks"),
        (["tune={tasks: [PickPlace]}"], "tune.tasks: 'PickPlace' has to be of the form"),
        ([TUNE, "select_seeds=1"], "select_seeds is for a study without tune"),
        (["tune={tasks: [{task: QuadrotorTrack, store: b.zarr}]}"], "a task of the study"),
    ],
)
def test_choosing_that_can_not_be_is_refused_in_one_line(path, overrides, message):
    with pytest.raises(UserError) as caught:
        load_study(path, overrides)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_setting_that_came_later_is_its_default_and_any_other_is_a_change(path):
    arm = load_study(path).arms()[0]
    then = arm.decides()
    assert arm.changed(then) == []
    before = {name: value for name, value in then.items() if name not in ("training.ema_power", "optimizer.eps")}
    assert arm.changed(before) == []  # a version without these options
    assert arm.changed({**then, "training.steps": 39}) == ["training.steps is 40, and was 39"]
    assert arm.changed({**then, "training.gone": 1}) == ["training.gone is no setting any more, and was 1"]
    other = load_study(path, ["training.ema_power=0.5"]).arms()[0]
    (told,) = other.changed({name: value for name, value in then.items() if name != "training.ema_power"})
    assert told.startswith("training.ema_power is 0.5, and was ")


def test_a_pattern_leaves_out_the_tasks_that_are_tuned_on(path, tmp_path):
    for name in ("reach", "reach-wall", "push-wall"):
        (tmp_path / f"{name}.zarr").mkdir()
    words = [
        f"tasks=[{{task: 'metaworld/reach*', store: {tmp_path}}}]",
        f"tune.tasks=[{{task: metaworld/reach-v3, store: {tmp_path / 'reach.zarr'}}}]",
    ]
    assert [entry.task for entry in load_study(path, words).tasks] == ["metaworld/reach-wall-v3"]
    with pytest.raises(UserError, match="a task of the study"):
        load_study(path, [words[0].replace("reach*", "reach-v3"), words[1]])


def test_a_pattern_with_a_folder_is_an_entry_a_task(path, tmp_path):
    folder = tmp_path / "data"
    tasks = f"tasks=[{{task: '[CQ]*', store: {folder}/, horizons: [5]}}]"
    with pytest.raises(UserError, match=r"2 of 2 tasks have no store in .*dopr collect '\[CQ\]\*' --episodes N --out"):
        load_study(path, [tasks])
    for name in ("CartPoleSwingUp", "QuadrotorTrack"):
        (folder / f"{name}.zarr").mkdir(parents=True)
    entries = load_study(path, [tasks]).tasks
    assert [(entry.task, entry.horizons) for entry in entries] == [
        ("dopr_robot/CartPoleSwingUp-v0", [5]),
        ("dopr_robot/QuadrotorTrack-v0", [5]),
    ]
    assert [entry.store for entry in entries] == [str(folder / f"{entry.task[11:-3]}.zarr") for entry in entries]
    with pytest.raises(UserError, match="no task matches"):
        load_study(path, ["tasks=[{task: 'nothing*', store: data/}]"])
