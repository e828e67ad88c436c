"""Pages that move: what has changed since a reader looked, by server-sent events.

Law: each topic is read once, however many look at it, and only while somebody looks.  A reader is told what is new since the
version it has; one that is slow misses what lay between and never makes us keep anything for it; one that takes nothing is dropped.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass

import anyio.to_thread

POLL_S = 2.0
"""How often a directory is looked at while somebody looks (a figure that moves more often is not read)."""
BUSY_S = 0.25
"""And while there is more to read than one look had time for."""
SHARE = 0.25
"""Part of the time that looking may take: on a slow disk it is done more rarely."""
FRESH_S = 1.0
"""A page that is asked for again within this time is not read again."""
STREAMS_MOST = 256
"""Pages that move at the same time; the next one is told so, and stands still."""
TOPICS_KEPT = 12
"""Topics nobody looks at that are kept, for whoever has just loaded the page."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a page is made of: its parts in order, by name, as text that is ready to be sent."""

    parts: Mapping[str, str]
    is_complete: bool = True
    """False: there is more to come as soon as there is time."""


class Topic:
    """The parts of one page, and at which version each has changed."""

    def __init__(self, read: Callable[[], Content]) -> None:
        self.read = read
        self.parts: dict[str, str] = {}
        self.readers = 0
        self.read_s = float("-inf")
        self.is_complete = False
        self.failed = ""
        self._epoch = secrets.token_hex(4)
        self._number = 0
        self._changed_at: dict[str, int] = {}
        self._told: dict[int, str] = {}
        self.lock = asyncio.Lock()

    @property
    def version(self) -> str:
        return f"{self._epoch}.{self._number}"

    def take(self, content: Content) -> None:
        """Take what was read; what is as it was is nothing new."""
        self.is_complete = content.is_complete
        parts = dict(content.parts)
        if list(parts.items()) == list(self.parts.items()):
            return
        self._number += 1
        self._changed_at = {
            name: self._changed_at[name] if self.parts.get(name) == text else self._number for name, text in parts.items()
        }
        self.parts = parts
        self._told.clear()

    def since(self, version: str) -> str:
        """What is new since *version*, as one line of JSON; everything if that is not known."""
        epoch, _, number = version.partition(".")
        known = int(number) if epoch == self._epoch and number.isdecimal() and len(number) < 12 else -1
        told = self._told.get(known)
        if told is None:
            changed = {name: text for name, text in self.parts.items() if self._changed_at[name] > known}
            told = json.dumps({"version": self.version, "order": list(self.parts), "parts": changed}, separators=(",", ":"))
            if len(self._told) < 8:
                self._told[known] = told
        return told


class Live:
    """The topics, and the one task that reads them while somebody looks.

    Threads: the event loop's only; reading runs in another.
    """

    def __init__(self) -> None:
        self._topics: OrderedDict[str, Topic] = OrderedDict()
        self._task: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._is_closed = False

    def close(self) -> None:
        """Let every stream end: the server does."""
        self._is_closed = True
        self._news.set()

    @property
    def is_full(self) -> bool:
        return sum(topic.readers for topic in self._topics.values()) >= STREAMS_MOST

    def topic(self, name: str, read: Callable[[], Content]) -> Topic:
        """The topic of that name, made if nobody has asked for it lately."""
        topic = self._topics.get(name)
        if topic is None:
            topic = self._topics[name] = Topic(read)
        self._topics.move_to_end(name)
        idle = [name for name, topic in self._topics.items() if not topic.readers]
        for old in idle[: max(0, len(idle) - TOPICS_KEPT)]:
            del self._topics[old]
        return topic

    async def refresh(self, topic: Topic, *, fresh_s: float = FRESH_S) -> None:
        """Read a topic, unless that was done within *fresh_s*.

        Raises:
            whatever its `read` raises.
        """
        async with topic.lock:
            if time.monotonic() - topic.read_s < fresh_s:
                return
            content = await anyio.to_thread.run_sync(topic.read)
            topic.take(content)
            topic.failed = ""
            topic.read_s = time.monotonic()

    async def follow(self, topic: Topic, version: str) -> AsyncGenerator[tuple[str, str], None]:
        """Version and JSON of what is new, whenever something is, from *version* on; ends when the topic cannot be read."""
        topic.readers += 1
        try:
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._poll())
            while not topic.failed and not self._is_closed:
                news = self._news
                if topic.version != version and topic.parts:
                    told = topic.since(version)
                    version = topic.version
                    yield version, told
                else:
                    await news.wait()
        finally:
            topic.readers -= 1

    async def _poll(self) -> None:
        while any(topic.readers for topic in self._topics.values()):
            begun_s = time.monotonic()
            watched = [topic for topic in self._topics.values() if topic.readers]
            for topic in watched:
                try:
                    await self.refresh(topic, fresh_s=0.0)
                except Exception as error:  # told to its readers, who then ask for the page and see why
                    topic.failed = type(error).__name__
            news, self._news = self._news, asyncio.Event()
            news.set()
            spent_s = time.monotonic() - begun_s
            pause_s = POLL_S if all(topic.is_complete for topic in watched) else BUSY_S
            await asyncio.sleep(max(pause_s, spent_s * (1 / SHARE - 1)))
