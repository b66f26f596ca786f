"""Allocation on a fleet: the choice against brute force, packing, limits, fairness, sharing of devices, and the verb."""

import _thread
import functools
import itertools
import math
import random
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import aimass_lab.fleet.solve as solving
from aimass_lab import Study, chart
from aimass_lab.devices import load_devices
from aimass_lab.errors import InputError, UnknownNameError
from aimass_lab.fleet.allocate import Terms, make_allocation
from aimass_lab.fleet.inventory import Attached, read_fleet
from aimass_lab.fleet.joint import Stream, take_turns
from aimass_lab.fleet.limits import find_limits
from aimass_lab.fleet.problem import Client, Node, Option, Problem, Quota, cost_of
from aimass_lab.fleet.program import Program
from aimass_lab.fleet.shares import MIG_MEMORY, read_share
from aimass_lab.fleet.solve import solve
from aimass_lab.fleet.ways import Ask, Variant, capacity
from aimass_lab.frontends.cli import main
from aimass_lab.frontends.render import render_html, render_plain
from aimass_lab.planning import make_plan
from aimass_lab.planning.overhead import FRONT_END_S, Overhead
from aimass_lab.planning.queueing import Poisson, ServiceTimes
from aimass_lab.planning.simulate import simulate_fcfs
from aimass_lab.records import BatchPoint, FleetAllocation, ModelInfo, Number, from_json, to_json
from aimass_lab.store import Store
from aimass_lab.targets import make_target

# --- an oracle that shares nothing with what it judges ------------------------------------


def fits(node, items, devices=None):
    """Whether replicas fit on one node, by trying every way to deal them out to its devices."""
    if sum(o.cores for o in items) > node.cores + 1e-6 or sum(o.memory for o in items) > node.memory + 1e-6:
        return False

    def deal(left, state):
        if not left:
            return True
        return any(
            lot in ("", left[0].lot)
            and compute + left[0].compute <= 1 + 1e-6
            and memory + left[0].device_memory <= 1 + 1e-6
            and deal(left[1:], (*state[:k], (left[0].lot, compute + left[0].compute, memory + left[0].device_memory), *state[k + 1 :]))
            for k, (lot, compute, memory) in enumerate(state)
        )

    return deal([o for o in items if o.lot], (("", 0.0, 0.0),) * node.devices)


def fewest_nodes(problem, place, counts):
    """The fewest nodes of one type that hold these replicas, by trying every way; infinite where there are none."""
    node = problem.nodes[place]
    items = [problem.options[o] for o, count in counts for _ in range(count)]
    best = math.inf

    def put(k, groups):
        nonlocal best
        if len(groups) >= best:
            return
        if k == len(items):
            best = len(groups)
            return
        for g, group in enumerate(groups):
            if fits(node, [*group, items[k]]):
                put(k + 1, [*groups[:g], [*group, items[k]], *groups[g + 1 :]])
        if fits(node, [items[k]]):
            put(k + 1, [*groups, [items[k]]])

    put(0, [])
    return best


def held(problem, choice, quota):
    """What a tenant holds of the resource that its quota counts."""
    mine = [(o, c) for (o, c), client in zip(choice, problem.clients, strict=True) if c and client.tenant == quota.tenant]
    return sum(c * problem.options[o].use(quota.resource) for o, c in mine)


def every_answer(problem, *, whole):
    """Cost and shares of every allocation that keeps all limits."""
    ways = []
    for i in range(len(problem.clients)):
        mine = [(o, c) for o, option in enumerate(problem.options) if option.model == i for c in range(1, problem.full(o) + 1)]
        ways.append([(o, c) for o, c in mine if c == problem.full(o)] if whole else [(None, 0), *mine])

    @functools.cache
    def nodes(place, counts):
        return fewest_nodes(problem, place, counts)

    for choice in itertools.product(*ways):
        if sum(c for _, c in choice) > problem.max_jobs:
            continue
        if any(held(problem, choice, quota) > quota.limit + 1e-6 for quota in problem.quotas):
            continue
        used = [nodes(n, tuple(sorted((o, c) for o, c in choice if c and problem.options[o].node == n))) for n in range(len(problem.nodes))]
        if any(u > node.count for u, node in zip(used, problem.nodes, strict=True)):
            continue
        cost = sum(u * node.price for u, node in zip(used, problem.nodes, strict=True))
        if cost <= problem.budget + 1e-6:
            got = zip(choice, problem.clients, strict=True)
            yield cost, [0.0 if o is None else min(1.0, c * problem.options[o].rate / client.rate) for (o, c), client in got]


def by_group(problem, shares):
    """Shares of tenants over their weights, the least first."""
    return sorted(
        round(sum(problem.clients[i].value * shares[i] for i in models) / sum(problem.clients[i].value for i in models) / weight, 4)
        for _, models, weight in problem.groups()
    )


@st.composite
def problems(draw, *, tenants=False):
    """Two types of nodes, one with devices; two or three models, each with some ways to run."""
    nodes = (
        Node(name="cpu", cores=draw(st.sampled_from([3, 4, 5])), memory=8.0, price=draw(st.sampled_from([0.3, 1.0])), count=draw(st.integers(0, 2))),
        Node(name="gpu", cores=4, memory=16.0, devices=draw(st.integers(1, 2)), price=draw(st.sampled_from([0.9, 2.0])), count=draw(st.integers(0, 2))),
    )
    clients, options = [], []
    for i in range(draw(st.integers(2, 3))):
        tenant = draw(st.sampled_from(["", "t", "t"])) if tenants else ""
        clients.append(Client(name=f"m{i}", rate=draw(st.sampled_from([10.0, 25.0, 40.0])), value=draw(st.sampled_from([1.0, 3.0])), tenant=tenant))
        ways = draw(st.lists(st.sampled_from(["small", "large", "whole", "half", "slice"]), min_size=1, max_size=2, unique=True))
        fields = {
            "small": {"node": 0, "cores": 1, "memory": 2.0, "rate": 14.0},
            "large": {"node": 0, "cores": 2, "memory": 3.0, "rate": 25.0},
            "whole": {"node": 1, "cores": 1, "memory": 1.0, "lot": "whole", "compute": 1.0, "device_memory": 1.0, "rate": 40.0},
            "half": {"node": 1, "cores": 1, "memory": 1.0, "lot": "mps/2", "compute": 0.5, "device_memory": 0.6, "rate": 18.0},
            "slice": {"node": 1, "cores": 1, "memory": 1.0, "lot": "mig", "compute": 3 / 7, "device_memory": 0.5, "rate": 15.0},
        }
        options += [Option(model=i, **fields[way]) for way in ways]
    limits = {"budget": draw(st.sampled_from([math.inf, 1.5, 3.0])), "max_jobs": draw(st.sampled_from([math.inf, 2, 4]))}
    quotas = (Quota(tenant="t", resource=draw(st.sampled_from(["replicas", "cores", "devices"])), limit=2),) if tenants and draw(st.booleans()) else ()
    return Problem(nodes=nodes, clients=tuple(clients), options=tuple(options), quotas=quotas, weights={"t": draw(st.sampled_from([1.0, 2.0]))}, **limits)


def check(problem, solution):
    """No limit is exceeded, no node holds more than fits on it, and every replica is somewhere."""
    for n, node in enumerate(problem.nodes):
        assert sum(placed.node == n for placed in solution.placed) <= node.count
    where = {o: 0 for o in solution.chosen if o is not None}
    for placed in solution.placed:
        node = problem.nodes[placed.node]
        items = [(problem.options[o], device) for o, device, count in placed.replicas for _ in range(count)]
        assert sum(o.cores for o, _ in items) <= node.cores * (1 + 1e-6)
        assert sum(o.memory for o, _ in items) <= node.memory * (1 + 1e-6)
        for k in range(node.devices):
            here = [o for o, device in items if device == k]
            assert len({o.lot for o in here}) <= 1
            assert sum(o.compute for o in here) <= 1 + 1e-6
            assert sum(o.device_memory for o in here) <= 1 + 1e-6
        assert all((-1 < device < node.devices) if o.lot else device == -1 for o, device in items)
        for o, _, count in placed.replicas:
            where[o] += count
    assert all(where[o] == count for o, count in zip(solution.chosen, solution.replicas, strict=True) if o is not None)
    assert solution.cost == pytest.approx(cost_of(problem, solution.placed))
    assert solution.cost <= problem.budget + 1e-6
    assert sum(solution.replicas) <= problem.max_jobs
    for quota in problem.quotas:
        assert held(problem, list(zip(solution.chosen, solution.replicas, strict=True)), quota) <= quota.limit + 1e-6


@given(problems(tenants=True))
@settings(max_examples=40, deadline=None)
def test_the_cheapest_is_what_brute_force_finds(problem):
    solution = solve(problem, seconds=600)
    check(problem, solution)
    costs = [cost for cost, _ in every_answer(problem, whole=True)]
    assert bool(costs) != solution.elastic
    if costs:
        assert solution.cost == pytest.approx(min(costs), abs=1e-3)
        assert solution.exact
        assert solution.bound <= min(costs) + 1e-6


@given(problems(tenants=True))
@settings(max_examples=25, deadline=None)
def test_what_does_not_fit_is_shared_max_min_fairly(problem):
    """The least share is as large as it can be; with that, the second least; and so on: over all allocations there are."""
    problem = replace(problem, nodes=tuple(replace(node, count=min(node.count, 1)) for node in problem.nodes))
    solution = solve(problem, seconds=600)
    check(problem, solution)
    if solution.elastic:
        answers = list(every_answer(problem, whole=False))
        fairest = max(by_group(problem, shares) for _, shares in answers)
        assert by_group(problem, solution.shares) == pytest.approx(fairest, abs=2e-3)
        check_value_and_cost(problem, solution, [(cost, shares) for cost, shares in answers if by_group(problem, shares) == fairest])
        assert solution.exact


def check_value_and_cost(problem, solution, answers):
    """Nothing is worth more, and of what is worth as much nothing costs less."""
    values = [(sum(c.value * s for c, s in zip(problem.clients, shares, strict=True)), cost) for cost, shares in answers]
    most = max(value for value, _ in values)
    assert solution.value(problem) == pytest.approx(most, abs=1e-4)
    assert solution.cost == pytest.approx(min(cost for value, cost in values if value > most - 1e-6), abs=1e-3)


ONE_A_DEVICE = Problem(
    nodes=(Node(name="gpu", cores=4, memory=16.0, devices=2, price=2.0, count=2),),
    clients=(Client(name="m", rate=40.0),),
    options=(
        Option(model=0, node=0, cores=1, memory=1.0, lot="mps/2", compute=0.5, device_memory=0.6, rate=18.0),
        Option(model=0, node=0, cores=1, memory=1.0, lot="mig", compute=3 / 7, device_memory=0.5, rate=15.0),
    ),
)
"""Three replicas either way; of the first kind a device holds one, though a node has room for three if they are added up."""


@given(problems())
@example(ONE_A_DEVICE)
@settings(max_examples=20, deadline=None)
def test_the_most_value_is_what_brute_force_finds(problem):
    problem = replace(problem, objective="value")
    solution = solve(problem, seconds=600)
    check(problem, solution)
    check_value_and_cost(problem, solution, list(every_answer(problem, whole=False)))
    assert solution.exact


def many(models, seed=0, **limits):
    """A made-up fleet of the size at which nodes are not written one by one."""
    random = np.random.default_rng(seed)
    nodes = (
        Node(name="small", cores=8, memory=32e9, price=0.35),
        Node(name="large", cores=64, memory=256e9, price=2.9, count=max(1, models // 8)),
        Node(name="gpu", cores=16, memory=64e9, devices=2, price=2.2, count=max(1, models // 6)),
    )
    options = []
    for i in range(models):
        speed, memory = random.uniform(0.5, 2.0), random.uniform(0.5, 6.0) * 1e9
        for cores in (1, 3):
            options += [Option(model=i, node=n, cores=cores, memory=memory, rate=20 * speed * cores**0.8) for n in (0, 1)]
        options.append(Option(model=i, node=2, cores=1, memory=memory, lot="whole", compute=1.0, device_memory=1.0, rate=300 * speed))
        options.append(Option(model=i, node=2, cores=1, memory=memory, lot="mps/4", compute=0.25, device_memory=memory / 24e9, rate=70 * speed))
    clients = tuple(Client(name=f"m{i}", rate=float(random.uniform(5, 120)), tenant=f"t{i % 4}") for i in range(models))
    return Problem(nodes=nodes, clients=clients, options=tuple(options), **limits)


@pytest.mark.parametrize("limits", [{}, {"budget": 1.4}, {"max_jobs": 12}, {"quotas": (Quota(tenant="t1", resource="cores", limit=3),)}])
def test_limits_hold_where_nodes_are_packed_by_rule(limits, monkeypatch):
    monkeypatch.setattr(solving, "EXACT_SIZE", 0)
    monkeypatch.setattr(solving, "_LARGE_FAIRNESS", 0)
    problem = many(14, **limits)
    solution = solve(problem, seconds=600)
    check(problem, solution)
    assert solution.elastic == bool(limits)
    if not limits:
        assert solution.bound <= solution.cost <= 1.15 * solution.bound
    else:
        assert min(by_group(problem, solution.shares)) > 0.3


@given(problems(tenants=True))
@settings(max_examples=15, deadline=None)
def test_what_is_left_out_of_a_large_program_is_worth_nothing(problem):
    """Where only some ways to run are written at first: within the gap of what brute force finds, and with a bound that is one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solving, "_LARGE", 0)
        solution = solve(problem, seconds=600)
    check(problem, solution)
    costs = [cost for cost, _ in every_answer(problem, whole=True)]
    assert bool(costs) != solution.elastic
    if costs:
        assert solution.bound <= min(costs) + 1e-6
        assert solution.cost <= min(costs) * 1.002


def test_the_solver_writes_nothing_and_leaves_the_notebooks_other_solvers_alone(capfd):
    """HiGHS refuses another number of threads than it began with in the thread that calls it: neither we nor others may decide it for the other."""
    import highspy

    def theirs(threads):
        model, solver = highspy.HighsLp(), highspy.Highs()
        model.num_col_, model.col_cost_, model.col_lower_, model.col_upper_ = 1, np.array([-1.0]), np.array([0.0]), np.array([5.5])
        model.integrality_ = [highspy.HighsVarType.kInteger]
        solver.setOptionValue("output_flag", False)
        solver.setOptionValue("threads", threads)
        solver.passModel(model)
        return solver.run(), solver.getInfo().objective_function_value

    problem = many(4, budget=1.4)
    before = solve(problem)
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    assert theirs(2) == (highspy.HighsStatus.kOk, -5)
    assert solve(problem) == before


def test_an_interrupt_ends_the_solver():
    """Market split (Cornuéjols and Dawande 1998): six rows and fifty variables take branch and bound hours."""
    rng, program, slack = random.Random(0), Program(), []
    chosen = [program.variable(0, 1, integer=True) for _ in range(50)]
    for _ in range(6):
        weights = [float(rng.randrange(100)) for _ in chosen]
        more, less = program.variable(), program.variable()
        slack += [more, less]
        program.row({**dict(zip(chosen, weights, strict=True)), more: 1.0, less: -1.0}, low=sum(weights) // 2, high=sum(weights) // 2)
    seen = []

    def interrupt():
        while not seen:
            seen.extend(thread for thread in threading.enumerate() if thread.name == "aimass-solver")
        _thread.interrupt_main()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            program.minimise(dict.fromkeys(slack, 1.0), seconds=300)
    finally:
        signal.signal(signal.SIGINT, before)
    seen[0].join(60)
    assert not seen[0].is_alive(), "it would go on in the background until its time is up"


@pytest.mark.parametrize("limits", [{"budget": 1.4}, {"max_jobs": 12}, {"quotas": (Quota(tenant="t1", resource="cores", limit=3),)}])
def test_large_programs_come_near_to_fair_shares(limits, monkeypatch):
    """What is settled as if replicas could be cut up serves the tenant that gets least almost as well as the exact answer, and no bound is too low."""
    problem = many(14, **limits)
    exact = solve(problem, seconds=600)
    monkeypatch.setattr(solving, "_LARGE_FAIRNESS", 0)
    near = solve(problem, seconds=600)
    check(problem, near)
    assert min(by_group(problem, near.shares)) >= 0.9 * min(by_group(problem, exact.shares))
    assert near.value(problem) <= near.bound + 1e-6


def test_out_of_time_it_still_answers_and_keeps_the_limits():
    problem = many(40, budget=4.0)
    solution = solve(problem, seconds=0)
    check(problem, solution)
    assert not solution.exact


def test_what_one_more_buys_is_what_solving_again_gives():
    problem = Problem(
        nodes=(Node(name="cpu", cores=4, price=0.5, count=2),),
        clients=(Client(name="a", rate=60), Client(name="b", rate=60)),
        options=(Option(model=0, node=0, cores=2, rate=20), Option(model=1, node=0, cores=2, rate=20)),
        budget=9.0,
    )
    solution = solve(problem)
    assert solution.shares == pytest.approx((2 / 3, 2 / 3))
    nodes, budget = find_limits(problem, solution)
    assert (nodes.name, nodes.used, nodes.limit, nodes.binds) == ("nodes cpu", 2, 2, True)
    assert nodes.after.everybody
    assert nodes.gained == pytest.approx(40)
    assert not budget.binds
    assert budget.more is None


# --- sharing of devices -------------------------------------------------------------------


@pytest.mark.parametrize(("slices", "starts"), [(7, {1: range(7), 2: (0, 2, 4), 3: (0, 4), 4: (0,), 7: (0,)}), (4, {1: range(4), 2: (0, 2), 4: (0,)})])
def test_instances_whose_slices_add_up_can_be_placed(slices, starts):
    """Against the places that NVIDIA's driver lists for each profile."""
    memory = MIG_MEMORY[slices]

    def place(left, taken):
        return not left or any(not taken & (here := set(range(start, start + memory[left[0]]))) and place(left[1:], taken | here) for start in starts[left[0]])

    for count in range(1, slices + 1):
        for profiles in itertools.combinations_with_replacement(sorted(memory, reverse=True), count):
            if sum(profiles) <= slices and sum(memory[p] for p in profiles) <= max(memory.values()):
                assert place(profiles, set()), profiles


def test_a_share_is_never_called_measured_and_never_faster():
    whole = ladder(0.004, 0.001)
    for text in ("mig/1", "mig/3", "mps/4", "time_slice/2"):
        share = read_share(text, load_devices()["a100-80"])
        part = share.ladder(whole)
        assert all(p.latency_p50.weakest_source == "assumed" for p in part)
        assert all(p.latency_p50.value > w.latency_p50.value for p, w in zip(part, whole, strict=True))
        assert all(p.latency_p50.interval[0] <= w.latency_p50.value for p, w in zip(part, whole, strict=True))
    assert read_share("mig/1", load_devices()["a100-80"]).ladder(whole)[0].latency_p50.value == pytest.approx(8 * 0.005)  # an eighth of the bandwidth


@pytest.mark.parametrize(
    ("text", "device", "message"),
    [("half", "l4", "no share"), ("mig/2", "l4", "no MIG"), ("mig/5", "a100-40", "compute slices"), ("mps/1", "l4", "2 to 48")],
)
def test_shares_that_make_no_sense(text, device, message):
    with pytest.raises(InputError, match=message):
        read_share(text, load_devices()[device])


def test_taking_turns_alone_is_one_queue():
    service = ServiceTimes.from_values({b: 0.004 + 0.001 * b for b in range(1, 9)})
    times = Poisson(300).times_s(5_000, np.random.default_rng(0))
    ((finish, _),) = take_turns([Stream(times.tolist(), service, 8)], seed=[0])
    assert finish == pytest.approx(simulate_fcfs(times, service, max_batch_size=8).finish_s)


def test_taking_turns_loses_no_work_and_halves_the_speed_of_two():
    """The device is never idle while there is work: busy periods end as those of one queue. Two that always have work take twice as long."""
    service = ServiceTimes.from_values({1: 0.01})
    random = np.random.default_rng(1)
    each = [Poisson(30).times_s(2_000, random) for _ in range(3)]
    finish = np.sort(np.concatenate([f for f, _ in take_turns([Stream(t.tolist(), service, 1) for t in each], seed=[0])]))
    merged = simulate_fcfs(np.sort(np.concatenate(each)), service, max_batch_size=1)
    ends = [a for a, b in zip(np.sort(merged.finish_s), [*np.sort(np.concatenate(each))[1:], math.inf], strict=True) if a < b]
    assert len(ends) > 100
    assert finish[np.searchsorted(finish, np.array(ends) - 1e-7)] == pytest.approx(ends)
    busy = take_turns([Stream([0.0] * 50, service, 1), Stream([0.0] * 50, service, 1)], seed=[0])
    assert [float(f[-1]) for f, _ in busy] == pytest.approx([1.0, 1.0], rel=0.03)


# --- ways, fleet and record ---------------------------------------------------------------


def number(value, unit="s", source="measured"):
    return Number(value=value, unit=unit, source=source, method="median of 31 calls", interval=(0.98 * value, 1.02 * value))


def ladder(fixed, slope, sizes=(1, 2, 4, 8, 16), peak=50e6):
    def point(size):
        time = number(fixed + slope * size)
        rate, memory = number(size / time.value, "item/s"), number(peak * size, "B")
        return BatchPoint(batch_size=size, latency_p50=time, latency_p95=time, latency_p99=time, throughput=rate, peak_memory_bytes=memory)

    return tuple(point(size) for size in sizes)


def ask(name, rate, p99=0.1, fixed=0.004, **fields):
    model = ModelInfo(name=name, type="test.Net", num_parameters=10, weight_bytes=40, dtype="float32", digest="0" * 12)
    here = Variant(technique="none", ladder=ladder(fixed, 0.002), cores=number(2, "core"), weight_bytes=40)
    smaller = Variant(technique="int8_dynamic", ladder=ladder(fixed / 2, 0.001), cores=number(2, "core"), weight_bytes=20)
    return Ask(
        model=model, rate=number(rate, "request/s", "user"), p99=number(p99, "s", "user"), variants={"cpu": [here, smaller], "l4": [here]}, **fields
    )  # fmt: skip


FLEET = """
    [nodes.box]
    device = "cpu"
    cores = 8
    memory = "16GB"
    price = 0.4
    count = 2
    boot = "45s"

    [nodes.l4]
    price = 0.8
    count = 1
    cores = 8
    shares = ["whole", "mps/2", "time_slice/2"]

    [nodes.card]
    kind = "fpga"
    price = 3.0
    count = 1
    latency = { b = { "1" = "1ms", "8" = "4ms" } }

    [tenants.search]
    models = ["b"]
    weight = 2
    devices = 1
"""
HERE = Attached(device="cpu", cores=2, memory=4e9)


@pytest.fixture(scope="module")
def fleet_file(tmp_path_factory):
    import textwrap

    path = tmp_path_factory.mktemp("fleet") / "fleet.toml"
    path.write_text(textwrap.dedent(FLEET))
    return path


@pytest.fixture(scope="module")
def fleet(fleet_file):
    return read_fleet(fleet_file, HERE)


def test_a_fleet_is_read_with_the_source_of_each_figure(fleet):
    box, l4, card = fleet.kinds
    assert (box.on_processor, box.devices, box.cores.source, box.boot.value) == (True, 0, "user", 45)
    assert (l4.device_memory.source, [share.name for share in l4.shares]) == ("datasheet", ["whole", "mps/2", "time_slice/2"])
    assert l4.memory is None
    assert (card.latency["b"], card.device_memory, card.boot.source) == ({1: 0.001, 8: 0.004}, None, "assumed")
    assert (fleet.tenants, fleet.weights, fleet.quotas) == ({"b": "search"}, {"search": 2.0}, (Quota(tenant="search", resource="devices", limit=1.0),))
    (here,) = read_fleet(None, HERE).kinds
    assert (here.name, here.cores.value, here.cores.source, here.count) == ("cpu", 2, "measured", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[nodes.x]\ndevice='abacus'\n", "no device called 'abacus'"),
        ("[nodes.x]\ndevice='cpu'\ncors=2\n", "[nodes.x]: there is no field 'cors'"),
        ("[nodes.x]\ndevice='cpu'\ncores=0\n", "[nodes.x]: cores is 0, not a number above 0"),
        ("[nodes.x]\ndevice='cpu'\nshares=['mps/2']\n", "share its cores"),
        ("[nodes.x]\ndevice='cuda:0'\n", "not what the model is on"),
        ("[nodes.x]\nkind='fpga'\nlatency={m={a='1ms'}}\n", "no batch size"),
        ("[nodes.x]\nkind='cpu'\n", "how many cores"),
        ("nodes = 3", "nodes is 3, not a table"),
        ("nodes = 3", "fields of a node"),
        ("[nodes", "cannot read the fleet"),
    ],
)
def test_fleets_that_make_no_sense(tmp_path, text, message):
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_fleet(path, HERE)
    assert message in f"{caught.value} {caught.value.help}"


def test_what_a_replica_carries_does_not_depend_on_how_many_there_are():
    """Requests are dealt out at random: at that rate for each, three replicas keep the target too; a fifth more breaks it."""
    points = ladder(0.004, 0.002)
    rate = capacity(points, 8, 0.05, 1.0, 0)
    service = ServiceTimes.from_points(points)

    def p99(each):
        times = Poisson(each).times_s(100_000, np.random.default_rng(7))
        return np.percentile(simulate_fcfs(times, service, max_batch_size=8, seed=3).latency_s, 99)

    assert p99(rate) <= 0.05 < p99(1.2 * rate)


def test_a_replica_takes_no_more_than_its_server_reads_and_a_plan_says_the_same(fleet):
    """A model of 8 us a request, at more than three times what one front end reads."""
    model, here = ask("a", 1).model, ladder(4e-6, 4e-6)
    rate, target = number(35_000, "request/s", "user"), number(0.1, "s", "user")
    variant = Variant(technique="none", ladder=here, cores=number(1, "core"), weight_bytes=40)
    box = replace(fleet, kinds=(replace(fleet.kinds[0], latency={}),))
    record = make_allocation([Ask(model=model, rate=rate, p99=target, variants={"cpu": [variant]})], box, Terms())
    planned = make_plan(model, {"cpu": here}, make_target(35_000, 0.1), overhead=Overhead.recorded())
    (allocated,) = record.models
    assert allocated.replicas.value == planned.replicas.value == math.ceil(35_000 * FRONT_END_S) > 1
    assert allocated.capacity.value == pytest.approx(1 / FRONT_END_S)
    assert "on one core, 100 µs for a request" in allocated.capacity.method
    assert "front end" in allocated.capacity.inputs
    assert allocated.capacity.weakest_source == "estimated"
    quicker = Ask(model=model, rate=rate, p99=target, variants={"cpu": [replace(variant, front_end_per_s=100_000)]})
    assert make_allocation([quicker], box, Terms()).models[0].replicas.value == 1


@pytest.fixture(scope="module")
def allocation(fleet):
    return make_allocation([ask("a", 300), ask("b", 900, tenant="search")], fleet, Terms())


def test_the_answer_serves_everybody_and_is_simulated(allocation, fleet):
    assert allocation.status == "all served"
    assert allocation.gap.value == 0
    assert allocation.cost.value == pytest.approx(sum(t.used * t.price.value for t in allocation.node_types))
    for model in allocation.models:
        assert model.meets
        assert model.latency_p99.interval[1] <= model.latency_target.value
        assert model.capacity.value * model.replicas.value >= model.requests_per_s.value
        assert model.options > 1
    assert allocation.model("a").technique == "int8_dynamic"
    assert sum(node.count for node in allocation.nodes) == sum(t.used for t in allocation.node_types)
    assert 0 <= allocation.node_loss.value <= 1


def test_the_record_travels_and_is_shown(allocation):
    assert from_json(to_json(allocation), FleetAllocation) == allocation
    text = render_plain(allocation)
    assert "all 2 models served" in text
    assert "b (search)" in text
    assert "<table" in render_html(allocation)
    assert len(chart(allocation).data) == 3
    assert all(number.inputs for number in (allocation.cost, allocation.least_share, allocation.node_loss))


def test_what_does_not_fit_is_served_in_part_and_says_what_binds(fleet):
    asks = [ask("a", 9000), ask("b", 3000, tenant="search"), ask("c", 10, p99=0.001)]
    record = make_allocation(asks, fleet, Terms(budget=1.7))
    assert record.status == "not all served"
    assert record.cost.value <= 1.7
    a, b, c = record.models
    assert 0 < a.share.value < 1
    assert c.share.value == 0
    assert c.reason.startswith("not served: a request alone takes")
    assert "c is not served: a request alone" in record.binding
    assert {limit.name for limit in record.limits} == {"nodes box", "nodes l4", "nodes card", "budget", "devices of search"}
    assert any(limit.binds for limit in record.limits)
    assert b.latency_p99 is not None
    assert record.fairness.value < 1


def test_shared_devices_are_simulated_with_their_neighbours(fleet):
    """Two in turns on one device: later than alone, earlier than if the other always had work, which is what was planned with."""
    turns = replace(fleet, kinds=(replace(fleet.kinds[1], shares=(read_share("time_slice/2", None),)),))
    record = make_allocation([ask("a", 60), ask("b", 60)], turns, Terms())
    (node,) = record.nodes
    assert {(r.model, r.device) for r in node.replicas} == {("a", 0), ("b", 0)}
    alone = make_allocation([ask("a", 60)], replace(turns, kinds=(fleet.kinds[1],)), Terms())
    assert record.model("a").latency_p99.value > alone.model("a").latency_p99.value
    assert {"W-SHARING-NO-ISOLATION", "W-SHARE-NOT-MEASURED"} <= {note.code for note in record.notes}
    assert record.model("a").latency_p99.weakest_source == "assumed"


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"budget": -1.0}, "budget must be at least 0"),
        ({"burst": 0.5}, "burst must be at least 1"),
        ({"quotas": (Quota(tenant="x", resource="cores", limit=1),)}, "no model belongs to the tenant 'x'"),
        ({"weights": {"b": 2.0}}, "there is a weight for 'b'"),
    ],
)
def test_terms_that_make_no_sense(fleet, terms, message):
    with pytest.raises(InputError, match=message):
        make_allocation([ask("a", 10), ask("b", 10, tenant="search")], fleet, Terms(**terms))


def test_a_budget_without_prices(fleet):
    with pytest.raises(InputError, match="says nothing without prices: box"):
        make_allocation([ask("a", 10)], replace(fleet, quotas=(), kinds=(replace(fleet.kinds[0], price=None),)), Terms(budget=1.0))


# --- the verb -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    import torch
    from torch import nn

    torch.manual_seed(0)
    store = Store(tmp_path_factory.mktemp("store") / "history.db")
    nets = {"a": nn.Linear(64, 64), "b": nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))}
    made = [Study(net, torch.randn(4, 64), name=name, store=store) for name, net in nets.items()]
    for study in made:
        study.profile(seconds=0.3)
    return made


def test_a_study_allocates_beside_others(studies):
    """At rates and targets that every machine holds, also one that stands still now and then while the models are measured."""
    one, other = studies
    rates, targets = {"a": 2, "b": "1/s"}, {"a": "30s", "b": "30s"}
    record = one.allocate(beside=other, rate=rates, p99=targets, count={"cpu": 4}, price={"cpu": 0.5}, budget=2)
    assert record.status == "all served"
    assert [model.model.name for model in record.models] == ["a", "b"]
    assert all(model.formula_busy.value > 0 and "the formula has" in model.formula_difference for model in record.models)
    assert one.results[-1] is record
    other.trial("bf16", seconds=0.3)
    again = one.allocate(beside=other, rate={"a": 2, "b": 1}, p99=targets, technique="bf16", node=("cpu", "l4"))
    assert again.cost is None
    assert "missing:price" in {note.code for note in again.notes}
    assert again.model("b").options >= record.model("b").options


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"p99": {}}, "no p99 for a, b"),
        ({"rate": {"a": 1, "c": 2}}, "no model here is called 'c'"),
        ({"count": {"l4": 2}}, "no type of node here"),
        ({"quota": {"x": "gpus:2"}}, "is no quota"),
        ({"value": {"a": 0}}, "must be above 0"),
        ({"fleet": "nowhere.toml"}, "cannot read the fleet nowhere.toml: No such file or directory"),
    ],
)
def test_questions_that_make_no_sense(studies, asked, message):
    one, other = studies
    with pytest.raises(InputError, match=message):
        one.allocate(**{"beside": other, "rate": {"a": 1, "b": 1}, "p99": {"a": "1s", "b": "1s"}, **asked})


def test_an_unknown_device(studies):
    with pytest.raises(UnknownNameError, match="device"):
        studies[0].allocate(rate={"a": 1}, p99={"a": 0.5}, node="abacus")


def test_a_fleet_on_the_command_line(model_file, fleet_file, capsys):
    words = ["allocate", f"{model_file}:make", "--rate", "Net=50", "--p99", "Net=2s", "--fleet", str(fleet_file), "--max-jobs", "3", "--json"]
    assert main(words) == 0
    record = from_json(capsys.readouterr().out, FleetAllocation)
    assert record.model("Net").replicas.value >= 1
    assert "max_jobs" in {limit.name for limit in record.limits}


def test_the_fleet_of_the_readme_is_one(tmp_path):
    import re
    from pathlib import Path

    text = (Path(__file__).parents[1] / "README.md").read_text()
    (tmp_path / "fleet.toml").write_text(re.search(r"```toml\n(\[nodes.*?)```", text, re.DOTALL)[1])
    fleet = read_fleet(tmp_path / "fleet.toml", HERE)
    assert [kind.name for kind in fleet.kinds] == ["box", "gpu", "card"]
    assert fleet.tenants == {"Net": "search"}
