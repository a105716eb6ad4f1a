"""What this project uses of other packages although they do not promise it: a release that changes it fails here.

Each test names the place that uses the part, so that a failure says what to mend.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy


@contextmanager
def used(package: str, part: str, by: str) -> Iterator[None]:
    """Turns any failure into one that names release, part and user."""
    try:
        yield
    except Exception as error:
        release = importlib.metadata.version(package)
        pytest.fail(f"{package} {release} no longer has {part} as {by} uses it: {error!r}")


def test_mlflow_makes_the_tables_of_an_empty_database_and_upgrades_them(tmp_path: Path) -> None:
    with used("mlflow", "store.db.utils._initialize_tables and _upgrade_db", "pipelines/tracking/server.py"):
        from mlflow.store.db import utils

        engine = utils.create_sqlalchemy_engine(f"sqlite:///{tmp_path / 'made.db'}")
        utils._initialize_tables(engine)
        utils._upgrade_db(engine)
        assert {"runs", "metrics", "alembic_version"} <= set(sqlalchemy.inspect(engine).get_table_names())
        engine.dispose()


def test_mlflow_s_pages_read_saved_views_from_tags_of_the_experiment() -> None:
    with used("mlflow", "the tag mlflow.sharedViewState.<key>", "pipelines/tracking/saved_views.py"):
        import mlflow.server

        from pipelines.tracking.saved_views import EXPERIMENT_KIND, VIEW_TAG

        scripts = (Path(mlflow.server.__file__).parent / "js" / "build" / "static" / "js").glob("main.*.js")
        text = "".join(script.read_text(errors="replace") for script in scripts)
        for wanted in (VIEW_TAG.rstrip("."), *EXPERIMENT_KIND):
            assert wanted in text, wanted


def test_ray_s_trainer_has_the_parts_that_ours_changes(tmp_path: Path) -> None:
    with used("ray", "the parts of Ray Train", "pipelines/execution/light_trainer.py"):
        from pipelines.execution.own_ray import prepare_environment

        prepare_environment()
        from ray.train.v2._internal.execution.controller import TrainController
        from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
        from ray.train.v2._internal.execution.worker_group import WorkerGroup
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

        from pipelines.execution.light_trainer import UNUSED_CALLBACKS, light_trainer

        ours = light_trainer(tmp_path)
        changed = {name for name in vars(ours) if not name.startswith("__") and hasattr(ours.__base__, name)}
        assert changed == {"_create_default_callbacks", "_initialize_and_run_controller"}
        called = inspect.getsource(DataParallelTrainer)
        assert all(f"self.{name}(" in called for name in changed)
        made = inspect.getsource(DataParallelTrainer._create_default_callbacks)
        assert all(name in made for name in UNUSED_CALLBACKS)
        assert "self.worker_group_cls" in inspect.getsource(TrainController)
        assert "self._init_train_context_on_workers(" in inspect.getsource(WorkerGroup)
        for name in ("_send_resource_request", "_maybe_send_resource_request", "_cancel_resource_request"):
            assert callable(getattr(FixedScalingPolicy, name)), name


def test_ray_s_raylet_says_that_a_worker_crashed_in_the_words_that_are_looked_for() -> None:
    with used("ray", "the words of raylet about dead workers", "pipelines/execution/worker_start.py"):
        import ray

        from pipelines.execution.worker_start import DEATH

        binary = Path(ray.__file__).parent / "core" / "src" / "ray" / "raylet" / "raylet"
        assert DEATH.encode() in binary.read_bytes()


def test_dvc_s_schema_tells_a_whole_lock_file_from_half_a_one() -> None:
    with used("dvc", "schema.COMPILED_LOCKFILE_SCHEMA", "pipelines/project/dvc_lock.py"):
        from dvc.schema import COMPILED_LOCKFILE_SCHEMA
        from voluptuous import Invalid

        COMPILED_LOCKFILE_SCHEMA({"schema": "2.0", "stages": {"a": {"cmd": "true"}}})
        with pytest.raises(Invalid):
            COMPILED_LOCKFILE_SCHEMA({"schema": "2.0", "stages": {"a": {"deps": [{"path": "x"}]}}})


def test_dvc_s_repository_tells_its_graph_and_waits_for_its_lock(tmp_path: Path) -> None:
    with used("dvc", "Repo, lock_repo and dvc.repo.reproduce", "pipelines/execution/repro.py"):
        from dvc.repo import Repo, lock_repo
        from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro

        Repo.init(str(tmp_path), no_scm=True).close()
        (tmp_path / "dvc.yaml").write_text(
            "stages: {b: {cmd: cp a b, deps: [a], outs: [b]}, a: {cmd: echo > a, outs: [a]}}\n"
        )
        repository = Repo(str(tmp_path), _wait_for_lock=True)
        with lock_repo(repository):
            graph = get_active_graph(repository.index.graph)
            first, second = plan_repro(graph, collect_stages(repository, [str(tmp_path / "dvc.yaml")]))
            assert [stage.name for stage in (first, second)] == ["a", "b"]
            assert list(graph.successors(second)) == [first]
            assert first.changed()
        repository.close()
