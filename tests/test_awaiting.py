"""Which coroutines a task runs, and which task waits for it: hotloop._observing.awaiting."""

import asyncio
import sys
import types

import helpers
import pytest
from hotloop._observing import awaiting


def names(task):
    return [each.name.rpartition(".")[2] for each in awaiting.coroutines(task)]


async def cancelled(*tasks):
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def sleeping():
    await asyncio.sleep(60)


async def outer():
    await sleeping()


async def test_coroutines_are_listed_from_the_outermost_to_the_innermost_with_their_lines(loop):
    task = loop.create_task(outer())
    await helpers.iterations(2)
    first, second, last = awaiting.coroutines(task)
    assert (first.name, second.name, last.name) == ("outer", "sleeping", "sleep")
    assert (first.file, second.file) == (__file__, __file__)
    assert last.file == asyncio.sleep.__code__.co_filename
    assert first.line == outer.__code__.co_firstlineno + 1
    assert second.line == sleeping.__code__.co_firstlineno + 1
    assert str(first) == f"outer {__file__}:{first.line}"
    await cancelled(task)
    assert awaiting.coroutines(task) == []
    assert awaiting.name_of(task) == "outer"


async def test_a_task_that_has_not_started_is_at_its_first_line(loop):
    task = loop.create_task(outer())
    assert [(each.name, each.line) for each in awaiting.coroutines(task)] == [
        ("outer", outer.__code__.co_firstlineno)
    ]
    await cancelled(task)


async def test_the_current_task_is_where_it_asks(loop):
    found = []

    def ask():
        found.extend(awaiting.coroutines(asyncio.current_task()))

    async def inner():
        ask()

    async def generator():
        await inner()
        yield

    async def main():
        async for _ in generator():
            pass

    await loop.create_task(main())
    assert [each.name.rpartition(".")[2] for each in found] == ["main", "generator", "inner"]
    assert found[-1].line == inner.__code__.co_firstlineno + 1


async def test_async_generators_and_wrapped_coroutines_are_followed(loop):
    async def generator():
        await sleeping()
        yield

    async def iterates():
        async for _ in generator():
            pass

    async def closes():
        made = closing()
        await anext(made)
        await made.aclose()

    async def closing():
        try:
            yield
        finally:
            await sleeping()

    async def with_default():
        await anext(generator(), None)

    class Wrapper:
        def __await__(self):
            return sleeping().__await__()

    class Generator:
        def __await__(self):
            yield from asyncio.sleep(60).__await__()

    async def wraps():
        await Wrapper()

    async def yields():
        await Generator()

    @types.coroutine
    def by_generator():
        yield from asyncio.sleep(60).__await__()

    async def runs():
        await by_generator()

    tasks = [loop.create_task(each()) for each in (iterates, closes, with_default, wraps, yields, runs)]
    await helpers.iterations(3)
    assert [names(task) for task in tasks] == [
        ["iterates", "generator", "sleeping", "sleep"],
        ["closes", "closing", "sleeping", "sleep"],
        ["with_default", "generator", "sleeping", "sleep"],
        ["wraps", "sleeping", "sleep"],
        ["yields", "__await__", "sleep"],
        ["runs", "by_generator", "sleep"],
    ]
    await cancelled(*tasks)


async def test_awaitables_that_tell_nothing_or_raise_end_the_list(loop):
    class Hostile:
        def __init__(self, error):
            self.error = error

        def __await__(self):
            return self

        def __iter__(self):
            return self

        def __next__(self):
            return None

        def throw(self, error, *_):
            raise error

        def __getattr__(self, name):
            raise self.error(name)

    class Circular(Hostile):
        def __getattr__(self, name):
            return self

    async def awaits(what):
        await what

    tasks = [
        loop.create_task(awaits(what))
        for what in (Hostile(AttributeError), Hostile(ValueError), Circular(None), loop.create_future())
    ]
    await helpers.iterations(2)
    assert [names(task) for task in tasks] == [["awaits"]] * 4
    await cancelled(*tasks)


@pytest.mark.parametrize("python", [False, True], ids=["c", "python"])
@pytest.mark.parametrize("way", ["await", "group", "gather", "shield", "wait", "wait_for", "as_completed"])
async def test_the_awaiting_task_is_found(loop, way, python):
    if python:
        if sys.version_info >= (3, 14) and way in ("group", "wait_for"):
            pytest.skip("asyncio knows no current task of this class")
        loop.set_task_factory(lambda loop, coro, **options: asyncio.tasks._PyTask(coro, loop=loop, **options))

    async def waits(task):
        match way:
            case "await":
                await task
            case "gather":
                await asyncio.gather(task, sleeping())
            case "shield":
                await asyncio.shield(task)
            case "wait":
                await asyncio.wait([task])
            case "wait_for":
                await asyncio.wait_for(task, 60)
            case "as_completed":
                for each in asyncio.as_completed([task]):
                    await each

    task = None

    async def groups():
        nonlocal task
        async with asyncio.TaskGroup() as group:
            task = group.create_task(outer())

    if way == "group":
        waiting = loop.create_task(groups())
    else:
        task = loop.create_task(outer())
        waiting = loop.create_task(waits(task))
    await helpers.iterations(4)
    assert awaiting.awaiting_task(task) is waiting
    assert awaiting.awaiting_task(waiting) is None
    await cancelled(waiting, *([] if way == "group" else [task]))
    assert awaiting.awaiting_task(task) is None


async def test_callbacks_that_do_not_await_are_not_taken_for_tasks_that_do(loop):
    other, task = loop.create_task(outer()), loop.create_task(outer())

    class Raises:
        def __getattr__(self, name):
            raise ValueError(name)

        def __call__(self, *_):
            pass

    def refers(_):
        return other

    task.add_done_callback(other.remove_done_callback)
    task.add_done_callback(refers)
    task.add_done_callback(Raises())
    task.add_done_callback(print.__class__)
    await helpers.iterations(2)
    assert awaiting.awaiting_task(task) is None
    for callback in (other.remove_done_callback, print.__class__):
        task.remove_done_callback(callback)
    await cancelled(other, task)


async def test_futures_between_two_tasks_are_followed(loop):
    async def waits(task):
        await asyncio.gather(asyncio.gather(asyncio.gather(task)))

    task = loop.create_task(outer())
    waiting = loop.create_task(waits(task))
    await helpers.iterations(3)
    assert awaiting.awaiting_task(task) is waiting
    await cancelled(waiting, task)


async def test_what_a_task_factory_makes_need_not_be_a_task(loop):
    class Future(asyncio.Future):
        pass

    class Raises(asyncio.Future):
        def get_coro(self):
            raise ValueError

    for made in (Future(loop=loop), Raises(loop=loop)):
        assert awaiting.coroutines(made) == []
        assert awaiting.name_of(made).endswith(type(made).__name__)
        assert awaiting.awaiting_task(made) is None
