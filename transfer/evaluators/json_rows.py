"""A JSON list of objects, read piece by piece: a file of gigabytes takes megabytes of memory."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transfer.evaluators.predictions import PredictionError

PIECE = 1 << 20  # characters read at once
LONGEST_ROW = 1 << 26  # characters; a row that does not end by then is damage
SEPARATOR = re.compile(r"\}\s*,\s*(?=\{)")
TAIL = 1 << 16  # where the last separator of a piece is looked for
BETWEEN = " \t\r\n,"


def pieces(path: Path, size: int = PIECE) -> Iterator[list[Any]]:
    """Yield the rows in order, some thousand at a time; what is no JSON list is named.

    Raises:
        PredictionError: the file is not there, holds no list, or is damaged or cut short.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from _Splitter(path).split(iter(lambda: file.read(size), ""))
    except FileNotFoundError:
        raise PredictionError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise PredictionError(f"{path} is not text in UTF-8 ({error}); is it JSON?") from None
    except OSError as error:
        raise PredictionError(f"{path} cannot be read: {error.strerror}") from None
    except RecursionError:
        raise PredictionError(f"{path} is nested too deeply for a list of detections") from None


class _Splitter:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_rows = 0
        self.text = ""  # read but not yet parsed

    def split(self, texts: Iterator[str]) -> Iterator[list[Any]]:
        for text in texts:
            self.text = (self.text + text).lstrip()
            if self.text:
                break
        if not self.text.startswith("["):
            raise PredictionError(
                f"{self.path} must hold a list of detections (COCO's result format), it begins "
                f"with {self.text[:20]!r}"
            )
        self.text = self.text[1:]
        yield self._whole_rows()
        for text in texts:
            self.text += text
            yield self._whole_rows()
        yield self._last_rows()

    def _whole_rows(self) -> list[Any]:
        """Parse all rows that are followed by another one."""
        start = max(0, len(self.text) - TAIL)
        ends = [found.start() + 1 for found in SEPARATOR.finditer(self.text, start)]
        if not ends:
            return self._one_by_one() if len(self.text) > LONGEST_ROW else []
        try:
            rows = json.loads(f"[{self.text[: ends[-1]].lstrip(BETWEEN)}]")
        except ValueError:
            return self._one_by_one()  # the separator lies within a row, or something is broken
        self.text = self.text[ends[-1] :]
        self.num_rows += len(rows)
        return list(rows)

    def _one_by_one(self) -> list[Any]:
        rows: list[Any] = []
        decoder, place = json.JSONDecoder(), 0
        while place < len(self.text):
            if self.text[place] in BETWEEN:
                place += 1
                continue
            try:
                row, place = decoder.raw_decode(self.text, place)
            except ValueError as error:
                if len(self.text) - place > LONGEST_ROW:
                    raise self._damage(self.num_rows + len(rows), str(error)) from None
                break
            rows.append(row)
        self.text = self.text[place:]
        self.num_rows += len(rows)
        return rows

    def _last_rows(self) -> list[Any]:
        text = self.text.strip()
        if text.endswith("]"):
            try:
                rows = json.loads(f"[{text.lstrip(BETWEEN)}")
            except ValueError:
                pass
            else:
                self.num_rows += len(rows)
                return list(rows)
        self.text = text
        rows = self._one_by_one()
        if self.text.strip() == "]":
            return rows
        raise self._damage(self.num_rows, "it does not end as a list of detections does")

    def _damage(self, number: int, reason: str) -> PredictionError:
        return PredictionError(
            f"{self.path} is not valid JSON at detection {number} ({reason}); "
            "was it cut short? Write or fetch it again"
        )
