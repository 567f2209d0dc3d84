"""The `llmconv` command: a thin coat on the API.

`COMMANDS` names every command with the module that holds it; a module is imported only when its command runs,
so that `llmconv --help` stays quick.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import signal
import sys
from typing import Any

import click

import llmconv
from llmconv.cli import envelope
from llmconv.errors import LlmconvError, MissingExtra, cut, in_command, nearest
from llmconv.wording import one_line, shortened

# Name -> (module of this folder, one-line help).  In a module, the command is the function of that name, "_" for "-".
COMMANDS: dict[str, tuple[str, str]] = {
    "convert": ("convert", "Convert a model between formats, by content and file name."),
    "json-to-gguf": ("convert", "Legacy JSON (or MessagePack) to GGUF."),
    "json-to-safetensors": ("convert", "Legacy JSON (or MessagePack) to safetensors."),
    "safetensors-to-gguf": ("convert", "A Hugging Face folder or safetensors file to GGUF."),
    "safetensors-to-json": ("convert", "safetensors to legacy JSON."),
    "gguf-to-json": ("convert", "GGUF to legacy JSON."),
    "gguf-to-safetensors": ("convert", "GGUF to a Hugging Face style folder or safetensors file."),
    "quantize": ("quantize", "Quantize a model to GGUF: Q4_K_M, Q8_0, IQ4_XS, ..."),
    "calibrate": ("running.calibrate", "Look at a model on a text, for quantizing it well to many types."),
    "imatrix": ("running.imatrix", "Make an importance matrix: what of a model's inputs is large on a text."),
    "warmup": ("quantize", "Compile all kernels now, so that the first run needn't."),
    "tokenize": ("tokenize", "Split text into a model's tokens."),
    "detokenize": ("tokenize", "Token ids back to text."),
    "embed": ("running.embed", "Texts as vectors; the scores of a reranker."),
    "inspect": ("inspect", "Show what a model file holds."),
    "view": ("view", "A page for the browser: metadata, tensors, vocabulary."),
    "verify": ("reports", "Are two files the same model?"),
    "diff": ("reports", "What differs between two files' metadata and tensor lists."),
    "size": ("size", "Parameters, memory and file sizes of models, from their shapes."),
    "presets": ("size", "The model shapes known by name, and what training them takes."),
    "train": ("running.train", "Train a model, fresh or from a checkpoint."),
    "sweep": ("running.sweep", "Quantize to several types, evaluate each, report."),
    "edit": ("edit", "Change metadata without touching tensor data."),
    "split": ("edit", "Split a model into shards."),
    "merge": ("edit", "Join the shards of a model."),
    "upload": ("upload", "Send files to a repository of the Hugging Face Hub."),
    "ollama": ("ollama", "A model for Ollama: its GGUF and a Modelfile."),
    "perplexity": ("running.perplexity", "How well a model predicts a text."),
    "compare": ("running.compare", "What one model lost against another on a text."),
    "generate": ("running.generate", "Continue a text."),
}


def _say_what_compiles(args: list[str]) -> None:
    """Say at a terminal that kernels are compiled, with a bar: a type's first use takes seconds."""
    if not sys.stderr.isatty() or {"-q", "--quiet", "warmup"} & {*args}:
        return
    import logging  # as long as the rest of `llmconv --help`

    log = logging.getLogger("llmconv.kernels")
    said: list[Any] = []

    def say(record: logging.LogRecord) -> bool:
        if not said:
            from llmconv.cli.options import Bar

            click.echo("compiling kernels for this processor, once (llmconv warmup compiles all) ...", err=True)
            said.append(Bar())
        step = getattr(record, "step", False)
        if step:
            said[0].update(step)
        elif step is None:
            said[0].close()
        return True

    log.setLevel(logging.INFO)
    log.addFilter(say)


class _Interrupted(BaseException):
    """Ctrl-C or SIGTERM, under a name that click does not answer with a line of its own; with what to know of it."""


class _ReaderLeft(BaseException):
    """Whoever read our output closed it: `llmconv inspect model.gguf | head`."""


class Group(click.Group):
    """A click group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, short = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(f"{__name__}.{module}"), cmd_name.replace("-", "_"))
        command.short_help = short
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args[:1] in (["help"], ["version"]):  # as other tools have them, beside --help and --version
            args = ["--version"] if args[0] == "version" else [*args[1:2], "--help"]
        if not args and not ctx.resilient_parsing:  # somebody looks what `llmconv` is; the code says: nothing done
            click.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if not COMMANDS.keys() & {*args}:
                raise
            name = cut(error.option_name)
            raise click.UsageError(f"{name} is no option of llmconv itself; write it behind the command", ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise _Interrupted(*stop.args) from None
        except BrokenPipeError:  # which click would answer with an exit code of 1
            raise _ReaderLeft from None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = nearest(args[0], COMMANDS)
            hint = f" (did you mean {near!r}?)" if near else ""
            raise click.UsageError(f"no such command {cut(args[0])}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, short) for name, (_, short) in COMMANDS.items()])


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Example: llmconv json-to-gguf model.json",
)
@click.version_option(llmconv.__version__, "-V", "--version", prog_name="llmconv")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Convert and quantize language models between legacy JSON, safetensors and GGUF.

    Nothing is lost on the way, and every output appears complete or not at all.  `llmconv help COMMAND` explains one.
    """
    ctx.obj = {"debug": debug}


def _with_way_out(error: click.ClickException) -> str:
    """click's message, ending as ours do: with where to look."""
    text = error.format_message().removesuffix(".")
    ctx = getattr(error, "ctx", None)
    return text if ctx is None or "--help" in text else f"{text}; see {ctx.command_path} --help"


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt  # so that SIGTERM cleans up as Ctrl-C does


def _drop_output() -> None:
    """Let nothing more be written to standard output, so that the interpreter's last flush doesn't fail again."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_closed_streams() -> None:
    """Open what the shell closed (`>&-`): else a model file would get the number of stdout, and messages inside."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


SHARED = ("convert", "quantize", "verify", "perplexity", "compare", "imatrix", "calibrate")
"""The commands whose work the processes of torchrun share; `train` has its own ways, others do all of it in each."""


def _run(args: list[str]) -> Any:
    """The command; of several processes, the first one speaks for all."""
    run = functools.partial(cli.main, args=args, prog_name="llmconv", standalone_mode=False)
    if os.environ.get("WORLD_SIZE", "1") == "1" or not args or args[0] not in SHARED:
        return run()
    from llmconv.formats.sharing.team import together

    with together() as team:
        if team is None or not team.rank:
            return run()
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            try:
                return run()
            except (Exception, KeyboardInterrupt):
                if "--debug" in args:
                    raise
                return 1


def main(argv: list[str] | None = None) -> None:
    """Entry point: run a command and exit with 0, 1 (bad file), 2 (usage) or 130 (interrupted)."""
    _open_closed_streams()
    args = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    _say_what_compiles(args)
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell leaves its background jobs
                signal.signal(number, _stop)
        with in_command():
            code = _run(args)
        sys.stdout.flush()
    except (BrokenPipeError, _ReaderLeft):
        _drop_output()
        code = 0
    except (KeyboardInterrupt, _Interrupted, click.Abort) as stop:
        _end_in_peace()
        click.echo(one_line("; ".join(("llmconv: " + _interrupted(args), *map(str, stop.args)))), err=True)
        code = 130
    except Exception as error:
        _end_in_peace()
        if "--debug" in args:
            raise
        with in_command():
            code = _answer(error, args)
    _end_in_peace()
    sys.exit(code if isinstance(code, int) else 0)


def _end_in_peace() -> None:
    """Of a run of torchrun's, which ends every process when one of them dies, this one too that is about to say so."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _interrupted(args: list[str]) -> str:
    """What has happened: torchrun ends all processes of a run when one of them dies, wherever they are just then."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or not args or args[0] not in SHARED:
        return "interrupted"
    from llmconv.formats.sharing.team import ended

    return ended(size)


def _answer(error: Exception, args: list[str]) -> int:
    """Say in one line what went wrong, as JSON too where that is asked for; gives the exit code."""
    if isinstance(error, ModuleNotFoundError) and error.name in llmconv._EXTRAS:
        error = MissingExtra("running a model", error.name, llmconv._EXTRAS[error.name])
    sentence, code = _sentence(error)
    if "--json" in args and not {"-q", "--quiet"} & {*args}:
        with contextlib.suppress(OSError, ValueError):
            click.echo(
                envelope.text(error=_data(error, sentence), command=next((a for a in args if a in COMMANDS), None))
            )
            sys.stdout.flush()
    if isinstance(error, OSError):
        _drop_output()  # it may be the output that can't be written: a full disk behind a redirection
    click.echo(f"llmconv: {sentence}", err=True)
    return code


def _data(error: Exception, sentence: str) -> dict[str, Any]:
    """An error for programs: its class, the sentence and what it carries."""
    if isinstance(error, LlmconvError):
        return error.as_dict()
    return {
        "class": "UsageError" if isinstance(error, click.ClickException) else type(error).__name__,
        "message": sentence,
    }


def _sentence(error: Exception) -> tuple[str, int]:
    """What to say of an error, and the exit code."""
    if isinstance(error, LlmconvError):
        return one_line(str(error)), error.exit_code
    if isinstance(error, click.ClickException):
        return one_line(shortened(_with_way_out(error))), error.exit_code
    if isinstance(error, MemoryError):
        return "out of memory; close other programs or raise the limit (ulimit -v)", 1
    if isinstance(error, OSError):
        name = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return one_line(shortened(name + (error.strerror or str(error)))), 1
    said = one_line(shortened(f"{type(error).__name__}: {error}"))
    return f"{said}; this is a bug in llmconv, --debug shows where", 1


if __name__ == "__main__":
    main()
