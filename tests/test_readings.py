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

from aimass_lab.errors import InputError
from aimass_lab.frontends.cli import main
from aimass_lab.frontends.render import render_html, render_text
from aimass_lab.headlines import headline
from aimass_lab.readings import EnergyMeter, Monitor, Sampler, driver_version, take_readings
from aimass_lab.readings.base import Sources
from aimass_lab.readings.cgroup import cpu_group, memory_group
from aimass_lab.readings.nvml import open_nvml
from aimass_lab.records import Readings, any_from_json, to_json

TICKS = os.sysconf("SC_CLK_TCK")
GIB = 2**30


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


# --- GPUs: a stand-in that answers and refuses as the driver's binding does ------------------


class NVMLError(Exception):
    def __init__(self, value):
        super().__init__(value)
        self.value = value

    def __str__(self):
        return {3: "Not Supported", 4: "Insufficient Permissions", 6: "Not Found", 9: "Driver Not Loaded", 12: "NVML Shared Library Not Found"}[self.value]


ERRORS = {"SUCCESS": 0, "NOT_SUPPORTED": 3, "NO_PERMISSION": 4, "NOT_FOUND": 6, "DRIVER_NOT_LOADED": 9, "LIBRARY_NOT_FOUND": 12, "GPU_IS_LOST": 15}
ERRORS["LIB_RM_VERSION_MISMATCH"] = 18


def nvml(handles=(), *, init_error=None, mig=()):
    """A module as ``pynvml``: a handle is a dict of what the driver answers; a key that is absent is refused, a number is an error."""
    made = types.SimpleNamespace(NVMLError=NVMLError, NVML_SUCCESS=0, NVML_TEMPERATURE_GPU=0, NVML_CLOCK_SM=1, NVML_CLOCK_MEM=2, open=0)
    made.NVML_PCIE_UTIL_TX_BYTES, made.NVML_PCIE_UTIL_RX_BYTES = 0, 1
    made.nvmlClocksEventReasonSwPowerCap, made.nvmlClocksEventReasonHwThermalSlowdown = 4, 64
    for name, value in ERRORS.items():
        setattr(made, f"NVML_ERROR_{name}" if name != "SUCCESS" else "NVML_SUCCESS", value)

    def init():
        if init_error is not None:
            raise NVMLError(init_error)
        made.open += 1

    def shutdown():
        made.open -= 1

    def answer(handle, *key):
        found = handle.get(key if len(key) > 1 else key[0], NVMLError(3))
        if isinstance(found, Exception):
            raise found
        return found.pop(0) if isinstance(found, list) and key[0] == "energy" else found

    def by_uuid(uuid):
        for handle in (*handles, *mig):
            if handle["uuid"] == uuid:
                return handle
        raise NVMLError(6)

    def mig_handle(handle, number):
        if number >= len(mig):
            raise NVMLError(6)
        return mig[number]

    made.nvmlInit, made.nvmlShutdown = init, shutdown
    made.nvmlSystemGetDriverVersion = lambda: "550.54.15"
    made.nvmlDeviceGetCount = lambda: len(handles)
    made.nvmlDeviceGetHandleByIndex = lambda i: handles[i]
    made.nvmlDeviceGetHandleByUUID = by_uuid
    made.nvmlDeviceGetName = lambda h: answer(h, "name")
    made.nvmlDeviceGetUUID = lambda h: answer(h, "uuid")
    made.nvmlDeviceGetMigMode = lambda h: answer(h, "mig")
    made.nvmlDeviceGetMaxMigDeviceCount = lambda h: 7
    made.nvmlDeviceGetMigDeviceHandleByIndex = mig_handle
    made.nvmlDeviceGetUtilizationRates = lambda h: answer(h, "utilization")
    made.nvmlDeviceGetMemoryInfo = lambda h: answer(h, "memory")
    made.nvmlDeviceGetPowerUsage = lambda h: answer(h, "power")
    made.nvmlDeviceGetEnforcedPowerLimit = lambda h: answer(h, "limit")
    made.nvmlDeviceGetTemperature = lambda h, sensor: answer(h, "temperature")
    made.nvmlDeviceGetClockInfo = lambda h, kind: answer(h, "clock", kind)
    made.nvmlDeviceGetPcieThroughput = lambda h, counter: answer(h, "pcie", counter)
    made.nvmlDeviceGetCurrentClocksEventReasons = lambda h: answer(h, "throttle")
    made.nvmlDeviceGetComputeRunningProcesses = lambda h: answer(h, "processes")
    made.nvmlDeviceGetProcessUtilization = lambda h, since: answer(h, "shares")
    made.nvmlDeviceGetTotalEnergyConsumption = lambda h: answer(h, "energy")
    return made


def no_driver():
    return nvml(init_error=ERRORS["DRIVER_NOT_LOADED"])


def process(pid, memory):
    return types.SimpleNamespace(pid=pid, usedGpuMemory=memory)


def share(pid, percent):
    return types.SimpleNamespace(pid=pid, smUtil=percent, memUtil=0, timeStamp=1)


def a_gpu(**other):
    found = {
        "name": "Recorded GPU",
        "uuid": "GPU-1234",
        "mig": NVMLError(3),
        "utilization": types.SimpleNamespace(gpu=37, memory=12),
        "memory": types.SimpleNamespace(total=80 * GIB, used=20 * GIB, free=60 * GIB),
        "power": 250_500,
        "limit": 400_000,
        "temperature": 61,
        ("clock", 1): 1410,
        ("clock", 2): 1593,
        ("pcie", 1): 2000,
        ("pcie", 0): 1000,
        "throttle": 4 | 64,
        "processes": [process(os.getpid(), 5 * GIB), process(2**22 + 7, None)],
        "shares": [share(os.getpid(), 30), share(os.getpid(), 40), share(0, 9)],
        "energy": [1_000, 13_500],
    }
    return {**found, **other}


def gpus_of(module, tmp_path):
    times = iter([0.0, 1.0])
    sampler = Sampler(Sources(proc=tmp_path, sys=tmp_path, cgroup=tmp_path, nvml=module), clock=lambda: next(times))
    readings = sampler.read()
    sampler.close()
    assert module.open == 0, "every session with the driver is ended"
    return readings


def test_a_gpu_in_si_units(tmp_path):
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
    instance = {"name": "Recorded GPU MIG 1g.10gb", "uuid": "MIG-9", "memory": types.SimpleNamespace(total=10 * GIB, used=GIB, free=9 * GIB)}
    whole = a_gpu(mig=[1, 1], utilization=NVMLError(3))
    readings = gpus_of(nvml([whole], mig=[instance]), tmp_path)
    assert [(g.index, g.mig_instance, g.name) for g in readings.gpus] == [(0, None, "Recorded GPU"), (0, 0, "Recorded GPU MIG 1g.10gb")]
    assert readings.gpus[0].utilization is None
    assert readings.gpus[1].memory_total_bytes.value == 10 * GIB
    assert "MIG hides it" in reasons(readings)["gpu0.utilization"]


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
    assert "GPU 0 37% busy" in headline(readings)


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
