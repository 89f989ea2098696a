"""What must hold while a reader has foreign bytes.

Nothing but an error of ours comes out, it takes a bounded time and memory, nothing is written
outside a scratch folder, no program is started and no network is asked.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from u2export.errors import U2ExportError
from u2export.system.progress import Verbosity, set_verbosity, verbosity

MAX_SECONDS = 10.0
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit events of CPython that nothing may raise, and how many of their first arguments are paths
# that must lie in the scratch folder.
_FORBIDDEN = frozenset(
    {
        *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn"),
        *("os.fork", "os.forkpty", "pty.spawn", "os.startfile", "webbrowser.open"),
        *("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo"),
        *("pickle.find_class", "urllib.Request"),
    }
)
_CHANGING = {
    **dict.fromkeys(("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod"), 1),
    **dict.fromkeys(("os.chown", "os.utime", "os.setxattr", "os.removexattr"), 1),
    **dict.fromkeys(("os.rename", "os.link", "os.symlink"), 2),
}


class BreachError(BaseException):
    """Something was about to be done that no reader may do; no handler for errors stops it."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with how a reader took an input.

    Attributes:
        key: the same for inputs with the same cause: kind and place.
        text: for people; a traceback where there is one.
    """

    key: str
    text: str


class _Watcher:
    """The process's one audit hook, which looks only while a folder is watched."""

    def __init__(self) -> None:
        self.folder, self.breaches, self._installed = "", list[str](), False

    def install(self) -> None:
        if not self._installed:
            sys.addaudithook(self._hear)
            self._installed = True

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.folder and (breach := self._breach(event, arguments)):
            self.breaches.append(breach)
            raise BreachError(breach)

    def _breach(self, event: str, arguments: tuple[object, ...]) -> str:
        if event in _FORBIDDEN:
            return f"{event} {arguments!r:.200}"
        paths = arguments[: _CHANGING.get(event, 0)]
        if event == "open" and _is_writing(arguments):
            paths = arguments[:1]
        outside = [path for path in paths if not self._is_inside(path, arguments)]
        return f"{event} of {outside[0]!r:.200}" if outside else ""

    def _is_inside(self, path: object, arguments: tuple[object, ...]) -> bool:
        if isinstance(path, int):  # a file that is open already
            return True
        name = os.fsdecode(path)  # type: ignore[arg-type]
        if name == os.devnull:
            return True
        descriptor = arguments[-1]
        if not os.path.isabs(name) and isinstance(descriptor, int) and descriptor > 2:
            name = os.path.join(f"/proc/self/fd/{descriptor}", name)  # as `shutil.rmtree` says it
        return (os.path.realpath(name) + os.sep).startswith(self.folder + os.sep)


def _is_writing(arguments: tuple[object, ...]) -> bool:
    _, mode, flags = arguments
    if isinstance(mode, str):
        return bool(set(mode) & set("wax+"))
    return isinstance(flags, int) and bool(flags & _WRITING)


_WATCHER = _Watcher()


def find_fault(
    read: Callable[[bytes, Path], object], content: bytes, memory_mb: int
) -> Fault | None:
    """Give bytes to a reader in an empty folder, and see whether all holds that must.

    Args:
        read: takes the bytes and the folder, and raises errors of ours only.
        content: the bytes.
        memory_mb: how far the process may grow beyond the most it ever had, MB of 10^6 bytes.
    """
    before, start = _peak_mb(), time.perf_counter()
    with _watched_folder() as folder:
        fault = _fault_of_reading(read, content, folder)
    seconds, grown = time.perf_counter() - start, _peak_mb() - before
    if fault is None and seconds > MAX_SECONDS:
        fault = Fault("time", f"it took {seconds:.1f} s")
    if fault is None and grown > memory_mb:
        fault = Fault("memory", f"it took {grown:.0f} MB")
    return fault


def _fault_of_reading(
    read: Callable[[bytes, Path], object], content: bytes, folder: Path
) -> Fault | None:
    try:
        with contextlib.suppress(U2ExportError):
            read(content, folder)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever else comes is what is looked for
        return _fault_of(error)
    finally:
        breaches, _WATCHER.breaches = _WATCHER.breaches, []
    return Fault(f"outside {breaches[0].split(' ')[0]}", breaches[0]) if breaches else None


def _fault_of(error: BaseException) -> Fault:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}u2export{os.sep}" in frame.filename]
    places = [f"{Path(frame.filename).name}:{frame.name}" for frame in (*ours[-1:], frames[-1])]
    text = "".join(traceback.format_exception(error))
    return Fault(" ".join([type(error).__name__, *dict.fromkeys(places)]), text)


@contextmanager
def _watched_folder() -> Iterator[Path]:
    """An empty folder that is the current one, and where caches and temporary files go."""
    _WATCHER.install()
    with ExitStack() as stack:
        place = os.path.realpath(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.callback(set_verbosity, verbosity())
        set_verbosity(Verbosity.QUIET)  # a fuzzer needs standard error for itself
        for owner, name, value in (
            (tempfile, "tempdir", place),
            (sys, "dont_write_bytecode", True),
            (_WATCHER, "folder", place),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        stack.enter_context(_surroundings(place))
        yield Path(place)


@contextmanager
def _surroundings(place: str) -> Iterator[None]:
    """Make a folder the current one; caches lie in it, and nothing is fetched."""
    given = {"U2EXPORT_CACHE": place, "U2EXPORT_COMPILED": place, "U2EXPORT_OFFLINE": "1"}
    previous, folder = {name: os.environ.get(name) for name in given}, os.getcwd()
    os.environ.update(given)
    os.chdir(place)
    try:
        yield
    finally:
        os.chdir(folder)
        for name, value in previous.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _peak_mb() -> float:
    """The most memory that this process had, MB of 10^6 bytes; 0 where the system hides it."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
