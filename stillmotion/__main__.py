"""The command `stillmotion`: every function of `api.py`, as jsonargparse reads it."""

import errno
import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, auto_cli

from stillmotion import api
from stillmotion.data.faults import one_line
from stillmotion.data.remote import RemoteError
from stillmotion.memory import keep_memory

COMMANDS: dict[str, Any] = {
    "demo": api.demo,
    "train": api.train,
    "evaluate": api.evaluate,
    "compare": api.compare,
    "report": api.report,
    "predict": api.predict,
    "serve": api.serve,
    "extract": api.extract,
    "pack": api.pack,
    "flow": api.flow,
    "features": api.features,
    "svm": api.svm,
    "aslan": api.aslan,
    "baselines": api.baselines,
    "export": api.export,
    "benchmark": api.benchmark,
    "data": {"_help": "Tables: check, divide, make them from official files, and where to get these.",
             "check": api.check, "split": api.split, "table": api.table, "fetch-list": api.fetch_list},
    "render": {
        "_help": "Videos that need no data set.",
        "scenes": api.render_scenes,
        "dives": api.render_dives,
    },
    "list": {"_help": "Names that the other commands take.",
             "models": api.list_models, "methods": api.list_methods, "sets": api.list_sets,
             "baselines": api.list_baselines},
}  # fmt: skip
# Commands with a list at the end of their positional arguments, and how many stand before it.
LISTS = {"predict": 1, "benchmark": 0}
MANY = ("--fuse", "--targets", "--data.targets", "--videos", "--cors", "--live.classes", "--baselines", "--reference")
"""Take all that follows up to the next option."""
NUMBERS = ("--seeds", "--label_fractions", "--batch_sizes")
"""Likewise; of numbers."""
DESCRIPTION = str(api.__doc__).partition("\n")[0]
TRAINS = ("train", "compare", "extract")
"""Commands whose `--targets` is short for `--data.targets`."""
EXTRAS = dict.fromkeys(("fastapi", "uvicorn", "python_multipart", "prometheus_client"), "serve")
"""Of modules that are not of `train`."""
# `--student X` is short for `--student.name X`; the networks of `evaluate`, `predict` and `report`, and the method
# of `flow`, are but names.
NAMED = ("--student", "--teacher", "--method", "--probe")


RESUMED = ("demo", "train", "compare", "extract", "features", "pack", "flow", "predict", "render")
"""Commands that go on where they were stopped."""
REMEDIES: dict[int | None, str] = dict.fromkeys(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    "; make room and run the same command to go on: what was finished is kept",
)
"""What to do about an error of the system."""
REFUSED = {
    "/torch_": "; no shared memory left: make /dev/shm larger, or read without workers (--data.workers 0)",
    "allocate memory": "; take smaller batches, fewer frames or a smaller size",
    "out of memory": "; take smaller batches, fewer frames or a smaller size",
    "start new thread": "; the system gives no more threads or memory",
    "worker processes do not start": "",
}
"""What to do where the system refuses something and libraries only say RuntimeError: part of the text, remedy."""


class _Parser(ArgumentParser):
    """Says what is wrong in one line, without repeating the usage of sixty options."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = " ".join(message.split()) or str(ex)
        print(f"{self.prog.replace(' [options]', '')}: error: {text} (--help shows the options)", file=sys.stderr)
        sys.exit(2)


def _expand(arguments: Sequence[str]) -> list[str]:
    """Writes out what is shorter to type than jsonargparse takes it.

    `--student timm/resnet18` -> `--student.name timm/resnet18` (a YAML or JSON file or text stays as it is);
    `predict MODEL a.mp4 b.mp4` -> `predict MODEL ["a.mp4", "b.mp4"]`, likewise `--fuse A B`; `--targets A B` ->
    `--data.targets ["A", "B"]` where something is trained; `data fetch-list SET` -> `--name SET`. `--config FILE` moves
    to the front, so that whatever stands on the command line wins over the file, on either side of it.
    """
    result = list(arguments)
    if "--config" in result[1:-1]:
        at = result.index("--config", 1)
        command = 2 if result[0] in ("data", "render", "list") else 1
        result = [*result[:command], *result[at : at + 2], *result[command:at], *result[at + 2 :]]
    if result[:2] == ["data", "fetch-list"] and len(result) > 2 and not result[2].startswith("-"):
        result.insert(2, "--name")
    for option in (*MANY, *NUMBERS):
        if option in result[:-1]:
            at = result.index(option) + 1
            end = next((i for i in range(at, len(result)) if result[i].startswith("-")), len(result))
            if not result[at].startswith("["):
                given = result[at:end]
                result[at:end] = [f"[{', '.join(given)}]" if option in NUMBERS else json.dumps(given)]
    if result and result[0] in LISTS:
        result = [result[0], *_join(result[1:], LISTS[result[0]])]
    if result and result[0] in TRAINS:
        result = [a.replace("--targets", "--data.targets", 1) if a.startswith("--targets") else a for a in result]
    result = _merge_deep(result)
    for i, argument in enumerate(result):
        option, equals, value = argument.partition("=")
        if option not in NAMED or result[0] in ("evaluate", "predict", "serve", "flow", "report"):
            continue
        value = value if equals else (result[i + 1] if i + 1 < len(result) else "")
        if value and not value.startswith(("{", "-")) and Path(value).suffix not in (".yaml", ".yml", ".json"):
            result[i] = f"{option}.name{equals}{value if equals else ''}"
    return result


DEEP = re.compile(r"--((?:student|teacher|probe|method)\.options\.[^.=]+|rows\.(?P<row>[^.=]+))\.([^=]+)")


def _merge_deep(arguments: list[str]) -> list[str]:
    """Merges options that go deeper into a dict than jsonargparse does into what `--config` says there.

    Of `--student.options.backbone.name X` it would drop the backbone's other settings, and refuse
    `--rows.NAME.optim.epochs 2`.

    Raises:
        ValueError: The configuration has no such row.
    """
    if not any(DEEP.match(argument) for argument in arguments):
        return arguments
    import yaml

    config: Any = {}
    if "--config" in arguments[:-1]:
        with suppress(OSError, yaml.YAMLError):  # what is wrong with the file is said when it is read in earnest
            config = yaml.safe_load(Path(arguments[arguments.index("--config") + 1]).read_text(encoding="utf-8"))
    kept: list[str] = []
    merged: dict[str, Any] = {}
    rest = iter(arguments)
    for argument in rest:
        option, equals, value = argument.partition("=")
        found = DEEP.fullmatch(option)
        if found is None:
            kept.append(argument)
            continue
        path, row, keys = found[1], found["row"], found[3].split(".")
        there = merged.get(path, config)
        for key in path.split(".") if path not in merged else ():
            there = there.get(key) if isinstance(there, dict) else None
        if row is not None and not isinstance(there, dict):
            raise ValueError(f"{option}: there is no row {row!r} in --config")
        node = merged[path] = there if isinstance(there, dict) else {}
        for key in keys[:-1]:
            deeper = node.get(key)
            node[key] = deeper if isinstance(deeper, dict) else {}
            node = node[key]
        given = value if equals else next(rest, "")
        try:
            node[keys[-1]] = json.loads(given)
        except ValueError:
            node[keys[-1]] = yaml.safe_load(given)
    return kept + [f"--{path}={json.dumps(value)}" for path, value in merged.items()]


def _join(arguments: list[str], before: int) -> list[str]:
    """Makes one list of all positional arguments but the first `before`."""
    kept: list[str] = []
    inputs: list[str] = []
    is_value, after = False, 0
    for argument in arguments:
        if is_value or argument.startswith("-"):
            is_value = argument.startswith("--") and "=" not in argument and not is_value
            is_value = is_value and not argument.startswith(("--help", "--print_config"))
            kept.append(argument)
        elif before:
            kept.append(argument)
            before -= 1
            after = len(kept)
        else:
            inputs.append(argument)
    if inputs:
        kept.insert(after, json.dumps(inputs))
    return kept


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; the result is the exit code.

    0 is success, 1 a run in which something failed and was listed, 2 a mistake of the user (one line says which),
    130 an interruption.
    """
    keep_memory()
    args = list(sys.argv[1:] if arguments is None else arguments)
    try:
        args = _expand(args)
        # Signatures and docstrings of all commands take longer to read than a light prediction takes.
        chosen = {name: COMMANDS[name] for name in args[:1] if name in COMMANDS} or COMMANDS
        result = auto_cli(chosen, args=args, prog="stillmotion", description=DESCRIPTION, parser_class=_Parser)
    except KeyboardInterrupt as stop:
        more = "; what was finished is kept, run the same command to go on" if args[:1] and args[0] in RESUMED else ""
        print(f"stillmotion: {str(stop) or f'interrupted{more}'}", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("stillmotion"):
            raise
        extra = EXTRAS.get(error.name, "train")
        print(f"stillmotion: error: {error.name} is not installed; pip install 'stillmotion[{extra}]'", file=sys.stderr)
        return 2
    except (ValueError, OSError, MemoryError, RemoteError) as error:
        if os.environ.get("STILLMOTION_TRACEBACK"):
            raise
        print(
            f"stillmotion: error: {one_line(error)}{REMEDIES.get(getattr(error, 'errno', None), '')}", file=sys.stderr
        )
        return 2
    except RuntimeError as error:
        text = str(error).strip().rpartition("\n")[2]  # after the traceback of another process, if it comes from one
        remedy = next((remedy for part, remedy in REFUSED.items() if part in text), None)
        if remedy is None or os.environ.get("STILLMOTION_TRACEBACK"):
            raise
        print(f"stillmotion: error: {text.removeprefix('RuntimeError: ')}{remedy}", file=sys.stderr)
        return 2
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
