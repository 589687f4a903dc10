"""Tables as text: aligned, as long as they have to be where programs read them, folded where a terminal is narrow."""

import os
import sys

import pytest

from dopr_robot.tables import Table

LONG = "a text that is longer than the terminal is wide, " * 2
ROWS = [["PickPlace", "95 %", LONG], ["x", "100 %", ""]]


@pytest.fixture
def terminal(monkeypatch):
    def of(columns: int) -> None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        monkeypatch.setattr("shutil.get_terminal_size", lambda *_: os.terminal_size((columns, 24)))

    return of


def test_names_to_the_left_and_numbers_to_the_right():
    assert str(Table(["task", "success", "what"], ROWS)).splitlines() == [
        "task       success  what",
        f"PickPlace     95 %  {LONG.rstrip()}",
        "x            100 %",
    ]
    assert Table(["task", "success", "what"], ROWS).text(head=False).splitlines()[1] == "x          100 %"
    assert Table(["task", "success"], []).text() == "task  success"
    assert Table(["task", "success"], []).text(head=False) == ""


def test_a_narrow_terminal_folds_names_and_keeps_numbers_whole(terminal):
    terminal(60)
    lines = str(Table(["task", "success", "what"], ROWS)).splitlines()
    assert len(lines) > 4 and max(map(len, lines)) <= 60
    assert "    95 %" in lines[1] and lines[-1].split() == ["x", "100", "%"]


def test_a_wide_terminal_and_none_show_the_same(terminal):
    without = str(Table(["task", "success", "what"], ROWS))
    terminal(200)
    assert str(Table(["task", "success", "what"], ROWS)) == without


def test_what_a_terminal_shows_two_columns_wide_counts_as_two():
    first, second = str(Table(["", ""], [["机器人", "[b]x[/b]"], ["robot", "y"]])).splitlines()[1:]
    assert first == "机器人  [b]x[/b]" and second == "robot   y"


def test_a_cell_of_several_lines_stays_in_its_column():
    assert str(Table(["a", "b"], [["one\ntwo", "x\x1b[31m"]])).splitlines() == ["a    b", r"one  x\x1b[31m", "two"]
