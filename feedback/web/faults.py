"""The log, and how it tells of an exception: without messages, which may quote what people wrote."""

import logging
import traceback

LOG = logging.getLogger("feedback")


def told(failure: BaseException) -> str:
    """An exception's kind, and the lines of code that it came through, the innermost first."""
    frames = traceback.extract_tb(failure.__traceback__)[-8:]
    where = " < ".join(f"{x.name} ({x.filename}:{x.lineno})" for x in reversed(frames))
    return f"{type(failure).__name__} in {where}"


class Discreet(logging.Formatter):
    """A line for each event; of exceptions it says what `told` does."""

    def formatException(self, ei: tuple) -> str:
        """An exception, without its message."""
        return told(ei[1])
