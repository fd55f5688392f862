"""The student of HalluciNet against METHODS 2.2: widths, fusions, the VGG tap."""

from typing import Any

import pytest
import torch
from torch import nn

from stillmotion.models.checkpoint import WeightsReport
from stillmotion.models.encoder import Encoder
from stillmotion.models.factory import create_model
from stillmotion.models.student import HallucinatingStudent

BACKBONE = {"name": "timm/test_resnet", "view": {"size": 64}}


def make(**options: Any) -> HallucinatingStudent:
    backbone = create_model("timm/test_resnet", num_classes=9, view={"size": 64})
    return HallucinatingStudent(backbone, num_classes=3, hallucinated_dim=8, **options)


@torch.no_grad()
def run(encoder: Encoder, x: torch.Tensor) -> dict[str, torch.Tensor]:
    outputs: dict[str, torch.Tensor] = encoder.eval()(x)
    return outputs


@pytest.mark.parametrize("fuse", ["concat", "none", "direct"])
@pytest.mark.parametrize("relu", [True, False])
def test_outputs_follow_the_equations(fuse: Any, relu: bool) -> None:
    student = make(fuse=fuse, relu=relu)
    outputs = run(student, torch.randint(0, 256, (5, 1, 3, 64, 64), dtype=torch.uint8))
    x, state = outputs["embedding"].double(), {k: v.double() for k, v in student.state_dict().items()}
    guess = x @ state["hallucinator.0.weight"].T + state["hallucinator.0.bias"]
    if relu:
        guess = guess.clamp(min=0)
    assert (guess.min() < 0) == (not relu)
    seen = {"concat": torch.cat([x, guess], 1), "none": x, "direct": guess}[fuse]
    logits = seen @ state["classifier.weight"].T + state["classifier.bias"]
    torch.testing.assert_close(outputs["hallucinated"].double(), guess, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs["logits"].double(), logits, atol=1e-5, rtol=1e-5)


def test_the_backbones_classifier_is_gone_and_all_parameters_learn() -> None:
    student = make()
    assert student.config["backbone"]["num_classes"] == 0
    assert not any("fc" in name for name, _ in student.named_parameters())
    outputs = student(torch.randint(0, 256, (2, 1, 3, 64, 64), dtype=torch.uint8))
    (outputs["logits"].square().sum() + outputs["hallucinated"].sum()).backward()
    assert all(p.grad is not None for p in student.parameters())


def test_class_loss_reaches_the_branch_only_when_fused() -> None:
    x = torch.randint(0, 256, (4, 1, 3, 64, 64), dtype=torch.uint8)
    for fuse, learns in (("concat", True), ("direct", True), ("none", False)):
        student = make(fuse=fuse)
        student(x)["logits"].square().sum().backward()
        gradient = student.get_parameter("hallucinator.0.weight").grad
        assert (gradient is not None and bool(gradient.any())) is learns


def test_moments_keep_their_own_outputs() -> None:
    student = make().eval()
    frames = torch.randint(0, 256, (2, 4, 1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        outputs = student.from_batch({"student/frames": frames}, "student")
    assert outputs["hallucinated"].shape == (2, 4, 8)
    assert outputs["embedding"].shape == (2, 4, student.embedding_dim)
    assert outputs["moment_logits"].shape == (2, 4, 3)
    single = run(student, frames[1, 2][None])
    torch.testing.assert_close(outputs["hallucinated"][1, 2], single["hallucinated"][0])
    torch.testing.assert_close(outputs["logits"], outputs["moment_logits"].mean(1))


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_vgg_sizes_are_the_papers(library: str) -> None:
    with torch.device("meta"):
        vgg = create_model(f"{library}/vgg11_bn", num_classes=1000, view={"size": 227})
        student = HallucinatingStudent(vgg, num_classes=101, hallucinated_dim=2048)
        outputs = student(torch.zeros(2, 1, 3, 227, 227))
    parameters = {name: p.numel() for name, p in student.named_parameters()}

    def count(part: str) -> int:
        return sum(n for name, n in parameters.items() if name.startswith(part))

    assert student.tap == "pool5"
    assert count("backbone.") == 9_225_984
    assert count("hallucinator.") == 51_382_272
    assert count("hidden.") == (25_088 + 2048) * 4096 + 4096
    assert count("classifier.") == 4096 * 101 + 101
    assert sum(parameters.values()) == sum(map(count, ("backbone.", "hallucinator.", "hidden.", "classifier.")))
    assert {k: tuple(v.shape) for k, v in outputs.items()} == {
        "embedding": (2, 25_088),
        "hallucinated": (2, 2048),
        "logits": (2, 101),
    }
    assert create_model_on_meta(student.config).state_dict().keys() == student.state_dict().keys()


def create_model_on_meta(config: dict[str, Any]) -> Encoder:
    with torch.device("meta"):
        return create_model(**config)


@pytest.mark.parametrize(("fuse", "width"), [("concat", 25_088 + 16), ("none", 25_088), ("direct", 16)])
def test_vgg_class_branch_reads_what_the_fusion_says(fuse: Any, width: int) -> None:
    with torch.device("meta"):
        vgg = create_model("torchvision/vgg11_bn", num_classes=0)
        student = HallucinatingStudent(vgg, num_classes=3, hallucinated_dim=16, fuse=fuse)
    assert student.get_submodule("hidden.0").weight.shape == (4096, width)
    assert student(torch.zeros(1, 1, 3, 96, 96, device="meta"))["logits"].shape == (1, 3)


def test_vgg_fc7_is_the_compact_alternative() -> None:
    with torch.device("meta"):
        vgg = create_model("timm/vgg11_bn", num_classes=0)
        student = HallucinatingStudent(vgg, num_classes=3, hallucinated_dim=16, tap="fc7")
    assert (student.embedding_dim, student.hidden) == (4096, None)
    assert create_model_on_meta(student.config).state_dict().keys() == student.state_dict().keys()


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_vgg_fc6_copied_from_imagenet_gives_the_networks_own_fc6(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With x alone, the hidden layer then is the VGG's own first fully connected layer."""
    from stillmotion.models import student as module

    # 32 units instead of 4096 show the order of the inputs just as well.
    monkeypatch.setattr(module, "FC_DIM", 32)
    vgg = thin_vgg(library).eval()
    fc6 = {"timm": "pre_logits.act1", "torchvision": "classifier.1"}[library]
    vgg.watch(vgg.get_submodule("net"), [fc6])
    vgg.weights_report = WeightsReport(source="default", copied=("all",), left_out={})
    x = torch.randn(1, 1, 3, 224, 224)
    expected = run(vgg, x)[fc6].flatten(1)
    vgg.taps = ()
    student = HallucinatingStudent(vgg, num_classes=2, hallucinated_dim=8, fuse="none", init_fc6="imagenet").eval()
    with torch.no_grad():
        hidden = student.get_submodule("hidden")(run(student, x)["embedding"])
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-4)
    assert "init_fc6" not in student.config


def thin_vgg(library: str) -> Encoder:
    """A VGG-11 with fully connected layers of 32 units."""
    if library == "timm":
        return create_model("timm/vgg11_bn", num_classes=2, mlp_ratio=1 / 128)
    with torch.device("meta"):
        vgg = create_model("torchvision/vgg11_bn", num_classes=2)
    classifier = vgg.get_submodule("net.classifier")
    assert isinstance(classifier, nn.Sequential)
    classifier[0], classifier[3] = nn.Linear(25_088, 32), nn.Linear(32, 4096)
    vgg = vgg.to_empty(device="cpu")
    for module in vgg.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
            module.reset_parameters()
    return vgg


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fuse": "sum"}, "fuse='sum': choose one of concat, none, direct"),
        ({"tap": "pool5"}, "tap='pool5' is for a VGG; timm/test_resnet has tap='embedding'"),
        ({"tap": "fc8"}, "tap='fc8': choose one of"),
        ({"init_fc6": "imagenet"}, "init_fc6 needs a VGG"),
    ],
)
def test_settings_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_fc6_of_random_weights_is_refused() -> None:
    with torch.device("meta"):
        vgg = create_model("torchvision/vgg11_bn", num_classes=0)
    with pytest.raises(ValueError, match="needs a backbone with weights"):
        HallucinatingStudent(vgg, num_classes=2, hallucinated_dim=8, init_fc6="imagenet")


def test_by_name_with_taps_and_view() -> None:
    student = create_model(
        "hallucinating", num_classes=3, backbone=BACKBONE, hallucinated_dim=8, taps=["layer3"], view={"moment": "first"}
    )
    assert student.views["frames"].moment == "first"
    outputs = run(student, torch.zeros(1, 1, 3, 64, 64))
    assert set(outputs) == {"embedding", "hallucinated", "logits", "layer3"}
    student.reset_classifier(7)
    assert run(student, torch.zeros(1, 1, 3, 64, 64))["logits"].shape == (1, 7)
