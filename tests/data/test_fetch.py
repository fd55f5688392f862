"""What `data fetch-list` says of a data set is what its reader reads."""

from importlib import import_module
from pathlib import Path

import pytest

from stillmotion.__main__ import main
from stillmotion.data.sets import SETS, fetch_list
from stillmotion.data.sets.fetch import Fetch


def of(name: str) -> Fetch:
    found = import_module(f"stillmotion.data.sets.{name}").FETCH
    assert isinstance(found, Fetch)
    return found


@pytest.mark.parametrize("name", SETS)
def test_the_reader_reads_what_the_list_lays_out(tmp_path: Path, name: str) -> None:
    of(name).lay_out(tmp_path)
    table = SETS[name](tmp_path)
    assert len(table) > 0
    assert all(s.path.exists() for s in table)
    videos = {path for path, content in of(name).layout.items() if content == ""}
    read = {s.path.relative_to(tmp_path) for s in table}
    assert {Path(v) for v in videos} <= read | {Path(v) for v in videos if Path(v).parent in read}


@pytest.mark.parametrize("name", SETS)
def test_every_entry_says_where_what_and_under_which_terms(name: str) -> None:
    fetch = of(name)
    assert fetch.home
    assert fetch.files
    assert fetch.terms
    assert all(page.startswith("http") for page in fetch.home)


def test_the_command_prints_one_or_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "fetch-list", "hmdb51"]) == 0
    text = capsys.readouterr().out
    assert text.rstrip() == fetch_list("hmdb51")
    assert "page   https://serre-lab.clps.brown.edu" in text
    assert "ROOT/testTrainMulti_7030_splits/kick_test_split1.txt  (as: Film_kick_f_cm_np1_le_bad_1.avi 1" in text
    assert main(["data", "fetch-list"]) == 0
    text = capsys.readouterr().out
    assert all(f"`stillmotion data table {name} ROOT`" in text for name in SETS)
    assert main(["data", "fetch-list", "nosuchset"]) == 2
    assert capsys.readouterr().err.startswith("stillmotion: error: unknown data set 'nosuchset'; known: ucf101, hmdb51")
