"""dopr info on a store: the table, the page, the check with a replay."""

import json

import numpy as np
import pytest

from dopr_robot.cli import main
from dopr_robot.collection.replay import executed_actions, replaying
from dopr_robot.datasets import ActionAttributes, Attributes, Episode, Store, check
from dopr_robot.errors import UserError


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    out = tmp_path_factory.mktemp("collected") / "p.zarr"
    assert main(["collect", "PickPlace", "--episodes", "2", "--out", str(out)]) == 0
    return out


def test_a_collected_store_replays_with_the_noise_it_was_collected_under(collected, capsys):
    store = Store.open(collected)
    episode = Episode(store.episode(0), int(store.seeds[0]))
    assert not np.allclose(executed_actions(store.attributes, episode), episode.arrays["action"], atol=1e-4)
    with replaying(store.attributes) as replay:
        assert replay(episode).drift["state"] < 1e-5 and replay(episode).success
        episode.arrays["action"][5:, 0] += 0.3
        assert replay(episode).drift["state"] > 0.01
        assert replay(Episode(episode.arrays)) is None
    assert main(["info", str(collected), "--check"]) == 0
    said = capsys.readouterr().out
    assert said.endswith("(2 replayed: state compared, 2 of 2 succeed in replay and 2 recorded)\n")


def rewritten(collected, out, change, **attributes):
    """The store with its episodes and attributes changed."""
    from dopr_robot.datasets import Recording, read_store, write_store

    recording = read_store(Store.open(collected))
    about = Attributes.from_json({**recording.attributes.to_json(), **attributes})
    write_store(Recording(about, map(change, recording.episodes)), out)
    return str(out)


def test_a_store_that_drifts_is_told(collected, tmp_path, capsys):
    assert main(["info", rewritten(collected, tmp_path / "quiet.zarr", lambda each: each, carried={}), "--check"]) == 0
    assert "warning: state: a replay drifts by" in capsys.readouterr().out


def test_where_no_observation_can_be_compared_success_still_is(collected, tmp_path, capsys):
    """Another name for the observations and negated actions: what nothing was compared with does not pass for replayed."""

    def negated(episode):
        arrays = {"observation": episode.arrays["state"], "action": -episode.arrays["action"]}
        return Episode(arrays, episode.seed, episode.success)

    path = rewritten(collected, tmp_path / "n.zarr", negated, carried={}, observations=["observation"])
    assert main(["info", path, "--check"]) == 0
    said = capsys.readouterr().out
    assert "warning: success: a replay fails, recorded is that it succeeds (episode 1)" in said
    assert "warning: replay: no observation was compared: the task gives none of the store's keys (observation)" in said
    assert said.endswith("(2 replayed: no observation compared, 0 of 2 succeed in replay and 2 recorded)\n")


def test_actions_that_are_not_the_tasks_are_not_replayed(collected, tmp_path, capsys):
    def short(episode):
        return Episode(episode.arrays | {"action": episode.arrays["action"][:, :3]}, episode.seed)

    about = Store.open(collected).attributes.to_json()["action"]
    action = about | {name: list(about[name][:3]) for name in ("units", "names", "low", "high")}
    path = rewritten(collected, tmp_path / "s.zarr", short, carried={}, action=action)
    assert main(["info", path, "--check"]) == 0
    assert "(not replayed: the store's actions have shape [3], the task's [8] (episode 0))" in capsys.readouterr().out


def test_why_nothing_was_replayed_is_said(tmp_path, capsys):
    for name, about, seed, said in (
        ("a", Attributes(task="Nobody/Knows-v0"), 1, "not replayed: unknown task 'Nobody/Knows-v0'"),
        ("b", Attributes(task="PickPlace"), None, "not replayed: no episode has a seed"),
        ("c", Attributes(), 1, "not replayed: the task is unknown"),
    ):
        with Store.create(tmp_path / name, about) as store:
            store.append({"action": np.arange(6.0).reshape(3, 2)}, seed=seed)
        assert main(["info", str(tmp_path / name), "--check"]) == 0
        assert said in capsys.readouterr().out
    with pytest.raises(UserError, match="the task is unknown"), replaying(Attributes()):
        pass


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    about = Attributes(
        control_hz=10,
        observations=("image", "state"),
        action=ActionAttributes("joint delta", absolute=False, names=("left", "right"), low=(-1, -1), high=(1, 1)),
        provenance=("converted from <somewhere>",),
    )
    with Store.create(tmp_path / "s.zarr", about) as store:
        for length in (4, 9, 9, 20):
            arrays = {
                "image": rng.integers(0, 256, (length, 24, 32, 3), np.uint8),
                "state": rng.normal(size=(length, 3)),
                "action": rng.uniform(-2, 2, (length, 2)),
            }
            store.append(arrays, success=length > 5)
    return tmp_path / "s.zarr"


def test_the_table_says_what_the_numbers_mean(pictures, capsys, monkeypatch):
    monkeypatch.setattr("dopr_robot.evaluation.reports.about_store.LARGE_BYTES", 20_000)
    assert main(["info", str(pictures)]) == 0
    said = capsys.readouterr().out
    assert "lengths  4 to 20, mean 10.5  |▄" in said
    assert "success  75.0% of 4 episodes that say" in said
    assert "action   joint delta, relative, bounded" in said
    assert "done     converted from <somewhere>" in said
    image = next(line for line in said.splitlines() if line.startswith("image"))
    assert "~0" in image and "~255" in image and "observation" in image
    assert "--check reads everything" in said, "the images are more than four times LARGE_BYTES"
    monkeypatch.undo()
    assert main(["info", str(pictures)]) == 0
    assert "of the steps are beyond the bounds that the attributes declare, by up to 0.981" in capsys.readouterr().out


def test_the_page_is_one_file_with_plots_and_pictures(pictures, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert main(["info", str(pictures), "--html", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    page = out.read_text()
    assert page.count("<svg") == 3 and page.count("data:image/jpeg;base64,") == 1, "lengths, action, state; the image"
    assert "converted from &lt;somewhere&gt;" in page and "beyond the bounds" in page and "75.0 %" in page
    assert 'src="http' not in page and "url(http" not in page
    assert main(["info", str(pictures), "--html", str(tmp_path / "new" / "page.html")]) == 0
    assert (tmp_path / "new" / "page.html").read_text() == page


def test_json_of_a_damaged_store_tells_what_is_whole(pictures, capsys):
    import zarr

    zarr.open_group(pictures)["meta/episode_ends"][2] = 5
    assert main(["info", str(pictures), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["episodes"] == 2 and said["warnings"][0] == "episode_ends: does not increase (episode 2)"
    assert [str(finding) for finding in check(pictures).damage][:1] == said["warnings"][:1]


def test_demonstrations_longer_than_the_task_are_told(tmp_path, capsys):
    """What imitates them is as slow as they were, and its evaluation would end before it arrives."""
    for task, said in (
        (
            "HalfCheetah-v5",
            "limit    2 of 3 episodes go beyond 1000 steps, after which HalfCheetah-v5 ends: dopr eval --horizons 1000,1300\n",
        ),
        ("PickPlace", "limit    3 of 3 episodes go beyond 160 steps, after which dopr_robot/PickPlace-v0 ends\n"),
        ("somewhere/Else-v0", None),
    ):
        path = tmp_path / f"{task.replace('/', '_')}.zarr"
        with Store.create(path, Attributes(task="dopr_robot/PickPlace-v0" if task == "PickPlace" else task)) as store:
            for steps in (900, 1200, 1300):
                store.append({"state": np.zeros((steps, 17), np.float32), "action": np.zeros((steps, 6), np.float32)})
        assert main(["info", str(path)]) == 0
        printed = capsys.readouterr().out
        assert said in printed if said else "limit " not in printed
