"""The reader of hostile JSON, without a server around it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.server.body import MOST_DEPTH, parse
from modules.server.errors import ApiError, answer

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), values, max_size=5), st.sampled_from(["utf-8", "utf-16", "utf-32"]), st.booleans())
def test_every_object_is_read_as_json_reads_it(body, encoding, ascii_only):
    assert parse(json.dumps(body, ensure_ascii=ascii_only).encode(encoding)) == body


@given(st.binary(max_size=200) | st.text(alphabet='[]{}",:\\ \n0eE+-.Naninfty', max_size=60).map(str.encode))
def test_any_bytes_are_an_object_or_a_small_refusal(data):
    try:
        assert isinstance(parse(data), dict)
    except ApiError as error:
        assert error.status in (400, 422) and len(answer(error).body) <= 4096


@given(st.integers(0, MOST_DEPTH * 2), st.text(alphabet='[]{}"\\', max_size=20))
def test_depth_counts_brackets_but_not_those_inside_text(depth, text):
    body = ('{"a":' * depth + json.dumps(text) + "}" * depth).encode()
    if depth == 0:
        return
    if depth <= MOST_DEPTH:
        assert isinstance(parse(body), dict)
    else:
        with pytest.raises(ApiError, match="nested"):
            parse(body)
