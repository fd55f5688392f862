"""`create_model`: one contract over timm, torchvision and ours."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from stillmotion.config import ModelConfig
from stillmotion.models import create_model, list_models, load_model
from stillmotion.models.adapters import ImageEncoder
from stillmotion.models.cost import count_cost
from stillmotion.models.encoder import Encoder
from stillmotion.models.own import OWN
from stillmotion.models.pretrained import save_pretrained
from stillmotion.tasks import Classification
from stillmotion.view import View
from tests.conftest import DATA, needs_data

SMALL = {"size": 64}
SMALL_2D = ["timm/test_efficientnet", "torchvision/mobilenet_v3_small"]
KINETICS_MEAN = (0.43216, 0.394666, 0.37645)


def view_of(encoder: Encoder) -> View:
    (view,) = encoder.views.values()
    return view


@torch.no_grad()
def run(encoder: Encoder, x: torch.Tensor) -> dict[str, torch.Tensor]:
    outputs: dict[str, torch.Tensor] = encoder.eval()(x)
    return outputs


@pytest.mark.parametrize("name", SMALL_2D)
def test_2d_networks_average_logits_over_time(name: str) -> None:
    encoder = create_model(name, num_classes=5, view=SMALL)
    clip = torch.randint(0, 256, (2, 3, 3, 64, 64), dtype=torch.uint8)
    outputs, frames = run(encoder, clip), [run(encoder, clip[:, t : t + 1]) for t in range(3)]
    for key in ("logits", "embedding"):
        torch.testing.assert_close(outputs[key], sum(f[key] for f in frames) / 3)
    assert outputs["embedding"].shape == (2, encoder.embedding_dim)
    still = clip[:, :1].expand(-1, 4, -1, -1, -1)
    torch.testing.assert_close(run(encoder, still)["logits"], frames[0]["logits"])


@pytest.mark.parametrize("name", [*SMALL_2D, "resnet3d_10"])
def test_uint8_and_normalised_floats_give_the_same(name: str) -> None:
    encoder = create_model(name, num_classes=5, view={"size": 64, "num_frames": 2})
    view = view_of(encoder)
    frames = np.random.default_rng(0).integers(0, 256, (1, 2, 3, 64, 64), dtype=np.uint8)
    mean, std = (np.array(values, np.float64)[:, None, None] for values in (view.mean, view.std))
    normalised = torch.from_numpy(((frames / 255.0 - mean) / std).astype(np.float32))
    raw, floats = run(encoder, torch.from_numpy(frames))["logits"], run(encoder, normalised)["logits"]
    torch.testing.assert_close(raw, floats, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("timm/mobilenetv3_small_050", 1024),  # 288 before the head's hidden layer
        ("timm/test_vit", 64),
        ("torchvision/mobilenet_v3_small", 1024),
        ("torchvision/shufflenet_v2_x0_5", 1024),
    ],
)
def test_embedding_is_what_the_classifier_sees(name: str, width: int) -> None:
    encoder = create_model(name, num_classes=3)
    x = torch.zeros(1, 1, 3, *view_of(encoder).size, dtype=torch.uint8)
    full = run(encoder, x)
    assert full["embedding"].shape == (1, width) == (1, encoder.embedding_dim)
    encoder.reset_classifier(0)
    bare = run(encoder, x)
    assert set(bare) == {"embedding"}
    torch.testing.assert_close(bare["embedding"], full["embedding"])
    encoder.reset_classifier(4)
    assert run(encoder, x)["logits"].shape == (1, 4)
    assert encoder.config["num_classes"] == encoder.num_classes == 4


@pytest.mark.parametrize("short", ["mc3_18", "s3d", "mobilenet_v3_small"])
def test_torchvision_logits_are_the_librarys(short: str) -> None:
    import torchvision

    torch.manual_seed(0)
    theirs = torchvision.models.get_model(short, num_classes=3).eval()
    video = short != "mobilenet_v3_small"
    size, num_frames = {"mc3_18": (48, 4), "s3d": (224, 14), "mobilenet_v3_small": (48, 1)}[short]
    ours = create_model(f"torchvision/{short}", num_classes=3, view={"size": size, "num_frames": num_frames})
    names = ours.published_names()
    ours.load_state_dict({names[k]: v for k, v in theirs.state_dict().items()}, strict=True)
    clip = torch.randn(1, num_frames, 3, size, size)
    with torch.no_grad():
        expected = theirs(clip.transpose(1, 2) if video else clip[:, 0])
    torch.testing.assert_close(run(ours, clip)["logits"], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm/resnet18", View(size=(224, 224), interpolation="bicubic")),
        ("timm/vit_tiny_patch16_224", View(mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic")),
        ("torchvision/efficientnet_b1", View(size=(240, 240))),
        ("torchvision/r3d_18", View(size=(112, 112), num_frames=16, fps=15.0, mean=KINETICS_MEAN)),
        ("torchvision/s3d", View(num_frames=128, fps=15.0, mean=KINETICS_MEAN)),
        ("torchvision/mvit_v2_s", View(num_frames=16, fps=7.5, mean=(0.45,) * 3, std=(0.225,) * 3)),
        ("torchvision/swin3d_t", View(num_frames=32, fps=15.0)),
        ("resnext3d_101", View(size=(112, 112), num_frames=16, std=(1 / 255,) * 3)),
    ],
)
def test_every_network_knows_its_view(name: str, expected: View) -> None:
    with torch.device("meta"):
        view = view_of(create_model(name, num_classes=2))
    own = ("size", "num_frames", "fps")
    assert {k: getattr(view, k) for k in own} == {k: getattr(expected, k) for k in own}
    if name == "resnext3d_101":
        np.testing.assert_allclose(np.array(view.mean) * 255, [114.7748, 107.7354, 99.4750])
        assert view.std == expected.std
    elif not name.startswith("torchvision/efficient"):
        assert view.mean == expected.mean
    if name.startswith("timm/"):
        assert view.interpolation == expected.interpolation


def test_resnext3d_normalises_to_units_of_255() -> None:
    encoder = create_model("resnet3d_10", num_classes=2, width=2, taps=["conv1"])
    frames = torch.full((1, 16, 3, 112, 112), 200, dtype=torch.uint8)
    with torch.no_grad():
        weight = encoder.get_parameter("conv1.weight")
        weight.fill_(0.0)
        weight[0, :, 3, 3, 3] = 1.0
    value = run(encoder, frames)["conv1"][0, 0, 8, 28, 28].item()
    assert value == pytest.approx(600 - 114.7748 - 107.7354 - 99.4750, abs=1e-2)


def test_view_settings_change_the_view_and_reach_the_network() -> None:
    encoder = create_model("timm/vit_tiny_patch16_224", num_classes=2, view={"size": 64, "moment": "first"})
    assert (view_of(encoder).size, view_of(encoder).moment, view_of(encoder).mean) == ((64, 64), "first", (0.5,) * 3)
    assert run(encoder, torch.zeros(1, 1, 3, 64, 64, dtype=torch.uint8))["logits"].shape == (1, 2)
    with pytest.raises(ValueError, match="unknown view setting 'sise'"):
        create_model("timm/test_resnet", num_classes=2, view={"sise": 64})


def test_difference_view() -> None:
    view = {"kind": "difference", "num_frames": 5, "size": 32}
    encoder = create_model("resnet3d_10", num_classes=2, width=2, view=view, taps=["conv1"])
    still = torch.full((1, 5, 3, 32, 32), 77, dtype=torch.uint8)
    outputs = run(encoder, still)
    assert outputs["conv1"].shape[2] == 4
    assert not outputs["conv1"].any()


def test_taps_by_name() -> None:
    encoder = create_model("timm/resnet18", num_classes=2, taps=["bn1", "layer3.1"], view=SMALL)
    x = torch.randint(0, 256, (2, 1, 3, 64, 64), dtype=torch.uint8)
    outputs = run(encoder, x)
    assert outputs["layer3.1"].shape == (2, 256, 4, 4)
    assert outputs["bn1"].min() < 0  # as the layer gave it, although ReLU then works in place
    twin = copy.deepcopy(encoder)
    torch.testing.assert_close(run(twin, x)["layer3.1"], outputs["layer3.1"])
    with pytest.raises(ValueError, match=r"unknown tap 'layer3\.7'; close names: layer3"):
        create_model("timm/resnet18", num_classes=2, taps=["layer3.7"])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("timm/test_efficientnet", {"taps": ["blocks.1"], "drop_rate": 0.2, "view": {"size": [48, 64]}}),
        ("torchvision/mobilenet_v3_small", {"view": SMALL}),
        ("resnet3d_10", {"width": 4, "stem_stride": [1, 1, 1], "shortcut": "A", "view": {"size": 32}}),
        ("hallucinating", {"backbone": {"name": "timm/test_resnet", "view": SMALL}, "hallucinated_dim": 8}),
    ],
)
def test_config_rebuilds_the_architecture(name: str, options: dict[str, Any]) -> None:
    import json

    encoder = create_model(name, num_classes=3, **options)
    again = create_model(**json.loads(json.dumps(encoder.config)))
    assert (again.views, again.taps, again.config) == (encoder.views, encoder.taps, encoder.config)
    again.load_state_dict(encoder.state_dict(), strict=True)
    x = torch.randint(0, 256, (1, view_of(encoder).num_frames, 3, *view_of(encoder).size), dtype=torch.uint8)
    ours, theirs = run(encoder, x), run(again, x)
    assert ours.keys() == theirs.keys()
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet1", r"unknown model 'timm/resnet1': close names: timm/resnet"),
        ("torchvision/r3d_81", r"close names: torchvision/r3d_18"),
        ("resnext3d_102", r"close names: .*resnext3d_101"),
        ("torchvision/squeezenet1_0", r"no embedding"),
        ("hallucinating", r"needs backbone="),
    ],
)
def test_wrong_names_are_one_line(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        create_model(name, num_classes=2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "view"), [("torchvision/s3d", {"num_frames": 8}), ("torchvision/mvit_v2_s", {"size": 112})]
)
def test_views_that_a_network_cannot_take_are_refused(name: str, view: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"frames of 224x224; the view gives"):
        create_model(name, num_classes=2, view=view)


def test_offline_download_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm
    import torchvision

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(timm, "create_model", fail)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    for name in ("timm/test_resnet", "torchvision/mobilenet_v3_small"):
        with pytest.raises(ValueError, match=r"could not be loaded \(no route to host\); go online, or pass weights=F"):
            create_model(name, num_classes=2, weights="default")
    with pytest.raises(ValueError, match="resnext3d_50 has no weights to download"), torch.device("meta"):
        create_model("resnext3d_50", num_classes=2, weights="default")


def test_timm_default_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm
    from timm.models import _builder

    published = timm.create_model("test_resnet", num_classes=1000).state_dict()
    monkeypatch.setattr(_builder, "load_state_dict_from_hf", lambda *args, **kwargs: dict(published))
    encoder = create_model("timm/test_resnet", num_classes=3, weights="default")
    torch.testing.assert_close(encoder.state_dict()["net.conv1.0.weight"], published["conv1.0.weight"])
    report = encoder.weights_report
    assert report is not None
    assert report.classifier == "classifier of 1000 classes, here 3"
    assert set(report.copied) == set(encoder.state_dict()) - {"net.fc.weight", "net.fc.bias"}
    same = create_model("timm/test_resnet", num_classes=1000, weights="default").weights_report
    assert same is not None
    assert (same.left_out, len(same.copied)) == ({}, len(published))


def test_a_fresh_classifier_starts_small(tmp_path: Path) -> None:
    """timm starts MobileNets' by the number of classes: logits of size 10 for three classes."""
    flat = create_model("timm/mobilenetv2_035", num_classes=7)
    save_file({k.removeprefix("net."): v for k, v in flat.state_dict().items()}, tmp_path / "w.safetensors")
    assert flat.state_dict()["net.classifier.weight"].std() > 0.2
    encoder = create_model("timm/mobilenetv2_035", num_classes=3, weights=str(tmp_path / "w.safetensors"))
    assert encoder.state_dict()["net.classifier.weight"].abs().max() <= 1280**-0.5
    kept = create_model("timm/mobilenetv2_035", num_classes=7, weights=str(tmp_path / "w.safetensors"))
    assert torch.equal(kept.state_dict()["net.classifier.weight"], flat.state_dict()["net.classifier.weight"])


def test_torchvision_default_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    published = torchvision.models.mobilenet_v3_small().state_dict()
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *args, **kwargs: published)
    encoder = create_model("torchvision/mobilenet_v3_small", num_classes=3, weights="default")
    own = encoder.state_dict()
    torch.testing.assert_close(own["net.features.0.0.weight"], published["features.0.0.weight"])
    assert encoder.weights_report is not None
    assert encoder.weights_report.classifier == "classifier of 1000 classes, here 3"
    assert encoder.weights_report.missing == ()


@needs_data
@pytest.mark.parametrize(("image", "label", "score"), [("sunflower", 986, 0.99), ("grace_hopper", 653, 0.89)])
def test_shared_mobilenet_recognises_the_check_images(image: str, label: int, score: float) -> None:
    assert DATA is not None
    encoder = create_model(
        "timm/mobilenetv2_100",
        num_classes=1001,
        weights=str(DATA / "weights" / "timm_mobilenetv2_100_same_imagenet1001.safetensors"),
        pad_type="same",
        view={"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    )
    with Image.open(DATA / "weights" / "check_images" / f"{image}.bmp") as picture:
        pixels = np.array(picture.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR))
    probabilities = run(encoder, torch.from_numpy(pixels).permute(2, 0, 1)[None, None])["logits"].softmax(1)[0]
    assert probabilities.argmax() == label
    # The published probability is that of the 8-bit network, plainly resized.
    assert probabilities[label].item() == pytest.approx(score, abs=0.04)


@needs_data
def test_shared_mobilenet_starts_a_student_of_six_classes() -> None:
    assert DATA is not None
    path = str(DATA / "weights" / "timm_mobilenetv2_100_same_imagenet1001.safetensors")
    encoder = create_model("timm/mobilenetv2_100", num_classes=6, weights=path, pad_type="same")
    report = encoder.weights_report
    assert report is not None
    assert (len(report.copied), report.missing) == (312, ())
    assert set(report.left_out) == {"classifier.weight", "classifier.bias"}
    assert report.summary().endswith("312 tensors copied; classifier of 1001 classes, here 6: left out")


def test_load_model_from_a_run_folder(tmp_path: Path) -> None:
    encoder = create_model("resnet3d_10", num_classes=3, width=2, view={"size": 32, "num_frames": 4})
    save_pretrained(encoder, Classification(("a", "b", "c")), tmp_path)
    x = torch.randn(1, 4, 3, 32, 32)
    expected = run(encoder, x)
    same = load_model(ModelConfig(name=str(tmp_path)), num_classes=3)
    torch.testing.assert_close(run(same, x)["logits"], expected["logits"])
    other = load_model(ModelConfig(name=str(tmp_path)), num_classes=5)
    outputs = run(other, x)
    assert outputs["logits"].shape == (1, 5)
    torch.testing.assert_close(outputs["embedding"], expected["embedding"])
    assert same.weights_report is not None
    assert other.weights_report is not None
    assert set(same.weights_report.copied) - set(other.weights_report.copied) == {"fc.weight", "fc.bias"}
    assert other.weights_report.classifier == "classifier of 3 classes, here 5"
    named = load_model(ModelConfig(name=str(tmp_path)), num_classes=3, class_names=("a", "x", "c"))
    assert named.weights_report is not None
    assert named.weights_report.classifier == "classifier of other classes, 'b' where 'x' is here"
    assert not torch.equal(named.state_dict()["fc.weight"], encoder.state_dict()["fc.weight"])
    kept = load_model(ModelConfig(name=str(tmp_path)), num_classes=3, class_names=("a", "b", "c"))
    assert torch.equal(kept.state_dict()["fc.weight"], encoder.state_dict()["fc.weight"])
    random = load_model(ModelConfig(name=str(tmp_path), weights="random", view={"moment": "last"}), num_classes=3)
    assert random.weights_report is None
    assert not torch.equal(random.state_dict()["conv1.weight"], encoder.state_dict()["conv1.weight"])
    assert view_of(random) == View.from_dict({**view_of(encoder).to_dict(), "moment": "last"})
    tapped = create_model(str(tmp_path), num_classes=3, taps=["layer2"])
    assert "layer2" in run(tapped, x)
    with pytest.raises(ValueError, match="option 'width' cannot change a trained network"):
        load_model(ModelConfig(name=str(tmp_path), options={"width": 4}), num_classes=3)


def test_load_model_by_name() -> None:
    config = ModelConfig(name="timm/test_resnet", weights="random", options={"drop_rate": 0.1}, view=SMALL)
    encoder = load_model(config, num_classes=4)
    assert encoder.weights_report is None
    assert encoder.config["drop_rate"] == 0.1


def test_cost_follows_the_view_and_leaves_the_network_alone() -> None:
    encoder = create_model("torchvision/resnet18", num_classes=1000).train()
    frozen = encoder.get_submodule("net.bn1").eval()
    cost = count_cost(encoder)
    assert cost.params == 11_689_512
    assert cost.gmacs == pytest.approx(1.814, abs=0.001)
    assert encoder.training
    assert not frozen.training
    assert encoder.get_buffer("net.bn1.num_batches_tracked") == 0
    twice = create_model("torchvision/resnet18", num_classes=1000, view={"num_frames": 2})
    assert count_cost(twice).gmacs == pytest.approx(2 * cost.gmacs)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet3d_10", {"width": 2, "view": {"size": 32, "num_frames": 4}}),
        ("hallucinating", {"hallucinated_dim": 4, "backbone": {"name": "timm/test_resnet", "view": {"num_frames": 2}}}),
    ],
)
def test_networks_export_with_any_batch_size(name: str, options: dict[str, Any]) -> None:
    encoder = create_model(name, num_classes=3, **options).eval()
    view = view_of(encoder)
    clips = torch.randint(0, 256, (3, view.num_frames, 3, *view.size), dtype=torch.uint8)
    batch = {0: torch.export.Dim("batch")}
    exported = torch.export.export(encoder, (clips[:2],), dynamic_shapes={"inputs": (batch,)}).module()
    for size in (1, 3):
        torch.testing.assert_close(exported(clips[:size])["logits"], run(encoder, clips[:size])["logits"])


def test_list_models() -> None:
    (ours,) = list_models("resnext3d_101")
    assert (ours.kind, ours.size, ours.num_frames, ours.params) == ("video", (112, 112), 16, 47_521_216)
    (mobile,) = list_models("timm/mobilenetv2_100")
    assert (mobile.kind, mobile.width, mobile.licence) == ("image", 1280, "apache-2.0")
    assert "ra_in1k" in mobile.weights
    videos = {m.name: m for m in list_models("torchvision/*") if m.kind == "video"}
    assert len(videos) == 9
    assert videos["torchvision/swin3d_t"].fps == 15.0
    assert list_models("no such network") == []


def test_a_network_of_ours_that_sees_pictures_is_listed_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tiny(ImageEncoder):
        """Never built: the list must not need it."""

    monkeypatch.setitem(OWN, "tiny2d_of_a_test", (Tiny, View(size=(64, 64))))
    assert [m.kind for m in list_models("tiny2d_of_a_test")] == ["image"]
    assert {m.kind for m in list_models("resnet3d_*")} == {"video"}
