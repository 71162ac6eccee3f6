"""The ``recipes`` commands of both programs."""

from __future__ import annotations

from typing import Annotated

import typer

from ._options import new_app, table, takes_verbosity


def recipes_app(kind: str, title: str) -> typer.Typer:
    """Return the commands that list and show the recipes of one kind (``datasets`` or ``models``) that cvgl ships."""
    app = new_app(f"List and show the {title} that come with cvgl.")

    @app.command("list", help=f"List the {title} that come with cvgl.")
    @takes_verbosity
    def list_recipes(quiet: bool = False) -> None:
        from cvgl_data.recipe import describe_shipped

        table(title.capitalize(), ["recipe", "how to run it"], [list(row) for row in describe_shipped(kind)])

    @app.command("show", help="Print a recipe as it is shipped, comments included.")
    @takes_verbosity
    def show_recipe(
        name: Annotated[str, typer.Argument(metavar="NAME", help="A name that `recipes list` shows.")],
        quiet: bool = False,
    ) -> None:
        from cvgl_data.recipe import read_text

        typer.echo(read_text(name, kind), nl=False)

    return app
