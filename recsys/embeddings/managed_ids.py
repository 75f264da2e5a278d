"""Which id owns which row of a managed table, while ids come and go.

The semantics are those of torchrec's managed collisions (`torchrec.modules.mc_modules`): a sorted
array of ids says who owns a row, ids that own none share the last row, and every so many batches
the least (frequently or recently) used owners give way. All state is in buffers of fixed sizes, so
that checkpoints carry it and a resumed run is the same run.
"""

from typing import List, Literal

import torch
from torch import Tensor, nn

SPECIAL_ROWS = 2
"""Rows behind those that ids own: null's, which padding has too, and last the shared one."""
LEAST_WAITING = 1024
KEPT = 0.5
"""What is left of a use (LFU) after each interval. Uses that never age hold the rows of ids that
have gone. Share of lookups that found a row of their own, 1,000 rows, 20,000 ids by Zipf's law,
batches of 2,048, an interval of 10 of them; an id lives for ever, 1,000 or 100 batches:

    kept        .5    .8    .9    .97    1     lru   lru, admission 3
    for ever   .707  .711  .712  .713  .713   .623        .706
    1,000      .701  .700  .693  .675  .661   .618        .698
    100        .637  .598  .554  .487  .442   .579        .595
"""
HOLD = 2.0
"""How many times the uses of an owner another id needs to take its row (LFU): a row has learned
something, and ids that are used about as often as each other would pass it to and fro. Share of
lookups as above, and rows that pass on in a batch; last 4,000 ids, all used alike:

    times           1          1.5           2            3
    for ever   .707 10.8    .709  5.7    .710  3.5    .711  1.7
    1,000      .700 11.4    .702  6.3    .702  4.3    .702  2.6
    100        .636 17.3    .632 13.1    .630 11.6    .623 10.5
    alike      .250 26.4    .250 11.2    .248  5.8    .250  1.4
"""


class SortedIds(nn.Module):
    """The place of each id among ``keys``; exact, by binary search.

    Args:
        size: K, how many ids there is room for.
        null: the id of null.
        wide: whether ids take 64 bits, or 32.

    **Shape:** ids (...) -> places (...) int64: ``0 .. K-1`` of ids that are kept, ``K`` of null,
    ``K + 1`` of all others. ``keys`` (K,) rises, empty places first.
    """

    keys: Tensor

    def __init__(self, *, size: int, null: int, wide: bool) -> None:
        super().__init__()
        self.size: int = size
        self.null: int = null
        dtype = torch.int64 if wide else torch.int32
        # sorts before every id that is looked up: ids of 32 bits are not negative, and the least
        # one of 64 bits is null's
        self.empty: int = null if wide else -1
        self.register_buffer("keys", torch.full((size,), self.empty, dtype=dtype))

    def forward(self, ids: Tensor) -> Tensor:
        ids = ids.to(self.keys.dtype).contiguous()
        place = torch.searchsorted(self.keys, ids)
        known = torch.take(self.keys, place.clamp_max(self.size - 1)) == ids
        place = torch.where(known, place, self.size + 1)
        return torch.where(ids == self.null, self.size, place)


class ManagedIds(nn.Module):
    """Owners and those who wait, for one table and its likes in other layers.

    After each batch the uses of its ids are counted. An id that was seen ``admission`` times may
    own a row: at once while rows are free, else at the end of an ``interval`` of batches, from the
    owner of the lowest score, if its own is higher. The score is the number of uses, of which
    `KEPT` is left after each interval and which count `HOLD` times for an owner (``lfu``), or the
    batch of the last use (``lru``). Among equals owners stay, and ids seen most come first.

    An id without a row waits in a list; when that is full, the lowest scores are forgotten, an
    eighth of it at a time. What is known of an id that loses its row is forgotten, too. Null is
    never counted.

    Args:
        lookup: the sorted owners, empty.
        start: (n,) int64 ids that own rows from the start, rising, n <= K.
        waiting: W, how many ids may wait.

    **Shape:** ids (...) -> rows (...) int32 of a table of K + 2 rows.
    """

    slots: Tensor
    score: Tensor
    waiting: Tensor
    waiting_seen: Tensor
    waiting_score: Tensor
    batches: Tensor
    _uses: List[Tensor]

    def __init__(
        self,
        *,
        lookup: SortedIds,
        start: Tensor,
        waiting: int,
        eviction: Literal["lfu", "lru"],
        admission: int,
        interval: int,
    ) -> None:
        super().__init__()
        self.lookup = lookup
        self.by_count: bool = eviction == "lfu"
        self.admission: int = admission
        self.interval: int = interval
        lookup.keys[lookup.size - len(start) :] = start.to(lookup.keys.dtype)
        rows = torch.arange(lookup.size + SPECIAL_ROWS, dtype=torch.int32)
        self.register_buffer("slots", rows)  # row of each place
        self.register_buffer("score", torch.zeros(lookup.size))  # of the owner of each place
        ids = torch.full((waiting,), lookup.empty, dtype=lookup.keys.dtype)
        self.register_buffer("waiting", ids)  # rising, empty places first
        self.register_buffer("waiting_seen", torch.zeros(waiting, dtype=torch.int32))
        self.register_buffer("waiting_score", torch.zeros(waiting))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.changes: int = 0  # how often owners have changed, in this process
        self.fresh: Tensor = rows[:0]  # rows that the last change gave to other ids
        self._uses = []

    def forward(self, ids: Tensor) -> Tensor:
        return torch.take(self.slots, self.lookup(ids))

    @torch.no_grad()
    def adopt(self, owners: SortedIds) -> None:
        """Those of another table of the same size own the rows, in the order of their ids."""
        self.lookup.keys.copy_(owners.keys)
        self.slots.copy_(torch.arange(len(self.slots)))
        self.score.zero_()

    @torch.jit.unused
    def use(self, ids: Tensor) -> None:
        """Notes ids (...) of this batch."""
        self._uses.append(ids.flatten().to(self.lookup.keys.dtype))

    @torch.jit.unused
    @torch.no_grad()
    def settle(self) -> None:
        """Counts what the batch has used and lets ids in and out; without uses, nothing."""
        if not self._uses:
            return
        ids = torch.cat(self._uses)
        self._uses = []
        self.batches += 1
        ids, counts = torch.unique(ids[ids != self.lookup.null], return_counts=True)
        place = self.lookup(ids)
        owns = place < self.lookup.size
        self._count(self.score, place[owns], counts[owns])
        self._wait(ids[~owns], counts[~owns])
        ends = int(self.batches) % self.interval == 0
        self._let_in(ends)
        if ends and self.by_count:
            self.score *= KEPT
            self.waiting_score *= KEPT

    def _count(self, score: Tensor, place: Tensor, counts: Tensor) -> None:
        if self.by_count:
            score.index_add_(0, place, counts.to(score.dtype))
        else:
            score[place] = self.batches.to(score.dtype)

    def _wait(self, ids: Tensor, counts: Tensor) -> None:
        """Counts ids without a row, rising and distinct."""
        place = torch.searchsorted(self.waiting, ids).clamp_max(len(self.waiting) - 1)
        known = self.waiting[place] == ids
        self.waiting_seen.index_add_(0, place[known], counts[known].int())
        self._count(self.waiting_score, place[known], counts[known])
        if bool(known.all()):
            return
        ids, counts = ids[~known], counts[~known].int()
        score = torch.zeros(len(ids), device=ids.device)
        self._count(score, torch.arange(len(ids), device=ids.device), counts)
        first = self._empty(self.waiting)
        new = [ids, counts, score]
        old = [buffer[first:].clone() for buffer in self._waiters()]
        if len(ids) > first:
            room = len(self.waiting)
            best = torch.cat([score, old[2]]).argsort(descending=True, stable=True)
            best = best[: room - room // 8].sort().values  # both parts rise again
            old = [part[best[best >= len(ids)] - len(ids)] for part in old]
            new = [part[best[best < len(ids)]] for part in new]
        self._rewrite(old, new)

    def _waiters(self) -> List[Tensor]:
        return [self.waiting, self.waiting_seen, self.waiting_score]

    def _rewrite(self, old: List[Tensor], new: List[Tensor]) -> None:
        """The waiting list becomes ``old`` and ``new``, both rising by id."""
        first = len(self.waiting) - len(old[0]) - len(new[0])
        _merge([buffer[first:] for buffer in self._waiters()], old, new)
        self.waiting[:first] = self.lookup.empty
        self.waiting_seen[:first] = 0
        self.waiting_score[:first] = 0

    def _empty(self, keys: Tensor) -> int:
        """How many places of sorted ``keys`` are empty."""
        return int((keys == self.lookup.empty).sum())

    def _let_in(self, may_evict: bool) -> None:
        """Gives free rows, or also those of owners with lower scores, to ids that wait."""
        keys, size = self.lookup.keys, self.lookup.size
        ready = (self.waiting_seen >= self.admission).nonzero().squeeze(1)
        free = self._empty(keys)
        if len(ready) == 0 or (free == 0 and not may_evict):
            return
        ready = ready[self.waiting_seen[ready].argsort(descending=True, stable=True)]
        hold = self.score * (HOLD if self.by_count else 1.0)
        if not may_evict:
            hold.fill_(torch.inf)
        hold[:free] = -torch.inf
        last = hold.kthvalue(min(len(ready), size)).values
        weak = (hold <= last).nonzero().squeeze(1)  # no other owner can lose
        rivals = torch.cat([hold[weak], self.waiting_score[ready]])
        best = rivals.argsort(descending=True, stable=True)[: len(weak)]  # owners first if equal
        enter = ready[best[best >= len(weak)] - len(weak)].sort().values  # rising by id
        if len(enter) == 0:
            return
        lost = torch.ones_like(weak, dtype=torch.bool)
        lost[best[best < len(weak)]] = False
        stay = torch.ones_like(hold, dtype=torch.bool)
        stay[weak[lost]] = False
        self.fresh = self.slots[:size][~stay]
        self.changes += 1
        owners = [keys, self.slots[:size], self.score]
        entering = [self.waiting[enter], self.fresh, self.waiting_score[enter]]
        _merge(owners, [part[stay] for part in owners], entering)
        left = torch.ones_like(self.waiting, dtype=torch.bool)
        left[: self._empty(self.waiting)] = False
        left[enter] = False
        waiters = self._waiters()
        self._rewrite([part[left] for part in waiters], [part[:0] for part in waiters])


def _merge(out: List[Tensor], old: List[Tensor], new: List[Tensor]) -> None:
    """Fills ``out`` from ``old`` and ``new``, which rise by their first parts, so that it does."""
    place = torch.searchsorted(old[0], new[0]) + torch.arange(len(new[0]), device=out[0].device)
    others = torch.ones_like(out[0], dtype=torch.bool)
    others[place] = False
    for target, kept, added in zip(out, old, new, strict=True):
        target[place] = added
        target.masked_scatter_(others, kept)
