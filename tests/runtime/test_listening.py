import socket
from contextlib import closing

import pytest

from modules.runtime import listening
from modules.runtime.flags import FlagError, parse
from modules.runtime.listening import ListenError, address_of, open_listener, passwords_from, token_from, with_token


def test_a_taken_port_is_passed_over_unless_it_was_asked_for(monkeypatch):
    with closing(open_listener(parse(["--port", "0"]))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=f"port {port} on 127.0.0.1 is taken by another program; "):
            open_listener(parse(["--port", str(port)]))
        monkeypatch.setattr(listening, "DEFAULT_PORT", port)
        with closing(open_listener(parse([]))) as next_one:
            assert port < next_one.getsockname()[1] < port + listening.PORTS_TO_TRY
        monkeypatch.setattr(listening, "PORTS_TO_TRY", 1)
        with pytest.raises(ListenError, match="all taken; name a free one with --port"):
            open_listener(parse([]))


def test_a_port_that_was_just_left_is_free():
    with closing(open_listener(parse(["--port", "0"]))) as first:
        port = first.getsockname()[1]
        with closing(socket.create_connection(("127.0.0.1", port))):
            answer, _ = first.accept()
            answer.close()  # we close first: this port goes through TIME_WAIT
    with closing(open_listener(parse(["--port", str(port)]))) as again:
        assert again.getsockname()[1] == port


@pytest.mark.parametrize("host", ["192.0.2.77", "::ffff:zz", "a" * 300, "-"])
def test_an_address_that_is_not_ours(host):
    with pytest.raises(ListenError, match="--server-name: .* is no address of this machine"):
        open_listener(parse([f"--server-name={host}", "--port", "0"]))


@pytest.mark.parametrize(
    ("argv", "address"),
    [
        ([], "http://127.0.0.1:{}"),
        (["--listen"], "http://127.0.0.1:{}"),
        (["--server-name", "localhost"], "http://localhost:{}"),
        (["--server-name", "127.0.0.2", "--tls-certfile", "x"], "https://127.0.0.2:{}"),
    ],
)
def test_the_address_that_is_shown(argv, address):
    flags = parse([*argv, "--port", "0"])
    with closing(open_listener(flags)) as listener:
        assert address_of(listener, flags) == address.format(listener.getsockname()[1])


def test_ipv6_addresses_stand_in_brackets():
    flags = parse(["--server-name", "::1", "--port", "0"])
    try:
        listener = open_listener(flags)
    except ListenError:
        pytest.skip("this machine has no IPv6")
    with closing(listener):
        assert address_of(listener, flags).startswith("http://[::1]:")


@pytest.mark.parametrize(
    "argv", [["--listen"], ["--server-name", "0.0.0.0"], ["--server-name", "192.168.1.5"], ["--server-name", "my.host"]]
)
def test_a_token_is_made_wherever_others_can_reach_us(argv):
    token = token_from(parse(argv), {})
    assert token is not None and len(token) >= 43  # 256 bits
    assert token != token_from(parse(argv), {})
    assert with_token("http://x:1", token) == f"http://x:1/?token={token}"


@pytest.mark.parametrize(
    "argv", [[], ["--server-name", "localhost"], ["--server-name", "127.0.0.1"], ["--server-name", "::1"]]
)
def test_this_machine_alone_needs_none(argv):
    assert token_from(parse(argv), {}) is None
    assert with_token("http://x:1", None) == "http://x:1/"


def test_the_token_of_the_environment_stays_over_a_restart():
    assert token_from(parse(["--listen"]), {listening.TOKEN_VARIABLE: "handed down"}) == "handed down"


def test_passwords(tmp_path):
    file = tmp_path / "pairs"
    file.write_text("c:3\nd:4:with colon\n")
    flags = parse(["--listen", "--gradio-auth", "a:1, b:2", "--api-auth", "e:5", "--gradio-auth-path", str(file)])
    assert passwords_from(flags) == {"a": "1", "b": "2", "c": "3", "d": "4:with colon", "e": "5"}
    assert token_from(flags, {}) is None


@pytest.mark.parametrize(
    "argv", [["--gradio-auth", "alone"], ["--api-auth", ":x"], ["--gradio-auth", "x:"], ["--api-auth", ","]]
)
def test_half_a_password_is_refused_not_ignored(argv):
    with pytest.raises(FlagError, match=f"{argv[0]}: "):
        passwords_from(parse(argv))


def test_a_password_file_that_is_not_there(tmp_path):
    with pytest.raises(FlagError, match="--gradio-auth-path: .* cannot be read"):
        passwords_from(parse(["--gradio-auth-path", str(tmp_path / "none")]))
