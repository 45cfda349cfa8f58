"""A channel of aio-pika's protocol layer that hands over deliveries and confirmations as they come.

The layer itself makes a task of each delivery and a future of each confirmation, which costs more than all the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

import aiormq
from aiormq.abc import ChannelFrame
from aiormq.connection import FrameReceiver, ReceivedFrame
from pamqp.commands import Basic, Connection

Delivered = Callable[[Basic.Deliver, Basic.Properties, bytes], None]
Confirmed = Callable[[int, bool, bool], None]  # the tag, whether all below it too, whether it was accepted
Returned = Callable[[Basic.Return, Basic.Properties], None]

_FRAMES: Final = 200  # that may wait in a channel before its connection reads no more


class DirectConnection(aiormq.Connection):
    """A connection that says why the server refuses it, and whose channels bound by themselves what waits in it."""

    FRAME_BUFFER_SIZE = 0

    @staticmethod
    async def _rpc(request: Any, writer: Any, frame_receiver: Any, wait_response: bool = True) -> Any:
        return await aiormq.Connection._rpc(request, writer, _Refusable(frame_receiver), wait_response)


class _Refusable(FrameReceiver):
    """Receives answers while connecting. The layer itself tells of a refusal without its text."""

    def __init__(self, receiver: FrameReceiver) -> None:
        self._receiver = receiver

    async def get_frame(self) -> ReceivedFrame:
        answer = await self._receiver.get_frame()
        if isinstance(answer[2], Connection.Close):
            raise aiormq.ConnectionClosed(answer[2].reply_code, answer[2].reply_text)
        return answer


class DirectChannel(aiormq.Channel):
    """Calls back without a detour, in the order in which the server sent."""

    on_delivered: Delivered
    on_confirmed: Confirmed
    on_returned: Returned
    _sent: asyncio.Future[None] | None = None  # done once what was posted last is on its way

    async def rpc(self, frame: Any, timeout: float | None = None) -> Any:
        """As the layer's, which cancels who calls when it drops a connection: that is none of the caller's doing."""
        try:
            return await super().rpc(frame, timeout=timeout)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise aiormq.ChannelInvalidStateError("the connection was dropped") from None

    async def room(self) -> None:
        """Return once what was posted before is on its way: the socket takes no more than the server reads."""
        while self._sent is not None and not self._sent.done():
            await asyncio.wait((self._sent,))

    def post(self, frames: bytes) -> None:
        """Send these. Raises ChannelInvalidStateError when the channel is closed."""
        if self.is_closed:
            raise aiormq.ChannelInvalidStateError(f"the channel {self.number} is closed")
        self._sent = self.create_future()
        self.connection.write_queue.put_nowait(ChannelFrame(frames, should_close=False, drain_future=self._sent))

    async def _on_deliver_frame(self, frame: Basic.Deliver) -> None:
        properties, body = await self._content()
        self.on_delivered(frame, properties, body)

    async def _on_return_frame(self, frame: Basic.Return) -> None:
        properties, _ = await self._content()
        self.on_returned(frame, properties)

    async def _on_confirm_frame(self, frame: Any) -> None:
        self.on_confirmed(frame.delivery_tag, frame.multiple, isinstance(frame, Basic.Ack))

    async def _content(self) -> tuple[Basic.Properties, bytes]:
        header: Any = await self._get_frame()
        parts, left = list[bytes](), header.body_size
        while left > 0:
            body: Any = await self._get_frame()
            parts.append(body.value)
            left -= len(body.value)
        return header.properties, parts[0] if len(parts) == 1 else b"".join(parts)


async def open_channel(connection: aiormq.Connection, **callbacks: Callable[..., None]) -> DirectChannel:
    """A new channel, with its `on_...` callbacks; with `on_confirmed` the server confirms what is published on it."""
    channels: Mapping[int, Any] = connection.channels
    number = next(number for number in range(1, 65536) if number not in channels)
    channel = DirectChannel(connection, number, publisher_confirms="on_confirmed" in callbacks, frame_buffer=_FRAMES)
    for name, callback in callbacks.items():
        setattr(channel, name, callback)
    connection.channels[number] = channel
    await channel.open()
    return channel
