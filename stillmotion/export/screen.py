"""Looks through a `.pt2` before torch opens it: `torch.export.load` runs pickles and evaluates text of the file.

What this package exports needs neither, so only that is let through: plain tensors, operators of aten, and formulas
of sizes. Everything else is refused.
"""

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MEMBERS = re.compile(
    r"[^/]+/(data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt|models/model\.json|extra/[\w.-]+|archive_format|archive_version|byteorder|version"
    r"|\.data/\w+|\.format_version|\.storage_alignment)"
)
TARGETS = re.compile(
    r"torch\.ops\.aten\.(?!from_file)\w+(\.\w+)?|torch\.sym_\w+|math\.(ceil|floor|trunc)"
    r"|_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|neg|pos|pow|eq|ne|lt|le|gt|ge|and_|or_)"
)
FORMULAS = frozenset(
    ["Symbol", "Integer", "Add", "Mul", "Pow", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CeilDiv", "CleanDiv",
     "Eq", "Ne", "Lt", "Le", "Gt", "Ge"]
)  # fmt: skip
_PLAIN = (ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.BinOp, ast.UnaryOp, ast.Compare,
          ast.BoolOp, ast.operator, ast.unaryop, ast.cmpop, ast.boolop)  # fmt: skip


def screen(path: Path) -> None:
    """Refuses a `.pt2` that holds code.

    Raises:
        ValueError: What it holds that no file of this package does.
    """
    import torch

    with zipfile.ZipFile(path) as pack:
        names = pack.namelist()
        if odd := [name for name in names if not MEMBERS.fullmatch(name) or names.count(name) > 1]:
            raise ValueError(f"holds {odd[0]!r}, refused: it may be code")
        for name in names:
            if name.endswith("_config.json"):
                _tensors(json.loads(pack.read(name)))
            elif name.endswith("/model.json"):
                _graph(json.loads(pack.read(name)))
            elif name.endswith(".pt"):
                try:
                    torch.load(io.BytesIO(pack.read(name)), map_location="cpu", weights_only=True)
                except Exception:
                    raise ValueError(f"{name} holds code or is damaged, refused") from None


def _tensors(config: Any) -> None:
    for name, tensor in config["config"].items():
        if tensor.get("use_pickle") or not re.fullmatch(r"(weight|tensor)_\d+", tensor["path_name"]):
            raise ValueError(f"{name} is pickled, refused: it may be code")


def _graph(model: Any) -> None:
    for key, value in _texts(model):
        if key == "target" and not TARGETS.fullmatch(value):
            raise ValueError(f"calls {value!r}, refused: it may be code")
        if key in ("expr_str", "guards_code") and not _is_formula(value):
            raise ValueError(f"holds {value[:60]!r}, refused: it may be code")


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All texts of JSON data with the name that they stand under."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _texts(part, name)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part, key)
    elif isinstance(value, str):
        yield key, value


def _is_formula(text: str) -> bool:
    """Whether a text is arithmetic of sizes and nothing else.

    Example:
        >>> _is_formula("2*Symbol('s0', positive=True) + 1"), _is_formula("__import__('os')")
        (True, False)
    """
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(
        isinstance(node, _PLAIN)
        and (not isinstance(node, ast.Call) or (isinstance(node.func, ast.Name) and node.func.id in FORMULAS))
        and (not isinstance(node, ast.Name) or node.id in FORMULAS or re.fullmatch(r"[a-z]\w?\d*", node.id) is not None)
        and (not isinstance(node, ast.Constant) or not isinstance(node.value, str) or node.value.isalnum())
        for node in nodes
    )
