"""What a user must obtain for a data set, and how it must lie: `stillmotion data fetch-list`.

Every reader has a `FETCH`. Its `layout` is a small set that the reader accepts (a test lays it out and reads it), so
that the two cannot drift apart.
"""

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHOWN = 6
"""Files of a layout that are shown."""


@dataclass(frozen=True)
class Fetch:
    """Where a data set comes from.

    Args:
        home: Its official pages.
        files: What to get there, with the size where it is known.
        terms: Licence or terms, as far as they are known.
        layout: A small set by path below ROOT; text or bytes of lists (or what makes them), nothing for a video.
        note: What else to know, and what could not be verified.
    """

    home: tuple[str, ...]
    files: tuple[str, ...]
    terms: str
    layout: Mapping[str, str | bytes | Callable[[], bytes]]
    note: str = ""

    def lay_out(self, root: Path) -> None:
        """Writes the layout, with empty files for videos."""
        for name, content in self.layout.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if callable(content):
                content = content()
            path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def text(self, name: str, about: str) -> str:
        """For a person.

        Args:
            name: Of the reader.
            about: Its one line.
        """
        lines = [f"{name}: {about}", *(f"  page   {page}" for page in self.home)]
        lines += [f"  get    {file}" for file in self.files]
        lines += [f"  terms  {self.terms}", f"  lay it out so that `stillmotion data table {name} ROOT` finds it:"]
        for path, content in list(self.layout.items())[:SHOWN]:
            first = content.splitlines()[0].expandtabs(1) if isinstance(content, str) and content else ""
            lines.append(f"    ROOT/{path}" + (f"  (as: {first[:70]})" if first else ""))
        if len(self.layout) > SHOWN:
            lines.append(f"    ... and {len(self.layout) - SHOWN} more like these")
        return "\n".join([*lines, f"  note   {self.note}"] if self.note else lines)


def pickled(data: Any) -> bytes:
    """A list of a layout, as releases of Python 2 write it."""
    return pickle.dumps(data, protocol=2)
