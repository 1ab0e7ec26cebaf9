"""Ctrl-C and SIGTERM as a wish that is granted between two updates."""

import logging
import signal
import threading
from typing import Any

log = logging.getLogger(__name__)


class Signals:
    """Notes Ctrl-C and SIGTERM instead of raising; a second one is raised at once. Does nothing outside the main thread."""

    def __init__(self) -> None:
        self.received = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True
        log.warning("stopping after this update; once more to stop at once, without saving")
