"""Networks of several moments against slow loops: what joins the vectors, the shift, crops, and what is kept."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillmotion.config import ModelConfig
from stillmotion.export import export
from stillmotion.models.cost import count_cost
from stillmotion.models.encoder import Encoder
from stillmotion.models.factory import create_model, load_model
from stillmotion.models.pretrained import load_pretrained, save_pretrained
from stillmotion.models.sequence import FrameSequence, ordered_subsets, residual_branches
from stillmotion.models.student import HallucinatingStudent
from stillmotion.models.temporal import shift_moments
from stillmotion.networks import load_network
from stillmotion.tasks import Classification

TASK = Classification(("a", "b", "c"))
PLAIN = {"name": "timm/test_resnet"}
BRANCH = {"name": "hallucinating", "backbone": PLAIN, "hallucinated_dim": 8}


def make(backbone: dict[str, Any] = PLAIN, view: dict[str, Any] | None = None, **options: Any) -> FrameSequence:
    torch.manual_seed(0)
    view = {"size": 32, "num_moments": 6, **(view or {})}
    student = create_model("sequence", num_classes=3, backbone=backbone, view=view, **options)
    assert isinstance(student, FrameSequence)
    for name, parameter in student.named_parameters():
        if name.startswith("aggregate_moments"):
            nn.init.normal_(parameter, std=0.5)  # attention starts as the mean
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)  # timm's residual branches start with zeros
    return student.eval()


def frames(size: int = 2, moments: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (size, moments, 1, 3, 32, 32), generator=generator, dtype=torch.uint8)


@torch.no_grad()
def run(encoder: Encoder, x: Tensor) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = encoder.from_batch({"student/frames": x}, "student")
    return outputs


def joined(student: FrameSequence, vectors: Tensor) -> Tensor:
    """One sequence (N, D), step by step, in double precision."""
    state = {k.partition(".")[2]: v.double() for k, v in student.state_dict().items() if k.startswith("aggregate")}
    if student.settings["aggregate"] == "mean":
        return vectors.sum(0) / len(vectors)
    if student.settings["aggregate"] == "attention":
        scores = [
            float((state["hidden.weight"] @ v + state["hidden.bias"]).tanh() @ state["weigh.weight"][0])
            for v in vectors
        ]
        total = sum(torch.tensor(s).double().exp() for s in scores)
        parts = [torch.tensor(s).double().exp() / total * v for s, v in zip(scores, vectors, strict=True)]
        return torch.stack(parts).sum(0)
    if student.settings["aggregate"] == "convolution":
        strongest = []
        for number, width in enumerate((2, 3, 4)):
            weight, bias = state[f"filters.{number}.weight"], state[f"filters.{number}.bias"]
            zeros = [torch.zeros_like(vectors[0])] * (width - 1)
            row = [*zeros, *vectors, *zeros]
            found = [
                bias + torch.stack([weight[:, :, k] @ row[start + k] for k in range(width)]).sum(0)
                for start in range(len(row) - width + 1)
            ]
            strongest.append(torch.stack(found).clamp(min=0).max(0).values)
        return torch.cat(strongest)
    if student.settings["aggregate"] == "relation":
        sizes = []
        for size in (2, 3):
            weight, bias = state[f"layers.{size - 2}.weight"], state[f"layers.{size - 2}.bias"]
            subsets = ordered_subsets(len(vectors), size)
            assert len({*subsets}) == 3
            assert all(list(s) == sorted({*s}) and len(s) == size for s in subsets)
            told = [weight @ torch.cat([vectors[k].clamp(min=0) for k in s]) + bias for s in subsets]
            sizes.append(torch.stack(told).clamp(min=0).sum(0))
        return torch.cat(sizes)
    hidden = cell = torch.zeros(student.settings["hidden_dim"]).double()
    for v in vectors:
        gates = state["lstm.weight_ih_l0"] @ v + state["lstm.bias_ih_l0"]
        gates = gates + state["lstm.weight_hh_l0"] @ hidden + state["lstm.bias_hh_l0"]
        i, f, g, o = gates.chunk(4)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
    return hidden


@pytest.mark.parametrize("aggregate", ["mean", "lstm", "attention", "convolution", "relation"])
@pytest.mark.parametrize("backbone", [PLAIN, BRANCH, {**BRANCH, "fuse": "none"}], ids=["plain", "concat", "none"])
def test_logits_are_those_of_a_loop(aggregate: str, backbone: dict[str, Any]) -> None:
    student, x = make(backbone, aggregate=aggregate, hidden_dim=7, relation_size=3), frames()
    outputs = run(student, x)
    classifier = student.get_submodule("classifier")
    weight, bias = classifier.weight.double(), classifier.bias.double()
    for number in range(2):
        vectors = []
        for moment in range(6):
            with torch.no_grad():
                one = student.backbone(x[number, moment][None])
            torch.testing.assert_close(outputs["embedding"][number, moment], one["embedding"][0], atol=1e-5, rtol=1e-5)
            fused = (
                one["embedding"] if backbone is not BRANCH else torch.cat([one["embedding"], one["hallucinated"]], 1)
            )
            vectors.append(fused[0].double())
        logits = weight @ joined(student, torch.stack(vectors)) + bias
        torch.testing.assert_close(outputs["logits"][number].double(), logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(outputs["moment_logits"], outputs["logits"][:, None].expand(2, 6, 3))


def test_mean_of_one_moment_is_the_student_itself() -> None:
    torch.manual_seed(1)
    plain = create_model("hallucinating", num_classes=3, backbone=PLAIN, hallucinated_dim=8, view={"size": 32}).eval()
    student = make(BRANCH)
    student.backbone.load_state_dict({k: v for k, v in plain.state_dict().items() if "classifier" not in k})
    student.get_submodule("classifier").load_state_dict(plain.get_submodule("classifier").state_dict())
    x = frames(3, 1)
    expected, given = run(plain, x), run(student, x)
    assert expected.keys() == given.keys()
    for name in expected:
        torch.testing.assert_close(given[name], expected[name])
    several = frames(3, 4)  # one linear layer: the mean of vectors gives the mean of logits
    torch.testing.assert_close(run(student, several)["logits"], run(plain, several)["logits"])


@pytest.mark.parametrize(
    ("options", "ordered"),
    [
        ({"aggregate": "mean"}, False),
        ({"aggregate": "attention"}, False),
        ({"aggregate": "lstm"}, True),
        ({"aggregate": "convolution"}, True),
        ({"aggregate": "relation"}, True),
        ({"aggregate": "mean", "shift": "both"}, True),
        ({"aggregate": "attention", "shift": "past"}, True),
    ],
)
def test_who_knows_the_order(options: dict[str, Any], ordered: bool) -> None:
    student, x = make(**options), frames()
    logits, others = run(student, x)["logits"], run(student, x[:, [3, 1, 5, 0, 4, 2]])["logits"]
    assert torch.allclose(logits, others, rtol=1e-4, atol=1e-5) == (not ordered)


def shifted_by_hand(x: Tensor, moments: int, channels: int, shift: str) -> Tensor:
    out = x.clone()
    for row in range(len(x)):
        sample, moment = divmod(row, moments)
        for channel in range(x.shape[1]):
            step = 0
            if shift == "both" and channel < 2 * channels:
                step = 1 if channel < channels else -1
            if shift == "past" and channel < channels:
                step = -1
            if step:
                other = moment + step
                out[row, channel] = x[sample * moments + other, channel] if 0 <= other < moments else 0.0
    return out


@pytest.mark.parametrize("shift", ["both", "past", "none"])
@pytest.mark.parametrize("moments", [1, 2, 5])
def test_shift_is_that_of_a_loop(shift: Any, moments: int) -> None:
    x = torch.randn(2 * moments, 16, 3, 3)
    expected = shifted_by_hand(x, moments, 2, shift)
    assert torch.equal(shift_moments(x, moments, 1, 2, shift), expected)
    crops = torch.stack([x, -x], 1).flatten(0, 1)  # two crops of each moment
    both = torch.stack([expected, -expected], 1).flatten(0, 1)
    assert torch.equal(shift_moments(crops, moments, 2, 2, shift), both)


def test_network_with_shift_is_that_of_a_loop() -> None:
    """Every residual branch is given shifted maps by hand, and the ways past them the maps as they are."""
    student, x = make(shift="both", aggregate="mean"), frames()
    plain = make(shift="none")
    plain.load_state_dict(student.state_dict())
    assert len(list(residual_branches(plain.backbone))) == 4
    for layer in residual_branches(plain.backbone):
        layer.register_forward_pre_hook(lambda _, args: (shifted_by_hand(args[0], 6, args[0].shape[1] // 8, "both"),))
    torch.testing.assert_close(run(student, x)["logits"], run(plain, x)["logits"])


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/mobilenetv2_035", "torchvision/mobilenet_v2"])
def test_no_shift_is_the_plain_network(name: str) -> None:
    student = make({"name": name}, shift="both", shift_share=0.0)
    plain, x = make({"name": name}), frames()
    plain.load_state_dict(student.state_dict())
    assert torch.equal(run(student, x)["logits"], run(plain, x)["logits"])
    moved = make({"name": name}, shift="both")
    moved.load_state_dict(student.state_dict())
    before, after = run(plain, x)["embedding"], run(moved, x)["embedding"]
    assert (after - before).abs().max() > 1e-3 * before.abs().max()


def test_past_moments_do_not_know_what_follows() -> None:
    x = frames()
    changed = x.clone()
    changed[:, 3:] = 255 - changed[:, 3:]
    for shift, blind in (("past", True), ("both", False)):
        student = make(shift=shift)
        difference = (run(student, x)["embedding"] - run(student, changed)["embedding"]).abs().amax((0, 2))
        assert (difference[3:] > 1e-3).all()
        assert (difference[:3] == 0).all() if blind else difference[2] > 1e-3


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("timm/resnet18", 8),
        ("torchvision/resnet50", 16),
        ("timm/mobilenetv2_100", 10),
        ("torchvision/mobilenet_v2", 10),
        ("timm/mobilenetv3_small_100", 6),
        ("torchvision/mobilenet_v3_small", 6),
        ("torchvision/efficientnet_b0", 9),
        ("timm/efficientnet_b0", 9),
    ],
)
def test_branches_begin_with_what_their_block_sees(name: str, count: int) -> None:
    """17 blocks of MobileNetV2, ten of them with a way past; 16 of EfficientNet-B0, nine."""
    with torch.device("meta"):
        network = create_model(name, num_classes=0).eval()
        given: dict[nn.Module, Tensor] = {}
        for module in network.modules():
            module.register_forward_pre_hook(lambda module, args: given.update({module: args[0]}))
        layers = list(residual_branches(network))
        network.forward_views(torch.zeros(1, 1, 3, 64, 64))
    assert len(layers) == count
    blocks = [
        m for m in network.modules() if type(m).__name__ in ("BasicBlock", "Bottleneck", "InvertedResidual", "MBConv")
    ]
    assert len({id(b) for b in blocks for m in b.modules() if m in layers and given[m] is given[b]}) == count


def test_crops_are_sequences_of_their_own() -> None:
    student = make(aggregate="lstm", shift="both", view={"resize": 40, "num_crops": 3, "num_moments": 4})
    x = frames(2, 12)  # moment by moment, crop by crop
    outputs = run(student, x)
    single = copy.deepcopy(student)
    single.views = {"frames": make(view={"num_moments": 4}).views["frames"]}
    each = [run(single, x[:, crop::3]) for crop in range(3)]
    torch.testing.assert_close(outputs["logits"], torch.stack([e["logits"] for e in each]).mean(0))
    for crop in range(3):
        torch.testing.assert_close(outputs["embedding"][:, crop::3], each[crop]["embedding"])
        torch.testing.assert_close(outputs["moment_logits"][:, crop::3], each[crop]["moment_logits"])


def test_vgg_is_joined_at_its_hidden_layer() -> None:
    with torch.device("meta"):
        vgg = create_model("torchvision/vgg11_bn", num_classes=2)
        student = FrameSequence(HallucinatingStudent(vgg, num_classes=2, hallucinated_dim=8), num_classes=3)
        assert isinstance(student.classifier, nn.Linear)
        assert student.classifier.in_features == 4096
        outputs = student(torch.zeros(1, 2, 1, 3, 64, 64))
    assert outputs["hallucinated"].shape == (1, 2, 8)


def test_another_number_of_moments_and_what_it_costs() -> None:
    for options in ({"aggregate": "lstm"}, {"aggregate": "attention"}, {"aggregate": "relation"}, {"shift": "both"}):
        student = make(**options)
        assert run(student, frames(2, 9))["logits"].shape == (2, 3)
    plain = create_model("timm/test_resnet", num_classes=0, view={"size": 32})
    assert count_cost(make()).gmacs == pytest.approx(6 * count_cost(plain).gmacs + 96 * 3 / 1e9)
    # 256 units: four gates of 96 + 256 inputs a moment
    assert count_cost(make(aggregate="lstm")).gmacs == pytest.approx(
        6 * count_cost(plain).gmacs + (6 * 4 * 256 * (96 + 256) + 256 * 3) / 1e9
    )


def test_saved_loaded_and_transferred(tmp_path: Path) -> None:
    student = make(BRANCH, aggregate="lstm", shift="past", dropout=0.5)
    save_pretrained(student, TASK, tmp_path / "run")
    again, task, _ = load_pretrained(tmp_path / "run", view={"num_moments": 4})
    assert isinstance(again, FrameSequence)
    assert (task, again.views["frames"].num_moments, again.settings) == (TASK, 4, student.settings)
    torch.testing.assert_close(run(again, frames())["logits"], run(student, frames())["logits"])
    # Other classes: the classifier alone is new.
    config = ModelConfig(name=str(tmp_path / "run"))
    moved = load_model(config, num_classes=5, class_names=tuple("vwxyz"))
    state = student.state_dict()
    same = {k for k, v in moved.state_dict().items() if k in state and v.shape == state[k].shape and v.equal(state[k])}
    assert set(moved.state_dict()) - same == {"classifier.weight", "classifier.bias"}


def test_single_frame_student_becomes_a_sequence(tmp_path: Path) -> None:
    torch.manual_seed(3)
    single = create_model("hallucinating", num_classes=3, backbone=PLAIN, hallucinated_dim=8, view={"size": 32})
    save_pretrained(single, TASK, tmp_path / "run")
    backbone = ModelConfig(name=str(tmp_path / "run"))
    student = load_model(
        ModelConfig(
            name="sequence",
            options={"backbone": {"name": backbone.name}, "aggregate": "lstm"},
            view={"num_moments": 4, "moment": "uniform"},
        ),
        num_classes=5,
        class_names=tuple("vwxyz"),
    )
    assert isinstance(student, FrameSequence)
    assert student.views["frames"].size == (32, 32)
    assert student.weights_report is not None
    assert student.weights_report.classifier
    state = student.backbone.state_dict()
    assert state.keys() == {k for k in single.state_dict() if "classifier" not in k}
    assert all(torch.equal(v, single.state_dict()[k]) for k, v in state.items())


def test_around_another_backbone_shifts_once() -> None:
    student = make(shift="both")
    branch = HallucinatingStudent(student.backbone, num_classes=3, hallucinated_dim=8)
    other = student.around(branch).eval()
    assert [len(layer._forward_pre_hooks) for layer in residual_branches(other)] == [1] * 4
    torch.testing.assert_close(run(other, frames())["embedding"], run(make(shift="both"), frames())["embedding"])
    copied = copy.deepcopy(other)
    run(other, frames(1, 4))  # a copy follows its own number of moments
    torch.testing.assert_close(run(copied, frames())["logits"], run(other, frames())["logits"])


@pytest.mark.parametrize(
    "options",
    [
        {"aggregate": "lstm"},
        {"aggregate": "attention", "shift": "both"},
        {"aggregate": "convolution"},
        {"aggregate": "relation"},
    ],
)
def test_exported_sequence(tmp_path: Path, options: dict[str, Any]) -> None:
    student = make(BRANCH, **options)
    path = export(str(save_pretrained(student, TASK, tmp_path / "run")), str(tmp_path / "s.onnx"))
    network, _ = load_network(str(path), device="cpu", view={"moment": "uniform"})
    x = frames(1)
    given = torch.from_numpy(network({"frames": x[0].numpy()}))
    torch.testing.assert_close(given, run(student, x)["logits"][0], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"view\.num_moments is fixed in this model"):
        load_network(str(path), device="cpu", view={"num_moments": 4})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregate": "relation", "relation_size": 1}, "relation_size=1: a relation has at least 2 moments"),
        ({"aggregate": "max"}, "aggregate='max': choose one of mean, lstm, attention, convolution, relation"),
        ({"shift": "future"}, "shift='future': choose one of none, both, past"),
        ({"shift_share": 0.6}, "shift_share=0.6: must be from 0 to 0.5"),
        ({"dropout": 1.0}, "dropout=1.0: must be at least 0 and below 1"),
        ({"backbone": {"name": "timm/test_vit"}, "shift": "both"}, "timm/test_vit: no residual branches in which"),
        ({"backbone": {"name": "resnet3d_10", "width": 4}, "shift": "both"}, "resnet3d_10: no residual branches"),
        ({"view": {"num_frames": 2}, "shift": "both"}, "sees 2 frames of each moment one by one"),
        ({"backbone": {"name": "sequence", "backbone": PLAIN}}, "sequence: looks at all moments of a video together"),
        ({"backbone": {}}, "sequence needs backbone={name: ...}"),
        ({"pooling": "mean"}, "sequence"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hallucinating", {"backbone": {"name": "sequence", "backbone": PLAIN}, "hallucinated_dim": 8}),
        ("fused", {"appearance": PLAIN, "motion": {"name": "sequence", "backbone": PLAIN}}),
        ("two_stream", {"appearance": PLAIN, "motion": {"name": "sequence", "backbone": PLAIN}}),
    ],
)
def test_sequences_are_no_parts(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"sequence|layers cannot be taken apart"):
        create_model(name, num_classes=3, view={"size": 32}, **options)
