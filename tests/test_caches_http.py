"""Responses kept in front of ASGI and WSGI applications, asked as a client asks."""

from __future__ import annotations

import asyncio
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from email.utils import formatdate
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest

from memwatch.caches import ASGIResponseCache, LRUCache, Route, WSGIResponseCache
from memwatch.caches import http_rules as rules


class Answer:
    """What a client got."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes, parts: int = 1) -> None:
        self.status, self.headers, self.body, self.parts = status, headers, body, parts

    @property
    def word(self) -> str | None:
        return self.headers.get("x-cache")


class App:
    """An application under both interfaces: numbers its answers, and answers as it is told; `condition` is what it was asked."""

    def __init__(self) -> None:
        self.calls = 0
        self.status = 200
        self.headers: list[tuple[str, str]] = []
        self.body: Callable[[], Iterable[bytes]] = lambda: [b"answer %d" % self.calls]
        self.closed = 0
        self.condition: str | None = None
        self.own: tuple[str, str] | None = None
        """An ETag with which it answers 304 itself, and its Cache-Control."""

    def _judge(self, condition: str | None) -> None:
        self.calls += 1
        self.condition = condition
        if self.own is not None:
            is_known = condition == self.own[0]
            self.status = 304 if is_known else 200
            self.headers = [("ETag", self.own[0]), ("Cache-Control", self.own[1])]
            self.body = lambda: [] if is_known else [b"page"]

    async def asgi(self, scope: Any, receive: Any, send: Any) -> None:
        self._judge({name.decode(): value.decode() for name, value in scope["headers"]}.get("if-none-match"))
        parts = list(self.body())
        headers = [(name.encode(), value.encode()) for name, value in self.headers]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        for index, part in enumerate(parts or [b""]):
            await send({"type": "http.response.body", "body": part, "more_body": index < len(parts) - 1})

    def wsgi(self, environ: Any, start_response: Any) -> Any:
        self._judge(environ.get("HTTP_IF_NONE_MATCH"))
        start_response(f"{self.status} Whatever", list(self.headers))
        app = self

        class Parts:
            whole: list[bytes] | None = None

            def __iter__(self) -> Any:
                return iter(app.body() if self.whole is None else self.whole)

            def __len__(self) -> int:
                self.whole = list(app.body())
                return len(self.whole)

            def close(self) -> None:
                app.closed += 1

        return Parts()


Ask = Callable[..., Answer]


@pytest.fixture(params=["asgi", "wsgi"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def client(kind: str, app: App, cache: Any, *routes: Route) -> Ask:
    """Asks the application behind the cache; *path* is decoded, *raw* is what the client wrote (ASGI)."""

    def ask(
        path: str = "/feed", method: str = "GET", query: str = "", root: str = "", raw: str | None = None, **headers: str
    ) -> Answer:
        named = {"host": "example.org"} | {name.replace("_", "-").lower(): value for name, value in headers.items()}
        if kind == "wsgi":
            environ = {
                "REQUEST_METHOD": method, "PATH_INFO": path, "SCRIPT_NAME": root, "QUERY_STRING": query, "wsgi.url_scheme": "http",
                "SERVER_NAME": "x", "SERVER_PORT": "80",
            }  # fmt: skip
            environ |= {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in named.items()}
            told: list[Any] = []
            result = wsgi(environ, lambda status, headers, exc_info=None: told.extend([status, headers]))
            try:
                parts = list(result)
            finally:
                if hasattr(result, "close"):
                    result.close()
            return Answer(int(told[0].split()[0]), {name.lower(): value for name, value in told[1]}, b"".join(parts), len(parts))
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": method, "path": path, "scheme": "http", "query_string": query.encode(), "root_path": root,
            "raw_path": None if raw is None else raw.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in named.items()],
        }  # fmt: skip
        asyncio.run(asgi(scope, None, send))  # type: ignore[arg-type]
        answer = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
        return Answer(sent[0]["status"], answer, b"".join(message["body"] for message in sent[1:]), len(sent) - 1)

    asgi, wsgi = ASGIResponseCache(app.asgi, cache, routes), WSGIResponseCache(app.wsgi, cache, routes)
    return ask


def kept(cache: Any) -> list[Any]:
    """Addresses of which something is kept."""
    return [key for key in cache if key[0] == "http" and "variant" not in key]


def meanwhile(act: Callable[[], Any]) -> Any:
    """As another client or thread does it."""
    thread = threading.Thread(target=act)
    thread.start()
    thread.join(10)


def test_a_response_is_kept_for_its_route_and_told_with_its_age(kind: str) -> None:
    app, clock = App(), [0.0]
    ask = client(kind, app, LRUCache(10, timer=lambda: clock[0]), Route("/feed*", ttl=60))
    first, second = ask(), ask()
    assert (first.word, second.word, app.calls) == ("MISS", "HIT", 1) and first.body == second.body == b"answer 1"
    assert second.headers["age"] == "0" and second.headers["etag"] == first.headers["etag"] and "date" in second.headers
    assert ask("/feeds/2").body == b"answer 2" and ask(query="page=2").body == b"answer 3"
    assert ask("/elsewhere").word is None
    clock[0] += 61
    assert ask().word == "MISS"


def test_what_the_response_says_of_its_lifetime_counts_before_the_route(kind: str) -> None:
    for control, kept_s in {
        "max-age=5": 5, "s-maxage=7, max-age=5": 7, "no-store": None, "private": None, "no-cache": None, "max-age=0": None,
        "public": 60, "max-age=rubbish": None, 'private="x-y", max-age=9': None,
    }.items():  # fmt: skip
        app, clock = App(), [0.0]
        app.headers = [("Cache-Control", control)]
        ask = client(kind, app, LRUCache(10, timer=lambda clock=clock: clock[0]), Route("/feed", ttl=60))
        ask()
        assert ask().word == ("MISS" if kept_s is None else "HIT"), control
        if kept_s is not None:
            clock[0] = kept_s
            assert ask().word == "MISS", control
    app = App()
    app.headers = [("Expires", formatdate(rules.wall_s() + 100, usegmt=True))]
    ask = client(kind, app, LRUCache(10), Route("/feed"))
    ask()
    assert ask().word == "HIT"
    app.headers = [("Expires", "0")]
    assert [ask(query="x").word for _ in range(2)] == ["MISS", "MISS"]


@pytest.mark.parametrize(
    ("request_headers", "response_headers"),
    [
        ({"authorization": "Bearer secret"}, []),
        ({"cookie": "session=1"}, []),
        ({}, [("Set-Cookie", "session=1")]),
        ({"cache_control": "no-store"}, []),
        ({"range": "bytes=0-1"}, []),
        ({}, [("Vary", "*")]),
    ],
)
def test_what_may_be_one_clients_own_is_never_given_to_another(
    kind: str, request_headers: dict[str, str], response_headers: list[tuple[str, str]]
) -> None:
    app = App()
    app.headers = response_headers
    cache: Any = LRUCache(10)
    ask = client(kind, app, cache, Route("/feed", ttl=60))
    assert [ask(**request_headers).body for _ in range(2)] == [b"answer 1", b"answer 2"]
    assert not kept(cache) and ask().body == b"answer 3"


def test_a_route_or_a_response_may_say_that_an_authenticated_answer_is_for_everybody(kind: str) -> None:
    app = App()
    told = client(kind, app, LRUCache(10), Route("/feed", ttl=60, authenticated=True, cookies=True))
    app.headers = [("Set-Cookie", "a=b")]
    assert [told(authorization="x", cookie="y").body for _ in range(2)] == [b"answer 1"] * 2
    app.headers = [("Cache-Control", "public, max-age=60")]
    ask = client(kind, app, LRUCache(10), Route("/feed"))
    assert ask(authorization="x").body == b"answer 2" and ask().body == b"answer 2"


def test_what_a_response_varies_on_makes_answers_of_their_own(kind: str) -> None:
    app = App()
    app.headers = [("Vary", "Accept-Language")]
    ask = client(kind, app, LRUCache(10), Route("/feed", ttl=60, vary=("x-tenant",), query=("page",)))
    german, english = ask(accept_language="de"), ask(accept_language="en")
    assert german.body != english.body
    assert ask(accept_language="de").body == german.body and ask(accept_language="en").body == english.body
    assert ask(accept_language="de", x_tenant="b").body not in (german.body, english.body)
    assert ask(accept_language="  de ").body == german.body
    assert ask(accept_language="de", query="utm=1").body == german.body != ask(accept_language="de", query="page=2&utm=1").body


def test_a_client_that_has_it_gets_304_with_the_etag_made_of_the_body_or_given(kind: str) -> None:
    app = App()
    ask = client(kind, app, LRUCache(10), Route("/feed", ttl=60))
    etag = ask().headers["etag"]
    for wanted in (etag, f'"other", {etag}', f"W/{etag}", "*"):
        answer = ask(if_none_match=wanted)
        assert (answer.status, answer.body, answer.word) == (304, b"", "HIT") and answer.headers["etag"] == etag
    assert ask(if_none_match='"other"').status == 200
    fresh = client(kind, app, LRUCache(10), Route("/feed", ttl=60))
    app.body = lambda: [b"answer 1"]
    assert fresh(if_none_match=etag).status == 304  # also where it was just made
    app.headers = [("ETag", 'W/"own"'), ("Last-Modified", "Mon, 02 Nov 2026 10:00:00 GMT")]
    own = client(kind, app, LRUCache(10), Route("/feed", ttl=60))
    assert own().headers["etag"] == 'W/"own"'
    assert own(if_none_match='"own"').status == 304
    assert own(if_modified_since="Mon, 02 Nov 2026 10:00:00 GMT").status == 304
    assert own(if_modified_since="Sun, 01 Nov 2026 10:00:00 GMT").status == 200
    assert own(if_modified_since="rubbish").status == 200


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"path": "/user/%61dmin", "raw": "/user/%2561dmin"}, {"path": "/user/admin", "raw": "/user/admin"}),
        ({"path": "/user/%61dmin"}, {"path": "/user/admin"}),
        ({"query": "%70age=666"}, {"query": ""}),
        ({"query": "page=1&page=2"}, {"query": "page=2&page=1"}),
        ({"query": "page=1%26page=2"}, {"query": "page=1&page=2"}),
        ({"query": "page"}, {"query": ""}),
        ({"query": "page=%FF"}, {"query": "page=%FE"}),
        ({"query": "utm=1;page=2"}, {"query": ""}),
        ({"query": "gr%C3%B6%C3%9Fe=1"}, {"query": ""}),
        ({"root": "/a", "path": "/a"}, {"path": "/a"}),
        ({"host": "example.org:8080"}, {"host": "example.org"}),
        ({"host": "example.org:443"}, {"host": "example.org"}),
    ],
)
def test_no_address_gets_what_was_kept_for_another(kind: str, one: dict[str, str], other: dict[str, str]) -> None:
    app = App()
    ask = client(kind, app, LRUCache(10), Route("*", ttl=60, query=("page", "größe")))
    assert ask(**one).body == b"answer 1"
    assert (ask(**other).word, ask(**one).word, ask(**one).body) == ("MISS", "HIT", b"answer 1")


def test_addresses_that_differ_only_in_how_they_are_written_are_one(kind: str) -> None:
    ask = client(kind, App(), LRUCache(10), Route("*", ttl=60, query=("page", "size")))
    ask(query="page=a+b&size=1")
    assert ask(query="size=1&utm=x&%70age=a%20b").word == "HIT"
    for host in ("EXAMPLE.org", "example.org:80"):
        assert ask(query="page=a%20b&size=1", host=host).word == "HIT"


def test_a_slash_that_the_client_encoded_is_another_address_where_the_server_tells() -> None:
    ask = client("asgi", App(), LRUCache(10), Route("*", ttl=60))
    ask("/a/b", raw="/a/b")
    assert ask("/a/b", raw="/a%2Fb").word == "MISS" and ask("/a/b", raw="/a%2fb").word == "HIT"
    assert ask("/a/b", raw="/%61/b").word == "HIT"


def test_a_route_of_letters_beyond_ascii_matches_under_both_interfaces(kind: str) -> None:
    ask = client(kind, App(), LRUCache(10), Route("/größe", ttl=60))
    assert ask("/größe" if kind == "asgi" else "/größe".encode().decode("latin-1")).word == "MISS"


def test_credentials_never_get_what_was_kept_without_a_word_that_it_is_for_everybody(kind: str) -> None:
    ask = client(kind, App(), LRUCache(10), Route("/feed", ttl=60))
    ask()
    assert ask(authorization="Bearer x").body == b"answer 2" and ask().body == b"answer 1"


def test_a_304_of_the_application_is_never_what_another_client_gets(kind: str) -> None:
    app = App()
    app.own = ('"1"', "max-age=60")
    ask = client(kind, app, LRUCache(10), Route("/feed", ttl=60))
    known = ask(if_none_match='"1"')
    assert (known.status, known.body, app.condition) == (304, b"", None)
    assert (ask().status, ask().body, ask().word, app.calls) == (200, b"page", "HIT", 1)
    # With credentials the application is asked as the client asks, and its 304 is passed on and forgotten.
    app.own = ('"1"', "public, max-age=60")
    fresh = client(kind, app, LRUCache(10), Route("/feed", ttl=60))
    assert (fresh(if_none_match='"1"', authorization="x").status, app.condition) == (304, '"1"')
    assert (fresh().status, fresh().body) == (200, b"page")


def test_what_answers_one_request_only_is_not_kept_whatever_it_says(kind: str) -> None:
    app = App()
    app.headers = [("Cache-Control", "public, max-age=60")]
    ask = client(kind, app, LRUCache(10), Route("/feed", ttl=60))
    for status in sorted(rules.NEVER_KEPT):
        app.status = status
        assert [ask().word for _ in range(2)] == ["MISS", "MISS"], status
    app.status = 200
    assert [ask(if_match='"1"').word for _ in range(2)] == ["BYPASS", "BYPASS"]
    app.status = 503
    assert [ask().word for _ in range(2)] == ["MISS", "HIT"]


def test_a_body_that_is_not_as_long_as_it_says_is_passed_on_and_not_kept(kind: str) -> None:
    app = App()
    ask = client(kind, app, LRUCache(10), Route("/feed", ttl=60))
    for parts in ([b"only ten", b"xx"], [b"only tenxx"]):
        app.body = lambda parts=parts: parts  # type: ignore[misc]
        for said in ("100", "9", "rubbish", "10, 11"):
            app.headers = [("Content-Length", said)]
            answers = [ask(), ask()]
            assert [(answer.word, answer.body) for answer in answers] == [("MISS", b"only tenxx")] * 2, (parts, said)
            assert answers[0].headers["content-length"] == said
    app.headers = [("Content-Length", "10")]
    assert [ask().word for _ in range(2)] == ["MISS", "HIT"]


def test_a_304_tells_what_else_the_response_tells_and_nothing_of_a_body(kind: str) -> None:
    app = App()
    told = {"vary": "accept-language", "cache-control": "max-age=60", "access-control-allow-origin": "*"}
    app.headers = [*told.items(), ("Content-Type", "text/plain"), ("Content-Length", "8")]
    ask = client(kind, app, LRUCache(10), Route("/feed", ttl=60))
    etag = ask().headers["etag"]
    answer = ask(if_none_match=etag)
    assert answer.status == 304 and told.items() <= answer.headers.items()
    assert not answer.headers.keys() & {"content-type", "content-length"}


def test_head_is_answered_from_a_kept_get_without_a_body(kind: str) -> None:
    app = App()
    ask = client(kind, app, LRUCache(10), Route("/feed", ttl=60))
    assert ask(method="HEAD").word == "MISS"
    ask()
    answer = ask(method="HEAD")
    assert (answer.word, answer.body, answer.headers["content-length"], app.calls) == ("HIT", b"", "8", 2)


def test_a_client_may_insist_on_an_answer_of_now_or_on_one_that_is_kept(kind: str) -> None:
    app = App()
    ask = client(kind, app, LRUCache(10), Route("/feed", ttl=60))
    assert ask(cache_control="only-if-cached").status == 504 and app.calls == 0
    ask()
    assert ask(cache_control="no-cache").body == b"answer 2" and ask(pragma="no-cache").body == b"answer 3"
    assert ask().body == b"answer 3" and ask(cache_control="only-if-cached").status == 200


def test_a_mutation_invalidates_its_address_and_the_tags_of_its_route_if_it_succeeds(kind: str) -> None:
    app = App()
    by_user = lambda request: f"user:{request.path.split('/')[2]}"  # noqa: E731
    ask = client(
        kind, app, LRUCache(100), Route("/users/*", ttl=60, tags=by_user, invalidates=by_user), Route("/feed", ttl=60,
        tags="user:7")
    )  # fmt: skip
    feed, seven, eight = ask(), ask("/users/7/profile"), ask("/users/8")
    app.status = 500
    assert ask("/users/7/name", method="PUT").word == "BYPASS"
    app.status = 200
    assert ask().body == feed.body and ask("/users/7/profile").body == seven.body
    ask("/users/7/name", method="PUT")
    assert ask().word == ask("/users/7/profile").word == "MISS" and ask("/users/8").body == eight.body
    ask("/users/8", method="DELETE")
    assert ask("/users/8").word == "MISS"


def test_a_mutation_forgets_every_variant_of_its_address(kind: str) -> None:
    app = App()
    app.headers = [("Vary", "Accept-Language")]
    ask = client(kind, app, LRUCache(10), Route("/feed", ttl=60))
    languages = ("en", "de")
    before = [ask(accept_language=language).body for language in languages]
    ask(method="POST")
    after = [ask(accept_language=language) for language in languages]
    assert [answer.word for answer in after] == ["MISS", "MISS"] and not {answer.body for answer in after} & set(before)
    assert [ask(accept_language=language).word for language in languages] == ["HIT", "HIT"]


def test_an_answer_that_is_being_made_while_it_is_made_out_of_date_is_given_and_not_kept(kind: str) -> None:
    cache: Any = LRUCache(100, cascade={"org": ["feed"]})
    routes = Route("/feed", ttl=60, tags="feed"), Route("/posts", invalidates="feed"), Route("/plain", ttl=60)
    posts = lambda path: lambda: client(kind, App(), cache, *routes)(path, method="POST")  # noqa: E731
    for path, change in {
        "/feed": (lambda: cache.invalidate(tag="feed"), lambda: cache.invalidate(tag="org"), cache.clear, posts("/posts")),
        "/plain": (cache.clear,),
    }.items():
        for act in change:
            app = App()
            ask = client(kind, app, cache, *routes)
            app.body = lambda act=act: meanwhile(act) or [b"old"]  # type: ignore[misc]
            assert ask(path).body == b"old" and not kept(cache)
            app.body = lambda: [b"new"]
            assert (ask(path).body, ask(path).word) == (b"new", "HIT")
            cache.clear()
    app = App()
    ask = client(kind, app, cache, *routes)
    put = lambda: ask("/plain", method="PUT")  # noqa: E731
    app.body = lambda: [b"new"] if app.calls > 1 else meanwhile(put) or [b"old"]
    assert ask("/plain").body == b"old" and ask("/plain").body == b"new"


def test_who_has_the_answer_to_a_mutation_does_not_get_what_was_before_it() -> None:
    cache: Any = LRUCache(100)
    app = App()
    route = Route("/feed", ttl=60)
    seen: list[Any] = []

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await refill()
        await send({"type": "http.response.body", "body": b"o", "more_body": True})
        await refill()
        await send({"type": "http.response.body", "body": b"k"})
        await refill()
        raise ZeroDivisionError  # such as in a task in the background

    async def refill() -> None:
        """Another client has the state of before the change kept."""

        async def nobody(message: Any) -> None:
            pass

        await ASGIResponseCache(app.asgi, cache, [route])(scope | {"method": "GET"}, None, nobody)  # type: ignore[arg-type]
        assert kept(cache)

    async def send(message: Any) -> None:
        seen.append((message["type"], message.get("more_body"), kept(cache)))

    scope = {"type": "http", "method": "POST", "path": "/feed", "query_string": b"", "scheme": "http", "headers": []}
    with pytest.raises(ZeroDivisionError):
        asyncio.run(ASGIResponseCache(slow, cache, [route])(scope, None, send))  # type: ignore[arg-type]
    assert seen == [("http.response.start", None, []), ("http.response.body", True, []), ("http.response.body", None, [])]
    assert not kept(cache)


def test_a_wsgi_mutation_forgets_before_its_first_part_and_when_it_is_over() -> None:
    cache: Any = LRUCache(100)
    app = App()
    seen: list[Any] = []
    get = client("wsgi", app, cache, Route("/feed", ttl=60))

    def changing(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        get()
        yield b"1"
        get()
        raise ZeroDivisionError

    parts = WSGIResponseCache(changing, cache, [Route("/feed", ttl=60)])(
        {"REQUEST_METHOD": "POST", "PATH_INFO": "/feed", "HTTP_HOST": "example.org"}, lambda status, headers: None
    )
    with pytest.raises(ZeroDivisionError):
        seen.extend(kept(cache) for _ in parts)
    assert seen == [[]] and not kept(cache)


def test_errors_and_parts_are_not_kept_and_large_answers_are_passed_on(kind: str) -> None:
    app = App()
    ask = client(kind, app, LRUCache(10), Route("/feed", ttl=60, max_item_bytes=1000))
    for status in (500, 403, 206):
        app.status = status
        assert [ask().word for _ in range(2)] == ["MISS", "MISS"]
    app.status = 404
    assert [ask(query="absent").word for _ in range(2)] == ["MISS", "HIT"]
    app.status = 200
    app.body = lambda: [b"x" * 300] * 10
    large = ask(query="large")
    assert len(large.body) == 3000 and ask(query="large").word == "MISS"
    app.body = lambda: [b"x" * 300] * 3
    assert ask(query="parts").body == ask(query="parts").body == b"x" * 900
    assert ask(query="parts").word == "HIT"
    if kind == "wsgi":
        assert app.closed == app.calls


def asgi_messages(messages: list[Any], cache: Any, send: Any = None, **headers: str) -> list[Any]:
    """What a client gets of an application that sends these."""
    got: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    async def keep(message: Any) -> None:
        got.append(message)

    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": named}
    asyncio.run(ASGIResponseCache(app, cache, [Route("*", ttl=60)])(scope, None, send or keep))  # type: ignore[arg-type]
    return got


@pytest.mark.parametrize(
    "rest",
    [
        [{"type": "http.response.pathsend", "path": "/etc/hostname"}],
        [{"type": "http.response.zerocopysend", "file": 3, "more_body": True}, {"type": "http.response.body", "body": b"x"}],
        [{"type": "http.response.body", "body": b"x"}, {"type": "http.response.trailers", "headers": []}],
        [{"type": "http.response.of.tomorrow"}, {"type": "http.response.body", "body": b"x"}],
        [],
    ],
)
def test_what_is_no_body_goes_out_after_its_start_and_nothing_is_kept(rest: list[Any]) -> None:
    start = {"type": "http.response.start", "status": 200, "headers": []}
    if rest and rest[-1]["type"].endswith("trailers"):
        start["trailers"] = True
    early = {"type": "http.response.early_hint", "links": []}
    cache: Any = LRUCache(10)
    got = asgi_messages([early, start, *rest], cache)
    assert got == [early, start | {"headers": [(b"x-cache", b"MISS")]}, *rest] and not kept(cache)


def test_a_file_of_which_the_client_has_this_state_is_not_sent_again() -> None:
    headers = [(b"etag", b'"1"'), (b"content-length", b"10"), (b"set-cookie", b"a=b")]
    start = {"type": "http.response.start", "status": 200, "headers": headers}
    got = asgi_messages([start, {"type": "http.response.pathsend", "path": "/x"}], LRUCache(10), if_none_match='"1"')
    assert [message["type"] for message in got] == ["http.response.start", "http.response.body"]
    assert got[0]["status"] == 304 and (b"set-cookie", b"a=b") in got[0]["headers"] and got[1]["body"] == b""


def test_a_start_waits_for_the_body_only_where_an_etag_is_to_be_made_of_it() -> None:
    for headers, waits in [([], True), ([(b"etag", b'"1"')], False), ([(b"content-type", b"text/event-stream")], False)]:
        got: list[str] = []

        async def app(scope: Any, receive: Any, send: Any, got: list[str] = got, headers: Any = headers) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            got.append("made")
            await send({"type": "http.response.body", "body": b"x"})

        async def send(message: Any, got: list[str] = got) -> None:
            got.append(message["type"][14:])

        scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
        asyncio.run(ASGIResponseCache(app, LRUCache(10), [Route("*", ttl=60)])(scope, None, send))  # type: ignore[arg-type]
        assert got == (["made", "start", "body"] if waits else ["start", "made", "body"])


def wsgi_asked(app: Any, cache: Any, **environ: Any) -> tuple[Any, list[Any]]:
    """The iterable that a server gets, and what it was told and written."""
    told: list[Any] = []

    def start_response(status: str, headers: Any, *exc_info: Any) -> Any:
        told.append((status, *exc_info))
        return lambda part: told.append(part)

    asked = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "HTTP_HOST": "x"} | environ
    return WSGIResponseCache(app, cache, [Route("*", ttl=60, invalidates="x")])(asked, start_response), told


def test_a_wsgi_error_in_the_middle_reaches_the_server_and_nothing_is_kept() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        yield b"part"
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            start_response("500 Oops", [], sys.exc_info())
        yield b"error"

    cache: Any = LRUCache(10)
    parts, told = wsgi_asked(app, cache)
    assert list(parts) == [b"part", b"error"] and not kept(cache)
    assert [what[0] for what in told] == ["200 OK", "500 Oops"] and told[1][1][0] is ZeroDivisionError


def test_what_a_wsgi_application_writes_goes_out_in_its_place_and_is_kept_so() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        write = start_response("200 OK", [])
        write(b"a")
        yield b"b"
        write(b"c")
        yield b"d"

    cache: Any = LRUCache(10)
    parts, told = wsgi_asked(app, cache)
    for part in parts:
        told.append(part)
    assert told == [("200 OK",), b"a", b"b", b"c", b"d"]
    assert list(wsgi_asked(app, cache)[0]) == [b"abcd"]


@pytest.mark.parametrize("headers", [[], [("Content-Length", "2")], [("ETag", '"1"')]])
def test_a_wsgi_part_is_handed_out_before_the_next_is_asked_for(headers: list[tuple[str, str]]) -> None:
    made: list[int] = []

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", headers)
        return (made.append(number) or b"%d" % number for number in range(2))  # type: ignore[func-returns-value]

    cache: Any = LRUCache(10)
    parts, told = wsgi_asked(app, cache)
    assert next(iter(parts)) == b"0" and made == [0] and told == [("200 OK",)]
    parts.close()  # the client has gone
    assert not kept(cache)
    assert list(wsgi_asked(app, cache)[0]) == [b"0", b"1"] and list(wsgi_asked(app, cache)[0]) == [b"01"]


def test_an_iterable_of_which_nothing_is_kept_is_the_servers_own() -> None:
    for headers, method in [([("Set-Cookie", "a=b")], "GET"), ([], "POST"), ([("Content-Length", "9999999")], "GET")]:
        answer = [b"x"]

        def app(environ: Any, start_response: Any, headers: Any = headers, answer: Any = answer) -> Any:
            start_response("200 OK", headers)
            return answer

        assert wsgi_asked(app, LRUCache(10), REQUEST_METHOD=method)[0] is answer


def test_a_large_file_that_the_client_has_is_not_read() -> None:
    app = App()
    app.headers = [("ETag", '"1"'), ("Content-Length", "9999999")]
    app.body = lambda: iter(lambda: 1 / 0, None)  # type: ignore[arg-type,return-value]
    parts, told = wsgi_asked(app.wsgi, LRUCache(10), HTTP_IF_NONE_MATCH='"1"')
    assert list(parts) == [] and told == [("304 Not Modified",)] and app.closed == 1


def test_a_client_that_has_a_streamed_answer_gets_304_and_the_cache_the_answer(kind: str) -> None:
    app = App()
    app.headers = [("ETag", '"1"')]
    app.body = lambda: [b"1", b"2"]
    ask = client(kind, app, LRUCache(10), Route("*", ttl=60))
    first = ask(if_none_match='"1"')
    assert (first.status, first.body) == (304, b"")
    assert (ask().word, ask().body) == ("HIT", b"12")


def test_a_client_that_goes_away_has_nothing_kept() -> None:
    async def gone(message: Any) -> None:
        raise ConnectionResetError

    start, last = {"type": "http.response.start", "status": 200, "headers": []}, {"type": "http.response.body", "body": b"x"}
    for messages in ([start, last], [start, last | {"more_body": True}, last]):
        cache: Any = LRUCache(10)
        with pytest.raises(ConnectionResetError):
            asgi_messages(messages, cache, gone)
        assert not kept(cache)


class BrokenCache(LRUCache[Any, Any]):
    """Fails at one of its methods."""

    broken = ""

    def __getattribute__(self, name: str) -> Any:
        if name == type(self).broken:
            raise TypeError("broken")
        return super().__getattribute__(name)


@pytest.mark.parametrize("broken", ["get", "peek", "set", "delete_many", "invalidate"])
def test_a_cache_that_fails_costs_hits_and_is_logged_once(
    kind: str, broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(BrokenCache, "broken", broken)
    app = App()
    ask = client(kind, app, BrokenCache(10), Route("/feed", ttl=60, tags="t", invalidates="t"))
    for number in range(3):
        assert ask(query=str(number)).status == ask(method="POST").status == 200
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == len(set(warned)) and warned


def test_tags_that_cannot_be_told_cost_a_hit_and_are_logged_once(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    tenant = lambda request: request.headers["x-tenant"]  # noqa: E731
    cache: Any = LRUCache(10)
    ask = client(kind, App(), cache, Route("/feed", ttl=60, tags=tenant, invalidates=tenant))
    ask(x_tenant="a")
    assert kept(cache)
    assert [ask(query="x").body for _ in range(2)] == [b"answer 2", b"answer 3"]
    assert [ask(method="POST").status for _ in range(2)] == [200, 200] and not kept(cache)
    assert len(caplog.records) == 2


def test_a_streamed_answer_reaches_the_client_as_it_comes() -> None:
    order: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(3):
            order.append(f"made {number}")
            await send({"type": "http.response.body", "body": b"%d" % number, "more_body": number < 2})

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            order.append(f"sent {message['body'].decode()}")

    cached = ASGIResponseCache(app, LRUCache(10), [Route("*", ttl=60)])
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
    asyncio.run(cached(scope, None, send))  # type: ignore[arg-type]
    assert order == ["made 0", "sent 0", "made 1", "sent 1", "made 2", "sent 2"]


def test_an_exception_of_the_application_is_its_own_and_nothing_is_kept(kind: str) -> None:
    app = App()

    def fail() -> Iterable[bytes]:
        raise ZeroDivisionError

    app.body = fail
    cache: Any = LRUCache(10)
    with pytest.raises(ZeroDivisionError):
        client(kind, app, cache, Route("/feed", ttl=60))()
    assert not kept(cache) and (kind == "asgi" or app.closed == 1)


def test_other_kinds_of_connection_are_passed_on() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    cached = ASGIResponseCache(app, LRUCache(10), [Route("*", ttl=60)])
    for kind in ("lifespan", "websocket"):
        asyncio.run(cached({"type": kind, "path": "/"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan", "websocket"]


def test_a_real_server_answers_real_clients_from_the_cache() -> None:
    app = App()

    class Quiet(WSGIRequestHandler):
        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    app.headers = [("Content-Type", "text/plain")]
    with make_server(
        "127.0.0.1", 0, WSGIResponseCache(app.wsgi, LRUCache(10), [Route("/feed", ttl=60)]), handler_class=Quiet
    ) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/feed"
            with urllib.request.urlopen(url, timeout=10) as first, urllib.request.urlopen(url, timeout=10) as second:
                assert (first.read(), second.read(), second.headers["X-Cache"]) == (b"answer 1", b"answer 1", "HIT")
                etag = first.headers["ETag"]
            with pytest.raises(urllib.error.HTTPError, match="304"):
                urllib.request.urlopen(urllib.request.Request(url, headers={"If-None-Match": etag}), timeout=10)
        finally:
            server.shutdown()
            thread.join(10)


def test_a_routes_time_to_live_may_be_text_and_a_malformed_one_is_refused_when_it_is_made() -> None:
    assert Route("/x", ttl="5m").ttl == 300
    for wrong in ("30", "soon", -1, True, [1]):
        with pytest.raises(ValueError, match=r"^ttl: "):
            Route("/x", ttl=wrong)  # type: ignore[arg-type]


def test_a_store_whose_serializer_cannot_hold_bytes_is_refused_with_the_way_out() -> None:
    from memwatch.caches import RedisTier, TieredCache

    store = TieredCache(LRUCache(10), RedisTier("redis://127.0.0.1:1"))
    with pytest.raises(ValueError, match="serializer='msgpack'"):
        ASGIResponseCache(None, store, [])
    WSGIResponseCache(None, TieredCache(LRUCache(10), RedisTier("redis://127.0.0.1:1", serializer="msgpack")), [])
