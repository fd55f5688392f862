"""Saving, loading and sharing of networks."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from stillmotion.config import ModelConfig
from stillmotion.models.encoder import Encoder
from stillmotion.models.factory import create_model, load_model
from stillmotion.models.pretrained import PretrainedError, load_pretrained, push_to_hub, save_pretrained
from stillmotion.tasks import Classification

TASK = Classification(("jump", "läuft", "座る"))
BACKBONE = {"name": "timm/test_resnet", "view": {"size": 64, "num_frames": 2}}


def student() -> Encoder:
    return create_model("hallucinating", num_classes=3, backbone=BACKBONE, hallucinated_dim=8)


@pytest.mark.parametrize("channels_last", [False, True])
def test_round_trip(tmp_path: Path, channels_last: bool) -> None:
    encoder = student()
    encoder(torch.randint(0, 256, (4, 2, 3, 64, 64), dtype=torch.uint8))  # moves the batch norms
    if channels_last:
        encoder.to(memory_format=torch.channels_last)
    save_pretrained(encoder, TASK, tmp_path / "run", {"trained": {"seed": 3}})
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["config.json", "model.safetensors"]
    loaded, task, config = load_pretrained(tmp_path / "run")
    x = torch.randint(0, 256, (2, 2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected, outputs = encoder.eval()(x), loaded(x)
    for key in ("logits", "embedding", "hallucinated"):
        torch.testing.assert_close(outputs[key], expected[key])
    assert (task, loaded.views, config["trained"]) == (TASK, encoder.views, {"seed": 3})
    assert not loaded.training


def test_config_is_plain_and_complete(tmp_path: Path) -> None:
    save_pretrained(encoder := student(), TASK, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config == {
        "format": 1,
        "model": json.loads(json.dumps(encoder.config)),
        "task": {"kind": "classification", "class_names": ["jump", "läuft", "座る"], "target": "label"},
        "views": {"frames": json.loads(json.dumps(encoder.views["frames"].to_dict()))},
    }


def test_views_changed_after_building_are_kept(tmp_path: Path) -> None:
    from dataclasses import replace

    encoder = student()
    encoder.views = {"frames": replace(encoder.views["frames"], moment="last", num_moments=3)}
    save_pretrained(encoder, TASK, tmp_path)
    loaded = load_pretrained(tmp_path)[0]
    assert loaded.views == encoder.views
    changed = load_model(ModelConfig(name=str(tmp_path), view={"num_moments": 5}), num_classes=3)
    assert changed.views == {"frames": replace(encoder.views["frames"], num_moments=5)}


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    save_pretrained(student(), TASK, tmp_path)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_pretrained(tmp_path)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, r"config\.json: format 2, this version reads 1; update stillmotion"),
        ({"format": None}, r"no network of stillmotion"),
        ({"task": None}, r"'task' is missing"),
        ({"model": {"name": "resnet3d_10", "num_classes": 3, "width": 2}}, r"model\.safetensors: does not fit"),
    ],
)
def test_other_formats_are_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    save_pretrained(student(), TASK, tmp_path)
    path = tmp_path / "config.json"
    config = {k: v for k, v in {**json.loads(path.read_text(encoding="utf-8")), **change}.items() if v is not None}
    path.write_text(json.dumps(config))
    with pytest.raises(PretrainedError, match=message) as caught:
        load_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_incomplete_folders_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(PretrainedError, match=r"no config\.json in it"):
        load_pretrained(tmp_path)
    save_pretrained(student(), TASK, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors: no such weights file"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"format": 1,')
    with pytest.raises(PretrainedError, match="not readable as JSON"):
        load_pretrained(tmp_path)
    with pytest.raises(PretrainedError, match="no such folder, and no Hub name"):
        load_pretrained(tmp_path / "a" / "b" / "c")


def test_hub_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the wire: what is uploaded is what is downloaded."""
    hub: dict[str, dict[str, bytes]] = {}

    def create_repo(repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert private
        assert exist_ok
        hub.setdefault(repo_id, {})

    def upload_folder(*, repo_id: str, folder_path: str, allow_patterns: list[str]) -> None:
        hub[repo_id].update({p.name: p.read_bytes() for p in Path(folder_path).iterdir() if p.name in allow_patterns})

    def snapshot_download(repo_id: str, *, allow_patterns: list[str]) -> str:
        if repo_id not in hub:
            raise OSError("404 Client Error.\nRepository Not Found")
        for name, content in hub[repo_id].items():
            (tmp_path / name).write_bytes(content)
        return str(tmp_path)

    for function in (create_repo, upload_folder, snapshot_download):
        monkeypatch.setattr(huggingface_hub, function.__name__, function)
    encoder = student().eval()
    assert encoder.push_to_hub("me/student", task=TASK, private=True) == "https://huggingface.co/me/student"
    assert set(hub["me/student"]) == {"config.json", "model.safetensors"}
    x = torch.randint(0, 256, (1, 2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = encoder(x)["logits"]
        for loaded in (
            Encoder.from_pretrained("me/student"),
            load_model(ModelConfig(name="me/student"), num_classes=3),
            create_model("me/student", num_classes=3).eval(),
        ):
            torch.testing.assert_close(loaded(x)["logits"], expected)
    with pytest.raises(PretrainedError, match=r"me/other: no such folder, and not found on the Hub \(404 Client Error"):
        load_pretrained("me/other")


def test_refused_upload_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_repo(*args: object, **kwargs: object) -> None:
        raise OSError("401 Client Error.\nlog in")

    monkeypatch.setattr(huggingface_hub, "create_repo", create_repo)
    with pytest.raises(PretrainedError, match=r"^me/student: not uploaded \(401 Client Error\.\)$"):
        push_to_hub(student(), TASK, "me/student")
