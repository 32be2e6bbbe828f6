"""What the strategies share that make up programs."""

from hypothesis import strategies as st

rarely = st.sampled_from([False] * 3 + [True])


def tuples(elements, **sizes):
    """As st.lists(), but tuples."""
    return st.lists(elements, **sizes).map(tuple)


def trees(leaves, nested, max_leaves):
    """Leaves, and what *nested* makes of a strategy for what is within it."""
    inner = st.recursive(st.one_of(leaves, nested(leaves)), nested, max_leaves=max_leaves)
    return st.one_of(leaves, nested(inner))
