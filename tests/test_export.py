"""Export: same logits as torch at any batch size, and a file that would not give them is refused."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from stillmotion.export import example_inputs, export
from stillmotion.models.encoder import Encoder
from stillmotion.models.factory import create_model
from stillmotion.models.pretrained import save_pretrained
from stillmotion.networks import load_network
from stillmotion.tasks import Classification

TASK = Classification(("jump", "run", "sit"))


def save(folder: Path, encoder: Encoder) -> str:
    return str(save_pretrained(encoder.eval(), TASK, folder))


def hallucinating() -> Encoder:
    torch.manual_seed(1)
    backbone = {"name": "timm/test_resnet", "view": {"size": 64, "gamma": 0.5}}
    return create_model("hallucinating", num_classes=3, backbone=backbone, hallucinated_dim=16)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Encoder, str, Path]:
    """A hallucinating student, its run and its file."""
    encoder, folder = hallucinating(), tmp_path_factory.mktemp("exported")
    run = save(folder / "run", encoder)
    return encoder, run, export(run, str(folder / "out" / "s.onnx"), view={"moment": "first"})


def assert_equal(encoder: Encoder, path: Path) -> None:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.name, given.type) == (next(iter(encoder.views)), "tensor(uint8)")
    for size in (1, 3, 7):
        (frames,) = example_inputs(encoder, size)
        with torch.inference_mode():
            expected = encoder(frames)["logits"].numpy()
        np.testing.assert_allclose(session.run(["logits"], {given.name: frames.numpy()})[0], expected, atol=1e-4)


def test_batch_size_is_free_and_normalisation_inside(exported: tuple[Encoder, str, Path]) -> None:
    encoder, _, path = exported
    assert [p.name for p in path.parent.iterdir()] == ["s.onnx"]  # one file, no external data
    assert_equal(encoder, path)


def test_video_network(tmp_path: Path) -> None:
    torch.manual_seed(1)
    encoder = create_model("resnet3d_10", num_classes=3, width=8, view={"size": 32, "num_frames": 8})
    assert_equal(encoder.eval(), export(save(tmp_path / "run", encoder), str(tmp_path / "s.onnx")))


def test_file_says_what_it_sees_and_means(exported: tuple[Encoder, str, Path]) -> None:
    path = str(exported[2])
    _, facts = load_network(path, device="cpu", view={"num_moments": 2})
    assert facts["task"] == TASK.to_dict()
    (view,) = facts["views"].values()
    assert (view["moment"], view["num_moments"], view["gamma"], view["size"]) == ("first", 2, 0.5, [64, 64])
    with pytest.raises(ValueError, match=r"s.onnx: view.size is fixed in an exported model"):
        load_network(path, device="cpu", view={"size": 32})


def test_disagreeing_file_is_refused(
    exported: tuple[Encoder, str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph whose last bias was changed stands for an exporter's mistake."""
    model = onnx.load(str(exported[2]))
    bias = next(t for t in model.graph.initializer if list(t.dims) == [3])
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 0.01, bias.name))
    monkeypatch.setattr("stillmotion.export._to_onnx", lambda encoder, facts: model.SerializeToString())
    with pytest.raises(ValueError, match=r"not exported, as its logits differ .* by 0.01 at batch size 1"):
        export(exported[1], str(tmp_path / "s.onnx"))
    assert not (tmp_path / "s.onnx").exists()


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"give a name that ends in .onnx"):
        export(save(tmp_path / "run", hallucinating()), str(tmp_path / "s.pt"))
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"bad.onnx: not an ONNX model"):
        load_network(str(tmp_path / "bad.onnx"), device="cpu", view={})
