"""Builds networks of timm and torchvision with the view that each was trained with, and fetches their weights."""

import contextlib
import difflib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from stillmotion.models.adapters import TimmEncoder, TorchvisionImage, TorchvisionVideo
from stillmotion.models.checkpoint import WeightsReport, copy_weights
from stillmotion.models.encoder import Encoder
from stillmotion.view import View

CLIPS: dict[str, tuple[int, float]] = {
    "r3d_18": (16, 15.0),
    "mc3_18": (16, 15.0),
    "r2plus1d_18": (16, 15.0),
    "s3d": (128, 15.0),
    "mvit_v1_b": (16, 7.5),
    "mvit_v2_s": (16, 7.5),
    "swin3d_t": (32, 15.0),
    "swin3d_s": (32, 15.0),
    "swin3d_b": (32, 15.0),
}
"""Frames and frames a second at which torchvision states the accuracy of its video weights (only as prose there)."""


def unknown_name(name: str, known: Sequence[str]) -> ValueError:
    """The error for a network that does not exist."""
    close = difflib.get_close_matches(name, known, 4, 0.5) or list(known[:4])
    return ValueError(
        f"unknown model {name!r}: close names: {', '.join(close)}; `stillmotion list models` shows all "
        "(timm/..., torchvision/..., ours), and a run folder holds config.json and model.safetensors"
    )


def make_view(own: View, overrides: dict[str, Any]) -> View:
    """The network's own view with some settings changed; unknown settings are refused.

    A network that was trained on colours has nothing to say about the normalisation of flow.
    """
    kept = own.to_dict()
    if overrides.get("kind") == "flow" and own.kind != "flow":
        del kept["mean"], kept["std"]
    return View.from_dict({**kept, **overrides})


@contextlib.contextmanager
def options_of(name: str) -> Iterator[None]:
    """Turns a library's complaint about an argument into one line for the user."""
    try:
        yield
    except (TypeError, AssertionError) as error:
        raise ValueError(f"{name}: {error}; check the options") from error


def build_timm(
    name: str, num_classes: int, weights: str | None, taps: Sequence[str], view: dict[str, Any], options: dict[str, Any]
) -> Encoder:
    import timm

    short = name.removeprefix("timm/")
    if not timm.is_model(short):
        raise unknown_name(name, [f"timm/{n}" for n in timm.list_models()])
    own = timm_view(short)
    seen = make_view(own, view)
    cfg = timm.get_pretrained_cfg(short)
    options = dict(options)
    if cfg is not None and cfg.fixed_input_size and seen.size != own.size:
        options.setdefault("img_size", seen.size)
    pretrained = weights == "default"
    with options_of(name), _download(name, pretrained):
        net = timm.create_model(short, pretrained=pretrained, num_classes=num_classes, **options)
    encoder = TimmEncoder(net, seen, taps=taps)
    if pretrained:
        encoder.weights_report = _timm_report(encoder, cfg.num_classes if cfg else num_classes)
        if encoder.weights_report.classifier:
            encoder.reset_classifier(num_classes)
    return encoder


def _timm_report(encoder: TimmEncoder, num_classes: int) -> WeightsReport:
    """timm copies its own weights, all but a classifier of another number of classes."""
    if num_classes == encoder.num_classes:
        return WeightsReport(source="default", copied=tuple(encoder.state_dict()), left_out={})
    reason = f"classifier of {num_classes} classes, here {encoder.num_classes}"
    dropped = encoder.classifier_names()
    copied = tuple(name for name in encoder.state_dict() if name not in dropped)
    left_out = {name.removeprefix("net."): reason for name in sorted(dropped)}
    return WeightsReport(source="default", copied=copied, left_out=left_out, classifier=reason)


def timm_view(short: str) -> View:
    """What a network of timm was trained to see."""
    import timm

    cfg = timm.get_pretrained_cfg(short)
    if cfg is None:
        return View()
    filters = ("nearest", "bilinear", "bicubic", "lanczos")
    own = {"size": cfg.input_size[1:], "mean": cfg.mean, "std": cfg.std}
    return View.from_dict({**own, "interpolation": cfg.interpolation if cfg.interpolation in filters else "bilinear"})


def torchvision_view(short: str) -> View:
    """What a network of torchvision was trained to see: the transforms of its default weights."""
    from torchvision.models import get_model_weights

    transforms = get_model_weights(short).DEFAULT.transforms()
    size = tuple(transforms.crop_size) * (3 - len(transforms.crop_size))
    num_frames, fps = CLIPS.get(short, (1, None))
    own = {"size": size, "mean": tuple(transforms.mean), "std": tuple(transforms.std)}
    return View.from_dict(
        {**own, "num_frames": num_frames, "fps": fps, "interpolation": transforms.interpolation.value}
    )


def build_torchvision(
    name: str, num_classes: int, weights: str | None, taps: Sequence[str], view: dict[str, Any], options: dict[str, Any]
) -> Encoder:
    import torchvision.models as zoo

    short = name.removeprefix("torchvision/")
    if short not in zoo.list_models(module=zoo) and short not in CLIPS:
        known = [f"torchvision/{n}" for n in [*zoo.list_models(module=zoo), *CLIPS]]
        raise unknown_name(name, known)
    if short.startswith("squeezenet"):
        raise ValueError(f"{name}: its classes are pooled after the classifier, so it has no embedding; take another")
    seen = make_view(torchvision_view(short), view)
    options = {**_torchvision_options(short, seen), **options}
    with options_of(name), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        net = zoo.get_model(short, weights=None, num_classes=max(num_classes, 1), **options)
    kind = TorchvisionVideo if short in CLIPS else TorchvisionImage
    return kind(net, seen, num_classes=num_classes, taps=taps)


def _torchvision_options(short: str, view: View) -> dict[str, Any]:
    """Arguments that follow from the view; refuses a view that the network cannot take."""
    num_frames = view.num_frames - (view.kind == "difference")
    given = f"the view gives {num_frames} of {view.size[0]}x{view.size[1]}"
    if short.startswith("mvit") and (num_frames, view.size) != (16, (224, 224)):
        raise ValueError(f"torchvision/{short}: takes exactly 16 frames of 224x224; {given}")
    if short == "s3d" and (num_frames < 14 or min(view.size) < 224):
        raise ValueError(f"torchvision/s3d: needs at least 14 frames of 224x224; {given}")
    if short.startswith("vit"):
        if view.size[0] != view.size[1]:
            raise ValueError(f"torchvision/{short}: needs square frames; {given}")
        return {"image_size": view.size[0]}
    if short in ("inception_v3", "googlenet"):
        return {"aux_logits": False, "init_weights": True}
    return {}


@contextlib.contextmanager
def _download(name: str, wanted: bool = True) -> Iterator[None]:
    """Turns what goes wrong with a download into one line."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # URLError, HTTP errors and Hub errors are OSErrors
        if not wanted:
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ValueError(
            f"{name}: its pretrained weights could not be loaded ({reason}); go online, or pass weights=FILE"
        ) from error


def load_default(encoder: Encoder) -> None:
    """Downloads torchvision's own weights; other libraries' builders load theirs."""
    name = encoder.config["name"]
    if not name.startswith("torchvision/"):
        raise ValueError(f"{name} has no weights to download; pass weights=FILE")
    from torchvision.models import get_model_weights

    with _download(name):
        state = get_model_weights(name.removeprefix("torchvision/")).DEFAULT.get_state_dict(progress=False)
    copy_weights(encoder, state, "default")
