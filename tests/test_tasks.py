"""create_task and its keywords, task factories, eager tasks; tasks that fail, leave or are dropped."""

import asyncio
import contextlib
import contextvars
import gc
import weakref

import helpers
import pytest

variable = contextvars.ContextVar("variable", default=None)


async def value(result=None):
    await asyncio.sleep(0)
    return result


async def test_a_task_is_asyncios(loop):
    task = loop.create_task(value(1))
    assert type(task) is asyncio.Task
    assert task.get_loop() is loop
    assert task in asyncio.all_tasks()
    assert await task == 1
    assert task not in asyncio.all_tasks(loop)


async def test_a_task_has_a_name(loop):
    named, unnamed = loop.create_task(value(), name="Ada"), loop.create_task(value())
    assert named.get_name() == "Ada"
    assert unnamed.get_name().startswith("Task-")
    assert loop.create_task(value(), name=7).get_name() == "7"
    await named
    await unnamed


async def test_a_task_runs_in_the_context_it_is_given(loop):
    context = contextvars.copy_context()

    async def change():
        before = variable.get()
        variable.set("task")
        await asyncio.sleep(0)
        return before, variable.get()

    context.run(variable.set, "given")
    assert await loop.create_task(change(), context=context) == ("given", "task")
    assert context[variable] == "task"
    assert variable.get() is None


async def test_a_task_without_a_context_gets_a_copy(loop):
    async def change():
        variable.set("task")
        await asyncio.sleep(0)
        return variable.get()

    assert await loop.create_task(change()) == "task"
    assert variable.get() is None


async def test_wrong_arguments_are_refused(loop):
    with pytest.raises(TypeError):
        loop.create_task(42)
    with pytest.raises(TypeError):
        loop.create_task()
    coroutine = value()
    with pytest.raises(TypeError):
        loop.create_task(coroutine, nonsense=1)
    coroutine.close()


@pytest.mark.asyncio_from(3, 14)
async def test_an_eager_task_starts_at_once(loop):
    steps = []

    async def work():
        steps.append(1)
        await asyncio.sleep(0)
        steps.append(2)
        return asyncio.current_task()

    task = loop.create_task(work(), eager_start=True)
    assert steps == [1]
    lazy = loop.create_task(work(), eager_start=False)
    assert steps == [1]
    assert await task is task
    await lazy


@pytest.mark.asyncio_from(3, 12)
async def test_an_eager_task_that_does_not_wait_never_meets_the_loop(loop):
    async def work():
        return asyncio.current_task()

    loop.set_task_factory(asyncio.eager_task_factory)
    task = asyncio.create_task(work(), name="eager")
    assert task.done()
    assert task.result() is task
    assert task.get_name() == "eager"
    with pytest.raises(LookupError):
        await asyncio.create_task(fail())
    loop.set_task_factory(None)


async def fail():
    raise LookupError("failed")


# Task factories


def test_a_task_factory_makes_the_tasks(loop):
    made = []

    class Task(asyncio.Task):
        pass

    def factory(loop, coro, **kwargs):
        task = Task(coro, loop=loop, **kwargs)
        made.append((loop, task))
        return task

    assert loop.get_task_factory() is None
    loop.set_task_factory(factory)
    assert loop.get_task_factory() is factory

    async def main():
        task = loop.create_task(value(3), name="named")
        assert isinstance(task, Task)
        assert task.get_name() == "named"
        assert await task == 3
        context = contextvars.copy_context()
        context.run(variable.set, "given")

        async def look():
            return variable.get()

        assert await loop.create_task(look(), context=context) == "given"

    loop.run_until_complete(main())
    assert len(made) == 3
    assert all(seen is loop for seen, _ in made)
    loop.set_task_factory(None)
    assert loop.get_task_factory() is None


def test_a_task_factory_must_be_callable(loop):
    with pytest.raises(TypeError, match="task factory must be a callable or None"):
        loop.set_task_factory(42)


def test_a_task_factory_that_fails(loop):
    def factory(loop, coro, **kwargs):
        raise ValueError("no task today")

    loop.set_task_factory(factory)
    coroutine = value()
    with pytest.raises(ValueError, match="no task today"):
        loop.create_task(coroutine)
    coroutine.close()
    loop.set_task_factory(None)
    assert loop.run_until_complete(value(1)) == 1


# Order


async def test_tasks_take_turns(loop):
    steps = []

    async def work(name):
        for step in range(3):
            steps.append((step, name))
            await asyncio.sleep(0)

    await asyncio.gather(*(work(name) for name in range(5)))
    assert steps == [(step, name) for step in range(3) for name in range(5)]


async def test_done_callbacks_run_soon_in_their_order_and_context(loop):
    ran = []
    future = loop.create_future()
    context = contextvars.copy_context()
    context.run(variable.set, "given")
    future.add_done_callback(lambda future: ran.append((1, variable.get())))
    future.add_done_callback(lambda future: ran.append((2, variable.get())), context=context)
    future.set_result(None)
    assert ran == []
    await asyncio.sleep(0)
    assert ran == [(1, None), (2, "given")]


async def test_many_tasks(loop):
    async def work(number):
        await asyncio.sleep(0)
        future = loop.create_future()
        loop.call_soon(future.set_result, number)
        return await future

    assert await asyncio.gather(*map(work, range(5000))) == list(range(5000))


# Cancellation


async def test_cancelling_a_sleeping_task(loop):
    async def work():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError as error:
            return error.args

    task = loop.create_task(work())
    await asyncio.sleep(0)
    assert task.cancel("enough")
    assert await task == ("enough",)


async def test_cancelling_a_task_before_it_starts(loop):
    steps = []

    async def work():
        steps.append(1)

    task = loop.create_task(work())
    await helpers.cancel(task)
    assert steps == []


async def test_a_task_group_cancels_the_others(loop):
    cancelled = []

    async def wait():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    async def run_group():
        async with asyncio.TaskGroup() as group:
            group.create_task(wait())
            group.create_task(wait())
            await asyncio.sleep(0)
            group.create_task(fail())

    with pytest.raises(ExceptionGroup) as caught:
        await run_group()
    assert [type(error) for error in caught.value.exceptions] == [LookupError]
    assert cancelled == [1, 1]


async def test_a_cancelled_sleep_leaves_no_timer_to_speak_of(loop):
    task = loop.create_task(asyncio.sleep(60, "slept"))
    await asyncio.sleep(0)
    await helpers.cancel(task)


# What goes wrong in tasks


def test_a_task_that_is_dropped_unfinished_is_reported(loop, reports):
    async def main():
        loop.create_task(lost())
        await asyncio.sleep(0)

    async def lost():
        await asyncio.get_running_loop().create_future()

    loop.run_until_complete(main())
    gc.collect()
    report = reports.take()
    assert report["message"] == "Task was destroyed but it is pending!"
    assert type(report["task"]) is asyncio.Task


def test_an_exception_that_nobody_retrieves_is_reported(loop, reports):
    async def main():
        loop.create_task(fail())
        await helpers.iterations(2)

    loop.run_until_complete(main())
    gc.collect()
    report = reports.take()
    assert report["message"] == "Task exception was never retrieved"
    assert isinstance(report["exception"], LookupError)


def test_a_done_callback_that_fails_is_reported(loop, reports):
    async def main():
        ran = []
        future = loop.create_future()
        future.add_done_callback(lambda future: 1 / 0)
        future.add_done_callback(ran.append)
        future.set_result(1)
        await helpers.iterations(2)
        assert ran == [future]

    loop.run_until_complete(main())
    assert isinstance(reports.take()["exception"], ZeroDivisionError)


@pytest.mark.parametrize("kind", [helpers.Leave, helpers.Interrupt])
def test_a_task_that_leaves_the_loop_can_be_finished_later(loop, kind):
    async def leave():
        raise kind

    async def main():
        task = loop.create_task(leave())
        try:
            await task
        except kind:
            return "caught"

    task = loop.create_task(main())
    with pytest.raises(kind):
        loop.run_until_complete(task)
    assert not task.done()
    assert loop.run_until_complete(task) == "caught"


async def test_a_task_that_yields_nonsense(loop):
    class Odd:
        def __await__(self):
            yield 42

    async def work():
        await Odd()

    with pytest.raises(RuntimeError, match="Task got bad yield: 42"):
        await loop.create_task(work())


async def test_a_future_of_another_loop_is_refused(loop, new_loop):
    future = new_loop().create_future()

    async def work():
        await future

    with pytest.raises(RuntimeError, match="attached to a different loop"):
        await loop.create_task(work())


# Memory


def test_a_finished_task_is_freed_at_once(loop):
    gc.disable()
    try:
        task = loop.create_task(value())
        gone = weakref.ref(task)
        loop.run_until_complete(task)
        del task
        loop.run_until_complete(value())
        assert gone() is None
    finally:
        gc.enable()


def test_a_failed_task_is_freed_without_the_collector(loop):
    async def main():
        task = loop.create_task(fail())
        with contextlib.suppress(LookupError):
            await task
        gone = weakref.ref(task)
        del task
        return gone

    gc.collect()
    gc.disable()
    try:
        gone = loop.run_until_complete(main())
        assert gone() is None
    finally:
        gc.enable()


async def test_the_current_task(loop):
    assert asyncio.current_task().get_loop() is loop
    seen = []
    loop.call_soon(lambda: seen.append(asyncio.current_task()))
    await helpers.iterations(2)
    assert seen == [None]


@pytest.mark.parametrize("base", [object, asyncio.Future])
async def test_a_future_of_the_programs_gets_handles_for_the_wake_ups_of_tasks(loop, base):
    handles = []

    class Ready(base):
        """A future that calls each callback at once."""

        _asyncio_future_blocking = False
        _loop = loop

        def get_loop(self):
            return loop

        def add_done_callback(self, function, *, context=None):
            handles.append(loop.call_soon(function, self, context=context))

        def done(self):
            return True

        def result(self):
            return 5

        def __await__(self):
            self._asyncio_future_blocking = True
            yield self
            return self.result()

    ready = Ready() if base is object else Ready(loop=loop)

    async def wait():
        return await ready

    # A task in C, whose wake-up the future is asked to call.
    assert await asyncio.create_task(wait()) == 5
    assert [isinstance(handle, asyncio.Handle) for handle in handles] == [True]
    assert not handles[0].cancelled()
