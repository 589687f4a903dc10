"""docs/tasks.md is what the registry says."""

from pathlib import Path

from dopr_robot.envs import list_tasks
from dopr_robot.envs.page import page

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_the_registrys():
    text = (DOCS / "tasks.md").read_text(encoding="utf-8")
    assert text == page(DOCS), "write it anew: dopr tasks --page docs/tasks.md"
    assert all(spec.id in text for spec in list_tasks())


def test_every_task_has_a_picture():
    missing = [spec.id for spec in list_tasks() if not (DOCS / "images" / "tasks" / f"{spec.name}.png").exists()]
    assert not missing
