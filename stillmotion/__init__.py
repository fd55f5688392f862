"""stillmotion: turn an expensive video model into a cheap one.

The commands are functions of `stillmotion.api`. The names here are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stillmotion.view import Augment, Draw, View

if TYPE_CHECKING:
    from stillmotion.data.decode import probe, read_frames
    from stillmotion.data.table import read_table
    from stillmotion.live import watch
    from stillmotion.models.factory import create_model, load_model
    from stillmotion.predict import Predictor
    from stillmotion.run import Run

__version__ = "0.1.0"
__all__ = [
    "Augment",
    "Draw",
    "Predictor",
    "Run",
    "View",
    "create_model",
    "load_model",
    "probe",
    "read_frames",
    "read_table",
    "watch",
]

_PLACES = {
    "Predictor": "stillmotion.predict",
    "Run": "stillmotion.run",
    "create_model": "stillmotion.models.factory",
    "load_model": "stillmotion.models.factory",
    "probe": "stillmotion.data.decode",
    "read_frames": "stillmotion.data.decode",
    "read_table": "stillmotion.data.table",
    "watch": "stillmotion.live",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'stillmotion' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
