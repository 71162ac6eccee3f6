"""Options that mean the same in every command, logging, and the exit codes."""

from __future__ import annotations

import errno
import inspect
import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from cvgl_data import __version__
from cvgl_data.errors import CvglError

RECIPE_HELP = "A shipped recipe's name (see `recipes list`), or a TOML file as in ./mine.toml."

OK, FAILED, USAGE, PARTIAL, INTERRUPTED = 0, 1, 2, 3, 130

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE)
"""What the machine refuses: no fault of the program, so no traceback."""

_LEAST = 14
"""Characters that are left of a text on the narrowest terminal."""

out_console = Console(soft_wrap=True)
err_console = Console(stderr=True)

Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Folder to write to.", show_default=False)]
RecipeName = Annotated[
    str | None,
    typer.Option("--recipe", metavar="NAME|FILE", help=RECIPE_HELP, show_default=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override one recipe value, as in seed=1.",
        show_default=False,
    ),
]
Revisions = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a recipe value that this command acts on, and keep it.",
        show_default=False,
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Delete what the folder holds of an earlier run, and start over.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")]
Workers = Annotated[int, typer.Option(min=0, metavar="N", help="Worker processes; 0 means one per core.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
DatasetDir = Annotated[Path, typer.Argument(metavar="DIR", help="A dataset folder.")]


def new_app(help_text: str) -> typer.Typer:
    """Return a Typer app with the settings both programs share."""
    return typer.Typer(
        help=help_text,
        no_args_is_help=True,
        pretty_exceptions_enable=False,  # a traceback's locals may hold keys
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    )


def new_program(help_text: str) -> typer.Typer:
    """Return the Typer app of a program, which also knows its version."""
    program = new_app(help_text)
    program.callback()(_program)
    return program


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cvgl {__version__}")
        raise typer.Exit


def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def graft(command: Callable[..., Any], name: str, provider: Callable[..., Any]) -> Callable[..., Any]:
    """Replace one parameter of a command by all parameters of the function that makes its value.

    Typer reads a command's options off its signature and has no way to share a group of them.
    """
    shared, own = _parameters(provider), _parameters(command)
    del own[name]

    def grafted(**values: Any) -> Any:
        made = provider(**{key: values.pop(key) for key in shared})
        return command(**{name: made}, **values)

    parameters = [*own.values(), *shared.values()]
    grafted.__name__, grafted.__doc__ = command.__name__, command.__doc__
    grafted.__annotations__ = {item.name: item.annotation for item in parameters}
    # Functions take any attribute; their type does not know this one.
    grafted.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return grafted


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    hints = get_type_hints(function, include_extras=True)
    return {
        name: item.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, item in inspect.signature(function).parameters.items()
    }


def verbosity(
    verbose: Annotated[
        int,
        typer.Option("--verbose", "-v", count=True, help="Say more on stderr; -vv for debugging.", show_default=False),
    ] = 0,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress bars and no notes, only results and errors.")
    ] = False,
) -> bool:
    """Configure logging, here and nowhere else; return whether to be quiet."""
    level = logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    if err_console.is_terminal:
        form = "%(message)s"
        handler: logging.Handler = RichHandler(
            console=err_console, show_path=verbose > 1, show_time=verbose > 0, markup=False
        )
    else:  # a file or a program reads it: one line each, however long
        form = f"{'%(asctime)s ' if verbose else ''}%(levelname)-8s %(message)s"
        handler = logging.StreamHandler()
    logging.basicConfig(level=level, format=form, handlers=[handler], force=True)
    return quiet


def takes_verbosity(command: Callable[..., Any]) -> Callable[..., Any]:
    """Replace a command's ``quiet`` parameter by ``-v`` and ``-q``."""
    return graft(command, "quiet", verbosity)


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=not is_unicode, allow_nan=False) + "\n")


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table on stdout, columns of numbers to the right; cut to the width of a terminal, whole in a pipe."""
    drawn = Table(box=SIMPLE_HEAD, pad_edge=False)
    widths = [max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True)]
    is_number = [bool(rows) and cell[:1].isdigit() for cell in (rows[0] if rows else columns)]
    between = 3 * (len(columns) - 1) + 2
    if out_console.is_terminal:
        # Text gives way, but for the first column, which names the row; a number that is cut would be another number.
        least = [
            width if number or index == 0 else min(width, _LEAST)
            for index, (width, number) in enumerate(zip(widths, is_number, strict=True))
        ]
        widths = fitted(widths, least, out_console.width - between)
    for column, width, number in zip(columns, widths, is_number, strict=True):
        justify: Literal["left", "right"] = "right" if number else "left"
        drawn.add_column(column, justify=justify, width=width, no_wrap=True, overflow="ellipsis")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    out_console.print(Text(title, style="bold"))  # one of the table's own would wrap at a narrow table's width
    Console(width=sum(widths) + between).print(drawn, soft_wrap=True)


def fitted(widths: list[int], least: list[int], room: int) -> list[int]:
    """Return column widths that sum to at most ``room``, the widest cut first and none below its least."""
    found = list(widths)
    while sum(found) > room:
        widest = max(range(len(found)), key=lambda index: (found[index] > least[index], found[index]))
        if found[widest] <= least[widest]:
            break
        found[widest] -= 1
    return found


def rows_table(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows that share their keys; nothing for no rows."""
    if rows:
        table(title, list(rows[0]), [[cell(value) for value in row.values()] for row in rows])


def cell(value: Any) -> str:
    """Return a value as a table shows it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def note(message: str) -> None:
    """Print one line for the person at the terminal, on stderr, unless that person wants to be left alone."""
    if logging.getLogger().getEffectiveLevel() < logging.ERROR:  # what --quiet sets
        tell(message)


def tell(message: str) -> None:
    """Print one line on stderr."""
    err_console.print(message, markup=False, highlight=False, soft_wrap=not err_console.is_terminal)


def tell_error(what: object) -> None:
    """Print one red line on stderr."""
    err_console.print(f"error: {what}", style="bold red", markup=False, highlight=False, soft_wrap=True)


def run(app: Callable[[], Any], after_interrupt: str) -> None:
    """Run a Typer app as a program: one red line per `CvglError`, and the exit codes.

    Args:
        app: The Typer app.
        after_interrupt: What to tell a person who pressed Ctrl-C.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, with what was done kept
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a locale without some letters, or a path that is no text, ends nothing
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except CvglError as error:
        tell_error(error)
        sys.exit(FAILED)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in ("torch", "torchvision", "timm", "safetensors"):
            raise
        tell(f"error: {error.name} is not installed; training needs: pip install 'cvgl[train]'")
        sys.exit(FAILED)
    except (KeyboardInterrupt, typer.Abort):
        tell(after_interrupt)
        sys.exit(INTERRUPTED)
    except SystemExit as error:
        # Typer makes a code of Ctrl-C itself, since which version differs; a command that says so itself has no cause.
        raised = error.__context__
        if error.code == INTERRUPTED and raised is not None and isinstance(raised.__cause__, KeyboardInterrupt):
            tell(after_interrupt)
        raise
    except BrokenPipeError:
        # The reader (head, less) went away: not an error. Point stdout elsewhere so that the exit does not complain.
        sys.stdout = None
        sys.exit(OK)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        said = f"{error}; what was done is kept" if error.filename else f"{error.strerror}; make room and run again"
        tell_error(said)
        sys.exit(FAILED)


@contextmanager
def progress_bar(quiet: bool) -> Iterator[StageBar]:
    """Yield a progress display on stderr that shows one bar per stage; silent when quiet or not a terminal."""
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err_console,
        disable=quiet or not err_console.is_terminal,
    )
    with progress:
        bar = StageBar(progress)
        yield bar
        bar.done()


class StageBar:
    """One bar per stage."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._task: Any = None

    def stage(self, name: str, total: int | None) -> None:
        """Start the next bar and finish the one before it."""
        self.done()
        self._task = self._progress.add_task(name, total=total, note="", count="")

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Move the bar on."""
        if self._task is not None:
            task = self._current()
            done = f"{task.completed + count:,.0f}/{task.total:,.0f}" if task.total else ""
            fields = {"count": done} if note is None else {"count": done, "note": note}
            self._progress.update(self._task, advance=count, **fields)

    def done(self) -> None:
        """Fill the current bar."""
        if self._task is not None:
            total = self._current().total or 1  # a stage without a count is one piece of work
            self._progress.update(self._task, total=total, completed=total)
            self._task = None

    def _current(self) -> Any:
        return self._progress.tasks[self._progress.task_ids.index(self._task)]
