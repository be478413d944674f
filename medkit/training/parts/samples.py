"""Training samples that depend only on their number, so that a resumed training continues with the same ones."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any


def seed_of(*numbers: int | str) -> int:
    """Return a seed below 2^32 for a combination of numbers and words, the same on every machine.

    Similar combinations have unrelated seeds.
    """
    return int.from_bytes(hashlib.blake2s(repr(numbers).encode(), digest_size=4).digest(), "big")


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch (all devices)."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of the CPU for a block and restore them afterwards."""
    import numpy as np
    import torch

    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class Samples:
    """Map-style dataset whose sample `n` is a pure function of `(seed, n)`, for any number of loader workers.

    Sample `n` is made from item `n` of an endless list that contains every item once per round; each round has another
    order. The item is copied, `n` is added under `sample`, and `transform` is applied. The random state of the
    transform, and meanwhile that of the CPU's global generators, is set from `(seed, n)`.

    Args:
        data: items, such as the dicts of a datalist.
        transform: a MONAI transform or any callable on an item; None returns the items.
        seed: seed of order and transforms.
        length: number of samples, for validation; None: endless, to be read through `SampleNumbers`.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[dict[str, Any]], Any] | None = None,
        seed: int = 0,
        length: int | None = None,
    ) -> None:
        if not data:
            raise ValueError("Samples: no items in data")
        self.data = data
        self.transform = transform
        self.seed = seed
        self.length = length

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError(
                "Samples without a length are endless: read them through medkit.training.SampleNumbers as sampler"
            )
        return self.length

    def __getitem__(self, n: int) -> Any:
        if self.length is not None and n >= self.length:
            raise IndexError(n)
        round_, place = divmod(n, len(self.data))
        item = copy.deepcopy(dict(self.data[_order(self.seed, round_, len(self.data))[place]]))
        item["sample"] = n
        if self.transform is None:
            return item
        seed = seed_of(self.seed, n)
        if hasattr(self.transform, "set_random_state"):
            self.transform.set_random_state(seed=seed)
        with _seeded(seed):
            return self.transform(item)


@functools.lru_cache(maxsize=4)
def _order(seed: int, round_: int, count: int) -> tuple[int, ...]:
    """Return the order of the items in a round."""
    order = list(range(count))
    random.Random(seed_of("order", seed, round_)).shuffle(order)
    return tuple(order)


class UnpairedSamples:
    """Samples of several kinds of unrelated items: sample `n` has sample `n` of each kind, under the kind's name.

    Each kind has its own number of items and its own order.

    Args:
        kinds: name of a kind -> its items.
        transform: as that of `Samples`, for items of all kinds.
        key: key of the value that is taken from each item.
        seed: seed of orders and transforms.
    """

    def __init__(
        self,
        kinds: Mapping[str, Sequence[Mapping[str, Any]]],
        transform: Callable[[dict[str, Any]], Any] | None = None,
        key: str = "image",
        seed: int = 0,
    ) -> None:
        self.key = key
        self.kinds = {name: Samples(items, transform, seed_of(seed, name)) for name, items in kinds.items()}

    def __getitem__(self, n: int) -> dict[str, Any]:
        return {name: samples[n][self.key] for name, samples in self.kinds.items()}


class SampleNumbers:
    """Sampler that counts without end from `start`, which medkit sets when a training resumes."""

    def __init__(self, start: int = 0) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        n = self.start
        while True:
            yield n
            n += 1
