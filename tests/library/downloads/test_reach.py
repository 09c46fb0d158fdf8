"""Where requests may go. The names that resolve to private addresses are those that every resolver knows."""

import shutil
import socket
import subprocess
import threading

import pytest

from modules.library.downloads.errors import DownloadError, without_secrets
from modules.library.downloads.reach import Reach, refuse_private


@pytest.mark.parametrize(
    "address",
    [
        "http://example.com/x.safetensors",
        "ftp://example.com/x",
        "file:///etc/passwd",
        "https://user:secret@example.com/x",
        "https://localhost/x",
        "https://a.localhost./x",
        "https://printer.local/x",
        "https://127.0.0.1/x",
        "https://[::1]/x",
        "https://[::ffff:127.0.0.1]/x",
        "https://[64:ff9b::7f00:1]/x",
        "https://[2002:7f00:1::]/x",
        "https://169.254.169.254/latest/meta-data",
        "https://10.0.0.1/x",
        "https://192.168.1.1/x",
        "https://100.64.0.1/x",
        "https://[fe80::1]/x",
        "https://[fd00::1]/x",
        "https://224.0.0.1/x",
        "https://0.0.0.0/x",
        "https:///x",
        "https://example.com/a b",
        "https://example.com/\r\nHost: evil",
        "https://example.com/" + "x" * 5000,
        "not a link",
        "https://example.com:99999/x",
    ],
)
def test_what_is_never_asked(address):
    with pytest.raises(DownloadError):
        Reach(proxies=dict).checked(address)


@pytest.mark.parametrize("host", ["0x7f.1", "2130706433", "127.1", "0177.0.0.1"])
def test_odd_spellings_of_this_machine_are_refused_before_a_connection(host):
    with pytest.raises(DownloadError), Reach(proxies=dict).get(f"https://{host}/x"):
        pass


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "198.18.0.5"])
def test_public_addresses_and_those_of_fake_ip_proxies_are_fine(address):
    refuse_private(address, "host")


def test_a_name_with_one_private_address_is_refused(monkeypatch):
    """The answer of the name service is asked for once, and what was checked is what is connected to."""
    answers = iter([["93.184.216.34", "10.0.0.1"]])

    def resolve(host, port, *rest, **more):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in next(answers)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(DownloadError, match="private network"), Reach(proxies=dict).get("https://rebinding.example/x"):
        pass
    assert next(answers, None) is None


def test_redirects_are_followed_a_few_times_only(hub):
    hub.answers["/end"] = (200, {}, b"here")
    for number in range(9):
        hub.redirects[f"/{number}"] = f"/{number - 1}" if number else "/end"
    with hub.reach().get(f"{hub.url}/4") as answer:
        assert answer.read() == b"here" and answer.url == f"{hub.url}/end"
    with pytest.raises(DownloadError, match="redirects more than"), hub.reach().get(f"{hub.url}/8"):
        pass


@pytest.mark.parametrize(
    "there",
    ["http://example.com/x", "https://127.0.0.1/x", "http://127.0.0.1:1/x", "file:///etc/passwd", "https://[::1"],
)
def test_redirects_to_where_nobody_may_go(hub, there):
    hub.redirects["/x"] = there
    with pytest.raises(DownloadError) as caught, hub.reach().get(f"{hub.url}/x"):
        pass
    assert "redirect" in caught.value.sentence or "private" in caught.value.sentence
    assert len(hub.asked) == 1


def test_a_token_goes_to_its_own_host_only(hub, storage):
    hub.redirects["/file"] = f"{storage.url}/signed"
    storage.answers["/signed"] = (200, {}, b"data")
    reach = hub.reach(storage, token_for=lambda host: "canary-token" if host == hub.host else None)
    with reach.get(f"{hub.url}/file") as answer:
        assert answer.read() == b"data"
    assert hub.asked[0].headers["authorization"] == "Bearer canary-token"
    assert "authorization" not in storage.asked[0].headers
    with reach.get(f"{hub.url}/file", token="from-the-link") as answer:
        answer.read()
    assert hub.asked[1].headers["authorization"] == "Bearer from-the-link"
    assert "authorization" not in storage.asked[1].headers


@pytest.fixture
def certificate(tmp_path):
    """For models.example, signed by itself."""
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl on this machine")
    files = (tmp_path / "key.pem", tmp_path / "cert.pem")
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=models.example"
    )
    more = ["-addext", "subjectAltName=DNS:models.example", "-keyout", str(files[0]), "-out", str(files[1])]
    subprocess.run([*command.split(), *more], check=True, capture_output=True)
    return files


def test_certificates_count(hub, certificate, monkeypatch):
    """One that the machine trusts opens the door, any other does not, and the name has to be the certificate's."""
    key, cert = certificate
    hub.encrypt(key, cert)
    hub.answers["/x"] = (200, {}, b"over TLS")
    port = hub.host.partition(":")[2]
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: real("127.0.0.1", *rest, **more))

    def get(host: str) -> bytes:
        reach = Reach(local=frozenset({f"{host}:{port}"}), proxies=dict)
        try:
            with reach.get(f"https://{host}:{port}/x") as answer:
                return answer.read()
        finally:
            reach.close()

    with pytest.raises(DownloadError, match="certificate that is not trusted"):
        get("models.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    assert get("models.example") == b"over TLS"
    with pytest.raises(DownloadError, match="certificate that is not trusted"):
        get("other.example")


def test_only_so_much_is_read(hub):
    hub.answers["/big"] = (200, {}, b"x" * 300_000)
    with hub.reach().get(f"{hub.url}/big") as answer:
        assert len(answer.read(1000)) == 1000


def test_a_waiting_connection_can_be_cut(hub):
    from tests.library.downloads.hub import Blob, stops_after

    hub.blobs["/x"] = Blob(b"x" * 1000, faults=[stops_after(10)])
    with pytest.raises(DownloadError) as caught, hub.reach().get(f"{hub.url}/x") as answer:
        pieces = iter(answer.pieces)
        next(pieces)
        threading.Timer(0.05, answer.cut).start()
        list(pieces)
    assert caught.value.again


def test_without_network_the_sentence_says_so(monkeypatch):
    def nothing(*args, **more):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", nothing)
    with pytest.raises(DownloadError, match="is this machine online"), Reach(proxies=dict).get("https://example.com/x"):
        pass


def test_socks_proxies_are_refused_in_words():
    reach = Reach(proxies=lambda: {"https": "socks5://10.0.0.1:1080"})
    with pytest.raises(DownloadError, match="HTTPS_PROXY"), reach.get("https://example.com/x"):
        pass


def test_a_proxy_is_used_and_asked_for_public_names_only(hub):
    """The proxy may lie on this machine; it gets the name, and nothing private even then."""
    reach = Reach(proxies=lambda: {"https": hub.url})
    with pytest.raises(DownloadError), reach.get("https://example.com/x"):
        pass  # our hub does not know CONNECT
    with pytest.raises(DownloadError, match="private network"), reach.get("https://127.0.0.1/x"):
        pass


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://civitai.com/api/download/models/1?token=SECRET&type=Model", "https://civitai.com/api/download/models/1?type=Model"),
        ("https://x.com/f?X-Amz-Signature=SECRET&X-Amz-Credential=SECRET", "https://x.com/f"),
        ("https://u:SECRET@x.com/f", "https://x.com/f"),
        ("https://x.com/f?a=1", "https://x.com/f?a=1"),
    ],
)  # fmt: skip
def test_addresses_lose_what_opens_them(address, shown):
    assert without_secrets(address) == shown
