"""The MLflow server of a team: runs in PostgreSQL, artefacts in a folder behind the server.

Passwords are on no command line: they come from where PostgreSQL's own programs look (a password file, PGPASSWORD), or
in the address that AYF_DATABASE holds.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ayf_core.errors import AyfError, require
from ayf_core.files import first_line
from pipelines.redaction import apart
from pipelines.tracking.ui import is_this_machine_only

DATABASE = "AYF_DATABASE"
SCHEMES = ("postgresql", "postgresql+psycopg2", "postgres")
_LOCK = 0x61796600
"""PostgreSQL's number of the lock under which the schema is changed."""
_CONNECT_SECONDS = 10


def database_address(option: str | None) -> str:
    """The address of the database, postgresql://...: `--database`, else AYF_DATABASE.

    Raises:
        AyfError: there is none, it is no PostgreSQL's, or a password stands on the command line.
    """
    if option and apart(option)[2] is not None:
        raise AyfError(
            "the password in --database can be seen by everyone on this machine (ps): leave it out and put it into "
            f"~/.pgpass or PGPASSWORD, or the whole address into {DATABASE}"
        )
    address = option or os.environ.get(DATABASE)
    if not address:
        raise AyfError(f"which database? Give --database postgresql://USER@HOST/NAME, or set {DATABASE}")
    if urlsplit(address).scheme not in SCHEMES:
        raise AyfError(f"{apart(address)[0]} is no PostgreSQL: give postgresql://USER@HOST/NAME (SQLite: `ayf ui`)")
    return "postgresql" + address[address.index("://") :]


def _with_driver(address: str) -> str:
    """As SQLAlchemy reads it, whose own choice of a driver changes with its version."""
    return address.replace("postgresql://", "postgresql+psycopg2://", 1)


def shown(address: str) -> str:
    """An address as it may be printed: without the password."""
    bare, user, _ = apart(address)
    scheme, _, rest = bare.partition("://")
    return f"{scheme}://{user}@{rest}" if user else bare


def migrate(address: str) -> None:
    """Bring the database's schema to what this MLflow needs: created where it is empty, upgraded where it is older.

    A lock in the database lets one do it at a time, from whatever machine.

    Raises:
        AyfError: the database cannot be reached or may not be changed, or it is a newer MLflow's.
    """
    import sqlalchemy
    from mlflow.store.db import utils
    from sqlalchemy.exc import SQLAlchemyError

    with _locked(address):
        engine = utils.create_sqlalchemy_engine(_with_driver(address))
        try:
            if all(name.startswith("alembic_") for name in sqlalchemy.inspect(engine).get_table_names()):
                utils._initialize_tables(engine)
            else:
                utils._upgrade_db(engine)
        except Exception as error:  # SQLAlchemy's, Alembic's, MLflow's
            remedy = "check the user's rights"
            if not isinstance(error, SQLAlchemyError):
                remedy += ", or install the MLflow that made it"
            raise AyfError(
                f"the schema of {shown(address)} cannot be made ready ({first_line(error)}): {remedy}"
            ) from None
        finally:
            engine.dispose()


@contextmanager
def _locked(address: str) -> Iterator[None]:
    driver: Any = require("psycopg2", extra="server", needed_for="an MLflow server on PostgreSQL")
    try:
        connection = driver.connect(address, connect_timeout=_CONNECT_SECONDS)
    except driver.Error as error:
        remedy = "start it, or mend the address, user or password (~/.pgpass, PGPASSWORD)"
        raise AyfError(f"cannot reach {shown(address)} ({first_line(error)}): {remedy}") from None
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
        yield
    finally:
        connection.close()  # and the lock is free


def command(
    address: str, artefacts: str, host: str, port: int, workers: int, names: Sequence[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """The command that serves the database, and its environment, which alone holds the address.

    Args:
        names: more names under which others reach this machine; MLflow answers to names it was told of.
    """
    serve = [sys.executable, "-m", "mlflow", "server", "--serve-artifacts", "--artifacts-destination", artefacts]
    serve += ["--host", host, "--port", str(port), "--workers", str(workers)]
    if names or not is_this_machine_only(host):
        known = _names(host, names)
        serve += ["--allowed-hosts", ",".join(pattern for name in known for pattern in (name, f"{name}:*"))]
        serve += ["--cors-allowed-origins", ",".join(f"{scheme}://{n}:{port}" for n in known for scheme in _WEB)]
    environment = {name: value for name, value in os.environ.items() if name != DATABASE}
    environment |= {"MLFLOW_BACKEND_STORE_URI": _with_driver(address), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return serve, environment


_WEB = ("http", "https")


def _names(host: str, more: Sequence[str]) -> list[str]:
    own = ["localhost", "127.0.0.1", socket.gethostname(), socket.getfqdn()]
    return list(dict.fromkeys([*([] if host in ("0.0.0.0", "::") else [host]), *own, *more]))


def artefact_place(root: Path, place: str | None) -> str:
    """Where artefacts are kept: a folder of the server's machine, made here, or an address such as s3://BUCKET."""
    if place is not None and "://" in place:
        return place
    folder = (Path(place) if place else root / "mlruns" / "served").absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AyfError(f"cannot make the folder of artefacts {folder} ({error.strerror}): name another") from error
    return str(folder)
