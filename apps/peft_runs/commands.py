"""The commands. `vision-peft COMMAND --help` explains each."""

import sys
from collections.abc import Callable

from peft_runs.errors import RunError, UsageError, unknown


def vision(arguments: list[str] | None = None) -> None:
    """Entry point of `vision-peft`."""
    from peft_runs.command_train import train_command

    commands: dict[str, Callable[[list[str]], None]] = {"train": train_command}
    words = sys.argv[1:] if arguments is None else arguments
    try:
        if words[0] not in commands:
            raise unknown("command", words[0], commands)
        commands[words[0]](words[1:])
    except UsageError as error:
        print(f"vision-peft: {error}", file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        print(f"vision-peft: {error}", file=sys.stderr)
        sys.exit(1)
