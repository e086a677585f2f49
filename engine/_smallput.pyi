import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from engine._fastparse import ResponseParser
from engine.exchange import Exchange, Fate
from engine.results import PutResult, SendPath
from engine.signing import Credentials
from engine.wire import Origin

class Receiver:
    _parser: ResponseParser
    _small: SmallPut | None
    _exchange: Exchange | None
    _closed: bool
    _spoilt: bool
    _gone: bool
    _timer: asyncio.TimerHandle | None
    _rings_at: float
    body_s: float
    connect_s: float
    used: int
    heard: bool
    send_path: SendPath
    def _receive_into(self, buffer: memoryview, create_future: Callable[[], asyncio.Future[None]]) -> None: ...
    def _send_through(self, descriptor: int) -> None: ...
    @property
    def usable(self) -> bool: ...
    def get_buffer(self, sizehint: int) -> memoryview: ...
    def buffer_updated(self, nbytes: int) -> None: ...

@final
class Route:
    usable: bool
    origin: Origin
    provider: object
    exchange_of: Callable[[SmallPut], Exchange]
    make_signer: Callable[[Credentials], object]
    compute: Callable[[Any], str] | None
    verify: Callable[..., bool]
    head_before: bytes
    head_after: bytes
    head_end: bytes
    path_before: str
    shown_before: str
    region: str
    bucket: str
    algorithm: str
    checksum_field: str
    is_key: bool
    key_max: int
    size_max: int
    response_timeout_s: float
    def __init__(
        self,
        prefix: str,
        options: Mapping[str, Any],
        config: object,
        variables: Sequence[str],
    ) -> None: ...

@final
class SmallPut:
    @property
    def connection(self) -> Receiver: ...
    @property
    def pool(self) -> Any: ...
    @property
    def credentials(self) -> Credentials | None: ...
    @property
    def waiter(self) -> asyncio.Future[None]: ...
    @property
    def head(self) -> bytes: ...
    @property
    def size(self) -> int: ...
    @property
    def sent(self) -> int: ...
    @property
    def error(self) -> int: ...
    @property
    def status(self) -> int: ...
    @property
    def began(self) -> float: ...
    @property
    def sent_at(self) -> float: ...
    @property
    def answered_at(self) -> float: ...
    @property
    def interrupted(self) -> BaseException | None: ...
    resumed: bool
    def abandon(self) -> None: ...
    def exchange(self) -> Exchange: ...
    def taken_over(self) -> None: ...
    def let_go(self) -> None: ...
    def interrupt(self, error: BaseException) -> None: ...
    def result(self) -> PutResult | None: ...

@final
class SmallPuts:
    def __init__(
        self,
        client: object,
        shared: object,
        plan: Callable[[str, Any], Route | None],
        known_options: frozenset[str],
        reuse: Fate,
    ) -> None: ...
    def begin(self, source: object, destination: object, options: Mapping[str, Any]) -> SmallPut | None: ...
