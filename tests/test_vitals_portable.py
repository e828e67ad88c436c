"""Where there is no /proc: an empty folder in its place."""

import subprocess
import sys

import pytest

from memwatch.vitals import OutsideVitals, ProcessGone, Vitals, portable

pytest.importorskip("psutil")


def test_without_proc_psutil_gives_what_it_can(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    vitals = Vitals(proc_root=str(tmp_path), cgroup_root=str(tmp_path))
    values = vitals.read(complete=True)
    with Vitals() as reader:
        real = reader.read(complete=True)
    child.stdin.close()
    child.wait()
    assert vitals.failed == {}
    assert values["rss"] == pytest.approx(real["rss"], rel=0.05)
    assert values["threads"] == real["threads"]
    assert values["fds"] == pytest.approx(real["fds"], abs=3)
    assert values["children"] == real["children"] >= 1
    assert values["limit"] == real["limit"] or real["limit"] < values["limit"]
    assert not {"file", "sockets", "pressure"} & set(values)
    assert ("retained" in values) == ("retained" in real)


def test_without_proc_and_psutil_the_rest_still_works(tmp_path, monkeypatch):
    monkeypatch.setattr(portable, "_psutil", lambda: None)
    vitals = Vitals(proc_root=str(tmp_path), cgroup_root=str(tmp_path))
    values = vitals.read(complete=True)
    assert vitals.failed == {}
    assert not {"rss", "fds", "threads", "uss", "limit"} & set(values)
    assert {"cpu", "blocks", "gc2"} <= set(values)


def test_without_proc_another_process_is_read_until_it_is_gone(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    vitals = OutsideVitals(child.pid, proc_root=str(tmp_path), cgroup_root=str(tmp_path))
    values = vitals.read()
    assert vitals.failed == {}
    assert {"rss", "threads", "cpu", "fds", "children"} <= set(values)
    child.stdin.close()
    child.wait()
    with pytest.raises(ProcessGone):
        vitals.read()


def test_what_psutil_has_not_on_this_platform_is_none(monkeypatch):
    monkeypatch.setattr(portable, "_psutil", lambda: object())
    assert portable.malloc() is None
    assert portable.resident_bytes() is None
