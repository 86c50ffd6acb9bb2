"""`vision-peft methods [NAME]`: the methods by name; with a name, every setting of that one."""

import argparse
import dataclasses

from rich.console import Console
from rich.table import Table
from rich.text import Text

from peft_kernels.registry import methods
from peft_runs.errors import unknown
from peft_runs.families import Family
from peft_runs.read import meaning, method_fields


def run(family: Family, words: list[str]) -> None:
    """Print the table.

    Raises:
        UsageError: there is no method of that name; the nearest is told.
    """
    parser = argparse.ArgumentParser(prog=f"{family.program} methods", allow_abbrev=False)
    parser.add_argument("name", nargs="?", help="show every setting of this method")
    name = parser.parse_args(words).name
    known = methods()
    if name is None:
        table = Table("method", "what it trains", "paper", box=None, pad_edge=False)
        for method in known.values():
            table.add_row(method.name, method.summary, method.paper)
        Console().print(table)
        return
    if name not in known:
        raise unknown("method", name, known)
    method = known[name]
    paper = f" ({method.paper})" if method.paper else ""
    needs = f"; for models with {method.needs}" if method.needs else ""
    Console(highlight=False).print(f"{method.name}: {method.summary}{paper}{needs}", markup=False)
    table = Table("setting", "default", "meaning", box=None, pad_edge=False)
    for field in dataclasses.fields(method_fields(name)):
        if field.name != "name":
            default = field.default_factory() if callable(field.default_factory) else field.default
            table.add_row(f"--method.{field.name}", Text(repr(default)), Text(meaning(field)))
    Console().print(table)
