"""`benchmarks/gpu.py --tiny`: what it counts; its times mean nothing on a CPU."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import gpu
from stillmotion.methods.supervised import Supervised
from stillmotion.models.encoder import Batch, Encoder
from stillmotion.view import View


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *rows: str) -> dict[str, Any]:
    """The document that the script writes."""
    path = folder / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny", "--output", str(path), *(["--rows", *rows] if rows else [])])
    gpu.main()
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def check(document: dict[str, Any]) -> None:
    """What holds of every row."""
    for row in document["rows"].values():
        (spent,) = row["seconds"]["+layout"]
        assert row["clips_per_second"] == {"+layout": pytest.approx(2 / spent)}
        assert row["mfu"] == pytest.approx(row["operations"] / spent / document["ceiling"])
        assert sum(row["shares"].values()) == pytest.approx(1.0)
        assert row["shares"]["matrix"] > 0.0


def test_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    document = run(tmp_path, monkeypatch, "hallucinet_cached")
    check(document)
    assert document["rows"]["hallucinet_cached"]["fed"] > 0.0
    assert "hallucinet_cached" in capsys.readouterr().out


@pytest.mark.slow
def test_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = run(tmp_path, monkeypatch)
    check(document)
    assert list(document["rows"]) == list(gpu.methods(tiny=True))
    live, cached = (document["rows"][f"hallucinet_{name}"]["operations"] for name in ("live", "cached"))
    assert live > cached


class Small(Encoder):
    """One convolution and one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.views = {"frames": View(size=(4, 4))}
        self.embedding_dim, self.num_classes = 6, 101
        self.stem, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 101)

    def forward_views(self, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.stem(inputs[0][:, 0]).mean((2, 3))
        return {"embedding": x, "logits": self.head(x)}


def test_operations_by_hand() -> None:
    method = Supervised({"student": Small()}, gpu.TASK)
    batch: Batch = gpu.Memory(method, 5, 1).batch
    # Per sample: 2 x 2 places, 6 maps, 3 x 3 x 3 weights; and 6 x 101. Twice: multiply and add. The convolution has no
    # gradient to its input, the linear layer has both.
    convolution, linear = 2 * 5 * 4 * 6 * 27, 2 * 5 * 6 * 101
    assert gpu.operations(method, batch, "cpu") == 2 * convolution + 3 * linear
