"""What counts as a leak, and what does not."""

from __future__ import annotations

import pytest
from plugin_runs import MIB, run

pytest_plugins = ["pytester"]


def test_a_python_leak_names_its_line_its_type_and_its_holder(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        KEPT = []

        def test_leak():
            KEPT.append(bytearray(5_000_000))
    """)  # fmt: skip
    assert outcome.counts() == {"failed": 1}
    row = outcome.row("test_leak")
    assert row["verdict"] == "leak" and row["metric"] == "heap" and row["kind"] == "Python heap"
    assert len(row["repeats"]) == 3 and all(abs(size - 5_000_000) < 100_000 for size in row["repeats"])
    assert row["sites"][0]["label"] == "test_it.py:4 test_leak"
    assert row["types"][0]["label"] == "bytearray"
    assert row["holders"][0]["label"].startswith("module test_it → KEPT")


def test_a_leak_into_many_small_objects_is_measured_where_rss_may_not_move(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        KEPT = []

        def test_leak():
            KEPT.append([[] for _ in range(50_000)])
    """)  # fmt: skip
    row = outcome.row("test_leak")
    assert row["verdict"] == "leak" and row["kind"] == "Python heap" and "blocks +4" in row["message"]


@pytest.mark.parametrize("body", ["libc.memset(libc.malloc(5_000_000), 1, 5_000_000)", "[libc.malloc(1024) for _ in range(5120)]"])
def test_a_native_leak_is_told_to_be_one_with_its_line(pytester: pytest.Pytester, body: str) -> None:
    outcome = run(pytester, f"""
        import ctypes
        libc = ctypes.CDLL(None)
        libc.malloc.restype = libc.memset.restype = ctypes.c_void_p
        libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

        def test_leak():
            {body}
    """)  # fmt: skip
    row = outcome.row("test_leak")
    assert row["verdict"] == "leak" and row["kind"] == "native heap"
    assert row["sites"][0]["label"].startswith("test_it.py:7 test_leak")
    assert not row["holders"] and "no Python object" in row["message"]


def test_mapped_memory_that_no_allocator_knows_is_found_by_rss_and_says_so(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import mmap
        KEPT = []

        def test_leak():
            pages = mmap.mmap(-1, 8_000_000)
            pages.write(bytes(8_000_000))
            KEPT.append(pages)
    """)  # fmt: skip
    row = outcome.row("test_leak")
    assert row["verdict"] == "leak" and row["metric"] == "rss"
    assert "outside malloc" in row["message"]


def test_memory_that_was_freed_is_no_leak(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        def test_freed():
            bytearray(200_000_000)

        def test_small_freed():
            [[] for _ in range(300_000)]
    """)  # fmt: skip
    assert outcome.counts() == {"passed": 2}
    assert set(outcome.verdicts().values()) <= {"clean", "warm-up"}


def test_first_use_is_a_warm_up_and_no_leak(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import functools

        @functools.lru_cache
        def table():
            return bytearray(30_000_000)

        def test_first():
            table()

        def test_second():
            table()

        def test_imports():
            import xml.dom.minidom, decimal, email.mime.multipart, sqlite3, asyncio, http.server
    """)  # fmt: skip
    assert outcome.counts() == {"passed": 3}
    assert outcome.verdicts()["test_first"] == "warm-up" and outcome.verdicts()["test_second"] == "clean"
    assert "warm-ups, not leaks" in outcome.text


def test_a_cycle_that_nobody_has_collected_is_no_leak(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        def test_cycle():
            pair = [bytearray(5_000_000)]
            pair.append(pair)
    """)  # fmt: skip
    assert outcome.counts() == {"passed": 1} and outcome.verdicts() == {"test_cycle": "clean"}
    assert outcome.row("test_cycle")["reruns"] == 0


def test_what_a_fixture_frees_in_its_tear_down_is_no_leak(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import pytest
        KEPT = []

        @pytest.fixture
        def held():
            KEPT.append(bytearray(6_000_000))
            yield KEPT
            KEPT.clear()

        def test_held(held):
            held.append(bytearray(6_000_000))

        def test_last(held):
            pass
    """)  # fmt: skip
    assert outcome.counts() == {"passed": 2} and set(outcome.verdicts().values()) == {"clean"}


def test_a_leak_inside_a_fixture_is_named_by_it(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import pytest
        KEPT = []

        @pytest.fixture
        def leaky():
            KEPT.append(bytearray(4_000_000))

        def test_one(leaky):
            pass
    """)  # fmt: skip
    assert outcome.counts() == {"failed": 1}
    message = outcome.row("test_one")["message"]
    assert "in  the set-up of fixture 'leaky'" in message and "test_it.py:6 leaky" in message


def test_a_leak_in_a_tear_down_is_an_error_of_the_tear_down(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import pytest
        KEPT = []

        @pytest.fixture
        def leaky():
            yield
            KEPT.append(bytearray(4_000_000))

        def test_one(leaky):
            pass

        def test_two(leaky):
            pass
    """)  # fmt: skip
    assert outcome.counts() == {"passed": 2, "errors": 2}
    assert "ERROR at teardown of test_one" in outcome.text


def test_a_wider_fixture_is_charged_by_name_and_not_to_its_first_user(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import pytest

        @pytest.fixture(scope="module")
        def inner():
            return bytearray(20_000_000)

        @pytest.fixture(scope="session")
        def outer():
            return bytearray(50_000_000)

        @pytest.fixture(scope="module")
        def asks(request):
            kept = bytearray(10_000_000)
            return request.getfixturevalue("inner"), kept

        def test_first(outer, asks):
            pass

        def test_second(outer, asks):
            pass
    """)  # fmt: skip
    assert outcome.counts() == {"passed": 2} and set(outcome.verdicts().values()) == {"clean"}
    sizes = {row["name"].split()[0]: row["growth"] for row in outcome.data["fixtures"]}
    assert abs(sizes["outer"] - 50_000_000) < MIB
    assert abs(sizes["inner"] - 20_000_000) < MIB
    assert abs(sizes["asks"] - 10_000_000) < MIB  # without what it asked for
    assert "fixtures by growth" in outcome.text


def test_what_a_wider_fixture_frees_does_not_hide_a_leak_of_the_last_test(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import pytest
        KEPT = []

        @pytest.fixture(scope="module")
        def wide():
            held = [bytearray(50_000_000)]
            yield held
            held.clear()

        @pytest.fixture
        def leaky(wide):
            yield
            KEPT.append(bytearray(5_000_000))

        def test_last(leaky):
            pass
    """)  # fmt: skip
    assert outcome.row("test_last")["verdict"] == "leak"


def test_thirty_small_leaks_are_one_large_one(pytester: pytest.Pytester) -> None:
    lines = "\n".join(f"            KEPT.append(bytearray(900_000))  # {number}" for number in range(30))
    outcome = run(pytester, f"""
        KEPT = []

        def test_leak():
{lines}
    """)  # fmt: skip
    row = outcome.row("test_leak")
    assert row["verdict"] == "leak" and row["repeats"][0] > 26_000_000


def test_failed_and_skipped_tests_are_not_judged_nor_charged_to_their_neighbours(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import pytest
        KEPT = []

        def test_fails():
            local = bytearray(20_000_000)
            KEPT.append(open(__file__))
            assert False

        def test_after():
            pass

        def test_skips():
            KEPT.append(bytearray(20_000_000))
            pytest.skip("no")

        def test_last():
            pass
    """)  # fmt: skip
    assert outcome.counts() == {"failed": 1, "passed": 2, "skipped": 1}
    assert set(outcome.verdicts().values()) == {"clean"}
    assert outcome.row("test_fails")["note"] == "failed or skipped: not judged"


def test_growth_that_fades_is_no_leak(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        KEPT, sizes = [], [16_000_000, 8_000_000, 5_000_000, 3_000_000, 1_500_000, 100_000, 0, 0, 0, 0]

        def test_fades():
            KEPT.append(bytearray(sizes.pop(0)))
    """)  # fmt: skip
    assert outcome.counts() == {"passed": 1}
    row = outcome.row("test_fades")
    assert row["verdict"] == "warm-up" and row["repeats"][-1] < MIB


def test_a_test_that_changed_the_world_is_suspect_and_fails_only_if_strict(pytester: pytest.Pytester) -> None:
    source = """
        KEPT = []

        def test_once():
            assert not KEPT
            KEPT.append(bytearray(5_000_000))
    """
    outcome = run(pytester, source)
    assert outcome.counts() == {"passed": 1, "warnings": 1}
    assert outcome.row("test_once")["verdict"] == "suspect"
    assert "cannot be repeated" in outcome.text and "AssertionError" in outcome.row("test_once")["note"]
    assert run(pytester, source, "--memwatch-strict").counts() == {"failed": 1}


def test_rerun_0_judges_once_and_says_so(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import functools

        @functools.lru_cache
        def table():
            return bytearray(5_000_000)

        def test_first():
            table()
    """, "--memwatch-rerun=0")  # fmt: skip
    assert outcome.counts() == {"failed": 1}
    assert "judged once (rerun=0)" in outcome.text and outcome.row("test_first")["reruns"] == 0


def test_what_pytest_keeps_of_the_output_is_not_the_tests(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import logging

        def test_prints(capsys):
            print("x" * 4_000_000)

        def test_prints_more():
            print("x" * 4_000_000)

        def test_logs():
            logging.getLogger().warning("y" * 3_000_000)
    """)  # fmt: skip
    assert outcome.counts() == {"passed": 3} and "leak" not in outcome.verdicts().values()
    assert outcome.row("test_prints_more")["reruns"] == 0


def test_repetitions_leave_no_trace_in_the_report(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        KEPT = []

        def test_leak(record_property, caplog):
            record_property("key", len(KEPT))
            print("spoken once")
            KEPT.append(bytearray(5_000_000))
    """, "-rA", "--junitxml=junit.xml")  # fmt: skip
    assert outcome.text.count("spoken once") <= 2  # once in the failure, once more with -rA
    junit = (pytester.path / "junit.xml").read_text()
    assert junit.count('name="key"') == 1 and 'name="memwatch_verdict" value="leak"' in junit
    assert '<failure message="MemoryGrowth: retains' in junit


def test_function_scope_fixtures_are_made_anew_for_every_repetition(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import pytest
        KEPT, made, instances = [], [], set()

        @pytest.fixture
        def fresh(tmp_path):
            made.append(tmp_path)
            yield len(made)
            made.append("torn down")

        class TestIt:
            def test_leak(self, fresh):
                assert not hasattr(self, "used")
                self.used = True
                KEPT.append(bytearray(5_000_000))

        def test_afterwards():
            assert made[0::2] != made[1::2] and set(made[1::2]) == {"torn down"}
            assert len(set(map(str, made[0::2]))) == len(made) // 2 >= 4
    """)  # fmt: skip
    assert outcome.counts() == {"failed": 1, "passed": 1}
    assert outcome.row("test_leak")["verdict"] == "leak"


def test_an_error_of_a_tear_down_that_came_early_is_an_error_of_the_tear_down(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import pytest
        KEPT = []

        @pytest.fixture
        def broken():
            yield
            raise RuntimeError("broken tear-down")

        def test_leak(broken):
            KEPT.append(bytearray(5_000_000))
    """)  # fmt: skip
    assert outcome.counts() == {"passed": 1, "errors": 1}
    assert "ERROR at teardown" in outcome.text and "broken tear-down" in outcome.text


def test_garbage_of_the_tests_before_does_not_hide_a_leak(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import gc, pytest
        KEPT = []
        gc.disable()

        @pytest.mark.parametrize("number", range(10))
        def test_garbage(number):
            pair = [bytearray(500_000)]
            pair.append(pair)

        def test_leak():
            KEPT.append(bytearray(3_000_000))
    """)  # fmt: skip
    assert outcome.verdicts()["test_leak"] == "leak" and outcome.counts() == {"passed": 10, "failed": 1}


def test_a_small_leak_is_found_where_the_limit_is_small(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        KEPT = []

        def test_leak():
            KEPT.append([object() for _ in range(2_000)])

        def test_fine():
            [object() for _ in range(2_000)]
    """, "--memwatch-growth=20KiB")  # fmt: skip
    assert outcome.counts() == {"failed": 1, "passed": 1}


def test_settling_takes_nothing_from_a_program_that_does_not_come_back_by_itself(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import inspect, linecache, typing

        CODE = "def made():\\n    return 1\\n"
        linecache.cache["<made>"] = len(CODE), None, CODE.splitlines(True), "<made>"
        exec(compile(CODE, "<made>", "exec"))
        OPTIONAL = typing.Optional[int]

        def test_generated_code_has_its_source():
            assert inspect.getsource(made) == CODE

        def test_a_type_is_the_same_object():
            assert typing.Optional[int] is OPTIONAL
    """)  # fmt: skip
    assert outcome.counts() == {"passed": 2}


def test_every_set_up_has_one_tear_down_for_other_plugins_and_a_clean_test_has_one_of_each(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("""
        COUNTS = {}

        def pytest_runtest_setup(item):
            item._span = item.name
            COUNTS[item.name] = COUNTS.get(item.name, 0) + 1

        def pytest_runtest_teardown(item, nextitem):
            assert item.funcargs["fixture"] == "alive"
            del item._span

        def pytest_sessionfinish(session):
            print(COUNTS)
    """)
    outcome = run(pytester, """
        import functools, pytest

        @functools.lru_cache
        def table(size):
            return bytearray(size)

        @pytest.fixture
        def fixture():
            yield "alive"

        @pytest.fixture
        def fills(fixture):
            yield
            table(6_000_000)

        def test_first(fixture): pass
        class TestOne:
            def test_warm(self, fixture): table(5_000_000)
        class TestTwo:
            def test_warm_late(self, fills): pass
        def test_last(fixture): pass
    """)  # fmt: skip
    assert outcome.counts() == {"passed": 4}
    assert list(outcome.verdicts().values()) == ["clean", "warm-up", "warm-up", "clean"]
    assert "'test_first': 1, 'test_warm': 3, 'test_warm_late': 2, 'test_last': 1" in outcome.text


def test_a_unittest_that_leaks_is_torn_down_without_an_error(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import unittest
        KEPT = []

        class TestCase(unittest.TestCase):
            def test_leak(self):
                KEPT.append(bytearray(5_000_000))
    """)  # fmt: skip
    assert outcome.counts() == {"failed": 1}


def test_a_repetition_that_exits_is_a_repetition_that_failed(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import sys
        KEPT = []

        def test_once():
            if KEPT:
                sys.exit("already initialised")
            KEPT.append(bytearray(5_000_000))
    """)  # fmt: skip
    assert outcome.counts() == {"passed": 1, "warnings": 1}
    assert "SystemExit: already initialised" in outcome.row("test_once")["note"]


def test_garbage_that_the_interpreter_collects_during_a_test_does_not_hide_its_leak(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import gc, pytest
        KEPT = []
        gc.disable()

        @pytest.mark.parametrize("number", range(12))
        def test_garbage(number):
            pair = [bytearray(900_000)]
            pair.append(pair)

        def test_leak():
            gc.collect()
            KEPT.append(bytearray(5_000_000))
    """)  # fmt: skip
    assert outcome.verdicts()["test_leak"] == "leak" and outcome.counts() == {"passed": 12, "failed": 1}


def test_mapped_memory_is_found_below_what_an_earlier_fixture_had_taken(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import mmap, pytest
        KEPT = []

        @pytest.fixture(scope="class")
        def wide():
            return bytearray(b"x" * 100_000_000)

        class TestWide:
            def test_uses(self, wide): pass
            def test_uses_again(self, wide): pass

        def test_leak():
            KEPT.append(mmap.mmap(-1, 8_000_000))
            KEPT[-1].write(bytes(8_000_000))
    """)  # fmt: skip
    assert outcome.counts() == {"passed": 2, "failed": 1} and outcome.row("test_leak")["metric"] == "rss"


@pytest.mark.parametrize("how", ["unittest.mock.Mock()", "unittest.mock.Mock(side_effect=RuntimeError('patched'))"])
def test_functions_of_the_system_that_a_test_replaces_are_not_the_gates(pytester: pytest.Pytester, how: str) -> None:
    outcome = run(pytester, f"""
        import os, time, unittest.mock

        def test_patched(monkeypatch):
            for name in ("stat", "pread", "waitid", "listdir"):
                monkeypatch.setattr(os, name, {how})
            monkeypatch.setattr(time, "sleep", {how})

        def test_after(): pass
    """)  # fmt: skip
    assert outcome.counts() == {"passed": 2} and set(outcome.verdicts().values()) == {"clean"}
    assert outcome.row("test_patched")["note"] is None


def test_a_reading_that_fails_is_a_note_and_no_failure(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import sys
        KEPT = []

        def test_patched(monkeypatch):
            KEPT.append(bytearray(5_000_000))
            monkeypatch.delattr(sys, "getallocatedblocks")

        def test_leak():
            KEPT.append(bytearray(5_000_000))
    """)  # fmt: skip
    assert outcome.counts() == {"passed": 1, "failed": 1}
    assert outcome.row("test_patched")["note"].startswith("not judged: memory could not be read (AttributeError: ")
    assert outcome.row("test_leak")["verdict"] == "leak"


def test_a_suspicion_is_no_failure_where_warnings_are_errors(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        KEPT = []

        def test_once():
            assert not KEPT
            KEPT.append(bytearray(5_000_000))
    """, "-W", "error")  # fmt: skip
    assert outcome.counts() == {"passed": 1, "warnings": 1} and outcome.row("test_once")["verdict"] == "suspect"


def test_a_session_without_sleep_keeps_its_verdicts(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import pytest, time, memwatch
        KEPT = []

        @pytest.fixture(scope="session", autouse=True)
        def awake():
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(time, "sleep", lambda seconds: 1 / 0)
                yield

        @pytest.mark.xfail(strict=True, raises=memwatch.MemoryGrowth)
        def test_leak():
            KEPT.append(bytearray(5_000_000))
    """)  # fmt: skip
    assert outcome.counts() == {"xfailed": 1} and outcome.row("test_leak")["holders"]


def test_warnings_that_pytest_records_are_not_the_tests_and_are_told_once(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import warnings
        KEPT = []

        def test_warns():
            for number in range(4000):
                warnings.warn(f"old {number}", DeprecationWarning)

        def test_leak():
            warnings.warn("older", DeprecationWarning)
            KEPT.append(bytearray(5_000_000))
    """)  # fmt: skip
    assert outcome.counts() == {"passed": 1, "failed": 1, "warnings": 4001}
    assert outcome.verdicts() == {"test_warns": "clean", "test_leak": "leak"} and outcome.row("test_warns")["reruns"] == 0


def test_rerun_0_sees_mapped_memory_too(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import mmap
        KEPT = []

        def test_leak():
            KEPT.append(mmap.mmap(-1, 8_000_000))
            KEPT[-1].write(bytes(8_000_000))
    """, "--memwatch-rerun=0")  # fmt: skip
    assert outcome.counts() == {"failed": 1} and outcome.row("test_leak")["metric"] == "rss"


def test_a_test_with_a_failed_subtest_is_not_judged(pytester: pytest.Pytester) -> None:
    pytest.importorskip("_pytest.subtests", reason="pytest 9")
    outcome = run(pytester, """
        import unittest
        KEPT = []

        def test_fixture(subtests):
            with subtests.test("one"):
                assert 0
            KEPT.append(bytearray(5_000_000))

        class TestCase(unittest.TestCase):
            def test_case(self):
                with self.subTest("one"):
                    self.fail("zero")
                KEPT.append(bytearray(5_000_000))
    """)  # fmt: skip
    assert "MemoryGrowth" not in outcome.text and set(outcome.verdicts().values()) == {"clean"}
    assert outcome.row("test_case")["note"] == outcome.row("test_fixture")["note"] == "failed or skipped: not judged"


def test_an_object_of_the_module_that_will_not_tell_its_class_is_left_alone(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        class Proxy:
            def __getattribute__(self, name):
                raise RuntimeError(f"no {name} outside a request")

        proxy = Proxy()

        def test_fine(): pass
    """, "--memwatch-peak=1GB", "--memwatch-engine=auto")  # fmt: skip
    assert outcome.counts() == {"passed": 1}


def test_mapped_memory_names_no_holder_that_did_not_hold_it(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import ctypes, mmap
        NAMES, KEPT = [], []
        libc = ctypes.CDLL(None)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]

        def test_foreign():
            NAMES.append([f"name {number}" for number in range(2000)])
            ctypes.memset(libc.mmap(None, 8_000_000, 3, 0x22, -1, 0), 1, 8_000_000)

        def test_object():
            KEPT.append(mmap.mmap(-1, 8_000_000))
            KEPT[-1].write(bytes(8_000_000))
    """)  # fmt: skip
    assert outcome.verdicts() == {"test_foreign": "leak", "test_object": "leak"}
    assert outcome.row("test_foreign")["metric"] == "rss" and "NAMES" not in outcome.row("test_foreign")["message"]


def test_what_the_program_has_frozen_stays_frozen(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("import gc; KEPT = [[] for _ in range(10_000)]; gc.collect(); gc.freeze()")
    outcome = run(pytester, """
        from gc import get_freeze_count
        COUNT = get_freeze_count()

        def test_frozen():
            assert 10_000 < get_freeze_count() <= COUNT
    """)  # fmt: skip
    assert outcome.counts() == {"passed": 1}


def test_a_leak_of_a_tear_down_is_found_beside_fixtures_that_look_into_the_stash(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import pytest
        KEPT = []

        @pytest.fixture
        def leaky(tmp_path, caplog):
            yield
            KEPT.append(bytearray(4_000_000))

        def test_shares(leaky): pass
        def test_last(leaky): pass
    """)  # fmt: skip
    assert outcome.counts() == {"passed": 2, "errors": 2} and set(outcome.verdicts().values()) == {"leak"}


def test_what_a_failed_or_judged_test_leaves_to_the_collector_hides_no_leak_of_the_next(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import pytest
        KEPT = []

        @pytest.mark.xfail(reason="known")
        def test_fails():
            file = open(__file__)
            assert 0

        def test_leaves_a_file():
            KEPT.append(open(__file__))

        def test_first():
            KEPT.append(bytearray(5_000_000))

        @pytest.mark.parametrize("number", range(2))
        def test_just_over(number):
            KEPT.append(bytearray(1_100_000))
    """)  # fmt: skip
    verdicts = outcome.verdicts()
    assert verdicts.pop("test_fails") == "clean" and len(verdicts) == 4 and set(verdicts.values()) == {"leak"}
