"""docs/gallery.md is what the registries and the committed studies say."""

import importlib.util
import re
from pathlib import Path

from dopr_robot.policies import NETWORKS, OBJECTIVES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")


def test_the_figures_are_the_studies():
    spec = importlib.util.spec_from_file_location("gallery", ROOT / ".ci" / "gallery.py")
    gallery = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gallery)
    assert gallery.filled(PAGE) == PAGE, "write it anew: python -P .ci/gallery.py"
    assert "| PickPlace, 160 steps | 30 % (0 to 68), lr 0.027 |" in PAGE


def sections(head: str) -> dict[str, str]:
    """Of a part of the page, the text below each name."""
    part = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (text,) = [each for each in part if each.startswith(head)]
    return dict(re.findall(r"^### (\w+)\n(.*?)(?=^### |\Z)", text, re.DOTALL | re.MULTILINE))


def test_every_objective_and_network_is_there_with_its_code():
    for head, registry, folder in (("Objectives", OBJECTIVES, "objectives"), ("Networks", NETWORKS, "networks")):
        found = sections(head)
        ours = {name for name, entry in registry.items() if entry.build.__module__.startswith("dopr_robot.")}
        assert set(found) == ours
        for name, text in found.items():
            (link,) = re.findall(rf"\(\.\./(dopr_robot/policies/{folder}/\w+\.py)\)", text)
            assert registry[name].build.__module__ == link.removesuffix(".py").replace("/", ".")
            assert "\n1. " in text
