"""The pages hold together: links lead somewhere, the site's menu has every page, and every block of Python is run by a test."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
import yaml

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"""(?:\]\(|src="|href=")([^)\s"]+)""")
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
RUN = {
    "README.md": 2,  # here and in tests/cli/test_python_page.py
    "data.md": 2,  # here
    "multi-node.md": 1,  # tests/optim/test_optim_docs.py
    "optimizer.md": 9,  # here, and tests/optim/test_optim_docs.py
    "policies.md": 3,  # tests/policies/test_checkpoints.py, test_outsiders.py, tests/cli/test_python_page.py
    "python.md": 5,  # tests/cli/test_python_page.py
    "simulators.md": 1,  # tests/envs/test_own_simulator.py
    "tutorial.md": 1,  # tests/cli/test_tutorial.py
}


def places(page: Path) -> set[str]:
    """Where a link may lead in a page, as a code host and the site name headings."""
    heads = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    wrong = []
    for link in LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
        address = urlsplit(link)
        if address.scheme:
            continue
        target = page.parent / unquote(address.path) if address.path else page
        if not target.exists() or (
            address.fragment and target.suffix == ".md" and address.fragment not in places(target)
        ):
            wrong.append(link)
    assert not wrong


def listed(nav) -> set[str]:
    if isinstance(nav, str):
        return {nav}
    return set().union(*(listed(each) for each in (nav.values() if isinstance(nav, dict) else nav)))


def test_the_menu_has_every_page():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    docs = ROOT / "docs"
    pages = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    pages |= {path.relative_to(docs).with_suffix(".md").as_posix() for path in docs.rglob("*.ipynb")}
    assert listed(yaml.safe_load(text)["nav"]) == pages | {"index.md", "changes.md"}  # README and CHANGELOG


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_every_page_with_python_is_run_by_a_test():
    assert {page.name: count for page in PAGES if (count := len(blocks(page)))} == RUN


def test_the_data_pages_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks(ROOT / "docs" / "data.md"):
        exec(compile(block, "docs/data.md", "exec"), names)
    assert capsys.readouterr().out == "(50, 3)\n"
    assert names["batch"]["action"].shape == (32, 16, 3)


def test_the_optimizers_first_words_run(capsys):
    (alone,) = [block for block in blocks(ROOT / "README.md") if "import DoPr" in block]
    exec(compile(alone, "README.md", "exec"), {})
    assert "100.0% of the entries of weight matrices are preconditioned" in capsys.readouterr().out
    exec(
        compile(blocks(ROOT / "docs" / "optimizer.md")[0], "docs/optimizer.md", "exec"),
        {"torch": torch, "model": torch.nn.Linear(2, 2)},
    )
