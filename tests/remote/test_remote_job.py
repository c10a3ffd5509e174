"""The remote job as a process of this machine: whatever happens, nothing of it stays."""

import ast
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from servers import parent_of, processes_of, wait_until

from resdeploy.remote import remote_job

# A process, and one with such a child: both deaf to polite requests.
_DEAF = (
    "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); {};"
    "time.sleep(600)"
)
DEAF = _DEAF.format("pass")
FAMILY = _DEAF.format(f"subprocess.Popen([sys.executable, '-c', {DEAF!r}])")


class Started:
    """A remote job, started as on a device: by its text."""

    def __init__(self, cache, **constants):
        self.cache = cache
        source = Path(remote_job.__file__).read_text()
        for name, value in constants.items():
            assert f"\n{name} = " in source
            source = source.replace(f"\n{name} = ", f"\n{name} = {value}  # ")
        self.process = subprocess.Popen(
            [sys.executable, "-c", "import sys; exec(sys.stdin.buffer.raw.readline())"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.send(f"exec({json.dumps(source)})\n".encode())
        assert self.process.stdout.readline() == b"\n"
        assert self.process.stdout.readline().decode() == f"{remote_job.GREETING}\n"
        self.about, _ = self.ask("greet", cache=str(cache))

    def send(self, data):
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def request(self, do, **content):
        self.send(json.dumps({"do": do, **content}).encode() + b"\n")

    def answer(self):
        answer = json.loads(self.process.stdout.readline())
        return answer, self.process.stdout.read(answer["size"])

    def ask(self, do, **content):
        self.request(do, **content)
        return self.answer()

    def run(self, *command, most_bytes=1000):
        return self.ask("run", command=command, most_bytes=most_bytes)

    def ends(self):
        self.process.stdin.close()
        self.process.wait(timeout=20)
        self.process.stdout.close()

    def start_family(self):
        self.request("run", command=[sys.executable, "-c", FAMILY], most_bytes=0)
        assert wait_until(lambda: len(self.family()) == 2)

    def family(self):
        """Processes that work in the folder of the job."""
        return {p for p in processes_of(self.about["folder"]) if p != self.process.pid}

    def left(self):
        return sorted(path.name for path in (self.cache / "jobs").iterdir())


@pytest.fixture
def start(tmp_path):
    started = []

    def make(**constants):
        started.append(Started(tmp_path / "cache", **constants))
        return started[-1]

    yield make
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait()
        one.process.stdin.close()
        one.process.stdout.close()


def test_it_is_written_for_an_old_python_and_its_library_alone():
    """An old one must get as far as to say what it is."""
    tree = ast.parse(Path(remote_job.__file__).read_text(), feature_version=(3, 7))
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    }
    assert imported <= sys.stdlib_module_names


def test_it_runs_a_command_in_a_folder_that_goes_with_it(start):
    one = start()
    script = "import os, sys; print(os.getcwd(), end=''); sys.stderr.write('x'); sys.exit(3)"
    answer, output = one.run(sys.executable, "-c", script)
    assert (answer["code"], answer["stderr"]) == (3, "x")
    assert output.decode() == one.about["folder"]
    one.ends()
    assert one.left() == []


def test_a_file_arrives_as_it_is_between_requests(start, tmp_path):
    one = start()
    content = bytes(range(256)) * 1000
    one.request("put", name="a/b.bin", size=len(content))
    one.send(content)
    answer, _ = one.answer()
    assert (tmp_path / "cache" / "jobs" / one.about["folder"] / "a" / "b.bin").read_bytes() == (
        content
    )
    assert answer["sha256"]
    assert one.run("true")[0]["code"] == 0


def test_a_file_that_cannot_be_written_is_said_and_the_next_request_is_understood(start):
    one = start()
    one.request("put", name="/proc/no/such", size=5)
    one.send(b"12345")
    answer, _ = one.answer()
    assert answer["failed"] == "No such file or directory"
    assert one.run("true")[0]["code"] == 0


@pytest.mark.parametrize("how", ["the input ends", "SIGTERM", "SIGHUP", "silence"])
def test_whatever_runs_is_ended_with_the_whole_family(start, how):
    one = start(SILENCE_S=0.8 if how == "silence" else 60, _GRACE_S=0.3)
    one.start_family()
    if how == "the input ends":
        one.process.stdin.close()
    elif how != "silence":
        one.process.send_signal(getattr(signal, how))
    one.process.wait(timeout=20)
    assert wait_until(lambda: not one.family())
    assert one.left() == []


def test_a_sign_of_life_is_enough_to_keep_it(start):
    one = start(SILENCE_S=0.6, _TICK_S=0.1)
    one.request("run", command=["sleep", "1.2"], most_bytes=0)
    for _ in range(6):
        time.sleep(0.2)
        one.send(b"\n")
    assert one.answer()[0]["code"] == 0


def test_what_a_command_leaves_running_behind_is_ended_too(start):
    one = start(_GRACE_S=0.3)
    leave = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {DEAF!r}])"
    answer, _ = one.run(sys.executable, "-c", leave)
    assert answer["code"] == 0
    assert wait_until(lambda: not one.family())


def test_a_command_that_says_too_much_is_ended(start):
    one = start()
    answer, output = one.run("yes")
    assert (answer["code"], output) == (None, b"")
    assert one.family() == set()


def test_of_the_second_output_the_end_is_kept(start):
    one = start()
    script = "import sys; sys.stderr.write('a' * 100_000 + 'end')"
    assert one.run(sys.executable, "-c", script)[0]["stderr"] == "a" * 8189 + "end"


def test_a_file_of_the_job_is_sent_piece_by_piece(start):
    job = start()
    job.run(sys.executable, "-c", "open('made', 'wb').write(b'0123456789')")
    pieces = [job.ask("get", name="made", start=at, most_bytes=4)[1] for at in (0, 4, 8, 12)]
    assert pieces == [b"0123", b"4567", b"89", b""]
    answer, _ = job.ask("get", name="missing", start=0, most_bytes=4)
    assert answer["failed"] == "No such file or directory"


def test_how_far_a_command_is_comes_before_its_end_and_not_too_often(start):
    """Of a hundred lines in less than a second a few are passed on, and no line that is none."""
    job = start(_PROGRESS_S=0.2)
    say = "import os, sys, time; write = lambda t: print(t, file=sys.stderr, flush=True)\n"
    script = "for n in range(100): write(f'progress: {n}'); time.sleep(0.004)\ntime.sleep(0.4)\n"
    script += "write('a warning'); write('progress: ' + os.environ['WHAT'])\ntime.sleep(0.4)"
    job.request(
        "run",
        command=[sys.executable, "-c", say + script],
        most_bytes=100,
        environment={"WHAT": "all of it"},
    )
    said = []
    while "progress" in (answer := job.answer()[0]):
        said.append(answer["progress"])
    assert answer["code"] == 0
    assert 2 <= len(said) <= 20
    assert said[0].isdigit()
    assert said[-1] == "all of it"


def test_a_killed_keeper_takes_its_command_along_and_the_next_removes_the_folder(start):
    one = start()
    one.start_family()
    (leader,) = (pid for pid in one.family() if parent_of(pid) == one.process.pid)
    one.process.kill()
    one.process.wait()
    try:
        assert wait_until(lambda: leader not in one.family())
        (abandoned,) = one.left()
        start()
        assert abandoned not in one.left()
    finally:
        for pid in one.family():
            os.kill(pid, signal.SIGKILL)


def test_jobs_at_the_same_time_leave_each_other_alone(start):
    first, second = start(), start()
    assert len(first.left()) == 2
    second.ends()
    assert first.run("true")[0]["code"] == 0


def test_an_environment_that_was_not_completed_is_removed(start, tmp_path):
    one = start()
    folder = tmp_path / "cache" / "environments" / "name"
    answer, _ = one.ask("prepare", name="name")
    assert (answer["folder"], answer["complete"]) == (str(folder), False)
    assert folder.is_dir()
    one.ends()
    assert not folder.exists()


def test_a_complete_environment_stays_and_is_found(start):
    one = start()
    one.ask("prepare", name="name")
    one.ask("complete")
    one.ends()
    assert start().ask("prepare", name="name")[0]["complete"] is True


def test_of_two_that_want_one_environment_the_second_waits(start):
    first, second = start(), start()
    first.ask("prepare", name="name")
    second.request("prepare", name="name")
    first.ask("complete")
    first.ends()
    assert second.answer()[0]["complete"] is True


def test_who_waits_for_an_environment_notices_the_end(start):
    first, second = start(), start()
    first.ask("prepare", name="name")
    second.request("prepare", name="name")
    second.ends()
    assert len(first.left()) == 1
