"""`--on` and `--fleet` against real SSH servers: what comes back, and what is left behind."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from servers import REPOSITORY, keygen, remember, wait_until

from resdeploy.remote import fleet_run, job_client
from resdeploy.remote.remote_job import GREETING
from resdeploy.schema.codec import load_json
from resdeploy.schema.machines import ProbeReport
from resdeploy.schema.remotes import RemoteReport

# Long enough to be caught at work, and idle: ten runs are asked for in a second.
SLOW_BENCH = ("--scenario", "server", "--qps", "10", "--runs")


def report_of(result):
    return load_json(RemoteReport, result.stdout, where="stdout")


def assert_nothing_left(*devices):
    for device in devices:
        assert wait_until(lambda d=device: not d.running()), device.running()
        assert device.left_behind() == []


def is_benching(device):
    return any("resdeploy.bench.worker" in line for line in device.running().values())


def assert_failed(result, *, code, what, fix, where="127.0.0.1"):
    """One device failed, in three parts, and nothing else did."""
    assert result.exit_code == code, result.output
    (found,) = report_of(result).devices
    assert what in found.failure.what
    assert where in found.failure.where
    assert fix in found.failure.fix
    assert f"error: {found.device.name}: {found.failure.what}" in result.stderr


# --- what comes back -----------------------------------------------------------------------------


def test_a_bundle_is_checked_on_a_device_and_nothing_stays(run, make_device, fleet_file, bundle):
    device = make_device()
    result = run("check", bundle, "--fleet", fleet_file(device), "--json")
    assert result.exit_code == 0, result.output
    (found,) = report_of(result).devices
    assert found.check.passed
    assert found.installation.origin == "given"
    assert found.host_key.startswith("SHA256:")
    assert_nothing_left(device)


def test_a_bundle_is_checked_before_it_is_timed_with_the_options_that_were_given(
    run, make_device, fleet_file, bundle
):
    fleet = fleet_file(make_device())
    options = ("--runs", "30", "--batch", "1,2", "--threads", "1", "--graph-level", "basic")
    options += ("--no-spinning",)
    result = run("bench", bundle, "--fleet", fleet, *options, "--json")
    assert result.exit_code == 0, result.output
    (found,) = report_of(result).devices
    assert found.check.passed
    assert [r.spec.batch_size for r in found.bench.results] == [1, 2]
    assert {(len(r.latencies_ns), r.spec.session.num_threads) for r in found.bench.results} == {
        (30, 1)
    }
    assert {r.spec.session.graph_level for r in found.bench.results} == {"basic"}
    assert not any(r.spec.session.spinning for r in found.bench.results)


@pytest.mark.slow
def test_a_device_compares_two_models_and_says_which_is_slower(run, make_device, fleet_file, model):
    fleet = fleet_file(make_device())
    options = ("--against", model, "--blocks", "3", "--runs", "30", "--fail-if-slower", "900%")
    result = run("bench", model, "--fleet", fleet, *options, "--json")
    assert result.exit_code == 0, result.output
    (found,) = report_of(result).devices
    assert found.comparison.max_slowdown == 9
    assert len(found.comparison.blocks) == 3


def test_a_device_is_probed_for_an_export_made_for_it(run, make_device, fleet_file, tmp_path):
    device = make_device()
    out = tmp_path / "target.json"
    result = run("probe", "--fleet", fleet_file(device), "-o", out)
    assert result.exit_code == 0, result.output
    assert "starts cpu" in result.stdout
    assert load_json(ProbeReport, out.read_text(), where="out").providers[0].provider == "cpu"
    several = fleet_file(device, make_device())
    assert run("probe", "--fleet", several, "-o", tmp_path / "x.json").exit_code == 2


def test_the_provider_of_a_device_takes_the_place_of_the_option(
    run, make_device, fleet_file, bundle, no_cuda
):
    fleet = fleet_file(make_device(), provider="cuda")
    result = run("check", bundle, "--fleet", fleet, "--provider", "cpu", "--json")
    assert_failed(result, code=3, what="CUDAExecutionProvider did not start", fix="pip install")


def test_a_check_that_fails_on_a_device_exits_1(run, make_device, fleet_file, wrong_bundle):
    result = run("check", wrong_bundle, "--fleet", fleet_file(make_device()), "--json")
    assert result.exit_code == 1, result.output
    (found,) = report_of(result).devices
    assert found.failure is None
    assert not found.check.passed


def test_one_of_three_devices_is_killed_and_the_results_of_two_come_back(
    run, make_device, fleet_file, model
):
    """The acceptance of the issue: two results, one clear error, exit 1, nothing left running."""
    devices = [make_device() for _ in range(3)]

    def kill():
        assert wait_until(lambda: is_benching(devices[1]))
        devices[1].kill_server()

    killer = threading.Thread(target=kill)
    killer.start()
    result = run("bench", model, "--fleet", fleet_file(*devices), *SLOW_BENCH, "20", "--json")
    killer.join()
    assert result.exit_code == 1, result.output
    first, killed, last = report_of(result).devices
    assert [len(found.bench.results[0].latencies_ns) for found in (first, last)] == [20, 20]
    assert killed.bench is None
    assert killed.failure.stage == "bench"
    assert killed.failure.what == "The connection to the device was lost."
    assert str(devices[1].port) in killed.failure.where
    assert result.stderr.count("error: ") == 1
    assert_nothing_left(*devices)


def test_a_bug_on_one_device_does_not_lose_the_other_s_result(
    run, make_device, fleet_file, bundle, monkeypatch
):
    real = fleet_run.install

    async def install(link, device, *rest):
        if device.name == "device 0":
            raise ZeroDivisionError
        return await real(link, device, *rest)

    monkeypatch.setattr(fleet_run, "install", install)
    fleet = fleet_file(make_device(), make_device())
    result = run("check", bundle, "--fleet", fleet, "--json")
    assert result.exit_code == 1, result.output
    broken, well = report_of(result).devices
    assert (broken.failure.exit_code, broken.failure.stage) == (70, "install")
    assert "ZeroDivisionError" in broken.failure.where
    assert well.check.passed


@pytest.mark.slow
def test_a_long_run_is_kept_alive_by_signs_of_life(
    run, make_device, fleet_file, model, monkeypatch, tmp_path
):
    """With a remote job that gives up after one second of silence, and a run of two."""
    impatient = tmp_path / "remote_job.py"
    source = job_client.REMOTE_JOB.read_text()
    assert "\nSILENCE_S = 60.0\n" in source
    impatient.write_text(source.replace("\nSILENCE_S = 60.0\n", "\nSILENCE_S = 1.0\n"))
    monkeypatch.setattr(job_client, "REMOTE_JOB", impatient)
    monkeypatch.setattr(job_client, "BEAT_S", 0.2)
    fleet = fleet_file(make_device())
    result = run("bench", model, "--fleet", fleet, *SLOW_BENCH, "20", "--json")
    assert result.exit_code == 0, result.output


# --- interrupted ---------------------------------------------------------------------------------


def start_bench(model, fleet):
    command = ["bench", model, "--fleet", fleet, *SLOW_BENCH, "5000"]
    return subprocess.Popen(
        [sys.executable, "-m", "resdeploy", *map(str, command)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_on_the_devices(make_device, fleet_file, model):
    devices = [make_device(), make_device()]
    process = start_bench(model, fleet_file(*devices))
    assert wait_until(lambda: all(map(is_benching, devices)))
    process.kill()
    process.communicate(timeout=120)
    assert_nothing_left(*devices)


def test_an_interrupted_run_waits_until_the_devices_have_ended_even_what_is_deaf(
    make_device, fleet_file, model, fake_resdeploy
):
    """On one device it must be killed, 3 seconds after it was asked; on the other it ends at once.

    Once the wait for all was over with the first: the run ended before what is deaf.
    """
    sleep = "import pathlib, time; pathlib.Path('asleep').touch(); time.sleep(600)"
    deaf = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {sleep}"
    devices = [
        make_device(python_path=fake_resdeploy(program, name))
        for name, program in (("deaf", deaf), ("obedient", sleep))
    ]

    def is_asleep(device):
        return any(device.cache.glob("jobs/*/asleep"))

    process = start_bench(model, fleet_file(*devices))
    assert wait_until(lambda: all(map(is_asleep, devices)))
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert [device.running() for device in devices] == [{}, {}]
    assert (process.returncode, stdout) == (130, "")
    assert "interrupted" in stderr
    assert_nothing_left(*devices)


# --- no way in -----------------------------------------------------------------------------------


def test_an_unknown_host_key_is_refused_with_its_fingerprint(run, make_device, fleet_file, bundle):
    device = make_device(known=False)
    result = run("check", bundle, "--fleet", fleet_file(device), "--json")
    printed = subprocess.run(
        ["ssh-keygen", "-lf", device.folder / "host_key.pub"], capture_output=True, text=True
    ).stdout
    fingerprint = printed.split()[1]
    assert_failed(
        result, code=3, what=f"key is not known: ssh-ed25519 {fingerprint}", fix="ssh-keyscan -p"
    )


def test_another_host_key_than_the_known_one_is_refused(run, user, make_device, fleet_file, bundle):
    device = make_device(known=False)
    other = keygen(user / "other").with_suffix(".pub").read_text().split()[:2]
    remember(user, device.port, other)
    result = run("check", bundle, "--fleet", fleet_file(device), "--json")
    assert_failed(result, code=3, what="is not the one that is known", fix="ssh-keygen -R")


def test_host_keys_are_checked_even_where_the_configuration_says_not_to(
    run, user, make_device, fleet_file, bundle
):
    config = "Host *\n  UserKnownHostsFile none\n  StrictHostKeyChecking no\n"
    (user / ".ssh" / "config").write_text(config)
    result = run("check", bundle, "--fleet", fleet_file(make_device(known=False)), "--json")
    assert_failed(result, code=3, what="key is not known", fix="ssh-keyscan")


def test_host_keys_are_looked_up_where_the_configuration_says(run, user, make_device, fleet_file):
    device = make_device()
    (user / ".ssh" / "known_hosts").rename(user / "elsewhere")
    (user / ".ssh" / "config").write_text(f"UserKnownHostsFile {user / 'elsewhere'}\n")
    result = run("probe", "--fleet", fleet_file(device), "--json")
    assert result.exit_code == 0, result.output


def test_the_user_s_ssh_configuration_names_a_device(run, user, make_device, tmp_path):
    device = make_device()
    config = f"Host board\n  HostName 127.0.0.1\n  Port {device.port}\n"
    (user / ".ssh" / "config").write_text(config)
    fleet = tmp_path / "fleet.toml"
    fleet.write_text(f'[[device]]\nhost = "board"\nenvironment = "{sys.prefix}"\n')
    result = run("probe", "--fleet", fleet, "--json")
    assert result.exit_code == 0, result.output
    assert report_of(result).devices[0].device.address == "board"


def test_a_user_who_is_not_let_in(run, user, make_device, fleet_file, bundle):
    device = make_device()
    keygen(user / "stranger")
    fleet = fleet_file(device, identity=str(user / "stranger"))
    result = run("check", bundle, "--fleet", fleet, "--json")
    assert_failed(result, code=3, what="does not let this user log in", fix="ssh-copy-id -p")


def test_a_key_file_that_is_none(run, user, make_device, fleet_file, bundle):
    (user / "broken").write_text("no key")
    fleet = fleet_file(make_device(), identity=str(user / "broken"))
    result = run("check", bundle, "--fleet", fleet, "--json")
    assert_failed(result, code=3, what="cannot be used", where="broken", fix="ssh-add")


def test_a_closed_port(run, make_device, fleet_file, bundle):
    device = make_device()
    device.stop()
    result = run("check", bundle, "--fleet", fleet_file(device), "--json")
    assert_failed(result, code=3, what="cannot be reached: ", fix="see that it is on")


def test_a_damaged_bundle_is_refused_before_any_device_is_asked(run, tmp_path, bundle):
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(bundle.read_bytes()[:-1])
    result = run("check", damaged, "--on", "nowhere.invalid")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "damaged.zip" in result.stderr


# --- devices that are not as they should be ------------------------------------------------------


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_no_python_on_the_device(run, make_device, fleet_file, bundle):
    fleet = fleet_file(make_device(), environment=None, python="python3.99")
    result = run("check", bundle, "--fleet", fleet, "--json")
    assert_failed(result, code=3, what="There is no python3.99", fix="install Python 3.11")


def test_an_old_python_on_the_device(run, make_device, fleet_file, bundle, tmp_path):
    """The interpreter claims to be 3.9, and executes what it is given."""
    claim = 'import sys; sys.version_info = (3, 9, 2, "final", 0); exec(sys.argv.pop())'
    old = script(tmp_path / "python3", f"exec {sys.executable} -c '{claim}' \"$2\"")
    fleet = fleet_file(make_device(), environment=None, python=old)
    result = run("check", bundle, "--fleet", fleet, "--json")
    assert_failed(result, code=3, what="is Python 3.9.2; resdeploy needs 3.11", fix="python3.11")


def test_a_python_that_makes_no_environment(run, make_device, fleet_file, bundle, tmp_path):
    """As on Debian without python3-venv; what was begun is removed."""
    device = make_device()
    environment = tmp_path / "no-venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (stdlib,) = {path.parent for path in environment.rglob("site-packages")}
    site = stdlib / "site-packages"
    (site / "sitecustomize.py").write_text("import sys\nsys.modules['venv'] = None\n")
    fleet = fleet_file(device, environment=None, python=str(environment / "bin" / "python"))
    result = run("check", bundle, "--fleet", fleet, "--json")
    assert_failed(result, code=3, what="makes no environment", fix="python3-venv")
    assert list((device.cache / "environments").glob("*[!k]")) == []
    assert_nothing_left(device)


def test_an_environment_without_resdeploy(run, make_device, fleet_file, bundle, tmp_path):
    device = make_device(python_path=tmp_path)
    environment = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    fleet = fleet_file(device, environment=str(environment))
    result = run("check", bundle, "--fleet", fleet, "--json")
    assert_failed(
        result, code=3, what="no resdeploy in the device's environment", fix="onnxruntime"
    )


@pytest.mark.parametrize(
    ("program", "what"),
    [
        ("print('hello')", "did not send a CheckReport: This is not JSON"),
        ("print('[' * 100000)", "did not send a CheckReport"),
        ('print(\'{"kind": "CheckReport", "schema_version": 1}\')', "The field"),
        ("print('x' * (65 << 20))", "printed more than 64 MiB"),
        ("import os; os.abort()", "killed there by signal 6"),
        ("raise SystemExit('out of luck')", "ended there with code 1"),
        ("import sys; sys.exit('error: no\\x1b[2J luck')", "no?[2J luck"),
    ],
)
def test_a_device_that_sends_no_record(
    run, make_device, fleet_file, bundle, fake_resdeploy, program, what
):
    device = make_device(python_path=fake_resdeploy(program))
    result = run("check", bundle, "--fleet", fleet_file(device), "--json")
    assert result.exit_code == 3, result.output
    (found,) = report_of(result).devices
    assert what in found.failure.what + str(found.failure.where)
    assert "\x1b" not in result.output
    assert_nothing_left(device)


@pytest.mark.parametrize("text", ["yes", "head -c 3000000 /dev/zero", "exit 3", "kill -9 $$"])
def test_a_device_whose_python_is_something_else(
    run, make_device, fleet_file, bundle, tmp_path, text
):
    fake = script(tmp_path / "python3", text)
    fleet = fleet_file(make_device(), environment=None, python=fake)
    result = run("check", bundle, "--fleet", fleet, "--json")
    assert_failed(result, code=3, what="device", fix="")


@pytest.mark.parametrize(
    "answer",
    [
        "[1]",
        "{}",
        '{"size": -1}',
        '{"size": 1e99}',
        '{"size": 0}',
        '{"size": 0, "folder": 1, "executable": "", "python_version": [3], "machine": ""}',
        '{"size": 0, "folder": "", "executable": "", "python_version": [3], "machine": "\\u001b"}',
        '{"size": 0, "failed": "\\u001b[2J"}',
        "[" * 10000,
    ],
)
def test_a_device_that_plays_the_keeper_badly(
    run, make_device, fleet_file, bundle, tmp_path, answer
):
    fake = script(tmp_path / "python3", f"echo '{GREETING}'; echo '{answer}'; cat > /dev/null")
    fleet = fleet_file(make_device(), environment=None, python=fake)
    result = run("check", bundle, "--fleet", fleet, "--json")
    assert_failed(result, code=3, what="The device ", fix="")
    assert "\x1b" not in result.stdout
    assert "\\u001b" not in result.stdout


def test_a_welcome_that_a_device_prints_does_no_harm(run, make_device, fleet_file, bundle):
    device = make_device('ForceCommand echo welcome; eval "$SSH_ORIGINAL_COMMAND"')
    result = run("check", bundle, "--fleet", fleet_file(device))
    assert result.exit_code == 0, result.output


def test_an_environment_in_the_home_of_the_device(run, make_device, fleet_file):
    device = make_device()
    (device.home / "my venv").symlink_to(sys.prefix)
    result = run("probe", "--fleet", fleet_file(device, environment="~/my venv"), "--json")
    assert result.exit_code == 0, result.output
    assert report_of(result).devices[0].installation.python.startswith(str(device.home))


def test_a_home_that_cannot_be_written_to(run, make_device, fleet_file, bundle):
    device = make_device()
    (device.home / ".cache").write_text("a file")
    result = run("check", bundle, "--fleet", fleet_file(device), "--json")
    assert_failed(result, code=3, what="cannot do that: ", where=".cache", fix="`cache`")


def test_a_disk_that_is_full(run, make_device, fleet_file, bundle):
    """A limit on the size of files stands for it: it fails in the middle of a file likewise."""
    assert bundle.stat().st_size > 2048
    device = make_device('ForceCommand ulimit -f 1; eval "$SSH_ORIGINAL_COMMAND"')
    result = run("check", bundle, "--fleet", fleet_file(device), "--json")
    assert_failed(result, code=3, what="File too large", fix="free space")
    assert_nothing_left(device)


def test_a_device_that_takes_too_long(run, make_device, fleet_file, model):
    device = make_device()
    fleet = fleet_file(device, timeout_s=0.7)
    result = run("bench", model, "--fleet", fleet, *SLOW_BENCH, "5000", "--json")
    assert_failed(result, code=3, what="not done in 0.7 seconds", fix="timeout_s")
    assert_nothing_left(device)
