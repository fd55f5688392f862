"""Export: the answers of torch at any batch size, in every format; a file that would not give them is refused."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from stillmotion.__main__ import main
from stillmotion.data.transforms import render_view
from stillmotion.export import NotDelivered, export
from stillmotion.export.graph import Network
from stillmotion.export.onnx import with_facts
from stillmotion.export.resample import Resample
from stillmotion.models.encoder import Encoder
from stillmotion.models.factory import create_model
from stillmotion.models.pretrained import save_pretrained
from stillmotion.networks import load_network, open_exported
from stillmotion.predict import Predictor
from stillmotion.tasks import Classification
from stillmotion.view import NO_DRAW, View
from tests.conftest import MakeVideo, write_table

TASK = Classification(("a", "b", "c"))
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")


def save(folder: Path, encoder: Encoder) -> str:
    return str(save_pretrained(encoder.eval(), TASK, folder))


def hallucinating() -> Encoder:
    torch.manual_seed(1)
    backbone = {"name": "timm/test_resnet", "view": {"size": 64, "gamma": 0.5}}
    return create_model("hallucinating", num_classes=3, backbone=backbone, hallucinated_dim=16)


def small(**view: Any) -> Encoder:
    torch.manual_seed(1)
    return create_model("timm/test_resnet", num_classes=3, view={"size": 32, **view})


def clips(**view: Any) -> Encoder:
    torch.manual_seed(1)
    return create_model("resnet3d_10", num_classes=3, width=4, view={"size": 32, "num_frames": 4, **view})


def sequence(**options: Any) -> Encoder:
    torch.manual_seed(1)
    view = {"size": 32, "num_moments": 3, "moment": "uniform"}
    return create_model("sequence", num_classes=3, backbone={"name": "timm/test_resnet"}, view=view, **options)


def fused() -> Encoder:
    torch.manual_seed(1)
    streams = {"appearance": {"name": "timm/test_resnet", "view": {"size": 32}, "num_classes": 3},
               "motion": {"name": "resnet3d_10", "width": 4, "num_classes": 3,
                          "view": {"size": 32, "kind": "difference", "num_frames": 4}}}  # fmt: skip
    return create_model("fused", num_classes=3, fusion="mean", **streams)  # type: ignore[arg-type]


def two_stream(**motion: Any) -> Encoder:
    torch.manual_seed(1)
    view = {"size": 64, "num_frames": 3, **motion}
    return create_model("two_stream", num_classes=3, appearance={"name": "timm/test_resnet", "view": {"size": 64}},
                        motion={"name": "timm/test_resnet", "view": view, "stack": True})  # fmt: skip


@pytest.fixture
def table(tmp_path: Path, make_video: MakeVideo) -> Path:
    return write_table(tmp_path / "videos", make_video, train=4, test=3, num_frames=12)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Encoder, str, Path]:
    """A hallucinating student, its run and its file."""
    encoder, folder = hallucinating(), tmp_path_factory.mktemp("exported")
    run = save(folder / "run", encoder)
    return encoder, run, export(run, str(folder / "out" / "s.onnx"), view={"moment": "first"})


@pytest.fixture
def recorded(exported: tuple[Encoder, str, Path], monkeypatch: pytest.MonkeyPatch) -> str:
    """The run of `exported`, whose graph need not be recorded again, which takes seconds."""
    monkeypatch.setattr("stillmotion.export.onnx._exported", lambda network: exported[2].read_bytes())
    return exported[1]


def report_of(path: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(path.with_name(path.name + ".report.json").read_text())
    return report


def test_batch_size_is_free_and_normalisation_inside(exported: tuple[Encoder, str, Path]) -> None:
    encoder, _, path = exported
    assert sorted(p.name for p in path.parent.iterdir()) == ["s.onnx", "s.onnx.report.json"]  # no external data
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.name, given.type) == (next(iter(encoder.views)), "tensor(uint8)")
    for size in (1, 3, 7):
        frames = torch.randint(0, 256, (size, 1, 3, 64, 64), dtype=torch.uint8)
        with torch.inference_mode():
            expected = encoder(frames)["logits"].numpy()
        np.testing.assert_allclose(session.run(["logits"], {given.name: frames.numpy()})[0], expected, atol=1e-4)


def test_file_says_what_it_sees_and_means(exported: tuple[Encoder, str, Path]) -> None:
    path = str(exported[2])
    _, facts = load_network(path, device="cpu", view={"num_moments": 2})
    assert facts["task"] == TASK.to_dict()
    (view,) = facts["views"].values()
    assert (view["moment"], view["num_moments"], view["gamma"], view["size"]) == ("first", 2, 0.5, [64, 64])
    assert (facts["licence"], facts["preprocess"], facts["precision"]) == (None, False, "float32")
    assert len(facts["training"]["weights"]) == 16
    with pytest.raises(ValueError, match=r"s.onnx: view.size is fixed in this model"):
        load_network(path, device="cpu", view={"size": 32})
    assert report_of(exported[2])["frames"] == "random frames"


STUDENTS: dict[str, Callable[[], Encoder]] = {
    "differences": lambda: clips(kind="difference"),
    "fusion": fused,
    "two streams": lambda: two_stream(kind="flow"),
}


@pytest.mark.parametrize("kind", STUDENTS)
def test_every_kind_answers_as_torch_on_real_frames(kind: str, tmp_path: Path, table: Path) -> None:
    run = save(tmp_path / "run", STUDENTS[kind]())
    path = export(run, str(tmp_path / "s.onnx"), table=str(table))
    report = report_of(path)
    assert report["frames"] == "table.csv, split test"
    assert list(report["parity"]["largest_difference"]) == ["batch size 1", "batch size 2", "batch size 5"]
    assert (report["accuracy"]["samples"], report["accuracy"]["agreement"], report["accuracy"]["drop"]) == (3, 1.0, 0.0)
    video = table.parent / "5.mp4"
    expected, given = (Predictor.load(model, device="cpu")(video) for model in (run, path))
    assert expected.error is None
    assert dict(given.labels) == pytest.approx(dict(expected.labels), abs=1e-4)


@pytest.mark.parametrize(("make", "setting"), [
    (clips, "num_frames"), (lambda: sequence(aggregate="attention", hidden_dim=8), "num_moments"),
], ids=["clip", "attention"])  # fmt: skip
def test_any_number_of_frames(make: Callable[[], Encoder], setting: str, tmp_path: Path, table: Path) -> None:
    encoder = make()
    if setting == "num_moments":
        nn.init.normal_(encoder.aggregate_moments.weigh.weight)  # type: ignore[union-attr, arg-type]
    run = save(tmp_path / "run", encoder)
    path = export(run, str(tmp_path / "s.onnx"), dynamic_frames=True, table=str(table))
    assert len(report_of(path)["parity"]["largest_difference"]) == 6
    for count in (2, 5):
        expected, given = (Predictor.load(m, device="cpu", view={setting: count})(table.parent / "6.mp4")
                           for m in (run, path))  # fmt: skip
        assert given.frames == count
        assert dict(given.labels) == pytest.approx(dict(expected.labels), abs=1e-4)


VIEWS = {
    "whole": View(size=(48, 40)),
    "bicubic": View(size=(90, 20), interpolation="bicubic"),
    "short side": View(size=(32, 32), resize=37),
    "sides": View(size=(30, 31), resize=(41, 64), interpolation="bicubic"),
}


@pytest.mark.parametrize("name", VIEWS)
def test_resize_inside_is_that_of_pillow(name: str) -> None:
    """Reference: the function of training, on frames that are larger and smaller, upright and wide."""
    rng = np.random.default_rng(0)
    for height, width in ((120, 161), (61, 97), (38, 38)):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).resize((width, height))
        frame = np.asarray(coarse) ^ rng.integers(0, 32, (height, width, 3), np.uint8)
        expected = render_view([frame], VIEWS[name], NO_DRAW)[0, 0]
        given = Resample(VIEWS[name])(torch.from_numpy(frame.transpose(2, 0, 1).copy())).numpy()
        difference = np.abs(given.astype(int) - expected)
        assert difference.max() <= 2  # both passes tip
        assert (difference > 0).mean() < (0.05 if height == 38 else 0.01)


def test_frames_of_any_size(tmp_path: Path, table: Path, make_video: MakeVideo) -> None:
    run = save(tmp_path / "run", small(resize=40, interpolation="bicubic"))
    path = export(run, str(tmp_path / "s.onnx"), preprocess=True, table=str(table))
    assert report_of(path)["geometry"]["largest_difference_of_255"] <= 1
    noise = np.random.default_rng(3).integers(0, 256, (5, 90, 44, 3), np.uint8)
    make_video(tmp_path / "upright.mp4", noise)
    for video in (table.parent / "4.mp4", tmp_path / "upright.mp4"):
        expected, given = (Predictor.load(m, device="cpu")(video) for m in (run, path))
        assert dict(given.labels) == pytest.approx(dict(expected.labels), abs=5e-3)
    with pytest.raises(ValueError, match=r"view.interpolation is fixed in this model"):
        Predictor.load(path, view={"interpolation": "bilinear"})


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_the_file(
    precision: str, exported: tuple[Encoder, str, Path], recorded: str, tmp_path: Path, table: Path
) -> None:
    path = export(recorded, str(tmp_path / "s.onnx"), precision=precision, table=str(table))  # type: ignore[arg-type]
    assert path.stat().st_size < 0.7 * exported[2].stat().st_size
    found = report_of(path)["parity"]["largest_difference"]["batch size 2"]["absolute"]
    assert 0.0 < found < {"float16": 1e-2, "bfloat16": 1e-1}[precision]


def test_int8_is_calibrated_with_training_samples(
    exported: tuple[Encoder, str, Path], recorded: str, tmp_path: Path, table: Path
) -> None:
    path = export(recorded, str(tmp_path / "s.onnx"), precision="int8", table=str(table),
                  float_layers=0, max_drop=100.0)  # fmt: skip
    graph = onnx.load(str(path)).graph
    weights = [t for t in graph.initializer if t.data_type == onnx.TensorProto.UINT8 and len(t.dims) > 1]
    assert len(weights) == sum(n.op_type in ("Conv", "Gemm") for n in graph.node) > 5
    kept = export(recorded, str(tmp_path / "k.onnx"), precision="int8", table=str(table), max_drop=100.0,
                  float_layers=1)  # fmt: skip
    heavy = [n for n in onnx.load(str(kept)).graph.node if n.op_type in ("Conv", "Gemm")]
    floats = {t.name for t in onnx.load(str(kept)).graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    assert [n.input[1] in floats for n in heavy] == [True, *[False] * (len(heavy) - 1)]
    frames = np.random.default_rng(0).integers(0, 256, (1, 1, 3, 64, 64), np.uint8)
    expected = exported[0](torch.from_numpy(frames))["logits"][0].detach().numpy()
    given = load_network(str(path), device="cpu", view={})[0]({"frames": frames})
    assert 0.0 < np.abs(given - expected).max() < 0.1 * np.abs(expected).max() + 0.05


def test_int8_that_loses_too_much_is_refused(
    recorded: str, tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quantiser that always says the class which the network never says; the labels are what the network says."""
    predictor = Predictor.load(recorded, device="cpu")
    said = {name: predictor(table.parent / name).labels[0][0] for name in ("4.mp4", "5.mp4", "6.mp4")}
    (table.parent / "own.csv").write_text("path,label,split\n" + "".join(f"{k},{v},test\n" for k, v in said.items()))
    never = [99.0 * (name not in said.values()) for name in TASK.class_names]
    assert sum(never) > 0

    def broken(content: bytes, *_: Any, **__: Any) -> bytes:
        model = onnx.load_model_from_string(content)
        (bias,) = (t for t in model.graph.initializer if list(t.dims) == [3])
        bias.CopyFrom(onnx.numpy_helper.from_array(np.array(never, np.float32), bias.name))
        result: bytes = model.SerializeToString()
        return result

    monkeypatch.setattr("stillmotion.export.quantise.quantise", broken)
    (tmp_path / "s.onnx").write_text("before")
    with pytest.raises(NotDelivered, match=r"it loses 100.0 points of top1 on own.csv.* \(agreement 0.000\)"):
        export(recorded, str(tmp_path / "s.onnx"), precision="int8", table=str(table.parent / "own.csv"))
    assert (tmp_path / "s.onnx").read_text() == "before"
    assert not (tmp_path / "s.onnx.report.json").exists()


def test_disagreeing_file_is_refused(
    exported: tuple[Encoder, str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A graph whose last bias was changed stands for an exporter's mistake."""
    model = onnx.load(str(exported[2]))
    bias = next(t for t in model.graph.initializer if list(t.dims) == [3])
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 0.01, bias.name))
    monkeypatch.setattr("stillmotion.export.onnx.to_onnx", lambda *_: model.SerializeToString())
    assert main(["export", exported[1], "--output", str(tmp_path / "s.onnx")]) == 1
    line = capsys.readouterr().err.strip()
    assert "not exported, as its logits differ from the network's by 0.01 at batch size" in line
    assert "\n" not in line
    assert not list(tmp_path.iterdir())


@needs_openvino
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_openvino(precision: str, recorded: str, tmp_path: Path, table: Path) -> None:
    path = export(recorded, str(tmp_path / "s.xml"), table=str(table), precision=precision, max_drop=100.0)  # type: ignore[arg-type]
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["s.bin", "s.xml", "s.xml.report.json"]
    expected, given = (Predictor.load(m, device="cpu", threads=1)(table.parent / "4.mp4") for m in (recorded, path))
    assert dict(given.labels) == pytest.approx(dict(expected.labels), abs=2e-2 if precision == "int8" else 1e-3)
    (tmp_path / "s.bin").write_bytes(b"\0" * (tmp_path / "s.bin").stat().st_size)
    with pytest.raises(ValueError, match=r"s.xml: s.bin beside it belongs to another model"):
        load_network(str(path), device="cpu", view={})


def test_torch_export(exported: tuple[Encoder, str, Path], tmp_path: Path, table: Path) -> None:
    path = export(exported[1], str(tmp_path / "s.pt2"), table=str(table))
    expected, given = (Predictor.load(m, device="cpu")(table.parent / "4.mp4") for m in (exported[1], path))
    assert dict(given.labels) == pytest.approx(dict(expected.labels), abs=1e-5)


def test_command_compares_on_the_table_of_the_training(
    recorded: str, tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(recorded, tmp_path / "run"))
    (table.parent / "5.mp4").write_bytes(b"broken")
    (run / "settings.json").write_text(json.dumps({"table": str(table), "table_hash": "0" * 16, "data": {}}))
    target = tmp_path / "deep" / "s.onnx"
    assert main(["export", str(run), "--output", str(target)]) == 1, "a sample could not be read"
    shown = capsys.readouterr()
    assert f"{target}.report.json" in shown.err
    assert "top1\t" in shown.out
    report = report_of(target)
    assert list(report["unreadable"]) == ["5.mp4"]
    assert report["accuracy"]["samples"] == 2
    assert report["training"]["table"] == "0" * 16
    # By hand: what torch says of the two videos that can be read.
    predictor = Predictor.load(run, device="cpu")
    right = [predictor(table.parent / f"{k}.mp4").labels[0][0] == "ab"[k % 2] for k in (4, 6)]
    assert report["accuracy"]["torch"]["top1"] == sum(right) / 2


def test_a_prediction_imports_nothing_that_it_does_not_need(exported: tuple[Encoder, str, Path], table: Path) -> None:
    """Stands for "cold in under 0.6 s" without a clock: what is imported is what takes the time."""
    code = (
        "import sys\n"
        "from stillmotion.__main__ import main\n"
        f"code = main(['predict', {str(exported[2])!r}, {str(table.parent / '0.mp4')!r}])\n"
        "print(*sorted(sys.modules), file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["labels"]
    modules = set(result.stderr.split())
    needless = {"torch", "torchvision", "timm", "onnx", "cv2", "scipy", "sklearn", "matplotlib", "jinja2", "pyarrow",
                "rich", "multiprocessing", "stillmotion.live", "stillmotion.evaluate", "stillmotion.train"}  # fmt: skip
    assert modules & needless == set()
    assert len([name for name in modules if name.startswith("stillmotion.")]) <= 50, "44 when this was written"
    assert len(modules) <= 600, "510 when this was written, with all extras installed"


def test_flow_without_opencv_is_one_line(exported: tuple[Encoder, str, Path], tmp_path: Path, table: Path) -> None:
    _, facts = open_exported(str(exported[2]), device="cpu")
    facts["views"]["frames"]["kind"] = "flow"
    path = tmp_path / "f.onnx"
    path.write_bytes(with_facts(exported[2].read_bytes(), facts))
    code = (
        "import sys\n"
        "for name in ('torch', 'cv2'): sys.modules[name] = None\n"
        "from stillmotion.__main__ import main\n"
        f"sys.exit(main(['predict', {str(path)!r}, {str(table.parent / '0.mp4')!r}]))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert "sees optical flow, which OpenCV computes; pip install 'stillmotion[flow]'" in result.stderr


MISTAKES = [
    ({"output": "s.pt"}, r"output=s.pt: give a name that ends in one of .onnx \(onnx\), .xml"),
    ({"output": "s.onnx", "format": "openvino"}, r"output=s.onnx: give a name that ends in .xml"),
    ({"output": "s.onnx", "precision": "int4"}, r"precision='int4': choose one of float32"),
    ({"output": "s.pt2", "precision": "int8"}, r"precision=int8: .pt2 files are float32"),
    ({"output": "s.onnx", "precision": "int8"}, r"frames of the training: give its table as --table"),
    ({"output": "s.onnx", "dynamic_frames": True}, r"dynamic_frames: sees one frame"),
    ({"output": "s.onnx", "calibration_samples": 0}, r"calibration_samples=0: must be at least 1"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda m: str(m)[:40])
def test_mistakes_are_named(arguments: dict[str, Any], message: str, exported: tuple[Encoder, str, Path]) -> None:
    with pytest.raises(ValueError, match=message):
        export(exported[1], **arguments)
    assert not Path(arguments["output"]).exists()


def test_flow_is_not_made_inside_a_graph() -> None:
    with pytest.raises(ValueError, match="preprocess: flow is not made from frames inside a graph"):
        Network(small(kind="flow", num_frames=2).eval(), preprocess=True)


def test_files_that_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"bad.onnx: not an ONNX model"):
        load_network(str(tmp_path / "bad.onnx"), device="cpu", view={})
    with pytest.raises(ValueError, match=r"threads=0: must be at least 1"):
        load_network("s.onnx", device="cpu", view={}, threads=0)
