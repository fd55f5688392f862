"""What the site has beyond the files of this folder: pages that are made from the code, and the recipes.

mkdocs calls the functions `on_...` while it builds (`mkdocs build --strict`). Nothing is written into the repository.
"""

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from docstring_parser import DocstringStyle
from docstring_parser import parse as parse_docstring
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from stillmotion import config as settings
from stillmotion.__main__ import COMMANDS, LISTS
from stillmotion.methods import METHODS, method_options
from stillmotion.models.fusion import FusedStreams
from stillmotion.models.im2flow import Im2Flow
from stillmotion.models.student import HallucinatingStudent
from stillmotion.models.two_stream import TwoStream
from stillmotion.view import Augment, FlowConfig, View

ROOT = Path(__file__).parents[1]
CLASSES = [c for c in vars(settings).values() if dataclasses.is_dataclass(c) and c.__module__ == settings.__name__]
CLASSES += [Augment, View, FlowConfig]
WITHIN_DICTS = {View: ["student.view", "teacher.view", "view"], FlowConfig: ["student.view.flow", "view.flow"]}
"""Where dictionaries hold the fields of a class, so that no annotation says it."""
STUDENTS = {"hallucinate": HallucinatingStudent, "fusion": FusedStreams, "im2flow": Im2Flow, "stddcn": TwoStream}
"""What a method makes of its student; options that go there are described there."""
SOURCE_FOLDERS = ("configs", "benchmarks", "examples")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links to recipes and programs, which lie outside of this folder, to the pages that show them."""
    here = PurePosixPath("docs", page.file.src_uri).parent

    def lead(match: re.Match[str]) -> str:
        parts: list[str] = []
        for part in (here / match[1]).parts:
            parts = parts[:-1] if part == ".." else [*parts, part]
        if parts[0] not in SOURCE_FOLDERS:
            return match[0]
        up = "../" * (len(PurePosixPath(page.file.src_uri).parts) - 1)
        anchor = f"#{slug(PurePosixPath(*parts).name)}" if "." in parts[-1] else ""
        folder = parts[1] if parts[0] == "configs" and len(parts) > 1 else parts[0]
        return f"]({up}recipes/{folder}.md{anchor})"

    markdown = re.sub(r"\]\(((?:\.\./)+[\w./-]+)\)", lead, markdown)
    # GitHub wants `a\|b` in a table's code, Python-Markdown shows the backslash.
    return re.sub(r"^\|.*\|$", lambda row: re.sub(r"`[^`]*`", _plain_bars, row[0]), markdown, flags=re.MULTILINE)


def _plain_bars(code: re.Match[str]) -> str:
    return code[0].replace("\\|", "|")


def pages() -> dict[str, str]:
    """All generated pages by path: commands, settings, and one for each folder of recipes and programs."""
    made = {"reference/commands.md": commands_page(), "reference/settings.md": settings_page()}
    folders = sorted(p for p in (ROOT / "configs").iterdir() if p.is_dir())
    made["recipes/configs.md"] = "# Recipes\n\n" + "".join(f"- [{p.name}]({p.name}.md)\n" for p in folders)
    for folder in (*folders, ROOT / "examples", ROOT / "benchmarks"):
        made[f"recipes/{folder.name}.md"] = sources_page(folder)
    return made


def commands_page() -> str:
    """Every command with its options, from signatures and docstrings of `stillmotion.api`."""
    parts = [
        "# Commands\n",
        "Made from the code: each command is one function of `stillmotion.api`, and its options are that function's "
        "arguments. `--config FILE.yaml` reads them from a file, `--print_config` writes such a file, `--help` shows "
        "them in the terminal. Exit codes: 0 done; 1 something failed and was listed; 2 a mistake in what was asked, "
        "in one line; 130 stopped by Ctrl-C.\n",
    ]
    for name, function in commands():
        doc = parse_docstring(inspect.getdoc(function) or "", style=DocstringStyle.GOOGLE)
        parameters = list(inspect.signature(function).parameters.values())
        about = {p.arg_name: p.description for p in doc.params}
        parts.append(f"## {name}\n\n{prose(doc.short_description)}\n")
        parts.append(f"```sh\n{usage(name, parameters)}\n```\n")
        if doc.long_description:
            parts.append(prose(doc.long_description) + "\n")
        rows = [
            (option(name, p), type_text(p.annotation), default_text(p.default), about.get(p.name)) for p in parameters
        ]
        parts.append(markdown_table(("option", "type", "default", "what"), rows) if rows else "")
    return "\n".join(parts)


def commands() -> Iterator[tuple[str, Any]]:
    """Names as they are typed, and their functions."""
    for name, value in COMMANDS.items():
        if callable(value):
            yield name, value
        else:
            yield from ((f"{name} {inner}", f) for inner, f in value.items() if callable(f))


def positional(parameter: inspect.Parameter) -> bool:
    """Whether it is typed without its name."""
    return parameter.kind is not parameter.KEYWORD_ONLY and parameter.default is parameter.empty


def option(command: str, parameter: inspect.Parameter) -> str:
    """How it is typed."""
    if positional(parameter):
        return f"`{parameter.name.upper()}{' ...' if command in LISTS and get_origin(parameter.annotation) else ''}`"
    return f"`--{parameter.name}{'.' if class_of(parameter.annotation) else ''}`"


def usage(name: str, parameters: list[inspect.Parameter]) -> str:
    """The shortest call."""
    words = [option(name, p).strip("`") for p in parameters if positional(p)]
    needed = [p for p in parameters if not positional(p) and p.default is p.empty]
    words += [f"--{p.name} {'NAME' if class_of(p.annotation) else p.name.upper()}" for p in needed]
    return " ".join(["stillmotion", name, *words])


def settings_page() -> str:
    """Every key of a configuration, from the dataclasses, and the options of every method."""
    places: dict[type, list[str]] = {c: [*WITHIN_DICTS.get(c, [])] for c in CLASSES}
    for _, function in commands():
        for p in inspect.signature(function).parameters.values():
            note_places(p.name, p.annotation, places)
    parts = [
        "# Settings\n",
        "Made from the code. These are the keys of configuration files, of `config.json` in a run folder and, joined "
        "by dots, of the command line: `--optim.lr 0.01`. Unknown keys are refused.\n",
    ]
    for cls in CLASSES:
        doc = parse_docstring(inspect.getdoc(cls) or "", style=DocstringStyle.GOOGLE)
        about = named(doc.params)
        rows = [
            (f"`{f.name}`", type_text(f.type), default_text(default_of(f)), about.get(f.name))
            for f in dataclasses.fields(cls)
        ]
        where = ", ".join(f"`{place}`" for place in places[cls])
        parts.append(f"## {cls.__name__}\n\n{prose(doc.short_description)} Keys: {where}.\n")
        parts.append(markdown_table(("key", "type", "default", "what"), rows))
        parts.append(prose(doc.long_description or "") + "\n")
    parts.append("## Options of methods\n\n`--method NAME --method.options.OPTION VALUE`. "
                 "What each method does: [methods](../methods.md).\n")  # fmt: skip
    for name, cls in METHODS.items():
        described = [STUDENTS[name].__doc__ or ""] if name in STUDENTS else []
        described += [c.__doc__ or "" for c in reversed(cls.__mro__)] + [cls.make_student.__doc__ or ""]
        about: dict[str, str] = {}
        for text in described:
            about |= named(parse_docstring(inspect.cleandoc(text), style=DocstringStyle.GOOGLE).params)
        rows = [
            (f"`{key}`", type_text(p.annotation), default_text(cls.defaults.get(key, p.default)), about.get(key))
            for key, p in method_options(name).items()
        ]
        parts.append(f"### {name}\n\n{prose((cls.__doc__ or '').splitlines()[0])}\n")
        parts.append(markdown_table(("option", "type", "default", "what"), rows) if rows else "No options.\n")
    return "\n".join(parts)


def note_places(name: str, annotation: Any, places: dict[type, list[str]]) -> None:
    """Adds where a class of settings, and those within it, are reached from."""
    cls = class_of(annotation)
    if cls is None:
        return
    name += ".NAME" if get_origin(annotation) is dict else ""
    if name not in places[cls]:
        places[cls].append(name)
        for field in dataclasses.fields(cls):
            note_places(f"{name}.{field.name}", field.type, places)


def class_of(annotation: Any) -> type | None:
    """The class of settings that an annotation names, bare or within others."""
    if annotation in CLASSES:
        found: type = annotation
        return found
    return next((c for inner in get_args(annotation) if (c := class_of(inner))), None)


def named(params: list[Any]) -> dict[str, str]:
    """Descriptions by name; `offset, scale: ...` describes both."""
    return {name.strip(): p.description or "" for p in params for name in p.arg_name.split(",")}


def default_of(field: Any) -> Any:
    """Of a dataclass's field."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default


def default_text(value: Any) -> str:
    """As one types it."""
    if value is inspect.Parameter.empty:
        return "required"
    if dataclasses.is_dataclass(value):
        return ""
    if value is None or value == "":
        return "–"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def type_text(kind: Any) -> str:
    """A type in few words; choices as they are typed."""
    if kind is type(None) or kind is Any:
        return ""
    if (cls := class_of(kind)) is not None:
        link = f"[{cls.__name__}](settings.md#{cls.__name__.lower()})"
        return f"{link} by name" if get_origin(kind) is dict else link
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{v}`" for v in inner)
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(text for k in inner if (text := type_text(k)))
    if get_origin(kind) in (list, tuple):
        item = type_text(inner[0])
        return f"list of {item}" if get_origin(kind) is list else f"{len(inner)} {item}"
    if get_origin(kind) is dict:
        return "dict"
    return {"str": "text", "int": "integer", "float": "number", "bool": "true, false"}.get(kind.__name__, kind.__name__)


def markdown_table(head: tuple[str, ...], rows: list[tuple[str, str, str, str | None]]) -> str:
    """With cells on one line each."""
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    lines += [" | ".join(prose(cell or "").replace("|", "\\|") for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def prose(text: str | None) -> str:
    """Docstring text on one line a paragraph; references to the project's specification say nothing here."""
    paragraphs = re.split(r"\n\s*\n", text or "")
    return "\n\n".join(re.sub(r" \(METHODS [\d., ]+\)", "", " ".join(p.split())) for p in paragraphs)


def sources_page(folder: Path) -> str:
    """The files of a folder, each with an anchor."""
    parts = [f"# {folder.relative_to(ROOT).as_posix()}\n"]
    for path in sorted((*folder.glob("*.yaml"), *folder.glob("*.py"))):
        language = {".yaml": "yaml", ".py": "python"}[path.suffix]
        parts.append(f"## {path.name} {{#{slug(path.name)}}}\n\n```{language}\n{path.read_text().rstrip()}\n```\n")
    return "\n".join(parts)


def slug(name: str) -> str:
    """Anchor of a file."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
