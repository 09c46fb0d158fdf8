import io
import logging

import pytest

from modules.runtime import logs


@pytest.fixture
def written():
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    logs.set_up("INFO", stream, secrets=["s3cret-value"])
    yield stream
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(False)


def test_a_record_is_one_line_whatever_is_in_it(written):
    logging.getLogger("test").info("prompt %r and %s", "a\nb", "x\n12:00:00 ERROR forged\r\x1b[2J\u202e")
    (line,) = written.getvalue().splitlines()
    assert "\\n12:00:00 ERROR forged\\r\\x1b[2J\\u202e" in line
    assert " INFO test: prompt " in line


def test_a_traceback_is_indented_and_escaped(written):
    try:
        raise ValueError("bad\n12:00:00 ERROR forged\x1b[31m")
    except ValueError:
        logging.getLogger("test").exception("it failed")
    first, *rest = written.getvalue().splitlines()
    assert first.endswith("ERROR test: it failed")
    assert len(rest) >= 3 and all(line.startswith("    ") for line in rest)
    assert "\x1b" not in written.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        "GET /?token=s3cret&x=1",
        "GET /easel?x=1&access_token=s3cret",
        "headers: {'authorization': 'Bearer s3cret'}",
        "Authorization: Basic s3cret",
        "cookie: easel=s3cret; path=/",
        "sent with bearer s3cret",
        "the value s3cret-value of the link",
        "401 for hf_s3cretS3CRETs3cret",
    ],
)
def test_secrets_are_masked(written, text):
    logging.getLogger("test").warning("%s", text)
    assert "s3cret" not in written.getvalue() and logs.MASK in written.getvalue()


def test_a_prompt_is_not_a_secret(written):
    logging.getLogger("test").info("a keyboard with a golden key, cookies, a token of love")
    assert written.getvalue().endswith("a keyboard with a golden key, cookies, a token of love\n")
