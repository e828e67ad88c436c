"""Task queues with their real workers and a real Redis."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import serving, until

from memwatch import routes
from memwatch.integrations.apscheduler import counted, watch
from memwatch.integrations.jobs import Jobs

CELERY = ["celery", "-A", "tasks", "worker", "--concurrency", "2", "--loglevel", "info", "--without-gossip", "--without-mingle"]

# What every worker writes after each job: its pid, whether it is watched, and its ledger.
TELL = """
import json, os, pathlib, threading, memwatch
from memwatch import routes
told_one_at_a_time = threading.Lock()  # or a slower thread would put older counts in the place of newer ones
def tell(end="jobs"):
    with told_one_at_a_time:
        book = routes.ledger()
        rows = {row.route: [row.requests, row.errors, row.in_flight] for row in book.figures(book.names())}
        current = memwatch.current()
        told = {"pid": os.getpid(), "watched": current is not None and current.running, "rows": rows}
        new = pathlib.Path(f"told-{os.getpid()}.new")
        new.write_text(json.dumps(told))
        new.rename(f"told-{os.getpid()}.json")
"""


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("elsewhere: needs redis-server")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    folder = tmp_path_factory.mktemp("redis")
    server = subprocess.Popen(
        [program, "--port", str(port), "--save", "", "--bind", "127.0.0.1", "--dir", str(folder)], stdout=subprocess.DEVNULL
    )

    def answers() -> bool:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return True
        except OSError:
            return False

    until(answers, "redis-server answers")
    yield f"redis://127.0.0.1:{port}"
    server.terminate()
    server.wait()


def told(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in folder.glob("told-*.json")]


def rows(folder: Path) -> dict[str, list[int]]:
    """The figures of all workers together."""
    total: dict[str, list[int]] = {}
    for one in told(folder):
        for route, figures in one["rows"].items():
            total[route] = [a + b for a, b in zip(total.get(route, [0, 0, 0]), figures, strict=True)]
    return total


def send(folder: Path, program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_celery_tasks_are_counted_and_each_worker_process_is_watched(tmp_path: Path, redis_url: str) -> None:
    (tmp_path / "tasks.py").write_text(
        TELL
        + f"""
from celery import Celery, signals
from memwatch.integrations.celery import connect
app = Celery("tasks", broker="{redis_url}/0")
connect(interval="1s", directory="records")
@app.task
def thumbnail(n): return n
@app.task
def breaks(): raise RuntimeError("broken")
@app.task(bind=True, max_retries=1)
def again(self):
    if self.request.retries == 0: raise self.retry(countdown=0)
@signals.task_postrun.connect
def told(**_): tell()
"""
    )
    with serving(CELERY, tmp_path, PYTHONWARNINGS="ignore") as worker:
        worker.said("ready")
        send(tmp_path, "import tasks\nfor n in range(6): tasks.thumbnail.delay(n)\ntasks.breaks.delay(); tasks.again.delay()")
        until(lambda: sum(counts[0] for counts in rows(tmp_path).values()) == 9, "nine runs were counted")
        found = rows(tmp_path)
        assert all(one["watched"] for one in told(tmp_path))
        assert worker.process.pid not in [one["pid"] for one in told(tmp_path)]
        output = worker.stop()
    assert found["job:tasks.thumbnail"] == [6, 0, 0]
    assert found["job:tasks.breaks"] == [1, 1, 0]
    assert found["job:tasks.again"] == [2, 0, 0]
    assert "memwatch" not in output or "failed" not in output
    records = list((tmp_path / "records").glob("*.memwatch"))
    assert {f"-{one['pid']}-" in str(records) for one in told(tmp_path)} == {True}


def test_a_celery_process_that_leaks_is_replaced_between_two_tasks_and_no_task_is_lost(tmp_path: Path, redis_url: str) -> None:
    (tmp_path / "tasks.py").write_text(
        f"""
import os, pathlib, time
from celery import Celery
from memwatch.integrations.celery import connect
app = Celery("tasks", broker="{redis_url}/5", backend="{redis_url}/6")
connect(interval="50ms", directory=False, recycle=True, jitter="200ms")
kept, role = [], None
@app.task
def resize(n):
    global role
    if role is None:
        try:
            os.close(os.open("leaker", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            pathlib.Path("leaker").write_text(str(os.getpid()))
            role = "leaks"
        except FileExistsError:
            role = "clean"
    if role == "leaks": kept.append(bytearray(40000))
    return [n, os.getpid()]
"""
    )
    asks = """
import pathlib, time, tasks
from celery import group
found, deadline_s = [], time.monotonic() + 150
while time.monotonic() < deadline_s:
    found += group(tasks.resize.s(n) for n in range(200)).apply_async().get(timeout=100)
    pids = {pid for _, pid in found}
    if len(found) >= 2000 and len(pids) >= 3: break
leaker = int(pathlib.Path("leaker").read_text())
assert len(found) >= 2000, len(found)
last = group(tasks.resize.s(n) for n in range(200)).apply_async().get(timeout=100)
assert leaker in pids and len(pids) == 3, (leaker, pids)
assert leaker not in {pid for _, pid in last}, "the leaking process still works"
print(len(found))
"""
    with serving(CELERY, tmp_path, PYTHONWARNINGS="ignore") as worker:
        worker.said("ready")
        done = subprocess.run([sys.executable, "-c", asks], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
        output = worker.stop()
    said = "".join(line for line in output.splitlines(True) if "Task tasks.resize" not in line)
    assert done.returncode == 0, done.stderr + said
    assert "will be recycled in" in output


def test_a_solo_celery_worker_is_watched_itself(tmp_path: Path, redis_url: str) -> None:
    (tmp_path / "tasks.py").write_text(
        TELL
        + f"""
from celery import Celery, signals
from memwatch.integrations.celery import connect
app = Celery("tasks", broker="{redis_url}/1")
connect(directory=False)
@app.task
def one(): pass
@signals.task_postrun.connect
def told(**_): tell()
"""
    )
    command = ["celery", "-A", "tasks", "worker", "--pool", "solo", "--loglevel", "info", "--without-gossip", "--without-mingle"]
    with serving(command, tmp_path, PYTHONWARNINGS="ignore") as worker:
        worker.said("ready")
        send(tmp_path, "import tasks; tasks.one.delay()")
        (found,) = until(lambda: told(tmp_path), "the task has run")
        assert found["pid"] == worker.process.pid
    assert found["watched"]
    assert found["rows"] == {"job:tasks.one": [1, 0, 0]}


def test_celery_refuses_a_malformed_setting_where_it_is_given() -> None:
    import memwatch
    from memwatch.integrations.celery import connect

    with pytest.raises(memwatch.SettingError, match="interval"):
        connect(interval="10")


def test_rq_jobs_of_a_simple_worker_are_counted_and_the_worker_is_watched(tmp_path: Path, redis_url: str) -> None:
    (tmp_path / "tasks.py").write_text(
        TELL
        + """
def thumbnail(n): return n
def breaks(): raise RuntimeError("broken")
def last(): tell()
"""
    )
    send(
        tmp_path,
        f"import redis, rq, tasks; q = rq.Queue(connection=redis.Redis.from_url('{redis_url}/2'))\n"
        "for n in range(5): q.enqueue(tasks.thumbnail, n)\n"
        "q.enqueue(tasks.breaks); q.enqueue(tasks.last)",
    )
    command = ["rq.cli", "worker", "--burst", "--url", f"{redis_url}/2", "--worker-class", "memwatch.integrations.rq.SimpleWorker"]
    with serving(command, tmp_path, PYTHONPATH=str(tmp_path), MEMWATCH_DIR=str(tmp_path / "records")) as worker:
        assert worker.process.wait(60) == 0
    (found,) = told(tmp_path)
    assert found["watched"]
    assert found["rows"] == {"job:tasks.thumbnail": [5, 0, 0], "job:tasks.breaks": [1, 1, 0]}  # the last is under way
    assert len(list((tmp_path / "records").glob("*.memwatch"))) == 1


def test_dramatiq_messages_are_counted_and_each_worker_process_is_watched(tmp_path: Path, redis_url: str) -> None:
    (tmp_path / "tasks.py").write_text(
        TELL
        + f"""
import dramatiq
from dramatiq.brokers.redis import RedisBroker
from memwatch.integrations.dramatiq import MemwatchMiddleware
broker = RedisBroker(url="{redis_url}/3")
dramatiq.set_broker(broker)
class Tells(dramatiq.Middleware):
    def after_process_message(self, *_, **__): tell()
broker.add_middleware(Tells())  # those added later are called first when a message is over
broker.add_middleware(MemwatchMiddleware(directory=False))
@dramatiq.actor(max_retries=0)
def thumbnail(n): pass
@dramatiq.actor(max_retries=0)
def breaks(): raise RuntimeError("broken")
"""
    )
    with serving(["dramatiq", "tasks", "--processes", "1", "--threads", "2"], tmp_path, PYTHONWARNINGS="ignore"):
        send(tmp_path, "import tasks\nfor n in range(5): tasks.thumbnail.send(n)\ntasks.breaks.send()")
        until(lambda: sum(counts[0] for counts in rows(tmp_path).values()) == 6, "six messages were counted")
        found = rows(tmp_path)
        assert [one["watched"] for one in told(tmp_path)] == [True]
    assert found["job:thumbnail"][:2] == [5, 0]
    assert found["job:breaks"][:2] == [1, 1]


# -- in this process -----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _empty_ledger() -> Iterator[None]:
    routes.ledger().clear()
    yield
    routes.ledger().clear()


def figures() -> dict[str, routes.Figures]:
    book = routes.ledger()
    return {row.route: row for row in book.figures(book.names())}


def thumbnail() -> None: ...


def breaks() -> None:
    raise RuntimeError("broken")


@pytest.mark.filterwarnings("ignore")
def test_apschedulers_jobs_are_counted_by_name_also_those_that_run_once() -> None:
    from apscheduler.schedulers.background import BackgroundScheduler

    scheduler = BackgroundScheduler()
    scheduler.add_job(thumbnail, "interval", seconds=0.05, id="8f1c0d", max_instances=5)
    stop_watching = watch(scheduler)
    scheduler.add_job(breaks)
    scheduler.start()
    try:
        until(lambda: "job:breaks" in figures() and figures().get("job:thumbnail", (0, 0))[1] >= 3, "the jobs have run")
        stop_watching()
    finally:
        scheduler.shutdown()
    assert (figures()["job:breaks"].requests, figures()["job:breaks"].errors) == (1, 1)
    assert figures()["job:thumbnail"].errors == 0
    seen = figures()["job:thumbnail"].requests
    assert seen >= 3
    assert not any("8f1c0d" in route for route in figures())


def test_what_is_no_scheduler_of_apscheduler_3_is_refused_with_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"wrap the jobs with counted\(\)"):
        watch(object())


def test_a_counted_function_gives_and_raises_what_it_did() -> None:
    assert counted(lambda value: value + 1, "adds")(1) == 2
    with pytest.raises(RuntimeError, match="broken"):
        counted(breaks)()
    assert (figures()["job:adds"].requests, figures()["job:adds"].errors) == (1, 0)
    assert (figures()["job:breaks"].requests, figures()["job:breaks"].errors) == (1, 1)


def test_a_job_that_did_not_begin_here_is_not_counted_and_one_not_run_is_forgotten() -> None:
    book = routes.ledger()
    jobs = Jobs(book)
    jobs.end("before the fork", failed=False)
    jobs.begin("skipped", "a")
    jobs.forget("skipped")
    assert figures() == {}
    assert book.in_flight == 0


def test_jobs_that_never_end_are_bounded() -> None:
    jobs = Jobs(routes.ledger())
    began = time.perf_counter()
    for number in range(12_000):
        jobs.begin(number, "a")
    assert routes.ledger().in_flight == 10_000
    assert time.perf_counter() - began < 30
