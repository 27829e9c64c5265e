"""The one exception of checkpoint reading, and how it lists keys."""

from collections.abc import Collection

MAX_KEY = 200  # characters of a key that are shown


class CheckpointError(ValueError):
    """The file does not hold exactly the trunk that it was said to hold; in one paragraph."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


def short(text: str) -> str:
    """Show a text that a file may have made very long."""
    return repr(text[:MAX_KEY]) + (f"... ({len(text)} characters)" if len(text) > MAX_KEY else "")


def listed(keys: Collection[str], limit: int = 5) -> str:
    """Show the first few keys and how many there are."""
    shown = ", ".join(short(key) for key in list(keys)[:limit])
    return shown + (f" and {len(keys) - limit} more" if len(keys) > limit else "")
