import json

import pytest

from dopr_robot import seeds
from dopr_robot.errors import DamagedError, UserError
from dopr_robot.evaluation.rollouts.records import EpisodeRecord, RecordWriter, read_records


def record(episode):
    return EpisodeRecord(episode, 7 + episode, "ab", "success", 5, None, 5, 0.1 + 0.2, metrics={"coverage": 1 / 3})


def test_lines_have_the_documented_keys(tmp_path):
    with RecordWriter(tmp_path / "e.jsonl") as writer:
        writer.append(record(0))
    (line,) = (tmp_path / "e.jsonl").read_text().splitlines()
    documented = [
        "episode",
        "seed",
        "initial_state_sha256",
        "outcome",
        "first_success_step",
        "first_failure_step",
        "length",
    ]
    assert list(json.loads(line))[:9] == [*documented, "return", "error"]
    assert json.loads(line)["return"] == 0.1 + 0.2


def test_a_record_is_readable_as_soon_as_it_is_appended(tmp_path):
    with RecordWriter(tmp_path / "e.jsonl") as writer:
        for episode in (2, 0, 1):
            writer.append(record(episode))
            assert record(episode) in read_records(tmp_path / "e.jsonl")
        writer.sort()
    assert [json.loads(line)["episode"] for line in (tmp_path / "e.jsonl").read_text().splitlines()] == [0, 1, 2]


@pytest.mark.parametrize("cut", [1, 20, 150])
def test_an_unfinished_last_line_is_passed_over_and_cut_off_by_the_next_writer(tmp_path, cut):
    path = tmp_path / "e.jsonl"
    with RecordWriter(path) as writer:
        writer.append(record(0))
        writer.append(record(1))
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_records(path) == [record(0)]
    with RecordWriter(path) as writer:
        writer.append(record(1))
    assert read_records(path) == [record(0), record(1)]


@pytest.mark.parametrize("line", ["[1]", '{"episode": 1}', "{", '{"outcome": "won"}'])
def test_damage_inside_is_named(tmp_path, line):
    path = tmp_path / "e.jsonl"
    path.write_text(f"{record(0).to_json()}\n{line}\n{record(2).to_json()}\n")
    with pytest.raises(DamagedError, match="line 2"):
        read_records(path)


def test_an_episode_recorded_twice_is_damage(tmp_path):
    path = tmp_path / "e.jsonl"
    path.write_text(f"{record(0).to_json()}\n{record(0).to_json()}\n")
    with pytest.raises(DamagedError, match="episode 0 is recorded twice"):
        read_records(path)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="is not there"):
        read_records(tmp_path / "e.jsonl")


def test_seed_ranges_are_disjoint_and_whole():
    bounds = [(r.start, r.stop) for r in seeds.RANGES.values()]
    assert bounds == [(0, 2**30), (2**30, 3 * 2**29), (3 * 2**29, 2**31)]


def test_blocks_are_disjoint_and_tell_their_use():
    first, second = seeds.block("final", 0, 1000), seeds.block("final", 1, 1000)
    assert not set(first) & set(second)
    for use in seeds.RANGES:
        last = len(seeds.RANGES[use]) // seeds.BLOCK - 1
        assert seeds.use_of(seeds.block(use, 0, 1)[0]) == seeds.use_of(seeds.block(use, last, seeds.BLOCK)[-1]) == use


@pytest.mark.parametrize(("seed", "episodes"), [(-1, 1), (8192, 1), (0, 65537)])
def test_blocks_that_do_not_exist_are_refused(seed, episodes):
    with pytest.raises(UserError, match=r"outside 0\.\.8191|do not fit"):
        seeds.block("final", seed, episodes)


def test_seeds_of_another_use_are_refused():
    seeds.require_use(seeds.block("final", 3, 9), "final")
    with pytest.raises(UserError, match="belongs to selection, not to final"):
        seeds.require_use(seeds.block("selection", 0, 9), "final")
