"""`resdeploy probe`."""

from pathlib import Path

import click

from resdeploy.cli.options import force_option, json_option


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the record here.")
@force_option
@json_option
def probe(output: Path | None, force: bool, as_json: bool) -> None:
    """Say what this machine can run: the runtime, the providers that start, CPU, memory, GPU.

    A tiny model is opened and run on each provider. The record that -o writes is what
    `resdeploy export --for` takes, on the machine where the model is made.

    \b
    Example:
        resdeploy probe
        resdeploy probe -o target.json
    """
    from resdeploy.cli.render import emit
    from resdeploy.files import atomic_write
    from resdeploy.schema import dump_json
    from resdeploy.target.probe import probe as probe_machine

    report = probe_machine()
    if output is not None:
        with atomic_write(output, force=force) as temporary:
            temporary.write_text(dump_json(report) + "\n", encoding="utf-8", newline="\n")
    emit(report, as_json=as_json)
