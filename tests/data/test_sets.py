from collections import Counter
from pathlib import Path

import pytest

from stillmotion.data.sets import SETS, make_table
from stillmotion.data.splits import check_leaks
from stillmotion.data.table import Table, TableError, read_table
from tests.conftest import DATA, needs_data

LISTS = (DATA or Path()) / "annotations"


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def rows(table: Table) -> list[tuple[str, str | None, str | None, str | None]]:
    assert all(s.path.exists() for s in table)
    return [(s.name, s.targets.get("label"), s.split, s.group) for s in table]


def counts(table: Table) -> dict[str | None, int]:
    return dict(Counter(s.split for s in table))


# ---- UCF101


@needs_data
@pytest.mark.parametrize(("split", "train", "test"), [(1, 9537, 3783), (2, 9586, 3734), (3, 9624, 3696)])
def test_ucf101_official_lists(tmp_path: Path, split: int, train: int, test: int) -> None:
    table = SETS["ucf101"](tmp_path, annotations=LISTS / "ucf101", split=split, missing="keep")
    assert counts(table) == {"train": train, "test": test}
    index = [line.split()[1] for line in (LISTS / "ucf101/classInd.txt").read_text().splitlines() if line.strip()]
    assert table.classes() == sorted(index)
    assert len({s.id for s in table}) == 13320
    assert len(table.groups) == 101 * 25
    assert check_leaks(table) == []
    upside_down = next(s for s in table if "HandStandPushups_g10_c03" in s.name)
    assert (upside_down.targets["label"], upside_down.group) == ("HandstandPushups", "HandstandPushups_g10")


UCF = {
    "trainlist01.txt": "HandstandPushups/v_HandStandPushups_g08_c01.avi 37\r\nTaiChi/v_TaiChi_g09_c01.avi 90\r\n",
    "testlist01.txt": "TaiChi/v_TaiChi_g01_c02.avi\r\n\r\n",
}


def test_ucf101_layouts_that_differ_in_case_container_and_depth(tmp_path: Path) -> None:
    for name, text in UCF.items():
        put(tmp_path / "ucfTrainTestlist" / name, text)
    touch(tmp_path, "UCF-101/HandStandPushups/v_HandstandPushups_g08_c01.avi", "UCF-101/TaiChi/v_TaiChi_g09_c01.mp4")
    touch(tmp_path, "UCF-101/TaiChi/v_TaiChi_g01_c02/img_00001.jpg", "UCF-101/TaiChi/v_TaiChi_g01_c02/img_00002.jpg")
    assert rows(SETS["ucf101"](tmp_path)) == [
        (
            "UCF-101/HandStandPushups/v_HandstandPushups_g08_c01.avi",
            "HandstandPushups",
            "train",
            "HandstandPushups_g08",
        ),
        ("UCF-101/TaiChi/v_TaiChi_g09_c01.mp4", "TaiChi", "train", "TaiChi_g09"),
        ("UCF-101/TaiChi/v_TaiChi_g01_c02", "TaiChi", "test", "TaiChi_g01"),
    ]


def test_missing_videos_are_counted_or_left_out(tmp_path: Path) -> None:
    for name, text in UCF.items():
        put(tmp_path / name, text)
    touch(tmp_path, "TaiChi/v_TaiChi_g01_c02.avi")
    with pytest.raises(TableError) as caught:
        SETS["ucf101"](tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: 2 of 3 samples listed in {tmp_path}/trainlist01.txt have no video here, the first "
        "'HandstandPushups/v_HandStandPushups_g08_c01.avi'; correct the folder, or pass missing=skip"
    )
    assert rows(SETS["ucf101"](tmp_path, missing="skip")) == [
        ("TaiChi/v_TaiChi_g01_c02.avi", "TaiChi", "test", "TaiChi_g01")
    ]
    assert len(SETS["ucf101"](tmp_path, missing="keep")) == 3
    with pytest.raises(TableError, match=r"3 of 3 samples .* correct the folder$"):
        SETS["ucf101"](touch(tmp_path / "empty", "x.txt"), annotations=tmp_path, missing="skip")


def test_ucf101_errors(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"no trainlist01.txt here; pass annotations=, the folder with the official"):
        SETS["ucf101"](tmp_path)
    with pytest.raises(ValueError, match=r"^split=4: choose one of 1, 2, 3$"):
        SETS["ucf101"](tmp_path, split=4)
    put(tmp_path / "trainlist01.txt", "TaiChi/v_TaiChi_g09_c01.avi 90\nTaiChi/other.avi 90\n")
    with pytest.raises(TableError, match=r"trainlist01.txt line 2: 'TaiChi/other.avi 90' is not Class/v_Class"):
        SETS["ucf101"](tmp_path)
    put(tmp_path / "trainlist01.txt", "TaiChi/v_TaiChi_g09_c01.avi 90\n")
    with pytest.raises(TableError, match=r"testlist01.txt: no such file; pass annotations="):
        SETS["ucf101"](tmp_path)


@needs_data
def test_ucf101_mini_set() -> None:
    assert DATA is not None
    table = SETS["ucf101"](DATA / "ucf101_mini", split=2)
    assert counts(table) == {"train": 6}
    assert ("Biking/v_Biking_g01_c01.avi", "Biking", "train", "Biking_g01") in rows(table)


# ---- HMDB51


@needs_data
@pytest.mark.parametrize("split", [1, 2, 3])
def test_hmdb51_official_lists(tmp_path: Path, split: int) -> None:
    table = SETS["hmdb51"](tmp_path, annotations=LISTS / "hmdb51", split=split, missing="keep")
    assert counts(table) == {"train": 3570, "test": 1530}
    assert set(Counter((s.split, s.targets["label"]) for s in table).values()) == {70, 30}
    assert len(table.classes()) == 51
    everything = SETS["hmdb51"](tmp_path, annotations=LISTS / "hmdb51", split=split, missing="keep", unused=True)
    assert counts(everything) == {"train": 3570, "test": 1530, "unused": 1666}
    within_class = {(s.targets["label"], s.group, s.split) for s in table}
    assert len(within_class) == len({(label, group) for label, group, _ in within_class})
    assert (
        len(check_leaks(table)) == {1: 133, 2: 149, 3: 144}[split]
    )  # across classes; a fact about the official splits


def test_hmdb51_groups_are_source_movies(tmp_path: Path) -> None:
    put(
        tmp_path / "testTrainMulti_7030_splits/shoot_bow_test_split1.txt",
        "Return_of_the_King_7_shoot_bow_u_nm_np10_ba_med_2.avi 1 \nA_shoot_bow_B_shoot_bow_f_cm_np1_le_goo_0.avi 2 \n"
        "A_shoot_bow_f_cm_np1_le_bad_1.avi 0 \n",
    )
    touch(tmp_path, "hmdb51_org/shoot_bow/Return_of_the_King_7_shoot_bow_u_nm_np10_ba_med_2.avi")
    touch(tmp_path, "hmdb51_org/shoot_bow/A_shoot_bow_B_shoot_bow_f_cm_np1_le_goo_0.avi")
    assert [r[1:] for r in rows(SETS["hmdb51"](tmp_path))] == [
        ("shoot_bow", "train", "Return_of_the_King_7"),
        ("shoot_bow", "test", "A_shoot_bow_B"),
    ]
    put(tmp_path / "testTrainMulti_7030_splits/kick_test_split1.txt", "a_kick_f_cm_np1_le_bad_1.avi 3\n")
    with pytest.raises(TableError, match=r"kick_test_split1.txt line 1: .* is not `name.avi 0\|1\|2`"):
        SETS["hmdb51"](tmp_path)


# ---- Kinetics


def test_kinetics_lists_and_layouts(tmp_path: Path) -> None:
    put(
        tmp_path / "lists/train.csv",
        "label,youtube_id,time_start,time_end,split,is_cc\r\nair drumming,-0a_B-cdefg,26,36,train,0\r\n"
        "zumba,-0A_b-cdefg,3,13,train,1\r\n",
    )
    put(
        tmp_path / "lists/validate.csv", "label,youtube_id,time_start,time_end,split\nzumba,zzzzzzzzzzz,0,10,validate\n"
    )
    put(tmp_path / "lists/test.csv", "youtube_id,time_start,time_end,split\nyyyyyyyyyyy,100,110,test\n")
    touch(tmp_path / "videos", "train/air_drumming/-0a_B-cdefg_000026_000036.mp4", "-0A_b-cdefg_000003_000013.webm")
    touch(tmp_path / "videos", "zumba/zzzzzzzzzzz_000000_000010.mp4", "test/yyyyyyyyyyy_000100_000110.mkv")
    assert sorted(rows(SETS["kinetics"](tmp_path / "videos", annotations=tmp_path / "lists")), key=str) == sorted(
        [
            ("train/air_drumming/-0a_B-cdefg_000026_000036.mp4", "air drumming", "train", "-0a_B-cdefg"),
            ("-0A_b-cdefg_000003_000013.webm", "zumba", "train", "-0A_b-cdefg"),
            ("zumba/zzzzzzzzzzz_000000_000010.mp4", "zumba", "val", "zzzzzzzzzzz"),
            ("test/yyyyyyyyyyy_000100_000110.mkv", None, "test", "yyyyyyyyyyy"),
        ],
        key=str,
    )
    one = SETS["kinetics"](tmp_path / "videos", annotations=tmp_path / "lists/validate.csv")
    assert counts(one) == {"val": 1}


def test_kinetics_ids_that_differ_by_case_are_different_videos(tmp_path: Path) -> None:
    path = put(tmp_path / "t.csv", "label,youtube_id,time_start,time_end,split\nx,ABCdefghijk,0,10,train\n")
    touch(tmp_path, "abcDEFGHIJK_000000_000010.mp4")
    with pytest.raises(TableError, match=r"1 of 1 samples .* 'x/ABCdefghijk_000000_000010.mp4'"):
        SETS["kinetics"](tmp_path, annotations=path)


def test_kinetics_errors(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no CSV list here"):
        SETS["kinetics"](tmp_path)
    path = put(tmp_path / "t.csv", "path,label\na.mp4,x\n")
    with pytest.raises(TableError, match=r"t.csv line 1: no column `youtube_id`"):
        SETS["kinetics"](tmp_path, annotations=path)
    put(path, "label,youtube_id,time_start,time_end,split\nx,ABCdefghijk,,10,train\n")
    with pytest.raises(TableError, match=r"t.csv line 2: time_start and time_end must be seconds"):
        SETS["kinetics"](tmp_path, annotations=path)


# ---- ARID


def test_arid_official_lists(tmp_path: Path) -> None:
    put(tmp_path / "list_cvt/ARID_split2_train.txt", "0\t0\tDrink/Drink_11_1.avi\n1\t10\tWave/Wave_1_4.avi\n")
    put(tmp_path / "list_cvt/ARID_split2_test.txt", "0\t0\tDrink/Drink_2_10.avi\n")
    put(tmp_path / "list_cvt/ARID_split2_other.txt", "0\t0\tDrink/Drink_2_1.avi\n")
    touch(tmp_path, "data/Drink/Drink_11_1.mp4", "data/Wave/Wave_1_4.mp4", "data/Drink/Drink_2_10.mp4")
    assert rows(SETS["arid"](tmp_path, split=2)) == [
        ("data/Drink/Drink_11_1.mp4", "Drink", "train", "Drink_11"),
        ("data/Wave/Wave_1_4.mp4", "Wave", "train", "Wave_1"),
        ("data/Drink/Drink_2_10.mp4", "Drink", "test", "Drink_2"),
    ]
    put(tmp_path / "list_cvt/ARID_split2_test.txt", "0 Drink/Drink_2_10.avi\n")
    with pytest.raises(TableError, match=r"ARID_split2_test.txt line 1: .* is not `index class file`"):
        SETS["arid"](tmp_path, split=2)


@needs_data
def test_arid_selection_from_its_lists_and_from_labels() -> None:
    assert DATA is not None
    listed = SETS["arid"](DATA / "arid6", annotations=LISTS / "arid6", missing="skip")
    labelled = SETS["arid"](DATA / "arid6")
    assert counts(listed) == counts(labelled) == {"train": 150, "val": 58}
    by_name = {s.name: s for s in labelled}
    assert {s.name for s in listed} == set(by_name)
    for s in listed:
        other = by_name[s.name]
        assert (s.targets, s.split) == (other.targets, other.split)
        assert s.group == (other.group if s.split == "train" else None)
    assert check_leaks(labelled) == []
    with pytest.raises(TableError, match=r"38 of 246 samples .* the first"):
        SETS["arid"](DATA / "arid6", annotations=LISTS / "arid6")


# ---- UT-Interaction


def test_ut_interaction_from_names_alone(tmp_path: Path) -> None:
    touch(tmp_path, "segmented_set1/0_1_4.avi", "segmented_set1/5_2_3.avi", "segmented_set2/0_11_0.avi", "notes.avi")
    table = SETS["ut_interaction"](tmp_path, split=2)
    assert rows(table) == [
        ("segmented_set1/0_1_4.avi", "punching", "train", "seq01"),
        ("segmented_set1/5_2_3.avi", "pointing", "test", "seq02"),
    ]
    assert table[1].targets == {"label": "pointing", "class_id": "3", "set": "set1"}
    assert [r[2] for r in rows(SETS["ut_interaction"](tmp_path))] == [None, None, None]
    assert len(SETS["ut_interaction"](tmp_path, set=2)) == 1
    with pytest.raises(TableError, match="no clip of sequence 9; correct the folder or split="):
        SETS["ut_interaction"](tmp_path, split=9)


@needs_data
def test_ut_interaction_leaves_one_sequence_out_within_its_set() -> None:
    assert DATA is not None
    root = DATA / "ut_interaction"
    sizes = [counts(SETS["ut_interaction"](root, split=k)) for k in range(1, 17)]
    assert sizes[:10] == [{"train": 60 - n, "test": n} for n in (6, 6, 6, 6, 6, 5, 6, 7, 6, 6)]
    assert sizes[10:] == [{"train": 30, "test": 6}] * 6
    table = SETS["ut_interaction"](root)
    given = read_table(root / "labels.csv")
    assert [(s.name, s.targets["class_id"], s.targets["label"], s.targets["set"], s.group) for s in table] == [
        (s.name, s.targets["class_id"], s.targets["class"], s.targets["set"], f"seq{int(s.targets['sequence']):02d}")
        for s in given
    ]
    sixth = SETS["ut_interaction"](root, split=6).select("test")
    assert "punching" not in sixth.classes()


# ---- Surveillance fights


@needs_data
def test_fights_from_labels_keep_source_and_fold() -> None:
    assert DATA is not None
    table = SETS["fight_surv"](DATA / "fight_surv", split=3)
    assert Counter(s.targets["label"] for s in table) == {"fight": 120, "noFight": 120}
    assert {s.targets["fold"] for s in table.select("test")} == {"3"}
    assert {s.targets["fold"] for s in table.select("train")} == {"0", "1", "2", "4"}
    assert check_leaks(table) == []


@needs_data
def test_fights_from_the_published_list_have_the_same_sources(tmp_path: Path) -> None:
    assert DATA is not None
    path = LISTS / "fight_surv/videos.txt"
    everything = SETS["fight_surv"](tmp_path, annotations=path, missing="keep")
    assert Counter(s.targets["label"] for s in everything) == {"fight": 150, "noFight": 150}
    there = SETS["fight_surv"](DATA / "fight_surv", annotations=path, missing="skip")
    given = {s.name: s.group for s in SETS["fight_surv"](DATA / "fight_surv")}
    assert {s.name: s.group for s in there} == given
    folds = Counter((s.targets["fold"], s.targets["label"]) for s in everything)
    assert len(folds) == 10
    assert min(folds.values()) >= 24
    assert len({(s.group, s.targets["fold"]) for s in everything}) == len(everything.groups)


def test_fights_errors(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"neither labels.csv nor videos.txt here; pass annotations="):
        SETS["fight_surv"](tmp_path)
    put(tmp_path / "videos.txt", "https://x\nfi001: 0.13.50 - 0.15.60\nfight 2\n")
    with pytest.raises(TableError, match=r"videos.txt line 3: 'fight 2' is neither an address nor a clip"):
        SETS["fight_surv"](tmp_path)
    put(tmp_path / "labels.csv", "path,label,source\nfight/fi001.mp4,fight,s01\n")
    with pytest.raises(TableError, match=r"labels.csv line 2: no `fold`; fill it in"):
        SETS["fight_surv"](tmp_path)


# ---- KTH


@needs_data
def test_kth_official_persons_and_ranges(tmp_path: Path) -> None:
    table = SETS["kth"](tmp_path, annotations=LISTS / "kth", missing="keep")
    assert len(table) == len({s.id for s in table}) == 2391
    assert len({s.name for s in table}) == 599
    assert {split: len({s.group for s in table.select(split)}) for split in table.splits} == {
        "train": 8,
        "val": 8,
        "test": 9,
    }
    assert check_leaks(table) == []
    first = [s for s in table if s.name == "boxing/person01_boxing_d1_uncomp.avi"]
    assert [(s.start, s.end, s.split, s.group) for s in first] == [
        (0, 95, "val", "person01"),
        (95, 185, "val", "person01"),
        (185, 245, "val", "person01"),
        (245, 360, "val", "person01"),
    ]
    assert first[0].frame_range(360, 25.0) == (0, 95)


@needs_data
def test_kth_sample_is_found_in_other_containers() -> None:
    assert DATA is not None
    table = SETS["kth"](DATA / "kth_sample", annotations=LISTS / "kth/sequences.txt", missing="skip")
    assert len(table) == 28
    assert {s.name for s in table} == {
        p.relative_to(DATA / "kth_sample").as_posix() for p in (DATA / "kth_sample").rglob("*_uncomp.*")
    }


def test_kth_list_as_its_page_names_it(tmp_path: Path) -> None:
    put(tmp_path / "00sequences.txt", "Training: person11, 12\r\nperson11_boxing_d1\t\tframes\t1-95, 96-185\r\n")
    table = SETS["kth"](touch(tmp_path, "person11_boxing_d1_uncomp.avi"))
    assert [(s.start, s.end, s.split) for s in table] == [(0, 95, "train"), (95, 185, "train")]


def test_kth_errors(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"sequences.txt: no such file"):
        SETS["kth"](tmp_path)
    head = "Training: person11, 12\r\n"
    put(tmp_path / "sequences.txt", head + "person13_boxing_d1\t\tframes\t1-95\r\n")
    with pytest.raises(TableError, match=r"sequences.txt line 2: person13 is in no split"):
        SETS["kth"](tmp_path)
    put(tmp_path / "sequences.txt", head + "person11_boxing_d1\t\tframes\t1-95, 96\r\n")
    with pytest.raises(TableError, match=r"sequences.txt line 2: '1-95, 96' is not `first-last, ...`"):
        SETS["kth"](tmp_path)


# ---- the command


def test_make_table_writes_a_table_that_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in UCF.items():
        put(tmp_path / name, text)
    touch(tmp_path, "TaiChi/v_TaiChi_g01_c02.avi", "TaiChi/v_TaiChi_g09_c01.avi")
    output = tmp_path / "ucf101.csv"
    table = make_table("ucf101", str(tmp_path), output=str(output), split=1, missing="skip")
    again = read_table(output)
    assert rows(again) == rows(table)
    assert again.hash == table.hash
    assert capsys.readouterr().out.splitlines() == [
        f"{output}: 2 samples, 1 class, 2 groups; train 1, test 1",
        f"left out: 1 of 3 listed samples have no video below {tmp_path}",
    ]


@needs_data
def test_make_table_keeps_ranges_and_columns(tmp_path: Path) -> None:
    assert DATA is not None
    output = str(tmp_path / "kth.csv")
    table = make_table("kth", str(DATA / "kth_sample"), output=output, annotations=str(LISTS / "kth"), missing="skip")
    again = read_table(output)
    assert [(s.path, s.start, s.end, s.targets, s.split, s.group) for s in again] == [
        (s.path.resolve(), s.start, s.end, s.targets, s.split, s.group) for s in table
    ]


def test_make_table_refuses_what_a_set_does_not_have(tmp_path: Path) -> None:
    root, output = str(tmp_path), str(tmp_path / "t.csv")
    with pytest.raises(ValueError, match=r"^unknown data set 'ucf'; known: ucf101, hmdb51, kinetics, arid"):
        make_table("ucf", root, output=output)
    with pytest.raises(ValueError, match=r"^kth has no option split=2; it takes neither split nor set$"):
        make_table("kth", root, output=output, split=2)
    with pytest.raises(ValueError, match=r"^ucf101 has no option set=2; it takes split$"):
        make_table("ucf101", root, output=output, set=2)
    with pytest.raises(ValueError, match=r"^hmdb51 has no option window=official; it takes split, unused$"):
        make_table("hmdb51", root, output=output, options={"window": "official"})
    with pytest.raises(ValueError, match=r"give a name that ends in .csv$"):
        make_table("kth", root, output=root)
    with pytest.raises(TableError, match=r"no such file or folder; correct annotations=$"):
        make_table("kth", root, output=output, annotations=str(tmp_path / "x"))
