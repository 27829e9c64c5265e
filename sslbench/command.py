"""How a command ends: what a user can mend is one paragraph, not a traceback."""

import contextlib
import sys
from collections.abc import Iterator

from sslbench.files import disk_errors_named

INTERRUPTED = 130  # what a shell reports after Ctrl-C


@contextlib.contextmanager
def errors_in_one_paragraph() -> Iterator[None]:
    """Exit 1 with the message of a ``ValueError`` or a disk's error, 130 after an interruption."""
    try:
        with disk_errors_named():
            yield
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted; run the same command to continue", file=sys.stderr)
        sys.exit(INTERRUPTED)
