"""One run of a service: prepared, started, awaited until ready, watched, and ended with all that belongs to it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
from typing import TYPE_CHECKING, Any, Final

from ..errors import ServiceError
from .output import Level, Output
from .policies import HealthCheck
from .process import Command, Process
from .readiness import NotReadyError, Probe, Start, Watch, as_probe

if TYPE_CHECKING:
    from .service import Service

BEGINS_WITHIN: Final = 30.0  # seconds for a program to be executed, from whatever disk; a hundredth is usual

_log = logging.getLogger("headwater.service")


class Run:
    def __init__(self, service: Service, command: Command, level: Level) -> None:
        self._service, self._command = service, command
        self.output = Output(logging.getLogger(f"headwater.service.{service.name}"), level)
        self.process = Process(command)
        self._start = Start(service, command, self.output)

    @property
    def exit_code(self) -> int | None:
        exited = self.process.exited
        return exited.result() if exited.done() else None

    # --- begin ----------------------------------------------------------------------------------------

    async def begin(self, ready: Probe | None, timeout: float) -> None:
        """Start it and wait until it is ready, at most `timeout` seconds. Whatever is raised, nothing of it is left."""
        try:
            watch = await self._prepare(ready)
            await self._execute()
            if watch is not None:
                await self._become_ready(watch, timeout)
        except BaseException:
            await self.end()
            raise

    async def _prepare(self, ready: Probe | None) -> Watch | None:
        if ready is None:
            return None
        try:
            return await ready.begin(self._start)
        except NotReadyError as error:
            raise self.error(f"cannot be started: {error}", probe=str(ready)) from error

    async def _execute(self) -> None:
        try:
            async with asyncio.timeout(BEGINS_WITHIN):
                self.output.read(await self.process.start())
        except TimeoutError as error:
            raise self.error(f"cannot be started: it was not executed within {BEGINS_WITHIN:g} s") from error
        except OSError as error:
            raise self.error(f"cannot be started: {_refusal(error, self._command)}") from error
        finally:
            self._close_handed()

    def _close_handed(self) -> None:
        while self._command.handed:
            os.close(self._command.handed.pop())

    async def _become_ready(self, watch: Watch, timeout: float) -> None:
        ready = asyncio.ensure_future(watch.run())
        try:
            await _first_of(ready, self.process.exited, timeout=timeout)
        finally:
            missing = watch.missing
            ready.cancel()
            await asyncio.wait([ready])
        if self.process.exited.done():
            await self.end()
            raise self.error(f"{self.how_it_ended()} before it was ready (waiting for {missing})", probe=missing)
        if ready.cancelled():
            await self.end()
            raise self.error(f"was not ready within {timeout:g} s: {missing}", probe=missing, exited=False)
        ready.result()

    # --- watch ----------------------------------------------------------------------------------------

    async def outlive(self, health: HealthCheck | None) -> ServiceError:
        """Wait until it has ended by itself, or is unwell and was stopped for that: what is wrong."""
        unwell = None if health is None else asyncio.ensure_future(self._become_unwell(health))
        try:
            await _first_of(self.process.exited, *([] if unwell is None else [unwell]))
        finally:
            if unwell is not None:
                unwell.cancel()
                await asyncio.wait([unwell])
        if self.process.exited.done() or health is None or unwell is None:
            await self.end()
            return self.error(self.how_it_ended())
        await self.end()
        return self.error(f"was not well: {unwell.result()}", probe=str(health.probe), exited=False)

    async def _become_unwell(self, health: HealthCheck) -> str:
        """The last of the failures in a row that are too many."""
        probe, failures, reason = as_probe(health.probe), 0, ""
        while failures < health.failures:
            await asyncio.sleep(health.interval)
            try:
                async with asyncio.timeout(health.timeout):
                    await probe.check(self._service)
            except Exception as error:
                failures += 1
                late = f"no answer within {health.timeout:g} s" if isinstance(error, TimeoutError) else ""
                reason = f"{probe}: {late or str(error) or type(error).__name__}"
                _log.warning("%s is not well (%d of %d): %s", self._service.name, failures, health.failures, reason)
            else:
                failures = 0
        return reason

    # --- end ------------------------------------------------------------------------------------------

    async def end(self) -> None:
        """Stop it if it runs, wait until nothing of it is left, and log what it said last. Idempotent."""
        self._close_handed()
        try:
            if self.process.was_started:
                await self.process.stop()
        finally:
            await self.output.finish()
            self._start.resources.close()

    def how_it_ended(self) -> str:
        code = self.process.exited.result()
        if code >= 0:
            return f"ended with exit code {code}"
        with contextlib.suppress(ValueError):  # a real-time signal has no name
            return f"was ended by {signal.Signals(-code).name}"
        return f"was ended by signal {-code}"

    def error(self, reason: str, *, probe: str = "", exited: bool = True) -> ServiceError:
        code = self.exit_code if exited else None
        return ServiceError(self._service.name, reason, exit_code=code, probe=probe, lines=self.output.lines)


async def _first_of(*futures: asyncio.Future[Any], timeout: float | None = None) -> None:
    await asyncio.wait(futures, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)


def _refusal(error: OSError, command: Command) -> str:
    text = f"{error.strerror or error}: {error.filename!r}"
    if error.errno == errno.ENOENT and error.filename == command.words[0]:
        text += " (is it installed, and on the PATH of the service?)"
    if error.errno == errno.EPERM and command.user is not None:
        text += f" (only root may run it as {command.user.pw_name!r})"
    return text
