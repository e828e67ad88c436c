"""`memwatch run`: the command runs as it would without us, and is watched."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from memwatch.record import find_records, read_report

ROOT = Path(__file__).resolve().parent.parent
MEMWATCH = [sys.executable, "-m", "memwatch"]


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return tmp_path / "records"


@pytest.fixture
def environment(records: Path) -> dict[str, str]:
    return os.environ | {"MEMWATCH_DIR": str(records), "MEMWATCH_INTERVAL": "50ms"}


def run(*words: object, env: dict[str, str], **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MEMWATCH, "run", *map(str, words)], env=env, capture_output=True, text=True, timeout=60, check=False, **options
    )


def program(folder: Path, source: str, name: str = "program.py") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(source))
    return path


# -- as without us -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 3, 255])
def test_the_exit_status_is_the_commands(status: int, environment: dict[str, str]) -> None:
    assert run("--", sys.executable, "-c", f"raise SystemExit({status})", env=environment).returncode == status


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_death_by_a_signal_is_passed_on_as_death_by_that_signal(number: int, environment: dict[str, str]) -> None:
    killed = run("--", sys.executable, "-c", f"import os; os.kill(os.getpid(), {int(number)})", env=environment)
    assert killed.returncode == -number


def test_a_command_that_is_not_there_is_127_and_one_that_cannot_be_executed_126(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    missing = run("--", "no-such-command-here", env=environment)
    assert (missing.returncode, missing.stderr) == (127, "memwatch: no-such-command-here: command not found\n")
    refused = run("--", program(tmp_path, "pass"), env=environment)
    assert (refused.returncode, refused.stderr.count("\n")) == (126, 1)


def test_the_three_streams_are_the_commands_own(environment: dict[str, str]) -> None:
    source = "import sys; text = sys.stdin.read(); sys.stdout.write(text * 2); sys.stderr.write('to stderr')"
    done = run("--", sys.executable, "-c", source, env=environment, input="abc")
    assert (done.stdout, done.stderr) == ("abcabc", "to stderr")


def test_options_after_the_command_are_the_commands(environment: dict[str, str]) -> None:
    done = run(sys.executable, "-c", "import sys; print(sys.argv[1:])", "--interval", "--help", env=environment)
    assert done.stdout == "['--interval', '--help']\n"


def test_sys_path_and_the_users_sitecustomize_are_as_without_us(tmp_path: Path, environment: dict[str, str]) -> None:
    program(tmp_path, "import builtins; builtins.mine = __file__", "sitecustomize.py")
    source = "import sys, sitecustomize; print(sys.path, mine, sitecustomize.__file__, 'memwatch' in sys.modules)"
    environment |= {"PYTHONPATH": str(tmp_path)}
    bare = subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, text=True, check=True).stdout
    watched = run("--", sys.executable, "-c", source, env=environment)
    assert bare.endswith("False\n") and watched.stdout == bare.replace("False\n", "True\n")


def test_an_error_in_the_users_sitecustomize_is_told_as_python_tells_it(tmp_path: Path, environment: dict[str, str]) -> None:
    program(tmp_path, "import sys; 'memwatch' in sys.orig_argv or __import__('no_such_module_at_all')", "sitecustomize.py")
    environment |= {"PYTHONPATH": str(tmp_path)}
    words = [sys.executable, "-c", "pass"]
    bare = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stderr
    assert "no_such_module_at_all" in bare and run("--", *words, env=environment).stderr == bare


def test_another_module_called_memwatch_costs_one_line_and_nothing_else(tmp_path: Path, environment: dict[str, str]) -> None:
    environment |= {"PYTHONPATH": str(tmp_path)}
    program(tmp_path, "name = 'theirs'", "memwatch.py")
    words = [sys.executable, "-P", "-c", "import memwatch; print(memwatch.name)"]
    # The command line itself must be found too.
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from memwatch.cli import main; main()"
    whole = [sys.executable, "-P", "-c", start, "run", "--", *words]
    done = subprocess.run(whole, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr.count("\n") == 2, done.stderr
    first, second = done.stderr.splitlines()
    assert (done.stdout, done.returncode) == ("theirs\n", 0)
    assert "is not watched: ImportError: another module has the name memwatch" in first and "nothing was watched" in second


# -- signals -------------------------------------------------------------------------------------------------------------------

COUNTING = """
    import os, signal
    seen = []
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)  # written in the C handler: a signal just before os.read() would else wait for the next one

    def note(number, frame):
        seen.append(signal.Signals(number).name)

    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), note)
    print("ready", os.getpid(), flush=True)
    while "SIGUSR2" not in seen:
        os.read(reader, 1)
        print("seen", seen[-1], flush=True)
    print(seen, flush=True)
"""


@pytest.fixture
def counting(tmp_path: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    words = [*MEMWATCH, "run", "--", sys.executable, str(program(tmp_path, COUNTING))]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None and process.stdout.readline().startswith("ready")
        yield process
        process.kill()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_a_signal_sent_to_run_alone_reaches_the_command_once(name: str, counting: subprocess.Popen[str]) -> None:
    counting.send_signal(getattr(signal, name))
    assert counting.stdout is not None and counting.stdout.readline() == f"seen {name}\n"
    counting.send_signal(signal.SIGUSR2)  # passed on after the first: had that been passed on twice, it would be seen twice
    assert counting.communicate(timeout=30)[0].splitlines()[-1] == f"['{name}', 'SIGUSR2']"
    assert counting.returncode == 0


def test_the_thread_that_watches_takes_no_signals(environment: dict[str, str]) -> None:
    source = """
        import pathlib, time
        def blocked():
            found = {}
            for status in pathlib.Path("/proc/self/task").glob("*/status"):
                fields = dict(line.split(":\\t", 1) for line in status.read_text().splitlines() if ":\\t" in line)
                found[fields["Name"]] = int(fields["SigBlk"], 16)
            return found
        while "memwatch" not in blocked():  # it names itself when it begins
            time.sleep(0.01)
        print([bool(mask >> (number - 1) & 1) for name, mask in blocked().items() if name == "memwatch" for number in (2, 10, 15)])
        print([mask for name, mask in blocked().items() if name != "memwatch"])
    """
    done = run("--", sys.executable, "-c", textwrap.dedent(source), env=environment)
    assert done.stdout == "[True, True, True]\n[0]\n", done.stderr


class Terminal:
    """A program as the leader of a terminal of its own."""

    def __init__(self, *words: object, env: dict[str, str]) -> None:
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.execvpe(str(words[0]), list(map(str, words)), env)
        self.text = ""

    def expect(self, pattern: str) -> str:
        """Read on until *pattern* has come; returns its first group, and forgets what came before."""
        while not (match := re.search(pattern, self.text)):
            try:
                self.text += os.read(self.descriptor, 4096).decode()
            except OSError:
                raise AssertionError(f"{pattern!r} never came; the terminal shows {self.text!r}") from None
        self.text = self.text[match.end() :]
        return match[1] if match.groups() else match[0]

    def type(self, keys: str) -> None:
        os.write(self.descriptor, keys.encode())

    def status(self) -> int:
        return os.waitpid(self.pid, 0)[1]


def test_ctrl_c_reaches_the_command_once(tmp_path: Path, environment: dict[str, str]) -> None:
    terminal = Terminal(*MEMWATCH, "run", "--", sys.executable, program(tmp_path, COUNTING), env=environment)
    terminal.expect("ready")
    terminal.type("\x03")
    terminal.expect("seen SIGINT")
    os.kill(terminal.pid, signal.SIGUSR2)
    terminal.expect(r"\['SIGINT', 'SIGUSR2'\]")
    assert terminal.status() == 0


def test_ctrl_z_stops_both_and_fg_continues_both(tmp_path: Path, environment: dict[str, str]) -> None:
    shell = Terminal("bash", "--norc", "--noprofile", "-i", env=environment | {"PS1": "prompt: ", "TERM": "dumb"})
    source = "import os, sys; print('ready', os.getppid(), flush=True); print('read', sys.stdin.readline(), flush=True)"
    shell.type(shlex.join([*MEMWATCH, "run", "--", sys.executable, str(program(tmp_path, source))]) + "\n")
    shell.expect(r"ready (\d+)")
    shell.type("\x1a")
    shell.expect("Stopped")
    shell.type("fg\n")
    shell.expect("memwatch run")
    shell.type("hello\n")
    shell.expect("read hello")
    shell.type("exit\n")
    assert shell.status() == 0


def test_a_command_stopped_by_hand_does_not_stop_run(tmp_path: Path, environment: dict[str, str]) -> None:
    words = [*MEMWATCH, "run", "--", sys.executable, str(program(tmp_path, COUNTING))]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline().split()[1])
        os.kill(child, signal.SIGSTOP)
        process.send_signal(signal.SIGUSR2)
        os.kill(child, signal.SIGCONT)
        assert process.communicate(timeout=30)[0].splitlines()[-1] == "['SIGUSR2']"


# -- watched -------------------------------------------------------------------------------------------------------------------


def only_record(records: Path) -> dict[str, object]:
    (path,) = find_records(records)
    return read_report(path).to_dict()


def test_how_the_command_ended_is_in_its_record(records: Path, environment: dict[str, str]) -> None:
    run("--", sys.executable, "-c", "import time; time.sleep(0.2); raise SystemExit(3)", env=environment)
    process = only_record(records)["process"]
    assert (process["fate"], process["end"]) == ("exited", "exit status 3")  # type: ignore[index]


def test_a_command_that_was_killed_is_in_its_record_as_killed(records: Path, environment: dict[str, str]) -> None:
    run("--", sys.executable, "-c", "import os, time; time.sleep(0.3); os.kill(os.getpid(), 9)", env=environment)
    process = only_record(records)["process"]
    assert (process["fate"], process["end"]) == ("killed", "signal 9 (SIGKILL)")  # type: ignore[index]


def test_settings_reach_the_watcher(records: Path, environment: dict[str, str]) -> None:
    run(
        "--interval", "70ms", "--name", "api", "--label", "version=1.4.2", "--label", "team=shop", "--memory-limit", "333MiB",
        "--", sys.executable, "-c", "import time; time.sleep(0.3)", env=environment,
    )  # fmt: skip
    report = only_record(records)
    process = report["process"]
    assert (process["name"], process["interval_s"]) == ("api", 0.07)  # type: ignore[index]
    assert process["labels"] == {"version": "1.4.2", "team": "shop"}  # type: ignore[index]
    assert report["channels"]["limit"]["current"] == 333 * 1024**2  # type: ignore[index]


def test_every_setting_survives_the_way_through_the_environment() -> None:
    from memwatch import config
    from memwatch.cli.run import as_environment

    given = {
        "interval": "70ms", "growth_limit": "7%/h", "memory_limit": "333MiB", "warning": "65%", "critical": "900MB",
        "evidence": "off", "sample_every": "1MiB", "directory": "/somewhere", "name": "a b", "labels": {"a": "1", "b": "2"},
        "cleanup_interval": "off",
        "record_limit": "5MiB",
        "request_growth": "15MiB",
        "sinks": "sentry,webhook:https://h/x?a=1,2",
        "socket": "control",
    }  # fmt: skip
    assert set(given) == {setting.name for setting in config.SETTINGS}
    first = config.load(given, environ={})
    second = config.load({}, environ=as_environment(first))
    for setting in config.SETTINGS:
        if setting.name != "growth_limit":
            assert first.agrees(second, setting.name), setting.name
    assert second.growth_limit_of_limit_per_s == pytest.approx(first.growth_limit_of_limit_per_s)


def test_python_processes_that_the_command_starts_are_watched_too(
    tmp_path: Path, records: Path, environment: dict[str, str]
) -> None:
    source = """
        import multiprocessing, os, subprocess, sys, time

        def work():
            time.sleep(0.3)

        if __name__ == "__main__":
            subprocess.run([sys.executable, "-c", "import time; time.sleep(0.3)"], check=True)
            spawned = multiprocessing.get_context("spawn").Process(target=work)
            spawned.start()
            spawned.join()
            print(os.getpid(), spawned.pid)
    """
    done = run("--", "sh", "-c", f"exec 2>&1; {sys.executable} {program(tmp_path, source)}", env=environment)
    parent, spawned = map(int, done.stdout.split())
    found = [read_report(path).process for path in find_records(records)]
    assert {parent, spawned} <= {process.pid for process in found}
    assert "python -c" in {process.name for process in found}


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python of another virtual environment, in which memwatch is not installed."""
    folder = tmp_path_factory.mktemp("foreign")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin" / "python"


def test_a_python_without_memwatch_is_watched_and_its_path_is_left_alone(
    foreign: Path, tmp_path: Path, records: Path, environment: dict[str, str]
) -> None:
    bare = [str(foreign), "-c", "import importlib.util; print(importlib.util.find_spec('memwatch'))"]
    environment.pop("PYTHONPATH", None)
    assert subprocess.run(bare, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path).stdout == "None\n"
    source = (
        "import sys, time, memwatch; time.sleep(0.2); print(memwatch.current().running, [p for p in sys.path if 'memwatch' in p])"
    )
    done = run("--", foreign, "-c", source, env=environment, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("True []\n", "")
    assert only_record(records)["process"]["end"] == "exit status 0"  # type: ignore[index]


def old_python(version: str) -> str:
    found = subprocess.run([ROOT / "bench" / "find-python", version], capture_output=True, text=True, check=False).stdout.strip()
    path = found or shutil.which(f"python{version}")
    # What is found may be a version manager's stand-in for a Python that is not selected here.
    if not path or subprocess.run([path, "-c", "pass"], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"elsewhere: there is no Python {version}")
    return path


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.10"])
def test_a_python_too_old_runs_undisturbed_and_run_says_why_it_was_not_watched(
    version: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    environment |= {"PYTHONPATH": str(tmp_path)}
    program(tmp_path, "import sys\nsys.mine = True", "sitecustomize.py")
    done = run("--", old_python(version), "-c", "import sys; print(sys.mine)", env=environment)
    assert (done.returncode, done.stdout) == (0, "True\n")
    assert done.stderr.startswith("memwatch: nothing was watched: ") and f"Python {version}, memwatch needs 3.11" in done.stderr


@pytest.mark.parametrize("flag", ["-I", "-E", "-S"])
def test_a_python_that_ignores_its_path_is_said_not_to_have_been_watched(flag: str, environment: dict[str, str]) -> None:
    done = run("--", sys.executable, flag, "-c", "print(1)", env=environment)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (0, "1\n", 1)
    assert f"{flag} makes Python ignore PYTHONPATH" in done.stderr


def test_the_kill_switch_is_silent(records: Path, environment: dict[str, str]) -> None:
    done = run("--", sys.executable, "-c", "print(1)", env=environment | {"MEMWATCH_DISABLE": "1"})
    assert (done.stdout, done.stderr, records.exists()) == ("1\n", "", False)


def test_a_command_ended_before_a_watch_began_is_not_said_to_have_been_no_python(environment: dict[str, str]) -> None:
    done = run("--", "sh", "-c", "kill -TERM $$", env=environment)
    assert (done.returncode, done.stderr) == (
        -signal.SIGTERM,
        "memwatch: nothing was watched: sh was ended by signal 15 (SIGTERM) before a watch began\n",
    )


@pytest.mark.parametrize("damage", ["DELETE FROM meta", "UPDATE meta SET value = '[3]'", "DROP TABLE events", "not a database"])
def test_whatever_is_among_the_records_the_exit_status_is_the_commands(
    damage: str, tmp_path: Path, records: Path, environment: dict[str, str]
) -> None:
    source = f"""
        import os, pathlib, sqlite3, sys, time
        time.sleep(0.3)
        (path,) = pathlib.Path({str(records)!r}).glob("*.memwatch")
        if {damage!r}.startswith("not"):
            path.write_text({damage!r} * 1000)
        else:
            connection = sqlite3.connect(path)
            connection.execute({damage!r})
            connection.commit()
        os._exit(3)
    """
    done = run("--", sys.executable, program(tmp_path, source), env=environment)
    assert done.returncode == 3 and "Traceback" not in done.stderr and done.stderr.count("\n") <= 1, done.stderr


def test_an_error_of_ours_after_the_command_is_one_line_and_the_exit_status_is_the_commands(environment: dict[str, str]) -> None:
    start = (
        "import memwatch.record; memwatch.record.find_records = lambda directory: 1 / 0; from memwatch.cli import main; "
        "main(['run', '--', __import__('sys').executable, '-c', 'raise SystemExit(5)'])"
    )
    done = subprocess.run([sys.executable, "-c", start], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert done.stderr == "memwatch: what was found cannot be told: ZeroDivisionError: division by zero\n"


def test_run_works_where_its_own_directory_and_its_streams_are_gone(tmp_path: Path, environment: dict[str, str]) -> None:
    words = shlex.join([*MEMWATCH, "run", "--interval", "60ms", "--", sys.executable, "-P", "-c", "raise SystemExit(4)"])
    line = f"cd {shlex.quote(str(tmp_path / 'gone'))} && rmdir ../gone && {words}"
    environment |= {"PYTHONPATH": str(ROOT)}
    for streams in ("", ">&-", "2>&-", ">&- 2>&-"):
        (tmp_path / "gone").mkdir()
        done = subprocess.run(["bash", "-c", f"{line} {streams}"], env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (4, "", "")


def test_a_script_whose_name_is_no_text_is_watched_and_shown(tmp_path: Path, records: Path, environment: dict[str, str]) -> None:
    script = os.fsdecode(os.fsencode(tmp_path) + b"/a\xfe.py")
    Path(script).write_text("import time; time.sleep(0.3)")
    done = run("--", sys.executable, script, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    listed = subprocess.run([*MEMWATCH, "ps"], env=environment, capture_output=True, text=True, check=True)
    assert re.search(r"a\\(udc|x)fe\[", listed.stdout) and listed.stderr == ""
    shown = subprocess.run([*MEMWATCH, "report", "--json"], env=environment, capture_output=True, text=True, check=True).stdout
    assert json.loads(shown)["samples"] > 0


def test_run_within_run_watches_once(records: Path, environment: dict[str, str]) -> None:
    words = [*MEMWATCH, "run", "--", sys.executable, "-c", "import sys, time; time.sleep(0.2); print(len(sys.path))"]
    done = run("--", *words, env=environment)
    assert done.returncode == 0 and done.stderr == ""
    commands = [read_report(path).process.command for path in find_records(records)]
    assert len([command for command in commands if command[1] == "-c"]) == 1


LEAKING = """
    import time
    chain = None
    for i in range(120):
        for j in range(4000):
            chain = (chain, i + j / 2)
        time.sleep(0.05)
"""


def test_a_leak_is_told_in_one_line_with_the_command_that_shows_it(tmp_path: Path, environment: dict[str, str]) -> None:
    done = run("--", sys.executable, program(tmp_path, LEAKING, "leaky.py"), env=environment)
    verdict, following = [line for line in done.stderr.splitlines() if line.startswith("memwatch: ")]
    assert verdict.startswith("memwatch: LEAK  leaky[") and verdict.endswith("; ended: exit status 0")
    path = following.removeprefix("memwatch: next: memwatch report ")
    shown = subprocess.run([*MEMWATCH, "report", path, "--json"], capture_output=True, text=True, check=True).stdout
    report = json.loads(shown)
    assert report["verdict"]["state"] == "leaking"
    assert "leaking" in [event["state"] for event in report["events"] if event["what"] == "verdict"]


# -- before it starts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--interval", "10"], "interval: '10' (from argument) is not accepted. '10' has no unit."),
        (["--growth-limit", "fast"], "growth_limit: 'fast' (from argument)"),
        (["--label", "novalue"], "labels: 'novalue' (from argument)"),
        (["--warning", "90%", "--critical", "80%"], "is above critical"),
    ],
)
def test_a_setting_that_is_not_accepted_stops_before_the_command_starts(
    options: list[str], says: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    done = run(*options, "--", "touch", tmp_path / "started", env=environment)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "started").exists()


def test_a_variable_that_is_not_a_setting_is_named_with_its_neighbour(environment: dict[str, str]) -> None:
    done = run("--", "true", env=environment | {"MEMWATCH_INTRVAL": "1s"})
    assert done.returncode == 2 and "did you mean MEMWATCH_INTERVAL?" in done.stderr


def test_run_loads_neither_rich_nor_the_record_before_the_command_starts(environment: dict[str, str]) -> None:
    done = run("--", "true", env=environment | {"PYTHONPROFILEIMPORTTIME": "1", "MEMWATCH_DISABLE": "1"})
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "click" in loaded and not {name for name in loaded if name.split(".")[0] in ("rich", "psutil", "sqlite3")}
