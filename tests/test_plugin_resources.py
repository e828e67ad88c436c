"""Descriptors, sockets, threads, children and tasks: counted with identity, told by where they were made."""

from __future__ import annotations

import os
import socket

import pytest
from plugin_runs import run

from memwatch.evidence import resources

pytest_plugins = ["pytester"]


@pytest.mark.parametrize(
    ("body", "metric", "words"),
    [
        ("KEPT.append(open(__file__))", "fds", ["file", "opened at  test_it.py:5", "module test_it → KEPT"]),
        ("KEPT.append(os.open(__file__, os.O_RDONLY))", "fds", ["file", "opened at  test_it.py:5"]),
        ("KEPT.append(os.pipe())", "fds", ["2 × pipe", "opened at  test_it.py:5 test_leak"]),
        ("KEPT.append(os.dup(1))", "fds", ["1 × file", "opened at  test_it.py:5 test_leak"]),
        ("KEPT.append(socket.create_server(('127.0.0.1', 0)))", "fds",
         ["socket listening on port", "opened at  test_it.py:5", "module test_it → KEPT"]),
        ("KEPT.append(socket.socket())", "fds", ["1 × unconnected socket", "opened at  test_it.py:5", "module test_it → KEPT"]),
        ("threading.Thread(target=time.sleep, args=(9,), daemon=True).start()", "threads", ["time.sleep", "made at  test_it.py:5"]),
        ("KEPT.append(subprocess.Popen(['sleep', '300']))", "children", ["child process sleep", "made at  test_it.py:5"]),
        (
            "loop = asyncio.new_event_loop(); KEPT.append((loop, loop.create_task(asyncio.sleep(300)))); loop.run_until_complete(asyncio.sleep(0))",  # noqa: E501
            "tasks", ["task sleep"],
        ),
    ],
    ids=["file", "descriptor", "pipe", "duplicate", "server", "socket", "thread", "child", "task"],
)  # fmt: skip
def test_a_resource_that_is_left_is_named_with_its_origin(
    pytester: pytest.Pytester, body: str, metric: str, words: list[str]
) -> None:
    outcome = run(pytester, f"""
        import asyncio, os, socket, subprocess, threading, time
        KEPT = []

        def test_leak():
            {body}

        def test_clean():
            open(__file__).close()
            thread = threading.Thread(target=time.sleep, args=(0.05,))
            thread.start()

        def teardown_module():
            for kept in KEPT:
                if isinstance(kept, subprocess.Popen):
                    kept.kill()
    """)  # fmt: skip
    assert outcome.counts()["failed"] == 1 and outcome.counts()["passed"] == 1
    row = outcome.row("test_leak")
    assert row["verdict"] == "leak"
    if metric == "tasks":
        assert "leaves 1 asyncio task" in row["message"]
    else:
        assert row["metric"] == metric
    for word in words:
        assert word in row["message"], row["message"]
    assert outcome.verdicts()["test_clean"] == "clean"


@pytest.mark.skipif(not hasattr(socket, "AF_NETLINK"), reason="Linux")
def test_a_socket_of_the_kernels_is_not_taken_for_an_unconnected_one() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as kernels, socket.socket() as fresh:
        kernels.bind((0, 0))
        inodes = [f"socket:[{os.fstat(one.fileno()).st_ino}]" for one in (kernels, fresh)]
        groups = {identity[1]: one.group for identity, one in resources.look("fds").items() if isinstance(identity, tuple)}
        assert [groups[inode] for inode in inodes] == ["netlink socket", "unconnected socket"]


def test_what_a_wider_fixture_opens_is_its_own(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import pytest, socket, threading

        @pytest.fixture(scope="session")
        def server():
            stop = threading.Event()
            thread = threading.Thread(target=stop.wait)
            thread.start()
            listener = socket.create_server(("127.0.0.1", 0))
            yield listener
            stop.set()
            thread.join()
            listener.close()

        def test_first(server):
            pass

        def test_second(server):
            socket.create_connection(server.getsockname()).close()
    """)  # fmt: skip
    assert outcome.counts() == {"passed": 2} and set(outcome.verdicts().values()) == {"clean"}
    assert outcome.row("test_first")["reruns"] == 0


def test_a_pool_that_is_filled_on_first_use_is_a_warm_up(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import concurrent.futures
        POOL = concurrent.futures.ThreadPoolExecutor(1)

        def test_first():
            assert POOL.submit(lambda: 1).result() == 1
    """)  # fmt: skip
    assert outcome.counts() == {"passed": 1} and outcome.verdicts() == {"test_first": "warm-up"}


def test_a_marker_allows_some_and_ignore_leaves_out_by_name(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import pytest, socket
        KEPT = []

        @pytest.mark.memwatch(fds=1)
        def test_allowed():
            KEPT.append(open(__file__))

        @pytest.mark.memwatch(ignore=["*test_it.py"])
        def test_ignored():
            KEPT.append(open(__file__))

        @pytest.mark.memwatch(fds=None)
        def test_not_counted():
            KEPT.append(open(__file__))

        @pytest.mark.memwatch(ignore=["*test_it.py"])
        def test_another():
            KEPT.append(socket.socket())
    """)  # fmt: skip
    assert outcome.counts() == {"passed": 3, "failed": 1}


def test_one_file_exchanged_for_another_of_the_same_group_is_no_growth(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        CURRENT = [open(__file__)]

        def test_rotates():
            CURRENT[0].close()
            CURRENT[0] = open(__file__)
    """)  # fmt: skip
    assert outcome.verdicts() == {"test_rotates": "clean"}
