"""Two networks as one: each fusion against its formula written out, and the views that they share."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from stillmotion.models import create_model
from stillmotion.models.fusion import ChannelAttention, FusedStreams, Gate, join_views
from stillmotion.view import View

RGB = {"name": "resnet3d_10", "width": 4, "view": {"size": 32, "num_frames": 4}}
FLOW = {"name": "resnet3d_10", "width": 4, "view": {"kind": "flow", "size": 32, "num_frames": 4}}


def fused(*, motion: dict[str, Any] = FLOW, **options: Any) -> FusedStreams:
    torch.manual_seed(0)
    net = create_model("fused", num_classes=3, appearance=RGB, motion=motion, **options).eval()
    assert isinstance(net, FusedStreams)
    return net


def clips() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (2, 4, c, 32, 32), generator=generator, dtype=torch.uint8) for c in (3, 2)]


def test_attention_weighs_every_channel_against_the_other_stream() -> None:
    """METHODS 4.5, unit by unit."""
    torch.manual_seed(0)
    fusion, a, m = ChannelAttention(3, 5), torch.randn(2, 3), torch.randn(2, 3)
    first, _, last = fusion.weigh
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    for n in range(2):
        z = [*a[n].tolist(), *m[n].tolist()]
        hidden = [max(0.0, sum(w * x for w, x in zip(row, z, strict=True)) + b)
                  for row, b in zip(first.weight.tolist(), first.bias.tolist(), strict=True)]  # fmt: skip
        score = [sum(w * x for w, x in zip(row, hidden, strict=True)) + b
                 for row, b in zip(last.weight.tolist(), last.bias.tolist(), strict=True)]  # fmt: skip
        for d in range(3):
            share = math.exp(score[d]) / (math.exp(score[d]) + math.exp(score[3 + d]))
            slow = share * a[n, d].item() + (1 - share) * m[n, d].item()
            assert fusion(a, m)[n, d].item() == pytest.approx(slow, abs=1e-5)


def test_the_gate_is_one_number_a_sample() -> None:
    torch.manual_seed(0)
    gate, a, m = Gate(4), torch.randn(2, 4), torch.randn(2, 4)
    for n in range(2):
        g = 1 / (1 + math.exp(-(gate.weigh.weight[0] @ torch.cat([a[n], m[n]]) + gate.weigh.bias[0]).item()))
        torch.testing.assert_close(gate(a, m)[n], g * a[n] + (1 - g) * m[n])


@pytest.mark.parametrize("fusion", ["mean", "sum", "concat", "gate", "attention"])
def test_logits_come_from_both_streams_as_the_fusion_says(fusion: str) -> None:
    net, (rgb, flow) = fused(fusion=fusion), clips()
    assert list(net.views) == ["appearance", "motion"]
    with torch.no_grad():
        out = net(rgb, flow)
        a, m = net.streams["appearance"](rgb), net.streams["motion"](flow)
        if fusion == "mean":
            wanted = (a["logits"] + m["logits"]) / 2
        else:
            assert net.classifier is not None
            f, g = a["embedding"], m["embedding"]
            joined = {"sum": f + g, "concat": torch.cat([f, g], 1)}.get(fusion)
            wanted = net.classifier(net.join(f, g) if joined is None and net.join is not None else joined)
    torch.testing.assert_close(out["logits"], wanted)
    torch.testing.assert_close(out["logits_appearance"], a["logits"])
    torch.testing.assert_close(out["logits_motion"], m["logits"])
    assert out["embedding"].shape[1] == net.embedding_dim


def test_the_mean_can_be_weighted() -> None:
    net, (rgb, flow) = fused(fusion="mean", motion_weight=0.25), clips()
    with torch.no_grad():
        out = net(rgb, flow)
    torch.testing.assert_close(out["logits"], 0.75 * out["logits_appearance"] + 0.25 * out["logits_motion"])


def test_streams_that_see_the_same_are_shown_it_once() -> None:
    net, (rgb, _) = fused(motion=RGB, fusion="concat"), clips()
    assert list(net.views) == ["appearance"]
    assert net(rgb)["logits"].shape == (2, 3)
    views = {"x": View(size=8), "y": View(size=16)}
    inputs, joint = join_views({"appearance": views, "motion": {"frames": View(size=16)}})
    assert inputs == {"appearance": ["appearance_x", "appearance_y"], "motion": ["appearance_y"]}
    assert [view.size for view in joint.values()] == [(8, 8), (16, 16)]


def test_a_fused_pair_can_be_a_stream() -> None:
    """MARS + RGB + flow."""
    pair = {"name": "fused", "appearance": RGB, "motion": RGB, "fusion": "mean"}
    net = create_model("fused", num_classes=3, appearance=pair, motion=FLOW, fusion="mean", motion_weight=1 / 3).eval()
    with torch.no_grad():
        out = net(*clips())
    assert list(net.views) == ["appearance", "motion"]
    assert out["logits"].shape == (2, 3)


def test_settings_rebuild_it() -> None:
    net = fused(fusion="attention", hidden_dim=7)
    again = create_model(**net.config)
    again.load_state_dict(net.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(*clips())["logits"], net(*clips())["logits"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": "product"}, "fusion='product': choose one of mean, sum, concat, gate, attention"),
        ({"motion": {**FLOW, "width": 8}, "fusion": "sum"}, "are 32 and 64 wide"),
        ({"motion": {**FLOW, "num_classes": 5}, "fusion": "mean"}, "these have 3 and 5"),
        ({"motion": {**FLOW, "view": {**FLOW["view"], "num_moments": 2}}}, "the streams see 1 and 2 moments"),
        ({"motion": {}}, "fused needs motion"),
        ({"fusion": "mean", "motion_weight": 2.0}, "motion_weight=2.0"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")) as error:
        fused(**options)
    assert "\n" not in str(error.value)
