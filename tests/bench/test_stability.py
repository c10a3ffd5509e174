"""What speaks against a benchmark, and the state of the machine it is read from."""

import sys

import pytest

from resdeploy.bench.stability import machine_reasons, unstable_reasons
from resdeploy.machine import state as machine
from resdeploy.machine.state import peak_ram_bytes, read_machine_state
from resdeploy.schema.benchmarks import BenchSpec
from resdeploy.schema.machines import GpuState, MachineState
from resdeploy.schema.sessions import SessionSpec
from resdeploy.statistics.latency import summarise

SPEC = BenchSpec(session=SessionSpec(), num_warmup=5, max_warmup=50)
STEADY = [1_000_000] * 100


def reasons(latencies_ns=STEADY, *, spec=SPEC, warmup_ns=STEADY, arrivals_ns=()):
    found = unstable_reasons(
        spec,
        warmup_ns=warmup_ns,
        latencies_ns=latencies_ns,
        arrivals_ns=arrivals_ns,
        summary=summarise(latencies_ns, batch_size=1, arrivals_ns=arrivals_ns),
    )
    return tuple(found)


def test_nothing_speaks_against_a_steady_run():
    assert reasons() == ()


def test_a_warm_up_that_did_not_settle_is_a_reason_unless_its_length_was_asked_for():
    falling = [int(1e6 * 0.9**i) for i in range(50)]
    assert "not settled after 50" in reasons(warmup_ns=falling)[0]
    fixed = BenchSpec(session=SessionSpec(), num_warmup=50, max_warmup=50)
    assert reasons(warmup_ns=falling, spec=fixed) == ()


def test_a_median_that_is_not_known_is_a_reason():
    two_speeds = [1_000_000, 1_300_000] * 50
    assert "median is known to" in reasons(two_speeds)[0]


def test_all_at_once_is_judged_by_the_runs_and_not_by_the_waiting():
    spec = BenchSpec(session=SessionSpec(), scenario="offline")
    waiting = [1_000_000 * (i + 1) for i in range(100)]
    assert reasons(waiting, spec=spec, arrivals_ns=[0] * 100) == ()


def test_a_server_that_cannot_follow_is_a_reason():
    spec = BenchSpec(session=SessionSpec(), scenario="server", qps=2000)
    arrivals = [500_000 * i for i in range(100)]
    waiting = [1_000_000 * (i + 1) - arrivals[i] for i in range(100)]
    assert "grows without end" in reasons(waiting, spec=spec, arrivals_ns=arrivals)[0]


CALM = {"busy_s": 100.0, "stolen_s": 0.0, "num_throttles": 3, "limited_s": 1.0}


@pytest.mark.parametrize(
    ("later", "words"),
    [
        ({}, None),
        ({"busy_s": 110.0}, None),  # only what this process did
        ({"busy_s": 119.0}, None),  # 0.9 of the other CPU
        ({"busy_s": 119.8}, "other programs used 1.0 of 2 CPUs"),
        ({"stolen_s": 0.3}, None),
        ({"stolen_s": 1.0}, "the host took 0.10 CPUs"),
        ({"num_throttles": 4}, "heat or power"),
        ({"limited_s": 1.25}, "CPU limit stopped it for 250 ms"),
    ],
)
def test_what_disturbed_the_machine_is_named(later, words):
    before = MachineState(time_s=0.0, **CALM)
    after = MachineState(time_s=10.0, **(CALM | later))
    found = list(machine_reasons(before, after, process_s=10.0, num_cpus=2))
    assert (found == []) if words is None else (words in found[0])


def test_what_cannot_be_read_is_no_reason():
    before, after = MachineState(time_s=0.0), MachineState(time_s=1.0)
    assert list(machine_reasons(before, after, process_s=1.0, num_cpus=2)) == []


@pytest.mark.parametrize(
    ("slowed_by", "is_reason"),
    [(0x0, False), (0x1, False), (0x8, True), (0x24, True), (None, False)],
)
def test_a_gpu_that_is_slowed_is_named(slowed_by, is_reason):
    gpu = GpuState(clock_mhz=1, temperature_c=1, used_bytes=1, slowed_by=slowed_by)
    after = MachineState(time_s=1.0, gpus=(gpu,))
    found = list(machine_reasons(MachineState(time_s=0.0), after, process_s=0.0, num_cpus=1))
    assert bool(found) is is_reason


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_the_state_of_this_machine_is_read():
    first, second = read_machine_state(), read_machine_state(gpus=True)
    assert second.time_s > first.time_s
    assert second.busy_s >= first.busy_s > 0
    assert first.gpus == ()
    assert peak_ram_bytes() > 10 << 20


def test_the_answer_of_the_gpu_tool_is_understood(monkeypatch):
    answer = "1980, 41, 512, 0x0000000000000004\n[N/A], 40, 0, 0x0\n"
    monkeypatch.setattr(machine, "nvidia_smi", lambda *_: answer)
    one, other = read_machine_state(gpus=True).gpus
    assert one == GpuState(clock_mhz=1980, temperature_c=41, used_bytes=512 << 20, slowed_by=4)
    assert other.clock_mhz is None
