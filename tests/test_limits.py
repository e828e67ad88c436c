"""Memory limits, from copies of the files of many kinds of machine."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from memwatch.vitals import all_limits, cgroup_memory, effective_limit, oom_kills
from memwatch.vitals.limits import Limit, host_bytes, parse_pressure, pressure

MIB = 2**20
NO_LIMIT_V1 = 9223372036854771712


class Machine:
    """Builds the files under /proc and /sys/fs/cgroup of one machine."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.cgroup = folder / "cgroup"
        self.write(self.proc / "meminfo", f"MemTotal:       {16 * MIB} kB\nMemFree:  1 kB\n")
        self.rlimits()

    @property
    def roots(self) -> dict[str, str]:
        return {"proc_root": str(self.proc), "cgroup_root": str(self.cgroup)}

    def write(self, path: Path, content: str | int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n" if isinstance(content, int) else content)

    def rlimits(self, address_space: str = "unlimited", data: str = "unlimited", pid: str = "self") -> None:
        self.write(
            self.proc / pid / "limits",
            "Limit                     Soft Limit           Hard Limit           Units     \n"
            f"Max data size             {data:<20} unlimited            bytes     \n"
            f"Max address space         {address_space:<20} unlimited            bytes     \n",
        )

    def own(self, *lines: str, pid: str = "self") -> None:
        self.write(self.proc / pid / "cgroup", "".join(line + "\n" for line in lines))

    def mounts(self, *lines: str) -> None:
        self.write(self.proc / "self" / "mountinfo", "".join(line + "\n" for line in lines))

    def v2(self, path: str, root: str = "", **files: str | int) -> None:
        folder = self.cgroup / root / path.strip("/")
        self.write(self.cgroup / root / "cgroup.procs", "")
        for name, content in ({"cgroup.procs": ""} | {name.replace("__", "."): content for name, content in files.items()}).items():
            self.write(folder / name, content)

    def v1(self, path: str, limit: int, **files: str | int) -> None:
        root = self.cgroup / "memory"
        if not root.exists():
            self.write(root / "memory.limit_in_bytes", NO_LIMIT_V1)
        folder = root / path.strip("/")
        self.write(folder / "memory.limit_in_bytes", limit)
        for name, content in files.items():
            self.write(folder / name.replace("__", "."), content)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def named(limits: tuple[Limit, ...]) -> dict[str, int]:
    return {limit.source: limit.bytes for limit in limits}


def test_a_machine_without_any_limit_is_limited_by_its_memory(machine):
    assert effective_limit(**machine.roots) == Limit(16 * 1024 * MIB, "memory of this machine")


def test_a_v2_group_limits(machine):
    machine.own("0::/system.slice/app.service")
    machine.v2("/system.slice/app.service", memory__max=512 * MIB, memory__high="max\n")
    assert effective_limit(**machine.roots) == Limit(512 * MIB, "cgroup v2 memory.max of /system.slice/app.service")


def test_the_tightest_group_above_the_own_one_limits(machine):
    machine.own("0::/kubepods/pod1/container1")
    machine.v2("/kubepods/pod1/container1", memory__max=800 * MIB)
    machine.v2("/kubepods/pod1", memory__max=300 * MIB)
    machine.v2("/kubepods", memory__max=9000 * MIB)
    assert effective_limit(**machine.roots) == Limit(300 * MIB, "cgroup v2 memory.max of /kubepods/pod1")
    assert len(all_limits(**machine.roots)) == 4


def test_memory_high_limits_too_but_is_told_to_be_soft(machine):
    machine.own("0::/app")
    machine.v2("/app", memory__max=512 * MIB, memory__high=450 * MIB)
    assert effective_limit(**machine.roots) == Limit(450 * MIB, "cgroup v2 memory.high of /app", hard=False)
    assert named(all_limits(**machine.roots))["cgroup v2 memory.max of /app"] == 512 * MIB


def test_a_group_of_no_limit_is_no_limit(machine):
    machine.own("0::/app")
    machine.v2("/app", memory__max="max\n", memory__high="max\n")
    assert [limit.source for limit in all_limits(**machine.roots)] == ["memory of this machine"]


def test_in_a_container_with_a_namespace_of_its_own_the_mount_is_the_group(machine):
    machine.own("0::/")
    machine.mounts("31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw")
    machine.v2("/", memory__max=256 * MIB)
    assert effective_limit(**machine.roots) == Limit(256 * MIB, "cgroup v2 memory.max of /")


@pytest.mark.parametrize("mount_root", ["/", "/docker/abc", "/../.."])
def test_in_a_container_whose_path_does_not_exist_there_the_mount_is_the_group(machine, mount_root):
    machine.own("0::/docker/abc")
    machine.mounts(f"31 23 0:28 {mount_root} /sys/fs/cgroup ro - cgroup2 cgroup rw")
    machine.v2("/", memory__max=256 * MIB)
    assert effective_limit(**machine.roots) == Limit(256 * MIB, "cgroup v2 memory.max of /docker/abc")


def test_below_the_root_of_a_mount_the_path_is_followed(machine):
    machine.own("0::/docker/abc/workers/one")
    machine.mounts("31 23 0:28 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw")
    machine.v2("/", memory__max=256 * MIB)
    machine.v2("/workers/one", memory__max=64 * MIB)
    assert named(all_limits(**machine.roots)) == {
        "cgroup v2 memory.max of /docker/abc/workers/one": 64 * MIB,
        "cgroup v2 memory.max of /docker/abc": 256 * MIB,
        "memory of this machine": 16 * 1024 * MIB,
    }


def test_a_path_out_of_the_namespace_is_not_followed(machine, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "memory.max").write_text("1048576\n")
    machine.own("0::/../outside")
    machine.v2("/", memory__max=256 * MIB)
    assert effective_limit(**machine.roots).bytes == 256 * MIB


def test_a_v1_group_and_those_above_it_limit(machine):
    machine.own("5:cpuset:/x", "4:memory,hugetlb:/docker/abc", "1:name=systemd:/y")
    machine.v1("/docker/abc", 700 * MIB)
    machine.v1("/docker", 600 * MIB)
    machine.v1("/", NO_LIMIT_V1)
    assert effective_limit(**machine.roots) == Limit(600 * MIB, "cgroup v1 memory.limit_in_bytes of /docker")


def test_a_v1_hierarchy_is_found_where_it_is_mounted(machine):
    machine.own("4:memory:/app")
    machine.mounts("35 31 0:32 / /sys/fs/cgroup/mem rw - cgroup cgroup rw,memory")
    machine.write(machine.cgroup / "mem" / "memory.limit_in_bytes", 90 * MIB)
    assert effective_limit(**machine.roots).bytes == 90 * MIB


def test_v1s_largest_number_is_no_limit(machine):
    machine.own("4:memory:/a")
    machine.v1("/a", NO_LIMIT_V1)
    machine.v1("/", NO_LIMIT_V1)
    assert [limit.source for limit in all_limits(**machine.roots)] == ["memory of this machine"]


def test_on_a_hybrid_machine_both_hierarchies_count(machine):
    machine.own("4:memory:/job", "0::/user.slice")
    machine.mounts(
        "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory",
        "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw",
        "36 31 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices",
    )
    machine.v1("/job", 400 * MIB)
    machine.v2("/user.slice", root="unified", memory__max=350 * MIB)
    found = named(all_limits(**machine.roots))
    assert found["cgroup v1 memory.limit_in_bytes of /job"] == 400 * MIB
    assert found["cgroup v2 memory.max of /user.slice"] == 350 * MIB


def test_a_mount_point_with_a_space_in_its_name_is_found(machine):
    machine.own("0::/app")
    machine.mounts("31 23 0:28 / /sys/fs/cgroup/my\\040groups rw - cgroup2 cgroup rw")
    machine.v2("/app", root="my groups", memory__max=128 * MIB)
    assert effective_limit(**machine.roots).bytes == 128 * MIB


def test_rlimits_limit(machine):
    machine.rlimits(address_space=str(900 * MIB), data=str(800 * MIB))
    assert named(all_limits(**machine.roots)) == {
        "RLIMIT_AS": 900 * MIB,
        "RLIMIT_DATA": 800 * MIB,
        "memory of this machine": 16 * 1024 * MIB,
    }
    assert effective_limit(**machine.roots).source == "RLIMIT_DATA"


def test_another_process_has_limits_of_its_own(machine):
    machine.own("0::/ours")
    machine.own("0::/theirs", pid="42")
    machine.rlimits(address_space=str(64 * MIB))
    machine.rlimits(pid="42")
    machine.v2("/ours", memory__max=100 * MIB)
    machine.v2("/theirs", memory__max=200 * MIB)
    assert effective_limit(**machine.roots, pid=42).bytes == 200 * MIB
    assert effective_limit(**machine.roots).bytes == 64 * MIB


@pytest.mark.parametrize("content", ["", "garbage\n", "-1\n", "max\n"])
def test_a_file_that_is_no_number_is_no_limit(machine, content):
    machine.own("0::/app")
    machine.v2("/app", memory__max=content)
    assert effective_limit(**machine.roots).source == "memory of this machine"


def test_nothing_found_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr("memwatch.vitals.portable._psutil", lambda: None)
    assert effective_limit(proc_root=str(tmp_path), cgroup_root=str(tmp_path)) is None
    assert oom_kills(proc_root=str(tmp_path), cgroup_root=str(tmp_path)) is None
    assert cgroup_memory(proc_root=str(tmp_path), cgroup_root=str(tmp_path)) is None


@pytest.mark.parametrize("version", [1, 2])
def test_kills_and_the_memory_of_the_group_are_read(machine, version):
    if version == 2:
        machine.own("0::/app")
        machine.v2("/app", memory__events="low 0\nhigh 3\nmax 9\noom 2\noom_kill 1\noom_group_kill 0\n", memory__current=77 * MIB)
    else:
        machine.own("4:memory:/app")
        machine.v1(
            "/app", MIB, memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", memory__usage_in_bytes=77 * MIB
        )
    assert oom_kills(**machine.roots) == 1
    assert cgroup_memory(**machine.roots) == 77 * MIB


def test_pressure_without_psi_is_none(machine):
    assert pressure(**machine.roots) is None
    machine.write(machine.proc / "pressure" / "memory", "")
    assert pressure(**machine.roots) is None
    machine.write(machine.proc / "pressure" / "memory", "some avg10=1.50 avg60=0.00 avg300=0.00 total=0\n")
    assert pressure(**machine.roots) == 1.5
    assert parse_pressure(b"full avg10=1.50 avg60=0.00") is None


def test_a_limit_is_plain_data():
    assert Limit(5, "here", False).to_dict() == {"bytes": 5, "source": "here", "hard": False}


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_this_machine_has_a_limit_no_larger_than_its_memory(python: Callable):
    limit = effective_limit()
    assert limit is not None and MIB < limit.bytes <= host_bytes()
    done = python(
        """
        import resource
        from memwatch.vitals import effective_limit, Vitals
        resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))
        print(effective_limit(), Vitals().read()["limit"])
        """
    )
    assert done.stdout == "Limit(bytes=536870912, source='RLIMIT_AS', hard=True) 536870912.0\n"
