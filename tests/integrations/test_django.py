"""The app for Django: settings, publishing on commit, `manage.py headwater run`, under runserver and gunicorn."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import django
import pytest
from asgiref.sync import sync_to_async
from django.apps import apps
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connection, transaction
from django.test.utils import override_settings

from headwater import App, ConfigurationError, EncodeError, SyncBroker, TestApp
from headwater.integrations.django import afresh_connections, broker, fresh_connections, publish_on_commit

from .conftest import EachOnce
from .web import SOURCES, free_port, get_all, serving

INSTALLED = ["headwater.integrations.django"]


@pytest.fixture(scope="module", autouse=True)
def _project(tmp_path_factory: pytest.TempPathFactory) -> None:
    if not settings.configured:
        path = tmp_path_factory.mktemp("django") / "db.sqlite3"
        database = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(path)}
        settings.configure(
            INSTALLED_APPS=INSTALLED,
            DATABASES={"default": database},
            HEADWATER={"URL": "memory://"},
            USE_TZ=True,
        )
        django.setup()


@pytest.fixture
def face() -> Iterator[SyncBroker]:
    with override_settings(HEADWATER={"URL": "memory://"}):
        face = broker()
        yield face
        face.close()
        connection.close()


# --- settings -----------------------------------------------------------------------------------------


def test_the_setting_names_the_broker_and_its_options() -> None:
    with override_settings(HEADWATER={"URL": "memory://", "MAX_IN_FLIGHT": 3, "CONNECT_TIMEOUT": 1.5}):
        face = broker()
        assert face is broker()
        assert face._deliveries.most == 3
        assert face.broker.connect_timeout == 1.5
    with override_settings(HEADWATER={"URL": "memory://"}):
        assert broker() is not face


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (None, "set HEADWATER"),
        ({}, "set HEADWATER"),
        ({"URL": "memory://", "APP": "shop:app"}, "set HEADWATER"),
        ({"URL": "memory://", "MAX_INFLIGHT": 3}, "MAX_IN_FLIGHT"),
        ({"URL": "odd://"}, "no engine for odd://"),
        ({"APP": "no_such_module:app"}, "no_such_module"),
        ({"APP": "os:path"}, "no Headwater App"),
    ],
)
def test_a_wrong_setting_is_named_by_the_check_and_by_the_first_use(setting: object, message: str) -> None:
    with override_settings(HEADWATER=setting):
        with pytest.raises(ConfigurationError, match=message):
            broker()
        with pytest.raises(SystemCheckError, match=message):
            call_command("check")


def test_the_app_is_called_headwater() -> None:
    assert apps.get_app_config("headwater").name == INSTALLED[0]


events = App("shop", broker="nats://localhost:1")


@events.subscriber("orders")
def take(order: dict[str, int]) -> None:
    pass


def test_what_is_published_is_tested_together_with_its_handlers() -> None:
    with override_settings(HEADWATER={"APP": f"{__name__}:events"}), TestApp(events) as t:
        assert broker() is events.sync
        broker().publish({"id": 1}, "orders")
        t.settle()
        assert t.calls(take) == [{"id": 1}]


# --- the database -------------------------------------------------------------------------------------


def values(face: SyncBroker, topic: str) -> list[object]:
    return [message.value for message in face.stream(topic, start="earliest", wait=0.05)]


def test_a_commit_publishes_and_a_rollback_does_not(face: SyncBroker) -> None:
    with transaction.atomic():
        publish_on_commit(1, "orders", key="k")
        assert face.stats.delivered == 0
        with transaction.atomic():
            publish_on_commit(2, "orders")
            transaction.set_rollback(True)
        publish_on_commit(3, "orders", key="k")
    assert face.stats.delivered == 2
    assert values(face, "orders") == [1, 3]


def test_outside_of_a_transaction_it_is_published_at_once(face: SyncBroker) -> None:
    publish_on_commit(1, "orders")
    assert values(face, "orders") == [1]


def test_what_cannot_be_written_is_refused_while_the_transaction_can_be_rolled_back(face: SyncBroker) -> None:
    with pytest.raises(EncodeError), transaction.atomic():
        publish_on_commit(object(), "orders")


def test_a_publish_that_fails_is_raised_or_logged_as_asked(face: SyncBroker) -> None:
    with pytest.raises(Exception, match="braces"), transaction.atomic():
        publish_on_commit(1, "{not a name}")
    with transaction.atomic():
        publish_on_commit(1, "{not a name}", robust=True)
        publish_on_commit(2, "orders")
    assert values(face, "orders") == [2]


@pytest.mark.parametrize("fresh", [sync_to_async(fresh_connections), afresh_connections], ids=["def", "async def"])
async def test_a_connection_that_is_too_old_is_made_anew(fresh: Callable[[], Awaitable[None]]) -> None:
    @sync_to_async
    def is_open() -> bool:
        return connection.connection is not None

    @sync_to_async
    def connect(close_at: float | None) -> None:
        connection.ensure_connection()
        connection.close_at = close_at

    await connect(close_at=None)
    await fresh()
    assert await is_open()
    await connect(close_at=time.monotonic())
    await fresh()
    assert not await is_open()


# --- in processes -------------------------------------------------------------------------------------

FILES = {
    "manage.py": """
        import os, sys
        from django.core.management import execute_from_command_line

        os.environ["DJANGO_SETTINGS_MODULE"] = "site_settings"
        if __name__ == "__main__":
            execute_from_command_line(sys.argv)
    """,
    "site_settings.py": """
        import os

        SECRET_KEY = "only in a test"
        ALLOWED_HOSTS = ["127.0.0.1"]
        ROOT_URLCONF = "views"
        INSTALLED_APPS = ["headwater.integrations.django"]
        DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}
        HEADWATER = {"URL": os.environ["URL"]}
        USE_TZ = True
    """,
    "views.py": """
        import os
        from django.db import transaction
        from django.http import HttpResponse
        from django.urls import path
        from headwater import Outgoing
        from headwater.integrations.django import broker, publish_on_commit

        topic = os.environ["TOPIC"]


        def index(request):
            return HttpResponse("ready")


        def publish(request, first):
            # Ten messages, each way there is.
            broker().publish_many([Outgoing(n, topic) for n in range(first, first + 3)])
            with transaction.atomic():
                publish_on_commit(first + 3, topic)
            for n in range(first + 4, first + 9):
                broker().publish_soon(n, topic)
            broker().publish(first + 9, topic)
            return HttpResponse("ok")


        urlpatterns = [path("", index), path("<int:first>", publish)]
    """,
    "wsgi.py": """
        import os
        from django.core.wsgi import get_wsgi_application

        os.environ["DJANGO_SETTINGS_MODULE"] = "site_settings"
        application = get_wsgi_application()
    """,
    "handlers.py": """
        import os
        from django.db import connection
        from headwater import App, Depends
        from headwater.integrations.django import broker, fresh_connections

        app = App("shop", broker=os.environ["URL"], dependencies=[Depends(fresh_connections)])


        @app.subscriber("orders", start="earliest")
        @app.publisher("seen")
        def take(order: int) -> list:
            with connection.cursor() as cursor:
                cursor.execute("select 1 + %s", [order])
                return [cursor.fetchone()[0], app.worker_id]
    """,
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(textwrap.dedent(text))
    return tmp_path


@pytest.mark.server
@pytest.mark.parametrize(
    ("engine", "command"),
    [
        ("nats", ["manage.py", "runserver", "--noreload", "127.0.0.1:{port}"]),
        ("local", ["manage.py", "runserver", "127.0.0.1:{port}"]),
        ("redis", ["-m", "gunicorn", "--worker-class", "sync", "--preload", "wsgi:application"]),
        ("local", ["-m", "gunicorn", "--worker-class", "sync", "wsgi:application"]),
        ("redis", ["-m", "gunicorn", "--worker-class", "gthread", "--threads", "8", "wsgi:application"]),
        ("nats", ["-m", "gunicorn", "--worker-class", "gthread", "--threads", "8", "--preload", "wsgi:application"]),
    ],
    ids=["runserver", "runserver reloading", "sync preload", "sync", "gthread", "gthread preload"],
)
def test_ten_thousand_messages_from_django(
    engine: str, command: list[str], url_of: Callable[[str], str], topic: str, project: Path, each_once: EachOnce
) -> None:
    url, port = url_of(engine), free_port()
    command = [part.format(port=port) for part in command]
    if "gunicorn" in command:
        command[2:2] = ["--bind", f"127.0.0.1:{port}", "--workers", "2", "--no-control-socket"]
    with serving(command, project, port, URL=url, TOPIC=topic) as server:
        assert get_all(port, [f"/{n}" for n in range(0, 10_000, 10)]) == {"ok"}
    assert "Traceback" not in server.read_text()
    each_once(url, topic, 10_000)


@pytest.mark.parametrize("options", [[], ["--workers", "2"]], ids=["one process", "two workers"])
def test_manage_py_runs_handlers_with_django_set_up(options: list[str], project: Path) -> None:
    url = f"local://{project}/data?durability=process"
    environment = os.environ | {"URL": url, "TOPIC": "t", "PYTHONPATH": f"{SOURCES}{os.pathsep}{project}"}
    command = [sys.executable, "manage.py", "headwater", "run", "handlers:app", *options]
    process = subprocess.Popen(command, cwd=project, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        with SyncBroker(url) as face:
            face.publish(41, "orders")
            face.admin.topics.create("seen")
            with face.stream("seen", start="earliest", limit=1, wait=20) as stream:
                found = [message.value for message in stream]
        process.terminate()
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert found
    assert found[0][0] == 42, err
    assert (found[0][1] is None) == (not options)


def test_manage_py_passes_everything_else_on_to_the_command_line(project: Path) -> None:
    url = f"local://{project}/data?durability=process"
    environment = os.environ | {"URL": url, "TOPIC": "t", "PYTHONPATH": f"{SOURCES}{os.pathsep}{project}"}

    def manage(*arguments: str) -> str:
        command = [sys.executable, "manage.py", "headwater", *arguments]
        done = subprocess.run(
            command, cwd=project, env=environment, capture_output=True, text=True, timeout=20, check=True
        )
        return done.stdout

    manage("publish", url, "orders", "7", "--key", "1")
    assert "orders" in manage("topics", "list", url)
