"""Arguments of the methods of classes in Rust, by position and by name, right and wrong."""

import contextvars

import helpers
import pytest

pytestmark = pytest.mark.hotloop_only


class Name(str):
    """A name that is no plain string."""

    __slots__ = ()


@pytest.mark.parametrize("name", ["context", "".join(["con", "text"]), Name("context")])
def test_a_keyword_by_any_string(loop, name):
    context, ran = contextvars.copy_context(), []
    variable = contextvars.ContextVar("variable", default="none")
    context.run(variable.set, "ours")
    for call in (loop.call_soon, loop.call_soon_threadsafe):
        call(lambda: ran.append(variable.get()), **{name: context})
    loop.call_later(0, lambda: ran.append(variable.get()), **{name: context})
    helpers.run_once(loop)
    assert ran == ["ours"] * 3


WRONG = {
    "missing": lambda loop: loop.call_soon(),
    "missing second": lambda loop: loop.call_later(1),
    "missing by name": lambda loop: loop.add_reader(fd=1),
    "unexpected": lambda loop: loop.call_soon(int, nonsense=1),
    "twice": lambda loop: loop.call_soon(int, callback=int),
    "too many": lambda loop: loop.sock_recv(1, 2, 3),
    "surrogate": lambda loop: loop.call_soon(int, **{"\ud800": 1}),
    "surrogate alone": lambda loop: loop.remove_reader(**{"\ud800": 1}),
    "none": lambda loop: loop.call_at(None, int),
    "by name alone": lambda loop: loop.is_closed(nonsense=1),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments(loop, wrong):
    with pytest.raises(TypeError):
        WRONG[wrong](loop)


@helpers.over_unix
def test_arguments_by_name(loop, pair):
    ran = []
    loop.call_soon(callback=lambda: ran.append(1))
    loop.call_later(delay=0, callback=lambda: ran.append(2))
    loop.call_at(when=0, callback=lambda: ran.append(3))
    helpers.run_once(loop)
    assert sorted(ran) == [1, 2, 3]
    pair[1].send(b"hello")
    assert loop.run_until_complete(loop.sock_recv(n=5, sock=pair[0])) == b"hello"
    loop.add_reader(fd=pair[0], callback=int)
    assert loop.remove_reader(fd=pair[0]) is True
