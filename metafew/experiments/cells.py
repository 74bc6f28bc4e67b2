"""Run an experiment: trainings and tests, several at a time, each in its own process. Imports no torch."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from metafew.analysis.compare.comparison_plots import remove
from metafew.analysis.compare.report import make_report
from metafew.distributed.subprocesses import PROGRAM, TERMINATED, forward_signals, start_subprocess
from metafew.distributed.threads import VARIABLE, threads_of_each
from metafew.errors import UsageError
from metafew.experiments.head_tables import head_tables, runs_by_panel
from metafew.experiments.plan import Cell, Command
from metafew.experiments.progress import Progress, describe_cost
from metafew.experiments.record import collect_results, panel_of, result_tables
from metafew.io import write_json

REPORT_EVERY = 600.0
"""Seconds after which the progress of running trainings is printed and recorded."""


def run_experiment(experiment: dict, cells: Sequence[Cell], out: Path, jobs: int = 1) -> int:
    """Run the unfinished commands, and write results.json, table.md, figures and reports by panel to ``out``.

    A failed run does not stop the others, and interrupted runs are resumed. results.json is updated after every
    training. Concurrent experiments can share runs.

    Args:
        experiment: the node ``experiment`` of the YAML, with ``name``, ``budget``, ``command`` and, if its runs need
            any, the ``flags`` that precede their overrides.
        cells: its cells, from :func:`metafew.experiments.plan.plan_cells`.
        out: the output folder.
        jobs: number of concurrent runs, which share the cores.

    Returns:
        The exit code: 0, 1 if a cell failed, 130 after an interruption.
    """
    console = Console()
    signals = run_commands(experiment, cells, out, jobs, console)
    report = collect_results(experiment, cells)
    report["figures"] = list(draw_figures(experiment, cells, out, console))
    panels = runs_by_panel(cells) if experiment.get("report") else {}
    if experiment.get("report"):
        report["heads"] = [table.markdown() for table in head_tables(panels)]
    write_json(out / "results.json", report)
    if signals:
        print(f"metafew: interrupted; {out} keeps all finished runs: type the same command to resume", file=sys.stderr)
        return 130
    tables = result_tables(report)
    (out / "table.md").write_text("\n".join(table.markdown() for table in tables), encoding="utf-8")
    for table in tables:
        for part in table.fitting(console.width):
            console.print(part.rich())
        print_plain(console, "\n".join([*table.notes, ""]))
    print(f"the table, results and figures are in {out}")
    for panel, runs in panels.items():
        made = make_report(runs, [], out / "report" / panel, experiment["command"])
        print(f"the report on all heads is in {out / 'report' / panel}: {', '.join(made.files)}")
    return int(any(cell.error for cell in cells))


def run_commands(experiment: dict, cells: Sequence[Cell], out: Path, jobs: int, console: Console) -> list[int]:
    """Run the unfinished commands, and return the signals that interrupted them, if any.

    See :func:`run_experiment` for the arguments.
    """
    waiting = list(pending_commands(cells))
    runs = {command for commands in waiting for command in commands}
    at_once = max(1, min(jobs, len(waiting)))
    threads = threads_of_each(at_once) if at_once > 1 else None
    each = f", each with {VARIABLE}={threads}" if threads else ""
    begin = time.monotonic()
    progress = Progress(cells, begin)
    todo = f"{experiment['title']}: {len(cells)} cells, {len(runs)} runs to do, {at_once} at a time{each}"
    minutes, flags = experiment.get("minutes", {}).get(experiment["budget"]), experiment.get("flags", [])
    trainings = {cell.fit for cell in cells if runs.intersection(cell.all_commands)}
    print_plain(console, f"{todo}: {describe_cost(len(trainings), jobs, minutes)}" if waiting else todo)
    children: list[subprocess.Popen] = []
    failed: set[Command] = set()
    with forward_signals(children) as signals, ThreadPoolExecutor(jobs) as pool, cancelling(pool, signals):

        def run_in_order(commands: Sequence[Command]) -> None:
            for command in commands:
                with locked(command, signals):
                    if command.finished:
                        continue
                    if signals or command in failed or not run_in_process(command, children, signals, threads, flags):
                        failed.add(command)
                        return

        running = {pool.submit(run_in_order, commands): commands for commands in waiting}
        while running:
            ended, _ = wait(running, timeout=REPORT_EVERY, return_when=FIRST_COMPLETED)
            now = time.monotonic()
            for future in [each for each in running if each in ended]:  # in their order, not that of the set
                future.result()
                commands, done = running.pop(future), len(waiting) - len(running)
                if not signals:
                    lines = [shlex.join(["python", *PROGRAM, *flags, *command.arguments]) for command in commands]
                    so_far = f"{done}/{len(waiting)}: {format_time(now - begin, done, len(running))}"
                    print_plain(console, "\n  ".join([so_far, *lines]))
            if not signals:
                for line in progress.lines(now):
                    print_plain(console, f"  {line}")
                write_json(out / "results.json", collect_results(experiment, cells))
    return signals


@contextmanager
def cancelling(pool: ThreadPoolExecutor, signals: list[int]) -> Iterator[None]:
    """Start no more commands if an error, such as a full disk, leaves this context; the pool would wait for all.

    Args:
        pool: what runs the commands.
        signals: the signals so far, after which no command starts.
    """
    try:
        yield
    except BaseException:
        signals.append(signal.SIGTERM)
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def pending_commands(cells: Sequence[Cell]) -> Iterator[list[Command]]:
    """Yield the unfinished commands of each training in order: pretraining, training, tests.

    Those of a further head start with the training of its network, which is run only once. Each slow head is listed by
    itself, so that its test can run beside others and leaves out only itself if it fails.
    """
    found: dict[Command, list[Command]] = {}
    for cell in cells:
        found.setdefault(cell.fit, []).extend(cell.commands)
    for cell in cells:
        for fit, test in cell.further:
            found.setdefault(test if fit == cell.fit else fit, []).extend([*cell.commands[:-1], fit, test])
    for commands in found.values():
        if pending := [command for command in dict.fromkeys(commands) if not command.finished]:
            yield pending


@contextmanager
def locked(command: Command, signals: Sequence[int]) -> Iterator[None]:
    """Wait for the lock of a run's folder, which another experiment may hold, or for a signal."""
    command.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(command.folder / "run.lock")
    while not signals:
        try:
            lock.acquire(timeout=1)
            break
        except Timeout:
            continue
    try:
        yield
    finally:
        lock.release()


def run_in_process(
    command: Command,
    children: list[subprocess.Popen],
    signals: list[int],
    threads: str | None = None,
    flags: Sequence[str] = (),
) -> bool:
    """Run one command with its output in log.txt, and return whether it succeeded.

    If the process ends without results, a results.json with an error message is written.

    Args:
        command: the run.
        children: holds its process while it runs.
        signals: receives the signal that ended it, if any, to stop other runs too.
        threads: its ``OMP_NUM_THREADS``; None for that of this process.
        flags: what precedes its overrides.
    """
    command.folder.mkdir(parents=True, exist_ok=True)
    (command.folder / "results.json").unlink(missing_ok=True)
    with (command.folder / "log.txt").open("a", encoding="utf-8") as log:
        child = start_subprocess([*flags, *command.arguments], log, threads)
        children.append(child)
        if signals:  # received before the child was registered
            child.terminate()
        code = child.wait()
        children.remove(child)
    if code == TERMINATED:
        signals.append(code)
    elif code and "error" not in command.report:
        write_json(command.folder / "results.json", {"error": f"it ended with exit code {code}: see {log.name}"})
    return code == 0 and command.finished


def draw_figures(experiment: dict, cells: Sequence[Cell], out: Path, console: Console) -> Iterator[str]:
    """Draw each figure for which every label has a finished row, from folders of trainings (``from: fit``) or of tests.

    ``rows`` maps labels to rows; the default is one label per row or, with ``by: panel``, per panel.

    Yields:
        The name of each drawn figure.
    """
    names = list(experiment["rows"])
    for name, figure in experiment.get("figures", {}).items():
        file = remove(out / f"{name}.png")
        by_panel = {panel: [row for row in names if panel_of(row) == panel] for panel in map(panel_of, names)}
        rows = by_panel if figure.get("by") == "panel" else figure.get("rows") or {row: row for row in names}
        folders = {label: finished_folders(cells, row, figure["from"]) for label, row in rows.items()}
        if not all(folders.values()):
            continue
        module, _, function = figure["draw"].rpartition(".")
        try:
            getattr(import_module(module), function)(folders, file)
        except UsageError as error:
            print_plain(console, f"{name} is not drawn: {error}")
        else:
            yield name


def finished_folders(cells: Sequence[Cell], rows: str | Sequence[str], stage: str) -> list[Path]:
    """Return the folders of the finished cells of one or several rows.

    Args:
        cells: all cells.
        rows: their names.
        stage: ``"fit"`` for folders of trainings, ``"test"`` for folders of tests.
    """
    rows = [rows] if isinstance(rows, str) else rows
    finished = [cell for cell in cells if cell.row in rows and cell.finished]
    return [(cell.fit if stage == "fit" else cell.test).folder for cell in finished]


def format_time(seconds: float, done: int, left: int) -> str:
    """Return the minutes so far, and an estimate for the ``left`` trainings based on the ``done`` ones.

    >>> format_time(600, 4, 6)
    '10 min so far, about 15 min left'
    """
    return f"{seconds / 60:.0f} min so far, about {seconds / done * left / 60:.0f} min left"


def print_plain(console: Console, text: str) -> None:
    """Print literal text without markup or line breaks, so that commands can be copied."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
