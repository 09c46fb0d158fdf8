"""One file, from servers that do everything wrong."""

import json
import struct
import threading
from collections import namedtuple
from pathlib import Path

import pytest

from modules.library.downloads import fetch as fetching
from modules.library.downloads.errors import DownloadError, Stopped, WrongContent
from modules.library.downloads.fetch import RemoteFile, Watch, fetch, retry_after, status_error
from tests.library.downloads.hub import Blob, Hub, as_if, drips, ends_after, in_chunks, status, stops_after


def safetensors(size: int = 40_000) -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(number * 7 % 251 for number in range(size))


DATA = safetensors()


class Notes(Watch):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.known: list[RemoteFile] = []
        self.places: list[int] = []
        super().__init__(lambda have, total: self.places.append(have), self.said.append, self.known.append)


def bring(hub: Hub, folder: Path, blob: Blob | None = None, watch: Watch | None = None, **promised: object) -> str:
    hub.blobs["/x"] = blob or Blob(DATA)
    file = RemoteFile(f"{hub.url}/x", "x.safetensors", **promised)  # type: ignore[arg-type]
    return fetch(hub.reach(), file, folder / "x.part", watch or Notes())


def ranges(hub: Hub) -> list[str | None]:
    return [one.headers.get("range") for one in hub.asked]


def test_a_file_comes_whole(hub, tmp_path):
    blob, watch = Blob(DATA), Notes()
    assert bring(hub, tmp_path, blob, watch, size=len(DATA), sha256=blob.sha256) == blob.sha256
    assert (tmp_path / "x.part").read_bytes() == DATA
    assert watch.places[-1] == len(DATA) and watch.said == []
    assert hub.asked[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("cut", [1, 5000, len(DATA) * 99 // 100, len(DATA) - 1])
def test_what_ends_early_is_continued(hub, tmp_path, cut):
    blob, watch = Blob(DATA, faults=[ends_after(cut)]), Notes()
    assert bring(hub, tmp_path, blob, watch) == blob.sha256
    assert ranges(hub) == [None, f"bytes={cut}-"] and hub.asked[1].headers["if-range"] == '"v1"'
    assert (tmp_path / "x.part").read_bytes() == DATA


def test_a_later_start_continues_too(hub, tmp_path):
    (tmp_path / "x.part").write_bytes(DATA[:12345])
    blob = Blob(DATA)
    assert bring(hub, tmp_path, blob, etag='"v1"') == blob.sha256
    assert ranges(hub) == ["bytes=12345-"]


def test_a_whole_part_is_only_checked(hub, tmp_path):
    (tmp_path / "x.part").write_bytes(DATA)
    assert bring(hub, tmp_path, size=len(DATA)) == Blob(DATA).sha256
    assert hub.asked == []


def test_without_etag_or_hash_nothing_is_continued(hub, tmp_path):
    (tmp_path / "x.part").write_bytes(b"something else, of another day")
    assert bring(hub, tmp_path, Blob(DATA, etag=None)) == Blob(DATA).sha256
    assert ranges(hub) == [None]


def test_weak_etags_promise_nothing(hub, tmp_path):
    watch = Notes()
    bring(hub, tmp_path, Blob(DATA, etag='W/"v1"'), watch)
    assert watch.known[0].etag is None


def test_a_server_without_ranges_starts_anew(hub, tmp_path):
    (tmp_path / "x.part").write_bytes(DATA[:12345])
    watch = Notes()
    bring(hub, tmp_path, Blob(DATA, ranges=False), watch, etag='"v1"')
    assert (tmp_path / "x.part").read_bytes() == DATA and "cannot continue" in watch.said[0]


def test_a_file_that_changed_starts_anew(hub, tmp_path):
    (tmp_path / "x.part").write_bytes(b"old" * 4000)
    watch = Notes()
    bring(hub, tmp_path, Blob(DATA, etag='"v2"'), watch, etag='"v1"', total=99_999)
    assert (tmp_path / "x.part").read_bytes() == DATA and "has changed" in watch.said[0]


def test_a_range_of_another_file_is_not_appended(hub, tmp_path):
    """The server ignores If-Range, and continues with a new file's bytes."""
    (tmp_path / "x.part").write_bytes(b"old" * 4000)
    blob = Blob(DATA, faults=[ends_after(10, etag='"v2"')])
    assert bring(hub, tmp_path, blob, etag='"v1"') == blob.sha256


def test_a_range_from_elsewhere_is_not_appended(hub, tmp_path):
    (tmp_path / "x.part").write_bytes(DATA[:100])
    wrong = as_if(206, DATA[50:], Content_Range=f"bytes 50-{len(DATA) - 1}/{len(DATA)}", ETag='"v1"')
    blob = Blob(DATA, faults=[wrong])
    assert bring(hub, tmp_path, blob, etag='"v1"') == blob.sha256


def test_a_part_that_is_too_long_starts_anew(hub, tmp_path):
    (tmp_path / "x.part").write_bytes(DATA + b"more")
    assert bring(hub, tmp_path, etag='"v1"', sha256=Blob(DATA).sha256) == Blob(DATA).sha256
    assert ranges(hub) == [f"bytes={len(DATA) + 4}-", None]  # 416, then from the start
    assert bring(hub, tmp_path, size=len(DATA)) == Blob(DATA).sha256


@pytest.mark.parametrize("code", [500, 502, 503, 408])
def test_trouble_of_the_servers_own_passes(hub, tmp_path, code):
    watch = Notes()
    bring(hub, tmp_path, Blob(DATA, faults=[status(code), status(code)]), watch)
    assert len(hub.asked) == 3 and str(code) in watch.said[0]


def test_trouble_that_stays_ends(hub, tmp_path):
    with pytest.raises(DownloadError, match="tried 3 times.*go on with it later"):
        bring(hub, tmp_path, Blob(DATA, faults=[status(500)] * 10))
    assert len(hub.asked) == 3


def test_a_connection_that_breaks_for_ever_ends(hub, tmp_path):
    with pytest.raises(DownloadError, match="tried 3 times"):
        bring(hub, tmp_path, Blob(DATA, faults=[ends_after(10)] * 20))
    assert (tmp_path / "x.part").read_bytes() == DATA[:30]


def test_a_short_wait_is_waited(hub, tmp_path):
    watch = Notes()
    bring(hub, tmp_path, Blob(DATA, faults=[status(429, Retry_After="1")]), watch)
    assert "asks to wait" in watch.said[0] and "1 s" in watch.said[0]


def test_a_long_wait_is_told(hub, tmp_path):
    with pytest.raises(DownloadError, match="for 3600 s; go on with it later"):
        bring(hub, tmp_path, Blob(DATA, faults=[status(429, Retry_After="3600")]))


def test_retry_after_may_be_a_date():
    assert retry_after("Fri, 31 Dec 1999 23:59:59 GMT") == 0
    assert retry_after("Fri, 31 Dec 2199 23:59:59 GMT") > 10**9
    assert retry_after("soon") == 0


@pytest.mark.parametrize(
    ("code", "sentence"),
    [(401, "wants a login"), (403, "accept its terms"), (404, "no such file"), (410, "no such file"), (418, "418")],
)
def test_refusals_are_not_repeated(hub, tmp_path, code, sentence):
    with pytest.raises(DownloadError, match=sentence) as caught:
        bring(hub, tmp_path, Blob(DATA, faults=[status(code)] * 3))
    assert len(hub.asked) == 1 and hub.host in caught.value.sentence


def test_errors_hold_nothing_of_the_address():
    error = status_error(401, {}, "https://h.example/x?X-Amz-Signature=canary")
    assert "canary" not in str(error) and error.asks_for == "h.example"


def test_silence_is_noticed(hub, tmp_path):
    watch = Notes()
    blob = Blob(DATA, faults=[stops_after(20_000)])
    assert bring(hub, tmp_path, blob, watch) == blob.sha256
    assert "sends nothing" in watch.said[0] and ranges(hub)[1] == "bytes=20000-"


def test_a_slow_drip_is_noticed(hub, tmp_path):
    watch = Notes()
    assert bring(hub, tmp_path, Blob(DATA, faults=[drips]), watch) == Blob(DATA).sha256
    assert "bytes a second" in watch.said[0]


def test_more_than_was_promised_is_refused(hub, tmp_path):
    with pytest.raises(DownloadError, match="more than the"):
        bring(hub, tmp_path, Blob(DATA, faults=[in_chunks(DATA, 100)]), size=len(DATA))
    assert (tmp_path / "x.part").stat().st_size <= len(DATA)


def test_a_body_without_end_is_refused_at_the_limit(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "MOST_BYTES", 100_000)
    with pytest.raises(DownloadError, match="more than the 100000"):
        bring(hub, tmp_path, Blob(DATA, faults=[in_chunks(DATA, 1000)]))


def test_unknown_size_is_fine(hub, tmp_path):
    watch = Notes()
    assert bring(hub, tmp_path, Blob(DATA, faults=[in_chunks(DATA)]), watch) == Blob(DATA).sha256
    assert watch.known[0].total is None


def test_chunks_that_break_off_are_not_the_end(hub, tmp_path):
    blob = Blob(DATA, faults=[in_chunks(DATA[:100], ends=False)])
    assert bring(hub, tmp_path, blob) == blob.sha256


def test_another_size_than_promised(hub, tmp_path):
    with pytest.raises(DownloadError, match=f"{len(DATA)} bytes, 1234 were promised"):
        bring(hub, tmp_path, size=1234)


def test_another_hash_than_promised(hub, tmp_path):
    with pytest.raises(WrongContent, match="not what was promised"):
        bring(hub, tmp_path, sha256="0" * 64)
    assert (tmp_path / "x.part").read_bytes() == DATA


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"<!DOCTYPE html><html>please log in" + b" " * 600, "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "LFS pointer"),
        (b'{"error":"Unauthorized","message":"log in"}', "JSON"),
        (b"\x80\x04}." + b"x" * 600, "pickle"),
        (b"PK\x03\x04" + b"x" * 600, "zip archive"),
        (b"", "empty"),
    ],
)
def test_what_is_no_model_is_said(hub, tmp_path, body, sentence):
    with pytest.raises(WrongContent, match=sentence):
        bring(hub, tmp_path, Blob(body))


def test_a_login_page_is_told_from_its_type(hub, tmp_path):
    with pytest.raises(DownloadError, match="wants a login") as caught:
        bring(hub, tmp_path, Blob(b"<p>hello", kind="text/html; charset=utf-8"))
    assert caught.value.asks_for == hub.host


def test_packed_answers_are_refused(hub, tmp_path):
    packed = as_if(200, DATA, Content_Encoding="gzip")
    with pytest.raises(DownloadError, match="packed"):
        bring(hub, tmp_path, Blob(DATA, faults=[packed]))


def test_the_disk_is_asked_first(hub, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: usage(2**40, 0, 2**20))
    with pytest.raises(DownloadError, match="disk is too full"):
        bring(hub, tmp_path)
    assert (tmp_path / "x.part").stat().st_size == 0


def test_a_full_disk_is_told(hub, tmp_path, monkeypatch):
    class Full:
        def __init__(self, file):
            self._file = file

        def write(self, piece):
            raise OSError(28, "No space left on device")

        def __getattr__(self, name):
            return getattr(self._file, name)

    real = fetching.os.fdopen
    monkeypatch.setattr(fetching.os, "fdopen", lambda handle, mode: Full(real(handle, mode)))
    with pytest.raises(DownloadError, match="No space left"):
        bring(hub, tmp_path)


def test_a_part_that_is_a_link_is_not_followed(hub, tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "x.part").symlink_to(victim)
    with pytest.raises(DownloadError):
        bring(hub, tmp_path)
    assert victim.read_bytes() == b"precious"


def test_stopping_does_not_wait_for_the_server(hub, tmp_path):
    watch = Notes()
    hub.blobs["/x"] = Blob(DATA, faults=[stops_after(20_000)])
    reach = hub.reach()
    reach.patience = fetching.Patience(stall_s=20)
    ended = threading.Event()

    def run() -> None:
        with pytest.raises(Stopped):
            fetch(reach, RemoteFile(f"{hub.url}/x", "x.safetensors"), tmp_path / "x.part", watch)
        ended.set()

    def when_there(have: int, total: int | None) -> None:
        if have >= 20_000:
            threading.Timer(0.05, watch.stop).start()

    watch.moved = when_there
    thread = threading.Thread(target=run)
    thread.start()
    assert ended.wait(60)
    thread.join()
    assert (tmp_path / "x.part").stat().st_size == 20_000


def test_a_token_of_the_link_is_in_no_state(hub, tmp_path):
    file = RemoteFile(f"{hub.url}/x", "x.safetensors", token="canary")
    assert "canary" not in json.dumps(file.as_state())
