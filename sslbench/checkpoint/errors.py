"""The one exception of checkpoint reading, and how it lists keys."""

from collections.abc import Collection


class CheckpointError(ValueError):
    """The file does not hold exactly the trunk that it was said to hold."""


def listed(keys: Collection[str], limit: int = 5) -> str:
    """Show the first few keys and how many there are."""
    shown = ", ".join(repr(key) for key in list(keys)[:limit])
    return shown + (f" and {len(keys) - limit} more" if len(keys) > limit else "")
