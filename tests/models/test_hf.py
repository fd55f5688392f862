"""Video transformers of Hugging Face, in tiny random sizes, against the networks of transformers run directly."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stillmotion.models import create_model, list_models
from stillmotion.models.checkpoint import WeightsError
from stillmotion.models.cost import count_cost
from stillmotion.models.encoder import Encoder
from stillmotion.models.hf import FAMILIES, HfVideo
from stillmotion.models.pretrained import load_pretrained, save_pretrained
from stillmotion.tasks import Classification
from stillmotion.view import View

transformers = pytest.importorskip("transformers")

TINY: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
PREDICTOR = {"pred_hidden_size": 16, "pred_num_hidden_layers": 1, "pred_num_attention_heads": 2}
VIEW = {"size": 32, "num_frames": 4}
CLASSIFIERS = [name for name in FAMILIES if name != "hf/vjepa2_encoder"]


def tiny(name: str, num_classes: int = 3, **options: Any) -> HfVideo:
    torch.manual_seed(0)
    sizes = TINY | (PREDICTOR if "vjepa2" in name else {})
    encoder = create_model(name, num_classes=num_classes, **{"view": VIEW, **sizes, **options}).eval()
    assert isinstance(encoder, HfVideo)
    return encoder


def theirs(name: str, num_labels: int = 3, **options: Any) -> Any:
    """A tiny network as transformers builds it; its initial values are small, so they are made larger."""
    torch.manual_seed(1)
    family = FAMILIES[name]
    sizes = {**TINY, family.size: 32, family.num_frames: 4, **(PREDICTOR if "vjepa2" in name else {})}
    config = getattr(transformers, family.config)(**{**sizes, "num_labels": num_labels, **options})
    net = getattr(transformers, family.model)(config).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net


def saved(folder: Path, name: str, num_labels: int = 3, **stated: Any) -> tuple[str, Any]:
    net = theirs(name, num_labels)
    net.save_pretrained(folder)
    if stated:
        (folder / "preprocessor_config.json").write_text(json.dumps(stated))
    return str(folder), net


def view_of(encoder: Encoder) -> View:
    (view,) = encoder.views.values()
    return view


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_folder_gives_the_librarys_logits(name: str, tmp_path: Path) -> None:
    folder, net = saved(tmp_path, name)
    encoder = create_model(name, num_classes=3, weights=folder).eval()
    clip = torch.randn(2, 4, 3, 32, 32)
    seen: list[torch.Tensor] = []
    net.classifier.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    logits = net(clip).logits
    outputs = encoder(clip)
    torch.testing.assert_close(outputs["logits"], logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs["embedding"], seen[0], atol=1e-5, rtol=1e-5)
    assert outputs["embedding"].shape == (2, 16) == (2, encoder.embedding_dim)
    report = encoder.weights_report
    assert report is not None
    assert (report.source, report.left_out, report.missing) == (folder, {}, ())
    assert set(report.copied) == set(encoder.state_dict())
    assert (view_of(encoder).size, view_of(encoder).num_frames) == ((32, 32), 4)
    rebuilt = create_model(**encoder.config)  # without the folder
    rebuilt.load_state_dict(encoder.state_dict(), strict=True)
    torch.testing.assert_close(rebuilt.eval()(clip)["logits"], logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_encoder_of_v_jepa_2(tmp_path: Path) -> None:
    folder, net = saved(tmp_path, "hf/vjepa2_encoder")
    encoder = create_model("hf/vjepa2_encoder", num_classes=0, weights=folder, taps=["encoder.layer.0.mlp"]).eval()
    clip = torch.randn(2, 4, 3, 32, 32)
    tokens = net(clip, skip_predictor=True).last_hidden_state
    assert tokens.shape == (2, 2 * 2 * 2, 16)
    outputs = encoder(clip)
    torch.testing.assert_close(outputs["embedding"], tokens.mean(1), atol=1e-5, rtol=1e-5)
    assert outputs["encoder.layer.0.mlp"].shape == tokens.shape
    assert not any("predictor" in name for name in encoder.state_dict())
    encoder = create_model("hf/vjepa2_encoder", num_classes=2, weights=folder).eval()
    assert encoder.weights_report is not None
    assert encoder.weights_report.missing == ("head.weight", "head.bias")
    assert encoder(clip)["logits"].shape == (2, 2)
    probed = create_model("hf/vjepa2", num_classes=2, weights=folder)  # its attentive pooler starts at random
    assert probed.weights_report is not None
    assert {name.split(".")[1] for name in probed.weights_report.missing} == {"pooler", "weight", "bias"}


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_from_config_alone(name: str) -> None:
    encoder = tiny(name)
    frames = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    outputs = encoder(frames)
    view = view_of(encoder)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (view.mean, view.std))
    torch.testing.assert_close(encoder((frames / 255 - mean) / std)["logits"], outputs["logits"])
    assert {key: value.shape for key, value in outputs.items()} == {"logits": (2, 3), "embedding": (2, 16)}
    plain = json.dumps(encoder.config)
    assert json.dumps(create_model(**json.loads(plain)).config) == plain
    encoder.reset_classifier(0)
    bare = encoder(frames)
    assert set(bare) == {"embedding"}
    torch.testing.assert_close(bare["embedding"], outputs["embedding"])
    encoder.reset_classifier(5)
    assert encoder(frames)["logits"].shape == (2, 5)
    assert encoder.config["num_classes"] == 5
    encoder.train()(frames)["logits"].sum()


def test_published_sizes_costs_and_views() -> None:
    """Parameters of the base networks by hand; VideoMAE's cost is published as 180 G."""
    block = 4 * 768**2 + 2 * 768 * 3072 + 3072 + 768 + 4 * 768  # without attention's biases
    infos = {info.name: info for info in list_models("hf/vi*")}
    assert list(infos) == ["hf/videomae", "hf/vivit"]
    patches = 768 * 2 * 3 * 16**2 + 768
    assert infos["hf/videomae"].params == patches + 12 * (block + 3 * 768) + 2 * 768
    assert infos["hf/vivit"].params == patches + (16 * 14 * 14 + 2) * 768 + 12 * (block + 4 * 768) + 2 * 768
    videomae = infos["hf/videomae"]
    assert videomae.gmacs is not None
    assert round(videomae.gmacs) == 180
    assert (videomae.kind, videomae.width, videomae.licence) == ("video", 768, "cc-by-nc-4.0")
    assert videomae.weights == ("MCG-NJU/videomae-base-finetuned-kinetics",)
    frames = {"hf/videomae": 16, "hf/timesformer": 8, "hf/vivit": 32, "hf/vjepa2": 16, "hf/vjepa2_encoder": 64}
    assert {name: family.view.num_frames for name, family in FAMILIES.items()} == frames
    assert count_cost(tiny("hf/videomae")).gmacs > 0


def test_normalisation_size_and_classes_of_a_repository(tmp_path: Path) -> None:
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    folder, _ = saved(tmp_path, "hf/timesformer", 7, image_mean=mean, image_std=std)
    encoder = create_model("hf/timesformer", num_classes=2, weights=folder, view={"moment": "first"})
    view = view_of(encoder)
    assert (view.mean, view.std, view.size, view.num_frames) == (tuple(mean), tuple(std), (32, 32), 4)
    assert (view.stride, view.moment) == (32, "first")
    report = encoder.weights_report
    assert report is not None
    assert report.classifier == "classifier of 7 classes, here 2"
    assert set(report.left_out) == {"classifier.weight", "classifier.bias"}
    assert set(encoder.state_dict()) - set(report.copied) == {"head.weight", "head.bias"}
    own = create_model("hf/timesformer", num_classes=2, weights=folder, view={"mean": [0.5] * 3})
    assert view_of(own).mean == (0.5, 0.5, 0.5)
    assert list(own.config["view"]["std"]) == std


def test_run_folder_and_plain_file(tmp_path: Path) -> None:
    encoder = tiny("hf/videomae")
    save_pretrained(encoder, Classification(["a", "b", "c"]), tmp_path / "run")
    back, _, _ = load_pretrained(tmp_path / "run")
    for key, value in encoder.state_dict().items():
        assert torch.equal(back.state_dict()[key], value)
    torch.save(theirs("hf/videomae").state_dict(), tmp_path / "w.pt")  # with the library's names
    report = tiny("hf/videomae", weights=str(tmp_path / "w.pt")).weights_report
    assert report is not None
    assert (report.left_out, report.missing) == ({}, ())
    with pytest.raises(WeightsError, match=r"none\.pt: no such weights file"):
        tiny("hf/videomae", weights=str(tmp_path / "none.pt"))


@pytest.mark.parametrize("damage", ["truncated", "pickle", "config", "other", "shape", "preprocessing"])
def test_bad_folders_are_one_line(damage: str, tmp_path: Path) -> None:
    folder, net = saved(tmp_path, "hf/videomae")
    weights = tmp_path / "model.safetensors"
    complaint, options, name = r"model\.safetensors", {}, "hf/videomae"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:3000])
        complaint = ""
    elif damage == "pickle":
        weights.unlink()
        torch.save(net.state_dict(), tmp_path / "pytorch_model.bin")
    elif damage == "config":
        (tmp_path / "config.json").write_text("{")
        complaint = "not a valid JSON"
    elif damage == "other":
        name, complaint = "hf/vivit", "holds model_type 'videomae', here 'vivit'"
    elif damage == "shape":
        options, complaint = {"intermediate_size": 8}, r"has shape \[.*\], here \[.*\]; check options and view"
    else:
        (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5')
        complaint = "Expecting"
    with pytest.raises(ValueError, match=rf"^{name}: .*{complaint}") as caught:
        create_model(name, num_classes=3, weights=folder, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("hf/videomae", {"hiden_size": 3}, "unknown option 'hiden_size'; close names: hidden_size"),
        ("hf/videomae", {"num_labels": 3}, "unknown option 'num_labels'"),
        ("hf/videomae", {"hidden_size": 65}, "hidden size 65 is not a multiple"),
        ("hf/vjepa2", {"view": {"size": [32, 48]}}, "needs square frames; the view gives 32x48"),
        ("hf/vivit", {"taps": ["layer"], "num_hidden_layers": 1}, "unknown tap 'layer'"),
    ],
)
def test_wrong_options_are_one_line(name: str, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: .*{complaint}") as caught:
        create_model(name, num_classes=2, **options)
    assert "\n" not in str(caught.value)


def test_unknown_name_and_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="unknown model 'hf/videomea': close names: hf/videomae"):
        create_model("hf/videomea", num_classes=2)

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr("stillmotion.models.hf.import_module", missing)
    with pytest.raises(ValueError, match=r"^hf/vivit: needs .*pip install 'stillmotion\[hf\]'"):
        create_model("hf/vivit", num_classes=2)
    assert [info.params for info in list_models("hf/vivit")] == [None]
