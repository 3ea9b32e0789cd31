"""Many requests over one model: rows come and go between the steps of one compiled program."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from elastic_jax.config import ModelConfig
from elastic_jax.engine.admission import check_request, longest_prefix
from elastic_jax.engine.config import EngineConfig
from elastic_jax.engine.lanes import BeamLane, Lane, SampledLane
from elastic_jax.engine.page_pool import Reservation
from elastic_jax.engine.paged_slots import PagedSlots
from elastic_jax.engine.requests import Drafter, Event, Finish, Prefix, Request
from elastic_jax.engine.slots import Demand, Slots
from elastic_jax.errors import ConfigError, ShapeError
from elastic_jax.generation import bucket, end_ids
from elastic_jax.kv_cache import CacheConfig
from elastic_jax.model import ElasticForCausalLM
from elastic_jax.routing import Imposed, gates_from, to_modes
from elastic_jax.sampling import Sampling


class Engine:
    """Serves requests of different lengths, routings and samplings in a fixed number of rows.

    What a request answers depends on itself alone, not on what runs beside it. Requests start in the order in which
    they came: one that must wait for rows or pages is not overtaken. One thread drives an engine.
    """

    def __init__(self, model: ElasticForCausalLM, config: EngineConfig | None = None, cache: CacheConfig | None = None):
        """Allocates the cache of all rows.

        Raises:
            ConfigError: rows longer than the model has positions, a pool without a page, groups that do not fit.
        """
        self.config, self.cache = config or EngineConfig(), cache or CacheConfig()
        self.cache.check_head_dim(model.config.head_dim)
        have = model.config.max_position_embeddings
        if self.config.max_length > have and model.config.rope.type != "dynamic":
            raise ConfigError(
                f"engine max_length is {self.config.max_length}; the model has {have} positions. Lower it, or give the "
                "checkpoint a rope scaling for longer contexts."
            )
        make = Slots if self.cache.bits == 16 else PagedSlots
        self.slots = make(model, self.config, self.cache)
        self._model = model
        self._queue: deque[Request | Prefix] = deque()
        self._lanes: dict[Request, Lane] = {}
        self._reservations: dict[Request, Reservation] = {}
        self._free = list(range(self.config.slots - 1, -1, -1))
        self._due: deque[int] = deque()
        self._prefixes: list[Prefix] = []
        self._events: list[Event] = []
        self._steps = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the cache; kept prefixes also hold their exact tokens, or at 16 bits all of theirs, outside it."""
        return self.slots.nbytes

    @property
    def idle(self) -> bool:
        """Whether every request has ended."""
        return not self._queue and not self._lanes

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
        prefix: Prefix | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> Request:
        """Queues a prompt; `step`, `stream` and `run` do the work.

        Args:
            prompt: token ids.
            max_new_tokens: length of the answer at most.
            sampling: greedy by default.
            seed: of the sampling; token i of the answer is drawn with `fold_in(key(seed), i)`, as `generate` does.
            routing: None lets the routers decide over the prompt; otherwise as for `generate`, for one row.
            router_bias: positive favours full attention, negative sparse.
            stop_tokens: ids that end the answer; default the end-of-sequence ids of the checkpoint.
            draft: guesses of the next tokens, asked before every step; wrong guesses do not change the answer.
            beams: more than 1 searches for the most likely answer with so many rows; no sampling, no drafts.
            length_penalty: beams are compared by log-probability / tokens ** length_penalty.
            prefix: read beforehand with `cache_prefix`; the prompt starts with its tokens and takes over its routing.
            on_event: called with every event of this request, as it happens.

        Raises:
            ShapeError: a request that is malformed or could never fit, with the bytes it needs and what would fit.
            ConfigError: settings that exclude each other.
        """
        config = self._model.config
        request = Request(
            tuple(int(token) for token in prompt),
            max_new_tokens,
            sampling or Sampling(),
            seed,
            _modes(routing, config),
            router_bias,
            frozenset(end_ids(config) if stop_tokens is None else stop_tokens),
            draft,
            beams,
            length_penalty,
            prefix,
            on_event,
        )
        check_request(request, config, self.config)
        mode_LK = None if request.routing is None else request.routing[:, 0]
        # A prefix holds at most what one more row would.
        demand = Demand(len(request.prompt), len(request.prompt) + max_new_tokens, beams + (prefix is not None))
        refusal = self.slots.refusal(demand, mode_LK)
        if refusal:
            raise ShapeError(refusal)
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
        config = self._model.config
        modes = _modes(routing, config)
        prefix = Prefix(tuple(int(token) for token in tokens), modes, router_bias)
        check_request(prefix, config, self.config)
        refusal = self.slots.refusal(self._demand(prefix), None if modes is None else modes[:, 0])
        if refusal:
            raise ShapeError(refusal)
        self._queue.append(prefix)
        return prefix

    def drop_prefix(self, prefix: Prefix) -> None:
        """Releases a prefix; running requests that began with it continue.

        Raises:
            ConfigError: requests in the queue still name it.
        """
        if prefix.waiting:
            raise ConfigError(f"{prefix.waiting} waiting requests name this prefix; cancel them or let them start.")
        if prefix in self._prefixes:
            self._evict(prefix)
        elif prefix in self._queue:
            self._queue.remove(prefix)
        prefix.dropped = True

    def cancel(self, request: Request) -> None:
        """Ends a request wherever it is; does nothing for one that has ended."""
        if request.finish is None:
            if request in self._queue:
                self._queue.remove(request)
                if request.prefix is not None:
                    request.prefix.waiting -= 1
            self._finish(request, "cancelled")

    def step(self) -> list[Event]:
        """Starts what can start, packs rows that are due, reads the next tokens of every row that is ready."""
        self._steps += 1
        self._admit()
        self._flush()
        self._read()
        events, self._events = self._events, []
        return events

    def run(self) -> Iterator[Event]:
        """Steps until every request has ended; events of all of them, as they happen."""
        while not self.idle or self._events:
            yield from self.step()

    def stream(self, request: Request) -> Iterator[Event]:
        """Steps until this request has ended and yields its events. Other requests advance too, and keep theirs."""
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
        for routing in (None, "full"):
            for n in lengths.values():
                self.submit([0] * n, max_new_tokens=1, routing=routing)
        prefix = self.cache_prefix([0])
        for _ in self.run():
            pass
        self.slots.warm_up(prefix.kept)
        self.drop_prefix(prefix)

    def _demand(self, job: Request | Prefix) -> Demand:
        if isinstance(job, Prefix):
            return Demand(len(job.tokens), len(job.tokens))
        shared = 0 if job.prefix is None else len(job.prefix.tokens)
        return Demand(len(job.prompt), len(job.prompt) + job.max_new_tokens, job.beams, shared)

    def _admit(self) -> None:
        while self._queue:
            job = self._queue[0]
            rows = job.beams if isinstance(job, Request) else 1
            if rows > len(self._free):
                return
            if isinstance(job, Request) and job.prefix is None:
                job.prefix = longest_prefix(job, self._prefixes, self._model.config, self.cache)
                if job.prefix is not None:
                    job.prefix.waiting += 1
            if isinstance(job, Request) and job.prefix is not None and job.prefix.kept is None:
                self._queue.appendleft(job.prefix)
                continue
            reservation = self._reserve(job)
            if reservation is None:
                return
            self._queue.popleft()
            if isinstance(job, Prefix):
                self._read_prefix(job, reservation)
            else:
                self._start(job, reservation)

    def _reserve(self, job: Request | Prefix) -> Reservation | None:
        mode, own = None if job.routing is None else job.routing[:, 0], None
        if isinstance(job, Request) and job.prefix is not None:
            mode, own = job.prefix.mode_LK, job.prefix
        while True:
            reservation = self.slots.reserve(self._demand(job), mode)
            others = [prefix for prefix in self._prefixes if prefix is not own]
            if reservation is not None or self._lanes or not others:
                return reservation
            self._evict(min(others, key=lambda prefix: prefix.used))

    def _evict(self, prefix: Prefix) -> None:
        self._prefixes.remove(prefix)
        self.slots.forget(prefix.kept)
        prefix.kept, prefix.logits_1V = None, None

    def _read_prefix(self, prefix: Prefix, reservation: Reservation) -> None:
        row = self._free[-1]
        prompt = self.slots.prefill(prefix.tokens, prefix.routing, prefix.router_bias)
        self.slots.insert(row, prompt, self._demand(prefix), reservation)
        prefix.kept, prefix.logits_1V, prefix.mode_LK = self.slots.keep(row, prompt), prompt.logits_1V, prompt.mode_LK
        prefix.used = self._steps
        self.slots.release(row)
        self.slots.end(reservation)
        self._prefixes.append(prefix)

    def _start(self, request: Request, reservation: Reservation) -> None:
        rows = [self._free.pop() for _ in range(request.beams)]
        unread: Sequence[int] = ()
        if request.prefix is None:
            prompt = self.slots.prefill(request.prompt, request.routing, request.router_bias)
            self.slots.insert(rows[0], prompt, self._demand(request), reservation)
            logits_1V, request.mode_LK = prompt.logits_1V, prompt.mode_LK
        else:
            prefix = request.prefix
            prefix.waiting, prefix.used = prefix.waiting - 1, self._steps
            self.slots.restore(rows[0], prefix.kept, reservation)
            request.reused = len(prefix.tokens)
            unread, logits_1V, request.mode_LK = request.prompt[len(prefix.tokens) :], prefix.logits_1V, prefix.mode_LK
        lane = (BeamLane if request.beams > 1 else SampledLane)(request, rows, self.slots, unread)
        self._lanes[request], self._reservations[request] = lane, reservation
        self._note_due(lane)
        if not unread:
            assert logits_1V is not None
            self._tell(request, lane.start(logits_1V))

    def _flush(self) -> None:
        rows = [self._due.popleft() for _ in range(min(len(self._due), self.config.rows_per_flush))]
        if rows:
            self.slots.flush(rows)

    def _read(self) -> None:
        ready = [lane for lane in self._lanes.values() if all(self.slots.room(row) > 0 for row in lane.rows)]
        if not ready:
            return
        pieces = {row: piece for lane in ready for row, piece in lane.pieces().items()}
        drawings = {row: drawing for lane in ready for row, drawing in lane.drawings().items()}
        longest = max(map(len, pieces.values()))
        width = 1 if longest == 1 else self.config.step_tokens
        logits_BTV, drawn_BT = self.slots.read(pieces, drawings, width=width)
        drawn_BT = np.asarray(drawn_BT)
        for lane in ready:
            if lane.request.finish is None:
                new = lane.advance(logits_BTV, drawn_BT)
                self._note_due(lane)
                self._tell(lane.request, new)

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
            elif request.finish is None and len(request.tokens) == request.max_new_tokens:
                self._finish(request, "length")

    def _finish(self, request: Request, reason: Finish) -> None:
        request.finish = reason
        lane = self._lanes.pop(request, None)
        if lane is not None:
            for row in lane.rows:
                self.slots.release(row)
                self._free.append(row)
            self.slots.end(self._reservations.pop(request))
            self._due = deque(row for row in self._due if row not in lane.rows)
        self._emit(Event(request, finish=reason))

    def _emit(self, event: Event) -> None:
        self._events.append(event)
        event.request.events.append(event)
        if event.request.on_event is not None:
            event.request.on_event(event)


def _modes(routing: Imposed | None, config: ModelConfig) -> np.ndarray | None:
    """Modes int8 `[L, 1, K]` of one row, on the host: the engine compares and counts them."""
    gates = gates_from(routing, config, 1)
    return None if gates is None else np.asarray(to_modes(gates.z))
