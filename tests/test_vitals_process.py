"""Files under /proc."""

import os
import select
import socket
import tempfile
from pathlib import Path

import pytest

from memwatch.vitals import descriptors_by_kind, process

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
PAGE = os.sysconf("SC_PAGE_SIZE")


def test_statm_is_pages():
    assert process.parse_statm(b"100 20 5 1 0 30 0\n") == (100 * PAGE, 20 * PAGE, 5 * PAGE)


@pytest.mark.parametrize("content", [b"", b"hello", b"1 2 3", b"a b c d e f g", b"1 2 3 4 5 6 7 8"])
def test_what_does_not_look_like_statm_is_not_guessed_at(content):
    assert process.parse_statm(content) is None


def test_a_process_name_may_hold_brackets_and_spaces():
    status = process.parse_stat(b"42 (a) b (c)) S 7 " + b" ".join(b"%d" % number for number in range(5, 53)))
    assert status is not None
    assert (status.pid, status.name, status.state, status.ppid) == (42, "a) b (c)", "S", 7)
    assert (status.threads, status.start_ticks) == (20, 22)
    assert status.cpu_s == (14 + 15) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("content", [b"", b"42 (python) S 7", b"seven words of a file that is not"])
def test_what_does_not_look_like_stat_is_not_guessed_at(content):
    assert process.parse_stat(content) is None


def test_our_own_stat_names_us():
    status = process.parse_stat(Path("/proc/self/stat").read_bytes())
    assert status is not None
    assert (status.pid, status.ppid) == (os.getpid(), os.getppid())


def test_unique_bytes_are_a_part_of_the_resident_ones():
    unique = process.unique_bytes("/proc/self")
    memory = process.parse_statm(Path("/proc/self/statm").read_bytes())
    assert unique is not None and memory is not None
    assert memory.rss * 0.2 < unique <= memory.rss * 1.05


def test_unique_bytes_are_the_private_pages(tmp_path):
    (tmp_path / "smaps_rollup").write_text(
        "5581e0000000-7ffc0 ---p 00000000 00:00 0    [rollup]\nRss:  9000 kB\nPss:  8000 kB\nShared_Clean:  4000 kB\n"
        "Shared_Dirty:  0 kB\nPrivate_Clean:  300 kB\nPrivate_Dirty:  20 kB\nPrivate_Hugetlb:  2048 kB\nSwap:  7 kB\n"
    )
    assert process.unique_bytes(str(tmp_path)) == (300 + 20 + 2048) * 1024
    (tmp_path / "smaps_rollup").write_text("")
    assert process.unique_bytes(str(tmp_path)) is None


def test_descriptors_are_counted_the_same_by_size_and_by_listing(tmp_path, python):
    # In a program of its own: what other tests have left open may close at any moment.
    done = python("""
        import os
        from memwatch.vitals import process

        class Old: st_size = 0  # Linux before 6.2

        by_size = process.count_descriptors("/proc/self")
        stat, process._stat = process._stat, lambda path: Old
        print(by_size, process.count_descriptors("/proc/self"), process.count_descriptors(f"/proc/{os.getpid()}"))
    """)
    by_size, listed, listed_by_number = map(int, done.stdout.split())
    assert listed == by_size
    assert listed_by_number == by_size + 1  # it cannot know that the listing itself is ours
    assert process.count_descriptors(str(tmp_path)) is None


def test_descriptors_are_told_apart_by_kind(tmp_path):
    before = descriptors_by_kind()
    with (
        open(tmp_path / "file", "w"),
        socket.socket(),
        socket.socket(),
        select.epoll(),
        open(os.devnull),
        tempfile.TemporaryFile(dir=tmp_path),
    ):
        pipe = os.pipe()
        after = descriptors_by_kind(os.getpid())
        os.close(pipe[0])
        os.close(pipe[1])
    grown = {kind: count - before.get(kind, 0) for kind, count in after.items() if count != before.get(kind, 0)}
    assert grown.pop("deleted", 0) + grown.pop("file", 0) == 2
    assert grown == {"socket": 2, "eventpoll": 1, "device": 1, "pipe": 2}
    assert descriptors_by_kind() == before


def test_a_machine_without_proc_has_no_kinds(tmp_path):
    assert descriptors_by_kind(proc_root=str(tmp_path)) == {}
    assert process.count_sockets(str(tmp_path)) is None
    assert process.children_of(None, proc_root=str(tmp_path)) is None


def test_children_are_read_from_the_list_of_each_thread_where_the_kernel_has_it(tmp_path):
    for thread, children in (("7", "11 12 "), ("8", ""), ("9", "13 ")):
        folder = tmp_path / "7" / "task" / thread
        folder.mkdir(parents=True)
        (folder / "children").write_text(children)
    assert sorted(process.children_of(7, proc_root=str(tmp_path))) == [11, 12, 13]


def test_where_the_kernel_has_no_such_list_children_are_found_by_their_parent(tmp_path):
    for pid, state, parent in ((7, "S", 1), (8, "S", 7), (9, "S", 1), (10, "Z", 7), (11, "S", 8)):
        folder = tmp_path / str(pid)
        (folder / "task" / str(pid)).mkdir(parents=True)
        (folder / "stat").write_text(f"{pid} (app) {state} {parent} {' '.join(['0'] * 48)}\n")
    assert not process.lists_children(f"{tmp_path}/7")
    assert sorted(process.children_of(7, proc_root=str(tmp_path))) == [8, 10]
    (tmp_path / "7" / "task" / "7" / "children").write_text("8 ")
    assert process.lists_children(f"{tmp_path}/7")


def test_a_kept_descriptor_that_was_closed_behind_our_back_is_opened_anew():
    file = process.OpenFile("/proc/self/statm")
    file.read()
    os.close(file.descriptor)
    assert process.parse_statm(file.read()) is not None
    file.close()


def test_a_kept_descriptor_that_belongs_to_another_file_now_is_not_closed(tmp_path):
    file = process.OpenFile("/proc/self/statm")
    file.read()
    number = file.descriptor
    (tmp_path / "log").write_text("a line of the program's own log\n")
    with open(tmp_path / "log") as log:
        os.dup2(log.fileno(), number)
    try:
        file.close()
        assert os.pread(number, 6, 0) == b"a line"
    finally:
        os.close(number)


def test_a_kept_file_that_is_dropped_closes_its_descriptor():
    before = process.count_descriptors("/proc/self")
    file = process.OpenFile("/proc/self/statm")
    file.read()
    assert process.count_descriptors("/proc/self") == before + 1
    del file
    assert process.count_descriptors("/proc/self") == before
