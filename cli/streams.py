"""Standard output and standard error that never fail what is printed on them."""

import codecs
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

# signs with one of ASCII in their place, so that columns of tables stay where they are
_PLAIN = dict(
    zip(
        "×⊗∘·…–—−‐→≤≥≠≈±√∞∇⟨⟩‖│─†“”‘’ΣΦΨΔΛΠΩφψδλμσνεγχαβρτθηπωκ",
        "xxo..----><>~~~v8d<>||-+\"\"''SFPDLPWfpdlmsnegcabrthepwk",
        strict=True,
    )
)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that a stream does not have: a codec's handler of errors."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_instead, error.object[error.start : error.end])), error.end


def _instead(character: str) -> str:
    """A character in ASCII; a mark above another one has no place of its own."""
    found = "".join(c for c in unicodedata.normalize("NFKD", character) if c.isascii())
    return _PLAIN.get(character) or found or ("" if unicodedata.combining(character) else "?")


def _ascii(name: str) -> codecs.CodecInfo | None:
    """ASCII by a name of its own; under its usual one click would write UTF-8 in its place."""
    found = codecs.lookup("ascii")
    return codecs.CodecInfo(found.encode, found.decode, name=_ASCII) if name == _ASCII else None


_HANDLER, _ASCII = "fisherlab-plain", "fisherlab_ascii"
codecs.register_error(_HANDLER, _plain)
codecs.register(_ascii)


class Printable:
    """A text stream to print on: writing to it never raises.

    Characters that its encoding does not have are replaced. Where it cannot be written to (a full disk, a
    reader that is gone), the first error is kept and what is printed is dropped from then on.

    Attributes:
        encoding: the stream's.
        error: the first error; None so far.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        known = getattr(stream, "encoding", None) or "utf-8"
        self.encoding = _ASCII if codecs.lookup(known).name == "ascii" else known
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Writes what can be."""
        if self.error is None:
            try:
                self._stream.write(text.encode(self.encoding, _HANDLER).decode(self.encoding))
            except OSError as error:
                self._fail(error)
        return len(text)

    def writelines(self, lines: Iterator[str]) -> None:
        """Writes each."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Passes on what has been written."""
        if self.error is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._fail(error)

    def _fail(self, error: OSError) -> None:
        """Keeps the error, and leads the stream to nowhere: what it holds back would fail again."""
        self.error = error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def printable() -> Iterator[Printable]:
    """Makes both streams printable for the time of the block; gives standard output.

    One that is closed leads to nowhere: else the next file that is opened would have its number.
    """
    before = sys.stdout, sys.stderr
    out, err = (Printable(stream or _nowhere(number)) for number, stream in enumerate(before, 1))
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def _nowhere(number: int) -> TextIO:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != number:
        try:
            os.fstat(number)  # a file has the number already
        except OSError:
            os.dup2(nowhere, number)
            os.close(nowhere)
            nowhere = number
    return open(nowhere, "w", encoding="utf-8", closefd=False)
