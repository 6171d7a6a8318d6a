"""Takes away from conv3d what Windows lacks. Python imports this file if its folder is on the path.

The package's modules get another `os`, `sys`, `signal` and `ctypes` than all others: what they name
is missing, as on Windows, and `os.name` is "nt". Modules that Windows lacks cannot be imported from
them. All modules of the process have these habits of Windows:

- a folder cannot be opened, and a file that is open only for reading cannot be flushed;
- a file that this process has open or mapped cannot be removed, renamed or replaced, nor a folder
  with such a file in it; nor can a file that is read-only be removed or replaced;
- os.rename replaces nothing; names have none of `<>:"|?*`; making links needs a privilege.

What it does not show: paths with backslashes and drives, letters of both cases as one name, the
libraries that others build for Windows. It runs on Linux, by /proc.
"""

from __future__ import annotations

import builtins
import ctypes
import errno
import importlib.abc
import importlib.machinery
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import types
from typing import Any

MISSING = {
    "os": [
        "chown",
        "chroot",
        "confstr",
        "copy_file_range",
        "ctermid",
        "eventfd",
        "fchdir",
        "fchmod",
        "fchown",
        "fdatasync",
        "fork",
        "forkpty",
        "get_blocking",
        "getegid",
        "geteuid",
        "getgid",
        "getgrouplist",
        "getgroups",
        "getloadavg",
        "getpgid",
        "getpgrp",
        "getpriority",
        "getresgid",
        "getresuid",
        "getsid",
        "getuid",
        "getxattr",
        "initgroups",
        "killpg",
        "lchown",
        "listxattr",
        "lockf",
        "login_tty",
        "major",
        "makedev",
        "memfd_create",
        "minor",
        "mkfifo",
        "mknod",
        "nice",
        "openpty",
        "pathconf",
        "pidfd_open",
        "pipe2",
        "posix_fadvise",
        "posix_fallocate",
        "posix_openpt",
        "posix_spawn",
        "posix_spawnp",
        "pread",
        "preadv",
        "pwrite",
        "pwritev",
        "readv",
        "register_at_fork",
        "removexattr",
        "sched_getaffinity",
        "sched_getparam",
        "sched_getscheduler",
        "sched_setaffinity",
        "sched_yield",
        "sendfile",
        "set_blocking",
        "setegid",
        "seteuid",
        "setgid",
        "setgroups",
        "setpgid",
        "setpriority",
        "setsid",
        "setuid",
        "setxattr",
        "splice",
        "statvfs",
        "sync",
        "sysconf",
        "tcgetpgrp",
        "ttyname",
        "uname",
        "unshare",
        "wait",
        "wait3",
        "wait4",
        "waitid",
        "writev",
        "O_CLOEXEC",
        "O_DIRECTORY",
        "O_DSYNC",
        "O_LARGEFILE",
        "O_NDELAY",
        "O_NOATIME",
        "O_NOCTTY",
        "O_NOFOLLOW",
        "O_NONBLOCK",
        "O_PATH",
        "O_RSYNC",
        "O_SYNC",
        "O_TMPFILE",
        "WNOHANG",
        "WIFEXITED",
        "WEXITSTATUS",
    ],
    "sys": ["setdlopenflags", "getdlopenflags"],
    "signal": [
        "SIGALRM",
        "SIGBUS",
        "SIGCHLD",
        "SIGCONT",
        "SIGHUP",
        "SIGIO",
        "SIGKILL",
        "SIGPIPE",
        "SIGPROF",
        "SIGPWR",
        "SIGQUIT",
        "SIGSTOP",
        "SIGTSTP",
        "SIGTTIN",
        "SIGTTOU",
        "SIGURG",
        "SIGUSR1",
        "SIGUSR2",
        "SIGVTALRM",
        "SIGWINCH",
        "SIGXCPU",
        "SIGXFSZ",
        "ITIMER_PROF",
        "ITIMER_REAL",
        "ITIMER_VIRTUAL",
        "alarm",
        "getitimer",
        "pause",
        "pthread_kill",
        "pthread_sigmask",
        "setitimer",
        "siginterrupt",
        "sigpending",
        "sigtimedwait",
        "sigwait",
        "sigwaitinfo",
    ],
    "ctypes": [],
}
MODULES = [
    "fcntl",
    "grp",
    "posix",
    "pty",
    "pwd",
    "readline",
    "resource",
    "spwd",
    "syslog",
    "termios",
    "tty",
]
# what the package sees instead
OTHERS: dict[str, dict[str, Any]] = {
    "os": {
        "name": "nt", "altsep": "/", "O_BINARY": 0, "supports_dir_fd": set(),
        "supports_fd": {os.stat, os.truncate}, "supports_follow_symlinks": {os.stat},
    },
    "sys": {"platform": "win32"},
    "signal": {},
    "ctypes": {},
}  # fmt: skip
_lists_files = os.listdir, os.readlink, os.lstat, open


class WindowsModule(types.ModuleType):
    """A module of which some names are missing, and others different."""

    def __init__(self, module: types.ModuleType) -> None:
        super().__init__(module.__name__)
        own = self.__dict__
        own.update(OTHERS[module.__name__])
        own["_module"] = module

    def __getattr__(self, name: str) -> Any:
        if name in MISSING[self.__name__]:
            raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")
        return getattr(self._module, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._module, name, value)


def library(name: str | None, *arguments: Any, **settings: Any) -> Any:
    """ctypes.CDLL: Windows has no library that holds the whole program's."""
    if name is None:
        raise TypeError("argument of type 'NoneType' is not iterable")
    return ctypes.CDLL(name, *arguments, **settings)


OTHERS["ctypes"]["CDLL"] = library
SEEN = {module.__name__: WindowsModule(module) for module in (os, sys, signal, ctypes)}


def import_as_on_windows(
    name: str, space: Any = None, local: Any = None, names: Any = (), level: int = 0
) -> Any:
    if not level and name in MODULES:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)
    found = builtins.__import__(name, space, local, names, level)
    return SEEN.get(name, found) if not level else found


class Loader(importlib.machinery.SourceFileLoader):
    """Runs a module of the package with the imports of Windows."""

    def exec_module(self, module: types.ModuleType) -> None:
        module.__dict__["__builtins__"] = {
            **vars(builtins), "__import__": import_as_on_windows,
        }  # fmt: skip
        super().exec_module(module)


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] != "conv3d_cli":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


# --------------------------------------------------------------------------------------------------
# Files


def open_files() -> set[str]:
    """The true paths of what this process has open or mapped."""
    list_files, target, _, read = _lists_files
    found = set()
    for name in list_files("/proc/self/fd"):
        try:
            found.add(target(f"/proc/self/fd/{name}"))
        except OSError:
            pass
    with read("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            parts = line.rstrip("\n").split(maxsplit=5)
            if len(parts) == 6:
                found.add(parts[5])
    return found


def denied(path: Any, why: str) -> PermissionError:
    return PermissionError(errno.EACCES, why, os.fspath(path))


def check_free(path: Any, removed: bool = True) -> None:
    """Refuse to change a name that is in use, or that is read-only."""
    try:
        status = _lists_files[2](path)
    except OSError:
        return
    true = os.path.realpath(os.fsdecode(path))
    used = [one for one in open_files() if one == true or one.startswith(true + os.sep)]
    if used and not stat.S_ISLNK(status.st_mode):
        raise denied(path, "The process cannot access the file because it is being used")
    if removed and stat.S_ISREG(status.st_mode) and not status.st_mode & stat.S_IWUSR:
        raise denied(path, "Access is denied")


def check_name(path: Any, *mode: int) -> None:
    if isinstance(path, (str, bytes, os.PathLike)):
        name = os.fsdecode(path)
        if not name.startswith(("/proc/", "/sys/", "/dev/")) and re.search(r'[<>:"|?*]', name):
            raise OSError(errno.EINVAL, "Invalid argument", name)


def wrap(name: str, check: Any) -> None:
    usual = getattr(os, name)

    def call(*arguments: Any, **settings: Any) -> Any:
        if any(settings.get(word) is not None for word in ("dir_fd", "src_dir_fd", "dst_dir_fd")):
            return usual(*arguments, **settings)  # another library's, which asked if it can
        check(*arguments)
        return usual(*arguments, **settings)

    call.__name__ = name
    for group in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
        if usual in group:
            group.add(call)
    setattr(os, name, call)


def check_open(path: Any, flags: int, *mode: int) -> None:
    if isinstance(path, (str, bytes, os.PathLike)):
        check_name(path)
        if os.path.isdir(path) and not os.fsdecode(path).startswith(("/proc/", "/sys/")):
            raise denied(path, "Permission denied")


def check_flush(file: Any) -> None:
    import fcntl

    number = file if isinstance(file, int) else file.fileno()
    if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")


def check_replace(old: Any, new: Any) -> None:
    check_name(new)
    check_free(old, removed=False)
    check_free(new)


def check_rename(old: Any, new: Any) -> None:
    check_replace(old, new)
    if os.path.lexists(new):
        raise FileExistsError(errno.EEXIST, "File exists", os.fspath(new))


def check_link(*names: Any) -> None:
    raise OSError(errno.EPERM, "A required privilege is not held by the client")


def refuse_of_subprocess(usual: Any) -> Any:
    def start(self: Any, *arguments: Any, **settings: Any) -> Any:
        for name in ("preexec_fn", "pass_fds", "process_group", "user", "group", "umask"):
            if settings.get(name) not in (None, (), -1):
                raise ValueError(f"{name} is not supported on Windows platforms")
        return usual(self, *arguments, **settings)

    return start


def become_windows() -> None:
    for name, check in {
        "open": check_open, "fsync": check_flush, "replace": check_replace,
        "rename": check_rename, "unlink": check_free, "remove": check_free,
        "rmdir": check_free, "mkdir": check_name, "symlink": check_link,
    }.items():  # fmt: skip
        wrap(name, check)

    def opened(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and arguments[2] is not None and arguments[2] & os.O_CREAT:
            check_name(arguments[0])

    sys.addaudithook(opened)
    tempfile.TemporaryFile = tempfile.NamedTemporaryFile  # as tempfile does there
    shutil._use_fd_functions = False  # as os.supports_dir_fd is empty there
    subprocess.Popen.__init__ = refuse_of_subprocess(subprocess.Popen.__init__)  # type: ignore
    sys.meta_path.insert(0, Finder())


become_windows()
