"""How many CPUs a container may use, from the files that Linux says it in."""

import os
import subprocess
import sys

import pytest

from kservekit.cpus import usable_cpus


def files(root, **contents):
    for path, text in contents.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return root


V1 = "12:cpuset:/\n4:cpu,cpuacct:/kubepods/pod7/c1\n0::/\n"

MACHINES = {
    "none of the files, as on a Mac": ({}, 64),
    "v2, two CPUs, seen from inside": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
    "v2, no limit": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 64),
    "v2, a limit above what there is": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "9900000 100000"}, 64),
    "v2, one and a half": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
    "v2, a tenth": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "10000 100000\n"}, 1),
    "v2, the group around it is limited": (
        {
            "proc/self/cgroup": "0::/pod/container\n",
            "sys/fs/cgroup/pod/cpu.max": "300000 100000\n",
            "sys/fs/cgroup/pod/container/cpu.max": "max 100000\n",
        },
        3,
    ),
    "v2, a path of the node's, which is not there inside": (
        {"proc/self/cgroup": "0::/kubepods/pod7/c1\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"},
        4,
    ),
    "v1, as a container sees it": (
        {
            "proc/self/cgroup": V1,
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        2,
    ),
    "v1, under the name of both controllers": (
        {
            "proc/self/cgroup": V1,
            "sys/fs/cgroup/cpu,cpuacct/kubepods/pod7/c1/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu,cpuacct/kubepods/pod7/c1/cpu.cfs_period_us": "50000\n",
        },
        1,
    ),
    "v1, no limit": (
        {
            "proc/self/cgroup": V1,
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        64,
    ),
    "files that say something else": ({"proc/self/cgroup": "?\n0::\n", "sys/fs/cgroup/cpu.max": "many\n"}, 64),
}


@pytest.mark.parametrize(("contents", "expected"), MACHINES.values(), ids=MACHINES)
def test_the_containers_limit_counts_and_not_the_nodes_cores(tmp_path, contents, expected):
    assert usable_cpus(files(tmp_path, **contents), runnable=64) == expected


def test_the_cores_that_a_process_is_bound_to_are_all_it_has():
    code = "from kservekit.cpus import usable_cpus; print(usable_cpus())"
    one = min(os.sched_getaffinity(0))
    bound = subprocess.run(
        [sys.executable, "-c", f"import os; os.sched_setaffinity(0, [{one}]); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert bound.stdout == "1\n"
