"""Video transformers of Hugging Face: VideoMAE, TimeSformer, ViViT, V-JEPA 2. Needs the extra `hf`.

transformers is imported when a network is built, not before.
"""

import contextlib
import difflib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from stillmotion.data.faults import one_line
from stillmotion.models.checkpoint import WeightsReport
from stillmotion.models.encoder import Encoder
from stillmotion.models.libraries import make_view, unknown_name
from stillmotion.view import View

log = logging.getLogger(__name__)

HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class Family:
    """Networks of one architecture.

    Args:
        model: Class in transformers; its config class lies beside it.
        config: That class.
        view: What the weights of `repo` were trained to see.
        repo: What `weights="default"` downloads from the Hub.
        licence: Of these weights, as the Hub states it; None if not known here.
        size, num_frames: Fields of the config that follow the view.
    """

    model: str
    config: str
    view: View
    repo: str
    licence: str | None = None
    size: str = "image_size"
    num_frames: str = "num_frames"


FAMILIES = {
    "hf/videomae": Family(
        model="VideoMAEForVideoClassification",
        config="VideoMAEConfig",
        view=View(num_frames=16, stride=4),
        repo="MCG-NJU/videomae-base-finetuned-kinetics",
        licence="cc-by-nc-4.0",
    ),
    "hf/timesformer": Family(
        model="TimesformerForVideoClassification",
        config="TimesformerConfig",
        view=View(num_frames=8, stride=32, mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225)),
        repo="facebook/timesformer-base-finetuned-k400",
        licence="cc-by-nc-4.0",
    ),
    "hf/vivit": Family(
        model="VivitForVideoClassification",
        config="VivitConfig",
        view=View(num_frames=32, stride=2, mean=HALF, std=HALF),
        repo="google/vivit-b-16x2-kinetics400",
        licence="mit",
    ),
    "hf/vjepa2": Family(
        model="VJEPA2ForVideoClassification",
        config="VJEPA2Config",
        view=View(size=(256, 256), num_frames=16, stride=4),
        repo="facebook/vjepa2-vitl-fpc16-256-ssv2",
        size="crop_size",
        num_frames="frames_per_clip",
    ),
    "hf/vjepa2_encoder": Family(
        model="VJEPA2Model",
        config="VJEPA2Config",
        view=View(size=(256, 256), num_frames=64, fps=4.0),
        repo="facebook/vjepa2-vitl-fpc64-256",
        size="crop_size",
        num_frames="frames_per_clip",
    ),
}
"""By name. The strides and rates are those of the published training."""

FILES = (".safetensors", ".npz", ".pt", ".pth", ".tar", ".ckpt", ".bin", ".pickle", ".pkl")


class HfVideo(Encoder):
    """A video transformer; its last layer is taken out and applied here, so `embedding` is what that layer sees.

    VideoMAE: mean of the tokens, normalised. TimeSformer, ViViT: the class token. V-JEPA 2: what its attentive pooler
    gives; its encoder alone (`hf/vjepa2_encoder`): mean of the tokens. The predictor of V-JEPA 2 is dropped.

    Args:
        net: A network of transformers.
        view: What it sees.
        num_classes: 0 for no classifier.
        taps: Layers of `net` to give as well, as tokens (B, N, D).
    """

    def __init__(self, net: Any, view: View, *, num_classes: int, taps: Sequence[str] = ()) -> None:
        super().__init__()
        self.embedding_dim = int(net.config.hidden_size)
        self.classifies = hasattr(net, "classifier")
        if self.classifies:
            head, net.classifier = net.classifier, nn.Identity()
        else:
            head = nn.Linear(self.embedding_dim, max(num_classes, 1))
        encoder = getattr(net, "vjepa2", net)
        if hasattr(encoder, "predictor"):
            encoder.predictor = None
        self.net = net
        self.head = head if num_classes else None
        self.views = {"clip": view}
        self.num_classes = num_classes
        self.watch(net, taps)

    def forward_views(self, *inputs: Tensor) -> dict[str, Tensor]:
        if self.classifies:
            embedding = self.net(*inputs).logits
        else:
            embedding = self.net(*inputs, skip_predictor=True).last_hidden_state.mean(1)
        outputs = {"embedding": embedding} | self.watched()
        return outputs if self.head is None else {"logits": self.head(embedding), **outputs}

    def new_classifier(self, num_classes: int) -> None:
        device = next(self.net.parameters()).device
        self.head = nn.Linear(self.embedding_dim, num_classes, device=device) if num_classes else None

    def published_names(self) -> dict[str, str]:
        own = self.state_dict()
        names = {name.removeprefix("net."): name for name in own if name.startswith("net.")}
        names |= {f"classifier{name.removeprefix('head')}": name for name in own if name.startswith("head.")}
        return names | {name: name for name in own}

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Leaves the predictor of V-JEPA 2 out."""
        return {name: tensor for name, tensor in state.items() if not re.match(r"(vjepa2\.)?predictor\.", name)}

    def classifier_names(self) -> set[str]:
        return {name for name in self.state_dict() if name.startswith("head.")}


def build_hf(
    name: str, num_classes: int, weights: str | None, taps: Sequence[str], view: dict[str, Any], options: dict[str, Any]
) -> Encoder:
    """Builds a network from its config, or from a repository: a local folder, or a name on the Hub.

    A repository brings its config, which `options` change, and its normalisation; `weights_report` is then set. Only
    safetensors are read. `config` of the result holds the fields that differ from their defaults.
    """
    if name not in FAMILIES:
        raise unknown_name(name, list(FAMILIES))
    family = FAMILIES[name]
    model_class, config_class, defaults = _classes(name, family)
    if unknown := sorted(set(options) - set(defaults)):
        close = difflib.get_close_matches(unknown[0], defaults, 4, 0.5) or sorted(defaults)
        raise ValueError(f"{name}: unknown option {unknown[0]!r}; close names: {', '.join(close)}")
    source = family.repo if weights == "default" else weights if weights and _is_repo(weights) else None
    try:
        given = _repo_config(source, config_class) if source else {"num_labels": max(num_classes, 1)}
        fields = {**given, **options}
        own = {"size": fields.get(family.size), "num_frames": fields.get(family.num_frames)}
        own |= _repo_normalisation(source) if source else {}
        seen = make_view(make_view(family.view, {k: v for k, v in own.items() if v is not None}), view)
        config = config_class.from_dict({**fields, **_follow(family, seen)})
        encoder: HfVideo
        if source:
            encoder = _load(source, model_class, config, seen, num_classes, taps)
        else:
            encoder = HfVideo(model_class(config), seen, num_classes=num_classes, taps=taps)
    except Exception as error:  # transformers has no class of its own for what is wrong with a config or a repository
        where = f"{name}: {source}" if source else name
        raise ValueError(f"{where}: {one_line(error)[:300]}") from None
    values = encoder.net.config.to_dict()
    follows = (family.size, family.num_frames)
    encoder.config = {k: values[k] for k in defaults if k not in follows and values[k] != defaults[k]}
    return encoder


def _classes(name: str, family: Family) -> tuple[Any, Any, dict[str, Any]]:
    """The classes of model and config, and the fields of the config, with their defaults, that are the model's own."""
    try:
        transformers = import_module("transformers")
        model, config = getattr(transformers, family.model), getattr(transformers, family.config)
    except (ImportError, AttributeError):
        raise ValueError(f"{name}: needs transformers 4.53 or newer: pip install 'stillmotion[hf]'") from None
    shared = transformers.PretrainedConfig().to_dict()
    return model, config, {k: v for k, v in config().to_dict().items() if k not in shared}


def _follow(family: Family, view: View) -> dict[str, Any]:
    """Fields of the config that the view decides."""
    height, width = view.size
    if family.size == "crop_size" and height != width:
        raise ValueError(f"needs square frames; the view gives {height}x{width}")
    num_frames = view.num_frames - (view.kind == "difference")
    return {family.size: height if height == width else [height, width], family.num_frames: num_frames}


def _is_repo(weights: str) -> bool:
    """Whether `weights` names a folder or a repository of the Hub, and not a file."""
    path = Path(weights)
    return path.is_dir() or (
        re.fullmatch(r"[\w.-]+/[\w.-]+", weights) is not None and not path.exists() and path.suffix not in FILES
    )


def _repo_config(source: str, config_class: Any) -> dict[str, Any]:
    given: dict[str, Any] = config_class.get_config_dict(source)[0]
    if given.get("model_type") != config_class.model_type:
        raise ValueError(f"holds model_type {given.get('model_type')!r}, here {config_class.model_type!r}")
    return given


def _repo_normalisation(source: str) -> dict[str, Any]:
    """Mean and std as a repository's preprocessing states them; nothing if it states none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    for file in ("preprocessor_config.json", "video_preprocessor_config.json"):
        path = Path(source) / file
        if not Path(source).is_dir():
            try:
                path = Path(hf_hub_download(source, file))
            except EntryNotFoundError:
                continue
        if path.is_file():
            stated = json.loads(path.read_text(encoding="utf-8"))
            return {"mean": stated.get("image_mean"), "std": stated.get("image_std")}
    return {}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own table of what it loaded: `weights_report` holds that."""
    theirs = import_module("transformers.utils.logging")
    level, progress = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if progress:
            theirs.enable_progress_bar()


def _load(source: str, model_class: Any, config: Any, view: View, num_classes: int, taps: Sequence[str]) -> HfVideo:
    with _quiet():
        net, info = model_class.from_pretrained(
            source, config=config, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True
        )
    for key, found, wanted in sorted(info["mismatched_keys"]):
        raise ValueError(f"{key} has shape {list(found)}, here {list(wanted)}; check options and view")
    theirs = int(config.num_labels)
    encoder = HfVideo(net.float(), view, num_classes=theirs, taps=taps)
    names = encoder.published_names()
    missing = {names[key] for key in info["missing_keys"] if key in names}
    if not encoder.classifies:
        missing |= encoder.classifier_names()
    left_out = {key: "not in this network" for key in sorted(info["unexpected_keys"])}
    reason = ""
    if theirs != num_classes:
        if not encoder.classifier_names() <= missing:
            reason = f"classifier of {theirs} classes, here {num_classes}"
            left_out |= {"classifier.weight": reason, "classifier.bias": reason}
        encoder.reset_classifier(num_classes)
    own = tuple(encoder.state_dict())
    kept = set(own) - missing - (encoder.classifier_names() if theirs != num_classes else set())
    encoder.weights_report = WeightsReport(
        source=source,
        copied=tuple(name for name in own if name in kept),
        left_out=left_out,
        missing=tuple(name for name in own if name in missing),
        classifier=reason,
    )
    if encoder.weights_report.left_out or encoder.weights_report.missing:
        log.warning("%s", encoder.weights_report.summary())
    return encoder
