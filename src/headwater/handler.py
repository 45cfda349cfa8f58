"""A user's function, compiled once at start into one call that takes a message."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from operator import attrgetter
from typing import Any, Final, get_args, get_origin

import msgspec

from .codecs import Codec, Decode, decoder_for
from .depends import (
    Dependency,
    Environment,
    Get,
    Parameter,
    Plan,
    Step,
    bind,
    each_in_thread,
    in_thread,
    name_of,
    read_signature,
    unwrapped,
)
from .errors import ConfigurationError

HANDLED: Final[ContextVar[Any]] = ContextVar("headwater_handled", default=None)
"""The message, or the tuple of a batch, that this task handles; where the logs want to know."""

Call = Callable[[Any], Awaitable[Any]]
"""Takes a message, or the tuple of messages of a batch; gives what the handler returned."""

Middleware = Callable[[Any, Call], Awaitable[Any]]


class Handler:
    """A user's function, the type of its body, and the call it was compiled into.

    `call` gives what the function gave: a value, or an async iterator for a generator. `decode` makes
    a message's body what the function asks for; it is None when nothing of the body is asked for. With
    `shares_value` somebody beside the function reads `message.value`, so the message is to be told of `decode`.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        topics: Sequence[str] = (),
        *,
        codec: Codec | None = None,
        dependencies: Sequence[Any] = (),
        hints: dict[str, Any] | None = None,
        batch: bool = False,
    ) -> None:
        self.function = function
        self.name = name_of(function)
        self.topics = tuple(topics)
        self.codec = codec
        self.dependencies = tuple(dependencies)
        self.hints = hints
        self.batch = batch
        self.body: Any = None
        self.decode: Decode | None = None
        self.shares_value = False
        self.has_exits = False
        self.call: Call = self._uncompiled

    @property
    def is_generator(self) -> bool:
        """Whether it yields its results, and so has to be iterated for its effect."""
        function = unwrapped(self.function)
        return inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function)

    def compile(self, environment: Environment, *, shares_value: bool = False) -> None:
        """Resolve the signature; `shares_value` when middleware or filters read `message.value` too.

        Raises ConfigurationError naming the parameter that cannot be filled.
        """
        function = unwrapped(self.function)
        is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
        plan = Plan(self.name, self.topics, environment, batch=self.batch, threaded=not is_async)
        for dependency in self.dependencies:
            plan.step(dependency if isinstance(dependency, Dependency) else Dependency(dependency))
        parameters = read_signature(self.function, self.hints)
        given = {parameter.name: plan.given(parameter) for parameter in parameters}
        of_body = [parameter for parameter in parameters if given[parameter.name] is None]
        self.body = self._body_type(of_body)
        self.decode = None if self.body is None else decoder_for(self.body, self.codec)
        self.shares_value = shares_value or plan.takes_message or len(of_body) > 1
        value = self._value_getter()
        for parameter in of_body:
            given[parameter.name] = value if len(of_body) == 1 else _field(value, parameter.name)
        self.has_exits = plan.has_exits
        self.call = self._assemble(plan.steps, parameters, given, value)

    def _body_type(self, parameters: Sequence[Parameter]) -> Any:
        """What the body is decoded to: the one parameter's type, or a struct of several fields."""
        if not parameters:
            return None
        if len(parameters) == 1:
            only = parameters[0]
            return self._member_type(only) if self.batch else only.kind
        if self.batch:
            names = ", ".join(parameter.name for parameter in parameters)
            raise ConfigurationError(f"{self.name} takes batches: it has one body parameter, a list, not {names}")
        fields = [(p.name, p.kind) if p.required else (p.name, p.kind, p.default) for p in parameters]
        return msgspec.defstruct(f"{self.name.rpartition('.')[2]}_body", sorted(fields, key=len))

    def _member_type(self, parameter: Parameter) -> Any:
        kind = parameter.kind
        if kind not in (Any, list) and get_origin(kind) not in (list, tuple, Sequence):
            raise ConfigurationError(f"{self.name} takes batches: annotate {parameter.name!r} as list[...], not {kind}")
        return (get_args(kind) or (Any,))[0]

    def _value_getter(self) -> Get:
        """The decoded body, through the message's own cache when it is read more than once."""
        if self.batch:
            return lambda batch, _values: [message.value for message in batch]
        decode = self.decode
        if decode is None or self.shares_value:
            return lambda message, _values: message.value
        return lambda message, _values: decode(message)

    def _assemble(
        self, steps: Sequence[Step], parameters: Sequence[Parameter], given: dict[str, Get | None], value: Get
    ) -> Call:
        gets = {name: get for name, get in given.items() if get is not None}
        positional = [gets[parameter.name] for parameter in parameters if not parameter.keyword]
        keywords = {parameter.name: gets[parameter.name] for parameter in parameters if parameter.keyword}
        function = unwrapped(self.function)
        bare = not steps and not keywords and positional == [value] and not self.batch
        if bare and inspect.iscoroutinefunction(function):
            return _only_body(self.function, attrgetter("value") if self.shares_value else self.decode)
        bound = bind(self.function, positional, keywords)
        if inspect.iscoroutinefunction(function):
            return _awaited(bound, steps)
        if inspect.isasyncgenfunction(function):
            return _iterated(bound, steps)
        return _threaded(bound, steps, inspect.isgeneratorfunction(function))

    async def _uncompiled(self, _work: Any) -> Any:
        raise RuntimeError(f"{self.name} was called before its app started")

    def __repr__(self) -> str:
        return f"<handler {self.name}>"


def named(call: Call) -> Call:
    """The call, with what it handles in `HANDLED` for the log records of the handler and of what becomes of it.

    It stays there until the next one: taking it away would cost another coroutine.
    """

    def call_named(work: Any) -> Awaitable[Any]:
        HANDLED.set(work)
        return call(work)

    return call_named


def compose(middleware: Sequence[Middleware], call: Call) -> Call:
    """The call with the middleware around it, the first outermost."""
    for layer in reversed(middleware):
        call = _layered(layer, call)
    return call


def _layered(layer: Middleware, call: Call) -> Call:
    return lambda work: layer(work, call)


def _field(value: Get, name: str) -> Get:
    def get(message: Any, values: list[Any]) -> Any:
        body = value(message, values)
        return body[name] if isinstance(body, dict) else getattr(body, name)

    return get


def _only_body(function: Callable[..., Any], decode: Decode | None) -> Call:
    """The commonest handler: nothing but the body, so nothing but the call."""
    assert decode is not None
    return lambda message: function(decode(message))


async def _run_steps(steps: Sequence[Step], work: Any, values: list[Any]) -> None:
    for step in steps:
        value = step.call(work, values)
        values[step.index] = await value if step.awaited else value


def _awaited(bound: Get, steps: Sequence[Step]) -> Call:
    if not steps:
        return lambda work: bound(work, [])
    size = len(steps)
    if not any(step.awaited for step in steps):
        return _inline(bound, steps)

    async def call(work: Any) -> Any:
        values = [None] * size
        await _run_steps(steps, work, values)
        return await bound(work, values)

    return call


def _inline(bound: Get, steps: Sequence[Step]) -> Call:
    """Steps that never wait need no coroutine of their own."""
    calls = [step.call for step in steps]

    async def call(work: Any) -> Any:
        values: list[Any] = []
        for make in calls:
            values.append(make(work, values))
        return await bound(work, values)

    return call


def _iterated(bound: Get, steps: Sequence[Step]) -> Call:
    async def call(work: Any) -> Any:
        values = [None] * len(steps)
        await _run_steps(steps, work, values)
        return bound(work, values)

    return call


def _threaded(bound: Get, steps: Sequence[Step], generator: bool) -> Call:
    """A `def` handler: in one thread with all its dependencies but those that need the loop."""
    on_loop = [step for step in steps if step.on_loop]
    in_place = [step for step in steps if not step.on_loop]
    size = len(steps)

    def run(work: Any, values: list[Any]) -> Any:
        for step in in_place:
            values[step.index] = step.call(work, values)
        return bound(work, values)

    async def call(work: Any) -> Any:
        values = [None] * size
        await _run_steps(on_loop, work, values)
        result = await in_thread(run, work, values)
        return each_in_thread(result) if generator else result

    return call
