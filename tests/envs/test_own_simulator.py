"""docs/simulators.md, followed to the letter but for the size of the network: its package is built, installed elsewhere and used."""

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "simulators.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = re.findall(
    r"^dopr (.*?)(?: +#.*)?$", re.search(r"<!-- commands -->\n```bash\n(.*?)```", PAGE, re.DOTALL)[1], re.M
)
SMALLER = " policy.network.dim=64 policy.network.blocks=1 training.batch_size=64"

FOLLOW = """
import shlex, sys
from dopr_robot.cli import main
for command in sys.stdin.read().splitlines():
    code = main(shlex.split(command))
    print("##", code, command, flush=True)
"""


def test_a_package_of_two_files_is_a_task(tmp_path):
    source, site, work = (tmp_path / name for name in ("source", "site", "work"))
    for folder in (source, work):
        folder.mkdir()
    for name, content in FILES.items():
        (source / name).write_text(content, encoding="utf-8")
    pip = [sys.executable, "-P", "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True, capture_output=True)
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    calls = [command + SMALLER if command.startswith("train ") else command for command in COMMANDS]
    done = subprocess.run(
        [sys.executable, "-P", "-c", FOLLOW], input="\n".join(calls), cwd=work, capture_output=True, text=True,
        check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    said = done.stdout
    assert said.count("## 0 ") == len(COMMANDS) == 6, said + done.stderr
    assert "Traceback" not in done.stderr
    assert "--option friction=" in said and "of the wheels, in N s/m (default 0.1)" in said
    assert "cart_sim/Stop-v0: good" in said
    assert "10 replayed: state compared, 10 of 10 succeed in replay and 10 recorded" in said
    assert "drifts" not in said
    rate = float(re.search(r"^ +100 +5\.0 +(\S+)%", said, re.M)[1])
    assert rate >= 80
