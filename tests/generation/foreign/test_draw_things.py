import html
import json

from modules.generation.foreign.draw_things import read
from modules.generation.infotext import parse


def packet(text: str) -> str:
    return (
        '<x:xmpmeta><rdf:RDF><rdf:Description><exif:UserComment><rdf:Alt><rdf:li xml:lang="x-default">'
        f"{html.escape(text)}</rdf:li></rdf:Alt></exif:UserComment></rdf:Description></rdf:RDF></x:xmpmeta>"
    )


def test_its_packet():
    values = {"c": "a cat & <dog>", "uc": "bad", "steps": 20, "scale": 7.5, "seed": 5, "sampler": "DPM++ 2M Karras"}
    values |= {"size": "512x768", "model": "sd_v1.5_f16.ckpt", "lora": [{"model": "ink_f16.ckpt", "weight": 0.6}]}
    values |= {"strength": 1, "mask_blur": 5, "v2": {}}
    found = read({"XML:com.adobe.xmp": packet(json.dumps(values))})
    assert found is not None and found.program == "Draw Things"
    parsed = parse(found.infotext)
    assert (parsed["Prompt"], parsed["Sampler"], parsed["Schedule type"]) == (
        "a cat & <dog> <lora:ink_f16:0.6>",
        "DPM++ 2M",
        "Karras",
    )
    assert (parsed["Size-1"], parsed["Model"]) == ("512", "sd_v1.5_f16") and found.unmapped == ("mask_blur: 5",)


def test_other_packets():
    for text in ("", "<exif:UserComment>" * 10_000, packet("hello"), packet("{}"), "<" * 100_000):
        assert read({"XML:com.adobe.xmp": text}) is None
    assert read({}) is None
