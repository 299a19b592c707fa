"""What the parsers of all commands share: how they refuse, and kinds of values."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import NoReturn, TypeAlias

from pipeline.errors import UsageError, did_you_mean


class Parser(argparse.ArgumentParser):
    """Refuses by an exception instead of an exit."""

    def error(self, message: str) -> NoReturn:
        """See argparse; names the nearest choice where one is wrong."""
        wrong = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        if wrong:
            known = re.findall(r"[\w-]+", wrong[2])
            raise UsageError(f"{message.split(' (choose', maxsplit=1)[0]}{did_you_mean(wrong[1], known)}")
        raise UsageError(message)


Subparsers: TypeAlias = "argparse._SubParsersAction[Parser]"


def subparser(table: Subparsers, name: str, text: str, epilog: str | None = None) -> Parser:
    """The parser of a command; ``text`` is its line in the list of commands."""
    return table.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        allow_abbrev=False,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def refuse_unknown(parser: Parser, arguments: Sequence[str]) -> None:
    """Names a mistyped flag before argparse complains of the flag that is then missing."""
    known = [option for action in parser._actions for option in action.option_strings]
    for word in (argument.split("=")[0] for argument in arguments if argument.startswith("--")):
        if word not in known:
            raise UsageError(f"unknown argument '{word}'{did_you_mean(word, known)}")


def folder(text: str) -> str:
    """A folder: any text but none."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must name a folder, got nothing")
    return text


def positive(text: str) -> int:
    """A whole number >= 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got '{text}'")
    return int(text)


def natural(text: str) -> int:
    """A whole number >= 0 that fits 31 bits."""
    if not text.isdecimal() or int(text) >= 1 << 31:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2147483647, got '{text}'")
    return int(text)


def sha256(text: str) -> str:
    """A sha256: 64 hex digits, made lower case."""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise argparse.ArgumentTypeError(f"must be 64 hexadecimal digits, got '{text}'")
    return text.lower()


def sample_id(text: str) -> str:
    """A sample id: 32 hex digits, lower case."""
    if not re.fullmatch(r"[0-9a-f]{32}", text):
        raise argparse.ArgumentTypeError(f"must be 32 lower-case hexadecimal digits, got '{text}'")
    return text
