"""Which networks there are, what they see, and what they cost."""

from collections import defaultdict
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from typing import Any, Literal

import torch

from stillmotion.models.adapters import ImageEncoder
from stillmotion.models.cost import count_cost
from stillmotion.models.hf import FAMILIES
from stillmotion.models.libraries import CLIPS, timm_view, torchvision_view
from stillmotion.models.own import OWN
from stillmotion.models.pseudo3d import CLIP_FRAMES
from stillmotion.view import View

PSEUDO3D = ("resnet", "mobilenetv", "mobilenet_v", "efficientnet", "regnet", "convnext", "vgg")
"""Families of 2D networks that are known to become pseudo-3D ones."""
MAX_BUILT = 20
"""With so many matches or fewer, every network is built (without memory) to count its parameters."""


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """One network.

    Args:
        name: For `create_model`.
        kind: Whether it sees frames one by one (`image`) or a clip (`video`).
        size: Height and width of its frames.
        num_frames, fps: Its clip; fps None takes the video's own frames.
        params: Without classifier; None if not counted.
        gmacs: 1e9 multiply-accumulates for one clip (or frame), without classifier; None if not counted.
        width: Of its embedding; None if not counted.
        weights: What `weights="default"` downloads first, and other names for it (`timm/<name>.<tag>`); empty: none.
        licence: Of these weights as the library states it; None if it does not.
    """

    name: str
    kind: Literal["image", "video"]
    size: tuple[int, int]
    num_frames: int
    fps: float | None
    params: int | None = None
    gmacs: float | None = None
    width: int | None = None
    weights: tuple[str, ...] = ()
    licence: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        return asdict(self)


def list_models(
    pattern: str = "*",
    *,
    kind: Literal["image", "video"] | None = None,
    weights: bool = False,
    max_gmacs: float | None = None,
) -> list[ModelInfo]:
    """The networks whose name matches.

    Args:
        pattern: As `timm/resnet*`; without wildcard, a part of the name. Up to 20 matches are given with parameters,
            GMACs and width, more without.
        kind: Only these.
        weights: Only those with weights to download.
        max_gmacs: Only those that cost no more; all are built for it. Networks that cannot be counted are left out.

    Example:
        >>> [(m.name, m.params, m.width) for m in list_models("resnext3d_101")]
        [('resnext3d_101', 47521216, 2048)]
    """
    pattern = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    known = [*OWN, *FAMILIES, *_torchvision_names(), *_timm_names(), *_pseudo3d_names()]
    names = [n for n in known if fnmatch(n, pattern)]
    tags = _timm_tags() if any(n.startswith(("timm/", "pseudo3d/")) for n in names) else {}
    built = len(names) <= MAX_BUILT or max_gmacs is not None
    found = [_describe(name, tags, built=built) for name in names]
    if kind is not None:
        found = [m for m in found if m.kind == kind]
    if weights:
        found = [m for m in found if m.weights]
    if max_gmacs is not None:
        found = [m for m in found if m.gmacs is not None and m.gmacs <= max_gmacs]
    return found


def _torchvision_names() -> list[str]:
    import torchvision.models as zoo

    names = [n for n in zoo.list_models(module=zoo) if not n.startswith("squeezenet")]
    return [f"torchvision/{n}" for n in [*CLIPS, *names]]


def _timm_names() -> list[str]:
    import timm

    return [f"timm/{n}" for n in timm.list_models()]


def _pseudo3d_names() -> list[str]:
    """Networks of the families that are tested; others may work too."""
    flat = [n.removeprefix("timm/") for n in _timm_names()] + _torchvision_names()
    return [f"pseudo3d/{n}" for n in flat if n.removeprefix("torchvision/").startswith(PSEUDO3D)]


def _timm_tags() -> dict[str, list[str]]:
    import timm

    tags = defaultdict(list)
    for name in timm.list_pretrained():
        short, _, tag = name.partition(".")
        tags[short].append(tag)
    return tags


def _describe(name: str, tags: dict[str, list[str]], *, built: bool) -> ModelInfo:
    library, _, short = name.partition("/")
    weights: tuple[str, ...] = ()
    licence = None
    video = True
    if library == "pseudo3d":
        flat = _describe(short if short.startswith("torchvision/") else f"timm/{short}", tags, built=False)
        view, weights, licence = View(size=flat.size, num_frames=CLIP_FRAMES), flat.weights, flat.licence
    elif library == "timm":
        import timm

        view, video = timm_view(short), False
        cfg = timm.get_pretrained_cfg(short)
        if cfg is not None and cfg.tag is not None and cfg.tag in tags.get(short, ()):
            weights, licence = (cfg.tag, *(t for t in tags[short] if t != cfg.tag)), cfg.license
    elif library == "torchvision":
        from torchvision.models import get_model_weights

        view, video = torchvision_view(short), short in CLIPS
        default = get_model_weights(short).DEFAULT
        weights, licence = (default.name,), default.meta.get("license")
    elif library == "hf":
        family = FAMILIES[name]
        view, weights, licence = family.view, (family.repo,), family.licence
    else:
        build, view = OWN[name]
        video = not (isinstance(build, type) and issubclass(build, ImageEncoder))
    params, gmacs, width = _count(name) if built else (None, None, None)
    return ModelInfo(
        name=name,
        kind="video" if video else "image",
        size=view.size,
        num_frames=view.num_frames,
        fps=view.fps,
        params=params,
        gmacs=gmacs,
        width=width,
        weights=weights,
        licence=licence,
    )


def _count(name: str) -> tuple[int | None, float | None, int | None]:
    from stillmotion.models.factory import create_model

    try:
        with torch.device("meta"):
            encoder = create_model(name, num_classes=0)
        cost = count_cost(encoder)
    except (NotImplementedError, RuntimeError, ValueError):
        # Some networks compute with their weights while they are built; some need an extra that is not installed.
        return None, None, None
    return cost.params, cost.gmacs, encoder.embedding_dim
