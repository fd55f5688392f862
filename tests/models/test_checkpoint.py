"""Weights files: what is taken, what is reported, what is refused."""

import logging
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from stillmotion.models.checkpoint import WeightsError, load_weights, read_weights
from stillmotion.models.encoder import Encoder
from stillmotion.models.factory import create_model

TINY: dict[str, Any] = {"width": 2, "view": {"size": 32, "num_frames": 4}}


def tiny(num_classes: int = 3, **options: Any) -> Encoder:
    return create_model("resnet3d_10", num_classes=num_classes, **TINY, **options)


def published(encoder: Encoder) -> dict[str, Any]:
    """As the authors of the 3D ResNets publish: weights of a DataParallel module, beside epoch and architecture."""
    state = {f"module.{name}": value for name, value in encoder.state_dict().items()}
    momentum = {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return {"epoch": 10, "arch": "resnet-10", "state_dict": state, "optimizer": momentum}


def test_published_checkpoint_of_other_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = tiny(400)
    path = tmp_path / "resnet-10-kinetics.pth"
    torch.save(published(theirs), path)
    with caplog.at_level(logging.WARNING):
        ours = tiny(weights=str(path))
    report = ours.weights_report
    assert report is not None
    assert (report.source, report.missing) == (str(path), ())
    assert set(report.left_out) == {"module.fc.weight", "module.fc.bias"}
    assert report.summary() in caplog.text
    assert "classifier of 400 classes, here 3: left out" in caplog.text
    own, expected = ours.state_dict(), theirs.state_dict()
    assert set(report.copied) == {name for name in own if not name.startswith("fc.")}
    for name in report.copied:
        torch.testing.assert_close(own[name], expected[name])
    same = tiny(400, weights=str(path))
    assert same.weights_report is not None
    assert same.weights_report.left_out == {}
    torch.testing.assert_close(same.state_dict()["fc.weight"], expected["fc.weight"])


def test_old_format_without_batch_counters(tmp_path: Path) -> None:
    state = {k: v for k, v in tiny().state_dict().items() if not k.endswith("num_batches_tracked")}
    path = tmp_path / "old.pth.tar"
    torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=False)
    report = load_weights(tiny(), path)
    assert (report.left_out, report.missing) == ({}, ())


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "student.", "module.student.", "_orig_mod."])
@pytest.mark.parametrize("container", [None, "state_dict", "model"])
def test_prefixes_and_containers(tmp_path: Path, prefix: str, container: str | None) -> None:
    state = {prefix + name: value for name, value in tiny().state_dict().items()}
    path = tmp_path / "weights.pt"
    torch.save({container: state} if container else state, path)
    report = load_weights(tiny(), path)
    assert (report.left_out, report.missing) == ({}, ())


def test_published_names_of_timm_and_torchvision(tmp_path: Path) -> None:
    for name in ("timm/test_resnet", "torchvision/shufflenet_v2_x0_5"):
        encoder = create_model(name, num_classes=3)
        own = encoder.state_dict()
        theirs = {k: own[v] for k, v in encoder.published_names().items() if not k.startswith(("net.", "head."))}
        assert len(theirs) == len(own)
        for state in (theirs, own):  # as the library publishes it, and as a run folder holds it
            save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "w.safetensors")
            report = load_weights(encoder, tmp_path / "w.safetensors")
            assert (len(report.copied), report.left_out, report.missing) == (len(own), {}, ())


def test_backbone_out_of_a_student(tmp_path: Path) -> None:
    student = create_model("hallucinating", num_classes=3, backbone={"name": "timm/test_resnet"}, hallucinated_dim=8)
    torch.save({"state_dict": {f"student.{k}": v for k, v in student.state_dict().items()}}, tmp_path / "last.ckpt")
    report = load_weights(backbone := create_model("timm/test_resnet", num_classes=3), tmp_path / "last.ckpt")
    assert set(report.missing) == {"net.fc.weight", "net.fc.bias"}
    assert set(report.left_out.values()) == {"not in this network"}
    expected = student.state_dict()["backbone.net.conv1.0.weight"]
    torch.testing.assert_close(backbone.state_dict()["net.conv1.0.weight"], expected)


def test_nothing_is_swallowed(tmp_path: Path) -> None:
    state = dict(tiny().state_dict())
    state["layer1.0.conv1.weight"] = torch.zeros(2, 2, 1, 1, 1)
    state["extra.weight"] = torch.zeros(1)
    del state["bn1.weight"]
    torch.save(state, tmp_path / "w.pt")
    report = load_weights(tiny(), tmp_path / "w.pt")
    assert report.left_out == {
        "layer1.0.conv1.weight": "shape [2, 2, 1, 1, 1], here [2, 2, 3, 3, 3]",
        "extra.weight": "not in this network",
    }
    assert set(report.missing) == {"layer1.0.conv1.weight", "bn1.weight"}
    assert "2 not taken" in report.summary()
    assert "2 missing (bn1.weight, layer1.0.conv1.weight)" in report.summary()


def test_student_wins_over_teacher_of_the_same_names(tmp_path: Path) -> None:
    student, teacher = tiny(), tiny()
    state = {f"teacher.{k}": v for k, v in teacher.state_dict().items()}
    state |= {f"student.{k}": v for k, v in student.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    load_weights(encoder := tiny(), tmp_path / "last.ckpt")
    torch.testing.assert_close(encoder.state_dict()["conv1.weight"], student.state_dict()["conv1.weight"])


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    torch.save(create_model("timm/test_vit", num_classes=3).state_dict(), tmp_path / "vit.pt")
    with pytest.raises(WeightsError, match=r"vit\.pt: nothing fits resnet3d_10; another architecture\? The file has"):
        tiny(weights=str(tmp_path / "vit.pt"))


class Payload:
    """A pickle that runs a command when it is read the careless way."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("where", ["top", "beside", "pickle of protocol 2", "pickle of protocol 4"])
def test_code_is_refused_and_not_run(tmp_path: Path, where: str) -> None:
    marker, path = tmp_path / "ran", tmp_path / "bad.pth"
    payload = Payload(marker)
    if where.startswith("pickle"):
        path.write_bytes(pickle.dumps(payload, protocol=int(where[-1])))
    else:
        torch.save(payload if where == "top" else {"state_dict": tiny().state_dict(), "note": payload}, path)
    named = "" if where.endswith("4") else r" \((posix|nt)\.system\)"  # PyTorch stops before the name there
    with pytest.raises(WeightsError, match=rf"bad\.pth: holds code{named}, refused") as caught:
        tiny(weights=str(path))
    assert "\n" not in str(caught.value)
    assert not marker.exists()
    pickle.loads(pickle.dumps(payload))
    assert marker.exists()  # so the payload does work


@pytest.mark.parametrize("suffix", [".pt", ".pth.tar", ".safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "text"])
def test_damaged_files_are_one_line(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(tiny().state_dict(), path)
    else:
        torch.save(tiny().state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(
        {
            "truncated": content[: len(content) // 2],
            "garbage": bytes(range(256)) * 40,
            "empty": b"",
            "text": b"<html>404 Not Found</html>\n" * 5,
        }[damage]
    )
    with pytest.raises(WeightsError, match=r"damaged or no (PyTorch checkpoint|safetensors file)") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


def test_files_without_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such weights file"):
        read_weights(tmp_path / "none.pt")
    for content in ({"epoch": 3}, [torch.zeros(1)], torch.zeros(2)):
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(WeightsError, match="holds no weights"):
            read_weights(tmp_path / "x.pt")
