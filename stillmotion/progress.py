"""The bar that long work shows to a person."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class Rate(ProgressColumn):
    """How many a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.3g}/s" if task.speed else "")


def progress_bar(*further: ProgressColumn, shown: bool = True) -> Progress:
    """A bar on the error output that disappears when the work is done; silent where there is no terminal.

    Args:
        further: Columns behind the usual ones.
        shown: Whether to show it at all.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn(),
               *further)  # fmt: skip
    return Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal))
