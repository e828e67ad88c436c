"""Settings from the command line, the environment and the ini file; limits by marker, path and parameter."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable

import pytest
from plugin_runs import LOADED, Outcome, run

pytest_plugins = ["pytester"]

Probe = Callable[[Outcome, pytest.Pytester], bool]

LEAK = """
    KEPT = []

    def test_leak():
        KEPT.append(bytearray(5_000_000))
"""
WARM = """
    import functools

    @functools.lru_cache
    def table():
        return bytearray(5_000_000)

    def test_warm():
        table()
"""
ONCE = """
    KEPT = []

    def test_once():
        assert not KEPT
        KEPT.append(bytearray(5_000_000))
"""
FILE = """
    KEPT = []

    def test_file():
        KEPT.append(open(__file__))
"""
PEAK = """
    def test_peak():
        bytearray(30_000_000)
"""
FROZEN = """
    def test_frozen():
        import gc
        assert gc.get_freeze_count() < 1000  # Python 3.12 itself begins with 375
"""


def _passed(outcome: Outcome, pytester: pytest.Pytester) -> bool:
    return outcome.counts() == {"passed": 1}


def _failed(outcome: Outcome, pytester: pytest.Pytester) -> bool:
    return outcome.counts() == {"failed": 1}


def _reruns(number: int) -> Probe:
    return lambda outcome, pytester: outcome.data["tests"][0]["reruns"] == number


def _written(name: str) -> Probe:
    return lambda outcome, pytester: (pytester.path / name).exists()


# name, value, test file, what shows that it took effect, and whether that shows without it
CASES: list[tuple[str, str, str, Probe]] = [
    ("growth", "6MiB", LEAK, _passed),
    ("max-growth", "6MiB", LEAK, _passed),
    ("peak", "20MB", PEAK, _failed),
    ("max-peak", "20MB", PEAK, _failed),
    ("mode", "warn", LEAK, lambda outcome, pytester: outcome.counts() == {"passed": 1, "warnings": 1}),
    ("rerun", "5", LEAK, lambda outcome, pytester: len(outcome.data["tests"][0]["repeats"]) == 5),
    ("warmup", "2", WARM, _reruns(3)),
    ("resources", "threads", FILE, _passed),
    ("strict", "yes", ONCE, _failed),
    ("limits", "test_*.py: growth=6MiB", LEAK, _passed),
    ("engine", "rss", PEAK, lambda outcome, pytester: "peak=" not in outcome.text),
    ("gc-freeze", "no", FROZEN, _passed),
    ("top", "0", WARM, lambda outcome, pytester: "warm-ups" in outcome.text and "test_warm  (again" not in outcome.text),
    ("json", "other.json", LEAK, _written("other.json")),
    ("md", "out/summary.md", LEAK, _written("out/summary.md")),
    ("html", "page.html", LEAK, _written("page.html")),
    ("github", "on", LEAK, lambda outcome, pytester: "::error file=test_it.py,line=3,title=memwatch" in outcome.text),
    ("baseline", "base.json", LEAK, _written("base.json")),
    ("update", "yes", LEAK, lambda outcome, pytester: "baseline written anew" in outcome.text),
    ("fail-on", "growth:1%", LEAK, lambda outcome, pytester: "1 worse" in outcome.text),
    ("crash-log", "crashes", LEAK, _written("crashes")),
]


@pytest.mark.parametrize("place", ["option", "environment", "ini"])
@pytest.mark.parametrize(("name", "value", "source", "probe"), CASES, ids=[case[0] for case in CASES])
def test_every_option_works_from_the_command_line_the_environment_and_the_ini(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, name: str, value: str, source: str, probe: Probe, place: str
) -> None:
    arguments: list[str] = []
    lines = ["[pytest]"]
    key = name.replace("-", "_")
    if name in ("update", "fail-on"):
        arguments.append("--memwatch-baseline=base.json")
        (pytester.path / "base.json").write_text(
            '{"memwatch": "pytest-baseline", "tests": {"test_it.py::test_leak": {"growth": 9}}}'
        )
    if name == "engine":
        arguments.append("--memwatch-peak=1GB")
    if place == "option":
        flag = f"--no-memwatch-{name}" if value == "no" else f"--memwatch-{name}"
        arguments.append(flag if value in ("yes", "no") else f"{flag}={value}")
    elif place == "environment":
        monkeypatch.setenv(f"MEMWATCH_PYTEST_{key.upper()}", value)
    else:
        lines.append(f"memwatch_{key} = {value}")
    pytester.path.joinpath("pytest.ini").write_text("\n".join(lines) + "\n")
    if name == "json" and place != "option":
        pytester.makepyfile(test_it=textwrap.dedent(source))
        result = pytester.runpytest_subprocess(*LOADED, "--memwatch", *arguments)
        assert (pytester.path / "other.json").exists(), result.stdout.str()
        return
    outcome = run(pytester, source, *arguments)
    assert probe(outcome, pytester), outcome.text


@pytest.mark.parametrize("place", ["environment", "ini"])
def test_the_gate_is_switched_on_from_the_environment_or_the_ini_and_off_again(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    if place == "environment":
        monkeypatch.setenv("MEMWATCH_PYTEST_ON", "1")
    else:
        pytester.makeini("[pytest]\nmemwatch = true\n")
    assert run(pytester, LEAK, on=False).counts() == {"failed": 1}
    assert run(pytester, None, "--no-memwatch", on=False).counts() == {"passed": 1}


def test_the_command_line_wins_over_the_environment_and_that_over_the_ini(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makeini("[pytest]\nmemwatch_growth = 1KiB\n")
    assert run(pytester, LEAK).counts() == {"failed": 1}
    monkeypatch.setenv("MEMWATCH_PYTEST_GROWTH", "6MiB")
    assert run(pytester, None).counts() == {"passed": 1}
    assert run(pytester, None, "--memwatch-growth=1MiB").counts() == {"failed": 1}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--memwatch-growth=lots"], "--memwatch-growth='lots' is not a number with a unit of bytes"),
        (["--memwatch-mode=shout"], "--memwatch-mode='shout' is none of fail, warn, report"),
        (["--memwatch-rerun=-1"], "--memwatch-rerun='-1' is not a whole number"),
        (["--memwatch-fail-on=growth"], "is not a rule such as growth:20%+1MB"),
        (["--memwatch-limits=tests/**"], "is not 'GLOB: KEY=VALUE"),
        (["--memwatch-limits=tests/**: size=1MB"], "unknown; known are growth"),
        (["--memwatch-resources=files"], "'files' is none of fds, threads, children, tasks"),
    ],
)
def test_a_malformed_setting_is_a_usage_error_that_says_where_it_stands(
    pytester: pytest.Pytester, arguments: list[str], told: str
) -> None:
    pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest_subprocess(*LOADED, "--memwatch", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert told in result.stderr.str() and "Traceback" not in result.stderr.str()


@pytest.mark.parametrize(
    ("marker", "told"),
    [
        ("memwatch(growth='lots')", "growth='lots' is not a number with a unit"),
        ("memwatch(groth='1MB')", "memwatch(groth=…): unknown"),
        ("memwatch('1MB')", "limits are named"),
        ("memwatch(fds=-1)", "fds=-1 is not a whole number"),
        ("limit_memory('lots')", "limit_memory('lots'): not a size such as '24 MB'"),
        ("limit_leaks(24)", "limit_leaks(24): not a size"),
    ],
)
def test_a_malformed_marker_is_a_usage_error_that_names_the_test(pytester: pytest.Pytester, marker: str, told: str) -> None:
    pytester.makepyfile(f"import pytest\n@pytest.mark.{marker}\ndef test_marked(): pass\ndef test_other(): assert False")
    result = pytester.runpytest_subprocess(*LOADED)
    text = result.stdout.str() + result.stderr.str()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "::test_marked: " in text and told in text and "INTERNALERROR" not in text


def test_the_closest_limit_wins_key_by_key(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import pytest
        pytestmark = pytest.mark.memwatch(growth="1KiB", fds=5)
        KEPT = []

        @pytest.mark.memwatch(growth="2MiB")
        class TestIt:
            @pytest.mark.memwatch(growth="100MB")
            def test_large(self):
                KEPT.append(bytearray(5_000_000))
                KEPT.append(open(__file__))

            def test_class(self):
                KEPT.append(bytearray(5_000_000))

        def test_module():
            KEPT.append(bytearray(50_000))

        @pytest.mark.memwatch(False, reason="issue 12")
        def test_off():
            KEPT.append(bytearray(50_000_000))
    """, on=False)  # fmt: skip
    assert outcome.counts() == {"passed": 2, "failed": 2}
    assert outcome.verdicts() == {"test_large": "clean", "test_class": "leak", "test_module": "leak"}


def test_a_parameter_has_a_limit_of_its_own(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import pytest
        KEPT = []

        @pytest.mark.parametrize("size", [
            pytest.param(3_000_000, marks=pytest.mark.memwatch(growth="4MB")),
            5_000_000,
        ])
        def test_size(size):
            KEPT.append(bytearray(size))
    """)  # fmt: skip
    assert outcome.counts() == {"passed": 1, "failed": 1}
    assert outcome.row("test_size[5000000]")["verdict"] == "leak"


def test_limits_by_path_hold_below_it_and_a_marker_is_closer(pytester: pytest.Pytester) -> None:
    source = "import pytest\nKEPT = []\ndef test_leak():\n    KEPT.append(bytearray(5_000_000))\n"
    source += "@pytest.mark.memwatch(growth='1MB')\ndef test_marked():\n    KEPT.append(bytearray(5_000_000))\n"
    for folder in ("unit", "integration/deep"):
        path = pytester.path / "tests" / folder
        path.mkdir(parents=True)
        (path / f"test_{folder[:4]}.py").write_text(source)
    pytester.makeini("[pytest]\nmemwatch_limits =\n    # slow ones\n    tests/integration/**: growth=20MB, fds=2\n")
    outcome = run(pytester, None)
    found = {row["nodeid"]: row["verdict"] for row in outcome.data["tests"]}
    assert found == {
        "tests/unit/test_unit.py::test_leak": "leak",
        "tests/unit/test_unit.py::test_marked": "leak",
        "tests/integration/deep/test_inte.py::test_leak": "clean",
        "tests/integration/deep/test_inte.py::test_marked": "leak",
    }


def test_only_marked_tests_are_checked_without_the_flag(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import pytest
        KEPT = []

        @pytest.mark.memwatch
        def test_marked():
            KEPT.append(bytearray(5_000_000))

        def test_unmarked():
            KEPT.append(bytearray(5_000_000))
    """, "--strict-markers", on=False)  # fmt: skip
    assert outcome.counts() == {"passed": 1, "failed": 1} and outcome.verdicts() == {"test_marked": "leak"}


def test_an_installed_plugin_that_nobody_asked_for_changes_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(textwrap.dedent(LEAK) + """
import sys, gc, threading

def test_inert(pytestconfig):
    assert not [name for name in sys.modules if name.startswith(("memwatch.evidence", "memwatch.watcher", "memwatch.vitals"))]
    assert gc.get_freeze_count() < 1000 and threading.active_count() == 1
    assert "memray" not in sys.modules and "tracemalloc" not in sys.modules
    assert not pytestconfig.pluginmanager.hasplugin("memwatch-gate")
""")  # fmt: skip
    result = pytester.runpytest_subprocess(*LOADED, "-p", "no:warnings", "-p", "no:unraisableexception")
    assert result.parseoutcomes() == {"passed": 2}, result.stdout.str()
    assert "memwatch" not in "\n".join(line for line in result.outlines if not line.startswith(("plugins:", "rootdir:")))
    assert not (pytester.path / ".pytest_cache" / "d" / "memwatch").exists()


ALIASES = """
    import pytest
    KEPT = []

    @pytest.mark.limit_memory("24 MB")
    def test_below():
        bytearray(24 * 1024 * 1024 - 200_000)

    @pytest.mark.limit_memory("24 MB")
    def test_as_much():
        bytearray(24 * 1024 * 1024)

    @pytest.mark.limit_leaks("1 MB")
    def test_leaks():
        KEPT.append(bytearray(5_000_000))

    @pytest.mark.limit_leaks("1 MB", filter_fn=lambda stack: "helper" not in stack.frames[0].function)
    def test_filtered():
        helper()

    def helper():
        KEPT.append(bytearray(5_000_000))

    @pytest.mark.limit_leaked_objects()
    def test_objects():
        KEPT.append([1])

    @pytest.mark.limit_leaked_objects(filter_fn=lambda thing: isinstance(thing, dict))
    def test_other_objects():
        KEPT.append([1])

    @pytest.mark.limit_leaked_objects()
    def test_no_objects():
        assert [1] != []

    def test_unmarked():
        KEPT.append(bytearray(5_000_000))
"""


@pytest.mark.parametrize("engine", ["auto", "tracemalloc"])
def test_the_markers_of_pytest_memray_work_with_its_boundary_and_units(pytester: pytest.Pytester, engine: str) -> None:
    outcome = run(pytester, ALIASES, "--strict-markers", f"--memwatch-engine={engine}", on=False)
    assert outcome.verdicts() == {
        "test_below": "clean",
        "test_as_much": "leak",
        "test_leaks": "leak",
        "test_filtered": "clean",
        "test_objects": "leak",
        "test_other_objects": "clean",
        "test_no_objects": "clean",
    }, outcome.text
    assert "Test was limited to 24.0 MiB but allocated 24.0 MiB" in outcome.text
    assert outcome.row("test_as_much")["peak_engine"] == ("memray" if engine == "auto" else engine)


def test_a_peak_that_only_the_first_run_has_is_a_warm_up(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, """
        import functools, pytest

        @functools.lru_cache
        def table():
            return len(bytearray(30_000_000))

        @pytest.mark.memwatch(peak="5MB")
        def test_first():
            table()
    """)  # fmt: skip
    assert outcome.verdicts() == {"test_first": "warm-up"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"memwatch": "pytest-baseline", "tests": {"test_it.py::test_it": 5}}', "tests['test_it.py::test_it'] is no object"),
        (
            '{"memwatch": "pytest-baseline", "tests": {"test_it.py::test_it": {"growth": 1e999}}}',
            "tests['test_it.py::test_it'].growth is not a whole number",
        ),
        ("[" * 100_000, "recursion"),
        (None, "/dev/full is not a baseline"),
    ],
)
def test_a_malformed_baseline_is_a_usage_error_before_any_test(pytester: pytest.Pytester, content: str | None, told: str) -> None:
    name = "/dev/full" if content is None else "base.json"
    if content is not None:
        (pytester.path / name).write_text(content)
    pytester.makepyfile("def test_it(): open('ran', 'w')")
    result = pytester.runpytest_subprocess(*LOADED, "--memwatch", f"--memwatch-baseline={name}", timeout=20)
    text = result.stderr.str()
    assert result.ret == pytest.ExitCode.USAGE_ERROR and f"memwatch: {name} is not a baseline" in text and told in text
    assert "Traceback" not in text and not (pytester.path / "ran").exists()


MALFORMED = {
    "memwatch(ignore=3)": "ignore=3 is not a pattern",
    "memwatch(ignore=[3])": "ignore=[3] is not a pattern",
    "memwatch(rerun='²')": "rerun='²' is not a whole number",
    "memwatch(rerun='9' * 5000)": "is not a whole number",
    "memwatch(strict='maybe')": "strict='maybe' is neither yes nor no",
    "memwatch(False, growth='lots')": "growth='lots' is not a number",
    "memwatch(resources='files')": "'files' is none of fds, threads, children, tasks",
    "limit_memory('1 MBfoo')": "limit_memory('1 MBfoo'): not a size",
    "limit_memory('1 MB', '2 MB')": "limit_memory takes one limit",
    "limit_leaks('1 MB', filter_fn=3)": "limit_leaks(filter_fn=3): not a function",
    "limit_leaked_objects('x')": "limit_leaked_objects takes no limit",
    "limit_leaked_objects(foo=1)": "limit_leaked_objects(foo=…): unknown",
}


def test_all_malformed_markers_are_told_at_once_each_with_its_test(pytester: pytest.Pytester) -> None:
    lines = ["import pytest"]
    lines += [f"@pytest.mark.{marker}\ndef test_{number}(): pass" for number, marker in enumerate(MALFORMED)]
    lines += ["@pytest.mark.memwatch(resources='fds')\ndef test_fine(): pass"]
    pytester.makepyfile("\n".join(lines))
    result = pytester.runpytest_subprocess(*LOADED)
    text = result.stderr.str()
    assert result.ret == pytest.ExitCode.USAGE_ERROR and "::test_fine" not in text
    for number, told in enumerate(MALFORMED.values()):
        assert re.search(rf"::test_{number}: .*{re.escape(told)}", text), told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--memwatch-rerun=²"], "--memwatch-rerun='²' is not a whole number"),
        (["--memwatch-limits=a: rerun=²"], "memwatch_limits: 'a: rerun=²': rerun='²' is not a whole number"),
        (["--memwatch-engine=memray", "--memwatch-peak=1GB"], "the engine memray (--memwatch-engine) is not installed"),
    ],
)
def test_what_cannot_work_is_a_usage_error_before_any_test(pytester: pytest.Pytester, arguments: list[str], told: str) -> None:
    pytester.makeconftest("import importlib.util; importlib.util.find_spec = lambda name: None")
    pytester.makepyfile("def test_it(): open('ran', 'w')")
    result = pytester.runpytest_subprocess(*LOADED, "--memwatch", *arguments)
    text = result.stdout.str() + result.stderr.str()
    assert result.ret == pytest.ExitCode.USAGE_ERROR and told in text and "INTERNALERROR" not in text
    assert not (pytester.path / "ran").exists()
