"""Tables of volumes, as spreadsheets and people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from conv3d_cli.batch.manifest import read_manifest
from conv3d_cli.errors import ConfigError, FormatError

KNOWN = ("input", "output", "kernel", "kernel_size", "strides")


def write(tmp_path: Path, text: str | bytes, name: str = "m.csv") -> str:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.csv", 'input,kernel,kernel-size\na.npy,"gaussian:sigma=1,1,2vox",\nb.npy,n/a,3\n'),
        ("m.csv", "input;kernel;kernel_size\r\na.npy;gaussian:sigma=1,1,2vox;\r\n\r\nb.npy;;3\r\n"),
        (
            "m.tsv",
            "input\tkernel\tkernel_size\na.npy\tgaussian:sigma=1,1,2vox\tn/a\n\t\t\nb.npy\t\t3",
        ),
        (
            "table",
            "\ufeffinput\tkernel\tkernel_size\n a.npy \tgaussian:sigma=1,1,2vox\t\nb.npy\t\t3\n",
        ),
    ],
)
def test_the_same_table_in_four_hands(tmp_path: Path, name: str, text: str) -> None:
    rows = read_manifest(write(tmp_path, text, name), KNOWN)
    assert [row.cells for row in rows] == [
        {"input": "a.npy", "kernel": "gaussian:sigma=1,1,2vox"},
        {"input": "b.npy", "kernel_size": "3"},
    ]


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    rows = read_manifest(write(tmp_path, 'input,output\n\n"a\nb.npy",x\n\nc.npy,y\n'), KNOWN)
    assert [(row.line, row.cells["input"]) for row in rows] == [(3, "a\nb.npy"), (6, "c.npy")]
    (row,) = read_manifest(write(tmp_path, "input\na,b.npy\n", "one.tsv"), KNOWN)
    assert row.cells == {"input": "a,b.npy"}


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("", FormatError, "the file is empty"),
        ("input,kernel\n", ConfigError, "holds no volumes"),
        ("\n\n", ConfigError, "holds no volumes"),
        ("kernel,strides\nbox,2\n", ConfigError, "line 1: no column 'input'"),
        (
            "input,sigma\na,2\n",
            ConfigError,
            "line 1: unknown column 'sigma'; available: input, output",
        ),
        ("input,stride\na,2\n", ConfigError, "write 'strides'"),
        (
            "input,kernel_size,kernel-size\na,2,3\n",
            ConfigError,
            "line 1: two columns are named kernel_size",
        ),
        (
            "input,kernel\na,box,3\n",
            ConfigError,
            "line 2: 3 cells, but the first line names 2 columns",
        ),
        ("input,kernel\na\n", ConfigError, "line 2: 1 cell, but"),
        ("input,kernel\na,b\n,box\n", ConfigError, "line 3, column input: the cell is empty"),
        ('input,kernel\na,"box\n', ConfigError, "line 2: unexpected end of data"),
        (b"input,kernel\n\xff\xfe,box\n", FormatError, "not UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0", FormatError, "not UTF-8"),
    ],
)
def test_what_is_no_manifest(
    tmp_path: Path, text: str | bytes, error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        read_manifest(write(tmp_path, text), KNOWN)
    assert words in str(caught.value)


def test_a_missing_one(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such file"):
        read_manifest(str(tmp_path / "no.csv"), KNOWN)
