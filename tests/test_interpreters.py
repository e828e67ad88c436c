"""Which interpreter of the process this is."""

from memwatch.interpreters import refusal


def test_the_main_interpreter_is_watched():
    assert refusal() is None


def test_a_sub_interpreter_is_refused_before_anything_else_is_loaded(python):
    done = python(
        """
        try:
            import _interpreters as interpreters
        except ImportError:
            import _xxsubinterpreters as interpreters

        interpreters.run_string(interpreters.create(), '''if True:
            import os, sys
            from memwatch.interpreters import refusal
            loaded = sorted(name for name in sys.modules if name.startswith("memwatch") or "hash" in name)
            os.write(1, f"{refusal()} {loaded}".encode())
        ''')
        """
    )
    assert done.stdout == (
        "this is a sub-interpreter; start memwatch in the main one, it sees the whole process ['memwatch', 'memwatch.interpreters']"
    )
