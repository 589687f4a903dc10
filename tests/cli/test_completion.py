"""Completion, asked for by the shells themselves."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time

import pytest

from dopr_robot.cli import COMMANDS, main

SET_UP = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
}
BEFORE = {
    "bash": 'bind "set bell-style none"; bind "set enable-bracketed-paste off"; eval "$(dopr completion bash)"',
    "zsh": 'autoload -U compinit; compinit -u -D; eval "$(dopr completion zsh)"',
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """One in which ``dopr`` is on the path, with a cache of its own."""
    folder = tmp_path_factory.mktemp("shell")
    command = folder / "dopr"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m dopr_robot.cli "$@"\n')
    command.chmod(0o755)
    return {
        **os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(folder / "cache"), "TERM": "dumb", "PS1": "> ",
        "HOME": str(folder), "COLUMNS": "200",
    }  # fmt: skip


def typed(shell: str, environment: dict[str, str], lines: dict[str, str]) -> None:
    """Type the beginning of each line and TAB into an interactive shell, until it shows the whole line."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(SET_UP[shell][0], SET_UP[shell], environment)
    seen = ""

    def until(text: str) -> None:
        nonlocal seen
        end = time.monotonic() + 900  # for what hangs
        while text not in seen:
            ready, _, _ = select.select([terminal], [], [], 1.0)
            seen += os.read(terminal, 4096).decode(errors="replace") if ready else ""
            seen = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen)
            assert time.monotonic() < end, seen
        seen = seen[seen.index(text) + len(text) :]

    try:
        os.write(terminal, f"{BEFORE[shell]}; echo rea''dy\n".encode())
        until("ready")
        for beginning, whole in lines.items():
            os.write(terminal, f"{beginning}\t".encode())
            until(whole)
            os.write(terminal, b"\x15")  # the line is taken back
    finally:
        os.close(terminal)
        os.kill(pid, 9)
        os.waitpid(pid, 0)


LINES = {
    "dopr tra": "dopr train",
    "dopr eval --pert": "dopr eval --perturb",
    "dopr collect Quad": "dopr collect QuadrotorTrack",
    "dopr train quad": "dopr train quadrotor_track",
    "dopr train policy=flow_un": "dopr train policy=flow_unet",
    "dopr train pick_place optimizer=dopr_adamu": "dopr train pick_place optimizer=dopr_adamuon",
}


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_tab_ends_the_word(shell, environment):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    typed(shell, environment, LINES)


def test_fish_is_answered(environment):
    if shutil.which("fish") is None:
        pytest.skip("no fish here")
    asked = "; ".join(f"complete -C {line!r}" for line in LINES)
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"dopr completion fish | source; {asked}"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    words = [line.split("\t")[0] for line in done.stdout.splitlines()]
    assert [*words] == [whole.split()[-1] for whole in LINES.values()], done.stderr


def ask(line: str, environment: dict[str, str]) -> list[str]:
    """What dopr answers a shell."""
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_SHELL": "fish",
    }
    code = "import os; os.dup2(1, 8); os.execvp('dopr', ['dopr'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, **asked, "_ARGCOMPLETE_DFS": "\t"},
        stdout=subprocess.PIPE,
        check=False,
    )
    return [word.split("\t")[0].strip() for word in done.stdout.decode().splitlines()]


def test_every_command_and_both_voices_are_offered(environment):
    assert set(COMMANDS) <= set(ask("dopr ", environment))
    assert ask("dopr --q", environment) == ["--quiet"]
    assert ask("dopr config optimizer.l", environment) == ["optimizer.lr"]
    assert ask("dopr convert a b --to lero", environment) == ["lerobot"]
    assert "training.ema_power=" in ask("dopr train training.e", environment)


def test_a_new_name_is_offered_although_others_are_kept(environment, tmp_path, monkeypatch):
    """Names that take torch to find are kept in a cache; those of a package that was installed since belong to them."""
    assert ask("dopr policies linear_g", environment) == []
    (tmp_path / "mine.py").write_text(
        "from dopr_robot.policies import POLICIES\nregister = lambda: POLICIES.register('linear_gaussian', POLICIES['flow_mlp'])\n"
    )
    info = tmp_path / "mine-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[dopr_robot.policies]\nmine = mine:register\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [environment.get("PYTHONPATH")])])
    assert ask("dopr policies linear_g", {**environment, "PYTHONPATH": path}) == ["linear_gaussian"]


def test_another_shell_is_a_mistake(capsys):
    assert main(["completion", "csh"]) == 2
    assert "'bash', 'zsh', 'fish'" in capsys.readouterr().err
