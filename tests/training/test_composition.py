"""From what a user types, and from files, to a configuration."""

import subprocess
import sys

import pytest

from dopr_robot.errors import UserError
from dopr_robot.settings import to_yaml
from dopr_robot.study import load_study
from dopr_robot.training import build_optimizer, compose_config, config_from, load_config
from dopr_robot.training.advice import without_effect

PATHS = ["2024_11_06", "lr=3/x.zarr", "my data (1)/x.zarr", "a,b/x.zarr", "数据/x.zarr", "1e3", "${oc.env:USER}", "[x]"]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_and_a_name_stay_what_was_typed_and_come_back_from_the_runs_file(path, tmp_path):
    made = compose_config(None, [f"data.store={path}", f"name={path}"])
    assert (made.data.store, made.name) == (path, path)
    (tmp_path / "config.yaml").write_text(made.to_yaml(), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml") == made == compose_config(str(tmp_path / "config.yaml"))


def test_the_home_folder_is_found(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert compose_config(None, ["data.store=~/s.zarr"]).data.store == "/home/somebody/s.zarr"


def test_numbers_without_a_dot_are_numbers_in_files_and_studies(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "optimizer: {name: adamw, lr: 1e-3}\ntraining: {steps: 1e4}\npolicy: {name: regression_mlp, network: {dim: 32}}\n"
    )
    made = compose_config(str(mine), ["optimizer.betas=[.8, 99e-2]"])
    assert made.optimizer["lr"] == 1e-3 and made.training.steps == 10_000 and made.optimizer["betas"] == [0.8, 0.99]
    study = tmp_path / "study.yaml"
    study.write_text(
        "tasks: [{task: QuadrotorTrack, store: 2024_11_06}]\npolicies: [regression_mlp]\noptimizers: [{name: dopr_adamw, damping: 3e-1}]\n"
        "learning_rates: [1e-3]\ntraining: {steps: 4e1, tracker: null}\n"
    )  # fmt: skip
    config = load_study(study).arms()[0].config
    assert (config.optimizer["lr"], config.optimizer["damping"], config.training.steps) == (1e-3, 0.3, 40)
    assert config.data.store == "2024_11_06"


def test_nothing_in_a_file_that_somebody_else_made_is_resolved(monkeypatch, tmp_path):
    """A configuration, a study and a checkpoint may come from anywhere."""
    from dopr_robot.policies.acting import ActingConfig
    from dopr_robot.policies.options import options

    monkeypatch.setenv("SECRET_OF_MINE", "hunter2")
    leak = "${oc.env:SECRET_OF_MINE}"
    path = tmp_path / "theirs.yaml"
    path.write_text(
        to_yaml({"name": leak, "data": {"store": leak}, "policy": {"name": "flow_unet", "normalization": leak}})
    )
    assert "hunter2" not in compose_config(str(path)).to_yaml() + load_config(path).to_yaml()
    for values in (
        {"training": {"device": leak}},
        {"training": {"steps": leak}},
        {"optimizer": {"name": leak}},
        {leak: 1},
    ):
        path.write_text(to_yaml(values))
        with pytest.raises(UserError) as caught:
            compose_config(str(path))
        assert "hunter2" not in str(caught.value)
    path.write_text(
        to_yaml(
            {
                "tasks": [{"task": leak, "store": leak}],
                "policies": [leak],
                "optimizers": ["adamw"],
                "learning_rates": [1],
            }
        )
    )
    study = load_study(path)
    assert "hunter2" not in study.to_yaml() and study.tasks[0].store == leak
    with pytest.raises(UserError) as caught:
        options(ActingConfig, {"delay": leak}, "policy.acting")
    assert leak in str(caught.value)


def test_a_switched_optimizer_keeps_what_both_have_and_a_line_says_so(tmp_path, caplog):
    mine = tmp_path / "mine.yaml"
    mine.write_text("optimizer: {name: dopr_adamw, lr: 1e-3, betas: [0.8, 0.99], damping: 0.3, update_every: 10}\n")
    made = compose_config(str(mine), ["optimizer=adamw"])
    assert made.optimizer == {"name": "adamw", "lr": 1e-3, "weight_decay": 0.0, "betas": [0.8, 0.99], "eps": 1e-8}
    (line,) = caplog.messages
    assert "keeps lr=0.001 (adamw's own: 0.0003)" in line and "no place for damping=0.3" in line
    assert "update_every" not in line  # as it is by default
    assert compose_config(str(mine), ["optimizer=adamw", "optimizer.lr=0.1"]).optimizer["lr"] == 0.1
    caplog.clear()
    assert compose_config("pick_place", ["optimizer=adamw"]).optimizer["lr"] == 1e-3
    assert "keeps lr=0.001" in caplog.text
    caplog.clear()
    assert compose_config(str(mine), ["optimizer=dopr_adamw"]).optimizer["damping"] == 0.3 and not caplog.text


def test_a_damping_that_follows_a_schedule_over_the_run(tmp_path):
    from torch import nn

    mine = tmp_path / "mine.yaml"
    mine.write_text("optimizer: {name: dopr_adamw, damping: {schedule: cosine, from: 1.0, to: 0.1}}\n")
    typed = compose_config("pick_place", ["optimizer.damping={schedule: cosine, from: 1.0, to: 0.1}"])
    for config in (compose_config(str(mine), ["training.steps=200"]), typed):
        assert config.optimizer["damping"] == {"schedule": "cosine", "from": 1.0, "to": 0.1}
        optimizer = build_optimizer(nn.Linear(3, 2), config)
        steps = config.training.steps
        assert repr(optimizer.preconditioner.groups) == f"cosine from 1 to 0.1 over {steps} steps"
    odd = compose_config("pick_place", ["optimizer.damping={schedule: wave, from: 1.0, to: 0.1}"])
    with pytest.raises(UserError, match="optimizer dopr_adamw: damping schedule='wave' must be one of linear"):
        build_optimizer(nn.Linear(3, 2), odd)
    with pytest.raises(UserError, match="a number is expected"):
        compose_config("pick_place", ["optimizer.lr={schedule: cosine}"])


def test_a_switched_policy_keeps_what_both_have(tmp_path, caplog):
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "policy: {name: flow_transformer, horizon: 12, network: {dim: 32}, objective: {steps: 7}, acting: {delay: 1}}\n"
    )
    made = compose_config(str(mine), ["policy=diffusion_transformer"]).policy
    standard = compose_config(None, ["policy=diffusion_transformer"]).policy
    assert (made["horizon"], made["network"]["dim"], made["acting"]["delay"]) == (12, 32, 1)
    assert made["objective"] == standard["objective"] and "no place for objective.steps=7" in caplog.text
    other = compose_config(str(mine), ["policy.name=flow_mlp"]).policy
    assert (
        other["network"] == compose_config(None, ["policy=flow_mlp"]).policy["network"]
        and other["objective"]["steps"] == 7
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([], None),
        (["training.steps=400"], "training.warmup_steps=500: a run of 400 steps ends in it, at 80% of optimizer.lr"),
        (["training.steps=400", "training.warmup_steps=40"], None),
        (["training.schedule=constant", "training.warmup_steps=100"], "has no warm-up"),
        (["training.checkpoint_every=50000"], "training.checkpoint_every=50000: once, at the end"),
        (["training.patience=3"], "nothing without training.early_stop"),
        (["training.keep_best=3"], "nothing without training.rollout_every"),
        (["training.early_stop=validation_loss", "training.validate_every=5000"], "4 looks in 20000 steps"),
        (["training.ema_max_decay=0.99999"], "not reached"),
        (["optimizer=adamw", "training.spectrum_every=10"], "nothing under adamw"),
    ],
)
def test_settings_that_do_nothing_are_named(settings, said):
    found = without_effect(compose_config(None, settings))
    assert len(found) == (said is not None) and (said is None or said in found[0])


def test_settings_are_checked_before_torch_is_loaded(tmp_path):
    (tmp_path / "a.yaml").write_text("training: {stepz: 3}\n")
    code = (
        "import sys\nfrom dopr_robot.cli import main\ncode = main(['train', *sys.argv[1:]])\n"
        "assert code == 2 and not {'torch', 'hydra', 'mujoco', 'zarr'} & set(sys.modules), sorted(sys.modules)"
    )
    for words in (
        ["training.stepz=3"],
        ["training.steps=x"],
        ["trainin.steps=3"],
        [str(tmp_path / "a.yaml")],
        ["nothing"],
    ):
        done = subprocess.run([sys.executable, "-P", "-c", code, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("\n") == 1 and done.stderr.startswith("dopr: ")


def test_a_section_that_is_no_mapping_is_refused(tmp_path):
    for values, message in (
        ({"training": 5}, "training=5: a mapping"),
        ({"policy": {"name": "flow_unet", "network": 3}}, "policy.network=3"),
    ):
        with pytest.raises(UserError, match=message):
            config_from(values)
    assert config_from({"training": None, "policy": None}) == config_from({})


def test_a_configuration_that_is_given_stays_as_it_was():
    from dopr_robot.experiment import configuration

    given = config_from({"policy": "regression_mlp"})
    configuration(given).name = "runs-2"
    assert given.name is None
