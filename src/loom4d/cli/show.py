"""What the commands share: how their arguments are grouped, and what they print with."""

from __future__ import annotations

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from loom4d.runs import Event

Flat = tyro.conf.arg(name="")  # of a record among the arguments: its fields are options by their own names
console = Console(highlight=False, soft_wrap=True)


class Show:
    """Prints events: a bar with the remaining time for each stage, a line for each note."""

    def __init__(self) -> None:
        self.progress = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("elapsed,"),
            TimeRemainingColumn(),
            TextColumn("left  {task.fields[message]}"),
            console=console,
        )
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, event: Event) -> None:
        if event.total:
            if event.stage not in self.tasks:
                self.tasks[event.stage] = self.progress.add_task(event.stage, total=event.total, message="")
            message = event.message if event.kind != "start" else ""
            self.progress.update(self.tasks[event.stage], completed=event.step, total=event.total, message=message[:60])
        elif event.kind in ("note", "done", "start") and (event.message or event.data):
            facts = ", ".join(f"{name} {value}" for name, value in event.data.items())
            shown = ": ".join(part for part in (event.message, facts if event.kind == "done" else "") if part)
            if shown:
                self.progress.console.print(f"{event.stage:<9} {shown}")

    def __enter__(self) -> Show:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
