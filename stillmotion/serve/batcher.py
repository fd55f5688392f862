"""A network that several requests share: what waits for it goes through it together."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from stillmotion.networks import Inputs
from stillmotion.predict import Predictor
from stillmotion.serve.counters import Counters

Result = TypeVar("Result")


@dataclass(frozen=True)
class Ran:
    """What a network said of one sample.

    Args:
        logits: Calibrated, (K,).
        seconds: That its batch took.
        batch: Samples in it.
    """

    logits: NDArray[np.float32]
    seconds: float
    batch: int


@dataclass
class _Waiting:
    inputs: Inputs
    done: "asyncio.Future[Ran]"

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(x.shape for x in self.inputs.values())


class Batcher:
    """Runs a network in a thread of its own.

    While it is busy, what comes waits and then goes through together. When it is idle, and others are being read
    (`coming`), it waits for them for a moment; alone nobody waits.

    Args:
        predictor: Has the network.
        most: Samples in a batch.
        wait: Seconds.
        counters: Counts batches.
    """

    def __init__(self, predictor: Predictor, most: int, wait: float, counters: Counters) -> None:
        self.predictor, self.most, self.wait, self.counters = predictor, most, wait, counters
        self.coming = 0
        self._thread = ThreadPoolExecutor(1, "network")
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._task = asyncio.ensure_future(self._work())

    async def __call__(self, inputs: Inputs) -> Ran:
        """Runs it on one sample."""
        waiting = _Waiting(inputs, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(waiting)
        return await waiting.done

    async def run(self, function: Callable[[], Result]) -> Result:
        """Calls something else that needs the network, when it is idle."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def close(self) -> None:
        """Ends the thread."""
        self._task.cancel()
        self._thread.shutdown(cancel_futures=True)

    async def _work(self) -> None:
        while True:
            batch = [w for w in await self._gather() if not w.done.done()]  # not those that wait no longer
            for shapes in dict.fromkeys(w.shapes for w in batch):
                await self._answer([w for w in batch if w.shapes == shapes])

    async def _gather(self) -> list[_Waiting]:
        batch = [await self._queue.get()]
        end = asyncio.get_running_loop().time() + self.wait
        while len(batch) < self.most:
            if not self._queue.empty():
                batch.append(self._queue.get_nowait())
                continue
            if not self.coming:
                break
            try:
                async with asyncio.timeout_at(end):
                    batch.append(await self._queue.get())
            except TimeoutError:
                break
        return batch

    async def _answer(self, batch: list[_Waiting]) -> None:
        try:
            logits, seconds = await self.run(lambda: self._logits([w.inputs for w in batch]))
        except Exception as error:  # told to each; the next batch may be better
            for waiting in batch:
                if not waiting.done.done():
                    waiting.done.set_exception(error)
            return
        self.counters.batch_size.observe(len(batch))
        for waiting, row in zip(batch, logits, strict=True):
            if not waiting.done.done():
                waiting.done.set_result(Ran(row, seconds, len(batch)))

    def _logits(self, samples: Sequence[Inputs]) -> tuple[NDArray[np.float32], float]:
        began = time.perf_counter()
        logits = run_batch(self.predictor, samples)
        return logits, time.perf_counter() - began


def run_batch(predictor: Predictor, samples: Sequence[Inputs]) -> NDArray[np.float32]:
    """Calibrated logits (B, K) of samples of the same shapes, at once where the network can."""
    together = getattr(predictor.network, "batch", None)
    logits = together(samples) if together else np.stack([predictor.network(inputs) for inputs in samples])
    return predictor.task.calibrated(logits)
