"""What parameters may ask for besides the body: dependencies and markers, and how each is filled."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import logging
import time
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any, Final, ParamSpec, TypeVar, get_args, get_origin

import msgspec

from .errors import ConfigurationError, DecodeError
from .message import Message
from .topics import field_names, match

THREADS: Final = 64  # a `def` handler holds one while it runs; more of them wait
SLOW_DEPENDENCY: Final = 0.05  # seconds a dependency may hold the event loop before it is named

P = ParamSpec("P")
T = TypeVar("T")

_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="headwater-handler")
_exits: contextvars.ContextVar[contextlib.AsyncExitStack] = contextvars.ContextVar("headwater_exits")


class Dependency(msgspec.Struct, frozen=True):
    """A value made by calling `call`, once per message unless `cached` is False."""

    call: Callable[..., Any]
    thread: bool = False
    cached: bool = True


class HeaderMarker(msgspec.Struct, frozen=True):
    name: str | None


class KeyMarker(msgspec.Struct, frozen=True):
    pass


class PathMarker(msgspec.Struct, frozen=True):
    name: str | None


class ContextMarker(msgspec.Struct, frozen=True):
    name: str | None


Marker = Dependency | HeaderMarker | KeyMarker | PathMarker | ContextMarker
_MARKERS = (Dependency, HeaderMarker, KeyMarker, PathMarker, ContextMarker)


# These are functions, and return Any, so that `x: str = Header("x")` satisfies a type checker.


def Depends(call: Callable[..., Any], *, thread: bool = False, use_cache: bool = True) -> Any:
    """A value made by `call`, whose own parameters are filled the same way.

    It is called once per message however many ask for it, unless `use_cache=False`. One that yields is
    cleaned up in reverse order once the message's outcome is known; an exception is thrown into it.
    A `def` runs on the event loop, or in a thread with `thread=True`; for a `def` handler always in the
    handler's thread.
    """
    return Dependency(call, thread, use_cache)


def Header(name: str | None = None) -> Any:
    """A header's last value, converted to the parameter's type; by default the parameter's name with dashes."""
    return HeaderMarker(name)


def Key() -> Any:
    """The message's key, as the parameter's type: `str` or `bytes`."""
    return KeyMarker()


def Path(name: str | None = None) -> Any:
    """The value of a field of the subscriber's topic, `orders.{region}`; by default the one of this name."""
    return PathMarker(name)


def Context(name: str | None = None) -> Any:
    """An entry of the mapping that the app's lifespan yielded; by default the one of this name."""
    return ContextMarker(name)


class Parameter(msgspec.Struct, frozen=True):
    """One parameter of a callable: its type without markers, its marker, its default."""

    name: str
    kind: Any
    marker: Marker | None
    default: Any  # inspect.Parameter.empty when there is none
    keyword: bool

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


def resolve_hints(call: Callable[..., Any], local: dict[str, Any] | None = None) -> dict[str, Any]:
    """The evaluated annotations of a callable. Raises NameError for one that cannot be evaluated yet."""
    target = call
    while hasattr(target, "func"):  # functools.partial
        target = target.func
    if not inspect.isroutine(target) and not inspect.isclass(target):
        target = type(target).__call__
    if inspect.isclass(target):
        target = target.__init__
    if not getattr(target, "__annotations__", None):
        return {}
    return typing.get_type_hints(target, localns=local, include_extras=True)


def parameters_of(call: Callable[..., Any], hints: dict[str, Any]) -> list[Parameter]:
    """The parameters of a callable, in order. Raises TypeError for `*args` and `**kwargs`."""
    found = []
    for parameter in inspect.signature(call).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(f"takes {parameter}, which nothing can fill: name its parameters")
        kind, marker = _split(hints.get(parameter.name, Any))
        default = parameter.default
        if isinstance(default, _MARKERS) or is_foreign(default):
            marker, default = _own(default, kind), inspect.Parameter.empty
        found.append(Parameter(parameter.name, kind, marker, default, parameter.kind is parameter.KEYWORD_ONLY))
    return found


def is_foreign(value: object) -> bool:
    """Whether this is FastAPI's own `Depends`, seen without importing FastAPI."""
    return type(value).__module__ == "fastapi.params" and hasattr(value, "dependency")


def _split(hint: Any) -> tuple[Any, Marker | None]:
    if get_origin(hint) is not Annotated:
        return hint, None
    kind, *extras = get_args(hint)
    for extra in extras:
        if isinstance(extra, _MARKERS) or is_foreign(extra):
            return kind, _own(extra, kind)
    return hint, None  # msgspec.Meta and the like stay with the type


def _own(marker: Any, kind: Any) -> Marker:
    if is_foreign(marker):
        return Dependency(marker.dependency or kind, cached=marker.use_cache)
    assert isinstance(marker, _MARKERS)
    return marker


# --- filling parameters -------------------------------------------------------------------------------

Get = Callable[[Any, list[Any]], Any]
"""Gives one argument, from the message (or the tuple of a batch) and the values of the steps so far."""


class Environment(msgspec.Struct):
    """What may be given by type or by name. The app fills it before its handlers are compiled.

    With `named_in_logs` the logs want to know which message is being handled.
    """

    logger: logging.Logger = logging.getLogger("headwater")
    injectables: Mapping[type, Any] = {}
    context: Mapping[str, Any] = {}
    overrides: Mapping[Callable[..., Any], Callable[..., Any]] = {}
    named_in_logs: bool = False


class Step(msgspec.Struct):
    """One dependency of a plan. `call` gives its value, or an awaitable of it if `awaited`.

    With `on_loop` it cannot move into the thread of a `def` handler, and neither can those it `needs`.
    """

    index: int
    call: Get
    awaited: bool
    on_loop: bool
    needs: Sequence[Step] = ()

    def stay_on_loop(self) -> None:
        self.on_loop = True
        for step in self.needs:
            step.stay_on_loop()


class Plan:
    """How the parameters of one handler are filled: a getter each, after the steps they need, in order."""

    def __init__(
        self, name: str, topics: Sequence[str], environment: Environment, *, batch: bool, threaded: bool
    ) -> None:
        self.name, self.topics, self.environment = name, topics, environment
        self.batch, self.threaded = batch, threaded
        self.steps: list[Step] = []
        self.has_exits = False
        self.takes_message = False
        self._needed: list[Step] = []  # by the callable whose arguments are being looked at
        self._made: dict[Callable[..., Any], Step] = {}

    def given(self, parameter: Parameter) -> Get | None:
        """How to fill a parameter that says by marker, type or name what it wants; None if it says nothing."""
        match parameter.marker:
            case Dependency() as dependency:
                step = self.step(dependency)
                self._needed.append(step)
                index = step.index
                return lambda _work, values: values[index]
            case ContextMarker(name):
                return self._context(parameter, name or parameter.name)
            case HeaderMarker(name):
                return self._of_each(parameter, _header(parameter, name or parameter.name.replace("_", "-")))
            case KeyMarker():
                return self._of_each(parameter, _key(parameter))
            case PathMarker(name):
                return self._of_each(parameter, self._path(parameter, name or parameter.name))
        kind = parameter.kind
        if kind is Message or (self.batch and Message in get_args(kind)):
            self.takes_message = True
            return (lambda work, _values: list(work)) if get_origin(kind) is list else _work
        for base, instance in self.environment.injectables.items():
            if isinstance(kind, type) and issubclass(kind, base):
                return self._injected(kind, instance)
        if any(parameter.name in field_names(topic) for topic in self.topics):
            return self._of_each(parameter, self._path(parameter, parameter.name))
        return None

    def step(self, dependency: Dependency) -> Step:
        """The step that makes this dependency, put after those it needs itself."""
        call = self.environment.overrides.get(dependency.call, dependency.call)
        if dependency.cached and call in self._made:
            return self._made[call]
        hop = dependency.thread and not self.threaded
        on_loop = hop or inspect.iscoroutinefunction(unwrapped(call)) or inspect.isasyncgenfunction(unwrapped(call))
        outer, self._needed = self._needed, []
        gets, keywords = self._arguments(call)
        needs, self._needed = self._needed, outer
        step = Step(len(self.steps), bind(self._maker(call, hop), gets, keywords), on_loop, on_loop, needs)
        if on_loop:
            step.stay_on_loop()
        self.steps.append(step)
        if dependency.cached:
            self._made[call] = step
        return step

    def _arguments(self, call: Callable[..., Any]) -> tuple[list[Get], dict[str, Get]]:
        gets: list[Get] = []
        keywords: dict[str, Get] = {}
        for parameter in read_signature(call):
            get = self.given(parameter)
            if get is None and not parameter.required:
                get = _constant(parameter.default)
            if get is None:
                raise ConfigurationError(
                    f"nothing can fill {parameter.name!r} of the dependency {name_of(call)}: annotate it as Message, "
                    f"App, Broker or Logger, or mark it with Header, Key, Path, Context or Depends"
                )
            if parameter.keyword:
                keywords[parameter.name] = get
            else:
                gets.append(get)
        return gets, keywords

    def _maker(self, call: Callable[..., Any], hop: bool) -> Callable[..., Any]:
        """The dependency as one call that gives its value, or an awaitable of it."""
        target = unwrapped(call)
        if inspect.isasyncgenfunction(target):
            self.has_exits = True
            return partial(_enter_async, contextlib.asynccontextmanager(call))
        if inspect.isgeneratorfunction(target):
            self.has_exits = True
            enter = partial(_enter, contextlib.contextmanager(call), hop or self.threaded)
            return partial(in_thread, enter) if hop else enter
        if inspect.iscoroutinefunction(target):
            return call
        if hop:
            return partial(in_thread, call)
        return call if self.threaded else _watched(call, self.environment.logger)

    def _of_each(self, parameter: Parameter, get: Get) -> Get:
        if self.batch:
            raise ConfigurationError(
                f"{self.name} takes batches, whose members have headers, keys and paths of their own: "
                f"take list[Message] instead of {parameter.name!r}"
            )
        return get

    def _injected(self, kind: type, instance: Any) -> Get:
        if not isinstance(instance, kind):
            raise ConfigurationError(f"{self.name} wants a {kind.__name__}, but runs with a {type(instance).__name__}")
        return _constant(instance)

    def _context(self, parameter: Parameter, name: str) -> Get:
        context = self.environment.context
        if name in context:
            return _constant(context[name])
        if parameter.required:
            given = ", ".join(sorted(context)) or "nothing"
            raise ConfigurationError(f"{self.name} wants {name!r} from the context, but the lifespan yielded {given}")
        return _constant(parameter.default)

    def _path(self, parameter: Parameter, name: str) -> Get:
        without = [topic for topic in self.topics if name not in field_names(topic)]
        if without and parameter.required:
            raise ConfigurationError(f"{self.name} wants the field {name!r}, which {without[0]!r} does not have")
        topics, convert, default = self.topics, _converter(parameter), parameter.default

        def get(message: Message, _values: list[Any]) -> Any:
            for topic in topics:
                fields = match(topic, message.topic)
                if fields and name in fields:
                    return convert(fields[name])
            return default

        return get


def read_signature(call: Callable[..., Any], hints: dict[str, Any] | None = None) -> list[Parameter]:
    """The parameters of a callable. Raises ConfigurationError for a signature that cannot be filled."""
    try:
        return parameters_of(call, resolve_hints(call) if hints is None else hints)
    except (NameError, TypeError, ValueError) as error:
        raise ConfigurationError(f"the signature of {name_of(call)} cannot be used: {error}") from error


def bind(call: Callable[..., Any], gets: Sequence[Get], keywords: Mapping[str, Get]) -> Get:
    """One call that gets the arguments and passes them on."""
    if keywords:
        return lambda work, values: call(
            *[get(work, values) for get in gets], **{name: get(work, values) for name, get in keywords.items()}
        )
    match gets:
        case []:
            return lambda _work, _values: call()
        case [only]:
            return lambda work, values: call(only(work, values))
        case [first, second]:
            return lambda work, values: call(first(work, values), second(work, values))
    return lambda work, values: call(*[get(work, values) for get in gets])


def name_of(call: Callable[..., Any]) -> str:
    return getattr(unwrapped(call), "__qualname__", repr(call))


def unwrapped(call: Callable[..., Any]) -> Any:
    """The function behind a partial or a callable object, which says whether it is async or a generator."""
    while isinstance(call, partial):
        call = call.func
    return call if inspect.isroutine(call) or inspect.isclass(call) else type(call).__call__


def _work(work: Any, _values: list[Any]) -> Any:
    return work


def _constant(value: Any) -> Get:
    return lambda _work, _values: value


def _header(parameter: Parameter, name: str) -> Get:
    convert, absent = _converter(parameter), _absent(parameter, f"header {name!r}")

    def get(message: Message, _values: list[Any]) -> Any:
        value = message.headers.get_bytes(name)
        return absent(message) if value is None else convert(value.decode(errors="backslashreplace"))

    return get


def _key(parameter: Parameter) -> Get:
    raw = parameter.kind is bytes or bytes in get_args(parameter.kind)
    convert, absent = _converter(parameter), _absent(parameter, "key")

    def get(message: Message, _values: list[Any]) -> Any:
        key = message.key_bytes
        if key is None:
            return absent(message)
        return key if raw else convert(key.decode(errors="backslashreplace"))

    return get


def _absent(parameter: Parameter, what: str) -> Callable[[Message], Any]:
    """What a parameter gets from a message without the thing: its default, None if its type allows, or an error."""
    if not parameter.required:
        return lambda _message: parameter.default
    if parameter.kind is Any or type(None) in get_args(parameter.kind):
        return lambda _message: None

    def complain(message: Message) -> Any:
        raise DecodeError(f"{message.id} has no {what}")

    return complain


def _converter(parameter: Parameter) -> Callable[[str], Any]:
    kind = parameter.kind
    if kind in (str, Any, str | None):
        return str

    def convert(text: str) -> Any:
        try:
            return msgspec.convert(text, kind, strict=False)
        except msgspec.ValidationError as error:
            raise DecodeError(f"{parameter.name!r} is {text!r}: {error}") from error

    return convert


# --- running dependencies -----------------------------------------------------------------------------


async def in_thread(call: Callable[P, T], /, *arguments: P.args, **keywords: P.kwargs) -> T:
    """Run a blocking call in a thread, with this task's context variables."""
    context = contextvars.copy_context()
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_threads, partial(context.run, call, *arguments, **keywords))


def scoped(call: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
    """The call, with its yielding dependencies cleaned up once it is over, in reverse order.

    They see its failure but cannot make it a success: that would acknowledge a message that was not handled.
    """

    async def call_with_exits(work: Any) -> Any:
        failure: BaseException
        async with contextlib.AsyncExitStack() as stack:
            token = _exits.set(stack)
            try:
                return await call(work)
            except BaseException as error:
                failure = error
                raise
            finally:
                _exits.reset(token)
        raise failure  # a dependency swallowed it

    return call_with_exits


async def each_in_thread(generator: typing.Generator[Any]) -> AsyncIterator[Any]:
    """The items of a blocking generator, each made in a thread."""
    end = object()
    try:
        while (item := await in_thread(next, generator, end)) is not end:
            yield item
    finally:
        await in_thread(generator.close)


async def _enter_async(
    manager: Callable[..., contextlib.AbstractAsyncContextManager[Any]], *arguments: Any, **keywords: Any
) -> Any:
    return await _exits.get().enter_async_context(manager(*arguments, **keywords))


def _enter(
    manager: Callable[..., contextlib.AbstractContextManager[Any]],
    leave_in_thread: bool,
    *arguments: Any,
    **keywords: Any,
) -> Any:
    stack = _exits.get()
    entered = manager(*arguments, **keywords)
    if not leave_in_thread:
        return stack.enter_context(entered)
    value = entered.__enter__()

    async def leave(*error: Any) -> bool | None:
        return await in_thread(entered.__exit__, *error)

    stack.push_async_exit(leave)
    return value


def _watched(call: Callable[..., Any], logger: logging.Logger) -> Callable[..., Any]:
    """The call, named once in a warning when it holds the event loop for too long."""
    warned = False

    def timed(*arguments: Any, **keywords: Any) -> Any:
        nonlocal warned
        start = time.perf_counter()
        value = call(*arguments, **keywords)
        taken = time.perf_counter() - start
        if taken > SLOW_DEPENDENCY and not warned:
            warned = True
            logger.warning(
                "the dependency %s held the event loop for %.0f ms: make it async, or Depends(..., thread=True)",
                name_of(call),
                taken * 1000,
            )
        return value

    return timed
