"""What RecBole's own code raises on settings or data that it cannot work with, told in one line."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from recbole_mm.errors import ConfigError, RecboleMMError

logger = logging.getLogger(__name__)


@contextmanager
def told_in_one_line(model: str) -> Iterator[None]:
    """Turn an exception that RecBole's code raises, or what RecBole calls, into a `ConfigError`.

    RecBole checks few of its settings, so that `n_layers: abc` or a column that is not there ends somewhere inside it.
    What is raised by any other code passes as it is.

    Args:
        model: name of the model, for the message.
    """
    try:
        yield
    except RecboleMMError:
        raise
    except Exception as error:
        places = [
            (str(frame.f_globals.get("__name__")), number) for frame, number in traceback.walk_tb(error.__traceback__)
        ]
        ours = [(name, number) for name, number in places if name.split(".")[0] in ("recbole", "recbole_mm")]
        if not ours or not ours[-1][0].startswith("recbole."):
            raise
        logger.debug("where RecBole stopped:", exc_info=True)
        where = "{}, line {}".format(*ours[-1])
        raise ConfigError(
            f"{model} does not accept these settings or this data: {type(error).__name__}: "
            f"{' '.join(str(error).split())} ({where}; --state=DEBUG shows the traceback)"
        ) from error
