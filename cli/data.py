"""`fisherlab data`: downloads, and checks of what is there."""

import click

from fisherlab.errors import FisherlabError

from . import options
from .groups import Group
from .messages import accept
from .printing import print_json, print_rows


@click.group("data", cls=Group, short_help="Download data sets, and check those that are there.")
def command() -> None:
    """Download data sets into the cache, and check those that are there."""


@command.command("get")
@click.argument("name")
@options.as_json
@options.verbosity
def get(*, name: str, as_json: bool) -> None:
    """Download a data set into the cache, with its checksums (see `list data`)."""
    from fisherlab import datasets

    datasets.spec(name)
    accept()
    files = [str(path) for path in datasets.get(name)]
    if as_json:
        print_json({"name": name, "files": files})
    else:
        click.echo("\n".join(files))


@command.command("verify")
@click.option("--data-dir", metavar="DIR", help="Where to look first.")
@options.as_json
@options.verbosity
def verify(*, data_dir: str | None, as_json: bool) -> None:
    """Check the files of every data set by their checksums; exit code 1 if one is damaged."""
    from fisherlab import datasets

    found = datasets.verify(data_dir)
    accept()
    print_rows([status._asdict() for status in found], as_json=as_json)
    damaged = [status for status in found if status.status == "damaged"]
    if damaged:
        names = ", ".join(f"{status.place}/{status.file}" for status in damaged)
        raise FisherlabError(
            f"damaged: {names}; delete each, then `fisherlab data get NAME` downloads it again"
        )
