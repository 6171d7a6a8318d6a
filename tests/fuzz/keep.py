#!/usr/bin/env python
"""What the fuzzer has learnt: lines of each reader that it reached, and with --keep the few inputs that reach them all.

`keep.py [TARGET]` reads every input in `.fuzz/corpus/` under a line tracer, smallest first. Counted are the lines of the
functions that were entered, so that writers, which share modules with readers, do not count; `--keep` writes those inputs
that reached a line for the first time, and are not seeds, to `tests/fuzz/corpus/TARGET.zip`.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from fuzz import WEIGHTS_AT_MOST, WORK
from targets import CORPUS, TARGETS, Target, corpus_of, find_targets, try_input

import conv3d_cli.kernels.builtin
import conv3d_cli.pipeline.run

ROOT = Path(conv3d_cli.__file__).parent
LARGEST = 12_000  # bytes of a kept input
SECONDS = 20.0  # for each reader


class Lines:
    """Lines of some modules that were run, and those of the functions that were entered."""

    def __init__(self, target: Target) -> None:
        self._files = {str(ROOT / source) for source in target.sources}
        self.reached: set[tuple[str, int]] = set()
        self.entered: set[CodeType] = set()

    def watch(self, frame: FrameType, event: str, argument: Any) -> Any:
        """What sys.settrace takes."""
        if frame.f_code.co_filename not in self._files:
            return None
        self.entered.add(frame.f_code)
        return self._line

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.reached.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line

    def all(self) -> set[tuple[str, int]]:
        """Every line that there is in the functions that were entered, but for the line that names them."""
        return {
            (code.co_filename, line)
            for code in self.entered
            if code.co_name != "<module>"
            for _, _, line in code.co_lines()
            if line and line != code.co_firstlineno
        } | self.reached


def inputs(target: Target) -> Iterator[tuple[str, bytes]]:
    """Seeds, kept inputs and what the fuzzer learnt, the smallest first."""
    yield from target.seeds().items()
    learnt = WORK / "corpus" / target.name
    found = {path.read_bytes() for path in learnt.glob("*")} if learnt.is_dir() else set()
    for number, data in enumerate(
        sorted({*corpus_of(target).values(), *found}, key=lambda data: (len(data), data))
    ):
        yield f"{number:04}", data


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", nargs="?", default="all")
    parser.add_argument("--keep", action="store_true")
    arguments = parser.parse_args()
    conv3d_cli.kernels.builtin.MAX_WEIGHTS = conv3d_cli.pipeline.run.MAX_WEIGHTS = WEIGHTS_AT_MOST
    print(f"{'reader':<22}{'inputs':>8}{'lines reached':>16}{'':>8}")
    for target in find_targets(arguments.target):
        lines, kept, count = Lines(target), {}, 0
        seeds = target.seeds()
        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            for name, data in inputs(target):
                if time.monotonic() - begin > SECONDS:
                    break
                before, count = len(lines.reached), count + 1
                threading.settrace(lines.watch)
                sys.settrace(lines.watch)
                try:
                    try_input(target, data, Path(folder))
                finally:
                    sys.settrace(None)
                    threading.settrace(None)  # type: ignore[arg-type]
                if len(lines.reached) > before and name not in seeds and len(data) <= LARGEST:
                    kept[name] = data
        total = len(lines.all())
        print(
            f"{target.name:<22}{count:>8,}{f'{len(lines.reached)} of {total}':>16}{len(lines.reached) / max(1, total):>8.0%}"
        )
        if arguments.keep and kept:
            write_corpus(target, kept)


def write_corpus(target: Target, kept: dict[str, bytes]) -> None:
    """Pack inputs; the same ones have the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for number, data in enumerate(kept.values()):
            archive.writestr(zipfile.ZipInfo(f"{number:03}"), data, zipfile.ZIP_DEFLATED)
    CORPUS.mkdir(exist_ok=True)
    (CORPUS / f"{target.name}.zip").write_bytes(buffer.getvalue())


if __name__ == "__main__":
    assert len({target.name for target in TARGETS}) == len(TARGETS)
    main()
