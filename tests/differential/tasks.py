"""Tasks, futures, timeouts, task groups, locks, queues, asynchronous generators, context variables.

Each relative delay has a slot of some milliseconds to itself, so that the order in which they end is
determined. What waits for something that never comes is cancelled when all else has come to rest.
"""

import asyncio
import contextvars
import sys
from dataclasses import dataclass

from hypothesis import strategies as st

from . import running
from .generating import rarely, trees, tuples
from .running import value

current = contextvars.ContextVar("current")  # the number of the task, or of the one whose wait_for it serves


@dataclass(frozen=True)
class Do:
    """A step without arguments that matter: see the Machine's method of that name."""

    what: str
    which: int = 0


@dataclass(frozen=True)
class Spawn:
    """A new task; eager where the Python has it."""

    body: tuple
    eager: bool = False
    catch: bool = False  # go on after a cancellation


@dataclass(frozen=True)
class Many:
    """gather() or wait() for some of the tasks and futures, counted from the last."""

    how: str
    which: tuple


@dataclass(frozen=True)
class Within:
    """A body under timeout(), wait_for(), a lock, a semaphore, a task group, try/finally."""

    how: str
    body: tuple
    slots: int | None = None
    which: int = 0


@dataclass(frozen=True)
class Program:
    body: tuple
    debug: bool = False


SIMPLE = {
    "sleep0": 4, "sleep": 1, "wait": 3, "cancel": 4, "cancel_with_message": 1, "uncancel": 1, "cancelling": 1,
    "shield": 2, "future": 2, "set_result": 2, "set_exception": 1, "cancel_future": 1, "wait_future": 3,
    "done_callback": 2, "remove_done_callback": 1, "state": 1, "raise_failure": 2, "raise_cancelled": 1,
    "raise_leave": 1, "stop": 1, "set_var": 1, "event_wait": 1, "event_set": 1, "event_clear": 1,
    "put": 2, "get": 2, "join": 1, "notify": 1, "notify_all": 1, "wait_condition": 1, "iterate": 1,
    "iterate_and_leave": 1, "soon": 2, "return_": 1,
}  # fmt: skip
WITHIN = ("timeout", "wait_for", "lock", "semaphore", "group", "finally", "suppress", "condition")
MANY = ("gather", "gather_exceptions", "wait_all", "wait_first", "wait_exception", "as_completed")


def _operations():
    which = st.integers(0, 3)
    names = [name for name, weight in SIMPLE.items() for _ in range(weight)]
    leaves = st.one_of(
        st.builds(Do, st.sampled_from(names), which),
        st.builds(Do, st.sampled_from(names), which),
        st.builds(Many, st.sampled_from(MANY), tuples(which, max_size=3)),
    )

    def nested(operations):
        body = tuples(operations, max_size=5)
        slots = st.sampled_from([None, None, 0, 0, -1, 1])
        return st.one_of(
            st.builds(Spawn, body, st.booleans(), st.booleans()),
            st.builds(Spawn, body),
            st.builds(Within, st.sampled_from(WITHIN), body, slots, which),
        )

    return trees(leaves, nested, max_leaves=15)


programs = st.builds(Program, tuples(_operations(), min_size=1, max_size=8), rarely)


class Machine(running.Machine):
    """What runs such a program."""

    def __init__(self, loop, trace, program, slowness):
        super().__init__(loop, trace, program.debug)
        self.slot = running.SLOT * slowness
        self.taken = 0  # the last slot that is in use
        self.tasks, self.futures, self.callbacks = [], [], []
        self.agens = []
        self.start = loop.time()
        running.run_all(loop, self.main(program), trace.note)

    async def main(self, program):
        self.lock, self.semaphore = asyncio.Lock(), asyncio.Semaphore(2)
        self.event, self.queue, self.condition = asyncio.Event(), asyncio.Queue(1), asyncio.Condition()
        mine = asyncio.current_task()
        self.spawn(Spawn(program.body))
        slept = -1
        while slept < self.taken:
            slept = self.taken
            await running.rest(self.trace)
            await asyncio.sleep(self.start + (slept + 0.7) * self.slot - self.loop.time())
        await running.rest(self.trace)
        for _ in range(10):
            for task in sorted(asyncio.all_tasks() - {mine}, key=lambda task: task.get_name()):
                self.note("stuck", task.get_name())
                task.cancel()
            await running.rest(self.trace)
        await self.loop.shutdown_asyncgens()
        for task in filter(None, self.tasks):
            self.note("ended", *self.state_of(task))

    def delay(self, slots):
        """The seconds to a slot that nobody else has."""
        if slots is None or slots <= 0:
            return slots
        now = (self.loop.time() - self.start) / self.slot
        self.taken = max(self.taken + 1, int(now) + 2)
        return self.start + self.taken * self.slot - self.loop.time()

    def state_of(self, future):
        if not future.done():
            return ("pending",)
        if future.cancelled():
            return ("cancelled",)
        exc = future.exception()
        return ("failed", running.told(exc)) if exc else ("result", str(future.result()))

    def known(self, which):
        things = [thing for thing in self.tasks + self.futures if thing is not None]
        return things[-1 - which % len(things)] if things else None

    def later(self, which):
        """What the current task can wait for without waiting for itself: later tasks, and futures."""
        thing = self.known(which)
        if thing in self.futures or (thing in self.tasks and self.tasks.index(thing) > current.get()):
            return thing
        return None

    # Tasks

    def spawn(self, it):
        number = len(self.tasks)
        coro = self.body(number, it)
        if it.eager and sys.version_info >= (3, 12):
            self.tasks.append(None)
            task = asyncio.Task(coro, loop=self.loop, name=f"{number:02}", eager_start=True)
            self.tasks[number] = task
        else:
            task = self.loop.create_task(coro, name=f"{number:02}")
            self.tasks.append(task)
        return task

    async def body(self, number, it):
        current.set(number)
        self.note(number, "starts", value.get())
        try:
            result = await self.perform(number, it.body)
            self.note(number, "returns", result)
            return result
        except asyncio.CancelledError as exc:
            self.note(number, "cancelled", exc.args)
            if not it.catch:
                raise
            await asyncio.sleep(0)
            self.note(number, "goes on")
        except BaseException as exc:
            self.note(number, "fails", running.told(exc))
            raise

    async def perform(self, number, body):
        for step in body:
            result = await getattr(self, type(step).__name__.lower() + "_")(number, step)
            self.note(number, "did", type(step).__name__, getattr(step, "what", ""), result)
            if isinstance(step, Do) and step.what == "return_":
                return step.which
        return None

    async def spawn_(self, number, it):
        self.spawn(it)

    async def do_(self, number, it):
        result = getattr(self, it.what)(it.which)
        return await result if asyncio.iscoroutine(result) else result

    async def many_(self, number, it):
        things = [thing for thing in dict.fromkeys(map(self.later, it.which)) if thing is not None]
        if it.how.startswith("gather"):
            return await asyncio.gather(*things, return_exceptions=it.how == "gather_exceptions")
        if not things:
            return None
        if it.how == "as_completed":
            things = [thing for thing in things if not thing.done()]  # those would come in any order
            return [await each for each in asyncio.as_completed(things)]
        when = {"all": "ALL_COMPLETED", "first": "FIRST_COMPLETED", "exception": "FIRST_EXCEPTION"}[
            it.how[5:]
        ]
        done, pending = await asyncio.wait(things, return_when=when)
        return len(done), len(pending)

    async def within_(self, number, it):
        return await getattr(self, "in_" + it.how)(number, it)

    async def in_timeout(self, number, it):
        try:
            async with asyncio.timeout(self.delay(it.slots)) as scope:
                if it.which == 3:
                    scope.reschedule(None)
                await self.perform(number, it.body)
        except TimeoutError:
            return "timed out", scope.expired()

    async def in_wait_for(self, number, it):
        try:
            return await asyncio.wait_for(self.perform(number, it.body), self.delay(it.slots))
        except TimeoutError:
            return "timed out"

    async def in_lock(self, number, it):
        async with self.lock:
            return await self.perform(number, it.body)

    async def in_semaphore(self, number, it):
        async with self.semaphore:
            return await self.perform(number, it.body)

    async def in_condition(self, number, it):
        async with self.condition:
            return await self.perform(number, it.body)

    async def in_group(self, number, it):
        async with asyncio.TaskGroup() as group:
            # One child only: a group cancels its tasks in the order of a set.
            number = len(self.tasks)
            self.tasks.append(group.create_task(self.body(number, Spawn(it.body)), name=f"{number:02}"))
            await asyncio.sleep(0)
            if it.which == 3:
                raise running.Failure("group")

    async def in_finally(self, number, it):
        try:
            await self.perform(number, it.body)
        finally:
            await asyncio.sleep(0)
            self.note(number, "finally")

    async def in_suppress(self, number, it):
        try:
            await self.perform(number, it.body)
        except Exception as exc:
            return running.told(exc)

    # What a Do does

    async def sleep0(self, which):
        for _ in range(which + 1):
            await asyncio.sleep(0)

    async def sleep(self, which):
        await asyncio.sleep(self.delay(1))

    async def wait(self, which):
        task = self.later(which)
        if task is not None:
            return await task

    async def shield(self, which):
        task = self.later(which)
        if task is not None:
            return await asyncio.shield(task)

    def cancel(self, which):
        task = self.known(which)
        return task.cancel() if task is not None else None

    def cancel_with_message(self, which):
        task = self.known(which)
        return task.cancel("message") if task is not None else None

    def uncancel(self, which):
        return asyncio.current_task().uncancel()

    def cancelling(self, which):
        return asyncio.current_task().cancelling(), running.scrub(asyncio.current_task().get_name())

    def state(self, which):
        task = self.known(which)
        return self.state_of(task) if task is not None else None

    def future(self, which):
        self.futures.append(self.loop.create_future())

    def some_future(self, which):
        return self.futures[-1 - which % len(self.futures)] if self.futures else None

    def set_result(self, which):
        future = self.some_future(which)
        if future is not None and not future.done():
            future.set_result(which)

    def set_exception(self, which):
        future = self.some_future(which)
        if future is not None and not future.done():
            future.set_exception(running.Failure("future"))
            future.exception()  # retrieved: when a future goes is not the loop's business

    def cancel_future(self, which):
        future = self.some_future(which)
        return future.cancel() if future is not None else None

    async def wait_future(self, which):
        future = self.some_future(which)
        if future is not None:
            return await future

    def callback(self, future):
        self.note("callback", self.state_of(future), value.get())

    def done_callback(self, which):
        thing = self.known(which)
        if thing is not None:
            thing.add_done_callback(self.callback)

    def remove_done_callback(self, which):
        thing = self.known(which)
        return thing.remove_done_callback(self.callback) if thing is not None else None

    def raise_failure(self, which):
        raise running.Failure(which)

    def raise_cancelled(self, which):
        raise asyncio.CancelledError(which)

    def raise_leave(self, which):
        if which == 0:
            raise running.Leave(which)

    def stop(self, which):
        self.loop.stop()

    def set_var(self, which):
        value.set(which + 1)

    def soon(self, which):
        self.loop.call_soon(self.trace.note, "program", "soon", which, value.get())

    def return_(self, which):
        return which

    async def event_wait(self, which):
        return await self.event.wait()

    def event_set(self, which):
        self.event.set()

    def event_clear(self, which):
        self.event.clear()

    async def put(self, which):
        await self.queue.put(which)

    async def get(self, which):
        item = await self.queue.get()
        self.queue.task_done()
        return item

    async def join(self, which):
        await self.queue.join()

    async def wait_condition(self, which):
        async with self.condition:
            return await self.condition.wait()

    async def notify(self, which):
        async with self.condition:
            self.condition.notify(which)

    async def notify_all(self, which):
        async with self.condition:
            self.condition.notify_all()

    async def count(self, number):
        try:
            for item in range(number):
                yield item
                await asyncio.sleep(0)
        finally:
            await asyncio.sleep(0)
            self.note("generator ends")

    async def iterate(self, which):
        return [item async for item in self.count(which)]

    async def iterate_and_leave(self, which):
        """What is left of a generator is closed by the loop's hook."""
        async for item in self.count(which + 1):
            return item


def machine(loop, trace, program, slowness):
    contextvars.copy_context().run(Machine, loop, trace, program, slowness)
