"""The process of the command line: its standard streams, and how a signal ends it."""

import atexit
import os
import select
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Signals that ask a command to stop. Windows has no SIGHUP."""
CLEAN_UP_SECONDS = 5
"""Time for removing partial files and the like, before the process ends without that."""
CONTINUES = "no partial files are left, and the same command continues from here"
LOST = (
    "another process of this run has ended; what it or its launcher says is the reason, and "
    f"{CONTINUES.rpartition(', and ')[2]}"
)
"""What is said if a process that others wait for was killed and could say nothing itself."""
CLOSED_PIPE = 141
"""Exit status of a command whose reader has gone (`llm2comp results | head -1`): 128 + SIGPIPE."""


def is_main() -> bool:
    """Return whether this process speaks for all that a launcher of processes has started."""
    return int(os.environ.get("RANK", "0")) == 0


def prepare_streams() -> None:
    """Make it safe to print any text to standard output and standard error, and to read input.

    A character that the terminal's encoding lacks is printed as an escape. A stream that the
    parent process has closed becomes the null device. Otherwise the next file that is opened would
    get the stream's number, and what a library prints would go into that file.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free number
        if getattr(sys, name) is None:
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def reader_has_gone() -> bool:
    """Return whether the other end of standard output or standard error is closed."""
    streams = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # a stream in memory, as in tests, has no number
            streams.register(stream.fileno(), 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in streams.poll(0))


def drop_unwritten() -> None:
    """Drop what could not be printed.

    Python would try to print it again when it ends, and show a second error.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def end_on_signals() -> None:
    """End this process by SIGINT, SIGTERM or SIGHUP with one line and status 128 + signal.

    The signal ends the process where it is, after its children are killed and its exit functions
    have run: these remove partial files. An exception, which is what Python makes of Ctrl-C, could
    be swallowed by a library or be shown as a traceback in the middle of an import.

    A signal that the parent process had ignored (`nohup`) stays ignored.
    """
    handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    for number in handled:
        signal.signal(number, _end_at_once)  # before the import below there is nothing to clean up
    import psutil

    process = os.getpid()

    def end(number: int, _: FrameType | None) -> None:
        if os.getpid() != process:  # a fork, such as a worker of a data loader
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        for other in handled:
            signal.signal(other, signal.SIG_IGN)
        signal.signal(signal.SIGALRM, lambda *_: _end_at_once(number, None))
        signal.alarm(CLEAN_UP_SECONDS)
        _kill_children(psutil)
        # A thread may go on starting workers. Such a worker would show a traceback, because the
        # exit functions remove what it shares with this process.
        threading.Thread(target=_keep_killing_children, args=(psutil,), daemon=True).start()
        atexit._run_exitfuncs()
        _kill_children(psutil)
        _end_at_once(number, None)

    for number in handled:
        signal.signal(number, end)


def leave_signals() -> None:
    """Give signals their default action again, because the command has ended."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _kill_children(psutil: Any) -> None:
    """Kill all processes that this one has started, except the one that frees its semaphores."""
    for child in psutil.Process().children(recursive=True):
        try:
            if not any("resource_tracker" in part for part in child.cmdline()):
                child.kill()
        except psutil.Error:  # it has just ended
            continue


def _keep_killing_children(psutil: Any) -> None:
    """Kill processes that this one starts, until it ends."""
    while True:
        _kill_children(psutil)
        time.sleep(0.01)


def _end_at_once(number: int, _: FrameType | None) -> None:
    """Print why the process ends, and end it."""
    by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    line = f"llm2comp: stopped{by}; {CONTINUES}\n"
    show_cursor = "\x1b[?25h\n" if os.isatty(2) else ""  # a progress bar hides it
    try:
        if is_main():
            os.write(2, f"{show_cursor}{line}".encode())
    finally:
        os._exit(128 + number)
