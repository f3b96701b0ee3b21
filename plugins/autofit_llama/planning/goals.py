"""The policy: which context, cache type and micro-batch a plan takes (docs/llama-defaults.md has it in words).

No threshold looks at how much memory there is, only at rates: with more memory a plan is never worse in both
context and decode rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from autofit.domain.request import Prefer
from autofit.domain.units import round_up
from autofit.domain.values import NamedTuple
from autofit.errors import EngineRefusalError
from autofit.solve import largest

from autofit_llama.model.context import CELL_PADDING
from autofit_llama.planning.search import Candidate, Found, Search
from autofit_llama.planning.tables import Split

USEFUL_TOKENS = 4096
"""The shortest context that is planned when none is given; the engine's own `--fit-ctx`."""
COMPARED_TOKENS = 8192
"""The decode rate of other contexts is compared with the rate that this context has."""
KEPT_FRACTION = 0.9  #: of that rate, which a longer context has to keep
FLOOR_TOKENS = 16_384
"""`auto` goes no lower than this (or the trained length) while `FLOOR_FRACTION` of the rate is kept."""
FLOOR_FRACTION = 0.5
DECODE_FLOORS = (1.0, 2.0, 5.0, 10.0)
"""Tokens/s that `--prefer context` gives up no more than it must: barely usable, slow, reading speed, comfortable."""
NOTICED_GAIN = 1.05  #: rates nearer to each other than this count as the same
LESS_MEMORY = (0.02, 0.05, 0.1, 0.2)  #: shares without which a lossy cache is looked at again
LOSSY_GAIN = 1.3  #: how much faster a lossy cache has to make decoding, to be taken where f16 fits too
SPILL_GAIN = 5.0  #: times the share of decode rate lost is the share of context to win, for weights to leave a device
CONTEXT_STEPS = 64
SMALL_UBATCHES = (256, 128)
LARGE_UBATCHES = (4096, 2048, 1024)


class PromptTrade(NamedTuple):
    """When a larger micro-batch is taken: prompt processing `gain` times as fast.

    At most `cost` of the decode rate is given for it, and `context` of the context, where that is free. `in_ram`: only
    where weights are in RAM, whose copies to a device every micro-batch waits for.
    """

    gain: float
    cost: float
    context: float
    in_ram: bool = False


DECODE_FIRST = (
    PromptTrade(2.0, 0.05, 0.25),
    PromptTrade(2.5, 0.05, 0.5, in_ram=True),
    PromptTrade(3.0, 0.05, 0.6, in_ram=True),
)
PROMPTS_TOO = (PromptTrade(1.1, 0.1, 0.5), PromptTrade(1.01, 0.01, 0.1), PromptTrade(1.002, 0.01, 0.0))
MEMORY_FIRST: tuple[PromptTrade, ...] = ()


class Goals(NamedTuple):
    """What is asked for, with everything settled that does not depend on memory.

    `least` and `most` bound the context of one sequence in tokens. Types are pairs for K and V in order of
    preference, lossless first. `rate` gives the decode tokens/s of an answer: near the start of its context, and with
    the context full where the context is what is preferred. `prompts` gives the prompt tokens/s.
    """

    prefer: Prefer
    least: int
    most: int
    rate: Callable[[Found], float] = lambda found: 1.0 / found.seconds
    rate_with: Callable[[Found, tuple[str, str]], float] = lambda found, kv: math.inf  #: with other types in its place
    filled: str = ""  #: how full the context is at that rate, in words behind it
    full: Callable[[Found], float] = lambda found: 1.0 / found.seconds  #: decode tokens/s with the context full
    prompts: Callable[[Found, int], float] = lambda found, n_ubatch: 0.0
    """Of a prompt of `COMPARED_TOKENS`, with a micro-batch of `n_ubatch` tokens; 0.0 where no rate is known."""
    meets: Callable[[Found, int], bool] = lambda found, n_ubatch: True
    """Whether decode rate and time to the first token are as wished, with a micro-batch of `n_ubatch` tokens."""
    kv_types: tuple[tuple[str, str], ...] = (("f16", "f16"),)
    keeps_precision: bool = False  #: a lossy cache is taken only where a lossless one does not fit
    fills: bool = True  #: much of the context is filled: its length was asked for, by a sequence that is alone
    floors: tuple[float, ...] = DECODE_FLOORS  #: tokens/s that `context` does not give up for a longer one
    floor_tokens: int = 0  #: the context that `auto` does not go below while it keeps `FLOOR_FRACTION` of the rate
    n_ubatch: int = 512
    n_batch: int = 2048
    free_ubatch: bool = True  #: neither -ub nor -b is pinned
    trades: tuple[PromptTrade, ...] = DECODE_FIRST

    @property
    def floor(self) -> int:
        """Tokens below which `auto` goes only where nothing else keeps the rate."""
        return min(self.floor_tokens, self.most)

    def candidate(self, n_ctx_seq: int, kv: tuple[str, str]) -> Candidate:
        return Candidate(n_ctx_seq, *kv, self.n_ubatch, self.n_batch)

    def may_meet(self, found: Found) -> bool:
        """Whether an answer is as fast as wished, if need be with a larger micro-batch."""
        sizes = LARGE_UBATCHES if self.free_ubatch else ()
        n_ctx = found.candidate.n_ctx_seq
        return any(self.meets(found, size) for size in (found.candidate.n_ubatch, *sizes) if size <= n_ctx)


class Answer(NamedTuple):
    """The best answer, and what its choices cost: the answers that were passed over for it, where there are any.

    `least_rate` is the decode rate that all choices together may not go below.
    """

    found: Found
    least_rate: float = 0.0
    compared: Found | None = None  #: with a shorter context, which decodes faster
    lossless: Found | None = None  #: with an f16 cache
    lossy: Found | None = None  #: with a q8_0 cache, which would decode faster, but not enough for what it takes
    plain: Found | None = None  #: with the default micro-batch


def reach(search: Search, goals: Goals) -> Answer | None:
    """The best answer to the goals, or `None` when nothing fits."""
    answer = _any_type(search, goals)
    if answer is None:
        return None
    if goals.free_ubatch:
        larger = larger_ubatch(search, goals, answer.found, answer.least_rate)
        if larger is not answer.found:
            answer = answer._replace(found=larger, plain=answer.found)
    return answer


def _any_type(search: Search, goals: Goals) -> Answer | None:
    best: Answer | None = None
    for kv in goals.kv_types:
        try:
            if best is None:
                best = _with_types(search, goals, kv)
            else:
                best = _if_worth(search, goals, kv, best)
        except EngineRefusalError:
            if kv == goals.kv_types[0]:
                raise
            continue  # a lossy cache that the engine refuses here was only worth a try
        if best is not None and goals.keeps_precision and goals.may_meet(best.found):
            break
        if best is not None and _wants_no_more(search, goals, best.found):
            return _priced(search, goals, best)
    return best


def _priced(search: Search, goals: Goals, answer: Answer) -> Answer:
    """An answer that wants no more memory, with what a lossy cache would gain where much of the context is filled."""
    kv = next((kv for kv in goals.kv_types if kv != goals.kv_types[0]), None)
    if kv is None or not goals.fills or answer.lossless is not None or answer.found.split.on_host:
        return answer
    if goals.rate_with(answer.found, kv) < NOTICED_GAIN * goals.rate(answer.found):
        return answer  # in the same place, and no other would be faster: nothing is in RAM
    try:
        alike = _fastest(search, goals, goals.candidate(answer.found.candidate.n_ctx_seq, kv))
    except EngineRefusalError:
        return answer
    return answer if alike is None else _with_lossy(goals, answer, alike)


def _with_types(search: Search, goals: Goals, kv: tuple[str, str]) -> Answer | None:
    asked = _Contexts(search, goals, kv)
    if goals.most == goals.least:
        found = asked.at(goals.least)
        return None if found is None else Answer(found)
    return asked.longest() if goals.prefer == "context" else asked.default()


def _if_worth(search: Search, goals: Goals, kv: tuple[str, str], lossless: Answer) -> Answer:
    """The answer with a lossy cache where that gives enough for what it takes, else the `lossless` one."""
    passed_over = lossless.found
    if goals.prefer == "context":
        lossy = _with_types(search, goals, kv)
        if lossy is None or _reach_of(goals, lossy.found) < _reach_of(goals, passed_over):
            return lossless
        is_alike = _reach_of(goals, lossy.found) == _reach_of(goals, passed_over)
        if is_alike and not (goals.fills and _is_worth(search, goals, lossy.found, passed_over)):
            return _with_lossy(goals, lossless, lossy.found)
        return lossy._replace(lossless=passed_over)
    n_ctx = passed_over.candidate.n_ctx_seq
    if n_ctx < goals.floor:
        lossy = _with_types(search, goals, kv)
        return lossy._replace(lossless=passed_over) if lossy and _keeps_floor(goals, lossy, passed_over) else lossless
    alike = _fastest(search, goals, goals.candidate(n_ctx, kv))
    if alike is None:
        return lossless
    only_way = goals.may_meet(alike) and not goals.may_meet(passed_over)
    if not only_way and not _is_worth(search, goals, alike, passed_over):
        return _with_lossy(goals, lossless, alike)
    lossy = _with_types(search, goals._replace(least=n_ctx), kv) or Answer(alike)
    return lossy._replace(lossless=passed_over)


def _keeps_floor(goals: Goals, lossy: Answer, lossless: Found) -> bool:
    """Whether a lossy cache is the only way to the floor of the context, at no lower rate than it may cost."""
    reached = lossy.found.candidate.n_ctx_seq >= goals.floor
    return reached and goals.rate(lossy.found) >= FLOOR_FRACTION * goals.rate(lossless)


def _with_lossy(goals: Goals, lossless: Answer, passed_over: Found) -> Answer:
    if goals.rate(passed_over) < NOTICED_GAIN * goals.rate(lossless.found):
        return lossless
    return lossless._replace(lossy=passed_over)


def _is_worth(search: Search, goals: Goals, lossy: Found, lossless: Found) -> bool:
    """Whether a lossy cache decodes as much faster as it has to.

    Also where it did with less memory, and a lossless one is not yet as fast as it was there: else more memory would
    change to a lossless cache with weights in RAM, and lose rate.
    """
    if gain_of(goals, lossy, lossless) >= LOSSY_GAIN:
        return True
    if not lossless.split.on_host or goals.rate(lossy) < NOTICED_GAIN * goals.rate(lossless):
        return False
    if not lossy.split.on_host:
        tight = search.narrowed(lossy).best(lossless.candidate)
        return tight is None or gain_of(goals, lossy, tight) >= LOSSY_GAIN
    for share in LESS_MEMORY:
        less = search.lessened(share)
        one, other = less.best(lossy.candidate), less.best(lossless.candidate)
        if one is None or goals.rate(one) < goals.rate(lossless):
            return False
        if other is None or gain_of(goals, one, other) >= LOSSY_GAIN:
            return True
    return False


def gain_of(goals: Goals, lossy: Found, lossless: Found) -> float:
    """How many times as fast the lossy cache decodes: near the start of the context, or with it full."""
    near = _times(goals.rate(lossy), goals.rate(lossless))
    return (
        max(near, _times(goals.full(lossy), goals.full(lossless))) if near >= 1.0 and lossless.split.on_host else near
    )


def _times(one: float, other: float) -> float:
    """How many times as fast; as fast where neither has a rate, as on a device whose bandwidth nobody states."""
    if other > 0:
        return one / other
    return math.inf if one > 0 else 1.0


def _reach_of(goals: Goals, found: Found) -> tuple[float, ...]:
    rate = goals.rate(found)
    return sum(rate >= floor for floor in goals.floors), found.candidate.n_ctx_seq


def _wants_no_more(search: Search, goals: Goals, found: Found) -> bool:
    """Whether the memory that a smaller cache saves could not make the answer any better."""
    tables = search.tables(found.candidate)
    if found.split.on_host and tables.targets:
        return False
    if goals.prefer == "context":
        return found.candidate.n_ctx_seq >= goals.most and goals.rate(found) >= max(goals.floors, default=0.0)
    if found.candidate.n_ctx_seq < goals.floor:
        return False
    if not tables.targets:  # all is in RAM with either cache
        return goals.may_meet(found)
    alone = (tables.seconds(Split(0, ((target.id, len(tables.blocks)),))) for target in tables.targets)
    return found.seconds <= LOSSY_GAIN * min(alone)


class _Contexts:
    """The fastest answers for contexts of unlike lengths, with one pair of cache types."""

    def __init__(self, search: Search, goals: Goals, kv: tuple[str, str]) -> None:
        self.search, self.goals, self.kv = search, goals, kv
        self._known: dict[int, Found | None] = {}

    def at(self, n_ctx: int) -> Found | None:
        if n_ctx not in self._known:
            self._known[n_ctx] = _fastest(self.search, self.goals, self.goals.candidate(n_ctx, self.kv))
        return self._known[n_ctx]

    def default(self) -> Answer | None:
        """The longest context that keeps its decode rate, and no less than the floor."""
        goals = self.goals
        compared = goals.least if goals.prefer == "throughput" else min(max(COMPARED_TOKENS, goals.least), goals.most)
        at_once = self.search.resident_up_to(goals.candidate(compared, self.kv), goals.most)
        if at_once is not None and goals.may_meet(at_once):
            return Answer(at_once, KEPT_FRACTION * goals.rate(at_once))
        first = self.at(compared) or self.at(goals.least)
        if first is None:
            return None
        if first.candidate.n_ctx_seq < compared:  # too little memory for anything but the longest that fits
            return Answer(self.beyond(first, compared, goals.may_meet))
        if not goals.may_meet(first):
            shortest = self.at(goals.least) or first
            return Answer(self.beyond(shortest, compared, goals.may_meet) if goals.may_meet(shortest) else shortest)
        reference = self.at(min(compared, COMPARED_TOKENS)) or first
        rate = goals.rate(reference)
        found = self.worth_its_price(first, KEPT_FRACTION * rate)
        kept = KEPT_FRACTION * min(rate, goals.rate(first))
        longer = self.at(goals.floor) if found.candidate.n_ctx_seq < goals.floor else None
        if longer is not None and goals.may_meet(longer) and goals.rate(longer) >= FLOOR_FRACTION * rate:
            found, kept = self.stretched(longer, goals.most, goals.may_meet), FLOOR_FRACTION * rate
        return Answer(found, kept, compared=None if found.split == reference.split else reference)

    def worth_its_price(self, first: Found, least_rate: float) -> Found:
        """The longest context at this rate; where it needs weights in RAM, or micro-batches that no longer overlap on
        several devices, only where it is much longer than without.
        """
        goals = self.goals
        found = self.beyond(first, goals.most, lambda f: goals.may_meet(f) and goals.rate(f) >= least_rate)
        if _makes_do(first) or not _makes_do(found):
            return found
        n_ctx = found.candidate.n_ctx_seq
        resident = self.beyond(first, n_ctx, lambda f: goals.may_meet(f) and not _makes_do(f))
        longer = n_ctx / resident.candidate.n_ctx_seq - 1
        now, before = ((goals.rate(f), goals.prompts(f, f.candidate.n_ubatch)) for f in (found, resident))
        slower = max(1 - less / more for less, more in zip(now, before, strict=True) if more)
        return found if longer >= SPILL_GAIN * slower else resident

    def longest(self) -> Answer | None:
        """The longest context at the highest of the floors that the shortest reaches."""
        goals = self.goals
        first = self.at(goals.least)
        if first is None:
            return None
        floor = max((floor for floor in goals.floors if goals.rate(first) >= floor), default=0.0)
        found = self.beyond(first, goals.most, lambda f: goals.may_meet(f) and goals.rate(f) >= floor)
        if found.split == first.split:
            return Answer(found)
        return Answer(found, compared=self.at(min(max(COMPARED_TOKENS, goals.least), goals.most)))

    def beyond(self, first: Found, most: int, passes: Callable[[Found], bool]) -> Found:
        """The answer for the longest context from that of `first` up to `most` that fits and `passes`."""
        first = self.stretched(first, most, passes)
        if not self.search.learns and self.goals.prefer != "context":
            return first  # each context would take as many estimates as the first: -sm tensor is not proposed anyway
        # the same contexts whatever memory there is, so that more of it passes wherever less does
        steps = [n_ctx for n_ctx in _steps(self.goals.least, most) if n_ctx > first.candidate.n_ctx_seq]

        def at(k: int) -> Found | None:
            return self.search.best(first.candidate._replace(n_ctx_seq=steps[k]))

        def holds(k: int) -> bool:
            found = at(k)
            return found is not None and passes(found)

        last = largest(holds, 0, len(steps) - 1)
        found = first if last is None else at(last) or first
        found = self.looked_again(found, [] if last is None else steps[last + 1 :], passes)
        return self.stretched(found, most, passes)

    def looked_again(self, found: Found, longer: Sequence[int], passes: Callable[[Found], bool]) -> Found:
        """The answer of a search without the knowledge of other contexts, which may have hidden a better one."""
        if not (found.split.on_host and self.search.learns):
            return found
        fresh = type(self.search)(self.search.problem, self.search.offloads)
        again = fresh.best(found.candidate)
        if again is not None and again.seconds < found.seconds and passes(again):
            found = again
        for n_ctx in longer:
            again = fresh.best(found.candidate._replace(n_ctx_seq=n_ctx))
            if again is None or not passes(again):
                break
            found = again
        return found

    def stretched(self, found: Found, most: int, passes: Callable[[Found], bool]) -> Found:
        """The same placement with the longest context that fits, if that `passes` too."""
        longer = stretch(self.search, found, most)
        return longer if passes(longer) else found


def _makes_do(found: Found) -> bool:
    return found.split.on_host or found.candidate.one_by_one


def _fastest(search: Search, goals: Goals, candidate: Candidate) -> Found | None:
    """The fastest placement; with a smaller micro-batch if only that gets all layers onto devices."""
    found = search.best(candidate)
    if not goals.free_ubatch or (found is not None and not found.split.on_host):
        return found
    for n_ubatch in SMALL_UBATCHES:
        smaller = candidate._replace(n_ubatch=n_ubatch)
        resident = search.resident(smaller)
        if resident is not None and (found is None or resident.seconds < found.seconds):
            return resident
    if found is None:
        answers = [search.best(candidate._replace(n_ubatch=n_ubatch)) for n_ubatch in SMALL_UBATCHES]
        found = min(filter(None, answers), key=lambda answer: answer.seconds, default=None)
    return found


def _steps(least: int, most: int) -> Sequence[int]:
    """The contexts among which one is looked for, each longer than the one before by the same factor."""
    lengths = (int(least * (most / least) ** (k / CONTEXT_STEPS)) for k in range(CONTEXT_STEPS))
    padded = {n // CELL_PADDING * CELL_PADDING for n in lengths}
    return [least, *sorted(n for n in padded if least < n < most), most]


def stretch(search: Search, found: Found, most: int) -> Found:
    """The longest context, up to `most`, for which the same split still fits.

    What a pool takes grows with the context in straight pieces that only ever turn upwards, so the line
    between two known points is never below it: each guess on it fits, and the next one is closer.
    """
    if most <= found.candidate.n_ctx_seq:
        return found

    def at(n_ctx: int) -> Found:
        candidate = found.candidate._replace(n_ctx_seq=n_ctx)
        return found._replace(candidate=candidate, memory=search.measure(candidate, found.split))

    low, high = found, at(most)
    if high.fits:
        return high
    for _ in range(6):
        least, n_cells = low.candidate.n_ctx_seq, high.candidate.n_ctx_seq - low.candidate.n_ctx_seq
        if n_cells <= CELL_PADDING:
            break
        guess = (least + int(n_cells * _share(search.spare(low), search.spare(high)))) // CELL_PADDING * CELL_PADDING
        guess = max(guess, (least // CELL_PADDING + 1) * CELL_PADDING)
        if guess >= high.candidate.n_ctx_seq:
            guess = (high.candidate.n_ctx_seq - 1) // CELL_PADDING * CELL_PADDING
        if guess <= least:
            break
        between = at(guess)
        low, high = (between, high) if between.fits else (low, between)
    return low


def _share(low: Mapping[str, int], high: Mapping[str, int]) -> float:
    """How far from `low` (which fits) to `high` the first place is full, by what is spare at both."""
    return min(
        (spare / (spare - high[name]) for name, spare in low.items() if spare >= 0 and high[name] < 0), default=1.0
    )


def larger_ubatch(search: Search, goals: Goals, found: Found, least_rate: float = 0.0) -> Found:
    """The micro-batch with which prompts are processed fastest, at the price that `goals.trades` allow.

    Together with what the context has cost, decoding does not go below `least_rate`: a shorter context makes room,
    where it is free. Where the first token comes too late, the smallest micro-batch with which it does not, whatever
    it costs of decode.
    """
    candidate, best = found.candidate, found
    plain = fastest = goals.prompts(found, candidate.n_ubatch)
    if not plain:
        return found
    late = not goals.meets(found, candidate.n_ubatch)
    for size in LARGE_UBATCHES:
        # the same placement is what a larger one comes to at most: its buffers only take memory away
        if not candidate.n_ubatch < size <= candidate.n_ctx_seq:
            continue
        gain = max(goals.prompts(found, size), fastest) / plain
        trades = [t for t in goals.trades if t.gain <= gain and (found.split.on_host or not t.in_ram)]
        if late and goals.meets(found, size):
            larger = search.best(_with_ubatch(candidate, size))
            if larger is not None and goals.meets(larger, size):
                best = larger
            continue
        for trade in trades:
            larger = _at_price(search, goals, found, size, trade, least_rate)
            if larger is not None and goals.prompts(larger, size) > fastest:
                best, fastest = larger, goals.prompts(larger, size)
                break
    return best


def _with_ubatch(candidate: Candidate, size: int) -> Candidate:
    return candidate._replace(n_ubatch=size, n_batch=max(size, candidate.n_batch))


def _at_price(
    search: Search, goals: Goals, found: Found, size: int, trade: PromptTrade, least_rate: float
) -> Found | None:
    """The longest context up to that of `found` with which a larger micro-batch keeps to the `trade`."""
    decode = max((1 - trade.cost) * goals.rate(found), min(least_rate, goals.rate(found)))
    prompts = trade.gain * goals.prompts(found, found.candidate.n_ubatch)

    def at(n_ctx: int) -> Found | None:
        larger = search.best(_with_ubatch(found.candidate._replace(n_ctx_seq=n_ctx), size))
        if larger is None or goals.rate(larger) < decode or goals.prompts(larger, size) < prompts:
            return None
        if larger.split.on_host and not found.split.on_host:
            return None  # its buffers are worth context, but no weights on the host
        return larger if goals.meets(larger, size) else None

    whole = at(found.candidate.n_ctx_seq)
    if whole is not None or goals.prefer == "context":
        return whole
    n_ctx = found.candidate.n_ctx_seq
    least = max(size, goals.least, min(n_ctx, goals.floor), round_up(int((1 - trade.context) * n_ctx), CELL_PADDING))
    steps = sorted({n for n in (least, *_steps(goals.least, goals.most)) if least <= n < n_ctx})
    longest = largest(lambda k: at(steps[k]) is not None, 0, len(steps) - 1)
    return None if longest is None else at(steps[longest])
