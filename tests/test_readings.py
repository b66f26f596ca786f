"""Live readings: on recorded machines with the figures worked out by hand, and on this one against the operating system's own count."""

import gc
import os
import shutil
import socket
import tempfile
import threading
import time
import types
from pathlib import Path

import psutil
import pytest
from standin_nvml import ERRORS, GIB, NVMLError, a_gpu, no_driver, nvml, process, share

from aimass_lab.errors import InputError
from aimass_lab.frontends.cli import main
from aimass_lab.frontends.render import render_html, render_text
from aimass_lab.headlines import headline
from aimass_lab.readings import EnergyMeter, Monitor, Sampler, driver_version, take_readings
from aimass_lab.readings.base import Reasons, Sources
from aimass_lab.readings.cells import CellMeter
from aimass_lab.readings.cgroup import cpu_group, memory_group
from aimass_lab.readings.kernels import gpu_memory, gpu_use
from aimass_lab.readings.nvml import open_nvml
from aimass_lab.records import Readings, any_from_json, to_json

TICKS = os.sysconf("SC_CLK_TCK")


# --- recorded machines ---------------------------------------------------------------------


class Machine:
    """Folders with the files that a Linux kernel shows."""

    def __init__(self, root):
        self.root = root
        self.sources = Sources(proc=root / "proc", sys=root / "sys", cgroup=root / "cgroup", nvml=no_driver())

    def write(self, path, text):
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


@pytest.fixture
def machine(tmp_path):
    """Two of four cores may be used; 8 GiB, 3 of them available."""
    made = Machine(tmp_path)
    made.write("proc/cpuinfo", "processor\t: 0\nmodel name\t: Recorded CPU 9000\ncpu MHz\t\t: 2400.000\n")
    made.write("proc/loadavg", "1.50 1.00 0.50 2/300 1234\n")
    made.write("proc/meminfo", f"MemTotal: {8 * 2**20} kB\nMemAvailable: {3 * 2**20} kB\nSwapTotal: 2048 kB\nSwapFree: 1024 kB\nHugePages_Total: 0\n")
    made.write("proc/self/status", "Name:\tpy\nVmRSS:\t  2048 kB\nCpus_allowed_list:\t0,2-2\n")
    made.write("proc/self/smaps_rollup", "0-1 ---p [rollup]\nRss: 2048 kB\nPrivate_Clean: 100 kB\nPrivate_Dirty: 900 kB\n")
    made.write("proc/self/cgroup", "0::/pod/box\n")
    made.write("proc/pressure/cpu", "some avg10=12.50 avg60=1.00 avg300=0.10 total=99\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
    made.write("proc/pressure/memory", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
    made.write("proc/pressure/io", "some avg10=3.00 avg60=0.00 avg300=0.00 total=0\n")
    move(made, seconds=0.0)
    return made


def move(made, *, seconds):
    """Let the machine run: core 0 is busy all the time, core 2 a quarter of it, this process half a core; and some traffic."""
    ticks = int(seconds * TICKS)
    # user nice system idle iowait irq softirq steal
    cores = [(ticks, 0, 0, 0), (0, 0, 0, ticks), (ticks // 4, 0, 0, ticks - ticks // 4), (0, 0, 0, ticks)]
    lines = [f"cpu{i} {user} {nice} {system} {idle} 0 0 0 0 0 0" for i, (user, nice, system, idle) in enumerate(cores)]
    made.write("proc/stat", "cpu 1 1 1 1 0 0 0 0 0 0\n" + "\n".join(lines) + "\nintr 1\n")
    made.write("proc/self/stat", f"7 (a) name (b)) S 1 1 1 0 -1 0 0 0 0 0 {ticks // 4} {ticks // 4} 0 0 20 0 1 0 0\n")
    received, sent = int(1000 * seconds), int(500 * seconds)
    head = "Inter-|   Receive  |  Transmit\n face |bytes packets|bytes packets\n"
    made.write("proc/self/net/dev", f"{head}    lo: {7 + received} 1 0 0 0 0 0 0 {7 + sent} 1 0 0 0 0 0 0\n  idle0: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n")
    made.write("proc/self/io", f"rchar: 9\nread_bytes: {int(4096 * seconds)}\nwrite_bytes: {int(8192 * seconds)}\n")


def look_twice(made, seconds=4.0, before=lambda: None):
    """Readings of a machine that ran for so long."""
    times = iter([0.0, seconds])
    sampler = Sampler(made.sources, clock=lambda: next(times))
    move(made, seconds=seconds)
    before()
    readings = sampler.read()
    sampler.close()
    return readings


def reasons(readings):
    return {note.code.removeprefix("missing:"): note.text for note in readings.notes}


def test_rates_are_means_over_the_interval(machine):
    readings = look_twice(machine)
    assert readings.interval.value == 4.0
    assert readings.cpu.name == "Recorded CPU 9000"
    assert readings.cpu.usable_cores.value == 2
    assert readings.cpu.machine.value == pytest.approx(1.25)
    assert readings.cpu.cores == (1.0, 0.25)
    assert readings.cpu.process.value == pytest.approx(0.5)
    assert readings.cpu.load_1min.value == 1.5
    assert readings.cpu.frequency.value == 2.4e9
    assert readings.cpu.stalled.value == 0.125
    assert [(n.interface, n.receive.value, n.transmit.value) for n in readings.network] == [("lo", 1000.0, 500.0)]
    assert (readings.storage.read.value, readings.storage.write.value, readings.storage.stalled.value) == (4096.0, 8192.0, 0.03)


def test_what_the_host_takes_is_not_this_machines_work(machine):
    readings = look_twice(
        machine, before=lambda: machine.write("proc/stat", f"cpu0 {2 * TICKS} 0 0 {TICKS} 0 0 0 {TICKS} 0 0\ncpu2 0 0 0 {4 * TICKS} 0 0 0 0\n")
    )
    assert readings.cpu.machine.value == pytest.approx(0.5)
    assert readings.cpu.cores == (0.5, 0.0)
    assert readings.cpu.stolen.value == pytest.approx(0.125)  # a quarter of one of two cores
    assert "12 % of the processor taken by the host" in headline(readings)
    assert "taken by the host" in render_text(readings)


def test_memory_without_a_container(machine):
    memory = look_twice(machine).memory
    assert memory.process_bytes.value == 2 * 2**20
    assert memory.process_unique_bytes.value == 1000 * 1024
    assert memory.machine_used_bytes.value == 5 * GIB
    assert memory.machine_total_bytes.value == 8 * GIB
    assert memory.container_limit_bytes is None
    assert memory.usable_bytes.value == 3 * GIB
    assert memory.swap_used_bytes.value == 2**20


def test_clocks_of_the_usable_cores_come_first(machine):
    for core, khz in ((0, 3_000_000), (1, 800_000), (2, 2_000_000)):
        machine.write(f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", f"{khz}\n")
    assert look_twice(machine).cpu.frequency.value == 2.5e9


def test_the_tightest_limit_of_cgroup_v2_binds(machine):
    machine.write("cgroup/memory.current", f"{6 * GIB}\n")  # the root has no limit file
    machine.write("cgroup/pod/memory.max", f"{2 * GIB}\n")
    machine.write("cgroup/pod/memory.current", f"{GIB + GIB // 2}\n")
    machine.write("cgroup/pod/memory.stat", f"anon 1\ninactive_file {GIB // 2}\n")
    machine.write("cgroup/pod/box/memory.max", "max\n")
    machine.write("cgroup/pod/box/memory.current", f"{GIB}\n")
    machine.write("cgroup/pod/box/cpu.max", "150000 100000\n")
    machine.write("cgroup/pod/box/cpu.stat", "usage_usec 1000000\nthrottled_usec 0\n")
    machine.write("cgroup/pod/cpu.max", "max 100000\n")

    def run():
        machine.write("cgroup/pod/box/cpu.stat", "usage_usec 7000000\nthrottled_usec 1000000\n")

    readings = look_twice(machine, before=run)
    assert readings.memory.container_limit_bytes.value == 2 * GIB
    assert readings.memory.container_used_bytes.value == GIB
    assert readings.memory.usable_bytes.value == GIB
    assert readings.cpu.usable_cores.value == 1.5
    assert readings.cpu.container.value == pytest.approx(6 / 4)
    assert readings.cpu.throttled.value == pytest.approx(1 / 4)


def test_cgroup_v1_with_controllers_of_their_own(machine):
    machine.write("proc/self/cgroup", "9:name=systemd:/\n4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/\n")
    machine.write("cgroup/unified/cgroup.procs", "")
    machine.write("cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    machine.write("cgroup/memory/memory.usage_in_bytes", f"{7 * GIB}\n")
    machine.write("cgroup/memory/docker/abc/memory.limit_in_bytes", f"{GIB}\n")
    machine.write("cgroup/memory/docker/abc/memory.usage_in_bytes", f"{GIB // 2}\n")
    machine.write("cgroup/memory/docker/abc/memory.stat", f"cache 5\ntotal_inactive_file {GIB // 4}\n")
    machine.write("cgroup/cpu/docker/abc/cpu.cfs_quota_us", "50000\n")
    machine.write("cgroup/cpu/docker/abc/cpu.cfs_period_us", "100000\n")
    machine.write("cgroup/cpu/docker/abc/cpu.stat", "nr_periods 3\nnr_throttled 1\nthrottled_time 2000000000\n")
    machine.write("cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    machine.write("cgroup/cpuacct/docker/abc/cpuacct.usage", "3000000000\n")
    memory, cpu = memory_group(machine.sources), cpu_group(machine.sources)
    assert (memory.limit_bytes, memory.used_bytes) == (GIB, GIB // 4)
    assert (cpu.limit_cores, cpu.used_s, cpu.throttled_s) == (0.5, 3.0, 2.0)


def test_a_container_that_sees_only_its_own_group_reads_it_at_the_mount(machine):
    """Without a namespace of control groups, the path is the host's and does not exist below the mount."""
    machine.write("proc/self/cgroup", "4:memory:/docker/abc\n")
    machine.write("cgroup/memory/memory.limit_in_bytes", f"{GIB}\n")
    machine.write("cgroup/memory/memory.usage_in_bytes", "4096\n")
    assert memory_group(machine.sources).limit_bytes == GIB


def test_an_interface_that_was_replaced_has_no_rate(machine):
    def replace():
        machine.write("proc/self/net/dev", "h\nh\n  lo: 1 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0\n  new0: 9 0 0 0 0 0 0 0 9 0 0 0 0 0 0 0\n")

    readings = look_twice(machine, before=replace)
    assert readings.network == ()
    assert "replaced" in reasons(readings)["network.lo"]
    assert "new" in reasons(readings)["network.new0"]


def test_everything_that_is_missing_says_why(tmp_path):
    """On a machine that shows nothing at all."""
    readings = look_twice_at_nothing(tmp_path)
    why = reasons(readings)
    for part, record in (("cpu", readings.cpu), ("memory", readings.memory), ("storage", readings.storage)):
        for name in record.__struct_fields__:
            if getattr(record, name) is None:
                codes = [code for code in why if code == part or (code.startswith(f"{part}.") and name.startswith(code.partition(".")[2]))]
                assert codes, f"{part}.{name} is missing without a reason"
    assert "gpu" in why
    assert "network" in why
    assert all(len(text) > 15 for text in why.values())


def look_twice_at_nothing(tmp_path):
    times = iter([0.0, 1.0])
    return Sampler(Sources(proc=tmp_path, sys=tmp_path, cgroup=tmp_path, nvml=no_driver()), clock=lambda: next(times)).read()


# --- GPUs ----------------------------------------------------------------------------------


def as_pid_namespace(folder, inode=4_026_531_836):
    """Let a folder show the namespace of processes that a process is in: the machine's own, if not another's number is given."""
    (folder / "self" / "ns").mkdir(parents=True, exist_ok=True)
    (folder / "self" / "ns" / "pid").symlink_to(f"pid:[{inode}]")


def running(folder, pid, name, files=()):
    """A process as the operating system shows it: its name, and what it has open; None: that may not be read."""
    (folder / str(pid) / "fd").mkdir(parents=True)
    (folder / str(pid) / "comm").write_text(f"{name}\n")
    for number, file in enumerate(files):
        (folder / str(pid) / "fd" / str(number)).symlink_to(file)


def gpus_of(module, tmp_path):
    times = iter([0.0, 1.0])
    sampler = Sampler(Sources(proc=tmp_path, sys=tmp_path, cgroup=tmp_path, nvml=module), clock=lambda: next(times))
    readings = sampler.read()
    sampler.close()
    assert module.open == 0, "every session with the driver is ended"
    return readings


def test_a_gpu_in_si_units(tmp_path):
    as_pid_namespace(tmp_path)
    (gpu,) = gpus_of(nvml([a_gpu()]), tmp_path).gpus
    assert (gpu.index, gpu.name, gpu.uuid, gpu.mig_instance) == (0, "Recorded GPU", "GPU-1234", None)
    assert (gpu.utilization.value, gpu.memory_utilization.value) == (0.37, 0.12)
    assert (gpu.memory_used_bytes.value, gpu.memory_total_bytes.value) == (20 * GIB, 80 * GIB)
    assert (gpu.power.value, gpu.power_limit.value, gpu.temperature.value) == (250.5, 400.0, 61)
    assert (gpu.sm_clock.value, gpu.memory_clock.value) == (1.410e9, 1.593e9)
    assert (gpu.pcie_receive.value, gpu.pcie_transmit.value) == (2e6, 1e6)
    assert gpu.throttled == ("power limit", "temperature (hardware)")
    ours, other = gpu.processes
    assert (ours.ours, ours.memory_bytes.value, ours.utilization.value) == (True, 5 * GIB, 0.35)
    assert (other.ours, other.name, other.memory_bytes, other.utilization) == (False, None, None, None)


def test_what_the_driver_refuses_is_missing_alone(tmp_path):
    refused = a_gpu(temperature=NVMLError(3), power=NVMLError(4), shares=NVMLError(6))
    del refused["pcie", 1]
    readings = gpus_of(nvml([refused]), tmp_path)
    (gpu,) = readings.gpus
    assert (gpu.temperature, gpu.power, gpu.pcie_receive) == (None, None, None)
    assert gpu.utilization.value == 0.37
    why = reasons(readings)
    assert "does not report" in why["gpu0.temperature"]
    assert "administrators" in why["gpu0.power"]
    assert "gpu0.processes.utilization" not in why, "no sample means that no kernel ran"


def test_a_divided_gpu_says_that_mig_hides_its_utilisation(tmp_path):
    memory = types.SimpleNamespace(total=10 * GIB, used=GIB, free=9 * GIB)
    instance = {"name": "Recorded GPU MIG 1g.10gb", "uuid": "MIG-9", "memory": memory, "processes": [process(os.getpid(), GIB // 2)]}
    as_pid_namespace(tmp_path)
    whole = a_gpu(mig=[1, 1], utilization=NVMLError(3))
    readings = gpus_of(nvml([whole], mig=[instance]), tmp_path)
    assert [(g.index, g.mig_instance, g.name) for g in readings.gpus] == [(0, None, "Recorded GPU"), (0, 0, "Recorded GPU MIG 1g.10gb")]
    assert readings.gpus[0].utilization is None
    assert readings.gpus[1].memory_total_bytes.value == 10 * GIB
    assert "MIG hides it" in reasons(readings)["gpu0.utilization"]
    assert readings.gpus[0].processes == ()  # of the whole they are those of its instances
    assert [(p.ours, p.memory_bytes.value, p.utilization) for p in readings.gpus[1].processes] == [(True, GIB // 2, None)]
    assert "MIG hides it" in reasons(readings)["gpu0.mig0.processes.utilization"]


def test_a_process_in_several_lists_is_there_once_and_a_missing_account_says_why(tmp_path):
    as_pid_namespace(tmp_path)
    running(tmp_path, 41, "Xorg")
    running(tmp_path, 42, "python")
    lists = {"processes": [process(42, 2 * GIB)], "graphics processes": [process(41, GIB), process(42, 2 * GIB)], "MPS processes": [process(43, None)]}
    readings = gpus_of(nvml([a_gpu(**lists, shares=[])]), tmp_path)
    sizes = [(p.pid, p.name, p.memory_bytes and p.memory_bytes.value) for p in readings.gpus[0].processes]
    assert sorted(sizes) == [(41, "Xorg", GIB), (42, "python", 2 * GIB), (43, None, None)]
    assert "no account of single processes" in reasons(readings)["gpu0.processes.memory"]


def test_lists_of_processes_come_from_older_drivers_too_and_a_refusal_says_why(tmp_path):
    as_pid_namespace(tmp_path)
    older = a_gpu(**{"processes": NVMLError(ERRORS["FUNCTION_NOT_FOUND"]), "processes by an older driver": [process(42, GIB)]}, shares=[])
    assert [p.pid for p in gpus_of(nvml([older]), tmp_path).gpus[0].processes] == [42]
    refused = gpus_of(nvml([a_gpu(processes=NVMLError(ERRORS["NO_PERMISSION"]))]), tmp_path)
    assert refused.gpus[0].processes == ()
    assert "administrators" in reasons(refused)["gpu0.processes"]


def test_utilisation_of_processes_is_the_drivers_account_of_them_where_it_takes_no_samples(tmp_path):
    as_pid_namespace(tmp_path)
    users = [process(42, GIB), process(43, GIB)]
    without = a_gpu(processes=users, shares=NVMLError(3), accounting=0)
    assert "does not report" in reasons(gpus_of(nvml([without]), tmp_path))["gpu0.processes.utilization"]
    kept = gpus_of(nvml([{**without, "accounting": 1, "accounts": {42: 17, 43: 2**32 - 1}}]), tmp_path)
    assert [p.utilization and (p.utilization.value, p.utilization.method) for p in kept.gpus[0].processes] == [
        (0.17, "mean over the process's life, by the driver's accounting"), None
    ]  # fmt: skip
    assert "gpu0.processes.utilization" not in reasons(kept)


@pytest.mark.parametrize(
    ("files", "told"),
    [(["/dev/null", "/dev/nvidia0"], True), (["/dev/dxg"], True), (["/dev/null"], False), (None, False)],
    ids=["has the GPU open", "has it open under Windows", "has something else open", "is not there"],
)
def test_in_a_container_a_number_is_believed_of_a_process_that_has_the_gpu_open(tmp_path, files, told):
    as_pid_namespace(tmp_path, 4_026_532_999)
    if files is not None:
        running(tmp_path, 42, "python", files)
    readings = gpus_of(nvml([a_gpu(processes=[process(42, GIB)])]), tmp_path)
    assert [p.name for p in readings.gpus[0].processes] == ["python" if told else None]
    assert ("numbers of the host" in reasons(readings).get("gpu.processes.names", "")) is not told


def test_whose_memory_a_gpus_is_adds_up_to_all_of_it(tmp_path):
    as_pid_namespace(tmp_path)
    for pid, name in ((41, "Xorg"), (42, "python"), (43, "python")):
        running(tmp_path, pid, name)
    users = [process(41, GIB), process(42, 4 * GIB), process(43, 2 * GIB)]
    readings = gpus_of(nvml([a_gpu(processes=users, shares=[share(42, 30), share(43, 20)])]), tmp_path)
    kernels = {"k1": ("work/net.ipynb", frozenset({42, 43})), "k2": ("other.ipynb", frozenset({50}))}
    (memory,) = gpu_memory(readings, kernels)
    assert [(h.kernel_id, h.name, h.pids, h.memory_bytes.value) for h in memory.holders] == [
        ("k1", "work/net.ipynb", (42, 43), 6 * GIB), (None, "Xorg", (41,), GIB)
    ]  # fmt: skip
    assert (memory.holders[0].utilization.value, memory.holders[1].utilization) == (pytest.approx(0.5), None)
    assert sum(h.memory_bytes.value for h in memory.holders) + memory.rest_bytes.value + memory.free_bytes.value == 80 * GIB
    assert [gpu_use(kernels[k][1], readings, Reasons())[0].value for k in kernels] == [6 * GIB, 0]


def test_whose_memory_it_is_is_not_guessed(tmp_path):
    """Numbers of the host: the one that a kernel has here as well is somebody else's there."""
    as_pid_namespace(tmp_path, 4_026_532_999)
    running(tmp_path, 42, "python")
    readings = gpus_of(nvml([a_gpu(processes=[process(42, None)])]), tmp_path)
    (memory,) = gpu_memory(readings, {"k1": ("work/net.ipynb", frozenset({42}))})
    assert [(h.kernel_id, h.name, h.memory_bytes) for h in memory.holders] == [(None, "process 42", None)]
    assert (memory.rest_bytes.value, memory.free_bytes.value) == (20 * GIB, 60 * GIB)
    why = Reasons()
    assert gpu_use(frozenset({42}), readings, why) == (None, None)
    assert "numbers of the host" in why.notes[0].text


def test_a_kernel_tells_its_own_share_of_a_gpu_and_how_long_a_cell_kept_it_busy(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr("aimass_lab.readings.gpu_processes.FIRST_PID_NAMESPACE", os.readlink("/proc/self/ns/pid"))
    held = [GIB]
    answers = {"is_initialized": True, "device_count": 1, "mem_get_info": (60 * GIB, 80 * GIB), "memory_reserved": 3 * GIB}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *device, answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *device: held[0])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="1234"))
    meter = CellMeter(nvml([a_gpu()]))
    meter.start()
    held[0] += GIB
    use, notes = meter.finish(number=3, code="y = model(x)")
    assert (use.gpu_memory_growth_bytes.value, notes) == (GIB, ())
    assert use.gpu_time.value == pytest.approx(0.35 * use.wall_time.value)
    (account,), notes = meter.accounts()
    parts = (account.tensors_bytes, account.cached_bytes, account.context_bytes, account.elsewhere_bytes, account.free_bytes)
    assert [part.value / GIB for part in parts] == [2, 1, 2, 15, 60]
    assert (account.uuid, notes) == ("1234", ())
    divided = CellMeter(nvml([a_gpu(shares=NVMLError(3))]))
    divided.start()
    use, (note,) = divided.finish(number=4, code="y")
    assert use.gpu_time is None, "not known is not zero"
    assert "does not report it" in note.text
    (account,), (note,) = CellMeter(nvml([a_gpu(processes=[process(os.getpid(), None)])])).accounts()
    assert (account.context_bytes, account.elsewhere_bytes.value) == (None, 17 * GIB)
    assert "no account of single processes" in note.text


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("DRIVER_NOT_LOADED", "the NVIDIA driver is not loaded"),
        ("LIBRARY_NOT_FOUND", "there is no NVIDIA driver here"),
        ("NO_PERMISSION", "not permitted"),
        ("LIB_RM_VERSION_MISMATCH", "differ in version"),
    ],
)
def test_a_driver_that_is_not_there_says_why(error, words):
    assert words in open_nvml(nvml(init_error=ERRORS[error])).text
    assert driver_version(nvml(init_error=ERRORS[error])) is None


def test_the_drivers_version():
    assert driver_version(nvml([])) == "550.54.15"


def test_without_the_binding_the_reason_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    note = open_nvml()
    assert (note.code, note.text) == ("missing:gpu", "nvidia-ml-py is not installed: pip install aimass-lab[gpu]")


def test_the_stand_in_has_only_what_the_real_binding_has():
    real = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    names = {name for name in vars(nvml()) if name.startswith(("nvml", "NVML"))}
    assert not {name for name in names if not hasattr(real, name)}
    assert all(getattr(real, f"NVML_ERROR_{name}") == value for name, value in ERRORS.items() if name != "SUCCESS")
    assert real.nvmlClocksEventReasonSwPowerCap == 4
    assert real.nvmlClocksEventReasonHwThermalSlowdown == 64
    given = {"c_nvmlProcessInfo_v2_t": process(1, 2), "c_nvmlProcessUtilizationSample_t": share(1, 2)}
    for name, made in given.items():
        assert {field for field, _ in getattr(real, name)._fields_} == set(vars(made)), name
    assert real.NVML_VALUE_NOT_AVAILABLE_uint.value == 2**32 - 1


# --- energy --------------------------------------------------------------------------------


def powercap(machine, zones):
    for zone, (name, micro_joules, largest) in zones.items():
        machine.write(f"sys/class/powercap/{zone}/name", f"{name}\n")
        machine.write(f"sys/class/powercap/{zone}/energy_uj", f"{micro_joules}\n")
        machine.write(f"sys/class/powercap/{zone}/max_energy_range_uj", f"{largest}\n")


def metered(sources, seconds, between, device="cpu", **options):
    times = iter([0.0, seconds])
    with EnergyMeter(device, sources=sources, clock=lambda: next(times), **options) as meter:
        between()
    return meter


RANGE = 262_143_328_850


def test_packages_and_their_memory_are_added_and_a_counter_that_wraps_goes_on(machine):
    zones = {
        "intel-rapl:0": ("package-0", RANGE - 2_000_000, RANGE),
        "intel-rapl:0:0": ("core", 1, RANGE),
        "intel-rapl:0:1": ("dram", 5_000_000, RANGE),
        "intel-rapl:1": ("package-1", 7_000_000, RANGE),
        "intel-rapl:2": ("psys", 0, RANGE),
        "intel-rapl-mmio:0": ("package-0", 0, RANGE),
    }
    powercap(machine, zones)

    def work():
        after = {"intel-rapl:0": 3_000_000, "intel-rapl:0:0": 10**9, "intel-rapl:0:1": 5_500_000, "intel-rapl:1": 17_000_000, "intel-rapl:2": 10**9}
        for zone, micro_joules in after.items():
            machine.write(f"sys/class/powercap/{zone}/energy_uj", f"{micro_joules}\n")

    meter = metered(machine.sources, 2.0, work)
    assert meter.parts == pytest.approx({"package-0": 5.0, "dram-0": 0.5, "package-1": 10.0})
    assert meter.joules == pytest.approx(15.5)
    assert meter.note is None
    number = meter.per_call(10)
    assert (number.value, number.unit, number.source, number.n) == (pytest.approx(1.55), "J", "measured", 10)
    assert number.interval == (pytest.approx(1.55 * (1 - 0.0005)), pytest.approx(1.55 * (1 + 0.0005)))


def test_power_stands_among_the_readings(machine):
    powercap(machine, {"intel-rapl:0": ("package-0", 0, RANGE)})
    readings = look_twice(machine, seconds=4.0, before=lambda: powercap(machine, {"intel-rapl:0": ("package-0", 100_000_000, RANGE)}))
    assert (readings.cpu.power.value, readings.cpu.power.unit) == (25.0, "W")


def test_sockets_of_amd_where_only_the_sensors_are_there(machine):
    machine.write("sys/class/hwmon/hwmon3/name", "amd_energy\n")
    for number, label, value in ((1, "Ecore000", 5), (2, "Esocket0", 1_000_000), (3, "Esocket1", 2_000_000)):
        machine.write(f"sys/class/hwmon/hwmon3/energy{number}_label", f"{label}\n")
        machine.write(f"sys/class/hwmon/hwmon3/energy{number}_input", f"{value}\n")
    meter = metered(machine.sources, 1.0, lambda: machine.write("sys/class/hwmon/hwmon3/energy2_input", "4000000\n"))
    assert meter.parts == {"socket0": 3.0, "socket1": 0.0}


@pytest.mark.parametrize(("seconds", "words"), [(0.001, "measure more calls"), (600.0, "more than once")])
def test_a_block_that_the_counter_cannot_resolve_has_no_energy(machine, seconds, words):
    powercap(machine, {"intel-rapl:0": ("package-0", 0, RANGE)})
    meter = metered(machine.sources, seconds, lambda: None)
    assert meter.joules is None
    assert meter.per_call() is None
    assert meter.note.code == "missing:energy"
    assert words in meter.note.text


def test_a_machine_without_counters_says_so(machine):
    meter = metered(machine.sources, 1.0, lambda: None)
    assert meter.joules is None
    assert "no energy counter" in meter.note.text


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="no users here")
def test_counters_for_administrators_only_name_the_file_and_the_remedy():
    root = Path(tempfile.mkdtemp())
    try:
        root.chmod(0o755)
        machine = Machine(root)
        powercap(machine, {"intel-rapl:0": ("package-0", 0, RANGE)})
        counter = root / "sys/class/powercap/intel-rapl:0/energy_uj"
        counter.chmod(0o000)
        user = os.geteuid()
        os.seteuid(65534 if user == 0 else user)
        try:
            meter = metered(machine.sources, 1.0, lambda: None)
        finally:
            os.seteuid(user)
        assert meter.joules is None
        assert str(counter) in meter.note.text
        assert "chmod a+r" in meter.note.text
    finally:
        shutil.rmtree(root)


def test_energy_of_a_gpu_board(machine):
    module = nvml([a_gpu(uuid="GPU-0000", energy=[1, 2, 3]), a_gpu(energy=[900, 1_000, 13_500])])
    meter = metered(Sources(nvml=module), 2.0, lambda: None, device="cuda:0", gpu_uuid="1234")
    assert meter.joules == pytest.approx(12.5)
    assert meter.per_call(5).value == pytest.approx(2.5)
    assert meter.per_call(5).interval == (pytest.approx(2.5 * 0.95), pytest.approx(2.5 * 1.05))
    assert module.open == 0


@pytest.mark.parametrize(
    ("module", "uuid", "words"),
    [
        (nvml([a_gpu(energy=NVMLError(3))]), "GPU-1234", "before Volta"),
        (nvml([a_gpu()]), "GPU-5678", "does not know the GPU"),
        (no_driver(), "GPU-1234", "not loaded"),
    ],
)
def test_a_gpu_without_an_energy_counter_says_why(module, uuid, words):
    meter = metered(Sources(nvml=module), 2.0, lambda: None, device="cuda:0", gpu_uuid=uuid)
    assert meter.joules is None
    assert words in meter.note.text


# --- this machine --------------------------------------------------------------------------


def test_this_machine_as_psutil_sees_it():
    readings = take_readings(0.1)
    assert readings.memory.machine_total_bytes.value == psutil.virtual_memory().total
    assert readings.memory.process_bytes.value == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
    assert readings.memory.process_unique_bytes.value == pytest.approx(psutil.Process().memory_full_info().uss, rel=0.2)
    assert 0 < readings.cpu.usable_cores.value <= psutil.cpu_count()
    assert len(readings.cpu.cores) == len(os.sched_getaffinity(0))
    assert readings.interval.value >= 0.1
    assert {n.interface for n in readings.network} <= set(psutil.net_io_counters(pernic=True))


def test_processor_time_of_this_process():
    sampler = Sampler()
    before = os.times()
    while (now := os.times()).user + now.system < before.user + before.system + 0.3:
        pass
    readings = sampler.read()
    used = readings.cpu.process.value * readings.interval.value
    spent = sum(os.times()[:2]) - sum(before[:2])
    assert 0.3 - 2 / TICKS <= used <= spent + 4 / TICKS


def test_bytes_over_the_loopback_are_seen():
    sampler = Sampler()
    payload = bytes(2**20)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        sender = threading.Thread(target=client.sendall, args=(payload,))
        sender.start()
        with accepted:
            left = len(payload)
            while left:
                left -= len(accepted.recv(2**16))
        sender.join()
    readings = sampler.read()
    (loopback,) = [n for n in readings.network if n.interface == "lo"]
    assert loopback.receive.value * readings.interval.value >= len(payload)
    assert loopback.transmit.value * readings.interval.value >= len(payload)


def test_readings_survive_json_and_both_ways_of_showing(tmp_path):
    for readings in (take_readings(0.05), gpus_of(nvml([a_gpu()]), tmp_path)):
        assert any_from_json(to_json(readings)) == readings
        assert readings.cpu.name in render_text(readings)
        assert "missing:" in render_html(readings)
        assert "usable" in headline(readings)
    assert "Recorded GPU" in render_text(readings)
    assert "61.0 °C" in render_text(readings)
    assert "GPU 0 37 % busy" in headline(readings)


def test_the_verb(capsys):
    assert main(["readings", "--seconds", "50ms", "--json"]) == 0
    assert isinstance(any_from_json(capsys.readouterr().out), Readings)


@pytest.mark.parametrize("interval", [0, -1, float("nan"), float("inf"), 0.001])
def test_intervals_that_give_no_rate_are_refused(interval):
    with pytest.raises(InputError, match="cannot be taken"):
        take_readings(interval)


# --- monitor -------------------------------------------------------------------------------


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "aimass-readings"]


def test_the_monitor_keeps_the_newest_readings_and_leaves_no_thread():
    with Monitor(interval_s=0.05, history=3) as monitor:
        wait_for(lambda: len(monitor.history) == 3)
        first = monitor.history[0]
        wait_for(lambda: first not in monitor.history)
        assert len(monitor.history) == 3
        assert monitor.running
    assert not monitor.running
    assert not threads()
    assert monitor.latest is monitor.history[-1]
    stamps = [readings.taken_at for readings in monitor.history]
    assert stamps == sorted(stamps)


def test_the_monitor_goes_on_after_a_stop_and_starts_only_once():
    monitor = Monitor(interval_s=0.05)
    assert monitor.latest is None
    monitor.stop()
    assert monitor.start().start() is monitor
    assert len(threads()) == 1
    wait_for(lambda: monitor.latest)
    monitor.stop()
    kept = len(monitor.history)
    monitor.start()
    wait_for(lambda: len(monitor.history) > kept)
    monitor.stop()
    assert not threads()


def test_a_forgotten_monitor_ends():
    monitor = Monitor(interval_s=0.05).start()
    del monitor
    gc.collect()
    wait_for(lambda: not threads())


@pytest.mark.parametrize("history", [0, -1, True, 2.5])
def test_a_history_that_cannot_be_kept_is_refused(history):
    with pytest.raises(InputError, match="history"):
        Monitor(history=history)
