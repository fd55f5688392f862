"""What the tests of the recipes in `configs` share."""

import shlex
from pathlib import Path
from typing import Any

import yaml

CONFIGS = Path(__file__).parents[1] / "configs"


def settings_of(path: Path) -> dict[str, Any]:
    """A recipe's settings."""
    settings: dict[str, Any] = yaml.safe_load(path.read_text())
    return settings


def commands_of(path: Path) -> list[list[str]]:
    """Commands of the comment, with continued lines joined."""
    comment = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
    joined = "\n".join(comment).replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in joined.splitlines() if line.startswith("stillmotion ")]
