"""`benchmarks/corpus.py`: what corpora take follows from the rates, and the page shows that."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.corpus import CORES, CORPORA, Corpus, Rates, limits, measure, tables, work_of

ROOT = Path(__file__).parents[1]
RATES = json.loads((ROOT / "docs" / "results" / "corpus" / "rates.json").read_text())["rates"]
PART = {"ms": 2.0, "bytes": 100.0, "from": "by hand"}
BY_HAND: Rates = {name: PART for name in ("check", "pack", "dis", "tvl1", "small", "large", "predict", "driver")}


def test_core_seconds_bytes_and_items_by_hand() -> None:
    corpus = Corpus("a thousand", 1000, 20.0, 1e5, fps=30.0)
    assert work_of(corpus, BY_HAND, "pack, 128 lines") == (1000 * 20 * 30 * 0.002, 1000 * 20 * 30 * 100.0, 1000)
    assert work_of(corpus, BY_HAND, "extract, r3d_18") == (1000 * 2 * 0.002, 1000 * 2 * 100.0, 1000 * 2 / 8)
    assert work_of(corpus, BY_HAND, "predict, one frame")[2] == 2000


def test_limits_by_hand() -> None:
    corpus = Corpus("a thousand", 1000, 20.0, 1e5, fps=30.0)
    seconds = 1200.0  # of cores; 2 GB are read, 60 MB written, 1000 records take 2 ms and 1 ms of waiting
    assert limits(corpus, BY_HAND, "pack, 128 lines") == pytest.approx(
        {"file server": seconds / (2e9 / 1.25e9), "driver's disk": seconds / (60e6 / 0.5e9), "driver": seconds / 3.0}
    )
    assert "driver's disk" not in limits(corpus, BY_HAND, "flow, DIS")


def test_the_page_shows_what_the_rates_give() -> None:
    page = (ROOT / "docs" / "corpora.md").read_text(encoding="utf-8")
    assert tables(RATES) in page
    assert {c.name for c in CORPORA} == set(re.findall(r"^\*\*(.+)\*\*: .* files of", page, re.M))
    assert all(f"on {n} cores" in page for n in CORES)


def test_rates_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STILLMOTION_DATA", raising=False)
    rates = measure(["check", "pack", "dis"], 1, 6)
    assert rates["check"]["ms"] > 0
    assert rates["pack"]["bytes"] > 100
    assert rates["dis"]["ms"] > rates["check"]["ms"]
