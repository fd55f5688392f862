"""Pickles that data sets are released as, read without running code.

A pickle is a program: `pickle.load` calls whatever the file names. Here it may hold plain data (dict, list, tuple,
numbers, text), and numbers and arrays of NumPy if the caller says so. Their names are served by functions of this
module, which only look at bytes: not even NumPy runs on what the file says.
"""

import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stillmotion.data.faults import one_line
from stillmotion.data.table import TableError

Allowed = Literal["scalar", "array"]
_CODES = frozenset(["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8"])


def load_plain(path: Path, *, allow: Collection[Allowed] = ()) -> Any:
    """Reads a pickle of plain data, of Python 2 or 3.

    Args:
        path: The file.
        allow: What of NumPy it may hold: `scalar` comes as int or float, `array` as a flat list of them.

    Raises:
        TableError: In one line: no such file, not a pickle, or one that names anything else.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "keys.pkl"
        >>> _ = path.write_bytes(pickle.dumps([(1, 2), (np.uint8(3), 4)]))
        >>> load_plain(path, allow=["scalar"])
        [(1, 2), (3, 4)]
    """
    if not path.is_file():
        raise TableError(f"{path}: no such file; pass annotations=, the folder with the official files")
    with path.open("rb") as file:
        try:
            return _Plain(file, allow).load()
        except _RefusedError as error:
            raise TableError(f"{path}: {error}; get the file from its official page again") from None
        except Exception as error:  # a damaged pickle may raise anything
            reason = one_line(error)
            raise TableError(f"{path}: not a readable pickle ({reason}); get it from its official page again") from None


class _RefusedError(Exception):
    pass


class _Plain(pickle.Unpickler):
    def __init__(self, file: Any, allow: Collection[Allowed]) -> None:
        super().__init__(file, encoding="latin1")
        self.served: dict[tuple[str, str], Any] = {}
        for package in ("numpy.core", "numpy._core"):
            if allow:
                self.served["numpy", "dtype"] = _Dtype
            if "scalar" in allow:
                self.served[f"{package}.multiarray", "scalar"] = _scalar
            if "array" in allow:
                self.served["numpy", "ndarray"] = _Array
                self.served[f"{package}.multiarray", "_reconstruct"] = _array

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.served:
            raise _RefusedError(f"refused, it would run code ({module}.{name}) and should hold plain data only")
        return self.served[module, name]


class _Dtype:
    """Stands for `numpy.dtype` of one number."""

    def __init__(self, code: str, align: Any = False, copy: Any = False) -> None:
        if code not in _CODES:
            raise ValueError(f"numbers of type {code!r}")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1] if state[1] in ("<", ">") else "="

    def numbers(self, data: bytes | str) -> list[Any]:
        """Numbers in raw bytes, which Python 2 wrote as text."""
        raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
        return list(np.frombuffer(raw, f"{self.order}{self.code}").tolist())


class _Array(list[Any]):
    """Stands for `numpy.ndarray`."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self[:] = state[2].numbers(state[4])


def _array(kind: Any, shape: Any, code: Any) -> _Array:
    return _Array()


def _scalar(kind: _Dtype, data: bytes | str) -> Any:
    (number,) = kind.numbers(data)
    return number
