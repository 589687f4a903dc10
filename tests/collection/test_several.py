"""A pattern or a group names several tasks, and a folder has a store for each."""

import numpy as np
import pytest

from dopr_robot import DoprError, Store, UserError, collect_several, list_tasks
from dopr_robot.cli import main
from dopr_robot.envs import list_tasks as specs
from dopr_robot.envs import matching_tasks, names_several
from dopr_robot.envs.cart_pole import ModelPredictiveController


def test_the_groups_of_the_literature_share_out_metaworlds_tasks():
    sizes = {name: len(matching_tasks(f"metaworld/{name}")) for name in ("easy", "medium", "hard", "very-hard")}
    assert sizes == {"easy": 28, "medium": 11, "hard": 6, "very-hard": 5}  # as Seo et al. have them
    every = {spec.id for spec in matching_tasks("metaworld/*")}
    assert every == {spec.id for name in sizes for spec in matching_tasks(f"metaworld/{name}")}
    assert len(every) == 50


def test_a_name_is_one_task_and_a_pattern_those_that_it_fits():
    assert [spec.name for spec in matching_tasks("PickPlace")] == ["PickPlace"]
    assert not names_several("PickPlace")
    assert {spec.name for spec in matching_tasks("[CQ]*")} == {"CartPoleSwingUp", "QuadrotorTrack"}
    assert len(list_tasks()) == len(specs())
    with pytest.raises(UserError, match=r"no task matches 'metaworlds/\*'.*metaworld/"):
        matching_tasks("metaworlds/*")


def test_a_folder_gets_a_store_a_task_and_more_later(tmp_path, capsys):
    out = tmp_path / "data"
    assert main(["collect", "[CQ]*", "--episodes", "1", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["CartPoleSwingUp.zarr", "QuadrotorTrack.zarr"]
    seeds = Store.open(out / "CartPoleSwingUp.zarr").seeds.tolist()
    stores = collect_several("[CQ]*", 2, out)
    assert [store.num_episodes for store in stores] == [2, 2]
    assert stores[0].seeds.tolist()[:1] == seeds
    assert capsys.readouterr().out == f"{out}\n"


def test_what_can_not_be_collected(tmp_path, capsys):
    for call, what in (
        (["collect", "nothing*", "--episodes", "1"], "no task matches"),
        (["collect", "Adroit*", "--episodes", "1"], "none of the 4 tasks has an expert"),
        (["collect", "[CQ]*", "--episodes", "1", "--from", "a.zarr"], "--from is of one task"),
    ):
        assert main([*call, "--out", str(tmp_path / "x")]) == 2
        assert what in capsys.readouterr().err
        assert not (tmp_path / "x").exists()
    collect_several("CartPole*", 1, tmp_path)
    with pytest.raises(UserError, match="no folder of stores"):
        collect_several("CartPole*", 1, tmp_path / "CartPoleSwingUp.zarr")


def test_an_expert_that_fails_is_named_after_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(ModelPredictiveController, "act", lambda self: np.zeros((len(self.env.qpos), 1)))
    with pytest.raises(DoprError, match=r"1 of 2 tasks .*CartPoleSwingUp-v0"):
        collect_several("[CQ]*", 1, tmp_path, tries=1)
    assert Store.open(tmp_path / "QuadrotorTrack.zarr").num_episodes == 1
