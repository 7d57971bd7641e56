from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from maskfer_edge.errors import InputError
from maskfer_trainer import workers
from maskfer_trainer.workers import run_here, run_in_order, run_on_cluster

pytestmark = pytest.mark.timeout(180)

# What the worker processes import; they cannot import a test.
TASK = """
import os, time
from dataclasses import dataclass
from pathlib import Path

@dataclass(frozen=True)
class Task:
    folder: Path

    def __call__(self, batch):
        (self.folder / f"pid-{os.getpid()}").touch()
        return [self.do(*item) for item in batch]

    def do(self, what, number):
        if what == "die":
            os._exit(9)
        if what == "die-once" and not (self.folder / "died").exists():
            (self.folder / "died").touch()
            os._exit(9)
        if what == "full":
            raise OSError(28, "No space left on device")
        if what == "unpicklable":
            return lambda: None
        if what == "sleep":
            time.sleep(number)
        if what == "big":
            return bytes([number]) * 3_000_000
        return -number
"""
SCRIPT = """
import sys
from pathlib import Path
import slow_task
from maskfer_trainer.workers import run_here

if __name__ == "__main__":
    print("started", flush=True)
    for _ in run_here(slow_task.Task(Path(sys.argv[1])), ([("sleep", 0.2)] for _ in range(1000)), 2, None):
        print("result", flush=True)
"""


@pytest.fixture
def task(tmp_path, monkeypatch):
    return load_task(tmp_path, monkeypatch, tmp_path)


def load_task(folder: Path, monkeypatch, notes: Path):
    if not (folder / "slow_task.py").exists():
        (folder / "slow_task.py").write_text(TASK)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "slow_task", raising=False)
    return importlib.import_module("slow_task").Task(notes)


def batches(*odd: tuple[str, float], count: int = 20) -> list[list[tuple[str, float]]]:
    """Items 0 to `count` - 1, by threes, the first of them as in `odd`."""
    items = [*odd, *(("do", number) for number in range(len(odd), count))]
    return [items[i : i + 3] for i in range(0, count, 3)]


def died(item):
    return f"{item} died"


def flat(results) -> list:
    return sorted((one for batch in results for one in batch), key=str)


def answers(*numbers: int) -> list:
    return sorted((-number for number in numbers), key=str)


@pytest.mark.parametrize("count", [1, 2])
def test_all_results_arrive(task, count):
    assert flat(run_here(task, batches(), count, died)) == answers(*range(20))


@pytest.mark.parametrize("count", [1, 2])
def test_no_work_gives_no_results(task, count):
    assert not list(run_here(task, [], count, died))


def test_one_worker_is_this_process(task, tmp_path):
    flat(run_here(task, batches(), 1, died))
    assert [p.name for p in tmp_path.glob("pid-*")] == [f"pid-{os.getpid()}"]


def test_batches_are_read_as_they_are_needed(task):
    read: list[int] = []

    def reading():
        for batch in batches():
            read.append(1)
            yield batch

    with closing(run_here(task, reading(), 2, died)) as results:
        assert not read
        next(results)
        assert len(read) == 3


def test_a_batch_larger_than_a_pipe_holds_goes_both_ways(tmp_path):
    big = [[bytes(3_000_000)] for _ in range(5)]
    assert list(run_here(list, big, 2, died)) == big


def test_the_work_of_a_worker_that_died_is_done_again(task, tmp_path):
    assert flat(run_here(task, batches(("die-once", 0)), 2, died)) == answers(*range(20))
    assert (tmp_path / "died").exists()


def test_an_item_that_kills_each_worker_is_reported_and_the_rest_done(task):
    odd = [("do", 0), ("die", 1), ("do", 2), ("do", 3), ("die", 4)]
    found = flat(run_here(task, batches(*odd), 2, died))
    assert found == sorted([*answers(0, 2, 3, *range(5, 20)), died(("die", 1)), died(("die", 4))], key=str)


def test_workers_that_always_die_are_one_error(task, monkeypatch):
    monkeypatch.setattr(workers, "MAX_DEATHS", 2)
    with pytest.raises(InputError, match=r"4 workers died.*--workers 1"):
        flat(run_here(task, batches(*[("die", 0)] * 20), 2, died))


@pytest.mark.parametrize("count", [1, 2])
def test_what_the_task_raises_arrives_as_it_is(task, count):
    with pytest.raises(OSError, match="No space left") as raised:
        flat(run_here(task, batches(("full", 0)), count, died))
    assert raised.value.errno == 28
    assert not multiprocessing.active_children()


def test_a_result_that_cannot_be_pickled_is_an_error_not_a_death(task):
    with pytest.raises((pickle.PicklingError, AttributeError), match="pickle"):
        flat(run_here(task, batches(("unpicklable", 0)), 2, died))


def test_closing_early_ends_the_processes_at_once(task):
    results = run_here(task, [[("do", 0)], *([("sleep", 50)] for _ in range(9))], 2, died)
    next(results)
    assert multiprocessing.active_children()
    started = time.monotonic()
    results.close()
    assert not multiprocessing.active_children()
    assert time.monotonic() - started < 25  # a batch takes 50


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_keep_the_order_of_their_batches(task, count):
    pending = [[("sleep", 0.2 if number % 3 == 0 else 0.01 * number)] for number in range(10)]
    assert list(run_in_order(task, pending, count)) == [[-seconds] for ((_, seconds),) in pending]
    assert not list(run_in_order(task, [], count))
    assert not multiprocessing.active_children()


def test_two_batches_a_worker_are_read_ahead(task):
    read = []

    def reading():
        for number in range(20):
            read.append(number)
            yield [("do", number)]

    with closing(run_in_order(task, reading(), 2)) as results:
        assert not read
        for number in range(5):
            assert next(results) == [-number]
            assert len(read) == 5 + number
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_while_it_sends_a_result_is_replaced(task):
    with closing(run_in_order(task, [[("big", number)] for number in range(9)], 2)) as results:
        made = [next(results)]
        time.sleep(0.3)  # both wait for the first part of three megabytes to be taken
        for process in multiprocessing.active_children():
            process.kill()
        made += results
    assert [result[0][0] for result in made] == list(range(9))


def test_a_batch_that_kills_each_worker_is_one_error_in_order_too(task, monkeypatch):
    monkeypatch.setattr(workers, "MAX_DEATHS", 2)
    results = run_in_order(task, [[("do", 1)], [("die", 2)], [("do", 3)]], 2)
    assert next(results) == [-1]
    with pytest.raises(InputError, match=r"2 workers died.*--workers 1"):
        next(results)
    with pytest.raises(OSError, match="No space left"):
        list(run_in_order(task, [[("full", 0)]] * 3, 2))
    assert not multiprocessing.active_children()


@contextmanager
def script(folder: Path):
    (folder / "script.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, folder / "script.py", folder],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    with process:
        yield process


def wait_for_the_end_of_workers(folder: Path) -> None:
    deadline = time.monotonic() + 20
    for mark in folder.glob("pid-*"):
        while Path("/proc", mark.name[4:]).exists():
            assert time.monotonic() < deadline, "a worker is left"
            time.sleep(0.05)


@pytest.mark.parametrize("line", ["started", "result"], ids=["while-they-start", "while-they-work"])
def test_ctrl_c_ends_all_with_one_traceback(task, tmp_path, line):
    with script(tmp_path) as process:
        while process.stdout.readline().strip() != line:
            pass
        if line == "started":
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # as the terminal does
        _, errors = process.communicate()
    assert errors.count("Traceback") == errors.count("KeyboardInterrupt\n") == 1, errors
    assert process.returncode == -signal.SIGINT
    wait_for_the_end_of_workers(tmp_path)


def test_workers_end_when_this_process_is_killed(task, tmp_path):
    with script(tmp_path) as process:
        while process.stdout.readline().strip() != "result":
            pass
        process.kill()
        _, errors = process.communicate()
    assert not errors
    wait_for_the_end_of_workers(tmp_path)


class Cluster:
    """A Dask scheduler and workers on this machine, as a user starts them; only workers can import the task."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "logs").mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        self.processes: list[subprocess.Popen] = []

    def start(self, *arguments: str, **environment: str) -> None:
        with (self.folder / f"logs/{len(self.processes)}").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments, "--no-dashboard"], cwd=self.folder / "logs",
                env={**os.environ, **environment}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)

    def start_scheduler(self) -> None:
        self.start("scheduler", "--host", self.address, DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="1")
        port = int(self.address.rpartition(":")[2])
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.1)
        raise AssertionError((self.folder / "logs/0").read_text())

    def start_workers(self, count: int) -> None:
        self.start("worker", self.address, "--nworkers", str(count), "--nthreads", "1", PYTHONPATH=str(self.folder))

    def stop(self) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the workers that a nanny has started
            process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    pytest.importorskip("distributed")
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    (cluster.folder / "slow_task.py").write_text(TASK)
    try:
        cluster.start_scheduler()
        cluster.start_workers(2)
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def lone_scheduler(tmp_path):
    pytest.importorskip("distributed")
    cluster = Cluster(tmp_path)
    try:
        cluster.start_scheduler()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def remote_task(cluster, tmp_path, monkeypatch):
    return load_task(cluster.folder, monkeypatch, tmp_path)


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(workers, "CONNECT_SECONDS", 1.0)


def test_a_cluster_gives_the_same_results(cluster, remote_task, tmp_path):
    found = flat(run_on_cluster(remote_task, batches(count=60), cluster.address, died))
    assert found == answers(*range(60))
    assert not (tmp_path / f"pid-{os.getpid()}").exists()


def test_the_cluster_holds_few_batches_at_a_time(cluster, remote_task):
    read: list[int] = []

    def reading():
        for batch in batches(count=300):
            read.append(1)
            yield batch

    with closing(run_on_cluster(remote_task, reading(), cluster.address, died)) as results:
        next(results)
        assert len(read) <= 2 * workers.BATCHES_PER_THREAD


def test_large_batches_go_to_a_cluster_without_a_warning(cluster):
    big = [[bytes(12_000_000)]]
    assert list(run_on_cluster(list, big, cluster.address, died)) == big


def test_a_cluster_does_the_work_of_a_worker_that_died_again(cluster, remote_task, tmp_path):
    found = flat(run_on_cluster(remote_task, batches(("die-once", 0)), cluster.address, died))
    assert found == answers(*range(20))
    assert (tmp_path / "died").exists()


def test_a_cluster_worker_may_be_killed_in_the_middle(cluster, remote_task, tmp_path):
    found = []
    for results in run_on_cluster(remote_task, [[("sleep", 0.1)]] * 40, cluster.address, died):
        found += results
        if len(found) == 5:
            os.kill(int(next(tmp_path.glob("pid-*")).name[4:]), signal.SIGKILL)
    assert found == [-0.1] * 40


def test_an_item_that_kills_cluster_workers_is_reported_and_the_rest_done(cluster, remote_task):
    found = flat(run_on_cluster(remote_task, batches(("die", 0)), cluster.address, died))
    assert found == sorted([*answers(*range(1, 20)), died(("die", 0))], key=str)


def test_what_the_task_raises_on_a_cluster_arrives_as_it_is(cluster, remote_task):
    with pytest.raises(OSError, match="No space left") as raised:
        flat(run_on_cluster(remote_task, batches(("full", 0)), cluster.address, died))
    assert raised.value.errno == 28


def test_closing_early_frees_the_cluster(cluster, remote_task):
    with closing(run_on_cluster(remote_task, [[("sleep", 0.2)]] * 1000, cluster.address, died)) as results:
        next(results)
    started = time.monotonic()
    assert flat(run_on_cluster(remote_task, batches(), cluster.address, died)) == answers(*range(20))
    assert time.monotonic() - started < 30  # all of the first would take 100


def test_cluster_workers_without_the_tasks_module_are_one_error(cluster, tmp_path, monkeypatch):
    (tmp_path / "slow_task_2.py").write_text(TASK)
    monkeypatch.syspath_prepend(tmp_path)
    absent = importlib.import_module("slow_task_2").Task(tmp_path)
    with pytest.raises(InputError, match=r"cannot import slow_task_2.*pip install 'maskfer\[trainer,cluster\]'"):
        flat(run_on_cluster(absent, batches(), cluster.address, died))


def test_a_scheduler_without_workers_is_one_error(lone_scheduler, task, monkeypatch):
    monkeypatch.setattr(workers, "NO_WORKER_SECONDS", 0.5)
    with pytest.raises(InputError, match=rf"{lone_scheduler.address} has no workers; start some: dask worker"):
        flat(run_on_cluster(task, batches(), lone_scheduler.address, died))


def test_a_cluster_that_goes_away_is_one_error(lone_scheduler, task, hurried, capfd):
    lone_scheduler.start_workers(1)
    with (
        pytest.raises(InputError, match="no Dask scheduler answers"),
        closing(run_on_cluster(task, [[("sleep", 0.1)]] * 100, lone_scheduler.address, died)) as results,
    ):
        next(results)
        lone_scheduler.processes[0].kill()
        list(results)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("address", ["", "localhost", "localhost:", "localhost:port", "http://localhost:1", "::1:8786",
                                     "inproc://1/2/3", "tls://localhost:1", "ucx://localhost:1"])  # fmt: skip
def test_a_malformed_address_is_one_error(task, hurried, address):
    pytest.importorskip("distributed")
    with pytest.raises(InputError, match=r"is no address of a Dask scheduler; .*tcp://HOST:8786"):
        flat(run_on_cluster(task, batches(), address, died))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "tcp://127.0.0.1:99999", "nosuchhost.invalid:8786"])
def test_an_unreachable_scheduler_is_one_error(task, hurried, address, capfd):
    pytest.importorskip("distributed")
    with pytest.raises(InputError, match=rf"no Dask scheduler answers at {address}; start one: dask scheduler"):
        flat(run_on_cluster(task, batches(), address, died))
    assert capfd.readouterr().err == ""


def test_a_server_that_keeps_silent_is_no_scheduler(task, hurried):
    pytest.importorskip("distributed")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(InputError, match="no Dask scheduler answers"):
            flat(run_on_cluster(task, batches(), address, died))
