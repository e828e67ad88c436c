"""The tier below memory: values in Redis, shared by processes, for which nobody ever waits longer than asked.

Law: a call takes at most `timeout_s`, and raises nothing that it was not asked for: what Redis does wrong is a miss, and is
    counted.  A removal that could not be sent, or that Redis refused, is sent when it can be, before anything is read; until then
    this process reads nothing of what it removes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import os
import re
import secrets
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from memwatch.caches.breaker import Breaker
from memwatch.caches.codec import MOST_BYTES, USUAL, Codec, Compress, Decoded, ForeignError, Serializer

log = logging.getLogger("memwatch.caches")

Command = tuple[Any, ...]
Plan = Generator[list[Command], list[Any], Any]
"""Yields commands that go together and is sent their answers; run by a blocking client or in a coroutine."""

ALL = "*"
"""The tag that every value has: `clear` gives it a new token."""
MOST_PENDING = 1000
"""Removals remembered while Redis is away; with more, all values count as removed."""
RETRY_REFUSED_S = 1.0
"""How often a removal that Redis refuses (a replica, a full disk, an access list) is sent again: a guess."""
LONGEST_KEY = 200
"""Longer keys are hashed."""
READABLE = 150
"""What the name of a hashed text keeps of its beginning, for removals by prefix."""
UNLOCK = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end"
LONGEST_S = 100 * 365 * 86400.0
"""Longer lifetimes are this one: those of Redis have an end."""
TICKET_S = 900.0
"""Loads that take longer are not stored: a guess."""
STORE_LOADED = """
if redis.call('get', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('set', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('del', KEYS[2])
if redis.call('get', KEYS[3]) == ARGV[4] then return redis.call('del', KEYS[3]) end
return 2
"""
"""Value, ticket, lock: stored if the ticket is still there, and unlocked; 2 if the lock was no longer this process's."""


class Found(NamedTuple):
    """A value of the store."""

    value: Any
    ttl_s: float | None
    """What is left; None for ever."""
    tags: tuple[str, ...]


@dataclass(slots=True)
class TierStatistics:
    """What the tier did; counts are since it was made."""

    hits: int = 0
    misses: int = 0
    stored: int = 0
    late: int = 0
    """Loads that took longer than *lock_s*, so that others loaded the key as well; stored all the same."""
    void: int = 0
    """Loads that were not stored: their key was removed, written or stored by another meanwhile."""
    failures: int = 0
    """Calls that Redis did not answer in time, or not at all."""
    skipped: int = 0
    """Calls that were not made because Redis had been given up."""
    refused: int = 0
    """Writes that Redis answered with an error, such as out of memory."""
    foreign: int = 0
    """Answers that were no value of ours."""
    unserialisable: int = 0
    """Values that the serializer could not write, or keys that cannot be."""
    bytes_written: int = 0
    state: str = "closed"
    pending: int = 0
    """Removals that wait for Redis to be back."""
    last_error: str | None = None

    @property
    def hit_ratio(self) -> float | None:
        """Hits of all reads that were answered; None before the first."""
        reads = self.hits + self.misses
        return self.hits / reads if reads else None


def is_some_time(lifetime_s: float | None) -> bool:
    """Whether a value that lives so long is worth storing."""
    return lifetime_s is None or lifetime_s > 0


class Locked(NamedTuple):
    """What `plan_lock` found."""

    is_ours: bool
    exists: bool
    """Another may have stored it between this process's reading and locking."""


class Ready(NamedTuple):
    """What a load takes with it: what it brings is stored, and found, as long as both are still as they were."""

    tokens: dict[str, str]
    """Of its tags."""
    ticket: str
    """Of its key: one for all who load it at a time, taken away by whoever removes or writes the key meanwhile."""


class Unavailable(Exception):
    """Redis was not asked, or did not answer, or refused a removal; stays inside this module."""


class Refused(Unavailable):
    """Redis answered a removal with an error, such as READONLY after a failover; or it could not be written as a command.

    Args:
        answer: the error.
        is_ours: whether it was raised before anything was sent.
    """

    def __init__(self, answer: Exception, *, is_ours: bool = False) -> None:
        super().__init__(str(answer))
        self.answer, self.is_ours = answer, is_ours


class Budget:
    """Time that the plans of one call may take together.

    Args:
        whole_s: in all; None for as long as it takes.
    """

    def __init__(self, whole_s: float | None) -> None:
        self._left_s = float("inf") if whole_s is None else whole_s
        self._began_s = 0.0

    def __enter__(self) -> None:
        self._began_s = time.monotonic()

    def __exit__(self, *exc: object) -> None:
        self._left_s -= time.monotonic() - self._began_s

    def left_s(self) -> float:
        """Seconds that are left; asked while a plan runs."""
        return self._left_s - (time.monotonic() - self._began_s)


@dataclass(slots=True)
class _Pending:
    """Removals that Redis has not confirmed, each with the number it was remembered by."""

    keys: OrderedDict[str, int] = field(default_factory=OrderedDict)
    tags: OrderedDict[str, int] = field(default_factory=OrderedDict)
    serial: int = 0
    retry_s: float = 0.0
    """Not sent again before this time: Redis answers, but refuses them."""

    def add(self, keys: Iterable[str], tags: Iterable[str]) -> None:
        self.serial += 1
        self.keys.update(dict.fromkeys(keys, self.serial))
        self.tags.update(dict.fromkeys(tags, self.serial))
        if len(self.keys) + len(self.tags) > MOST_PENDING:
            self.only_all()

    def only_all(self) -> None:
        """Whatever it was: with all values removed it is removed too."""
        self.serial += 1
        self.keys.clear()
        self.tags.clear()
        self.tags[ALL] = self.serial

    def confirm(self, keys: Mapping[str, int], tags: Mapping[str, int]) -> None:
        """Forget what was sent, unless it was removed again meanwhile."""
        for ours, sent in ((self.keys, keys), (self.tags, tags)):
            for name, serial in sent.items():
                if ours.get(name) == serial:
                    del ours[name]

    def covers(self, name: str, tags: Iterable[str]) -> bool:
        """Whether a value is one of those that should be gone."""
        return name in self.keys or ALL in self.tags or not self.tags.keys().isdisjoint(tags)

    def __len__(self) -> int:
        return len(self.keys) + len(self.tags)


class RedisTier:
    """Values in Redis; use it below a cache in a `TieredCache`.

    Args:
        url: `redis://`, `rediss://` or `unix://`, as redis-py takes it.
        namespace, version: what keys begin with.  A new version sees no value of an old one.
        timeout_s: what a call may take in all.
        ttl_s: time to live of values without one of their own; a store without a bound is a leak.
        serializer: `"json"`, `"msgpack"`, `"pickle"`, or an object with `dumps` and `loads`.  Pickle runs code of whoever can write
            to
            the store.
        compress: what is compressed; None for nothing.
        max_value_bytes: what unpacks to more is none of ours.
        lock_s: how long one process may load a key that others wait for; 0 to load in each.
        breaker: when Redis is left alone.
        cluster: whether *url* is of a node of a cluster.
        client, async_client: instead of *url*, such as `sentinel.master_for("mymaster")`.  Their timeouts are the caller's affair.

    Raises:
        ImportError: redis is not installed; `pip install 'memwatch[redis]'`.
        ValueError: an argument that cannot be.

    Looking up a host's name is not bounded by *timeout_s*: that is the system's resolver.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str = "memwatch",
        version: str | int = 1,
        timeout_s: float = 0.1,
        ttl_s: float = 86400.0,
        serializer: str | Serializer = "json",
        compress: Compress | None = USUAL,
        max_value_bytes: int = MOST_BYTES,
        lock_s: float = 2.0,
        breaker: Breaker | None = None,
        cluster: bool = False,
        client: Any = None,
        async_client: Any = None,
    ) -> None:
        if (url is None) == (client is None and async_client is None):
            raise ValueError("RedisTier takes a url, or client= and async_client=")
        for name, given in (("timeout_s", timeout_s), ("ttl_s", ttl_s), ("lock_s", lock_s)):
            if isinstance(given, bool) or not isinstance(given, int | float):
                raise ValueError(f"{name}: {given!r} is not a number of seconds")
        if not timeout_s > 0 or not ttl_s > 0:
            raise ValueError(f"timeout_s={timeout_s!r}, ttl_s={ttl_s!r}: both must be above 0")
        self.timeout_s, self.ttl_s, self.lock_s = timeout_s, ttl_s, lock_s
        self.codec = Codec(serializer, compress, max_value_bytes)
        self._prefix = f"{namespace}:{version}:"
        self.channel = f"{self._prefix}removals"
        self.origin = secrets.token_hex(8)
        """Who publishes: one's own removals come back, and are passed over."""
        self._breaker = breaker or Breaker()
        self._statistics = TierStatistics()
        self._pending = _Pending()
        self._lock = threading.Lock()
        self._url, self._cluster = url, cluster
        self._given, self._given_async = client, async_client
        self._client: Any = None
        self._by_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = weakref.WeakKeyDictionary()
        self._pid = os.getpid()
        _check_answers_bytes(client, async_client)
        _redis()  # asked for and missing: say so now

    # --- keys

    def name_of(self, key: Any) -> str | None:
        """The key as Redis has it; None for one that has no text that every process agrees on."""
        if isinstance(key, str):
            # By its value: a member of a StrEnum is the same key as its text.
            text = f"s:{str.__str__(key)}"
        else:
            try:
                text = f"j:{json.dumps(_plain(key), separators=(',', ':'))}"
            except (TypeError, ValueError, RecursionError):
                self._statistics.unserialisable += 1
                return None
        if len(text) > LONGEST_KEY:
            digest = hashlib.sha256(wire_text(text)).hexdigest()
            # Longer than any name that is not hashed, so that it is none.
            text = f"{text[: 2 + READABLE]}…:{digest}" if text.startswith("s:") else f"h:{digest}"
        return f"{self._prefix}{text}"

    def key_of(self, name: str) -> Any:
        """The key of a name; None for one that was hashed, and for the name of another version."""
        text = name.removeprefix(self._prefix)
        if text == name or len(text) > LONGEST_KEY:
            return None
        if text.startswith("s:"):
            return text[2:]
        return _frozen(json.loads(text[2:])) if text.startswith("j:") else None

    def _tag_key(self, tag: str) -> str:
        return f"{self._prefix}t:{tag}"

    # --- plans

    def plan_get(self, names: list[str]) -> Plan:
        """Values by name; those that are not there are left out."""
        commands: list[Command] = [("GET", self._tag_key(ALL))]
        for name in names:
            commands += [("GET", name), ("PTTL", name)]
        answers = yield commands
        every, found = _text(answers[0]), dict[str, tuple[Decoded, int]]()
        tags: set[str] = set()
        for index, name in enumerate(names):
            data, left_ms = answers[1 + 2 * index], answers[2 + 2 * index]
            if not isinstance(data, bytes):
                self._statistics.foreign += data is not None  # an error: another type under our key
                continue
            try:
                decoded = self.codec.decode(data)
            except ForeignError as error:
                self._statistics.foreign += 1
                self._note(error)
                continue
            if every is None or decoded.tokens.get(ALL) != every or left_ms == -2:  # it expired between the two commands
                continue
            found[name] = decoded, left_ms if isinstance(left_ms, int) else -1
            tags.update(tag for tag in decoded.tokens if tag != ALL)
        tokens: dict[str, str | None] = {}
        if tags:
            wanted = sorted(tags)
            answers = yield [("GET", self._tag_key(tag)) for tag in wanted]
            tokens = dict(zip(wanted, map(_text, answers), strict=True))
        result = {}
        for name, (decoded, left_ms) in found.items():
            if all(tokens.get(tag) == token for tag, token in decoded.tokens.items() if tag != ALL):
                own = tuple(tag for tag in decoded.tokens if tag != ALL)
                if self._pending and self._pending.covers(name, own):
                    continue
                result[name] = Found(decoded.value, left_ms / 1000 if left_ms >= 0 else None, own)
        self._statistics.hits += len(result)
        self._statistics.misses += len(names) - len(result)
        return result

    def plan_ready(self, name: str, tags: Iterable[str], ttl_s: float | None) -> Plan:
        """What a load takes with it, or None, as `plan_tokens`."""
        ticket = _ticket_of(name)
        tokens, more = yield from self._plan_tokens(
            tags, ttl_s, [("SET", ticket, secrets.token_hex(8), "NX"), ("PEXPIRE", ticket, round(1000 * TICKET_S)), ("GET", ticket)]
        )
        found = _text(more[-1])
        return None if tokens is None or found is None else Ready(tokens, found)

    def plan_tokens(self, tags: Iterable[str], ttl_s: float | None) -> Plan:
        """The tokens of these tags as they are now, made where there are none; None if Redis has no memory for them."""
        tokens, _ = yield from self._plan_tokens(tags, ttl_s, [])
        return tokens

    def _plan_tokens(self, tags: Iterable[str], ttl_s: float | None, more: list[Command]) -> Plan:
        """Tokens, and the answers to *more*.

        What is stored with tokens that were read before it was loaded is not found if a tag was invalidated meanwhile.
        """
        wanted = [ALL, *sorted(set(tags))]
        # A tag outlives what is stored with it; one that is lost all the same (evicted) invalidates.
        outlives_ms = 2 * max(self._lifetime_ms(ttl_s), self._lifetime_ms(None))
        commands: list[Command] = []
        for tag in wanted:
            commands.append(("SET", self._tag_key(tag), secrets.token_hex(8), "NX"))
            commands.append(("PERSIST", self._tag_key(tag)) if tag == ALL else ("PEXPIRE", self._tag_key(tag), outlives_ms))
            commands.append(("GET", self._tag_key(tag)))
        answers = yield commands + more
        answers, rest = answers[: len(commands)], answers[len(commands) :]
        found = dict(zip(wanted, map(_text, answers[2::3]), strict=True))
        tokens = {tag: token for tag, token in found.items() if token is not None}
        if len(tokens) < len(wanted):
            self._statistics.refused += 1  # what is stored without a token could never be invalidated
            self._note(next((answer for answer in answers if isinstance(answer, Exception)), "a tag was lost"))
            return None, rest
        return tokens, rest

    def _lifetime_ms(self, ttl_s: float | None) -> int:
        wanted_s = self.ttl_s if ttl_s is None or ttl_s == math.inf else ttl_s
        return max(1, round(1000 * min(wanted_s, LONGEST_S)))

    def plan_set(
        self, items: Mapping[str, Any], lifetimes_s: Mapping[str, float | None], tags: Iterable[str], announce: list[str]
    ) -> Plan:
        """Store values by name, and tell the other processes; returns how many were stored.  A load under way elsewhere is void.

        Args:
            lifetimes_s: by name; None for *ttl_s* of the tier.  What lives for no time is removed.
        """
        tokens = yield from self.plan_tokens(tags, max((one for one in lifetimes_s.values() if one is not None), default=None))
        alive = {name: value for name, value in items.items() if is_some_time(lifetimes_s[name])}
        encoded = {} if tokens is None else self._encoded(alive, tokens)
        # What cannot be stored is removed: what was there before is out of date.
        commands: list[Command] = [
            ("SET", name, data, "PX", self._lifetime_ms(lifetimes_s[name])) for name, data in encoded.items()
        ]
        commands += [("UNLINK", name) for name in items if name not in encoded]
        commands += [("UNLINK", _lock_of(name), _ticket_of(name)) for name in items]
        removals = slice(len(encoded), len(commands))
        commands.append(self._announcement({"keys": announce}))
        answers = yield commands
        _insist(answers[removals])
        refused = [name for name, answer in zip(encoded, answers, strict=False) if isinstance(answer, Exception)]
        self._count_stored({name: data for name, data in encoded.items() if name not in refused})
        if refused:
            self._statistics.refused += len(refused)
            self._note(answers[list(encoded).index(refused[0])])
            _insist((yield [("UNLINK", name) for name in refused]))
        return len(encoded) - len(refused)

    def plan_store_loaded(self, name: str, value: Any, ttl_s: float | None, ready: Ready, lock: str) -> Plan:
        """Store what was loaded, unless its key was removed or written meanwhile, and unlock; whether it is stored."""
        encoded = self._encoded({name: value}, ready.tokens)
        if not encoded:
            return False
        keys = name, _ticket_of(name), _lock_of(name)
        (answer,) = yield [("EVAL", STORE_LOADED, 3, *keys, ready.ticket, encoded[name], self._lifetime_ms(ttl_s), lock)]
        if isinstance(answer, Exception):
            self._statistics.refused += 1
            self._note(answer)
            return False
        self._statistics.void += answer == 0
        self._statistics.late += answer == 2 and self.lock_s > 0
        if answer:
            self._count_stored(encoded)
        return bool(answer)

    def _encoded(self, items: Mapping[str, Any], tokens: Mapping[str, str]) -> dict[str, bytes]:
        encoded = {}
        for name, value in items.items():
            try:
                encoded[name] = self.codec.encode(value, dict(tokens))
            except Exception as error:  # the serializer's: any
                self._statistics.unserialisable += 1
                self._note(error)
                count = self._statistics.unserialisable
                if count & (count - 1) == 0:  # the 1st, 2nd, 4th, 8th …
                    kind = f"{type(value).__module__}.{type(value).__qualname__}"
                    message = "cache store %s: a value of type %s is kept in memory alone (%s; %d so far)"
                    log.warning(message, self._prefix, kind, error, count)
        return encoded

    def _count_stored(self, encoded: Mapping[str, bytes]) -> None:
        self._statistics.stored += len(encoded)
        self._statistics.bytes_written += sum(map(len, encoded.values()))

    def plan_remove(self, names: list[str], tags: Iterable[str], announcement: Mapping[str, Any]) -> Plan:
        """Remove by name and by tag, and tell the other processes."""
        lifetime_ms = round(1000 * 2 * self.ttl_s)
        commands: list[Command] = [("UNLINK", name) for name in names]
        commands += [("UNLINK", _lock_of(name), _ticket_of(name)) for name in names]
        commands += [
            ("SET", self._tag_key(tag), secrets.token_hex(8), *(() if tag == ALL else ("PX", lifetime_ms))) for tag in tags
        ]
        commands.append(self._announcement(announcement))
        answers = yield commands
        _insist(answers[: 2 * len(names)])
        # Redis may have no memory for a new token; then the old one goes, which invalidates as well.
        again = [tag for tag, answer in zip(tags, answers[2 * len(names) :], strict=False) if isinstance(answer, Exception)]
        if again:
            _insist((yield [("UNLINK", self._tag_key(tag)) for tag in again]))
        return None

    def plan_scan(self, announcement: Mapping[str, Any], *, prefix: str | None = None, pattern: str | None = None) -> Plan:
        """Remove text keys by their beginning or by a shell pattern: walks all keys of the store, 1,000 at a time.

        Of a long key the name has the first characters only: it is removed if what follows could match.
        """
        # Redis' patterns are not Python's ([!x], \\, ? of a letter of two bytes): it looks for what is literal, the rest is here.
        # What begins with anything is a lock or a ticket: a load under way is void.
        literal = literal_beginning(pattern or "") if prefix is None else prefix
        begins = f"{self._prefix}s:{literal[:READABLE]}"
        cursor: Any = 0
        while True:
            (answer,) = yield [("SCAN", cursor, "MATCH", f"*{_escaped(begins)}*", "COUNT", 1000)]
            if isinstance(answer, Exception):
                raise Unavailable(str(answer))
            cursor, raw = answer
            names = [name for name in raw if self._matches(name, prefix, pattern)]
            if names:
                _insist((yield [("UNLINK", name) for name in names]))
            if int(cursor) == 0:
                break
        yield [self._announcement(announcement)]
        return None

    def _matches(self, raw: bytes, prefix: str | None, pattern: str | None) -> bool:
        """Whether a name, or that of its lock, is of a key that matches."""
        try:
            name = _unlocked(raw.decode("utf-8", "surrogatepass"))
        except UnicodeDecodeError:
            return False  # none of ours
        text = name.removeprefix(f"{self._prefix}s:")
        if text == name:
            return False
        if len(text) + 2 <= LONGEST_KEY:
            return text.startswith(prefix) if prefix is not None else fnmatchcase(text, str(pattern))
        return text.startswith((literal_beginning(pattern or "") if prefix is None else prefix)[:READABLE])

    def plan_lock(self, name: str, token: str) -> Plan:
        """Whether this process may load the key, and whether there is a value by now."""
        lock_ms = max(1, round(1000 * self.lock_s))
        answer, exists = yield [("SET", _lock_of(name), token, "NX", "PX", lock_ms), ("EXISTS", name)]
        # No memory for a lock: load.
        return Locked(isinstance(answer, Exception) or answer is not None, exists == 1)

    def plan_unlock(self, name: str, token: str) -> Plan:
        """Let others load it."""
        yield [("EVAL", UNLOCK, 1, _lock_of(name), token)]
        return None

    def _announcement(self, what: Mapping[str, Any]) -> Command:
        return ("PUBLISH", self.channel, json.dumps({"from": self.origin, **what}))

    # --- running plans

    def run(
        self,
        plan: Plan,
        default: Any = None,
        *,
        keys: Iterable[str] = (),
        tags: Iterable[str] = (),
        budget: Budget | None = None,
        patient: bool = False,
    ) -> Any:
        """Run a plan with a blocking client; *default* if Redis is away or too slow.

        Args:
            keys, tags: what is removed, or changed, by the plan: remembered if it cannot be run.
            budget: what several plans of one call may take together.
            patient: takes as long as it takes, in calls of at most *timeout_s* (a scan).
        """
        budget = budget or Budget(None if patient else self.timeout_s)
        try:
            with budget:
                if self._is_due():
                    sent = self._unconfirmed()
                    try:
                        self._drive(self._removals(sent), budget)
                    except Refused as error:
                        self._postpone(error)
                    else:
                        self._confirm(sent)
                return self._drive(plan, budget)
        except Unavailable as error:
            self._give_up(error, keys, tags)
            return default
        except BaseException:  # a signal: nobody knows how far it got
            self._remember(keys, tags)
            raise

    def _drive(self, plan: Plan, budget: Budget) -> Any:
        try:
            commands = next(plan)
            while True:
                commands = plan.send(self._execute(commands, budget))
        except StopIteration as ended:
            return ended.value

    async def arun(
        self,
        plan: Plan,
        default: Any = None,
        *,
        keys: Iterable[str] = (),
        tags: Iterable[str] = (),
        budget: Budget | None = None,
        patient: bool = False,
    ) -> Any:
        """As `run`, in a coroutine."""
        budget = budget or Budget(None if patient else self.timeout_s)
        try:
            with budget:
                if self._is_due():
                    sent = self._unconfirmed()
                    try:
                        await self._adrive(self._removals(sent), budget)
                    except Refused as error:
                        self._postpone(error)
                    else:
                        self._confirm(sent)
                return await self._adrive(plan, budget)
        except Unavailable as error:
            self._give_up(error, keys, tags)
            return default
        except BaseException:  # cancelled: nobody knows how far it got
            self._remember(keys, tags)
            raise

    async def _adrive(self, plan: Plan, budget: Budget) -> Any:
        try:
            commands = next(plan)
            while True:
                commands = plan.send(await self._aexecute(commands, budget))
        except StopIteration as ended:
            return ended.value

    # --- removals that were not confirmed

    def _is_due(self) -> bool:
        return bool(self._pending) and time.monotonic() >= self._pending.retry_s

    def _unconfirmed(self) -> tuple[dict[str, int], dict[str, int]]:
        # They stay where they are until Redis has confirmed them: other threads must not read what is about to be removed.
        with self._lock:
            return dict(self._pending.keys), dict(self._pending.tags)

    def _removals(self, sent: tuple[dict[str, int], dict[str, int]]) -> Plan:
        return self.plan_remove(list(sent[0]), list(sent[1]), {"away": True})

    def _confirm(self, sent: tuple[dict[str, int], dict[str, int]]) -> None:
        with self._lock:
            self._pending.confirm(*sent)

    def _postpone(self, error: Refused) -> None:
        """Redis answers, but takes no removal: others may be served, and it is asked again later."""
        self._statistics.refused += 1
        self._note(error.answer)
        with self._lock:
            if error.is_ours:
                self._pending.only_all()
            self._pending.retry_s = time.monotonic() + RETRY_REFUSED_S

    def _give_up(self, error: Unavailable, keys: Iterable[str], tags: Iterable[str]) -> None:
        self._remember(keys, tags)
        if isinstance(error, Refused):
            self._postpone(error)

    def _remember(self, keys: Iterable[str], tags: Iterable[str]) -> None:
        keys, tags = list(keys), list(tags)
        if keys or tags:
            with self._lock:
                self._pending.add(keys, tags)

    def _before(self, budget: Budget) -> None:
        # What is left must hold a whole call of the client, or the sum may exceed what was asked for.
        if budget.left_s() < self.timeout_s / 3:
            raise Unavailable("no time left")
        if not self._breaker.allows(time.monotonic()):
            self._statistics.skipped += 1
            raise Unavailable("given up")

    def _failed(self, error: Exception) -> None:
        self._statistics.failures += 1
        self._note(error)
        if self._breaker.failed(time.monotonic()):
            log.warning("cache store %s does not answer (%s); going on in memory alone", self._prefix, error)

    def _answered(self) -> None:
        if self._breaker.succeeded():
            log.warning("cache store %s is back", self._prefix)

    def _note(self, error: object) -> None:
        self._statistics.last_error = f"{type(error).__name__}: {error}"[:300]

    def _execute(self, commands: list[Command], budget: Budget) -> list[Any]:
        wire = _wire(commands)
        self._before(budget)
        try:
            pipe = self._blocking().pipeline(transaction=False)
            for command in wire:
                pipe.execute_command(*command)
            _deadline.until_s = time.monotonic() + min(self.timeout_s, budget.left_s())
            try:
                answers = list(pipe.execute(raise_on_error=False))
            finally:
                _deadline.until_s = None
        except Exception as error:  # redis-py's, the socket's, TLS's: whatever it is, there is no answer
            self._failed(error)
            raise Unavailable(str(error)) from None
        self._look(answers)
        return answers

    async def _aexecute(self, commands: list[Command], budget: Budget) -> list[Any]:
        wire = _wire(commands)
        self._before(budget)
        try:
            pipe = self._asynchronous().pipeline(transaction=False)
            for command in wire:
                pipe.execute_command(*command)
            answers = list(await asyncio.wait_for(pipe.execute(raise_on_error=False), min(self.timeout_s, budget.left_s())))
        except Exception as error:
            self._failed(error)
            raise Unavailable(str(error)) from None
        self._look(answers)
        return answers

    def _look(self, answers: list[Any]) -> None:
        """Errors that Redis answers with are answers, but for those that say it cannot work now."""
        problem = next((one for one in answers if isinstance(one, Exception) and _is_away(one)), None)
        if problem is not None:
            self._failed(problem)
            raise Unavailable(str(problem))
        self._answered()

    # --- clients

    def after_fork(self) -> bool:
        """Be another process than the one this was made in, once; whether it is one.  Asked before each use.

        A child has its own name, or its parent would pass over what it removes; and no lock that a thread of the parent held.
        """
        if self._pid == os.getpid():
            return False
        self._pid = os.getpid()
        self.origin = secrets.token_hex(8)
        self._lock = threading.Lock()
        self._breaker.after_fork()
        self._client = None
        self._by_loop = weakref.WeakKeyDictionary()
        return True

    def _blocking(self) -> Any:
        if self._given is not None:
            return self._given
        if self._client is None:
            redis = _redis()
            kind = redis.RedisCluster if self._cluster else redis.Redis
            self._client = kind.from_url(self._url, **self._options(redis.retry.Retry, redis.backoff.NoBackoff))
            if not self._cluster:
                pool = self._client.connection_pool
                pool.connection_class = _bounded(pool.connection_class)
        return self._client

    def _asynchronous(self) -> Any:
        if self._given_async is not None:
            return self._given_async
        loop = asyncio.get_running_loop()
        client = self._by_loop.get(loop)
        if client is None:
            # A client knows its loop, so that the dictionary's weak keys never go: those of loops that have ended are let go here.
            for ended in [other for other in list(self._by_loop) if other.is_closed()]:
                self._by_loop.pop(ended, None)
            redis = _redis()
            kind = redis.asyncio.RedisCluster if self._cluster else redis.asyncio.Redis
            client = kind.from_url(self._url, **self._options(redis.asyncio.retry.Retry, redis.backoff.NoBackoff))
            self._by_loop[loop] = client
        return client

    def _options(self, retry: Any, backoff: Any) -> dict[str, Any]:
        # A call of ours is up to three of the client's.  redis-py by itself tries for 4 s (measured).
        call_s = self.timeout_s / 3
        return {
            "socket_timeout": call_s,
            "socket_connect_timeout": call_s,
            "retry": retry(backoff(), 0),
            "health_check_interval": 0,
            "decode_responses": False,
        }

    def subscriber(self) -> Any:
        """A subscription to the removals of others, with a client of its own that waits."""
        client = self._given
        if client is None:
            redis = _redis()
            options = self._options(redis.retry.Retry, redis.backoff.NoBackoff) | {"socket_timeout": None}
            client = redis.Redis.from_url(self._url, **options)
        return client.pubsub(ignore_subscribe_messages=True)

    def statistics(self) -> TierStatistics:
        """What it did so far."""
        self._statistics.state = self._breaker.state(time.monotonic())
        self._statistics.pending = len(self._pending)
        return self._statistics

    def close(self) -> None:
        """Close the blocking client.  That of an event loop is closed with its loop's `aclose`."""
        if self._client is not None:
            self._client.close()
            self._client = None

    async def aclose(self) -> None:
        """Close the client of this event loop."""
        client = self._by_loop.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()


def _redis() -> Any:
    try:
        import redis
        import redis.asyncio
        import redis.asyncio.retry
        import redis.backoff
        import redis.retry
    except ImportError:
        raise ImportError("the Redis tier needs redis-py: pip install 'memwatch[redis]'") from None
    return redis


def _is_away(error: Exception) -> bool:
    # redis-py takes the code off what it has a class for.
    known = ("BusyLoadingError", "ClusterDownError", "MasterDownError", "TryAgainError", "AuthenticationError")
    codes = ("LOADING", "BUSY", "CLUSTERDOWN", "MASTERDOWN", "NOAUTH", "TRYAGAIN")
    return str(error).startswith(codes) or any(kind.__name__ in known for kind in type(error).__mro__)


def wire_text(text: str) -> bytes:
    """Text as Redis has it."""
    return text.encode("utf-8", "surrogatepass")


def _wire(commands: list[Command]) -> list[Command]:
    """Commands as redis-py sends them whatever the text is: os.fsdecode() makes text that UTF-8 has no bytes for."""
    try:
        return [(one[0], *(wire_text(part) if isinstance(part, str) else part for part in one[1:])) for one in commands]
    except UnicodeError as error:
        raise Refused(error, is_ours=True) from None


def _insist(answers: Iterable[Any]) -> None:
    """Removals that were answered with an error were not made."""
    problem = next((answer for answer in answers if isinstance(answer, Exception)), None)
    if problem is not None:
        raise Refused(problem)


class _Deadline(threading.local):
    """Until when this thread's call may take; None outside of a call."""

    until_s: float | None = None


_deadline = _Deadline()


class _BoundedSocket:
    """A socket whose every step ends with the call it is part of: a time-out by itself begins anew with each byte that comes."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def _step(self, step: Any, *args: Any) -> Any:
        until_s, own_s = _deadline.until_s, self._socket.gettimeout()
        if until_s is None or own_s == 0:
            return step(*args)
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the time of the call is over")
        if own_s is not None and own_s <= left_s:
            return step(*args)
        self._socket.settimeout(left_s)
        try:
            return step(*args)
        finally:
            self._socket.settimeout(own_s)

    def recv(self, *args: Any) -> Any:
        return self._step(self._socket.recv, *args)

    def recv_into(self, *args: Any) -> Any:
        return self._step(self._socket.recv_into, *args)

    def sendall(self, *args: Any) -> Any:
        return self._step(self._socket.sendall, *args)


def _bounded(kind: Any) -> Any:
    """redis-py's connection of this kind with a socket that ends with the call."""

    class Bounded(kind):  # type: ignore[misc]
        def _connect(self) -> Any:
            return _BoundedSocket(super()._connect())

    return Bounded


def _check_answers_bytes(*clients: Any) -> None:
    for client in clients:
        options = getattr(getattr(client, "connection_pool", None), "connection_kwargs", {})
        if options.get("decode_responses"):
            raise ValueError("client: decode_responses=True turns values into text; give a client that answers with bytes")


def literal_beginning(pattern: str) -> str:
    """What a shell pattern begins with, whatever follows."""
    return re.split(r"[*?\[]", pattern, maxsplit=1)[0]


def _escaped(text: str) -> str:
    return re.sub(r"([\\*?\[\]])", r"\\\1", text)


def _unlocked(name: str) -> str:
    """The name of the key that a lock or a ticket is of; any other name as it is."""
    return name[1:-6] if name.startswith("{") and name.endswith(("}:lock", "}:load")) else name


def _lock_of(name: str) -> str:
    """In braces: in a cluster it lies where its key does."""
    return f"{{{name}}}:lock"


def _ticket_of(name: str) -> str:
    return f"{{{name}}}:load"


def _text(answer: Any) -> str | None:
    return answer.decode("ascii", "replace") if isinstance(answer, bytes) else None


def _frozen(key: Any) -> Any:
    return tuple(_frozen(item) for item in key) if isinstance(key, list) else key


def _plain(key: Any) -> Any:
    """A key of text, numbers and tuples of them, as JSON has it; 1, 1.0 and True are one key in Python."""
    if isinstance(key, tuple):
        return [_plain(item) for item in key]
    if isinstance(key, bool):
        return int(key)
    if isinstance(key, float) and key.is_integer():
        return int(key)
    if key is None or isinstance(key, int | float | str):
        return key
    raise TypeError(f"a key of type {type(key).__name__} has no text that every process agrees on")
