"""The table of the networks that are ours: one line a family."""

from collections.abc import Callable

from stillmotion.models import c3d, i3d, p3d, resnext3d
from stillmotion.models.encoder import Encoder
from stillmotion.view import View

OWN: dict[str, tuple[Callable[..., Encoder], View]] = {
    **{name: (resnext3d.ResNet3d, resnext3d.VIEW) for name in resnext3d.RESNETS},
    **{name: (p3d.P3d, p3d.VIEW) for name in p3d.P3DS},
    "c3d": (c3d.C3d, c3d.VIEW),
    **{name: (i3d.I3d, view) for name, view in i3d.I3DS.items()},
}
"""Class and published view by name. The class takes name, num_classes, view, taps and its own options."""
