from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import GUNICORN, GUNICORN_LISTENS, UVICORN, UVICORN_LISTENS, Server, serving

APP = """
import asyncio, os, socket
from django.conf import settings
settings.configure(
    SECRET_KEY="x", ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"],
    MIDDLEWARE=["memwatch.integrations.django.MemwatchMiddleware", "django.middleware.common.CommonMiddleware"],
)
import django
django.setup()
from django.http import FileResponse, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import include, path
from memwatch import routes
def user(request, pk): return HttpResponse(str(pk))
async def later(request, pk):
    await asyncio.sleep(0)
    return HttpResponse(str(pk))
def broken(request): raise RuntimeError("broken")
def stream(request): return StreamingHttpResponse(iter([b"a", b"b"]))
async def stream_later(request):
    async def chunks():
        yield b"a"
        yield b"b"
    return StreamingHttpResponse(chunks())
def half(request):
    def chunks():
        yield b"first"
        raise RuntimeError("in the middle")
    return StreamingHttpResponse(chunks())
sent = []
inner = socket.socket.sendfile
socket.socket.sendfile = lambda *arguments, **named: sent.append(1) or inner(*arguments, **named)
def file(request): return FileResponse(open(os.path.abspath(__file__), "rb"))
def how_many_were_sent(request): return HttpResponse(str(len(sent)))
def ledger(request):
    book = routes.ledger()
    rows = [row._asdict() for row in book.figures(book.names())]
    return JsonResponse([*rows, {"route": "under way", "requests": book.in_flight}], safe=False)
urlpatterns = [
    path("", user, {"pk": 0}), path("users/<int:pk>/", user), path("later/<int:pk>/", later), path("broken", broken),
    path("shop/", include([path("<slug:pk>", user)])), path("stream", stream), path("stream-later", stream_later),
    path("half", half), path("ledger", ledger),
    path("file", file), path("sent", how_many_were_sent),
]
"""
WSGI = APP + "from django.core.wsgi import get_wsgi_application\napp = get_wsgi_application()\n"
ASGI = APP + "from django.core.asgi import get_asgi_application\napp = get_asgi_application()\n"


@pytest.fixture(scope="module", params=["gunicorn", "uvicorn"])
def django(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("django")
    is_async = request.param == "uvicorn"
    (folder / "app.py").write_text(ASGI if is_async else WSGI)
    command, listens = ([*UVICORN, "--lifespan", "off"], UVICORN_LISTENS) if is_async else (GUNICORN, GUNICORN_LISTENS)
    with serving(command, folder, listens, PYTHONWARNINGS="ignore") as server:
        yield server


def test_patterns_are_counted_for_views_of_both_kinds(django: Server) -> None:
    for user in range(1, 4):
        assert django.get(f"/users/{user}/") == (200, str(user).encode())
        assert django.get(f"/later/{user}/") == (200, str(user).encode())
    django.get("/shop/one")
    django.get("/")
    figures = django.figures()
    assert figures["GET users/<int:pk>/"]["requests"] == 3
    assert figures["GET later/<int:pk>/"]["requests"] == 3
    assert figures["GET shop/<slug:pk>"]["requests"] == 1
    assert figures["GET /"]["requests"] == 1


def test_a_view_that_raises_is_an_error(django: Server) -> None:
    assert django.get("/broken")[0] == 500
    assert (django.figures()["GET broken"]["requests"], django.figures()["GET broken"]["errors"]) == (1, 1)


def test_paths_that_resolve_to_nothing_are_one_row(django: Server) -> None:
    for path in ("/wp-admin.php", "/.env"):
        assert django.get(path)[0] == 404
    assert django.figures()["(unmatched)"]["requests"] == 2


def test_a_stream_is_counted_once_it_is_over_and_nothing_stays_under_way(django: Server) -> None:
    assert django.get("/stream") == (200, b"ab")
    assert django.get("/stream-later") == (200, b"ab")
    figures = django.figures()
    assert figures["GET stream"]["requests"] == 1
    assert figures["GET stream-later"]["requests"] == 1
    assert figures["under way"]["requests"] == 1  # the one that asks


def test_a_stream_that_breaks_off_is_an_error(django: Server) -> None:
    with pytest.raises(Exception, match="IncompleteRead"):
        django.get("/half")
    assert django.figures()["GET half"]["errors"] == 1


def test_a_file_is_counted_once_and_gunicorn_still_hands_it_to_the_kernel(django: Server, request: pytest.FixtureRequest) -> None:
    status, body = django.get("/file")
    assert status == 200
    assert body.startswith(APP.encode())
    by_the_kernel = b"1" if request.node.callspec.params["django"] == "gunicorn" else b"0"  # ASGI servers are given chunks
    assert django.get("/sent") == (200, by_the_kernel)
    figures = django.figures()
    assert figures["GET file"]["requests"] == 1
    assert figures["under way"]["requests"] == 1  # the one that asks
