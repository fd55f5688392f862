"""Networks of timm and torchvision as `Encoder`s.

Both libraries are imported when a network is built, not before: they cost seconds.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from stillmotion.models.encoder import Encoder
from stillmotion.view import View


class ImageEncoder(Encoder):
    """A 2D network: sees the frames of a clip one by one; all its outputs are means over the frames.

    Of a flow clip it sees all fields at once, as 2T channels (u, v, u, v, ...).

    Subclasses write `forward_net`.

    Attributes:
        stack: Whether it sees other clips so too: T frames as 3T channels, their differences as 3(T - 1).
    """

    stack: bool = False

    def forward_net(self, x: Tensor) -> dict[str, Tensor]:
        """Runs images (B, C, H, W) through the network; `embedding` (B, D) and, with classes, `logits` (B, K)."""
        raise NotImplementedError

    def forward_views(self, *inputs: Tensor) -> dict[str, Tensor]:
        (frames,) = inputs
        (view,) = self.views.values()
        if self.stack or view.kind == "flow":
            frames = frames.flatten(1, 2)[:, None]
        num_frames = frames.shape[1]
        outputs = self.forward_net(frames.flatten(0, 1)) | self.watched()
        if num_frames == 1:
            return outputs
        return {k: v.reshape(-1, num_frames, *v.shape[1:]).mean(1) for k, v in outputs.items()}


class VideoEncoder(Encoder):
    """A 3D network: sees a clip as a whole. Subclasses write `forward_net`."""

    def forward_net(self, x: Tensor) -> dict[str, Tensor]:
        """Runs clips (B, C, T, H, W) through the network; `embedding` (B, D) and, with classes, `logits` (B, K)."""
        raise NotImplementedError

    def forward_views(self, *inputs: Tensor) -> dict[str, Tensor]:
        (clip,) = inputs
        return self.forward_net(clip.transpose(1, 2)) | self.watched()


def take_input(encoder: Encoder, view: View, *, stack: bool = False) -> None:
    """Gives a network that was built for colours the input channels of its view; others stay as they are.

    Args:
        encoder: Changed in place.
        view: Its own.
        stack: Whether a 2D network is to see all frames at once; of flow it always does.

    Raises:
        ValueError: Its first convolution does not take colours, or `stack` is for another network.
    """
    if not isinstance(stack, bool):
        raise ValueError(f"stack={stack!r}: give true or false")
    is_image = isinstance(encoder, ImageEncoder)
    if stack and not is_image:
        raise ValueError("stack is for 2D networks, which see frames one by one; this one sees clips: leave it out")
    if isinstance(encoder, ImageEncoder):
        encoder.stack = stack
    if not (stack or view.kind == "flow"):
        return
    stem = next(m for m in encoder.modules() if isinstance(m, nn.Conv2d | nn.Conv3d))
    fields = view.num_frames - (view.kind == "difference") if is_image else 1
    if stem.in_channels != view.channels * fields:
        if stem.in_channels != 3:
            what = "flow" if view.kind == "flow" else "a stack"
            raise ValueError(f"its first convolution takes {stem.in_channels} channels, not three colours: it cannot "
                             f"take {what}; choose another network")  # fmt: skip
        stem.weight = nn.Parameter(spread_colours(stem.weight.detach(), view.channels * fields, view))
        stem.in_channels = view.channels * fields


def spread_colours(weight: Tensor, channels: int, view: View) -> Tensor:
    """A first convolution for colours as one for what a view stacks, (D, 3, ...) -> (D, channels, ...).

    Pictures keep their colours: each frame gets the kernel of a picture divided by their number, so that a still clip
    gives what its picture gave. Motion has no colours, and is small: each channel of flow or differences gets the
    mean over the three, undivided (Wang et al., arXiv:1507.02159 and, for differences, arXiv:1608.00859).
    """
    if view.kind == "rgb":
        frames = channels // 3
        return weight.repeat(1, frames, *[1] * (weight.ndim - 2)) / frames
    shape = (weight.shape[0], channels, *weight.shape[2:])
    return weight.mean(1, keepdim=True).expand(shape).clone()


class TimmEncoder(ImageEncoder):
    """A network of timm. `embedding` is what the last layer sees: `forward_head(pre_logits=True)`.

    Args:
        net: From `timm.create_model`.
        view: What it sees.
        taps: Layers of `net` to give as well.
    """

    def __init__(self, net: Any, view: View, *, taps: Sequence[str] = ()) -> None:
        super().__init__()
        self.net = net
        self.views = {"frames": view}
        # They differ where a layer stands between pooling and classifier: VGG, MobileNetV3.
        self.embedding_dim = int(getattr(net, "head_hidden_size", None) or net.num_features)
        self.num_classes = int(net.num_classes)
        self.watch(net, taps)

    def forward_net(self, x: Tensor) -> dict[str, Tensor]:
        features = self.net.forward_features(x)
        embedding = self.net.forward_head(features, pre_logits=True)
        if not self.num_classes:
            return {"embedding": embedding}
        classifier = self.net.get_classifier()
        if type(classifier) is nn.Linear:
            return {"logits": classifier(embedding), "embedding": embedding}
        return {"logits": self.net.forward_head(features), "embedding": embedding}

    def new_classifier(self, num_classes: int) -> None:
        self.net.reset_classifier(num_classes)

    def published_names(self) -> dict[str, str]:
        own = self.state_dict()
        return {name.removeprefix("net."): name for name in own} | {name: name for name in own}

    def classifier_names(self) -> set[str]:
        classifier = self.net.pretrained_cfg.get("classifier") or ()
        prefixes = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        return {name for name in self.state_dict() if name.removeprefix("net.").rpartition(".")[0] in prefixes}


class TorchvisionEncoder(Encoder):
    """What image and video networks of torchvision share: the last layer is taken out and applied here.

    So `embedding` is what it sees, (B, D), and no class decides which layer that is.

    Args:
        net: From `torchvision.models.get_model`; its last linear layer (or 1x1 convolution before a mean) classifies.
        view: What it sees.
        num_classes: 0 drops the last layer.
        taps: Layers of `net` to give as well.
    """

    view_name: str

    def __init__(self, net: nn.Module, view: View, *, num_classes: int, taps: Sequence[str] = ()) -> None:
        super().__init__()
        layers = {name: m for name, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Conv3d)}
        self.classifier, head = list(layers.items())[-1]
        parent, _, child = self.classifier.rpartition(".")
        setattr(net.get_submodule(parent), child, nn.Identity())
        self.net = net
        self.head: nn.Module | None = head if num_classes else None
        self.head_shape = (1,) * (head.weight.ndim - 2)
        self.views = {self.view_name: view}
        self.embedding_dim = head.weight.shape[1]
        self.num_classes = num_classes
        self.watch(net, taps)

    def forward_net(self, x: Tensor) -> dict[str, Tensor]:
        """Runs (B, C, H, W) or (B, C, T, H, W)."""
        embedding = self.net(x)
        if self.head is None:
            return {"embedding": embedding}
        logits = self.head(embedding.reshape(-1, self.embedding_dim, *self.head_shape)).flatten(1)
        return {"logits": logits, "embedding": embedding}

    def new_classifier(self, num_classes: int) -> None:
        like = next(self.net.parameters())
        self.head_shape = ()
        self.head = nn.Linear(self.embedding_dim, num_classes, device=like.device) if num_classes else None

    def published_names(self) -> dict[str, str]:
        own = self.state_dict()
        names = {name.removeprefix("net."): name for name in own if name.startswith("net.")}
        names |= {self.classifier + name.removeprefix("head"): name for name in own if name.startswith("head.")}
        return names | {name: name for name in own}

    def classifier_names(self) -> set[str]:
        return {name for name in self.state_dict() if name.startswith("head.")}


class TorchvisionImage(TorchvisionEncoder, ImageEncoder):
    """An image network of torchvision."""

    view_name = "frames"


class TorchvisionVideo(TorchvisionEncoder, VideoEncoder):
    """A video network of torchvision."""

    view_name = "clip"
