"""Groups of commands: imported when they are used, with near names for one that does not exist."""

import importlib
from collections.abc import Mapping
from typing import Any

import click

from fisherlab.errors import unknown


class Group(click.Group):
    """A group that shows its help when it is called alone, and suggests near names."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The arguments, or `--help` where there are none."""
        return super().parse_args(ctx, args or ["--help"])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first argument names.

        Raises:
            InputError: where there is none of that name.
        """
        known = self.list_commands(ctx)
        if args[0] not in known:
            raise unknown("command", args[0], known)
        return super().resolve_command(ctx, args)


class LazyGroup(Group):
    """A group whose commands lie in modules that are imported when they are needed.

    Args:
        modules: names of commands to modules; each has its command as the attribute `command`.
    """

    def __init__(self, *args: Any, modules: Mapping[str, str], **options: Any) -> None:
        super().__init__(*args, **options)
        self._modules = dict(modules)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands."""
        return sorted(self._modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, from its module."""
        if cmd_name not in self._modules:
            return None
        command: click.Command = importlib.import_module(self._modules[cmd_name]).command
        return command
