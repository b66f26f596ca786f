"""A module as ``pynvml``, for machines without a GPU: it answers and refuses as the binding to NVIDIA's driver does, with its names, fields and errors."""

import os
import types

GIB = 2**30
ERRORS = {
    "SUCCESS": 0, "NOT_SUPPORTED": 3, "NO_PERMISSION": 4, "NOT_FOUND": 6, "DRIVER_NOT_LOADED": 9, "LIBRARY_NOT_FOUND": 12, "FUNCTION_NOT_FOUND": 13,
    "GPU_IS_LOST": 15, "LIB_RM_VERSION_MISMATCH": 18,
}  # fmt: skip
WORDS = {
    3: "Not Supported", 4: "Insufficient Permissions", 6: "Not Found", 9: "Driver Not Loaded", 12: "NVML Shared Library Not Found", 13: "Function Not Found",
    15: "GPU is lost", 18: "RM has detected an NVML/RM version mismatch.",
}  # fmt: skip


class NVMLError(Exception):
    """Made by its number, as the binding makes it."""

    def __init__(self, value):
        super().__init__(value)
        self.value = value

    def __str__(self):
        return WORDS.get(self.value, f"NVML Error with code {self.value}")


def nvml(handles=(), *, init_error=None, mig=()):
    """Make the module.

    A handle is a dict of what the driver answers: a key that is absent is not supported, a value that is an error is raised, one that can be called is
    called.
    """
    made = types.SimpleNamespace(NVMLError=NVMLError, NVML_SUCCESS=0, NVML_TEMPERATURE_GPU=0, NVML_CLOCK_SM=1, NVML_CLOCK_MEM=2, open=0)
    made.NVML_PCIE_UTIL_TX_BYTES, made.NVML_PCIE_UTIL_RX_BYTES = 0, 1
    made.nvmlClocksEventReasonSwPowerCap, made.nvmlClocksEventReasonHwThermalSlowdown = 4, 64
    for name, value in ERRORS.items():
        setattr(made, f"NVML_ERROR_{name}" if name != "SUCCESS" else "NVML_SUCCESS", value)

    def init():
        error = init_error() if callable(init_error) else init_error
        if error is not None:
            raise NVMLError(error)
        made.open += 1

    def shutdown():
        made.open -= 1

    def answer(handle, *key):
        found = handle.get(key if len(key) > 1 else key[0], NVMLError(3))
        if isinstance(found, Exception):
            raise found
        if callable(found):
            return found()
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

    def accounts(handle, pid):
        found = answer(handle, "accounts")
        if pid not in found:
            raise NVMLError(6)
        return types.SimpleNamespace(gpuUtilization=found[pid], memoryUtilization=0, maxMemoryUsage=0, time=0, startTime=0, isRunning=1)

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
    made.nvmlDeviceGetComputeRunningProcesses_v2 = lambda h: answer(h, "processes by an older driver")
    made.nvmlDeviceGetMPSComputeRunningProcesses = lambda h: answer(h, "MPS processes")
    made.nvmlDeviceGetGraphicsRunningProcesses = lambda h: answer(h, "graphics processes")
    made.nvmlDeviceGetProcessUtilization = lambda h, since: answer(h, "shares")
    made.nvmlDeviceGetAccountingMode = lambda h: answer(h, "accounting")
    made.nvmlDeviceGetAccountingStats = accounts
    made.nvmlDeviceGetTotalEnergyConsumption = lambda h: answer(h, "energy")
    return made


def no_driver():
    """On a machine whose driver is not loaded."""
    return nvml(init_error=ERRORS["DRIVER_NOT_LOADED"])


def process(pid, memory):
    """One entry of a list of processes; memory of None is what the binding makes of NVML_VALUE_NOT_AVAILABLE."""
    return types.SimpleNamespace(pid=pid, usedGpuMemory=memory, gpuInstanceId=2**32 - 1, computeInstanceId=2**32 - 1)


def share(pid, percent):
    """One sample of a process's utilisation."""
    return types.SimpleNamespace(pid=pid, smUtil=percent, memUtil=0, encUtil=0, decUtil=0, timeStamp=1)


def a_gpu(**other):
    """What the driver answers of one; this process computes on it, and one that is not there."""
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
