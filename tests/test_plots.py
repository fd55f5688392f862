"""Pictures: what is drawn, read back from the figure or the file; how it looks is judged by eye."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from stillmotion.report import plots
from stillmotion.results import Row, make_row


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures that were saved during the test."""
    figures: list[Figure] = []
    save = plots.save_figure

    def keep(figure: Figure, png: Path, *, dpi: int = 60) -> Path:
        figures.append(figure)
        return save(figure, png, dpi=dpi)

    monkeypatch.setattr(plots, "save_figure", keep)
    return figures


def write_metrics(path: Path, losses: list[float]) -> Path:
    lines = ["epoch,step,train/task_loss,train/hallucination_loss"]
    for epoch, loss in enumerate(losses):
        lines += [f"{epoch},{2 * epoch},1.0,{loss}", f"{epoch},{2 * epoch + 1},,"]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_read_curve_averages_an_epoch(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,loss\n0,1\n0,3\n1,\n2,nan\n3,5\n")
    assert plots.read_curve(path, "loss") == {0: 2.0, 3: 5.0}
    assert plots.read_curve(path, "other") == {}


def test_curves_show_mean_and_range_of_seeds(tmp_path: Path, drawn: list[Figure]) -> None:
    files = [write_metrics(tmp_path / f"{i}.csv", [0.4 + i, 0.2, 0.1]) for i in range(2)]
    columns = {"Hallucination loss": "train/hallucination_loss", "Nothing": "train/none"}
    png = plots.plot_curves({"hallucinet": files, "no data": []}, columns, tmp_path / "curves.png")
    assert png == tmp_path / "curves.png"
    (axis,) = drawn[0].axes
    assert axis.get_title(loc="left") == "Hallucination loss"
    (line,) = axis.get_lines()
    np.testing.assert_allclose(line.get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(line.get_ydata(), [0.9, 0.2, 0.1])
    assert len(axis.collections) == 1


def test_no_curve_no_picture(tmp_path: Path) -> None:
    file = write_metrics(tmp_path / "m.csv", [0.1])
    assert plots.plot_curves({"plain": [file]}, {"x": "train/none"}, tmp_path / "x.png") is None
    assert not (tmp_path / "x.png").exists()


def test_confusion_shows_counts_in_their_place(tmp_path: Path, drawn: list[Figure]) -> None:
    matrix = np.array([[5, 1], [0, 4]])
    plots.plot_confusion(matrix, ["jump", "sit"], tmp_path / "confusion.png")
    axis = drawn[0].axes[0]
    assert {(t.get_position(), t.get_text()) for t in axis.texts} == {((0, 0), "5"), ((1, 0), "1"), ((1, 1), "4")}
    assert axis.get_title(loc="left") == "90.0 % of 10 right"
    np.testing.assert_allclose(axis.get_images()[0].get_array(), [[5 / 6, 1 / 6], [0, 1]])


def test_cost_places_rows_and_draws_free_ones_as_lines(tmp_path: Path, drawn: list[Figure]) -> None:
    rows = [
        make_row("student", {"top1": [0.5, 0.6]}, {"gmacs": 0.3, "ms_per_video": 4}),
        make_row("teacher", {"top1": [0.8]}, {"gmacs": 30, "ms_per_video": 200}),
        make_row("majority", {"top1": [0.2]}, {"frames": 0}),
    ]
    plots.plot_cost(rows, tmp_path / "results.png")
    left, right = drawn[0].axes
    assert (left.get_xscale(), left.get_xlabel(), right.get_xlabel()) == ("log", "GMACs", "ms / video")
    points = {tuple(np.round(c.lines[0].get_xydata()[0], 6)) for c in left.containers}
    assert points == {(0.3, 55.0), (30.0, 80.0)}
    assert [t.get_text() for t in drawn[0].legends[0].get_texts()] == ["student", "teacher", "majority"]


def test_equal_costs_stand_side_by_side() -> None:
    places = plots._beside([0.31, 10.0, 0.30, 0.0, 0.32])
    assert (places[1], places[3]) == (10.0, 0.0)
    near = [places[0], places[2], places[4]]
    assert near == pytest.approx([0.31 / 1.07, 0.31, 0.31 * 1.07])


@pytest.mark.parametrize("rows", [[], [make_row("a", {"r2": [0.5]})], [make_row("a", {"top1": [float("nan")]})]])
def test_cost_of_little_still_draws(tmp_path: Path, rows: list[Row]) -> None:
    assert plots.plot_cost(rows, tmp_path / "x.png").stat().st_size > 500


def test_series_keep_their_order(tmp_path: Path, drawn: list[Figure]) -> None:
    lines = {"a": {"1": (50.0, 1.0), "8": (60.0, None)}, "b": {"1": (40.0, None), "2": (41.0, None)}}
    plots.plot_series(lines, tmp_path / "s.png", xlabel="frames", ylabel="top1 (%)")
    assert [t.get_text() for t in drawn[0].axes[0].get_xticklabels()] == ["1", "8", "2"]


def test_sheet_holds_every_sample(tmp_path: Path, drawn: list[Figure]) -> None:
    samples = [(f"label {i}", np.full((2, 20, 30, 3), 40 * i, np.uint8)) for i in range(5)]
    plots.plot_samples(samples, tmp_path / "sheet.png", columns=2)
    pictures = [a.get_images()[0].get_array() for a in drawn[0].axes if a.get_images()]
    assert [p.shape for p in pictures] == [(20, 62, 3)] * 5  # two frames and a white gap of two pixels
    assert [int(p[0, 0, 0]) for p in pictures] == [0, 40, 80, 120, 160]
    assert Image.open(tmp_path / "sheet.png").width > 100
