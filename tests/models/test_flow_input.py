"""Networks that were built for colours take flow and stacks of frames, and keep what they know."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from stillmotion.models import create_model
from stillmotion.models.adapters import TorchvisionImage, take_input
from stillmotion.models.cost import count_cost
from stillmotion.models.student import VggPool5
from stillmotion.view import View

FLOW: dict[str, Any] = {"kind": "flow", "num_frames": 4, "size": 32}
CLIPS = [
    ("resnet3d_10", {"width": 4}, 2),
    ("p3d_63", {"width": 4}, 2),
    ("pseudo3d/mobilenetv3_small_050", {}, 2),
    ("timm/mobilenetv3_small_050", {}, 8),
    ("torchvision/resnet18", {}, 8),
]


@pytest.mark.parametrize(("name", "options", "channels"), CLIPS, ids=[c[0] for c in CLIPS])
def test_networks_take_flow(name: str, options: dict[str, Any], channels: int) -> None:
    torch.manual_seed(0)
    net = create_model(name, num_classes=3, view=FLOW, **options)
    stem = next(m for m in net.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Conv3d))
    assert (stem.in_channels, stem.weight.shape[1]) == (channels, channels)
    clip = torch.randint(0, 256, (2, 4, 2, 32, 32), dtype=torch.uint8)
    out = net(clip)
    assert out["logits"].shape == (2, 3)
    out["logits"].sum().backward()
    assert stem.weight.grad is not None
    assert count_cost(net).gmacs > 0.0
    again = create_model(**net.config)
    again.load_state_dict(net.state_dict())


@pytest.mark.parametrize(("name", "options", "channels"), CLIPS, ids=[c[0] for c in CLIPS])
def test_weights_of_colours_become_their_mean(
    name: str, options: dict[str, Any], channels: int, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    colours = create_model(name, num_classes=3, view={**FLOW, "kind": "rgb"}, **options)
    save_file({k: v.contiguous() for k, v in colours.state_dict().items()}, tmp_path / "rgb.safetensors")
    net = create_model(name, num_classes=3, view=FLOW, weights=str(tmp_path / "rgb.safetensors"), **options)
    assert net.weights_report is not None
    assert not net.weights_report.left_out
    assert not net.weights_report.missing
    mine, theirs = (
        next(m for m in n.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Conv3d)).weight for n in (net, colours)
    )
    for channel in range(channels):
        torch.testing.assert_close(mine[:, channel], theirs.mean(1))
    stem = next(k for k, v in net.state_dict().items() if v is mine or (v.shape == mine.shape and torch.equal(v, mine)))
    kept = {k: v for k, v in net.state_dict().items() if k != stem}
    assert all(torch.equal(v, colours.state_dict()[k]) for k, v in kept.items())


def test_networks_that_cannot_take_flow_say_so() -> None:
    with pytest.raises(ValueError, match="its first convolution takes 48 channels, not three colours"):
        create_model("timm/tresnet_m", num_classes=2, view=FLOW)
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="hf/videomae: sees colours only; give a flow view to another network"):
        create_model("hf/videomae", num_classes=2, view=FLOW, hidden_size=16, num_hidden_layers=1,
                     num_attention_heads=2)  # fmt: skip


NAMES = ["timm/test_resnet", "torchvision/resnet18"]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_stack_of_equal_frames_gives_what_the_picture_gave(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    one = create_model(name, num_classes=3, view={"size": 64}).eval()
    save_file({k: v.contiguous() for k, v in one.state_dict().items()}, tmp_path / "one.safetensors")
    five = create_model(name, num_classes=3, view={"size": 64, "num_frames": 5}, stack=True,
                        weights=str(tmp_path / "one.safetensors")).eval()  # fmt: skip
    frame = torch.randint(0, 256, (2, 1, 3, 64, 64), dtype=torch.uint8)
    still = five(frame.expand(-1, 5, -1, -1, -1))["logits"]
    torch.testing.assert_close(still, one(frame)["logits"], atol=1e-5, rtol=1e-4)
    order = torch.randint(0, 256, (2, 5, 3, 64, 64), dtype=torch.uint8)
    stem = next(m for m in five.modules() if isinstance(m, torch.nn.Conv2d))
    stem.weight[:, :3] *= 2.0  # the first frame counts double: now it sees their order, which no mean over frames does
    there, back = five(order)["logits"], five(order.flip(1))["logits"]
    assert (there - back).abs().max() > 0.01 * there.abs().max()
    again = create_model(**five.config).eval()
    again.load_state_dict(five.state_dict())
    assert torch.equal(again(order)["logits"], five(order)["logits"])


def test_stacked_differences_start_from_the_mean_of_the_colours() -> None:
    torch.manual_seed(0)
    before = create_model("timm/test_resnet", num_classes=3)
    torch.manual_seed(0)
    view = {"size": 64, "kind": "difference", "num_frames": 4}
    net = create_model("timm/test_resnet", num_classes=3, view=view, stack=True)
    mine, theirs = (next(m for m in n.modules() if isinstance(m, torch.nn.Conv2d)).weight for n in (net, before))
    assert mine.shape[1] == 9
    for channel in range(9):
        torch.testing.assert_close(mine[:, channel], theirs.mean(1))
    out = net(torch.randint(0, 256, (2, 4, 3, 64, 64), dtype=torch.uint8))
    assert out["logits"].shape == (2, 3)


def test_the_convolutional_part_of_a_vgg_can_see_a_stack() -> None:
    net = torchvision.models.VGG(torchvision.models.vgg.make_layers([4, "M", 512, "M"]), num_classes=2, init_weights=0)
    net.classifier = torch.nn.Sequential(torch.nn.Linear(512 * 49, 2))
    vgg = TorchvisionImage(net, View(size=(32, 32), num_frames=2), num_classes=2)
    take_input(vgg, vgg.views["frames"], stack=True)
    part = VggPool5(vgg)
    assert part(torch.zeros(3, 2, 3, 32, 32, dtype=torch.uint8))["embedding"].shape == (3, 512 * 49)


def test_what_sees_clips_is_not_stacked() -> None:
    for name, options in (("resnet3d_10", {"width": 4}), ("pseudo3d/mobilenetv3_small_050", {})):
        with pytest.raises(ValueError, match="stack is for 2D networks, which see frames one by one; this one sees"):
            create_model(name, num_classes=2, view={"size": 32, "num_frames": 4}, stack=True, **options)
    with pytest.raises(ValueError, match="stack='yes': give true or false"):
        create_model("timm/test_resnet", num_classes=2, stack="yes")
    with pytest.raises(ValueError, match="its first convolution takes 48 channels, not three colours: it cannot take a "
                                         "stack"):  # fmt: skip
        create_model("timm/tresnet_m", num_classes=2, view={"num_frames": 4}, stack=True)
