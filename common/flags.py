"""Command lines: a parser for every command, the flags that the declared settings give, which share of an extraction a process
does, and how every script starts and ends: errors as one line with exit status 2, an interruption with 130."""

from __future__ import annotations

import argparse
import difflib
import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar, get_args

from common.config import (
    COMMON_CONFIG,
    Config,
    ConfigError,
    ExtractConfig,
    FigureFormat,
    FitConfig,
    extra_of,
    flag_of,
    load_config,
)
from common.datasets import DatasetNote, Task, Variants
from common.errors import UserError

Part = TypeVar("Part")
OUT_OF_MEMORY = "there is not enough memory; close other programs, or use a machine with more: finished work is kept"


def user_path(text: str) -> Path:
    """The type of flags that take a path: ``~`` is the home, also after ``=``, where the shell leaves it."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - pathlib's fails for users who do not exist


def add_figure_format(parser: argparse.ArgumentParser) -> None:
    formats = get_args(FigureFormat)
    parser.add_argument("--figure-format", choices=formats, default="png", help="format of the figures (default: png)")


class Parser(argparse.ArgumentParser):
    """Without abbreviations; an error is one line, which names the flag that a misspelt one probably means."""

    def __init__(self, description: str | None, prog: str | None = None) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Print the message, and exit with status 2."""
        flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        unknown = re.search(r"unrecognized arguments: .*?(--[\w-]+)", message)
        near = difflib.get_close_matches(unknown[1], flags, 1) if unknown else []
        hint = f"did you mean {near[0]}?" if near else f"{self.prog} --help lists what it takes"
        self.exit(2, f"error: {message}; {hint}\n")


@dataclass(frozen=True)
class Share:
    """Share `index`, from 0, of an extraction's `count`; a count of 0: unknown, so the parts are divided by claims alone."""

    index: int = 0
    count: int = 1
    launcher: str = ""  # where it is from; empty: nothing asked for one

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}" if self.count else str(self.index)

    @classmethod
    def parse(cls, text: str | None, environment: Mapping[str, str] = os.environ) -> Share:
        """From ``"i/n"``, i from 1; else from torchrun, a Slurm array or a Kubernetes indexed job; else everything."""
        if text is not None:
            match = re.fullmatch(r"(\d+)/(\d+)", text)
            if not match or not 1 <= int(match[1]) <= int(match[2]):
                raise ConfigError(f"invalid shard {text!r}: expected i/n with 1 <= i <= n, such as --shard 3/8")
            return cls(int(match[1]) - 1, int(match[2]), "--shard")
        if {"RANK", "WORLD_SIZE"} <= environment.keys():
            return cls(int(environment["RANK"]), int(environment["WORLD_SIZE"]), "torchrun")
        if "SLURM_ARRAY_TASK_ID" in environment:
            task, step = (int(environment.get(f"SLURM_ARRAY_TASK_{name}", 1)) for name in ("ID", "STEP"))
            # A container may be handed the id alone.
            first, last, n = (int(environment.get(f"SLURM_ARRAY_TASK_{name}", 0)) for name in ("MIN", "MAX", "COUNT"))
            if (last - first) // step + 1 != n or (task - first) % step:  # as --array=1,3,7, whose ids are no ranks
                return cls(task, 0, "a Slurm array with gaps")
            return cls((task - first) // step, n, "a Slurm array")
        if "JOB_COMPLETION_INDEX" in environment:
            return cls(int(environment["JOB_COMPLETION_INDEX"]), 0, "a Kubernetes indexed job")
        return cls()

    def divided(self, count: int) -> list[Share]:
        """This share as the shares of so many processes."""
        return [Share(self.index * count + number, self.count * count) for number in range(count)]

    def assigned(self, parts: Sequence[Part]) -> Sequence[Part]:
        """This share's parts; all, where the count is unknown."""
        return parts[self.index :: self.count] if self.count else parts

    def order(self, parts: Sequence[Part]) -> list[Part]:
        """All parts in the order in which this process looks for work: its own, then the others' from the end. Where the count
        is unknown, processes begin at places far apart."""
        if self.count:
            return list(dict.fromkeys((*self.assigned(parts), *reversed(parts))))
        start = int(len(parts) * (self.index * 0.618034 % 1))
        return [*parts[start:], *parts[:start]]


@dataclass(frozen=True)
class Launch:
    share: Share = Share()
    ray: str | None = None  # the address of a Ray cluster, or "local"; None: without Ray
    status: str | None = None  # only say how far it is: "text" or "json"; None: extract

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Launch:
        """From the flags of `add_launch`; ConfigError if they exclude each other."""
        if arguments.shard is not None and arguments.ray is not None:
            raise ConfigError("--ray divides the work by itself; leave out --shard")
        if arguments.json and not arguments.status:
            raise ConfigError("--json is for --status")
        status = ("json" if arguments.json else "text") if arguments.status else None
        return cls(Share() if arguments.ray else Share.parse(arguments.shard), arguments.ray, status)


def add_launch(parser: argparse.ArgumentParser) -> None:
    text = "first make the parts of share i of n, then what nobody has begun (default: all, or as torchrun, a Slurm array or "
    parser.add_argument("--shard", metavar="I/N", help=text + "a Kubernetes indexed job says)")
    text = "make the parts by the actors of a Ray cluster: its address, or nothing to start one here"
    ray = os.environ.get("RAY_ADDRESS", "local")
    parser.add_argument("--ray", metavar="ADDRESS", nargs="?", const=ray, help=text)
    parser.add_argument("--status", action="store_true", help="only say how far the extraction is")
    parser.add_argument("--json", action="store_true", help="with --status: as JSON")


@dataclass(frozen=True)
class Arguments(Generic[Config]):
    """A script's parsed command line."""

    tasks: list[Task]  # to run
    config: Config  # as it takes effect
    options: dict[str, str | bool]  # the values of the task's own flags
    overwrite: bool  # whether files made with different settings may be replaced
    launch: Launch = Launch()


def parse_flags(
    task: Task | Variants,
    what: str,
    argv: Sequence[str] | None,
    kind: type[Config],
    only: Collection[str] | None = None,
) -> Arguments[Config]:
    """Parse the flags of a task's script: `what` it does, for --help, and `only` these settings; None: all of its kind."""
    keys = kind.model_fields if only is None else only
    variants = Variants({}, {(): task}) if isinstance(task, Task) else task
    first, titles = variants.first, "; or of ".join(variant.title for variant in variants.tasks.values())
    parser = Parser(f"{what} of {titles}.")
    for place, (flag, text) in enumerate(variants.flags.items()):
        names: list[str] = list(dict.fromkeys(choices[place] for choices in variants.tasks))
        default = f"{text} (default: {names[0]})"
        parser.add_argument(flag, dest=flag, choices=[*names, "both"], default=names[0], help=default)
    for extra in first.flags if kind is FitConfig else ():
        if extra.choices:
            text = f"{extra.help} (default: {extra.default})"
            parser.add_argument(extra.name, choices=extra.choices, default=extra.default, help=text)
        else:
            parser.add_argument(extra.name, action="store_true", help=extra.help)
    add_settings(parser, kind, first, keys)
    add_shared(parser)
    if kind is ExtractConfig:
        add_launch(parser)
    parsed = parser.parse_args(argv)
    arguments = vars(parsed)
    flags = {key: arguments[key] for key in keys if arguments[key] is not None}
    config = load_config(kind, first.config_file, parsed.config, flags)
    wanted = {flag: arguments[flag] for flag in variants.flags}
    tasks = [
        variant
        for values, variant in variants.tasks.items()
        if all(choice in (value, "both") for choice, value in zip(wanted.values(), values, strict=True))
    ]
    if len(tasks) > 1:
        _refuse_one_place_for_several(config, tasks, next(flag for flag in wanted if wanted[flag] == "both"))
    options = {flag.key: arguments.get(flag.key, flag.default) for flag in first.flags}
    launch = Launch.of(parsed) if kind is ExtractConfig else Launch()
    return Arguments(tasks, config, options, parsed.overwrite, launch)


def add_settings(parser: argparse.ArgumentParser, kind: type[Config], task: Task | None, keys: Collection[str]) -> None:
    """Add a flag for each setting, with its current default (of the task) in the help text; values are not converted here."""
    defaults = load_config(kind, task.config_file if task else COMMON_CONFIG)
    for key in keys:
        field, default = kind.model_fields[key], getattr(defaults, key)
        extra, text = extra_of(field), field.description or ""
        if field.annotation is bool:
            is_on = field.default
            text = f"no {text}" if is_on else text
            parser.add_argument(flag_of(kind, key), dest=key, action="store_const", const=not is_on, help=text)
            continue
        metavar = extra["metavar"]
        if key == "features" and task and task.parts and kind is FitConfig:
            metavar, text, default = "FOLDER", f"where {', '.join(task.parts.values())} are", task.folder
        if default is None:
            default = getattr(task, f"default_{key}", None) or extra["unset"]
        parser.add_argument(
            flag_of(kind, key),
            dest=key,
            metavar=metavar,
            nargs="+" if "tuple" in str(field.annotation) else None,
            help=f"{text} (default: {default})".replace("%", "%%"),
        )


def add_shared(parser: argparse.ArgumentParser) -> None:
    text = "your own YAML file, which overrides common/config.yaml and the task's"
    parser.add_argument("--config", type=user_path, metavar="FILE", help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace files that were made with different settings")


def _refuse_one_place_for_several(config: ExtractConfig | FitConfig, tasks: Sequence[Task], flag: str) -> None:
    has_several_folders = len({task.data_folder for task in tasks}) > 1
    for key in ("features", "output_dir", *["data_root"] * has_several_folders):
        if getattr(config, key, None) is not None:
            place = f"{flag_of(type(config), key)} (or {key})"
            raise ConfigError(f"{place} names one location, but {flag} both needs several; give only one of them")


def run(main: Callable[[], None]) -> None:
    """Call `main`. An error that the user can fix is one line on stderr and exit status 2; Ctrl-C is status 130."""
    # A job scheduler sends SIGTERM before SIGKILL, and a closed terminal SIGHUP: treat them like Ctrl-C. Signals that nohup
    # ignores stay ignored; Windows has no SIGHUP.
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # closed (`2>&-`): else the next file that is opened gets its number, and what is printed
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - open to the end
        elif isinstance(stream, io.TextIOWrapper):  # escape characters that the terminal cannot encode
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", DatasetNote)
            warnings.showwarning = _show_warning
            main()
    except KeyboardInterrupt as interrupt:
        _end(str(interrupt) or "interrupted", 130)
    except UserError as error:
        _end(f"error: {error}", 2)
    except BrokenPipeError:  # such as that of `| head`
        _end("error: the program that reads the output has ended; finished work is kept, the same command continues", 2)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):  # as torch says it
            raise
        _end(f"error: {OUT_OF_MEMORY} ({next(iter(str(error).splitlines()), 'Python got no more')})", 2)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _end(f"error: {place}{error.strerror or error}", 2)


def _end(text: str, status: int) -> None:
    """Exit, with the text as one line on stderr; what a stream without a reader still holds is dropped."""
    for stream, line in ((sys.stdout, ""), (sys.stderr, " ".join(text.split()) + "\n")):
        try:
            print(line, end="", file=stream, flush=True)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # else Python's own flush at exit fails
    sys.exit(status)


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any
) -> None:
    """Show a note about the data as one line, and any other warning with its location, as Python does."""
    place = "note: " if issubclass(category, DatasetNote) else f"{filename}:{lineno}: {category.__name__}: "
    print(f"{place}{message}", file=sys.stderr)
