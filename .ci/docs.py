"""The site: pages staged in build/docs, built by Zensical into build/site, and every link of it followed.

What is on a code host under docs/ and in README.md is on the site the same page; only links that lead elsewhere there are turned to where
it lies here. Fails where a link leads nowhere, the builder warns, a public name is on no page of the reference, or one has no docstring.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import griffe
import nbconvert

ROOT = Path(__file__).parents[1]
STAGE, SITE = ROOT / "build" / "docs", ROOT / "build" / "site"
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changes.md", "SECURITY.md": "security.md"}
ROOMS = ("", "optim", "datasets", "envs", "policies", "training", "collection", "evaluation", "study")
LINK = re.compile(r'(\]\(|src="|href=")([^)\s"]+)')


def stage() -> None:
    """The pages, with their pictures and what they link to."""
    shutil.rmtree(STAGE, ignore_errors=True)
    shutil.copytree(ROOT / "docs", STAGE, ignore=shutil.ignore_patterns("*.md", "*.ipynb"))
    for page in [*sorted((ROOT / "docs").rglob("*.md")), *(ROOT / name for name in PAGES)]:
        place = staged(page)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(relinked(page.read_text(encoding="utf-8"), page), encoding="utf-8")
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        text, resources = nbconvert.MarkdownExporter().from_filename(
            str(notebook), resources={"output_files_dir": notebook.stem}
        )
        place = staged(notebook).with_suffix(".md")
        place.parent.mkdir(exist_ok=True)
        place.write_text(relinked(text, notebook, set(resources["outputs"])), encoding="utf-8")
        for name, content in resources["outputs"].items():
            (place.parent / name).parent.mkdir(exist_ok=True)
            (place.parent / name).write_bytes(content)


def staged(file: Path) -> Path:
    """Where a file of the repository lies in the staged pages."""
    path = file.relative_to(ROOT)
    if path.as_posix() in PAGES:
        return STAGE / PAGES[path.as_posix()]
    if path.is_relative_to("docs"):
        return STAGE / path.relative_to("docs")
    return STAGE / "files" / (f"{path}.txt" if path.suffix in (".py", ".toml", "") else path)


def relinked(text: str, page: Path, made: set[str] = frozenset()) -> str:  # type: ignore[assignment]
    """A page's text with its links turned to the staged files; ``made``: files that are written beside it."""

    def turned(found: re.Match[str]) -> str:
        before, link = found.groups()
        address = urlsplit(link)
        if address.scheme or not address.path or address.path in made:
            return found.group()
        target = (page.parent / unquote(address.path)).resolve()
        if (target / "report.html").exists():  # a study
            target = target / "report.html"
        if not target.is_file():
            raise SystemExit(f"{page.relative_to(ROOT)}: {link} leads nowhere")
        place = staged(target).with_suffix(".md") if target.suffix == ".ipynb" else staged(target)
        if not place.is_relative_to(STAGE / "files"):
            pass
        elif not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(target, place)
        link = Path(*[".."] * len(staged(page).parent.relative_to(STAGE).parts), place.relative_to(STAGE)).as_posix()
        return before + link + (f"#{address.fragment}" if address.fragment else "")

    fenced = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if number % 2 else LINK.sub(turned, part) for number, part in enumerate(fenced))


def undocumented() -> Iterator[str]:
    """Public names that no page of the reference shows, and shown ones without a docstring."""
    shown = [
        name
        for page in sorted((ROOT / "docs" / "reference").glob("*.md"))
        for name in re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.M)
    ]
    package = griffe.load("dopr_robot", search_paths=[ROOT], resolve_aliases=True)
    places = set()
    for name in shown:
        found = package[name.removeprefix("dopr_robot.")]
        found = found.final_target if found.is_alias else found
        places.add(found.path)
        if found.docstring is None:
            yield f"{name} has no docstring"
        for member in found.all_members.values() if found.is_class else ():
            if not member.name.startswith("_") and member.is_function and member.docstring is None:
                yield f"{name}.{member.name} has no docstring"
    for room in ROOMS:
        inside = package[room] if room else package
        for name in inside.exports or ():
            found = inside.members[str(name)]
            path = found.final_target.path if found.is_alias else found.path
            if path not in places and not str(name).startswith("__"):
                yield f"{inside.path}.{name} is on no page of docs/reference"


class Links(HTMLParser):
    """What a page leads to, and the places in it that others may lead to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if value and name in ("href", "src") and tag in ("a", "img", "script", "link", "source"):
                self.links.append(value)
            elif value and name in ("id", "name"):
                self.places.add(value)


def broken() -> Iterator[str]:
    """Links of the built site that lead nowhere; 404.html, whose links begin at the host's root, is left out."""
    pages = {page: Links(page) for page in SITE.rglob("*.html") if page.name != "404.html"}
    for page, content in pages.items():
        for link in dict.fromkeys(content.links):
            address = urlsplit(link)
            if address.scheme or address.netloc:
                continue
            target = (page.parent / unquote(address.path)).resolve() if address.path else page
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                yield f"{page.relative_to(SITE)}: {link} leads nowhere"
            elif address.fragment and target in pages and unquote(address.fragment) not in pages[target].places:
                yield f"{page.relative_to(SITE)}: {link} has no such place"


def main() -> int:
    """Exit code 1 where something is wrong, with a line each."""
    stage()
    faults = list(undocumented())
    build = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    done = subprocess.run(build, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(done.stdout, end="")
    faults += [line for line in done.stdout.splitlines() if line.startswith("griffe: ")]
    faults += broken() if not done.returncode else ["the builder failed, see above"]
    print("\n".join(faults) or f"built: {SITE / 'index.html'}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
