"""`ayf ui`, `ayf serve`, `ayf dashboard`: pages over the runs, until Ctrl-C."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="The MLflow pages over the project's runs.")
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
def ui(port: int, host: str) -> None:
    """Serve the MLflow pages over the project's store, until Ctrl-C.

    Prints links to the pages worth opening: all runs, evaluations, the newest sweep, with columns chosen and the
    best first. Only this machine can open them unless --host says otherwise.
    """
    from pipelines.machine import require_free_port
    from pipelines.settings.places import project_root
    from pipelines.settings.runtime import load_runtime
    from pipelines.tracking.saved_views import links
    from pipelines.tracking.ui import replace_process, server_command, store_to_serve, warn_if_reachable

    root = project_root()
    require_free_port(host, port)
    warn_if_reachable(host, port, "read, change and delete every run")
    # Made ready before the server starts: two processes that both create the schema of a fresh store crash.
    store = store_to_serve(root, load_runtime(root), host, port)
    address = f"http://{host}:{port}"
    click.echo(f"MLflow on {address} in a few seconds; Ctrl-C stops it")
    for words, page in links(store, address):
        click.echo(f"  {words}: {page}")
    replace_process(*server_command(store, host, port))


@click.command(short_help="An MLflow server for a team, on PostgreSQL.")
@click.option("--database", metavar="URL", help="postgresql://USER@HOST/NAME, no password.  [default: AYF_DATABASE]")
@click.option("--artefacts", metavar="PLACE", help="Folder, or s3://... and the like.  [default: mlruns/served]")
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--name", "names", multiple=True, help="A name that others reach this machine by; may be repeated.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(min=1), help="Processes that answer.")
def serve(
    database: str | None, artefacts: str | None, port: int, host: str, names: tuple[str, ...], workers: int
) -> None:
    """Serve MLflow over a PostgreSQL database until Ctrl-C, for runs of many machines.

    The database's schema is created or upgraded first. Artefacts go through the server, so whoever trains needs no
    access to where they lie. The password comes from ~/.pgpass, PGPASSWORD, or the address in AYF_DATABASE.
    """
    from pipelines.machine import require_free_port
    from pipelines.settings.places import project_root
    from pipelines.tracking import server
    from pipelines.tracking.ui import replace_process, warn_if_reachable

    address = server.database_address(database)
    place = server.artefact_place(project_root(), artefacts)
    require_free_port(host, port, "ayf serve")
    warn_if_reachable(host, port, "read, change and delete every run and its artefacts")
    server.migrate(address)
    click.echo(f"MLflow over {server.shown(address)}, artefacts in {place}, in a few seconds; Ctrl-C stops it")
    click.echo(f"To send runs there: tracking_uri: http://{host}:{port} in a file of conf/runtime")
    replace_process(*server.command(address, place, host, port, workers, names))


@click.command(short_help="Figures over the project's runs, served or as one file.")
@click.option("--port", default=8050, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--export", type=click.Path(dir_okay=False, path_type=Path), help="Write one HTML file instead.")
def dashboard(port: int, host: str, export: Path | None) -> None:
    """Serve the dashboard over the project's runs until Ctrl-C, or write it as one file that opens offline.

    Quality, guidance, samples, training, sweeps and lineage. Only this machine can open it unless --host says
    otherwise.
    """
    from ayf_core.errors import AyfError
    from dashboards.store import StoreError
    from pipelines.machine import require_free_port
    from pipelines.settings.places import project_root
    from pipelines.settings.runtime import load_runtime
    from pipelines.tracking.store import tracking_uri
    from pipelines.tracking.ui import warn_if_reachable

    root = project_root()
    if export is None:
        require_free_port(host, port, "ayf dashboard")
    store = tracking_uri(root, load_runtime(root))
    try:
        if export is not None:
            from dashboards.page import store_page, write

            write(export, store_page(store))
            click.echo(f"wrote {export}")
            return
        warn_if_reachable(host, port, "read every run")
        from dashboards.app import build, serve

        app = build(store)
    except StoreError as error:
        raise AyfError(str(error)) from error
    click.echo(f"dashboard on http://{host}:{port}; Ctrl-C stops it")
    serve(app, host, port)
