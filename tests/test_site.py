"""The site: it builds without a warning, its links lead somewhere, and nothing of the code is missing in it."""

import argparse
import dataclasses
import importlib.util
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from jsonargparse import ArgumentParser, auto_cli, capture_parser

from stillmotion import config
from stillmotion.__main__ import COMMANDS
from stillmotion.methods import METHODS, method_options
from stillmotion.view import Augment, FlowConfig, View

from .test_readme import commands, understood

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(p for p in DOCS.rglob("*.md") if p.name != "results.md")

needs_mkdocs = pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="pip install -e '.[docs]'")


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("site_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    pages: dict[str, str] = hooks.pages()
    return pages


def sections(text: str, level: str) -> dict[str, str]:
    parts = re.split(rf"^{level} (.+)$", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def described(section: str, name: str) -> bool:
    """Whether a table has a row of this name with words in its last cell."""
    return bool(re.search(rf"^\| `{re.escape(name)}` \|.*\| [^|]*\w[^|]* \|$", section.replace("\\|", ""), re.M))


def test_every_command_and_option_of_the_parser_is_described(generated: dict[str, str]) -> None:
    found = sections(generated["reference/commands.md"], "##")
    parser = capture_parser(lambda: auto_cli(COMMANDS, args=[]))
    seen = list(leaves(parser, ""))
    assert {"demo", "train", "data check", "data fetch-list", "list models"} <= {name for name, _ in seen}
    assert [name for name, _ in seen] == list(found)
    for name, command in seen:
        for action in command._actions:
            option = action.dest.split(".")[0]
            if option in ("help", "config", "print_config", "print_shtab"):
                continue
            if not action.option_strings:
                names = [option.upper(), f"{option.upper()} ..."]
            else:
                names = [f"--{option}", f"--{option}."]
            assert any(described(found[name], each) for each in names), f"{name}: {option}"


def leaves(parser: ArgumentParser, prefix: str) -> Iterator[tuple[str, ArgumentParser]]:
    subcommands = next((a for a in parser._actions if isinstance(a, argparse._SubParsersAction)), None)
    if subcommands is None:
        yield prefix.strip(), parser
        return
    for name, inner in subcommands._name_parser_map.items():
        yield from leaves(inner, f"{prefix} {name}")


def test_every_setting_is_described(generated: dict[str, str]) -> None:
    found = sections(generated["reference/settings.md"], "##")
    classes = [c for _, c in inspect.getmembers(config, inspect.isclass) if c.__module__ == config.__name__]
    assert len(classes) >= 8
    for cls in [*classes, View, Augment, FlowConfig]:
        for field in dataclasses.fields(cls):
            assert described(found[cls.__name__], field.name), f"{cls.__name__}.{field.name}"


def test_every_option_of_a_method_is_described(generated: dict[str, str]) -> None:
    found = sections(generated["reference/settings.md"], "###")
    assert list(found) == list(METHODS)
    for name in METHODS:
        for option in method_options(name):
            assert described(found[name], option), f"{name}: {option}"


def test_every_method_has_its_equation() -> None:
    found = sections((DOCS / "methods.md").read_text(), "##")
    for name in METHODS:
        (section,) = (text for title, text in found.items() if name in title.split(", "))
        assert re.search(r"```text\n.*[=].*```", section, re.S), name


@pytest.mark.parametrize(
    "command",
    [c for p in PAGES for c in commands("\n".join(re.findall(r"```(?:sh|bash)\n(.*?)```", p.read_text(), re.S)))],
    ids=lambda c: " ".join(c)[:80],
)
def test_shell_commands_of_the_pages_are_understood(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    if "--config" in command and not Path(command[command.index("--config") + 1]).exists():
        # A tutorial's own file, which test_tutorials runs, or one that stands for the reader's.
        at = command.index("--config")
        command = [*command[:at], *command[at + 2 :]]
        if command[0] == "compare":
            return
        command += ["--student", "timm/resnet18"] if "--student" not in command else []
    understood(command)


class Links(HTMLParser):
    """Anchors of a page, what it links to, and what the browser fetches for it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids |= {given[k] or "" for k in ("id", "name") if k in given}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"] or "")
        elif tag != "a" and given.get("rel") != "canonical":
            self.fetched += [given[k] or "" for k in ("src", "href", "srcset", "data", "poster") if given.get(k)]


@needs_mkdocs
def test_the_site_builds_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    site = tmp_path / "site"
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {path: Links(path) for path in site.rglob("*.html")}
    assert len(pages) > 25
    for path, page in pages.items():
        for address in (*page.links, *page.fetched):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                assert address not in page.fetched or parts.scheme == "data", f"{path.name} fetches {address}"
                continue
            base = site if path.name == "404.html" else path.parent
            target = base / unquote(parts.path).lstrip("/") if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), f"{path.relative_to(site)}: {address}"
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in pages[target.resolve()].ids, f"{path.relative_to(site)}: {address}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )[\"']?(?:https?:)?//", style.read_text()), style
