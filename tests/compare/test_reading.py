"""Every way in which input can be wrong: one sentence, an InputError, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from families import class_family, linear_family

from innerloop.compare.command import DEFAULT, DEMOS, demo_named, with_demo_columns
from innerloop.compare.config import Config
from innerloop.compare.reading import read_tasks
from innerloop.runs.errors import InputError
from innerloop.runs.options import parse_floats, parse_ints


def good() -> pd.DataFrame:
    frame = linear_family(8, 9, seed=0, correlated=True)
    return frame.assign(z=np.arange(len(frame)) % 7)


def written(tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Path:
    path = tmp_path / "table.csv"
    change(good()).to_csv(path, index=False)
    return path


def setting(**fields: object) -> Config:
    return Config(**{"task": "task", "target": "y", **fields})  # type: ignore[arg-type]


def spoiled(column: str, row: int, value: object) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.astype({column: object})
        frame.loc[row, column] = value
        return frame

    return change


CASES: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], dict[str, object], str]] = {
    "missing column": (lambda f: f, {"task": "tsk"}, r"no column 'tsk'; did you mean 'task'\?"),
    "wrong case": (lambda f: f, {"target": "Y"}, r"did you mean 'y'\?"),
    "hopeless column": (lambda f: f, {"target": "price"}, "its columns are 'task', 'x', 'y', 'z'$"),
    "blanks around a name": (
        lambda f: f.rename(columns={"task": " task ", "y": " y"}),
        {},
        r"no column 'task'; did you mean ' task '\?",
    ),
    "blanks around all names": (
        lambda f: f.rename(columns="  {}".format),
        {"task": "price"},
        "its columns are '  task', '  x', '  y', '  z'$",
    ),
    "no task given": (lambda f: f, {"task": ""}, "--task and --target are needed"),
    "same column": (lambda f: f, {"target": "task"}, "must be different columns"),
    "missing value": (spoiled("x", 3, None), {}, r"column 'x' has missing values in row 4 "),
    "missing task": (spoiled("task", 0, None), {}, r"column 'task' has missing values in row 1 "),
    "text feature": (spoiled("x", 5, "abc"), {}, r"'x' must be numeric \(got 'abc' in row 6\)"),
    "text target": (spoiled("y", 5, "abc"), {}, r"'y' must be numeric \(got 'abc' in row 6\)"),
    "infinite": (spoiled("x", 5, "inf"), {}, r"'x' must be finite \(infinite in row 6\)"),
    "infinite target": (
        spoiled("y", 5, "-inf"),
        {},
        r"'y' must be finite \(infinite in row 6\) .*; correct these rows or leave them out$",
    ),
    "many rows": (
        lambda f: f.assign(x=np.where(np.arange(len(f)) < 8, np.nan, f["x"])),
        {},
        "rows 1, 2, 3, 4, 5 and 3 more",
    ),
    "few rows": (
        lambda f: f.iloc[: 9 * 7 + 3],
        {},
        r"at least 6 rows in every task \('7' has 3\); use fewer shots, or --drop-small",
    ),
    "one task": (lambda f: f.assign(task=1), {}, "only one task"),
    "few tasks": (lambda f: f.iloc[:27], {}, "only 3 tasks"),
    "constant feature": (
        lambda f: f.assign(z=2),
        {},
        r"column 'z' is constant \(2 in every row\); add --exclude z",
    ),
    "constant text": (lambda f: f.assign(z="a b"), {}, r"'z' is constant \('a b' in every row\)"),
    "names": (
        lambda f: f.assign(z=[f"n{i:02}" for i in range(len(f))]),
        {},
        r"'z' is text with 72 different values \(such as 'n00'; at most 20 .*; add --exclude z",
    ),
    "name with a blank": (
        lambda f: f.assign(z=2).rename(columns={"z": "a z"}),
        {},
        'add --exclude "a z"$',
    ),
    "mostly missing": (
        lambda f: f.assign(z=np.where(f.index % 2, np.nan, f["z"])),
        {},
        "'z' has missing values in rows 2, 4, 6, 8, 10 and 31 more, 50% of all .*; add --exclude z",
    ),
    "excluded task": (lambda f: f, {"exclude": ("task",)}, "--exclude must not hold the task or"),
    "exclude nothing": (lambda f: f, {"exclude": ("zz",)}, "--exclude: .* has no column 'zz'; did"),
    "all excluded": (lambda f: f, {"exclude": ("x", "z")}, "no feature columns are left"),
    "no complete row": (
        lambda f: f.assign(z=np.nan),
        {"drop_missing": True},
        "--drop-missing leaves no row",
    ),
    "huge feature": (lambda f: f.assign(x=f["x"] * 1e200), {}, "column 'x' must lie within 1e"),
    "huge target": (lambda f: f.assign(y=f["y"] * 1e200), {}, "target 'y' must lie within 1e"),
    "repeated column": (
        lambda f: f.rename(columns={"z": "x"}),
        {},
        "has more than one column 'x'; rename one",
    ),
    "constant target": (lambda f: f.assign(y=1.5), {}, "target 'y' is constant"),
    "constant class": (lambda f: f.assign(y=1), {}, "target 'y' is constant"),
    "rare class": (
        lambda f: f.assign(y=np.where(f["task"] == 0, "rare", np.where(f["x"] > 0, "a", "b"))),
        {},
        "class 'rare' of target 'y' appears in only 1 task",
    ),
    "negative logarithm": (lambda f: f, {"log": ("x",)}, "'x' must be positive for .*; take x out"),
    "logarithm of another": (lambda f: f, {"log": ("task",)}, "--log must name features"),
    "target as feature": (lambda f: f, {"features": ("x", "y")}, "must not hold the task or"),
    "no rows": (lambda f: f.iloc[:0], {}, "has no rows"),
    "no features": (lambda f: f[["task", "y"]], {}, "no feature columns"),
}


def test_everything_wrong_is_said_at_once_with_a_remedy_that_works(tmp_path: Path) -> None:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.assign(
            constant=1.0,
            name=[f"n{i}" for i in range(len(frame))],
            infinite=np.where(frame.index == 3, np.inf, frame["z"]),
            holes=np.where(frame.index == 4, np.nan, frame["z"]),
            nothing=np.nan,
            mixed=np.where(frame.index == 5, "?", frame["z"].astype(str)),
        )
        frame["y"] = np.where(frame.index == 6, np.nan, frame["y"])
        return frame

    path = written(tmp_path, change)
    with pytest.raises(InputError) as caught:
        read_tasks(path, setting())
    said = str(caught.value)
    assert "7 columns cannot be used as they are: " in said
    for part in (
        "'constant' is constant",
        "'name' is text with 72 different values",
        "'infinite' must be finite (infinite in row 4)",
        "'holes' has missing values in row 5;",
        "'nothing' has missing values in rows 1, 2, 3, 4, 5 and 67 more, 100% of all",
        "'mixed' must be numeric (got '?' in row 6)",
        "'y' has missing values in row 7;",
    ):
        assert part in said
    remedy = said.rpartition("; add ")[2]
    assert remedy.startswith("--drop-missing --exclude ")
    excluded = tuple(remedy.split()[2].split(","))
    assert sorted(excluded) == ["constant", "infinite", "mixed", "name", "nothing"]
    tasks = read_tasks(path, setting(drop_missing=True, exclude=excluded))
    assert tasks.features == ("x", "z", "holes")
    assert len(tasks.x) == 70
    assert "left out 2 of 72 rows with missing values" in tasks.notes


def test_many_faults_are_cut_and_the_remedy_is_whole(tmp_path: Path) -> None:
    names = [f"c{i:02}" for i in range(30)]
    path = written(tmp_path, lambda f: f.assign(**dict.fromkeys(names, 1)))
    with pytest.raises(InputError) as caught:
        read_tasks(path, setting())
    said = str(caught.value)
    assert "22 more like these" in said
    assert said.endswith(f"add --exclude {','.join(names)}")


def test_unclear_numbers_are_listed_with_the_other_faults(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = [f'{i // 9},{i % 5}.5,"1,{i:03}",k,{i % 3}.25' for i in range(54)]
    path.write_text("\n".join(["task,x,sales,kind,y", *rows]) + "\n")
    with pytest.raises(InputError) as caught:
        read_tasks(path, setting())
    said = str(caught.value)
    assert "'sales' holds commas" in said
    assert "'kind' is constant" in said
    assert said.endswith("write numbers with points alone, and add --exclude kind")
    assert read_tasks(path, setting(exclude=("sales", "kind"))).features == ("x",)


def test_text_becomes_columns_of_zero_and_one(tmp_path: Path) -> None:
    kinds = np.array(["b", "a", "b", "c"])
    path = written(tmp_path, lambda f: f.assign(kind=kinds[f.index % 4], z=f.index % 2 == 0))
    tasks = read_tasks(path, setting())
    assert tasks.features == ("x", "z", "kind=a", "kind=c")
    np.testing.assert_array_equal(tasks.x[:4, 2:], [[0, 0], [1, 0], [0, 0], [0, 1]])
    np.testing.assert_array_equal(tasks.x[:4, 1], [1, 0, 1, 0])
    assert "'kind' is text: 2 columns of 0 and 1 beside its most frequent 'b'" in tasks.notes
    two = written(tmp_path, lambda f: f.assign(kind=np.where(f.index % 3, "yes", "no")))
    assert read_tasks(two, setting()).features == ("x", "z", "kind=no")


@pytest.mark.parametrize(
    ("texts", "days"),
    [
        (["2001-02-27", "2001-03-01"], [0.0, 2.0]),
        (["2001-02-27 12:00", "2001-02-27T18:00:00"], [0.0, 0.25]),
        (["1999-12", "2000-01"], [0.0, 31.0]),
        (["2001-02-27T00:00:00+02:00", "2001-02-27T00:00:00Z"], [0.0, 2.0 / 24.0]),
    ],
    ids=["days", "times", "months", "zones"],
)
def test_dates_become_days(texts: list[str], days: list[float], tmp_path: Path) -> None:
    path = written(tmp_path, lambda f: f.assign(when=np.array(texts)[f.index % 2]))
    tasks = read_tasks(path, setting())
    assert tasks.features == ("x", "z", "when")
    np.testing.assert_allclose(tasks.x[:2, 2], days, atol=1e-12)
    assert "'when' is counted in days from " in tasks.notes[-1]


@pytest.mark.parametrize("zoned", ["2001-02-27T00:00:00Z", "2001-02-27 09:00+09:00"])
def test_times_with_and_without_a_zone_are_refused(zoned: str, tmp_path: Path) -> None:
    texts = np.array(["2001-02-26T12:00:00", zoned])
    path = written(tmp_path, lambda f: f.assign(when=texts[f.index % 2]))
    with pytest.raises(InputError, match="'when' mixes times with and without a time zone"):
        read_tasks(path, setting())


@pytest.mark.parametrize("column", ["y", "z"])
def test_whole_numbers_that_float64_does_not_tell_apart_are_refused(
    column: str, tmp_path: Path
) -> None:
    numbers = 2**60 + np.arange(200)
    path = written(tmp_path, lambda f: f.assign(**{column: numbers[: len(f)]}))
    with pytest.raises(InputError, match=f"'{column}' holds whole numbers beyond"):
        read_tasks(path, setting())
    path = written(tmp_path, lambda f: f.assign(**{column: numbers[: len(f)] - 2**60 + 2**52}))
    assert len(read_tasks(path, setting()).x)


@pytest.mark.parametrize("blank", [" ", "\u00a0", "\u202f"])
def test_blanks_beside_numbers_are_nothing(blank: str, tmp_path: Path) -> None:
    plain = read_tasks(written(tmp_path, lambda f: f), setting())
    path = written(tmp_path, lambda f: f.assign(x=f["x"].map(lambda v: f"{blank}{v!r}{blank}")))
    np.testing.assert_array_equal(read_tasks(path, setting()).x, plain.x)


def test_columns_named_twice_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, lambda f: f)
    with pytest.raises(InputError, match="--features must name each column once"):
        read_tasks(path, setting(features=("x", "x")))


def test_what_only_looks_like_a_date_is_text(tmp_path: Path) -> None:
    texts = np.array(["2001-02-30", "27/02/2001", "2001-02-27"])
    path = written(tmp_path, lambda f: f.assign(when=texts[f.index % 3]))
    assert read_tasks(path, setting()).features[2] == "when=2001-02-30"


def test_small_tasks_go_before_columns_are_made(tmp_path: Path) -> None:
    # A value that only a task left out has does not become a column.
    path = written(
        tmp_path,
        lambda f: f.iloc[: 9 * 7 + 3].assign(
            kind=lambda g: np.where(g["task"] == 7, "rare", np.where(g.index % 2, "a", "b"))
        ),
    )
    assert read_tasks(path, setting(drop_small=True)).features == ("x", "z", "kind=a")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_tables(case: str, tmp_path: Path) -> None:
    change, fields, message = CASES[case]
    with pytest.raises(InputError, match=message) as caught:
        read_tasks(written(tmp_path, change), setting(**fields))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("table.xlsx", b"PK\x03\x04", r"must be a .csv \(.tsv, .txt\), .parquet or .npz file"),
        ("table.csv", b"", "is empty"),
        ("table.csv", b"\n \r\n", "is empty"),
        ("table.csv", b"\xff\xfe\x00\x01\x80", "is not UTF-16-LE; save it as UTF-8 text"),
        ("table.csv", b'a,b\n1,2\n1,2,3,4\n"', r"line 4: unexpected end of data; is a quote not"),
        ("table.csv", b"PK\x03\x04", "an Excel workbook; export the sheet as CSV"),
        ("table.csv", b"PAR1", "a Parquet file; name it .parquet"),
        ("table.parquet", b"not parquet", "cannot be read as parquet"),
        ("table.npz", b"not an archive", "cannot be read as npz"),
        ("table.npz", b"", "cannot be read as npz"),
        ("table.npz", b"\x93NUMPY\x01\x00", "it holds a single array; numpy.savez writes"),
    ],
)
def test_bad_files(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    config = setting() if path.suffix != ".npz" else Config(task="", target="")
    with pytest.raises(InputError, match=message) as caught:
        read_tasks(path, config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "separator"), [("t.tsv", "\t"), ("t.TXT", ";")], ids=["tsv", "txt"]
)
def test_text_by_other_names(name: str, separator: str, tmp_path: Path) -> None:
    path = tmp_path / name
    good().to_csv(path, index=False, sep=separator)
    plain = read_tasks(written(tmp_path, lambda frame: frame), setting())
    assert [x.tolist() for x in read_tasks(path, setting()).x] == [x.tolist() for x in plain.x]


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_tasks(tmp_path / "nowhere.csv", setting())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shots": -1}, r"--shots must be at least 1 \(got -1\)"),
        ({"draws": -1}, "--draws must be at least 1"),
        ({"test_fraction": 1.5}, "--test-fraction must lie between 0 and 1"),
        ({"test_fraction": float("nan")}, "--test-fraction must lie between 0 and 1"),
        ({"steps": ()}, "--steps must hold at least one number"),
        ({"inner_lrs": (0.1, float("inf"))}, "--inner-lrs must be positive, from 1e-30"),
        ({"inner_lrs": (0.1, 0.1)}, "--inner-lrs must not repeat"),
        ({"steps": (0,)}, r"--steps \(0 is joint training\) must be at least 1"),
        ({"hidden": (32, 0)}, r"--hidden must be at least 1 \(got 0\)"),
        ({"outer_lrs": (float("nan"),)}, "--outer-lrs must be positive, from 1e-30"),
        ({"margin": -0.1}, "--margin must be at least 0"),
        ({"activation": "rleu"}, "--activation must be one of relu"),
        ({"loss": "mae"}, "--loss must be one of"),
        ({"seed": -3}, "--seed must be at least 0"),
    ],
)
def test_bad_settings(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        setting(**fields)


def test_bad_lists() -> None:
    with pytest.raises(InputError, match=r"--inner-lrs must be numbers .* \(got 'x'\)"):
        parse_floats("--inner-lrs", "0.1,x")
    with pytest.raises(InputError, match=r"--hidden must be whole numbers .* \(got '3.5'\)"):
        parse_ints("--hidden", "32,3.5")
    assert parse_ints("--hidden", "") == ()


def test_csv_and_parquet_give_the_same_tasks(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    csv, parquet = tmp_path / "t.csv", tmp_path / "t.parquet"
    frame = good()
    frame.to_csv(csv, index=False)
    frame.to_parquet(parquet)
    assert read_tasks(csv, setting()).sha256() == read_tasks(parquet, setting()).sha256()


def test_semicolons_are_recognised(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    good().to_csv(path, index=False, sep=";")
    assert read_tasks(path, setting()).features == ("x", "z")


def test_rows_of_a_task_need_not_be_adjacent(tmp_path: Path) -> None:
    frame = good()
    mixed = frame.sample(frac=1.0, random_state=1)
    path = tmp_path / "t.csv"
    mixed.to_csv(path, index=False)
    tasks = read_tasks(path, setting())
    assert tasks.counts.tolist() == [9] * 8
    for index, name in enumerate(tasks.names):
        rows = slice(int(tasks.start[index]), int(tasks.start[index + 1]))
        expected = mixed.loc[mixed["task"] == int(name), "x"].to_numpy()
        np.testing.assert_allclose(tasks.x[rows, 0], expected, rtol=1e-14)


def test_small_tasks_can_be_left_out(tmp_path: Path) -> None:
    path = written(tmp_path, lambda f: f.iloc[: 9 * 7 + 3])
    tasks = read_tasks(path, setting(drop_small=True))
    assert len(tasks.names) == 7
    assert "left out 1 task with at most 5 rows" in tasks.notes


@pytest.mark.parametrize(
    ("target", "loss"),
    [
        (lambda f: f["y"], "mse"),
        (lambda f: (f["x"] > 0).map({True: "yes", False: "no"}), "cross_entropy"),
        (lambda f: f["x"] > 0, "cross_entropy"),
        (lambda f: (f["x"] > 0).astype(int), "cross_entropy"),
        (lambda f: np.arange(len(f)), "mse"),
    ],
    ids=["real", "text", "boolean", "few integers", "many integers"],
)
def test_loss_is_detected_and_said(
    target: Callable[[pd.DataFrame], object], loss: str, tmp_path: Path
) -> None:
    tasks = read_tasks(written(tmp_path, lambda f: f.assign(y=target(f))), setting())
    assert tasks.loss == loss
    assert tasks.notes[0].startswith(f"loss: {loss} (")


def test_integer_classes_can_be_a_number(tmp_path: Path) -> None:
    path = written(tmp_path, lambda f: f.assign(y=(f["x"] > 0).astype(int)))
    assert read_tasks(path, setting(loss="mse")).loss == "mse"


def save_archive(tmp_path: Path, **changes: object) -> Path:
    generator = np.random.default_rng(0)
    arrays: dict[str, object] = {
        "support_x": generator.random((6, 3, 2)),
        "support_y": generator.random((6, 3)),
        "query_x": generator.random((6, 4, 2)),
        "query_y": generator.random((6, 4)),
    }
    arrays.update(changes)
    path = tmp_path / "t.npz"
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})  # type: ignore[arg-type]
    return path


def test_archive(tmp_path: Path) -> None:
    tasks = read_tasks(save_archive(tmp_path), Config(task="", target=""))
    assert (len(tasks.names), tasks.fixed_support, tasks.loss) == (6, 3, "mse")
    assert tasks.counts.tolist() == [7] * 6
    classes = np.arange(18).reshape(6, 3) % 3, np.arange(24).reshape(6, 4) % 3
    path = save_archive(tmp_path, support_y=classes[0] + 5, query_y=classes[1] + 5)
    tasks = read_tasks(path, Config(task="", target=""))
    assert tasks.classes == ("5", "6", "7")
    assert tasks.y.tolist()[:3] == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_y": None}, "lacks query_y"),
        (
            {"support_x": np.zeros((6, 3))},
            r"support_x must have shape \[T, N, D\] \(got \[6, 3\]\)",
        ),
        ({"support_y": np.zeros((6, 2))}, r"support_y must have shape \[6, 3\]"),
        ({"query_x": np.zeros((6, 4, 5))}, "must agree in tasks and features"),
        ({"support_x": np.full((6, 3, 2), np.nan)}, "support_x must be finite"),
        ({"support_x": np.full((6, 3, 2), "a")}, "support_x must be numeric"),
        ({"query_x": np.zeros((6, 0, 2)), "query_y": np.zeros((6, 0))}, "must not be empty"),
        ({"support_y": np.zeros((6, 3)), "query_y": np.zeros((6, 4))}, "is constant"),
        (
            {"support_x": np.ones((6, 3, 2)), "query_x": np.ones((6, 4, 2))},
            r"feature 'x0' is constant \(1 in every row\); feature 'x1' is constant .*; remove or",
        ),
    ],
)
def test_bad_archives(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_tasks(save_archive(tmp_path, **changes), Config(task="", target=""))


def test_a_single_array_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(InputError, match="it holds a single array"):
        read_tasks(path, Config(task="", target=""))


def test_archive_refuses_table_options(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="are for tables"):
        read_tasks(save_archive(tmp_path), setting())


def test_embedded_tables_go_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert demo_named(None) is DEMOS["countries"]
    assert demo_named(Path("us-states")) is DEMOS["us-states"]
    assert demo_named(Path("us-state")) is None
    (tmp_path / "countries").write_text("a file of the user's")
    assert demo_named(Path("countries")) is None
    with pytest.raises(InputError, match=r"must be a \.csv"):
        read_tasks(Path("countries"), setting())


def test_columns_given_replace_those_of_an_embedded_table() -> None:
    given = Config(task="", target="", exclude=("gdp_per_capita",))
    config = with_demo_columns(given, DEMOS["countries"])
    assert config.log == ()
    assert read_tasks(DEMOS["countries"].path, config).features == ("year",)
    other = Config(task="", target="unemployment", features=("gsp", "year"))
    assert with_demo_columns(other, DEMOS["us-states"]).log == ("gsp",)


def test_embedded_countries() -> None:
    demo = DEMOS["countries"]
    tasks = read_tasks(demo.path, with_demo_columns(DEFAULT, demo))
    assert len(tasks.names) == 142
    assert tasks.counts.tolist() == [12] * 142
    assert tasks.loss == "mse"
    # Afghanistan in 1952, as published.
    np.testing.assert_allclose(tasks.x[0], [1952, np.log(779.4453145)], rtol=1e-12)
    np.testing.assert_allclose(tasks.y[0], [28.801], rtol=1e-12)


def test_embedded_states() -> None:
    demo = DEMOS["us-states"]
    tasks = read_tasks(demo.path, with_demo_columns(DEFAULT, demo))
    assert len(tasks.names) == 48
    assert tasks.counts.tolist() == [17] * 48
    assert tasks.target == "log gsp"
    assert tasks.loss == "mse"
    # Alabama in 1970, as published.
    np.testing.assert_allclose(
        tasks.x[0], [np.log(15032.67), np.log(35793.8), np.log(1010.5), 4.7], rtol=1e-12
    )
    np.testing.assert_allclose(tasks.y[0], [np.log(28418)], rtol=1e-12)


def test_class_families_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    class_family(8, 9, seed=1).to_csv(path, index=False)
    tasks = read_tasks(path, Config(task="unit", target="kind"))
    assert tasks.classes == ("p", "q", "r")
    assert tasks.features == ("a", "b")


def test_parquet_without_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "t.parquet").write_bytes(b"")
    with pytest.raises(InputError, match=r"needs pyarrow; run pip install"):
        read_tasks(tmp_path / "t.parquet", setting())
