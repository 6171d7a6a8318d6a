"""A process of its own: what it answers, how it ends, and that nobody waits for it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from processes import LIMIT, wait_until

from conv3d_cli.errors import FormatError, SpecError, for_command_line
from conv3d_cli.system import isolated
from conv3d_cli.system.isolated import Isolated

LIBRARY = """
import os, sys
import numpy as np
from conv3d_cli.errors import SpecError

def loop():
    while True:
        pass

def crash():
    print("free(): invalid pointer", file=sys.stderr, flush=True)
    os.abort()

def die():
    os.kill(os.getpid(), 9)

def leave():
    os._exit(0)

def refuse():
    raise SpecError("the value is wrong")

def bug():
    return {}["key"]

def chatter():
    os.write(1, b"x" * 10)
    for _ in range(300):
        try:
            os.write(2, bytes(1000))
        except BlockingIOError:
            pass
    return 1

def double(array):
    return [array * 2, array.dtype.str], os.getpid()
"""


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Isolated:
    (tmp_path / "library_of_a_test.py").write_text(LIBRARY)
    monkeypatch.syspath_prepend(tmp_path)
    return Isolated("a.h5", "the HDF5 library")


def call(process: Isolated, name: str, *arguments: object) -> object:
    return process.call(f"library_of_a_test:{name}", *arguments)


def test_arrays_come_back_from_the_same_process(process: Isolated) -> None:
    with process:
        for dtype in ("u1", ">i2", "f4"):
            values = np.arange(200_000).astype(dtype).reshape(10, -1)
            answer, number = call(process, "double", values)
            np.testing.assert_array_equal(answer[0], values * 2)
            assert answer[1] == values.dtype.str
            assert number == process._process.pid != os.getpid()
            answer[0][:] = 0  # it may be written to


def test_errors_come_back_as_they_are(process: Isolated) -> None:
    with process:
        with pytest.raises(SpecError, match=r"^the value is wrong$"):
            call(process, "refuse")
        with pytest.raises(RuntimeError, match=r"Traceback(?s:.*)KeyError: 'key'"):
            call(process, "bug")
        assert call(process, "chatter") == 1, "what a library prints is no answer"


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("crash", r"the HDF5 library crashed \(free\(\): invalid pointer\)"),
        ("die", r"the HDF5 library crashed \(SIGKILL\)"),
    ],
)
def test_a_crash_is_one_line(process: Isolated, function: str, words: str) -> None:
    with process, pytest.raises(FormatError, match=f"^cannot read a.h5: damaged: {words}$"):
        call(process, function)


def test_an_end_without_a_signal_is_no_signal(
    process: Isolated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, which has neither of these signals."""
    for name in ("SIGBUS", "SIGPROF"):
        monkeypatch.delattr(signal, name, raising=False)
    words = r"the HDF5 library crashed \(exit code 0\)"
    with process, pytest.raises(FormatError, match=f"^cannot read a.h5: damaged: {words}$"):
        call(process, "leave")


def test_a_loop_ends(process: Isolated) -> None:
    process._seconds = 0.3
    with process, pytest.raises(FormatError, match="the HDF5 library did not finish"):
        call(process, "loop")


def test_waiting_does_not_count(process: Isolated) -> None:
    """A slow disk is no loop."""
    process._seconds = 0.2
    with process:
        assert process.call("time:sleep", 0.6) is None


def test_an_interrupt_ends_the_call_of_another_thread(process: Isolated) -> None:
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            call(process, "loop")
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    with process:
        thread.start()
        wait_until(lambda: process._lock.locked())
        isolated.end_all()
        thread.join(LIMIT)
    assert [type(error) for error in caught] == [KeyboardInterrupt]


def test_nothing_is_left(process: Isolated) -> None:
    number = process._process.pid
    process.close()
    process.close()
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)
    with pytest.raises(FormatError, match="it was closed"):
        call(process, "double", np.ones(1))


def test_the_process_ends_with_its_parent(tmp_path: Path) -> None:
    import subprocess

    code = (
        "from conv3d_cli.system.isolated import Isolated\n"
        "p = Isolated('a', 'x'); p.call('os:getpid'); print(p._process.pid, flush=True)\n"
        "import os; os._exit(0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)

    def gone() -> bool:
        try:
            os.kill(int(ran.stdout), 0)
        except ProcessLookupError:
            return True
        # a zombie whose new parent has not looked yet
        stat = Path(f"/proc/{int(ran.stdout)}/stat")
        return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"

    wait_until(gone)


def test_messages_are_for_the_reader_of_the_first_process() -> None:
    """Notes of HDF5 name options on the command line, and arguments in Python."""
    with Isolated("a.h5", "the HDF5 library") as process:
        assert process.call("conv3d_cli.errors:setting", "missing", "-1") == "missing='-1'"
        with for_command_line():
            assert process.call("conv3d_cli.errors:setting", "missing", "-1") == "--missing -1"
        assert process.call("conv3d_cli.errors:setting", "missing", "-1") == "missing='-1'"
