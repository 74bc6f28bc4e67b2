"""CSV files are read by the names of their columns."""

import pytest

from metafew.data.formats.columns import check_columns, read_columns
from metafew.data.sources.class_splits import divide
from metafew.errors import UsageError


def read(tmp_path, content, roles=("file", "class"), encoding="utf-8", **named):
    file = tmp_path / "l.csv"
    file.write_text(content, encoding=encoding, newline="")
    return read_columns(file, roles, named)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_separators_line_ends_and_encodings(tmp_path, separator, end, encoding):
    lines = [("label", "season", "File Name"), ("cat, wild", "may; june", "a.png"), ("dog", "june", "b.png")]
    content = end.join(separator.join(f'"{cell}"' for cell in line) for line in ((), *lines, ()))
    table = read(tmp_path, content, encoding=encoding)
    assert [values for _, values in table.rows] == [("a.png", "cat, wild"), ("b.png", "dog")]
    assert table.unused == ["season"]


@pytest.mark.parametrize("header", ["Filename,ClassId", "image_path,CLASS", " img , label ", "file-name,Category"])
def test_usual_names(tmp_path, header):
    assert read(tmp_path, f"{header}\na.png,x\n").rows == [(2, ("a.png", "x"))]


@pytest.mark.parametrize("word", ["valid", "val", "train", "test"])
def test_a_column_may_have_the_name_of_a_split(tmp_path, word):
    table = read(tmp_path, f"file,class,{word}\na.png,x,1\n")
    assert table.rows == [(2, ("a.png", "x"))] and table.unused == [word]


def test_empty_lines_before_the_header_count(tmp_path):
    assert read(tmp_path, "\n\r\n\nfile;class\na.png;x\n").rows == [(5, ("a.png", "x"))]
    with pytest.raises(UsageError, match="file and class in line 4"):
        read(tmp_path, "\n\nfile,class\na.png,\n")


def test_named_columns(tmp_path, caplog):
    table = read(tmp_path, "x,y,file,class\n1,2,3,4\n", **{"file": "y", "class": "x"})
    assert table.rows == [(2, ("2", "1"))] and table.unused == ["file", "class"] and not caplog.messages
    assert read(tmp_path, "file,class\na,b\n", **{"class": "kind"}).rows == [(2, ("a", "b"))]
    assert "has no column kind, so class is read instead" in caplog.text


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("id,kind\na,b\n", r"got the columns id, kind: type 'dataset\.columns={file:id,class:kind}'"),
        ("file,class,label\na,b,c\n", r"got the columns file, class, label: type '.*{file:file,class:class}'"),
        ("file,class,class\na,b,c\n", "got the columns file, class, class"),
        ("file|class\na|b\n", r"got the columns file\|class"),
        ("a.png,cat\nb.png,dog\n", r"to be a header, such as file,class, got a\.png, cat: add that line"),
        ("file,class\na,b\n,c\n", "file and class in line 3"),
        ("file,class\n\n", "got its header only"),
    ],
)
def test_files_that_are_not_understood_are_refused(tmp_path, content, sentence):
    with pytest.raises(UsageError, match=sentence):
        read(tmp_path, content)


def test_named_columns_of_splits(tmp_path):
    file = tmp_path / "s.csv"
    file.write_text("Klasse;n;Teil\na;1;train\nb;2;test\n")
    splits = divide("ab", file, [1, 0, 0], 0, {"class": "Klasse", "split": "Teil"})
    assert splits == {"train": ["a"], "val": [], "test": ["b"]}


@pytest.mark.parametrize("columns", [{"label": "x"}, "class", ["class"]])
def test_only_three_columns_have_names(columns):
    with pytest.raises(UsageError, match=r"dataset\.columns to name the columns file, class, split"):
        check_columns(columns)


def test_a_key_twice_in_json_is_refused(tmp_path):
    file = tmp_path / "s.json"
    file.write_text('{"train": ["a"], "test": ["b"], "train": ["c"]}')
    with pytest.raises(UsageError, match="it has 'train' twice"):
        divide("abc", file, [1, 0, 0], 0)
