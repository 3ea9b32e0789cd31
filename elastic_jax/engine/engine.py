"""Many requests over one model: rows come and go between the steps of one compiled program."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from elastic_jax.engine.admission import check_owner, check_request, demand_of, imposed_modes, is_exact, longest_prefix
from elastic_jax.engine.config import EngineConfig
from elastic_jax.engine.kept_prefixes import KeptPrefixes
from elastic_jax.engine.lanes import BeamLane, Lane, SampledLane
from elastic_jax.engine.page_pool import Reservation
from elastic_jax.engine.paged_slots import PagedSlots
from elastic_jax.engine.requests import Drafter, Event, Finish, Prefix, Request
from elastic_jax.engine.rows import Rows, held_by
from elastic_jax.engine.slots import Slots
from elastic_jax.errors import ConfigError, shown
from elastic_jax.generation import bucket, end_ids
from elastic_jax.kv_cache import CacheConfig
from elastic_jax.layout import check_positions, token_ids, whole_number
from elastic_jax.model import ElasticForCausalLM
from elastic_jax.routing import Imposed
from elastic_jax.sampling import RowSampling, Sampling

_LOG = logging.getLogger(__name__)


class Engine:
    """Serves requests of different lengths, routings and samplings in a fixed number of rows.

    What a request answers depends on itself alone, not on what runs beside it. Requests start in the order in which
    they came: one that must wait for rows or pages is not overtaken. One thread drives an engine.

    A request whose draft, callback or own part of the work raises an error ends with finish "error" and keeps the
    exception in `error`; the others go on. Only what fails for all rows at once is raised by `step`. Every method
    raises `ConfigError` for requests and prefixes of another engine.
    """

    def __init__(
        self,
        model: ElasticForCausalLM,
        config: EngineConfig | None = None,
        cache: CacheConfig | None = None,
        *,
        reuse: bool = False,
    ):
        """Allocates the cache of all rows.

        Args:
            reuse: keep the tokens of an ended request in its row until another request needs the row, and read on from
                there where a prompt begins with them (docs/serving.md). Answers are the same but for rounding.

        Raises:
            ConfigError: rows longer than the model has positions, a pool without a page, groups that do not fit.
        """
        self.config, self.cache = config or EngineConfig(), cache or CacheConfig()
        self.cache.check_head_dim(model.config.head_dim)
        length = self.config.max_length
        check_positions(model.config, length, f"engine max_length is {length}", "Lower it", ConfigError)
        make = Slots if self.cache.bits == 16 else PagedSlots
        self.slots = make(model.without_heads(), self.config, self.cache)
        self._model = model
        self._queue: deque[Request | Prefix] = deque()
        self._lanes: dict[Request, Lane] = {}
        self._reservations: dict[Request, Reservation] = {}
        self._rows = Rows(self.config.slots, keep=reuse and is_exact(model.config, self.cache))
        self._due: deque[int] = deque()
        self._prefixes = KeptPrefixes(self.slots)
        self._events: list[Event] = []
        self._steps, self._stepping, self._owner = 0, False, object()

    @property
    def nbytes(self) -> int:
        """Bytes of the cache; kept prefixes also hold their exact tokens, or at 16 bits all of theirs, outside it."""
        return self.slots.nbytes

    @property
    def idle(self) -> bool:
        """Whether every request has ended."""
        return not self._queue and not self._lanes

    @property
    def requests(self) -> list[Request]:
        """Requests that have not ended: those that have rows, then those that wait."""
        return [*self._lanes, *(job for job in self._queue if isinstance(job, Request))]

    def submit(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        seed: int = 0,
        routing: Imposed | None = None,
        router_bias: float = 0.0,
        stop_tokens: Sequence[int] | None = None,
        draft: Drafter | None = None,
        beams: int = 1,
        length_penalty: float = 1.0,
        logprobs: int | None = None,
        prefix: Prefix | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> Request:
        """Queues a prompt; `step`, `stream` and `run` do the work.

        Args:
            prompt: token ids.
            max_new_tokens: length of the answer at most.
            sampling: greedy by default.
            seed: of the sampling; token i of the answer is drawn with `fold_in(key(seed), i)`, as `generate` does.
            routing: as for `generate`, for one row. What does not depend on the prompt (calibrated heads, an imposed
                routing) takes over a kept prefix of the same routing by itself, where that changes no answer.
            router_bias: positive favours full attention, negative sparse.
            stop_tokens: ids that end the answer; default the end-of-sequence ids of the checkpoint.
            draft: guesses of the next tokens, asked before every step; wrong guesses do not change the answer.
            beams: more than 1 searches for the most likely answer with so many rows; no sampling, no drafts.
            length_penalty: beams are compared by log-probability / tokens ** length_penalty.
            logprobs: the log-probability of every token, and of this many most likely ones, 0 to 20, goes into
                `Request.logprobs`; None leaves them out.
            prefix: read beforehand with `cache_prefix`; the prompt starts with its tokens and takes over its routing.
            on_event: called with every event of this request as it happens, until it raises an error.

        Raises:
            ShapeError: a request that is malformed or could never fit, with the bytes it needs and what would fit.
            ConfigError: settings that exclude each other.
        """
        config = self._model.config
        stops = end_ids(config) if stop_tokens is None else token_ids("stop_tokens", stop_tokens)
        request = Request(
            token_ids("the prompt", prompt),
            whole_number("max_new_tokens", max_new_tokens),
            sampling or Sampling(),
            whole_number("seed", seed),
            None if routing is None and prefix is not None else imposed_modes(routing, self._model),
            router_bias,
            frozenset(token for token in stops if 0 <= token < config.vocab_size),
            draft,
            whole_number("beams", beams),
            length_penalty,
            None if logprobs is None else whole_number("logprobs", logprobs),
            prefix,
            on_event,
            self._owner,
        )
        check_request(request, self.slots)
        if prefix is not None:
            prefix.waiting += 1
        self._queue.append(request)
        return request

    def cache_prefix(
        self,
        tokens: Sequence[int],
        *,
        routing: Imposed | None = None,
        router_bias: float = 0.0,
    ) -> Prefix:
        """Queues the beginning of later prompts, to be read once and kept with the routing decided on it.

        Where a request needs pages that other prefixes hold, and no request runs, the prefix that was unused for the
        longest time gives up its pages. It is read again when a request names it.

        Raises:
            ShapeError: like `submit`.
        """
        modes = imposed_modes(routing, self._model)
        prefix = Prefix(token_ids("the prefix", tokens), modes, router_bias, self._owner)
        check_request(prefix, self.slots)
        self._queue.append(prefix)
        return prefix

    def drop_prefix(self, prefix: Prefix) -> None:
        """Releases a prefix; running requests that began with it continue.

        Raises:
            ConfigError: requests in the queue still name it.
        """
        check_owner(prefix, self._owner, Prefix)
        if prefix.waiting:
            raise ConfigError(f"{prefix.waiting} waiting requests name this prefix; cancel them or let them start.")
        if prefix in self._prefixes:
            self._prefixes.evict(prefix)
        elif prefix in self._queue:
            self._queue.remove(prefix)
        prefix.dropped = True

    def cancel(self, request: Request) -> None:
        """Ends a request wherever it is; does nothing for one that has ended."""
        check_owner(request, self._owner, Request)
        if request.finish is None:
            self._finish(request, "cancelled")

    def step(self) -> list[Event]:
        """Starts what can start, packs rows that are due, reads the next tokens of every row that is ready."""
        if self._stepping:
            raise ConfigError("a draft or a callback called step, stream or run of its engine, which is in a step.")
        self._stepping, self._steps = True, self._steps + 1
        try:
            self._admit()
            self._flush()
            self._read()
        finally:
            self._stepping = False
        events, self._events = self._events, []
        return events

    def run(self) -> Iterator[Event]:
        """Steps until every request has ended; events of all of them, as they happen."""
        while not self.idle or self._events:
            yield from self.step()

    def stream(self, request: Request) -> Iterator[Event]:
        """Steps until this request has ended and yields its events. Other requests advance too, and keep theirs."""
        check_owner(request, self._owner, Request)
        while True:
            while request.events:
                yield request.events.popleft()
            if request.finish is not None:
                return
            self.step()

    def warm_up(self, longest_prompt: int) -> None:
        """Compiles every program for prompts up to this length; beams compile one more at their first use.

        Raises:
            ConfigError: requests are waiting or running.
        """
        if not self.idle:
            raise ConfigError("requests are waiting or running; warm up before the first.")
        lengths = {bucket(n): n for n in range(1, min(longest_prompt, self.config.max_length - 1) + 1)}
        routed = self._model.head_gates is not None and not self._model.fresh_routers
        ways = ("full", "routers" if routed else None)
        prompts = [(way, n) for way in ways for n in lengths.values()]
        asked = [  # no two begin alike, so that each is read whole
            self.submit([i % self._model.config.vocab_size] * n, max_new_tokens=1, routing=way)
            for i, (way, n) in enumerate(prompts)
        ]
        prefix = self.cache_prefix([0])
        for _ in self.run():
            pass
        for job in (*asked, prefix):
            if job.error is not None:
                raise job.error
        self.slots.warm_up(prefix.kept)
        self.drop_prefix(prefix)

    def _admit(self) -> None:
        while self._queue:
            job = self._queue[0]
            rows = job.beams if isinstance(job, Request) else 1
            if rows > self._rows.free:
                return
            if isinstance(job, Request) and job.prefix is None:
                job.prefix = longest_prefix(job, self._prefixes, self._model.config, self.cache)
                if job.prefix is not None:
                    job.prefix.waiting += 1
            if isinstance(job, Request) and job.prefix is not None and job.prefix.error is not None:
                self._fail(job, job.prefix.error)
                continue
            if isinstance(job, Request) and job.prefix is not None and job.prefix.kept is None:
                self._queue.appendleft(job.prefix)
                continue
            reservation = self._prefixes.reserve(job, give_way=not self._lanes)
            if reservation is None:
                return
            self._queue.popleft()
            if isinstance(job, Prefix):
                rows = self._rows.take(1)
                self._prefixes.read(job, rows[0], reservation, self._steps)
                self._rows.give_back(rows)
            else:
                self._start(job, reservation)

    def _start(self, request: Request, reservation: Reservation) -> None:
        """Gives a request its rows. It owns them before any of its work can fail, so that `_finish` returns them."""
        prefix = request.prefix
        beginning = self._rows.longest_beginning(request, self._lanes.values(), self.slots.lengths)
        if beginning is not None:
            rows, read = [self._rows.take_to_continue(beginning)], beginning.length
        else:
            rows, read = self._rows.take(request.beams), None if prefix is None else len(prefix.tokens)
        unread = () if read is None else request.prompt[read:]
        lane = (BeamLane if request.beams > 1 else SampledLane)(request, rows, self.slots, unread)
        self._lanes[request], self._reservations[request] = lane, reservation
        try:
            if beginning is not None:
                self.slots.resume(rows[0], beginning.row, beginning.length)
                assert request.routing is not None
                request.reused, request.mode_LK, logits_1V = beginning.length, request.routing[:, 0], None
            elif prefix is None:
                prompt = self.slots.prefill(request.prompt, request.routing, request.router_bias)
                self.slots.insert(rows[0], prompt, demand_of(request), reservation)
                logits_1V, request.mode_LK = prompt.logits_1V, prompt.mode_LK
            else:
                prefix.waiting, prefix.used = prefix.waiting - 1, self._steps
                self.slots.restore(rows[0], prefix.kept, reservation)
                request.reused, request.mode_LK, logits_1V = len(prefix.tokens), prefix.mode_LK, prefix.logits_1V
            self._note_due(lane)
            if not unread:
                assert logits_1V is not None
                self._tell(request, lane.start(logits_1V))
        except Exception as error:
            self._fail(request, error)

    def _flush(self) -> None:
        rows = [self._due.popleft() for _ in range(min(len(self._due), self.config.rows_per_flush))]
        if rows:
            self.slots.flush(rows)

    def _read(self) -> None:
        reading: list[Lane] = []
        pieces: dict[int, list[int]] = {}
        drawings: dict[int, RowSampling] = {}
        for lane in list(self._lanes.values()):
            if lane.request.finish is None and all(self.slots.room(row) > 0 for row in lane.rows):
                self._ask(lane, pieces, drawings)
                reading.append(lane)
        # a draft may have cancelled another request
        rows = {row for lane in reading if lane.request.finish is None for row in lane.rows}
        pieces = {row: piece for row, piece in pieces.items() if row in rows}
        if not pieces:
            return
        longest = max(map(len, pieces.values()))
        width = 1 if longest == 1 else self.config.step_tokens
        logits_BTV, drawn_BT = self.slots.read(pieces, drawings, width=width)
        drawn_BT = np.asarray(drawn_BT)
        for lane in reading:
            if lane.request.finish is None:
                try:
                    new = lane.advance(logits_BTV, drawn_BT)
                    self._note_due(lane)
                    self._tell(lane.request, new)
                except Exception as error:
                    self._fail(lane.request, error)

    def _ask(self, lane: Lane, pieces: dict[int, list[int]], drawings: dict[int, RowSampling]) -> None:
        """Adds what the rows of a lane read next. Its draft, which may do anything, runs here."""
        try:
            asked, drawn = lane.pieces(), lane.drawings()
        except BaseException as error:
            self._fail(lane.request, error)
            return
        if lane.request.finish is None:
            pieces |= asked
            drawings |= drawn

    def _note_due(self, lane: Lane) -> None:
        self._due += [row for row in lane.rows if self.slots.room(row) == 0 and row not in self._due]

    def _tell(self, request: Request, tokens: list[int]) -> None:
        for token in tokens:
            if request.finish is not None:
                return
            request.tokens.append(token)
            self._emit(Event(request, token=token))
            if request.finish is None and token in request.stop_tokens:
                self._finish(request, "stop")
            elif request.finish is None and len(request.tokens) >= request.max_new_tokens:
                self._finish(request, "length")

    def _finish(self, request: Request, reason: Finish) -> None:
        """Ends a request that waits or runs, and returns what it holds."""
        request.finish = reason
        lane = self._lanes.pop(request, None)
        if lane is not None:
            held = held_by(request, int(self.slots.lengths[lane.rows[0]]))
            for row in lane.rows:
                self.slots.release(row)
            self._rows.give_back(lane.rows, None if reason == "error" else held)
            self.slots.end(self._reservations.pop(request))
            self._due = deque(row for row in self._due if row not in lane.rows)
        elif request in self._queue:
            self._queue.remove(request)
            if request.prefix is not None:
                request.prefix.waiting -= 1
        self._emit(Event(request, finish=reason))

    def _fail(self, request: Request, error: BaseException) -> None:
        """Ends a request with the error of its own, if it has not ended; an interruption goes on to the caller."""
        request.error = error
        _LOG.warning("a request failed: %s", shown(error))
        if request.finish is None:
            self._finish(request, "error")
        if not isinstance(error, Exception):
            raise error

    def _emit(self, event: Event) -> None:
        request = event.request
        self._events.append(event)
        request.events.append(event)
        if request.on_event is not None:
            try:
                request.on_event(event)
            except BaseException as error:
                request.on_event = None
                self._fail(request, error)
