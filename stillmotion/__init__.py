"""stillmotion: turn an expensive video model into a cheap one."""

from stillmotion.view import Augment, Draw, View

__version__ = "0.1.0"
__all__ = ["Augment", "Draw", "View"]
