"""One command for a published table: its runs, several at a time, in processes of their own. Imports no torch."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from metafew.distributed.launch import ENDED, PROGRAM, launch, left_to
from metafew.errors import UsageError
from metafew.experiments.plan import Cell, Command
from metafew.experiments.record import gather, tables
from metafew.io import write_json


def conduct(experiment: dict, cells: Sequence[Cell], out: Path, jobs: int = 1) -> int:
    """Carry out the runs that are not finished, and leave table, results and figures in ``out``.

    A run that fails does not stop the others, and one that was interrupted goes on where it was. After every training
    results.json holds all that is there so far. Several commands may want the same runs at once.

    Args:
        experiment: what stands below ``experiment`` in the YAML, with ``name``, ``budget`` and ``command``.
        cells: what :func:`metafew.experiments.plan.plan` made of it.
        out: folder for results.json, table.md and the figures.
        jobs: how many runs at a time share the cores.

    Returns:
        The exit code: 0, 1 where a cell failed, 130 after an interruption.
    """
    console = Console()
    waiting = list(chains(cells))
    runs = {command for chain in waiting for command in chain}
    say(console, f"{experiment['title']}: {len(cells)} cells, {len(runs)} runs to do, {jobs} at a time")
    begin, children, failed = time.monotonic(), [], set()
    threads = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else None
    with left_to(children) as signals, ThreadPoolExecutor(jobs) as pool:

        def carry_out(chain: Sequence[Command]) -> None:
            for command in chain:
                with alone_with(command, signals):
                    if command.finished:
                        continue
                    if signals or command in failed or not succeeded(command, children, signals, threads):
                        failed.add(command)
                        return

        futures = {pool.submit(carry_out, chain): chain for chain in waiting}
        for done, future in enumerate(as_completed(futures), 1):
            future.result()
            if signals:
                continue
            place = f"{done}/{len(waiting)}: {clock(time.monotonic() - begin, done, len(waiting) - done)}"
            commands = [shlex.join(["python", *PROGRAM, *command.typed]) for command in futures[future]]
            say(console, "\n  ".join([place, *commands]))
            write_json(out / "results.json", gather(experiment, cells))
    if signals:
        print(f"metafew: interrupted; what is done stays in {out}: type the same command to go on", file=sys.stderr)
        return 130
    report = gather(experiment, cells) | {"figures": list(draw(experiment, cells, out, console))}
    write_json(out / "results.json", report)
    sheets = tables(report)
    (out / "table.md").write_text("\n".join(sheet.markdown() for sheet in sheets))
    for sheet in sheets:
        console.print(sheet.rich())
        say(console, "\n".join([*sheet.notes, ""]))
    print(f"the table, results and figures are in {out}")
    return int(any(cell.error for cell in cells))


def chains(cells: Sequence[Cell]) -> Iterator[list[Command]]:
    """Yield, for each training, what is left to do: what it starts from, itself, and its tests after it."""
    found: dict[Command, list[Command]] = {}
    for cell in cells:
        found.setdefault(cell.fit, []).extend(cell.commands)
    for commands in found.values():
        if left := [command for command in dict.fromkeys(commands) if not command.finished]:
            yield left


@contextmanager
def alone_with(command: Command, signals: Sequence[int]) -> Iterator[None]:
    """Wait until nobody else carries out a run, be it for this table or for another, or until a signal comes."""
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


def succeeded(
    command: Command, children: list[subprocess.Popen], signals: list[int], threads: int | None = None
) -> bool:
    """Carry out one run, what it prints in log.txt of its folder; leave a sentence where it ended without one.

    Args:
        command: the run.
        children: where its process stands as long as it goes on.
        signals: where it is added that a signal ended it, which is to stop others too.
        threads: how many cores it may use, unless the user said.
    """
    command.folder.mkdir(parents=True, exist_ok=True)
    (command.folder / "results.json").unlink(missing_ok=True)
    with (command.folder / "log.txt").open("a") as log:
        child = launch(command.typed, log, threads)
        children.append(child)
        if signals:  # it came when this one was not yet among those that it is handed on to
            child.terminate()
        code = child.wait()
        children.remove(child)
    if code == ENDED:
        signals.append(code)
    elif code and "error" not in command.report:
        sentence = f"it ended with exit code {code}: see {log.name}"
        write_json(command.folder / "results.json", {"error": sentence})
    return code == 0


def draw(experiment: dict, cells: Sequence[Cell], out: Path, console: Console) -> Iterator[str]:
    """Draw the figures whose rows are finished, in folders of trainings (``from: fit``) or of tests.

    ``rows`` maps labels to rows; without it all rows are drawn, or with ``by: panel`` those of each panel as one.

    Yields:
        The name of each that was drawn.
    """
    names = list(experiment["rows"])
    for name, figure in experiment.get("figures", {}).items():
        file = out / f"{name}.png"
        file.unlink(missing_ok=True)
        by_panel = {panel: [row for row in names if panel_of(row) == panel] for panel in map(panel_of, names)}
        rows = by_panel if figure.get("by") == "panel" else figure.get("rows") or {row: row for row in names}
        folders = {label: folders_of(cells, row, figure["from"]) for label, row in rows.items()}
        if not all(folders.values()):
            continue
        module, _, function = figure["draw"].rpartition(".")
        try:
            getattr(import_module(module), function)(folders, file)
        except UsageError as error:
            say(console, f"{name} is not drawn: {error}")
        else:
            yield name


def panel_of(row: str) -> str:
    """Return the panel of a row."""
    return row.rpartition("/")[0]


def folders_of(cells: Sequence[Cell], rows: str | Sequence[str], stage: str) -> list[Path]:
    """Return the folders of the finished cells of rows: of their trainings (``fit``) or their tests (``test``)."""
    rows = [rows] if isinstance(rows, str) else rows
    return [getattr(cell, stage).folder for cell in cells if cell.row in rows and cell.finished]


def clock(seconds: float, done: int, left: int) -> str:
    """Return the minutes so far, and those that ``left`` trainings will take if they are like those that are done.

    >>> clock(600, 4, 6)
    '10 min so far, about 15 min left'
    """
    return f"{seconds / 60:.0f} min so far, about {seconds / done * left / 60:.0f} min left"


def say(console: Console, text: str) -> None:
    """Print ``text`` as it is: the brackets of a list are no markup, and a command stays one line to copy."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
