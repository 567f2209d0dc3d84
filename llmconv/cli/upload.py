"""Command upload."""

from __future__ import annotations

import sys
from pathlib import Path

import click

import llmconv
from llmconv.cli import envelope
from llmconv.cli.options import PATH, Bar, human, json_option, notes, quiet_option, say
from llmconv.cli.reports import table

__all__ = ["upload"]


@click.command()
@click.argument("source", type=PATH, nargs=-1, required=True, metavar="SOURCE...")
@click.argument("target", metavar="hf://ORG/NAME")
@click.option("-y", "--yes", is_flag=True, help="Don't ask; without it nothing is sent unseen.")
@click.option("-n", "--dry-run", is_flag=True, help="Show the files and the card; send nothing.")
@click.option("--card/--no-card", default=True, show_default=True, help="Make a README.md where there is none.")
@click.option("--base-model", metavar="ORG/NAME", help="What the files were made from, for the card.")
@click.option("--private/--public", default=None, help="Of a new repository.  [default: as the account is set]")
@click.option("-m", "--message", metavar="TEXT", help="The commit's message.")
@json_option
@quiet_option
def upload(
    source: tuple[Path, ...],
    target: str,
    yes: bool,
    dry_run: bool,
    card: bool,
    base_model: str | None,
    private: bool | None,
    message: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Send files, or a folder's, to a repository of the Hugging Face Hub, in one commit.

    The repository is made if it is not there.  A failed upload goes on where it stopped: run it again.

    \b
    Examples:
      llmconv upload model-Q4_K_M.gguf hf://me/model-GGUF
      llmconv upload out/ hf://me/model-GGUF --base-model org/model --private --yes
      llmconv upload model-*.gguf hf://me/model-GGUF@candidates --dry-run
    """
    if dry_run or not yes:
        done = llmconv.upload(source, target, card=card, base_model=base_model, dry_run=True)
    if not (dry_run or yes):
        _ask(done, as_json or quiet)
    if not dry_run:
        with Bar(quiet or as_json, target) as progress:
            done = llmconv.upload(
                source, target, card=card, base_model=base_model, private=private, message=message, progress=progress
            )
    if quiet:
        return
    if as_json:
        envelope.emit(done.as_dict())
        return
    notes(list(done.notes))
    if dry_run:
        _show(done)
        say(done.card.rstrip()) if done.card else None
    same = f", {len(done.already)} of them there already" if done.already else ""
    end = done.url or ("nothing was sent" if dry_run else "nothing had to change")
    say(f"{done.target}: {len(done.files)} files, {human(sum(done.files.values()))}{same}; {end}")


def _show(planned: llmconv.Upload) -> None:
    click.echo(table([[name, f"{nbytes:,}"] for name, nbytes in planned.files.items()], ["file", "bytes"], {1}))


def _ask(planned: llmconv.Upload, silent: bool) -> None:
    """Ask before anything leaves this machine; where nobody can answer, refuse."""
    if silent or not sys.stdin.isatty():
        raise click.UsageError("upload asks before it sends anything, and nobody can answer here; say --yes")
    _show(planned)
    if not click.confirm(f"Send these to {planned.target}?"):
        click.echo("nothing was sent", err=True)
        raise click.exceptions.Exit(1)
