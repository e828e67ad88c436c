"""The plugin beside the plugins, frameworks and habits that people have, on pytest 8 and 9, each in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))
import plugin_peers  # noqa: E402  (benchmarks are scripts, not a package)


class Peers:
    """pytest with every peer installed and all but the wanted ones switched off."""

    def __init__(self, python: Path, folder: Path) -> None:
        self._python = python
        self.data: dict[str, Any] = {}
        self.text = ""
        # The packages alone: beside them there may be metadata that names the plugin a second time.
        self._packages = folder / "packages"
        self._packages.mkdir()
        for name in ("memwatch", "pytest_memwatch"):
            (self._packages / name).symlink_to(ROOT / name)
        self.folder = folder / "tests"
        self.folder.mkdir()

    def run(
        self, source: str, *arguments: str, using: str = "", on: bool = True, ini: str = "", check: bool = True
    ) -> dict[str, int]:
        """Outcomes by kind, `{"passed": 1}`; `self.text` has the rest."""
        (self.folder / "test_it.py").write_text(textwrap.dedent(source))
        (self.folder / "pytest.ini").write_text("[pytest]\n" + textwrap.dedent(ini))
        off = [
            name
            for name in ("randomly", "memray", "anyio", "asyncio", "xdist", "rerunfailures", "cov")
            if name not in using.split()
        ]
        blocked = [part for name in off for part in ("-p", f"no:{PLUGINS.get(name, name)}")]
        environment = {**os.environ, "PYTHONPATH": str(self._packages)}
        command = [self._python, "-m", "pytest", "-p", "pytest_memwatch.plugin", *(("--memwatch",) if on else ()), *blocked]
        done = subprocess.run(
            [*map(str, command), "--memwatch-json=out.json", "-rA", *arguments],
            cwd=self.folder, env=environment, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        self.text = done.stdout + done.stderr
        assert "INTERNALERROR" not in self.text, self.text
        path = self.folder / "out.json"
        self.data = json.loads(path.read_text()) if path.exists() else {}
        last = done.stdout.strip().splitlines()[-1]
        return {
            words[1].rstrip("s,") if words[1].startswith("error") else words[1].rstrip(","): int(words[0])
            for words in (part.split() for part in last.strip("= ").split(" in ")[0].split(", "))
            if len(words) >= 2 and words[0].isdigit()
        }

    def verdicts(self) -> dict[str, str]:
        """Test name to verdict."""
        return {row["nodeid"].rpartition("::")[2]: row["verdict"] for row in self.data["tests"]}


PLUGINS = {"cov": "pytest_cov"}
LEAKS = """
    KEPT = []

    def test_leak():
        KEPT.append(bytearray(5_000_000))

    def test_clean():
        pass

    def test_another():
        KEPT.append([[] for _ in range(50_000)])
"""
FOUND = {"test_leak": "leak", "test_clean": "clean", "test_another": "leak"}


ON_BOTH = {
    "test_plain", "test_all_of_them_at_once", "test_xdist_merges_the_results_of_its_workers", "test_pytest_asyncio",
    "test_unittest_cases_with_their_set_up_and_tear_down", "test_doctests_are_repeated_with_their_globals",
    "test_rerunfailures_repeats_a_leak_and_it_stays_one", "test_anyio_and_trio",
}  # fmt: skip
"""Where pytest 8 and 9 differ for the gate; the rest of these tests is of the other plugins, and takes pytest 9 alone.  All run on
both with MEMWATCH_TEST_EVERY_PEER=1."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "peers" in metafunc.fixturenames:
        every = metafunc.function.__name__ in ON_BOTH or "MEMWATCH_TEST_EVERY_PEER" in os.environ
        majors = [8, 9] if every else [9]
        metafunc.parametrize("peers", majors, indirect=True, ids=[f"pytest{major}" for major in majors])


@pytest.fixture
def peers(request: pytest.FixtureRequest, tmp_path: Path) -> Peers:
    return Peers(plugin_peers.python_of(request.param), tmp_path)


def test_plain(peers: Peers) -> None:
    assert peers.run(LEAKS) == {"failed": 2, "passed": 1} and peers.verdicts() == FOUND


def test_all_of_them_at_once(peers: Peers) -> None:
    using = "randomly anyio asyncio xdist rerunfailures cov"
    outcomes = peers.run(LEAKS, "--cov=.", "-n2", using=using)
    assert outcomes["failed"] == 2 and outcomes["passed"] == 1
    assert peers.verdicts() == FOUND


def test_xdist_merges_the_results_of_its_workers(peers: Peers) -> None:
    outcomes = peers.run(
        """
        import pytest
        KEPT = []

        @pytest.fixture(scope="session")
        def database():
            return bytearray(30_000_000)

        @pytest.mark.parametrize("number", range(6))
        def test_leak(number, database):
            KEPT.append(bytearray(5_000_000))

        @pytest.mark.parametrize("number", range(6))
        def test_clean(number, database):
            pass
        """,
        "-n2", using="xdist",
    )  # fmt: skip
    assert outcomes == {"failed": 6, "passed": 6}
    assert sorted(peers.verdicts().values()) == ["clean"] * 6 + ["leak"] * 6
    assert peers.data["suite"]["checked"] == 12
    row = next(row for row in peers.data["fixtures"] if row["name"].startswith("database"))
    assert 1 <= row["setups"] <= 2 and abs(row["growth"] - 30_000_000) < 2**20
    assert "alike in 5 more" in peers.text and "MemoryGrowth: retains 4.77 MiB" in peers.text


def test_xdist_names_the_test_that_killed_a_worker(peers: Peers) -> None:
    peers.run(
        """
        import os, signal

        def test_before():
            pass

        def test_killer():
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        "-n1", "--max-worker-restart=0", using="xdist",
    )  # fmt: skip
    assert "killed: worker gw0 was killed or crashed while it ran test_it.py::test_killer; RSS when it began" in peers.text


def test_xdist_tells_a_malformed_marker_as_an_error_of_collection(peers: Peers) -> None:
    peers.run("import pytest\n@pytest.mark.memwatch(growth='lots')\ndef test_marked(): pass\n", "-n1", using="xdist", on=False)
    assert "test_it.py::test_marked: growth='lots' is not a number with a unit of bytes" in peers.text


def test_xdist_merges_what_markers_alone_asked_for(peers: Peers) -> None:
    source = LEAKS.replace("def test_leak", "@pytest.mark.memwatch\n    def test_leak").replace(
        "KEPT = []", "import pytest\n    KEPT = []"
    )
    assert peers.run(source, "-n2", using="xdist", on=False) == {"failed": 1, "passed": 2}
    assert peers.verdicts() == {"test_leak": "leak"}


def test_rerunfailures_repeats_a_leak_and_it_stays_one(peers: Peers) -> None:
    assert peers.run(LEAKS, "--reruns=1", using="rerunfailures") == {"failed": 2, "passed": 1, "rerun": 2}
    assert peers.verdicts() == FOUND


def test_rerunfailures_of_a_flaky_test_is_no_leak(peers: Peers) -> None:
    outcomes = peers.run(
        """
        TRIES = []

        def test_flaky():
            local = bytearray(8_000_000)
            TRIES.append(1)
            assert len(TRIES) > 1
        """,
        "--reruns=2", using="rerunfailures",
    )  # fmt: skip
    assert outcomes == {"passed": 1, "rerun": 1} and set(peers.verdicts().values()) == {"clean"}


def test_coverage_is_the_same_with_and_without_the_gate(peers: Peers) -> None:
    (peers.folder / "mycode.py").write_text("def used():\n    return 1\n\n\ndef unused():\n    return 2\n")
    source = "import ctypes\nfrom mycode import used\nlibc = ctypes.CDLL(None)\n"
    source += "def test_leak():\n    libc.malloc(used() * 5_000_000)\n"
    totals = []
    for on in (True, False):
        peers.run(source, "--cov=mycode", "--cov-report=term-missing", using="cov", on=on)
        totals.append([line.split() for line in peers.text.splitlines() if line.startswith("mycode.py")])
        if on:
            assert peers.verdicts() == {"test_leak": "leak"}
    assert totals[0] == totals[1] != []


def test_randomly_gives_each_repetition_the_same_numbers(peers: Peers) -> None:
    peers.run(
        """
        import random
        KEPT, numbers = [], []

        def test_leak():
            numbers.append(random.random())
            assert len(set(numbers)) == 1
            KEPT.append(bytearray(5_000_000))
        """,
        using="randomly",
    )
    assert peers.verdicts() == {"test_leak": "leak"}


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_pytest_asyncio(peers: Peers, mode: str) -> None:
    outcomes = peers.run(
        """
        import asyncio, pytest
        KEPT, TASKS = [], set()

        @pytest.fixture
        async def nothing():
            yield 1
        nothing = nothing if MODE == "auto" else None

        @pytest.mark.asyncio
        async def test_leak():
            await asyncio.sleep(0)
            KEPT.append(bytearray(5_000_000))

        @pytest.mark.asyncio
        async def test_clean():
            await asyncio.gather(*(asyncio.sleep(0.001) for _ in range(10)))

        @pytest.mark.asyncio(loop_scope="session")
        async def test_task():
            TASKS.add(asyncio.create_task(asyncio.sleep(600)))
            await asyncio.sleep(0)
        """.replace("MODE", repr(mode)),
        f"--asyncio-mode={mode}", using="asyncio",
    )  # fmt: skip
    assert peers.verdicts() == {"test_leak": "leak", "test_clean": "clean", "test_task": "leak"}, peers.text
    assert outcomes == {"failed": 2, "passed": 1}
    task = next(row for row in peers.data["tests"] if row["nodeid"].endswith("test_task"))
    assert task["metric"] == "tasks" and "task sleep" in task["message"]


def test_anyio_and_trio(peers: Peers) -> None:
    outcomes = peers.run(
        """
        import anyio, pytest
        KEPT = []

        @pytest.mark.anyio
        async def test_leak():
            await anyio.sleep(0)
            KEPT.append(bytearray(5_000_000))

        @pytest.mark.anyio
        async def test_clean():
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep, 0.001)
        """,
        using="anyio",
    )
    assert outcomes["failed"] >= 2
    verdicts = peers.verdicts()
    assert {verdicts[f"test_leak[{backend}]"] for backend in ("asyncio", "trio")} == {"leak"}
    assert {verdicts[f"test_clean[{backend}]"] for backend in ("asyncio", "trio")} <= {"clean", "warm-up"}


def test_unittest_cases_with_their_set_up_and_tear_down(peers: Peers) -> None:
    outcomes = peers.run(
        """
        import unittest, pytest
        KEPT = []

        class TestIt(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                cls.wide = bytearray(20_000_000)

            @classmethod
            def tearDownClass(cls):
                del cls.wide

            def setUp(self):
                self.data = bytearray(3_000_000)

            def test_clean(self):
                self.more = bytearray(3_000_000)

            def test_leak(self):
                KEPT.append(bytearray(5_000_000))

            @pytest.mark.memwatch(growth="6MB")
            def test_marked(self):
                KEPT.append(bytearray(5_000_000))

            def test_fails(self):
                self.assertEqual(1, 2)

            @unittest.expectedFailure
            def test_expected(self):
                assert False

            @unittest.skip("no")
            def test_skipped(self):
                pass

            def test_with_subtests(self):
                for number in range(3):
                    with self.subTest(number=number):
                        pass

        class TestAsync(unittest.IsolatedAsyncioTestCase):
            async def test_async(self):
                KEPT.append(bytearray(5_000_000))
        """,
    )
    verdicts = peers.verdicts()
    assert {name for name, verdict in verdicts.items() if verdict == "leak"} == {"test_leak", "test_async"}, peers.text
    assert outcomes["failed"] == 3 and outcomes["passed"] == 3 and outcomes["xfailed"] == 1 and outcomes["skipped"] == 1


def test_doctests_are_repeated_with_their_globals(peers: Peers) -> None:
    outcomes = peers.run(
        '''
        KEPT = []

        def leaks():
            """
            >>> value = 5_000_000
            >>> KEPT.append(bytearray(value))
            """

        def clean():
            """
            >>> len(bytearray(5_000_000))
            5000000
            """
        ''',
        "--doctest-modules",
    )
    assert outcomes == {"failed": 1, "passed": 1}
    assert peers.verdicts() == {"test_it.leaks": "leak", "test_it.clean": "clean"}


def test_hypothesis(peers: Peers) -> None:
    outcomes = peers.run(
        """
        from hypothesis import given, settings, strategies as st
        KEPT = []

        @settings(max_examples=20, deadline=None)
        @given(st.lists(st.integers()))
        def test_clean(numbers):
            assert sorted(numbers) == sorted(reversed(numbers))

        @settings(max_examples=20, deadline=None)
        @given(st.integers())
        def test_leak(number):
            KEPT.append(bytearray(300_000))
        """,
    )
    assert outcomes == {"failed": 1, "passed": 1}, peers.text
    assert peers.verdicts()["test_leak"] == "leak" and peers.verdicts()["test_clean"] in ("clean", "warm-up")


def test_a_test_that_looks_at_the_heap_sees_all_of_it(peers: Peers) -> None:
    outcomes = peers.run(
        """
        import gc

        class Thing:
            pass

        THINGS = [Thing() for _ in range(3)]

        def test_counts():
            assert sum(type(thing) is Thing for thing in gc.get_objects()) == 3
            assert THINGS in gc.get_referrers(THINGS[0])
        """,
        "-W", "error",
    )  # fmt: skip
    assert outcomes == {"passed": 1}


def test_hypothesis_in_classes_and_with_warnings_as_errors(peers: Peers) -> None:
    outcomes = peers.run(
        """
        from hypothesis import given, settings, strategies as st
        KEPT = []

        class TestIt:
            @settings(max_examples=5, deadline=None)
            @given(st.integers())
            def test_leak(self, number):
                KEPT.append(bytearray(600_000))
        """,
        "-W", "error",
    )  # fmt: skip
    assert outcomes == {"failed": 1} and peers.verdicts() == {"test_leak": "leak"}, peers.text


def test_tests_that_use_tracemalloc_themselves(peers: Peers) -> None:
    outcomes = peers.run(
        """
        import pytest, tracemalloc
        KEPT = []

        def test_traces():
            tracemalloc.start()
            kept = bytearray(3_000_000)
            assert tracemalloc.get_traced_memory()[0] > 2_900_000
            tracemalloc.stop()

        @pytest.mark.memwatch(peak="50MB")
        def test_traces_under_a_peak_limit():
            tracemalloc.start()
            tracemalloc.stop()

        def test_leaves_it_on():
            tracemalloc.start(5)
            KEPT.append(bytearray(5_000_000))

        def test_afterwards():
            assert tracemalloc.is_tracing() and tracemalloc.get_traceback_limit() == 5
            tracemalloc.stop()
        """,
    )
    assert outcomes == {"failed": 1, "passed": 3}, peers.text
    assert {name for name, verdict in peers.verdicts().items() if verdict == "leak"} == {"test_leaves_it_on"}


def test_tests_that_use_memray_themselves(peers: Peers) -> None:
    outcomes = peers.run(
        """
        import memray, pytest

        @pytest.mark.memwatch(peak="300MB")
        def test_tracks(tmp_path):
            with memray.Tracker(tmp_path / "out.bin"):
                bytearray(1_000_000)

        @pytest.mark.memwatch(peak="1MB")
        def test_too_much():
            bytearray(5_000_000)
        """,
    )
    assert outcomes == {"failed": 1, "passed": 1}, peers.text


def test_pytest_memray_itself_keeps_its_markers(peers: Peers) -> None:
    outcomes = peers.run(
        """
        import pytest
        KEPT = []

        @pytest.mark.limit_memory("2 MB")
        def test_limited():
            bytearray(5_000_000)

        def test_leak():
            KEPT.append(bytearray(5_000_000))
        """,
        using="memray",
    )
    assert outcomes == {"failed": 2}
    assert "Test was limited to 2.0MiB" in peers.text  # by pytest-memray, in its words
    assert peers.verdicts()["test_leak"] == "leak"


def test_a_forked_child_of_a_test_is_not_the_gates(peers: Peers) -> None:
    outcomes = peers.run(
        """
        import multiprocessing, os
        KEPT = []

        def work(queue):
            KEPT.append(bytearray(50_000_000))
            queue.put(1)

        def test_forks():
            pid = os.fork()
            if pid == 0:
                KEPT.append(bytearray(50_000_000))
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0

        def test_multiprocessing():
            context = multiprocessing.get_context("fork")
            queue = context.SimpleQueue()
            child = context.Process(target=work, args=(queue,))
            child.start()
            assert queue.get() == 1
            child.join()

        def test_clean():
            pass
        """,
        "-W", "ignore::DeprecationWarning",
    )  # fmt: skip
    assert outcomes == {"passed": 3}, peers.text
    assert "leak" not in peers.verdicts().values()


def test_warnings_as_errors_and_strict_markers_do_not_fail_what_is_fine(peers: Peers) -> None:
    ini = "filterwarnings = error\naddopts = --strict-markers --strict-config\nmemwatch_growth = 2MiB\n"
    assert peers.run(LEAKS.replace("50_000", "10"), ini=ini) == {"failed": 1, "passed": 2}


def test_subtests_of_a_leak_are_not_told_again_for_every_repetition(peers: Peers) -> None:
    if "/9/" not in str(peers._python):
        return  # they came with pytest 9
    outcomes = peers.run(
        """
        KEPT = []

        def test_leak(subtests):
            for number in range(2):
                with subtests.test(number=number):
                    pass
            KEPT.append(bytearray(5_000_000))
        """,
        "-q",
    )  # fmt: skip
    assert peers.verdicts() == {"test_leak": "leak"}
    assert outcomes == {"failed": 1, "subtests": 2}, peers.text
