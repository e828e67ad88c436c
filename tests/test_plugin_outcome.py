"""The outcome is an exception in the right phase, so that everything that knows of failures works; and what is said of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ET

import pytest
from plugin_runs import LOADED, run

pytest_plugins = ["pytester"]

LEAK = """
    KEPT = []

    def test_leak():
        KEPT.append(bytearray(5_000_000))

    def test_after():
        pass
"""


def test_a_strict_xfail_is_met_by_a_leak_and_missed_without_one(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import pytest
        KEPT = []

        @pytest.mark.xfail(strict=True, reason="issue 12")
        def test_leaks():
            KEPT.append(bytearray(5_000_000))

        @pytest.mark.xfail(strict=True, raises=AssertionError)
        def test_leaks_too():
            KEPT.append(bytearray(5_000_000))

        @pytest.mark.xfail(strict=True)
        def test_leaks_no_more():
            pass
    """)  # fmt: skip
    assert outcome.counts() == {"xfailed": 2, "failed": 1} and "XPASS(strict)" in outcome.text


def test_exitfirst_stops_at_a_leak(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, LEAK, "-x")
    assert outcome.counts() == {"failed": 1} and outcome.status == 1


def under_pdb(pytester: pytest.Pytester, source: str, commands: str) -> subprocess.CompletedProcess[str]:
    """A run whose debugger is typed to."""
    pytester.makepyfile(test_it=textwrap.dedent(source))
    command = [sys.executable, "-m", "pytest", *LOADED, "--memwatch", "--pdb", "-x", "test_it.py"]
    return subprocess.run(command, input=commands, capture_output=True, text=True, cwd=pytester.path, timeout=60, check=False)


def test_pdb_enters_at_a_leak_with_the_test_at_hand(pytester: pytest.Pytester) -> None:
    done = under_pdb(pytester, LEAK, "p 'in the debugger', len(item.module.KEPT) > 3\nc\n")
    assert "('in the debugger', True)" in done.stdout and "MemoryGrowth" in done.stdout and done.returncode == 1


def test_mode_warn_warns_and_mode_report_only_reports(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, LEAK, "--memwatch-mode=warn")
    assert outcome.counts() == {"passed": 2, "warnings": 1} and "MemwatchWarning: test_it.py::test_leak: retains" in outcome.text
    outcome = run(pytester, LEAK, "--memwatch-mode=report")
    assert outcome.counts() == {"passed": 2} and outcome.verdicts()["test_leak"] == "leak" and "leak: test_it" in outcome.text


def test_a_failure_section_has_ten_lines_at_most_and_no_frames_of_ours(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import pytest
        KEPT = []

        @pytest.fixture
        def leaky():
            KEPT.append([bytearray(100) for _ in range(20_000)])
            for _ in range(5):
                KEPT.append(open(__file__))
                KEPT.append(bytearray(2_000_000))

        def test_leak(leaky):
            pass
    """)  # fmt: skip
    section = re.search(r"_ test_leak _+\n(.*?)\n=", outcome.text, re.DOTALL)
    assert section is not None
    lines = section[1].splitlines()
    assert len(lines) <= 10 and lines[0].startswith("MemoryGrowth: ")
    assert "pytest_memwatch" not in section[1]
    summary = [line for line in outcome.text.splitlines() if line.startswith("FAILED test_it.py::test_leak - MemoryGrowth: ")]
    assert len(summary) == 1


def test_a_fixture_is_told_with_the_file_it_stands_in(pytester: pytest.Pytester) -> None:
    for file in ("conftest.py", "below/conftest.py"):
        path = pytester.path / file
        path.parent.mkdir(exist_ok=True)
        name = "big_below" if "below" in file else "big_session"
        path.write_text(f"import pytest\n@pytest.fixture(scope='session')\ndef {name}(): return bytearray(3_000_000)\n")
    (pytester.path / "below" / "test_below.py").write_text("def test_it(big_session, big_below): pass")
    outcome = run(pytester, """
        import pytest

        @pytest.fixture(scope="module")
        def big_module():
            return bytearray(3_000_000)

        def test_it(big_module, tmp_path_factory):
            pass
    """)  # fmt: skip
    assert {one["name"] for one in outcome.data["fixtures"]} == {
        "big_session (conftest.py)", "big_below (below/conftest.py)", "big_module (test_it.py)", "tmp_path_factory (plugin)"
    }  # fmt: skip


def test_a_warm_up_is_told_by_what_warmed_up_the_largest_first(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import functools, socket
        KEPT = []

        @functools.cache
        def connection():
            return socket.socket()

        @functools.cache
        def cached(size):
            return bytearray(size)

        def test_small():
            cached(3_000_000)

        def test_socket():
            connection()

        def test_large():
            cached(9_000_000)
    """, "--memwatch-md=out.md")  # fmt: skip
    assert outcome.verdicts() == dict.fromkeys(("test_small", "test_socket", "test_large"), "warm-up")
    large, small, fd = re.search(r"warm-ups.*: 3\n(.*)\n(.*)\n(.*)\n", outcome.text).groups()  # type: ignore[union-attr]
    assert re.match(r"  test_it.py::test_large: 8\.[56]", large) and " on the first run, " in large and "MiB again" not in large
    assert small.startswith("  test_it.py::test_small: 2.8")
    assert fd == "  test_it.py::test_socket: 1 open descriptor on the first run, none again"
    assert "test_socket: 1 open descriptor on the first run, none again" in (pytester.path / "out.md").read_text()


def test_the_same_leak_in_many_tests_is_told_once_at_the_end(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import pytest
        KEPT = []

        def helper():
            KEPT.append(bytearray(5_000_000))

        @pytest.mark.parametrize("number", range(3))
        def test_leak(number):
            helper()
    """)  # fmt: skip
    assert outcome.counts() == {"failed": 3}
    summary = outcome.text[outcome.text.index("= memwatch =") :]
    assert summary.count("leak: ") == 1 and "(alike in 2 more: " in summary
    assert [len(group["tests"]) for group in outcome.data["groups"]] == [3]


def test_the_summary_has_a_line_for_each_distinct_leak_as_many_as_asked_for_and_counts_peaks_apart(
    pytester: pytest.Pytester,
) -> None:
    source = """
        import pytest
        KEPT = []

        @pytest.mark.memwatch(peak="5MB")
        def test_peak():
            bytearray(9_000_000)
    """ + "".join(f"\n        def test_leak_{i}():\n            KEPT.append(bytearray({i + 2}_000_000))\n" for i in range(4))
    outcome = run(pytester, source, "--memwatch-top=2", "--memwatch-md=out.md", "--memwatch-html=out.html")
    assert outcome.counts() == {"failed": 5}
    summary = outcome.text[outcome.text.index("= memwatch =") : outcome.text.index("short test summary")].splitlines()[1:]
    assert summary[0].startswith("peak: test_it.py::test_peak: Test was limited to 4.77 MiB but allocated 8.5")
    assert summary[1] == "leak: test_it.py::test_leak_3: retains 4.77 MiB per run, limit 1.00 MiB"
    assert summary[2] == "and 3 more"
    assert summary[-2].startswith("5 tests checked: 4 leak, 1 peak, 0 suspect, 0 warm up")
    assert "4 leak, 1 peak" in (pytester.path / "out.html").read_text()
    assert (pytester.path / "out.md").read_text().startswith("### memwatch: 4 leak, 1 peak")
    report = run(pytester, None, "--memwatch-mode=report", "-k", "leak_3").text
    assert "      allocated at  test_it.py:" in report  # no failure has told it


def test_what_the_plugin_itself_holds_between_its_two_looks_at_the_heap_is_not_among_the_types_that_grew(
    pytester: pytest.Pytester,
) -> None:
    outcome = run(pytester, LEAK.replace("5_000_000", "100_000"), "--memwatch-growth=50kB")
    grown = {one["label"]: one["count"] for one in outcome.row("test_leak")["types"]}
    assert grown == {"bytearray": 1}
    assert "grew  bytearray +1 (97.7 KiB)\n" in outcome.text


def test_junit_has_the_failure_and_the_numbers_as_properties(pytester: pytest.Pytester) -> None:
    run(pytester, LEAK, "--junitxml=junit.xml")
    cases = {case.get("name"): case for case in ET.parse(pytester.path / "junit.xml").getroot().iter("testcase")}
    failure = cases["test_leak"].find("failure")
    assert failure is not None and "retains 4.77 MiB per run" in str(failure.get("message"))
    properties = {one.get("name"): one.get("value") for one in cases["test_leak"].iter("property")}
    assert properties["memwatch_verdict"] == "leak" and abs(int(str(properties["memwatch_growth_bytes"])) - 5_000_000) < 200_000
    assert {one.get("value") for one in cases["test_after"].iter("property")} >= {"clean"}


def test_the_reports_say_the_same_as_the_terminal(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import pytest
        KEPT = []

        @pytest.fixture(scope="session")
        def database():
            return bytearray(3_000_000)

        def test_leak(database):
            KEPT.append(bytearray(5_000_000))
    """, "--memwatch-md=out.md", "--memwatch-html=out.html", "--memwatch-github=on")  # fmt: skip
    assert outcome.data["schema"] == 1 and outcome.data["suite"]["checked"] == 1
    assert outcome.data["suite"]["peak_rss"] > 10_000_000
    markdown = (pytester.path / "out.md").read_text()
    assert markdown.startswith("### memwatch: 1 leak") and "| test_it.py::test_leak | retains 4.77 MiB" in markdown
    page = (pytester.path / "out.html").read_text()
    assert (
        page.count('class="long ') == 2
        and page.count("<figure><svg") == 1
        and "test_it.py::test_leak" in page
        and "database" in page
    )
    assert "http:" not in page.replace("http://www.w3.org", "") and "https:" not in page
    assert "::error file=test_it.py,line=8,title=memwatch: leak::" in outcome.text


def test_the_page_shows_counts_as_counts_every_run_as_a_column_and_names_whole(pytester: pytest.Pytester) -> None:
    name = "test_" + "with_a_name_that_is_much_longer_than_what_a_line_can_bear_" * 2
    run(pytester, f"""
        import pytest
        KEPT = []

        def {name}():
            KEPT.extend([open(__file__), open(__file__)])

        def test_bytes():
            KEPT.append(bytearray(5_000_000))

        @pytest.mark.memwatch(peak="5MB")
        def test_peak():
            bytearray(9_000_000)
    """, "--memwatch-html=out.html")  # fmt: skip
    page = (pytester.path / "out.html").read_text()
    bars = dict(re.findall(r'<div class="name">([^<]*)</div>.*?<span class="size">([^<]*)</span>', page))
    assert bars[f"test_it.py::{name}"] == "2 open descriptors" and bars["test_it.py::test_bytes"] == "4.77 MiB"
    assert re.fullmatch(r"8.5\d MiB at its peak", bars["test_it.py::test_peak"])
    columns = {
        name: (part.count("<rect"), part.count('class="first"'), re.findall(r"<figcaption>(.*?)</figcaption>", part))
        for name, part in re.findall(r"<h3>test_it.py::(\w+).*?</h3>(.*?)<pre>", page)
    }
    assert columns[name] == (3, 0, ["re-runs: 2, 2, 2"])
    assert columns["test_bytes"][:2] == (4, 1) and columns["test_bytes"][2][0].endswith("re-runs: 4.77 MiB, 4.77 MiB, 4.77 MiB")
    assert columns["test_peak"][:2] == (1, 0)


def test_a_baseline_is_written_once_and_then_compared_with(pytester: pytest.Pytester) -> None:
    source = """
        import os
        KEPT = []

        def test_grows():
            KEPT.append(bytearray(int(os.environ["SIZE"])))

        def test_same():
            pass
    """
    arguments = ("--memwatch-growth=50MB", "--memwatch-baseline=base/line.json", "--memwatch-fail-on=growth:20%+1MB")
    pytester._monkeypatch.setenv("SIZE", "2000000")
    outcome = run(pytester, source, *arguments)
    assert outcome.status == 0 and "baseline written" in outcome.text
    assert run(pytester, None, *arguments).status == 0
    pytester._monkeypatch.setenv("SIZE", "3200000")
    assert run(pytester, None, *arguments).status == 0  # 20 % + 1 MB are allowed
    pytester._monkeypatch.setenv("SIZE", "9000000")
    outcome = run(pytester, None, *arguments)
    assert outcome.status == 1 and outcome.counts() == {"passed": 2}
    assert "worse: test_it.py::test_grows: growth 1.9" in outcome.text
    assert run(pytester, None, *arguments, "--memwatch-update").status == 1
    assert run(pytester, None, *arguments).status == 0


def test_a_baseline_none_of_whose_tests_ran_fails_and_a_mere_collection_neither_compares_nor_writes(
    pytester: pytest.Pytester,
) -> None:
    baseline = pytester.path / "base.json"
    assert run(pytester, "def test_it(): pass", "--memwatch-baseline=base.json", "--co").status == 0 and not baseline.exists()
    tests = {f"elsewhere/test_{number}.py::test": {"growth": 1} for number in range(3)}
    baseline.write_text(json.dumps({"schema": 1, "memwatch": "pytest-baseline", "tests": tests}))
    assert run(pytester, None, "--memwatch-baseline=base.json", "--co").status == 0
    outcome = run(pytester, None, "--memwatch-baseline=base.json")
    assert outcome.counts() == {"passed": 1} and outcome.status == 1 and "0 of 3 tests of the baseline ran" in outcome.text


def test_a_baseline_that_is_given_while_no_test_is_checked_is_warned_of(pytester: pytest.Pytester) -> None:
    (pytester.path / "base.json").write_text("{}")
    outcome = run(pytester, "def test_it(): pass", "--memwatch-baseline=base.json", on=False)
    assert outcome.counts() == {"passed": 1, "warnings": 1} and "no test is compared with base.json" in outcome.text


def test_a_file_that_is_no_baseline_is_a_usage_error(pytester: pytest.Pytester) -> None:
    (pytester.path / "base.json").write_text(json.dumps({"tests": 1}))
    pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest_subprocess(*LOADED, "--memwatch", "--memwatch-baseline=base.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR and "is not a baseline of memwatch's" in result.stderr.str()


def test_the_test_that_ran_when_the_process_was_killed_is_named_by_the_next_session(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import os, signal

        def test_fine():
            pass

        def test_killer():
            os.kill(os.getpid(), signal.SIGKILL)
    """)  # fmt: skip
    assert outcome.status == -9
    outcome = run(pytester, "def test_other(): pass")
    assert "killed: worker main was killed or crashed while it ran test_it.py::test_killer; RSS when it began" in outcome.text
    assert "killed:" not in run(pytester, None).text


IN_BLOCKS = """
    import weakref
    KEPT = []

    class Session:
        pass

    def test_block(memwatch):
        with memwatch.limit(growth="1MB"):  # line 8
            KEPT.append(bytearray(5_000_000))

    def test_point(memwatch):
        memwatch.checkpoint("start")
        KEPT.append(bytearray(5_000_000))
        memwatch.checkpoint("end", growth="1MB")  # line 14

    def test_collected(memwatch):
        KEPT.append(Session())
        memwatch.assert_collected(weakref.ref(KEPT[-1]))  # line 18

    def leaks():
        KEPT.append(bytearray(1000))

    def test_calls(memwatch):
        memwatch.assert_no_leak(leaks, times=20)  # line 24
"""


@pytest.mark.parametrize("style", ["long", "short", "line"])
def test_what_a_block_or_a_call_found_inside_a_test_is_told_with_the_line_of_the_test(
    pytester: pytest.Pytester, style: str
) -> None:
    outcome = run(pytester, IN_BLOCKS, f"--tb={style}", "--memwatch-md=out.md", "--memwatch-html=out.html")
    assert outcome.counts() == {"failed": 4}
    texts = (
        outcome.text[outcome.text.index("= memwatch =") :],
        (pytester.path / "out.md").read_text(),
        (pytester.path / "out.html").read_text(),
    )
    for line, name in ((8, "block"), (14, "point"), (18, "collected"), (24, "calls")):
        assert re.search(rf"test_it.py:{line}: ", outcome.text), outcome.text
        row = outcome.row(f"test_{name}")
        assert (
            row["verdict"] == "leak"
            and row["message"].endswith(f"at  test_it.py:{line}")
            and row["location"] == ["test_it.py", line]
        )
        assert all(f"test_{name}" in text for text in texts)
    assert "memwatch/gate" not in outcome.text and len(outcome.data["groups"]) == 4
    if style == "line":
        return
    failures = outcome.text[outcome.text.index("= FAILURES =") : outcome.text.index("= memwatch =")]
    assert 'with memwatch.limit(growth="1MB"):' in failures and "the block keeps 4.77 MiB" in failures


def test_a_block_that_fails_under_pdb_shows_the_frame_of_the_test(pytester: pytest.Pytester) -> None:
    done = under_pdb(pytester, IN_BLOCKS, "p len(KEPT), Session\nc\n")
    assert "(1, <class 'test_it.Session'>)" in done.stdout


def test_the_fixture_limits_a_block_and_shows_checkpoints(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import pytest
        KEPT = []

        def test_block(memwatch):
            with memwatch.limit(growth="1MB", peak="100MB") as measured:
                KEPT.append(bytearray(100_000))
            assert 100_000 <= measured.growth < 1_000_000
            with pytest.raises(AssertionError, match="the block keeps 4.77 MiB"):
                with memwatch.limit(growth="1MB"):
                    KEPT.append(bytearray(5_000_000))
            KEPT.clear()

        def test_checkpoints(memwatch):
            memwatch.checkpoint("start")
            KEPT.append(bytearray(500_000))
            memwatch.checkpoint("after load")
    """)  # fmt: skip
    assert outcome.counts() == {"passed": 2}
    points = outcome.row("test_checkpoints")["checkpoints"]
    assert [point["tag"] for point in points] == ["start", "after load"]
    assert abs(points[1]["growth"] - 500_000) < 50_000


def test_a_test_that_closes_all_descriptors_keeps_its_own_files_to_itself_and_is_not_told_as_killed(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(test_it="""
        import os
        FILES = []

        def test_closes():
            os.closerange(3, 200)
            FILES.extend(open(f"mine-{number}", "w") for number in range(20))

        def test_after():
            for file in FILES:
                file.write("mine")
                file.close()
    """)  # fmt: skip
    pytester.runpytest_subprocess(*LOADED, "--memwatch", "-s")  # the capture's descriptors are gone, too
    written = {path.read_text() for path in pytester.path.glob("mine-*")}
    assert written <= {"", "mine"} and len(list(pytester.path.glob("mine-*"))) == 20
    assert "killed:" not in run(pytester, "def test_fine(): pass").text


def test_files_that_cannot_be_written_are_told_beside_the_failures(pytester: pytest.Pytester) -> None:
    folder = pytester.mkdir("folder")
    names = (
        "--memwatch-md=/dev/full",
        "--memwatch-html=/proc/nope/x",
        f"--memwatch-json={folder}",
        "--memwatch-baseline=/proc/nope/x",
    )
    outcome = run(pytester, LEAK + "\n    def test_fails(): assert 0\n", *names)
    assert outcome.counts() == {"failed": 2, "passed": 1} and outcome.status == 1 and "MemoryGrowth: retains" in outcome.text
    told = [line for line in outcome.text.splitlines() if line.startswith("memwatch: not written: ")]
    assert len(told) == 4 and "No space left on device" in told[1] and "Is a directory" in told[0]


def test_a_file_that_cannot_be_written_is_no_success(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, "def test_fine(): pass", "--memwatch-json=/dev/full")
    assert outcome.counts() == {"passed": 1} and outcome.status == pytest.ExitCode.USAGE_ERROR


def test_a_leaked_file_whose_name_is_no_text_is_told_in_every_format(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import os
        KEPT = []

        def test_leak():
            KEPT.append(open(os.fsdecode(b"name-\\xff"), "w"))
    """, "--memwatch-md=out.md", "--memwatch-html=out.html", "--junitxml=junit.xml")  # fmt: skip
    assert outcome.counts() == {"failed": 1}
    assert "udcff" in (pytester.path / "out.html").read_text() and "udcff" in (pytester.path / "memwatch.json").read_text()
    assert "1 leak" in (pytester.path / "out.md").read_text()


SHARED = """
    import functools, pytest

    @functools.lru_cache
    def table():
        return bytearray(5_000_000)

    @pytest.fixture(scope="module")
    def db():
        return []

    def test_insert(db):
        table()
        db.append("row")

    def test_count(db):
        assert len(db) == 1
"""


def test_a_failure_after_a_repeated_test_of_its_module_says_so(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, SHARED)
    assert outcome.counts() == {"passed": 1, "failed": 1}
    assert "memwatch repeated test_insert before this test; --memwatch-rerun=0 or memwatch(rerun=0) on it" in outcome.text


def test_mode_report_repeats_no_test_that_shares_a_fixture(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, SHARED, "--memwatch-mode=report")
    assert outcome.counts() == {"passed": 2} and outcome.verdicts() == {"test_insert": "suspect", "test_count": "clean"}
    assert "not run again: it shares the fixture db" in outcome.row("test_insert")["note"]
