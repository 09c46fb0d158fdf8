"""The tab Models speaks the words that the server says of a model."""

from modules.library.downloads import civitai, huggingface, peek
from modules.web.text import texts


def test_what_the_server_says_of_a_model_has_its_words_on_the_page() -> None:
    said = {words for id, words in texts("en").items() if id.startswith("said.")}
    strict = {"allowNoCredit": False, "allowDerivatives": False}
    terms = {*civitai.licence_of(strict | {"allowCommercialUse": ["Rent"]}), *civitai.licence_of(strict)}
    terms |= set(civitai.licence_of({"allowDifferentLicense": False, "allowCommercialUse": ["Image"]}))
    assert terms <= said and len(terms) == 5
    version = {"availability": "EarlyAccess", "usageControl": "Generation"}
    assert set(civitai._notes({"type": "LORA"}, version)) <= said
    assert {civitai._refused({scan: "Danger"}) for scan in ("virusScanResult", "pickleScanResult")} <= said
    assert {huggingface.GATED, peek.ODD_ENDING} <= said
