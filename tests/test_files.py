"""Files: written whole or not at all, read as checked values, named so that they stay where they belong."""

import errno
import json
import os
import resource
import signal
from pathlib import Path

import pytest

from dopr_robot.errors import DamagedError, UserError
from dopr_robot.files import check_name, point_to, remove_traces, replacing, write_json
from dopr_robot.reading import Maybe, read_json, read_json_lines, require
from dopr_robot.terminal import escaped


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def killed_while(work) -> None:
    """Run ``work`` in a process that is killed inside of it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)


def test_what_a_kill_leaves_is_removed_by_the_next_call(tmp_path):
    def work():
        with replacing(tmp_path / "plot.png") as beside, replacing(tmp_path / "run") as folder:
            beside.write_text("half")
            folder.mkdir()
            (folder / "x").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    killed_while(work)
    assert len(list(tmp_path.iterdir())) == 2
    with replacing(tmp_path / "other.png") as beside:  # that of a process which is there stays
        write_json(tmp_path / "a.json", 1)
        beside.write_text("whole")
        remove_traces(tmp_path)
        assert beside.exists()
    assert names(tmp_path) == ["a.json", "other.png"]


def test_a_folder_moved_aside_by_a_killed_process_comes_back(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "x").write_text("old")

    def work():
        Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        with replacing(tmp_path / "run") as beside:
            beside.mkdir()

    killed_while(work)
    assert not (tmp_path / "run").exists()
    remove_traces(tmp_path)
    assert (tmp_path / "run" / "x").read_text() == "old" and names(tmp_path) == ["run"]


def test_a_new_file_is_not_written_over_and_a_failure_leaves_no_folders(tmp_path):
    with pytest.raises(UserError, match="exists already"), replacing(tmp_path / "a" / "b" / "c", new=True) as beside:
        beside.write_text("mine")
        (tmp_path / "a" / "b" / "c").write_text("theirs")
    assert names(tmp_path / "a" / "b") == ["c"]
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "d" / "e" / "f"):
        _ = 1 / 0
    assert names(tmp_path) == ["a"]
    point_to(tmp_path / "last", "a")
    assert names(tmp_path) == ["a", "last"]


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path):
    write_json(tmp_path / "a.json", "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"a\.json") as caught:
            write_json(tmp_path / "a.json", "x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert read_json(tmp_path / "a.json", str) == "old" and names(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    "name", ["../../x", "/tmp/x", "a/b", "", ".", "..", "a\nb", "a\x1b[31m", " a", "a\\b", "x" * 151, "\udc80"]
)
def test_names_that_lead_elsewhere(name):
    with pytest.raises(UserError, match=r"^name=.* can not name a folder") as caught:
        check_name(name, "name")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["run-2", "2024_11_06", "lr=1e-3", "学习", "a b", "..x"])
def test_names_that_do_not(name):
    assert check_name(name, "name") == name


FORM = {"n": range(10), "rate": float, "on": bool, "may": Maybe({"x": int}), "ends": [(int, int)], "by": {str: str}}
GOOD = {"n": 3, "rate": 1, "on": True, "ends": [[1, 2]], "by": {"a": "b"}, "more": None}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n": 10}, "n is 10: a whole number from 0 to 9"),
        ({"n": True}, "n is True"),
        ({"rate": float("nan")}, "rate is nan: a finite number"),
        ({"rate": "1"}, "rate is '1'"),
        ({"rate": 10**400}, "rate is 1"),
        ({"on": 1}, "on is 1: true or false"),
        ({"may": {"x": 0.5}}, "may.x is 0.5: a whole number"),
        ({"ends": [[1, 2], [3]]}, r"ends\[1\] is \[3\]: a list of 2"),
        ({"by": {"a": None}}, "by.a is not there: a text"),
        ({"by": []}, r"by is \[\]: a mapping"),
    ],
)
def test_a_value_of_another_form_is_named_with_its_place(change, said):
    assert require(GOOD, FORM, "f.json") is GOOD
    with pytest.raises(DamagedError, match=f"^f.json: {said}"):
        require(GOOD | change, FORM, "f.json")
    with pytest.raises(DamagedError, match=r"^f.json: \[\]: a mapping"):
        require([], FORM, "f.json")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"{", "is not JSON"), (b"\xff", "is not JSON"), (b"[" * 10**5, "nested too deeply"), (b"9" * 9999, "not JSON"), (b"[]", "a mapping")],
)  # fmt: skip
def test_json_that_is_none(tmp_path, content, said):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DamagedError, match=said) as caught:
        read_json(tmp_path / "a.json")
    assert str(tmp_path / "a.json") in str(caught.value)
    (tmp_path / "a.jsonl").write_bytes(b"{}\n" + content + b"\n")
    with pytest.raises(DamagedError, match=f"line 2.*{said}"):
        read_json_lines(tmp_path / "a.jsonl")


def test_lines_end_at_line_feeds_alone_and_a_cut_one_is_passed_over(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": "x\u2028y"}\n{"a": ', encoding="utf-8")
    assert read_json_lines(tmp_path / "a.jsonl") == [{"a": "x\u2028y"}]


def test_what_a_terminal_acts_on_is_shown():
    assert escaped("a\x1b[31m\x07\x9b\u202e\udc80é▁\tb\n") == "a\\x1b[31m\\x07\\x9b\\u202e\\udc80é▁\tb\n"
    assert json.loads(f'"{escaped("x")}"') == "x"
