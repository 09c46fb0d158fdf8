import json

import pytest

from modules.library.downloads.civitai import licence_of, plain
from modules.library.downloads.errors import DownloadError
from modules.library.downloads.find import Hubs, find, hubs_from
from modules.library.downloads.sources import CivitaiModel, HubModel, Link, meaning_of
from tests.library.downloads.hub import Blob, Hub
from tests.library.downloads.shelves import (
    answer,
    civitai_file,
    civitai_model,
    diffusers_files,
    lora,
    repository,
    safetensors_of,
)
from tests.library.downloads.test_fetch import safetensors

MEANINGS = {
    "urn:air:sd1:checkpoint:civitai:4384@128713": CivitaiModel(4384, 128713),
    "urn:air:sdxl:lora:civitai:328553@368189?fmt=x": CivitaiModel(328553, 368189),
    "air:sd1:model:civitai:4384": CivitaiModel(4384, None),
    "civitai:123@456": CivitaiModel(123, 456),
    "civitai:123": CivitaiModel(123, None),
    "civitai:@456": CivitaiModel(None, 456),
    "https://civitai.com/models/4384/dreamshaper?modelVersionId=128713": CivitaiModel(4384, 128713),
    "civitai.com/models/4384": CivitaiModel(4384, None),
    " <https://civitai.com/models/4384> ": CivitaiModel(4384, None),
    "https://civitai.red/models/4384/x": CivitaiModel(4384, None, "civitai.red"),
    "https://civitai.com/api/v1/model-versions/128713": CivitaiModel(None, 128713),
    "https://civitai.com/api/download/models/128713?type=Model&format=SafeTensor&token=abc": CivitaiModel(
        None, 128713, token="abc", wanted=(("type", "Model"), ("format", "SafeTensor"))
    ),
    "org/name": HubModel("org/name"),
    "hf:org/name": HubModel("org/name"),
    "hf:org/name/a/b.safetensors@v2": HubModel("org/name", "v2", "a/b.safetensors"),
    "https://huggingface.co/org/name": HubModel("org/name"),
    "https://huggingface.co/org/name/blob/main/a%20b.safetensors": HubModel("org/name", "main", "a b.safetensors"),
    "https://huggingface.co/org/name/resolve/main/x.pt?download=true": HubModel("org/name", "main", "x.pt"),
    "huggingface.co/org/name/tree/fp16/unet": HubModel("org/name", "fp16", "unet"),
    "urn:air:flux1:checkpoint:huggingface:org/name@main": HubModel("org/name"),
    "https://example.com/x.safetensors": Link("https://example.com/x.safetensors"),
    "https://huggingface.co/datasets/a/b": Link("https://huggingface.co/datasets/a/b"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "meaning"), MEANINGS.items())
def test_what_texts_mean(text, meaning):
    assert meaning_of(text) == meaning


@pytest.mark.parametrize(
    "text", ["", "   ", "x" * 9999, "4384", "dreamshaper", "civitai:", "../x", "a/b/../../c", "a b/c"]
)
def test_texts_that_mean_nothing(text):
    with pytest.raises(DownloadError):
        find(Hub.reach(NoHub()), text, Hubs())  # type: ignore[arg-type]


class NoHub:
    host, _reaches = "127.0.0.1:1", []  # type: ignore[var-annotated]


@pytest.mark.parametrize("kind", [CivitaiModel, HubModel])
def test_what_is_written_down_means_the_same(kind):
    for meaning in MEANINGS.values():
        if (
            isinstance(meaning, kind)
            and not getattr(meaning, "token", None)
            and getattr(meaning, "host", "") != "civitai.red"
        ):
            assert meaning_of(str(meaning)) == meaning  # fmt: skip


def at(hub: Hub, text: str, file: str | None = None):
    return find(hub.reach(), text, Hubs(hub.url, hub.url), file)


def test_a_model_of_civitai(hub):
    civitai_model(hub)
    for text in ("civitai:4384@128713", "civitai:4384", "civitai:@128713", "https://civitai.com/models/4384"):
        found = at(hub, text)
        assert (found.title, found.version, found.kind, found.base_model) == ("Dream", "8", "lora", "SD 1.5")
        assert found.what == "civitai:4384@128713" and found.words == ("a dream", "of mountains")
        assert [choice.name for choice in found.choices] == ["dream.ckpt", "dream.safetensors"]
        assert found.choice(None).name == "dream.safetensors" and found.choice(None).size == len(lora())
        assert found.choice("dream.ckpt").is_pickled and found.choices[1].files[0].sha256 == Blob(lora()).sha256
        assert found.preview == f"{hub.url}/preview.png"
        assert found.licence == ("name its author wherever you show it", "merges of it keep these terms")
        assert found.versions == (("civitai:4384@128713", "8"), ("civitai:4384@99", "7"))
        assert found.description == "What it does.\nalert(1)"


def test_a_download_link_chooses_its_file_and_its_token_stays_out(hub):
    civitai_model(hub)
    found = at(hub, "https://civitai.com/api/download/models/128713?type=Model&format=PickleTensor&token=canary")
    assert found.choice(None).name == "dream.ckpt"
    assert hub.asked[0].headers["authorization"] == "Bearer canary"
    assert "canary" not in found.what + json.dumps(found.choice(None).files[0].as_state())


def test_a_links_token_stays_with_its_host(hub):
    elsewhere = civitai_file(hub, 7, "x.safetensors", lora(), downloadUrl="https://example.com/x")
    civitai_model(hub, files=[elsewhere])
    found = at(hub, "https://civitai.com/api/download/models/128713?token=canary")
    assert found.choice(None).files[0].token is None and hub.asked[0].headers["authorization"] == "Bearer canary"


def test_an_unsafe_file_is_not_chosen(hub):
    bad = civitai_file(hub, 5, "bad.safetensors", lora(), virusScanResult="Danger", primary=True)
    good = civitai_file(hub, 6, "good.safetensors", lora())
    found = at(hub, f"civitai:{civitai_model(hub, files=[bad, good])['modelId']}")
    assert found.choice(None).name == "good.safetensors" and "virus" in found.choices[0].refused


def test_odd_kinds_ask_the_user(hub):
    civitai_model(hub, model={"name": "Dream", "type": "MotionModule"})
    answer(hub, "/api/v1/models/4384", {"id": 4384, "type": "MotionModule", "name": "Dream", "modelVersions": []})
    found = at(hub, "civitai:4384@128713")
    assert found.kind == "" and "MotionModule" in found.notes[0]


def test_a_version_without_files(hub):
    civitai_model(hub, files=[])
    with pytest.raises(DownloadError, match="no model file"):
        at(hub, "civitai:4384")


@pytest.mark.parametrize(
    "content", [[], {}, {"id": "x"}, {"modelVersions": 7}, {"modelVersions": [None, {"id": None}]}]
)
def test_answers_of_another_shape(hub, content):
    answer(hub, "/api/v1/models/4384", content)
    with pytest.raises(DownloadError):
        at(hub, "civitai:4384")


def test_no_such_model(hub):
    with pytest.raises(DownloadError, match="Civitai has no such model"):
        at(hub, "civitai:1@2")
    with pytest.raises(DownloadError, match="Hugging Face has no such model"):
        at(hub, "hf:org/none")


def test_an_answer_that_is_no_json_is_asked_for_twice(hub):
    hub.answers["/api/v1/models/4384"] = (200, {}, b"<html>busy</html>")
    with pytest.raises(DownloadError, match="something else"):
        at(hub, "civitai:4384")
    assert len(hub.asked) == 2


def test_a_file_of_hugging_face_is_told_by_its_header(hub):
    repository(hub, "org/name", {"README.md": b"", "style.safetensors": lora(2048)}, cardData={"license": "openrail"})
    found = at(hub, "hf:org/name")
    assert (found.kind, found.family, found.chosen) == ("lora", "SDXL", "style.safetensors")
    assert found.choice(None).files[0].sha256 == Blob(lora(2048)).sha256 and found.licence == ("licence: openrail",)
    assert hub.asked[-1].headers["range"].startswith("bytes=0-")


def test_one_file_of_many(hub):
    files = {"a.safetensors": lora(), "sub/b.safetensors": safetensors_of({"decoder.conv_in.weight": (4, 4)})}
    repository(hub, "org/name", files)
    found = at(hub, "https://huggingface.co/org/name/blob/main/sub/b.safetensors")
    assert [choice.name for choice in found.choices] == ["b.safetensors"] and found.kind == "vae"
    assert at(hub, "org/name", "sub/b.safetensors").kind == "vae"
    assert at(hub, "org/name").kind == "lora"
    with pytest.raises(DownloadError, match="no file 'c'"):
        at(hub, "org/name", "c")


def test_a_model_in_folders(hub):
    repository(hub, "org/sd", diffusers_files())
    found = at(hub, "org/sd")
    assert [choice.id for choice in found.choices] == ["diffusers:fp16", "diffusers:", "v1.safetensors"]
    fp16, plain_ = found.choices[:2]
    names = {file.name for file in fp16.files}
    assert fp16.folder == "sd-fp16" and fp16.kind == "checkpoint"
    assert {"model_index.json", "unet/diffusion_pytorch_model.fp16.safetensors", "unet/config.json"} <= names
    assert {"text_encoder/model.fp16-00002-of-00002.safetensors", "tokenizer/merges.txt"} <= names
    assert "text_encoder/model.safetensors.index.fp16.json" in names
    assert not [name for name in names if "safety" in name or name.endswith((".bin", ".msgpack"))]
    assert "unet/diffusion_pytorch_model.safetensors" in {file.name for file in plain_.files}


def test_long_headers_come_in_two_pieces(hub):
    shapes = {f"lora_unet_down_blocks_{n}_attn2_to_k.lora_down.weight": (1, 768) for n in range(5000)}
    data = safetensors_of(shapes)
    assert int.from_bytes(data[:8], "little") > 300_000
    repository(hub, "org/name", {"x.safetensors": data})
    assert at(hub, "org/name").kind == "lora" and len(hub.asked) == 3
    hub.blobs["/x.safetensors"] = Blob(data, ranges=False)
    assert at(hub, f"{hub.url}/x.safetensors").kind == "lora"


def test_a_broken_header_is_told_before_anything_is_fetched(hub):
    repository(hub, "org/name", {"x.safetensors": b"\xff" * 100})
    with pytest.raises(DownloadError, match="no safetensors file"):
        at(hub, "org/name")


def test_a_link(hub):
    hub.blobs["/get"] = Blob(lora(), disposition='attachment; filename="../../my lora.safetensors"')
    found = at(hub, f"{hub.url}/get?sig=canary&x=1")
    assert (found.title, found.kind, found.family) == ("my lora.safetensors", "lora", "SD 1.x")
    assert "canary" not in found.what and found.choice(None).size == len(lora())
    assert "canary" in found.choice(None).files[0].url


@pytest.mark.parametrize(
    ("blob", "sentence"),
    [
        (Blob(b"<html>", kind="text/html"), "web page"),
        (Blob(b"<html><body>hello"), "HTML page"),
        (Blob(b"version https://git-lfs.github.com/spec/v1\n"), "LFS pointer"),
        (Blob(b"PK\x03\x04" + bytes(99)), "zip archive"),
        (Blob(safetensors()[:-7]), "incomplete"),
    ],
)
def test_links_to_what_is_no_model(hub, blob, sentence):
    hub.blobs["/x.safetensors"] = blob
    with pytest.raises(DownloadError, match=sentence):
        at(hub, f"{hub.url}/x.safetensors")


def test_a_link_without_a_name(hub):
    hub.blobs["/"] = Blob(lora())
    with pytest.raises(DownloadError, match="give it a name"):
        at(hub, f"{hub.url}/")


def test_a_mirror_has_to_be_https():
    assert hubs_from({"HF_ENDPOINT": "https://hf-mirror.com/"}).huggingface == "https://hf-mirror.com"
    assert hubs_from({"HF_ENDPOINT": "http://hf-mirror.com"}).huggingface == ""


def test_licences():
    free = {"allowNoCredit": True, "allowDerivatives": True, "allowDifferentLicense": True}
    free |= {"allowCommercialUse": ["Image", "Sell"]}
    assert licence_of(free) == ()
    assert licence_of(free | {"allowCommercialUse": "None"}) == ("no commercial use",)
    assert licence_of(free | {"allowCommercialUse": "{Rent}"}) == ("pictures made with it are not to be sold",)
    assert licence_of(free | {"allowDerivatives": False}) == ("do not share merges of it",)


def test_descriptions_are_text():
    assert plain("<p>a &lt;b&gt;</p><img src=x onerror=alert(1)>c") == "a <b>\nc"
    assert plain(None) == "" and len(plain("<" * 100_000)) <= 2000
