"""The recipes of dives and scenes, real and rendered: they parse, say what they must, and their tiny sizes run."""

import inspect
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from stillmotion import api
from stillmotion.__main__ import main
from stillmotion.config import DataConfig, MethodConfig, ModelConfig, OptimConfig, RowConfig
from stillmotion.data.render.dives import plan_dives
from stillmotion.methods import build_method
from stillmotion.models.encoder import Encoder
from stillmotion.models.factory import load_model
from stillmotion.models.sequence import FrameSequence
from stillmotion.optim import Schedule
from stillmotion.results import read_results
from stillmotion.tasks import Classification
from tests.conftest import MakeVideo
from tests.recipes import CONFIGS, commands_of, settings_of

DIVES = [CONFIGS / "hallucinet" / f"mtl_aqa_{name}.yaml" for name in ("attributes", "score")]
SCENES = [CONFIGS / "hallucinet" / f"{name}yup_plus_plus.yaml" for name in ("", "static_")]
RENDERED = [
    CONFIGS / "simulators" / f"{name}.yaml"
    for name in ("dives", "dives_transfer", "scenes", "scenes_half", "dives_alone")
]
MTL_AQA_TINY = CONFIGS / "hallucinet" / "mtl_aqa_tiny.yaml"
TRANSFER_TINY = CONFIGS / "hallucinet" / "transfer_tiny.yaml"
ATTRIBUTES = ["position", "armstand", "rotation_type", "ss_no", "tw_no"]
SIX = {"num_moments": 6, "moment": "spaced", "spacing": 16, "jitter": 3}
TASK = Classification(("a", "b"))

WriteTable = Callable[[str], Path]


@pytest.fixture
def write_videos(tmp_path: Path, make_video: MakeVideo) -> WriteTable:
    """Five training and two test videos of 20 frames, much shorter than a dive, and a table with given columns."""

    def write(columns: str) -> Path:
        folder, rng = tmp_path / columns.replace(",", "-"), np.random.default_rng(0)
        lines = [f"path,split,{columns}"]
        for k in range(7):
            noise = rng.integers(0, 256, (20, 6, 8, 3), np.uint8)
            make_video(folder / f"{k}.mp4", noise.repeat(8, 1).repeat(8, 2))
            cells = [str(10 * k) if name == "final_score" else "ab"[k % 2] for name in columns.split(",")]
            lines.append(",".join([f"{k}.mp4", "train" if k < 5 else "test", *cells]))
        (folder / "table.csv").write_text("\n".join(lines) + "\n")
        return folder / "table.csv"

    return write


def tiny_command(path: Path, places: dict[str, Path]) -> list[str]:
    """The tiny command of a comment, word for word but for the places."""
    (command,) = [c for c in commands_of(path) if "TABLE" in c]
    return [str(places.get(word, word)) for word in command]


@pytest.mark.parametrize("path", DIVES + SCENES, ids=lambda p: p.stem)
def test_recipe_of_a_paper_says_what_it_needs(path: Path) -> None:
    text, settings = path.read_text(), settings_of(path)
    command = "compare" if path in DIVES else "train"
    assert set(settings) <= set(inspect.signature(getattr(api, command)).parameters)
    for word in ("# Data needed:", "# Teacher:", "# Student:", "# Published", "Not reproduced here yet",
                 "# Hardware and time: not measured", "# Tiny local size"):  # fmt: skip
        assert word in text, word
    assert [command, "--config", f"configs/hallucinet/{path.name}"] in commands_of(path)
    reader = "mtl_aqa" if path in DIVES else path.stem
    assert any(c[:3] == ["data", "table", reader] and c[-1] == settings["table"] for c in commands_of(path))


@pytest.mark.parametrize(
    ("path", "figures"),
    [
        (DIVES[0], "92.63, 99.72, 86.40, 87.25, 84.70; HalluciNet 93.77, 99.72, 94.33, 88.67, 86.97"),
        (DIVES[1], "2D-CNN 82.18, HalluciNet 83.33"),
        (SCENES[0], "80.46 % top-1, 77.50 % without the teacher"),
        (SCENES[1], "88.10 % top-1, 79.84 % without the teacher"),
    ],
    ids=lambda p: getattr(p, "stem", ""),
)
def test_published_figures(path: Path, figures: str) -> None:
    """METHODS 2.6. Table 6 has a split that nobody else has."""
    assert figures in path.read_text()
    assert ("another split" in path.read_text()) == path.stem.startswith("static_")


@pytest.mark.parametrize("path", DIVES + SCENES + RENDERED, ids=lambda p: p.stem)
def test_commands_of_the_comment_are_understood(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them; those with other targets learn these, and stage one stays what it is."""
    monkeypatch.chdir(CONFIGS.parent)
    for command in commands_of(path):
        with pytest.raises(SystemExit) as end:
            main([*command, "--print_config"])
        assert end.value.code == 0, command
        parsed = yaml.safe_load(capsys.readouterr().out)
        if "--targets" in command:
            at = command.index("--targets") + 1
            wanted = list(takewhile(lambda word: not word.startswith("--"), command[at:]))
            assert parsed["data"]["targets"] == wanted
            assert {*wanted} in ({*ATTRIBUTES}, {"final_score:score"}, {*ATTRIBUTES, "final_score:score"})
            for name, row in parsed["rows"].items():
                assert (row["data"].get("targets") == ["label"]) == (row["table"] is not None), name


def test_dives_follow_the_text() -> None:
    """METHODS 2.4: 20 epochs of Adam at 1e-4; for the score a tenth of the rate every five."""
    for path, rates in zip(DIVES, ([1e-4] * 4, [1e-4, 1e-5, 1e-6, 1e-7]), strict=True):
        settings = settings_of(path)
        optim = OptimConfig(**settings["optim"])
        assert (optim.optimiser, optim.epochs) == ("adam", 20)
        # 42 steps an epoch, the last one of epochs 5, 10, 15 and 20.
        assert [optim.lr * Schedule(optim, 42).factor(42 * e - 1) for e in (5, 10, 15, 20)] == pytest.approx(rates)
        rows = settings["rows"]
        stages = {name: row["method"]["options"]["weight"] for name, row in rows.items() if "table" in row}
        assert stages == {"stage_classes": 0, "stage_both": 50}
        for name in stages:
            assert rows[name]["table"] == "ucf101.csv"
            assert (rows[name]["optim"]["epochs"], rows[name]["optim"]["step_epochs"]) == (50, 30)
        for name in set(rows) - set(stages):
            student = rows[name]["student"]
            stage = "stage_classes" if name == "cnn_2d" else "stage_both"
            assert student["options"] == {"aggregate": "lstm", "hidden_dim": 256, "backbone": {"name": f"row:{stage}"}}
            assert {**SIX, "outside": True}.items() <= student["view"].items()
        assert {name for name, row in rows.items() if "method" in row} == {*stages, "hallucinet_both_stages"}
        assert (settings["baselines"], settings["reference"]) == (["majority"], ["cnn_2d"])
        assert ["baselines", "mtl-aqa", "--root", "MTL-AQA"] in commands_of(path)
    attributes, score = (DataConfig(**{**settings_of(p)["data"], "score": None}) for p in DIVES)
    assert (attributes.targets, score.targets) == (ATTRIBUTES, ["final_score:score"])
    assert settings_of(DIVES[1])["data"]["score"] == {"loss": "mse", "offset": 0, "scale": 17}


def test_scenes_are_the_recipe_of_actions_with_lambda_1() -> None:
    actions = settings_of(CONFIGS / "hallucinet" / "ucf_static.yaml")
    for path in SCENES:
        settings = settings_of(path)
        assert settings["method"]["options"]["weight"] == 1
        settings["method"]["options"]["weight"] = 50
        changed = {key for key in actions if settings[key] != actions[key]}
        assert changed == {"table", "output"}


@pytest.mark.parametrize("path", RENDERED, ids=lambda p: p.stem)
def test_recipe_of_rendered_videos_claims_nothing(path: Path) -> None:
    text, settings = path.read_text(), settings_of(path)
    assert set(settings) <= set(inspect.signature(api.compare).parameters)
    for word in ("says nothing about real", "# Tiny local size"):
        assert word in text, word
    assert ("Result: docs/results/simulators" in text) != ("Not run yet" in text)
    assert ("\n# Time: " in text) != ("\n# Time (an estimate" in text)
    assert settings["seeds"] == [0, 1, 2]
    assert "majority" in settings["baselines"]
    rows = settings["rows"]
    if path.stem == "dives_transfer":
        starts = [row["student"]["options"]["backbone"]["name"] for n, row in rows.items() if n.startswith("from_")]
        assert starts == [
            "timm/mobilenetv2_100", "row:pre_classes", "row:pre_hallucination", "row:pre_both", "row:pre_both"
        ]  # fmt: skip
        return
    if path.stem == "dives_alone":
        together = settings_of(RENDERED[0])
        assert settings["data"] == {**together["data"], "targets": ["final_score:score"]}
        assert settings["optim"] == together["optim"]
        assert rows["plain"] == together["rows"]["plain"]
        # The first teacher of dives.yaml is already trained.
        first = {"teacher": {"name": f"{together['output']}/runs/teacher/test/seed0"}, "teacher_seed": "same"}
        assert {**rows["hallucinet"], "teacher_seed": "same"} == {**together["rows"]["hallucinet"], **first}
        return
    weight = 1 if "scenes" in path.stem else 50
    options = {name: row["method"]["options"] for name, row in rows.items() if "method" in row}
    assert list(rows) == ["teacher", "plain", *options]
    others = {} if "scenes" in path.stem else {"hallucinet_500": {"weight": 500}}
    assert options == {
        "plain_with_branch": {"weight": 0},
        "hallucinet": {"weight": weight},
        "shuffled": {"weight": weight, "control": "shuffled"},
        **others,
    }
    assert all(rows[name]["student"] == rows["plain"]["student"] for name in options)
    assert settings["reference"] == ["plain", "plain_with_branch", "shuffled"]


def test_every_turn_of_the_test_is_learned() -> None:
    """A class that only the test has would be refused."""
    (render,) = {tuple(c) for p in RENDERED[:2] for c in commands_of(p) if c[:2] == ["render", "dives"]}
    words = dict(zip(render[2::2], render[3::2], strict=True))
    plan = plan_dives(int(words["--dives"]), int(words["--events"]))
    for column in ATTRIBUTES:
        learned, tested = ({d.row()[column] for d in plan if d.split == split} for split in ("train", "test"))
        assert tested <= learned, column


def network(model: dict[str, Any], rows: dict[str, Any]) -> Encoder:
    """A named network, without its weights, on small pictures."""
    view = model.get("view", {})
    while model["name"].startswith("row:"):
        model = rows[model["name"].removeprefix("row:")]["student"]
    options = dict(model.get("options", {}))
    if "backbone" in options:
        inner = options["backbone"]
        while inner["name"].startswith("row:"):
            inner = rows[inner["name"].removeprefix("row:")]["student"]
        options["backbone"] = {key: value for key, value in inner.items() if key in ("name", "options")}
    view = {**model.get("view", {}), **view, "size": 32}
    return load_model(ModelConfig(name=model["name"], options=options, view=view), num_classes=2)


@pytest.mark.parametrize("path", RENDERED[:-1], ids=lambda p: p.stem)  # the rows of the last are the first one's
def test_every_row_of_rendered_videos_makes_a_step(path: Path) -> None:
    rows = settings_of(path)["rows"]
    for name, settings in rows.items():
        row = RowConfig(**settings)
        assert set(row.optim) <= set(inspect.signature(OptimConfig).parameters)
        teachers = {"teacher": network(settings["teacher"], rows)} if row.teacher else {}
        method = MethodConfig(**settings.get("method", {}))
        built = build_method(method, network(settings["student"], rows), teachers, TASK)
        batch: dict[str, torch.Tensor] = {
            key: torch.randint(0, 256, (2, view.num_shown, view.num_frames, 3, 32, 32), dtype=torch.uint8)
            for key, view in built.views().items()
        }
        out = built({**batch, "target": torch.tensor([0, 1]), "index": torch.arange(2)})
        assert out["loss"].isfinite(), name
        out["loss"].backward()
        assert isinstance(built.student, FrameSequence) == ("dives" in path.stem and "table" not in settings), name


@pytest.mark.parametrize(
    ("full", "tiny"),
    [*((path, MTL_AQA_TINY) for path in DIVES),
     (RENDERED[0], RENDERED[0].with_stem("dives_tiny")),
     *((path, path.with_stem("scenes_tiny")) for path in RENDERED[2:4])],
    ids=lambda p: p.stem,
)  # fmt: skip
def test_tiny_size_differs_in_sizes_only(full: Path, tiny: Path) -> None:
    big, small = settings_of(full), settings_of(tiny)
    assert list(big["rows"]) == list(small["rows"])
    sizes = {"size", "mean", "std"}
    for name, row in big["rows"].items():
        other = small["rows"][name]
        method, other_method = (r.get("method", {"options": {}}) for r in (row, other))
        method["options"].pop("tap", None)  # the hidden layer of VGG, which small networks do not have
        assert method == other_method, name
        for key in ("data", "cache", "table", "teacher_seed"):
            assert row.get(key) == other.get(key), name
        assert (row.get("teacher", {}).get("name", "").startswith("row:")) == (
            other.get("teacher", {}).get("name", "").startswith("row:")), name  # fmt: skip
        views = [{k: v for k, v in r["student"].get("view", {}).items() if k not in sizes} for r in (row, other)]
        assert views[0] == views[1], name
    assert (big["baselines"], big["reference"]) == (small["baselines"], small["reference"])


@pytest.mark.slow
@pytest.mark.parametrize("path", DIVES, ids=lambda p: p.stem)
def test_tiny_size_of_the_dives_runs(path: Path, write_videos: WriteTable, tmp_path: Path) -> None:
    columns = ",".join([*ATTRIBUTES, "final_score"])
    places = {"TABLE": write_videos(columns), "ACTIONS": write_videos("label"), "RUN": tmp_path / "run"}
    assert main(tiny_command(path, places)) == 0
    rows = {row["name"]: row["metrics"] for row in read_results(tmp_path / "run")}
    assert list(rows) == ["majority", "cnn_2d", "hallucinet", "hallucinet_both_stages"]
    wanted = {"spearman", "relative_l2"} if path.stem.endswith("score") else {f"top1.{c}" for c in ATTRIBUTES}
    assert all(wanted <= metrics.keys() for metrics in rows.values())
    assert [name for name, metrics in rows.items() if "hallucinated_r2" in metrics] == ["hallucinet_both_stages"]


@pytest.mark.parametrize("path", SCENES, ids=lambda p: p.stem)
def test_tiny_size_of_the_scenes_runs(
    path: Path, write_videos: WriteTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    assert main(tiny_command(path, {"TABLE": write_videos("label"), "RUN": tmp_path / "run"})) == 0
    (row,) = read_results(tmp_path / "run")
    assert {"top1", "hallucinated_r2"} <= row["metrics"].keys()


@pytest.mark.slow
@pytest.mark.parametrize("path", RENDERED[::2], ids=lambda p: p.stem)
def test_tiny_size_of_rendered_videos_runs(
    path: Path, write_videos: WriteTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    columns = "label" if "scenes" in path.stem else ",".join([*ATTRIBUTES, "final_score", "difficulty", "group"])
    assert main(tiny_command(path, {"TABLE": write_videos(columns), "RUN": tmp_path / "run"})) == 0
    settings = settings_of(path)
    assert [row["name"] for row in read_results(tmp_path / "run")] == [*settings["baselines"], *settings["rows"]]
