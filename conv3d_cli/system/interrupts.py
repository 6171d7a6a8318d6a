"""The process of the command ends soon after a signal, whatever its threads wait for.

While modules are imported, Ctrl-C ends the process at once: nothing is written yet. Later, a signal
raises an exception, and the command cleans up. A thread that waits for a server cannot be
interrupted, so the process is ended if cleaning up takes too long; the next run removes what is
left then. A main thread that waits for another thread is woken. Standard library only.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

SECONDS = 1.5
"""What cleaning up may take after a signal."""

Handler = Callable[[int, FrameType | None], object]
NUDGE_SECONDS = 0.1
_own_process = False
_counting = False
_told = False


def leave_on_interrupt() -> None:
    """Let Ctrl-C end this process at once, until `handle_interrupts`. For the command's process."""
    global _own_process
    _own_process = True
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def handle_interrupts(handler: Handler) -> None:
    """Let Ctrl-C call a handler from now on, where `leave_on_interrupt` was called before."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, handler)
    if _own_process and hasattr(signal, "pthread_kill"):
        _wake_on_signals()


def _wake_on_signals() -> None:
    """Wake the main thread when a signal has come, so that it calls the signal's handler.

    Only the main thread calls handlers. It sleeps on, however, if the system gave the signal to
    another thread, or just before it fell asleep. A thread learns of each signal from a pipe, and
    interrupts the main thread's sleep until a handler has run, with a signal that does nothing.
    """
    ending = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    signal.signal(signal.SIGURG, lambda number, frame: None)
    main = threading.main_thread().ident
    assert main is not None

    def watch() -> None:
        while numbers := os.read(reads, 64):
            if ending.isdisjoint(numbers):
                continue
            time.sleep(NUDGE_SECONDS)
            while not _counting:
                signal.pthread_kill(main, signal.SIGURG)
                time.sleep(NUDGE_SECONDS)
            return

    threading.Thread(target=watch, name="conv3d-signals", daemon=True).start()
    signal.set_wakeup_fd(writes, warn_on_full_buffer=False)


def _leave(number: int, frame: FrameType | None) -> None:
    _end("interrupted; no output was left behind", 130)


def limit_cleaning_up(word: str, code: int, clean_up: Callable[[], None]) -> None:
    """End the command's process with this exit code in `SECONDS`, unless it has ended by then.

    word : str              what happened, such as "terminated"
    clean_up : callable     is called then
    Does nothing in a process that runs commands for others, such as a test.
    """
    global _counting
    if not _own_process or _counting:
        return
    _counting = True

    def end() -> None:
        time.sleep(SECONDS)
        with suppress(Exception):
            clean_up()
        text = (
            f"{word}; something did not end within {SECONDS:g} s and was stopped; "
            "the next run removes what it left unfinished"
        )
        _end("" if _told else text, code)

    threading.Thread(target=end, daemon=True).start()


def told() -> None:
    """The user has read what the signal did: the process may end without a word."""
    global _told
    _told = True


def _end(text: str, code: int) -> None:
    with suppress(OSError):
        os.write(2, f"{text}\n".encode() if text else b"")
    os._exit(code)
