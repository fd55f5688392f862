"""Networks that were built for colours take flow, and keep what they know."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from stillmotion.models import create_model
from stillmotion.models.cost import count_cost

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
