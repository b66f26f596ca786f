"""The device catalogue, and the user's additions to it."""

import pytest

from aimass_lab.devices import CATALOGUE, find_by_driver_name, get_device, load_devices, resource_name
from aimass_lab.errors import InputError, UnknownNameError


@pytest.fixture(autouse=True)
def no_user_catalogue(monkeypatch, tmp_path):
    monkeypatch.delenv("AIMASS_DEVICES", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def figures(device):
    singles = [device.memory_bytes, device.memory_bytes_per_s, device.link_bytes_per_s, device.pcie_bytes_per_s, device.tdp_w]
    singles += [device.num_multiprocessors, device.clock_hz, device.cache_bytes, device.num_cores]
    return [number for number in singles if number] + list(device.flops_per_s.values())


def test_the_accelerators_people_serve_on_are_there():
    devices = load_devices()
    assert len([d for d in devices.values() if d.kind == "gpu"]) >= 20
    assert {
        "t4",
        "a10",
        "a30",
        "a40",
        "a100-40",
        "a100-80",
        "l4",
        "l40s",
        "h100-pcie",
        "h100-sxm",
        "h200-sxm",
        "b200",
        "a10g",
        "l40",
        "gaudi-3",
        "rtx-4090",
        "mi300x",
    } <= set(devices)


@pytest.mark.parametrize("name", sorted(load_devices()))
def test_every_figure_is_cited_and_plausible(name):
    device = get_device(name)
    for number in figures(device):
        assert number.source == "datasheet"
        assert "http" in number.method
    if device.kind == "gpu":
        assert 8e9 <= device.memory_bytes.value <= 1e12
        assert 2e11 <= device.memory_bytes_per_s.value <= 2e13
        peaks = {dtype: number.value for dtype, number in device.flops_per_s.items()}
        lowest = [peaks[dtype] for dtype in ("float32", "tf32", "float16", "float8") if dtype in peaks]
        assert lowest == sorted(lowest)  # tensor cores are never the slower way
        assert peaks.get("bfloat16") in (None, peaks.get("float16", peaks.get("bfloat16")))  # one rate for both on all of these devices
        assert device.price_usd_per_h is None


def test_the_processor_has_no_invented_peaks():
    cpu = get_device("cpu")
    assert cpu.kind == "cpu"
    assert figures(cpu) == []


def test_figures_of_one_known_device():
    """The A100's own arithmetic: 108 SMs x 64 lanes x 2 FLOP x 1.41 GHz, and 1024 half-precision FMAs an SM and clock."""
    a100 = get_device("a100-80")
    assert a100.flops_per_s["float32"].value == pytest.approx(108 * 64 * 2 * 1.41e9, rel=0.01)
    assert a100.flops_per_s["float16"].value == pytest.approx(108 * 1024 * 2 * 1.41e9, rel=0.01)
    assert a100.flops_per_s["tf32"].value * 2 == a100.flops_per_s["float16"].value
    assert "float8" not in a100.flops_per_s


LANES = {"7.0": 64, "7.5": 64, "8.0": 64}  # float32 lanes of a multiprocessor by generation, 128 in all later ones


@pytest.mark.parametrize("name", sorted(n for n, d in load_devices().items() if d.compute_capability and d.num_multiprocessors))
def test_multiprocessors_and_clock_give_the_peak_the_vendor_prints(name):
    device = get_device(name)
    lanes = LANES.get(device.compute_capability, 128)
    assert device.num_multiprocessors.value * lanes * 2 * device.clock_hz.value == pytest.approx(device.flops_per_s["float32"].value, rel=0.015)


@pytest.mark.parametrize(
    ("reported", "gib", "name"),
    [
        ("NVIDIA H100 80GB HBM3", 79.1, "h100-sxm"),
        ("NVIDIA H100 PCIe", 79.1, "h100-pcie"),
        ("NVIDIA H200", 139.8, "h200-sxm"),
        ("NVIDIA A100-SXM4-80GB", 79.3, "a100-80"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "a100-40"),
        ("NVIDIA A100 80GB PCIe", 79.3, "a100-80-pcie"),
        ("NVIDIA A10", 22.5, "a10"),
        ("NVIDIA A10G", 22.1, "a10g"),
        ("NVIDIA L40S", 44.5, "l40s"),
        ("NVIDIA L4", 22.0, "l4"),
        ("Tesla T4", 14.6, "t4"),
        ("NVIDIA GeForce RTX 3090", 23.6, "rtx-3090"),
        ("NVIDIA GeForce RTX 3090 Ti", 23.6, None),
        ("NVIDIA H100 NVL", 93.1, "h100-nvl"),
        ("NVIDIA H200 NVL", 139.8, None),
        ("Tesla V100-SXM2-32GB", 31.7, None),  # the catalogue has the 16 GB card
        ("Quadro P2000", 4.9, None),
    ],
)
def test_a_device_is_found_by_what_its_driver_says(reported, gib, name):
    found = find_by_driver_name(reported, gib * 2**30)
    assert (found and found.name) == name


def test_a_processor_by_cores_clock_and_instructions(tmp_path):
    """16 cores x 2.4 GHz x two 16-lane fused multiply-adds a cycle, by hand."""
    mine = write(tmp_path / "mine.toml", '[box]\nkind = "cpu"\nnum_cores = 16\nclock_hz = 2.4e9\nisa = "avx512"\nmemory_bytes_per_s = 2e11\n')
    box = get_device("box", mine)
    assert box.flops_per_s["float32"].value == 16 * 2.4e9 * 2 * 16 * 2
    assert (box.flops_per_s["float32"].source, box.flops_per_s["float32"].trust) == ("derived", "user")
    assert "bfloat16" not in box.flops_per_s


def test_what_the_user_says_of_a_peak_goes_before_cores_and_clock(tmp_path):
    text = '[box]\nkind = "cpu"\nnum_cores = 16\nclock_hz = 2.4e9\nisa = "avx2"\n\n[box.flops_per_s]\nfloat32 = 9e11\n'
    assert get_device("box", write(tmp_path / "mine.toml", text)).flops_per_s["float32"].value == 9e11


def test_unknown_device_names_the_known_ones():
    with pytest.raises(UnknownNameError, match="did you mean 'h100-sxm'"):
        get_device("h100-sxn")


def test_user_adds_a_price_and_a_device(tmp_path):
    extra = write(tmp_path / "mine.toml", '[l4]\nprice_usd_per_h = 0.8\n\n[box]\nkind = "gpu"\nmemory_bytes = 12_000_000_000\n')
    devices = load_devices(extra)
    assert devices["l4"].price_usd_per_h.value == 0.8
    assert devices["l4"].price_usd_per_h.source == "user"
    assert devices["l4"].memory_bytes == load_devices()["l4"].memory_bytes
    assert devices["box"].memory_bytes.source == "user"
    assert devices["box"].memory_bytes_per_s is None


def test_user_files_are_found_by_variable_and_by_place(tmp_path, monkeypatch):
    write(tmp_path / "config" / "aimass_lab" / "devices.toml", '[home]\nkind = "cpu"\n')
    assert "home" in load_devices()
    monkeypatch.setenv("AIMASS_DEVICES", str(write(tmp_path / "named.toml", '[named]\nkind = "cpu"\n')))
    assert "named" in load_devices()
    assert "home" not in load_devices()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[l4]\nmemory_bites = 1\n", "memory_bites"),
        ("[l4]\nmemory_bytes = -1\n", "memory_bytes"),
        ('[l4]\nmemory_bytes = "24 GB"\n', "memory_bytes"),
        ("[l4.flops_per_s]\nfloat64 = 1e12\n", "float64"),
        ("[new]\nmemory_bytes = 1e9\n", "no kind"),
        ('[new]\nkind = "abacus"\n', "abacus"),
        ("l4 = 3\n", r"\[l4\]"),
        ("[l4\n", "cannot read"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        load_devices(write(tmp_path / "wrong.toml", text))


def test_a_named_file_must_exist(tmp_path, monkeypatch):
    monkeypatch.setenv("AIMASS_DEVICES", str(tmp_path / "missing.toml"))
    with pytest.raises(InputError, match=r"missing\.toml"):
        load_devices()


def test_the_catalogue_refuses_uncited_figures(tmp_path, monkeypatch):
    uncited = write(tmp_path / "devices.toml", '[x]\nkind = "gpu"\nmemory_bytes = 1e9\n')
    monkeypatch.setattr("aimass_lab.devices.CATALOGUE", uncited)
    with pytest.raises(InputError, match="without a source"):
        load_devices()
    assert CATALOGUE.name == "devices.toml"


# --- what clusters call them, and what users know of them --------------------------------


def test_the_name_that_a_cluster_offers_a_device_under(tmp_path, monkeypatch):
    path = tmp_path / "devices.toml"
    path.write_text('[card]\nkind = "fpga"\n[named]\nkind = "other"\nresource = "vendor.com/card"\n[l4]\nresource = "nvidia.com/gpu.shared"\n')
    monkeypatch.setenv("AIMASS_DEVICES", str(path))
    found = {name: resource_name(name) for name in ("card", "named", "l4", "a10", "mi300x", "gaudi-3")}
    assert found == {
        "card": None, "named": "vendor.com/card", "l4": "nvidia.com/gpu.shared", "a10": "nvidia.com/gpu", "mi300x": "amd.com/gpu", "gaudi-3": "habana.ai/gaudi",
    }  # fmt: skip
    assert resource_name("cuda:0", "NVIDIA H100 80GB HBM3") == "nvidia.com/gpu"
    assert resource_name("cuda:0", "AMD Instinct MI300X") == "amd.com/gpu"


def test_latencies_that_a_user_knows(tmp_path):
    path = tmp_path / "devices.toml"
    path.write_text('[card]\nkind = "fpga"\nlatency = { net = { "8" = "9ms", "1" = "2ms" } }\n')
    ladder = load_devices(path)["card"].ladder("net")
    assert [(p.batch_size, p.latency_p50.value, p.latency_p99.source) for p in ladder] == [(1, pytest.approx(0.002), "user"), (8, pytest.approx(0.009), "user")]
    assert load_devices(path)["card"].ladder("other") == ()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('resource = "fpga"', "resource"),
        ('latency = { net = { "none" = "2ms" } }', "'none' is no batch size"),
        ('latency = { net = { "1" = "soon" } }', "soon"),
    ],
)
def test_a_table_that_is_wrong_says_so(tmp_path, line, message):
    path = tmp_path / "devices.toml"
    path.write_text(f'[card]\nkind = "fpga"\n{line}\n')
    with pytest.raises(InputError, match=message):
        load_devices(path)
