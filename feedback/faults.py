"""The log, and how it tells of an exception: without messages, which may quote what people wrote."""

import logging
import traceback

LOG = logging.getLogger("feedback")


def told(failure: BaseException) -> str:
    """An exception's kind, and the lines of code that it came through, the innermost first."""
    frames = traceback.extract_tb(failure.__traceback__)[-8:]
    where = " < ".join(f"{x.name} ({x.filename}:{x.lineno})" for x in reversed(frames))
    return f"{type(failure).__name__} in {where}"
