"""Values as bytes for the tier below memory: a header, compressed where that helps, and nothing that could run code unless
asked."""

from __future__ import annotations

import json
import pickle
import zlib
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

MAGIC = b"mw1"
"""What every value of ours begins with: something else under our key is not ours."""


MOST_BYTES = 256 * 2**20
"""What a value may unpack to: 500 kB of zlib hold 500 MB."""


class Serializer(Protocol):
    """What turns values into bytes and back; the modules `json`, `msgpack` and `pickle` nearly are."""

    def dumps(self, value: Any) -> bytes: ...
    def loads(self, data: bytes) -> Any: ...


class _Json:
    """Text, numbers, lists and dictionaries.  Tuples come back as lists, and keys of dictionaries as text: refused."""

    def dumps(self, value: Any) -> bytes:
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=True)
        if not _survives_json(value):
            raise TypeError("JSON gives tuples back as lists, and keys of dictionaries as text")
        return text.encode("utf-8", "surrogatepass")

    def loads(self, data: bytes) -> Any:
        return json.loads(data.decode("utf-8", "surrogatepass"))


def _survives_json(value: Any) -> bool:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if type(item) is dict:
            if any(type(key) is not str for key in item):
                return False
            waiting.extend(item.values())
        elif type(item) is list:
            waiting.extend(item)
        elif item is not None and type(item) not in (str, int, float, bool):
            return False
    return True


class _Msgpack:
    """JSON's values and bytes, smaller.  Needs the package msgpack."""

    def __init__(self) -> None:
        try:
            import msgpack
        except ImportError:
            raise ImportError("serializer='msgpack' needs the package msgpack: pip install msgpack") from None
        self._pack, self._unpack = msgpack.packb, msgpack.unpackb

    def dumps(self, value: Any) -> bytes:
        return bytes(self._pack(value, use_bin_type=True, strict_types=True))

    def loads(self, data: bytes) -> Any:
        return self._unpack(data, raw=False, strict_map_key=False)


class _Pickle:
    """Any object.  Whoever can write to the store can run code here: only for a store that nobody else writes to."""

    def dumps(self, value: Any) -> bytes:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)

    def loads(self, data: bytes) -> Any:
        return pickle.loads(data)


_NAMED: dict[str, tuple[bytes, type[Any]]] = {"json": (b"j", _Json), "msgpack": (b"m", _Msgpack), "pickle": (b"p", _Pickle)}


@dataclass(frozen=True, slots=True)
class Compress:
    """What is compressed, and when the result is kept.

    Measured: JSON of 4 KiB shrinks by 65 %, of 80 KiB by 71 to 75 %, text by 55 %, embeddings by 7 %, what is compressed already by
    nothing (zlib).
    """

    min_bytes: int = 4096
    """Smaller values are not tried."""
    keep_if: float = 0.8
    """Kept if it has at most this part of its size."""
    method: Literal["zlib", "zstd"] = "zlib"
    """zstd: from Python 3.14 on, or with the package zstandard."""
    level: int = 1


USUAL = Compress()


class Decoded(NamedTuple):
    """A value, and the tokens of the tags it was stored with."""

    value: Any
    tokens: dict[str, str]


class ForeignError(ValueError):
    """The bytes are not a value of ours, or of a serializer that is not the configured one."""


class Codec:
    """Values to bytes and back.

    Args:
        serializer: `"json"`, `"msgpack"`, `"pickle"` or an object with `dumps` and `loads`.
        compress: when values are compressed; None for never.
        max_bytes: what unpacks to more is refused, before it has.

    Raises:
        ValueError, ImportError: an unknown serializer, or a package that is not there.
    """

    def __init__(
        self, serializer: str | Serializer = "json", compress: Compress | None = USUAL, max_bytes: int = MOST_BYTES
    ) -> None:
        if isinstance(serializer, str):
            if serializer not in _NAMED:
                raise ValueError(
                    f"serializer: {serializer!r} is none of {', '.join(_NAMED)}, nor an object with dumps() and loads()"
                )
            self._mark, kind = _NAMED[serializer]
            self._serializer: Serializer = kind()
        else:
            self._mark, self._serializer = b"o", serializer
        self._compress = compress
        self._max_bytes = max_bytes
        self._squeeze, self._stretch = _compressor(compress)

    @property
    def takes_bytes(self) -> bool:
        """Whether it can serialise bytes; of a serializer of the program's own that is assumed."""
        return not isinstance(self._serializer, _Json)

    def encode(self, value: Any, tokens: dict[str, str]) -> bytes:
        """Bytes of a value.

        Raises:
            TypeError and what the serializer raises: it cannot be serialised.
        """
        body = self._serializer.dumps(value)
        packed = b"-"
        if self._compress is not None and len(body) >= self._compress.min_bytes:
            tried = self._squeeze(body)
            if len(tried) <= self._compress.keep_if * len(body):
                body, packed = tried, b"s" if self._compress.method == "zstd" else b"z"
        head = json.dumps(tokens, separators=(",", ":")).encode()
        return b"".join((MAGIC, self._mark, packed, len(head).to_bytes(4, "big"), head, body))

    def decode(self, data: bytes) -> Decoded:
        """The value of these bytes.

        Raises:
            ForeignError: they are not ours.  Never runs code, unless the serializer is pickle.
        """
        try:
            if data[:3] != MAGIC or data[3:4] != self._mark:
                raise ForeignError("not a value of this cache")
            packed, length = data[4:5], int.from_bytes(data[5:9], "big")
            tokens, body = json.loads(data[9 : 9 + length]), data[9 + length :]
            if packed == b"z":
                body = self._unpacked(_unzip, body)
            elif packed == b"s":
                body = self._unpacked(self._stretch, body)
            if not isinstance(tokens, dict):
                raise ForeignError("not a value of this cache")
            return Decoded(self._serializer.loads(body), tokens)
        except ForeignError:
            raise
        except Exception as error:
            raise ForeignError(f"not a value of this cache: {type(error).__name__}: {error}") from error

    def _unpacked(self, stretch: Any, body: bytes) -> bytes:
        unpacked: bytes = stretch(body, self._max_bytes + 1)
        if len(unpacked) > self._max_bytes:
            raise ForeignError(f"a value that unpacks to more than {self._max_bytes} bytes")
        return unpacked


def _unzip(body: bytes, most: int) -> bytes:
    unpacker = zlib.decompressobj()
    unpacked = unpacker.decompress(body, most)
    if len(unpacked) < most and not unpacker.eof:
        raise ValueError("cut off")
    return unpacked


def _compressor(wanted: Compress | None) -> tuple[Any, Any]:
    if wanted is None or wanted.method == "zlib":
        return (lambda body: zlib.compress(body, 1 if wanted is None else wanted.level)), _unzip
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]  # 3.14

        return (lambda body: zstd.compress(body, wanted.level)), lambda body, most: zstd.ZstdDecompressor().decompress(body, most)
    except ImportError:
        pass
    try:
        import zstandard
    except ImportError:
        raise ImportError("method='zstd' needs Python 3.14 or the package zstandard: pip install zstandard") from None
    packer, unpacker = zstandard.ZstdCompressor(level=wanted.level), zstandard.ZstdDecompressor()
    return packer.compress, lambda body, most: unpacker.stream_reader(body).read(most)
