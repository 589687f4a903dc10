"""Docstrings as the site shows them: Sphinx's roles become links, examples code, and arguments that share a line one each."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|mod|attr|data|exc):`(~?)([\w.]+)`")
_SHARED = re.compile(r"^(\s+)(\*{0,2}\w+(?:, \*{0,2}\w+)+): (.*)$")
_SECTION = re.compile(r"^\s*(Args|Attributes):$")


def links(text: str, around: griffe.Object) -> str:
    """``:func:`~dopr_robot.train``` as a reference that mkdocs-autorefs follows; what is not documented stays code."""

    def link(found: re.Match[str]) -> str:
        short, name = found.groups()
        said = name.rsplit(".", 1)[-1] if short else name
        try:
            path = around.resolve(name)
        except griffe.NameResolutionError:
            path = name
        return f"<autoref identifier={path!r} optional>`{said}`</autoref>" if "." in path else f"`{said}`"

    return _ROLE.sub(link, text).replace("``", "`")


def apart(text: str) -> str:
    """``a, b: what`` below ``Args:`` as two arguments of that explanation."""
    lines, within, made = text.splitlines(), False, []
    for number, line in enumerate(lines):
        if _SECTION.match(line):
            within = True
        elif line and not line[0].isspace():
            within = False
        shared = _SHARED.match(line) if within else None
        if shared is None:
            made.append(line)
            continue
        space, names, what = shared.groups()
        deeper = [what]
        for following in lines[number + 1 :]:
            if not following.strip() or len(following) - len(following.lstrip()) <= len(space):
                break
            deeper.append(following)
        *first, last = names.split(", ")
        for name in first:
            made += [f"{space}{name}: {deeper[0]}", *deeper[1:]]
        made.append(f"{space}{last}: {what}")
    return "\n".join(made)


def fenced(text: str) -> str:
    """Examples and what follows a double colon as code."""
    made: list[str] = []
    within = False
    for line in text.splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        if not within and line.lstrip().startswith(">>> "):
            made, within = [*made, *([""] if made and made[-1].strip() else []), f"{indent}```pycon"], True
        elif within and not line.strip():
            made, within = [*made, "```"], False
        made.append(line.split("# doctest:")[0].rstrip() if within else re.sub(r"::$", ":", line))
    return "\n".join([*made, *(["```"] if within else [])])


class Docstrings(griffe.Extension):
    """Before they are parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = fenced(links(apart(obj.docstring.value), obj))
