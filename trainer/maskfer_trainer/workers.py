"""Spreads work over processes of this machine or over a Dask cluster, and outlives workers that die.

A worker dies when the kernel's out-of-memory killer takes it or a native library crashes. What it was
doing is done again here when all else is done, item by item in a process of its own; an item that ends
that process too goes to the caller's `died`, which makes a result of it. Where results are needed in
their order, a new process does again what the dead one had to do.

Not a ProcessPoolExecutor: one death breaks all of it, it does not say which batch was to blame, and a process that dies
while it sends a result leaves it waiting for the rest for ever.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import pickle
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import closing, contextmanager, suppress
from itertools import cycle, islice
from multiprocessing import connection, resource_tracker
from typing import Any, Generic, TypeAlias, TypeVar

from maskfer_edge.dependencies import extra
from maskfer_edge.errors import InputError

# So many workers may die one after another, with no result between them, for each that works at a time.
MAX_DEATHS = 10
# A worker of those that keep an order makes one while its last one waits to be taken.
BATCHES_AHEAD = 2
# Enough for a worker to find its next batch waiting, and little for the scheduler to hold.
BATCHES_PER_THREAD = 4
CONNECT_SECONDS = 10.0
# A worker's nanny starts it anew within seconds.
NO_WORKER_SECONDS = 20.0
# How often to look whether there still are workers.
POLL_SECONDS = 5.0
# For one batch's results to come over the network.
FETCH_SECONDS = 60.0

T = TypeVar("T")
R = TypeVar("R")
Task: TypeAlias = Callable[[list[T]], list[R]]
# A batch and its results; None where the worker died.
Outcome: TypeAlias = tuple[list[T], list[R] | None]


def run_here(
    task: Task[T, R], batches: Iterable[list[T]], workers: int, died: Callable[[T], R]
) -> Generator[list[R], None, None]:
    """Do `task` with each batch, in processes of this machine.

    Close the generator to stop early (`contextlib.closing`); that ends the processes at once.

    Args:
        task: Can be pickled, and keeps what is expensive to make in a cache of its module: each process
            calls one copy with all its batches. One process calls it from one thread only.
        batches: Read as they are needed; each worker holds one.
        workers: Processes; 1 for none besides this, where a crash is a crash.
        died: Called with an item that has ended the process it was alone in; gives its result.

    Yields:
        The results of a batch, as they come: the order is not that of `batches`.

    Raises:
        InputError: If workers die and die, whatever they do.
        Exception: What `task` raises, as it is.
    """
    if workers <= 1:
        yield from map(task, batches)
    else:
        yield from _with_retries(_on_processes(task, iter(batches), workers), MAX_DEATHS * workers, task, died)


def run_in_order(task: Task[T, R], batches: Iterable[list[T]], workers: int) -> Generator[list[R], None, None]:
    """Do `task` with each batch, in processes of this machine; the results keep the order of `batches`.

    Close the generator to stop early (`contextlib.closing`); that ends the processes at once.

    Args:
        task: As for `run_here`.
        batches: Read as they are needed; each worker holds two. Small, so that two fit a pipe: 32 kB at most.
        workers: Processes; 1 for none besides this, where a crash is a crash.

    Yields:
        The results of each batch.

    Raises:
        InputError: If workers die and die over the same batch.
        Exception: What `task` raises, as it is.
    """
    if workers <= 1:
        yield from map(task, batches)
        return
    remaining = iter(batches)
    first = list(islice(remaining, BATCHES_AHEAD * workers))
    processes: list[_Process[T, R]] = []
    try:
        for _ in first[:workers]:  # all start before the first is waited for
            processes.append(_Process(task))
        for batch, process in zip(first, cycle(processes)):
            process.send(batch)
        for place in cycle(range(len(processes))):
            if not processes[place].pending:
                return
            deaths = 0
            while (results := processes[place].receive()[1]) is None:
                deaths += 1
                if deaths >= MAX_DEATHS:
                    raise _no_results(deaths)
                processes[place] = processes[place].restarted()
            for batch in islice(remaining, 1):
                processes[place].send(batch)
            yield results
    finally:
        for process in processes:
            process.kill()


def run_on_cluster(
    task: Task[T, R], batches: Iterable[list[T]], address: str, died: Callable[[T], R]
) -> Generator[list[R], None, None]:
    """Do `task` with each batch, on the workers of a Dask cluster.

    Batches and results travel over the network, so that the machines need share no files. Workers need
    the same maskfer as this machine; the scheduler needs none. Workers may come and go.

    Args:
        task: As for `run_here`, but called by several threads at a time where workers have several
            (``dask worker --nthreads``), and with a new copy for each batch: its cache goes by equality.
        batches: Read as they are needed; the cluster holds four a thread.
        address: Of the scheduler, ``HOST:8786`` or ``tcp://HOST:8786``.
        died: As for `run_here`; called when several workers, and at last a process here, have died of an item.

    Yields:
        As `run_here`.

    Raises:
        DependencyError: If the extra ``cluster`` is not installed.
        InputError: If there is no scheduler at `address`, it has no workers, or they lack maskfer.
        Exception: What `task` raises, as it is.
    """
    yield from _with_retries(_on_cluster(task, iter(batches), address), MAX_DEATHS, task, died)


def check_scheduler(address: str) -> None:
    """Find out before long work whether `run_on_cluster` can begin there; waits a while for the first worker.

    Raises:
        DependencyError: If the extra ``cluster`` is not installed.
        InputError: If there is no scheduler at `address`, or it has no workers.
    """
    with extra("cluster"):
        import distributed  # noqa: F401
    client = _connect(address)
    try:
        _count_threads(client, address)
    finally:
        with suppress(OSError):
            client.close()


def _with_retries(
    outcomes: Generator[Outcome[T, R], None, None], max_deaths: int, task: Task[T, R], died: Callable[[T], R]
) -> Generator[list[R], None, None]:
    """Yield all results, at last those of the batches whose worker died."""
    lost = yield from _completed(outcomes, max_deaths)
    alone = _on_processes(task, ([item] for item in lost), 1)
    dead = yield from _completed(alone, MAX_DEATHS)
    if dead:
        yield [died(item) for item in dead]


def _completed(outcomes: Generator[Outcome[T, R], None, None], max_deaths: int) -> Generator[list[R], None, list[T]]:
    """Yield the results that there are; return the items of the other batches."""
    lost: list[T] = []
    deaths = 0
    with closing(outcomes):
        for batch, results in outcomes:
            if results is not None:
                deaths = 0
                yield results
                continue
            lost += batch
            deaths += 1
            if deaths >= max_deaths:
                raise _no_results(deaths)
    return lost


def _no_results(deaths: int) -> InputError:
    return InputError(
        f"{deaths} workers died one after another without any result; "
        "free some memory, or see the cause with --workers 1"
    )


def _on_processes(task: Task[T, R], batches: Iterator[list[T]], workers: int) -> Generator[Outcome[T, R], None, None]:
    processes: list[_Process[T, R]] = []
    busy: dict[Any, _Process[T, R]] = {}
    try:
        first = list(islice(batches, workers))
        for _ in first:  # all start before the first is waited for
            processes.append(_Process(task))
        for process, batch in zip(processes, first, strict=True):
            process.send(batch)
            busy[process.connection] = process
        while busy:
            for ready in connection.wait(list(busy)):
                process = busy.pop(ready)
                outcome = process.receive()
                for batch in islice(batches, 1):
                    if outcome[1] is None:
                        processes.remove(process)
                        process.kill()
                        process = _Process(task)
                        processes.append(process)
                    process.send(batch)
                    busy[process.connection] = process
                yield outcome
    finally:
        for process in processes:
            process.kill()


class _Process(Generic[T, R]):
    """A process that does one batch after another, for as long as this one lives.

    Attributes:
        pending: Batches whose results were not taken yet.
    """

    def __init__(self, task: Task[T, R]) -> None:
        # spawn: forking a process that has run TensorFlow or OpenCV threads may hang
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(task, other), daemon=True)
        self._task = task
        self.pending: deque[list[T]] = deque()
        resource_tracker.ensure_running()  # else start() does it, which unblocks SIGINT
        # Ctrl-C is this process' to handle; a blocked signal stays blocked in the new one from its first moment
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        other.close()  # now the other end closes when the process dies

    def send(self, batch: list[T]) -> None:
        self.pending.append(batch)
        with suppress(OSError):  # it has died; receive() will say so
            self.connection.send(batch)

    def receive(self) -> Outcome[T, R]:
        """The next batch and its results, None if the process died; raises what the task raised."""
        try:
            results, error = self.connection.recv()
        except (EOFError, OSError):
            return self.pending[0], None
        if error is not None:
            raise error
        return self.pending.popleft(), results

    def restarted(self) -> _Process[T, R]:
        """A new process for the same pending batches; kills this one."""
        self.kill()
        process = _Process(self._task)
        for batch in self.pending:
            process.send(batch)
        return process

    def kill(self) -> None:
        self.connection.close()
        self._process.kill()
        self._process.join()


def _serve(task: Task[T, R], parent: connection.Connection) -> None:
    with suppress(EOFError, OSError):  # the parent is gone
        while True:
            batch = parent.recv()
            try:
                answer = pickle.dumps((task(batch), None))
            except Exception as error:  # noqa: BLE001 (raised in the parent)
                error.add_note(traceback.format_exc())
                answer = pickle.dumps((None, error))
            parent.send_bytes(answer)


class _Call(Generic[T, R]):
    """Pickles as the call of `task` with `batch`, so that ``pickle.loads`` makes it.

    So the scheduler, which unpickles what it passes on, need not have maskfer.
    """

    def __init__(self, task: Task[T, R], batch: list[T]) -> None:
        self.task, self.batch = task, batch

    def __reduce__(self) -> tuple[Task[T, R], tuple[list[T]]]:
        return self.task, (self.batch,)


def _on_cluster(task: Task[T, R], batches: Iterator[list[T]], address: str) -> Generator[Outcome[T, R], None, None]:
    with extra("cluster"):
        import dask
        from distributed import KilledWorker
    client = _connect(address)
    running: dict[Any, list[T]] = {}
    try:
        while True:
            room = BATCHES_PER_THREAD * _count_threads(client, address) - len(running)
            for batch in islice(batches, max(room, 0)):
                call = pickle.dumps(_Call(task, batch))
                # without the setting it warns of batches over 10 MB
                with (
                    _connection_errors(address),
                    dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"}),
                ):
                    running[client.submit(pickle.loads, call, pure=False)] = batch
            if not running:
                return
            for future in _finished(list(running), address):
                with _connection_errors(address):
                    error = future.exception() if future.status == "error" else None
                    try:
                        results = future.result(timeout=FETCH_SECONDS) if error is None else None
                    except TimeoutError:  # the worker died before it could send them: done again elsewhere
                        continue
                batch = running.pop(future)
                if isinstance(error, ImportError):
                    raise InputError(
                        f"a worker of {address} cannot import {error.name or error}; "
                        "run on each of its machines: pip install 'maskfer[trainer,cluster]'"
                    ) from error
                if error is not None and not isinstance(error, KilledWorker):
                    raise error
                yield batch, results
    finally:
        with suppress(OSError):
            client.close()


def _connect(address: str) -> Any:
    from distributed import Client, Security
    from distributed.comm import connect

    # dask prints pages of tracebacks where a connection ends
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

    async def probe() -> None:
        # Client waits forever for a server that keeps silent, as one of HTTP does
        security = Security().get_connection_args("client")
        comm = await asyncio.wait_for(connect(address, CONNECT_SECONDS, **security), CONNECT_SECONDS)
        await comm.close()

    try:
        with _connection_errors(address):
            asyncio.run(probe())
            return Client(address, timeout=CONNECT_SECONDS)
    except (AssertionError, ImportError, MemoryError, TypeError, ValueError) as error:  # malformed, or another server
        raise InputError(f"{address} is no address of a Dask scheduler; one looks like tcp://HOST:8786") from error


@contextmanager
def _connection_errors(address: str) -> Iterator[None]:
    try:
        yield
    except (OSError, CancelledError) as error:
        raise InputError(
            f"no Dask scheduler answers at {address}; start one: dask scheduler, "
            "and on each machine that is to work: dask worker tcp://HOST:8786"
        ) from error


def _count_threads(client: Any, address: str) -> int:
    """Threads of all workers; waits for the first worker."""
    deadline = time.monotonic() + NO_WORKER_SECONDS
    while True:
        with _connection_errors(address):
            if client.status != "running":
                raise OSError("connection lost")
            threads: int = sum(client.nthreads().values())
        if threads:
            return threads
        if time.monotonic() > deadline:
            raise InputError(f"the Dask scheduler at {address} has no workers; start some: dask worker {address}")
        time.sleep(0.2)


def _finished(futures: list[Any], address: str) -> list[Any]:
    """Those that are finished, as soon as there is one; none after a while."""
    from distributed import wait

    with _connection_errors(address):
        try:
            return list(wait(futures, timeout=POLL_SECONDS, return_when="FIRST_COMPLETED").done)
        except TimeoutError:
            return []
