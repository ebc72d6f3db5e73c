"""A download in the background of a host: at most one at a time, begun and ended by a person, asked how far it is."""
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from ..errors import SaeError
from .entries import Entry


@dataclass
class State:
    """name: of the entry; done, total: bytes of the file that comes; file: what can be chosen now; error: why not."""
    name: str = ""
    done: int = 0
    total: int = 0
    running: bool = False
    file: str = ""
    error: str = ""


class Downloads:
    """What a host has one of."""

    def __init__(self) -> None:
        self.state, self._stop, self._lock = State(), False, Lock()

    def start(self, entry: Entry, folder: Path) -> None:
        """Begin to bring an entry below a model folder.

        Raises SaeError while another one is coming.
        """
        with self._lock:
            if self.state.running:
                raise SaeError(f"{self.state.name} is still being downloaded: wait for it, or stop it first")
            self.state, self._stop = State(entry.name, running=True), False
        Thread(target=self._run, args=(entry, folder, self.state), daemon=True, name="saemnesia-download").start()

    def stop(self) -> None:
        """End what is coming, as soon as the next piece of it is there; asked for again, it goes on."""
        self._stop = True

    def as_json(self) -> dict[str, Any]:
        return asdict(self.state)

    def _run(self, entry: Entry, folder: Path, state: State) -> None:
        from .fetching import Stopped, download  # the client takes a while to be loaded, and a host seldom needs it

        def progress(done: int, total: int) -> None:
            if self._stop:
                raise Stopped
            state.done, state.total = done, total
        try:
            download(entry, folder, progress)
            state.file = entry.weights
        except SaeError as error:
            state.error = str(error)
        except Exception as error:  # a thread's own would only be in the log, and the page would wait for ever
            state.error = f"{entry.name} could not be downloaded ({type(error).__name__}: {error})"
        finally:
            state.running = False
