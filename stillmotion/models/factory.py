"""Makes every network by name: `timm/<name>`, `torchvision/<name>`, ours, or a trained one by its folder."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stillmotion.config import ModelConfig
from stillmotion.models.adapters import ImageEncoder, take_input
from stillmotion.models.catalogue import ModelInfo, list_models
from stillmotion.models.checkpoint import WeightsReport, load_weights
from stillmotion.models.encoder import Encoder
from stillmotion.models.fusion import STREAMS, FusedStreams
from stillmotion.models.hf import build_hf
from stillmotion.models.im2flow import Im2Flow
from stillmotion.models.libraries import (
    build_timm,
    build_torchvision,
    load_default,
    make_view,
    options_of,
    unknown_name,
)
from stillmotion.models.own import OWN
from stillmotion.models.pretrained import is_run, load_pretrained
from stillmotion.models.pseudo3d import CLIP_FRAMES, Pseudo3d
from stillmotion.models.sequence import FrameSequence
from stillmotion.models.student import HallucinatingStudent
from stillmotion.models.two_stream import TwoStream

__all__ = ["ModelInfo", "create_model", "list_models", "load_model"]


def create_model(
    name: str,
    *,
    num_classes: int,
    weights: str | None = None,
    taps: Sequence[str] = (),
    view: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
    **options: Any,
) -> Encoder:
    """Makes a network.

    Args:
        name: `timm/<name>`, `torchvision/<name>`, `pseudo3d/<name>` (of timm; `pseudo3d/torchvision/<name>`),
            `resnext3d_101`, `p3d_63` and relatives, `c3d`, `i3d_rgb`, `i3d_flow`, `hf/videomae` and relatives,
            `hallucinating`, `sequence`, `fused`, `two_stream`, `im2flow` (made of others), or a run folder.
        num_classes: Width of `logits`; 0 for none.
        weights: None starts at random; `default` downloads the library's own; else a local safetensors or checkpoint
            file; for `hf/...` also a name on the Hub or a folder. `encoder.weights_report` tells what was taken.
        taps: Layers whose output the result carries too, by their dotted names in the network.
        view: Settings of `View` that differ from the network's own.
        class_names: Of the logits, where they are known: a run's classifier is kept for the same ones only.
        options: Further arguments of the network. `stack` (of 2D networks): see the frames of a clip, or their
            differences, as channels of one picture, not one by one.

    A view of kind `flow` gives the network two input channels, or, to a 2D one, 2T at once. Its first convolution then
    starts from what it was for colours, as `spread_colours` says; so do those in weights files.

    Returns:
        Takes (B, T, C, H, W); gives `logits`, `embedding` and the taps. `create_model(**encoder.config)` rebuilds it.

    Raises:
        ValueError: Unknown name, option, tap or view setting; weights that do not fit.

    Example:
        >>> import torch
        >>> encoder = create_model("resnet3d_10", num_classes=4, width=8, view={"size": 32, "num_frames": 8})
        >>> encoder(torch.zeros(2, 8, 3, 32, 32, dtype=torch.uint8))["logits"].shape
        torch.Size([2, 4])
    """
    overrides = dict(view or {})
    if is_trained(name):
        config = ModelConfig(name=name, weights=weights, options=options, view=overrides)
        return _load_run(config, num_classes=num_classes, class_names=class_names, taps=taps)
    encoder: Encoder
    if name in COMPOSITE:
        with options_of(name):
            encoder = COMPOSITE[name](num_classes, taps, overrides, class_names, dict(options))
    else:
        stack = {"stack": options.pop("stack")} if "stack" in options else {}
        encoder = _builder(name)(name, num_classes, weights, taps, overrides, options)
        (seen,) = encoder.views.values()
        if seen.kind == "flow" and name.startswith("hf/"):
            raise ValueError(f"{name}: sees colours only; give a flow view to another network")
        take_input(encoder, seen, **stack)
        shared = {"name": name, "num_classes": num_classes, "taps": list(taps), "view": seen.to_dict()}
        encoder.config = {**shared, **stack, **options, **encoder.config}  # what a repository brought
        if encoder.weights_report is not None:  # its builder read the weights
            return encoder
    if weights == "default":
        load_default(encoder)
    elif weights is not None:
        load_weights(encoder, weights)
    return encoder


def load_model(config: ModelConfig, *, num_classes: int, class_names: Sequence[str] | None = None) -> Encoder:
    """Makes the network of a run's settings.

    A run folder (or Hub name) brings its weights; with `weights="random"` only its architecture. Where it has another
    number of classes, or others than `class_names`, the backbone is kept and the classifier starts at random. The
    caller seeds what is random.

    Raises:
        ValueError: As `create_model`.
    """
    if is_trained(config.name):
        return _load_run(config, num_classes=num_classes, class_names=class_names)
    weights = None if config.weights == "random" else config.weights
    return create_model(config.name, num_classes=num_classes, weights=weights, view=config.view,
                        class_names=class_names, **config.options)  # fmt: skip


def is_trained(name: str) -> bool:
    """Whether a name means a network of ours with its weights: a folder, or a name on the Hub."""
    if is_run(name):
        return True
    library, _, rest = name.partition("/")
    known = library in ("timm", "torchvision", "pseudo3d", "hf") or name in OWN or name in COMPOSITE
    return not known and (Path(name).is_dir() or bool(rest))


def _load_run(
    config: ModelConfig, *, num_classes: int, class_names: Sequence[str] | None = None, taps: Sequence[str] = ()
) -> Encoder:
    options = dict(config.options)
    taps = (*taps, *options.pop("taps", ()))
    if options:
        option = next(iter(options))
        raise ValueError(f"{config.name}: option {option!r} cannot change a trained network; name the architecture")
    if config.weights == "default":
        raise ValueError(f"{config.name}: weights=default is for library networks; leave it out to take the run's own")
    encoder, task, _ = load_pretrained(config.name, weights=config.weights is None, view=config.view, taps=taps)
    own = task.output_names
    renamed = class_names is not None and num_classes > 0 and tuple(class_names) != own
    if encoder.num_classes != num_classes or renamed:
        reason = f"classifier of {encoder.num_classes} classes, here {num_classes}"
        if encoder.num_classes == num_classes and class_names is not None:
            theirs, ours = next((a, b) for a, b in zip(own, class_names, strict=True) if a != b)
            reason = f"classifier of other classes, {theirs!r} where {ours!r} is here"
        encoder.reset_classifier(num_classes)
        if config.weights is None and num_classes:
            copied = tuple(name for name in encoder.state_dict() if name not in encoder.classifier_names())
            encoder.weights_report = WeightsReport(source=config.name, copied=copied, left_out={}, classifier=reason)
    if config.weights not in (None, "random"):
        load_weights(encoder, config.weights)
    return encoder


Builder = Callable[[str, int, str | None, Sequence[str], dict[str, Any], dict[str, Any]], Encoder]


def _builder(name: str) -> Builder:
    library, _, rest = name.partition("/")
    if library == "timm" and rest:
        return build_timm
    if library == "torchvision" and rest:
        return build_torchvision
    if library == "pseudo3d" and rest:
        return _build_pseudo3d
    if library == "hf" and rest:
        return build_hf
    if name in OWN:
        return _build_own
    raise unknown_name(name, [*OWN, *COMPOSITE])


def _build_own(
    name: str, num_classes: int, weights: str | None, taps: Sequence[str], view: dict[str, Any], options: dict[str, Any]
) -> Encoder:
    build, own = OWN[name]
    with options_of(name):
        return build(name, num_classes=num_classes, view=make_view(own, view), taps=taps, **options)


def _build_pseudo3d(
    name: str, num_classes: int, weights: str | None, taps: Sequence[str], view: dict[str, Any], options: dict[str, Any]
) -> Encoder:
    flat = name.removeprefix("pseudo3d/")
    if not flat.startswith(("timm/", "torchvision/")):
        flat = f"timm/{flat}"
    own = {key: options[key] for key in ("wiring", "stages", "time_pool") if key in options}
    rest = {key: value for key, value in options.items() if key not in own}
    image = create_model(
        flat, num_classes=num_classes, weights="default" if weights == "default" else None, taps=taps,
        view={"num_frames": CLIP_FRAMES, **view, "kind": "rgb"}, **rest,
    )  # fmt: skip
    if not isinstance(image, ImageEncoder):
        raise ValueError(f"{name}: pseudo3d takes 2D networks, and {flat} sees clips already")
    image.views = {key: make_view(seen, {"kind": "rgb", **view}) for key, seen in image.views.items()}
    with options_of(name):
        return Pseudo3d(image, **own)


def _build_student(
    num_classes: int,
    taps: Sequence[str],
    view: dict[str, Any],
    class_names: Sequence[str] | None,
    options: dict[str, Any],
) -> HallucinatingStudent:
    given = _given("hallucinating", "backbone", "the network that it extends", options)
    backbone = _part(given, given.get("num_classes", 0), taps, view, None)
    return HallucinatingStudent(backbone, num_classes=num_classes, **options)


def _build_streams(
    build: Callable[..., Encoder],
    name: str,
    num_classes: int,
    taps: Sequence[str],
    view: dict[str, Any],
    class_names: Sequence[str] | None,
    options: dict[str, Any],
) -> Encoder:
    if odd := [tap for tap in taps if tap.partition(".")[0] not in STREAMS]:
        raise ValueError(f"unknown tap {odd[0]!r}; name a stream and its layer, such as appearance.layer4")
    streams = []
    for stream in STREAMS:
        given = _given(name, stream, "the network of this stream", options)
        layers = [tap.removeprefix(f"{stream}.") for tap in taps if tap.startswith(f"{stream}.")]
        streams.append(_part(given, given.get("num_classes", num_classes), layers, view, class_names))
    return build(*streams, num_classes=num_classes, **options)


def _build_sequence(
    num_classes: int,
    taps: Sequence[str],
    view: dict[str, Any],
    class_names: Sequence[str] | None,
    options: dict[str, Any],
) -> FrameSequence:
    given = _given("sequence", "backbone", "the network that sees each moment", options)
    return FrameSequence(_part(given, 0, taps, view, None), num_classes=num_classes, **options)


def _given(name: str, part: str, what: str, options: dict[str, Any]) -> Mapping[str, Any]:
    """Takes the settings of a network within a network out of its options."""
    given = options.pop(part, None)
    if not isinstance(given, Mapping) or "name" not in given:
        raise ValueError(f"{name} needs {part}={{name: ...}}, {what}")
    return given


def _part(
    given: Mapping[str, Any],
    num_classes: int,
    taps: Sequence[str],
    view: dict[str, Any],
    class_names: Sequence[str] | None,
) -> Encoder:
    """A network within a network: given as a `ModelConfig`, or flat, as the `config` of a network."""
    rest = {k: v for k, v in given.items() if k not in ("name", "weights", "view", "options", "num_classes")}
    rest |= given.get("options") or {}
    if taps:
        rest["taps"] = list(taps)
    seen = {**(given.get("view") or {}), **view}
    config = ModelConfig(name=given["name"], weights=given.get("weights"), view=seen, options=rest)
    return load_model(config, num_classes=num_classes, class_names=class_names)


COMPOSITE: dict[str, Callable[..., Encoder]] = {
    "hallucinating": _build_student,
    "fused": partial(_build_streams, FusedStreams, "fused"),
    "im2flow": partial(_build_streams, Im2Flow, "im2flow"),
    "sequence": _build_sequence,
    "two_stream": partial(_build_streams, TwoStream, "two_stream"),
}
"""Networks made of others, which their options name; so they are not listed."""
