"""Options that several commands share, what they are read as, and where commands say things."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol, TypeAlias

from atomloom.config import Config
from atomloom.errors import AtomloomError
from atomloom.pipeline.paths import RunPaths

Add: TypeAlias = Callable[..., argparse.ArgumentParser]
"""Method `add_parser` of the subcommands."""
Prepare: TypeAlias = Callable[[Config, Callable[[str], None]], RunPaths]
"""Function that makes what the training of a config needs, such as `atomloom.api.prepare`."""


class Log(Protocol):
    """Function that takes one line at a time; a quiet one goes to the log file alone."""

    def __call__(self, message: str, quiet: bool = False) -> None: ...


def say(line: str) -> None:
    """Print to standard error if anybody reads it: a job must not die because nobody does."""
    with suppress(BrokenPipeError):
        print(line, file=sys.stderr, flush=True)


def count(text: str) -> int:
    """Positive count given to an option."""
    return _whole(text, 10**9)


def few(text: str) -> int:
    """Number of threads or processes given to an option."""
    return _whole(text, 1024)


def _whole(text: str, most: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number <= most:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number between 1 and {most:,}")
    return number


def amount(text: str) -> float:
    """Non-negative number given to an option."""
    number = float(text)
    if not (math.isfinite(number) and number >= 0):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number of at least 0")
    return number


def log_to(options: argparse.Namespace) -> Log:
    """Log to standard error, each line with its stage, and to the log file if one is named."""

    def log(message: str, quiet: bool = False) -> None:
        if not quiet:
            say(f"{options.command:>8s} | {message}")
        if options.log:
            line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n"
            try:
                options.log.parent.mkdir(parents=True, exist_ok=True)
                with open(options.log, "a") as file:
                    file.write(line)
            except OSError as error:
                raise AtomloomError(
                    f"cannot be written: {error.strerror}", where=options.log
                ) from None

    return log


def add_reading(sub: argparse.ArgumentParser) -> None:
    """Add the options of commands that read records without a config."""
    for name, most in (("structures", 256), ("atoms", 4096), ("edges", 200_000)):
        sub.add_argument(
            f"--batch-{name}",
            type=count,
            default=most,
            metavar="N",
            help=f"max in a batch ({most})",
        )
    sub.add_argument("--format", default="auto", help="format of the records (auto)")
    sub.add_argument("--pattern", metavar="GLOB", help="read only files or members that match")
    sub.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="option of the format's reader; may be repeated",
    )
    add_trust(sub)


def add_trust(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="allow the model file to run code of this package; may be repeated",
    )


def reader_options(options: argparse.Namespace) -> dict[str, object]:
    """Options of readers, given as NAME=VALUE."""
    import yaml

    from atomloom.config.base import check_plain

    readers: dict[str, object] = {}
    for name, value in pairs(options.option, "--option").items():
        try:
            readers |= check_plain({name: yaml.safe_load(value)})
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise AtomloomError(f"`{name}={value}`: {error}", where="--option") from None
    return readers


def pairs(items: Sequence[str], option: str) -> dict[str, str]:
    """Values by name, of an option that is given as NAME=VALUE any number of times."""
    pairs = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise AtomloomError(f"`{item}` is not NAME=VALUE", where=option)
        pairs[name] = value
    return pairs
