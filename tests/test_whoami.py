"""What a process is called."""

import os
import subprocess
import sys

import pytest

from memwatch.config import Config
from memwatch.whoami import describe_process, printable, process_name


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("python app.py", "app"),
        ("/usr/bin/python3.11 /srv/shop/app.py --port 80", "app"),
        ("python -m shop.worker -c x", "shop.worker"),
        ("python -mshop.worker", "shop.worker"),
        ("python -X dev app.py", "app"),
        ("python -Xdev app.py", "app"),
        ("python -W ignore -X importtime app.py", "app"),
        ("python -Wignore app.py", "app"),
        ("python -bbX dev -m shop", "shop"),
        ("python -Im shop", "shop"),
        ("python -X dev -c pass app.py", "python -c"),
        ("python -uc pass app.py", "python -c"),
        ("python --check-hash-based-pycs always app.py", "app"),
        ("python -- app.py", "app"),
        ("python -u -OO app.py -m other", "app"),
        ("/usr/bin/python /usr/local/bin/gunicorn app:app", "gunicorn"),
        ("C:/Python/python.exe app.py", "app"),
        ("pypy3 app.py", "app"),
        ("python", "python"),
        ("python3.12 -i", "python"),
        ("/usr/bin/python3 -", "python"),
        ("python -X", "python"),
        ("python -m", "python"),
        ("uwsgi --http :8000 --module shop", "uwsgi"),
        ("/opt/shop/shop --port 80", "shop"),
        ("", "python"),
    ],
)
def test_a_process_is_named_after_its_script_or_module(command, name):
    assert process_name(command.split()) == name


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("from multiprocessing.spawn import spawn_main; spawn_main(tracker_fd=5, pipe_handle=7)", "multiprocessing worker"),
        ("from multiprocessing.resource_tracker import main;main(4)", "multiprocessing resource tracker"),
        ("from multiprocessing.forkserver import main; main(7, 8, ['__main__'])", "multiprocessing fork server"),
        ("from multiprocessing import Pool", "python -c"),
        ("", "python -c"),
        ("from", "python -c"),
    ],
)
def test_what_multiprocessing_starts_is_named_after_its_part(code, name):
    assert process_name(["/usr/bin/python", "-s", "-X", "dev", "-c", code, "--multiprocessing-fork"]) == name


CHILDREN = """
    import multiprocessing, sys

    def tell(queue):
        from memwatch.config import Config
        from memwatch.whoami import describe_process
        queue.put(describe_process(Config()).name)

    if __name__ == "__main__":
        context = multiprocessing.get_context(sys.argv[1])
        queue = context.Queue()
        child = context.Process(target=tell, args=(queue,))
        child.start()
        print(queue.get(timeout=50))
        child.join()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is only spawn")
@pytest.mark.parametrize(
    ("method", "name"), [("spawn", "multiprocessing worker"), ("forkserver", "multiprocessing worker"), ("fork", "program")]
)
def test_a_real_worker_knows_that_it_is_one(python, method, name):
    assert python(CHILDREN, method).stdout == f"{name}\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [("app", "app"), ("café", "café"), (os.fsdecode(b"caf\xe9"), r"caf\xe9"), ("\ud800", r"\ud800"), ("é\udcff", r"é\xff")],
)
def test_what_is_not_utf8_is_written_out(text, shown):
    assert printable(text) == shown
    assert process_name(["python", f"/srv/{text}.py"]) == shown
    assert process_name(["python", "-m", text]) == shown


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_a_script_whose_name_is_not_utf8_is_described_in_printable_text(tmp_path):
    script = os.fsencode(tmp_path / os.fsdecode(b"caf\xe9.py"))
    with open(script, "w") as file:
        file.write(
            "from memwatch.config import Config; from memwatch.whoami import describe_process; me = describe_process(Config());"
            "print(me.name, ascii(me.command[1].encode('utf-8')[-8:]))"
        )
    done = subprocess.run([sys.executable, script], capture_output=True, check=True, env={**os.environ, "PYTHONUTF8": "1"})
    assert done.stdout.decode() == "caf\\xe9 " + ascii(rb"f\xe9.py") + "\n"


def test_a_title_that_the_program_gave_itself_is_its_name():
    assert process_name(["python app.py: worker 3"]) == "python app.py: worker 3"


def test_a_name_that_was_given_is_kept():
    assert describe_process(Config(name="shop")).name == "shop"
