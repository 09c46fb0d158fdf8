import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.library.downloads.naming import MAX_BYTES, named_by, safe_name, safe_relative

NAMES = {
    "../x": "x",
    "..\\..\\x.safetensors": "x.safetensors",
    "/etc/passwd": "passwd",
    "C:\\models\\x.pt": "x.pt",
    "CON": "_CON",
    "con.safetensors": "_con.safetensors",
    "com1.tar.gz": "_com1.tar.gz",
    "a\nb\x1b[31m.pt": "ab[31m.pt",
    "gp\u202etsnet.pt": "gptsnet.pt",  # the direction of writing
    "evil\uff0fname.pt": "name.pt",  # a slash that is none
    "x.safetensors. ": "x.safetensors",
    ".hidden": "hidden",
    "-rf": "_-rf",
    "...": "",
    "": "",
    'a<b>:"|?*.pt': "a_b______.pt",
    "模型 V2.safetensors": "模型 V2.safetensors",
    "cafe\u0301.pt": "caf\u00e9.pt",
    "\ud800.pt": "_.pt",
}


@pytest.mark.parametrize(("wish", "name"), NAMES.items())
def test_names_are_made_safe(wish, name):
    assert safe_name(wish) == name


def test_long_names_keep_their_ending():
    for wish in ("x" * 300 + ".safetensors", "模" * 300 + ".safetensors", "🙂" * 300 + ".safetensors"):
        name = safe_name(wish)
        assert name.endswith(".safetensors") and MAX_BYTES - 4 < len(name.encode()) <= MAX_BYTES


def test_safe_names_are_fixed_points():
    for wish in [*NAMES, "a" * 400, "x.y.z.pt"]:
        assert safe_name(safe_name(wish)) == safe_name(wish)


@given(st.text(alphabet=st.characters(), max_size=400))
def test_no_wish_gets_through(wish):
    name = safe_name(wish)
    assert not set(name) & set('/\\<>:"|?*') and len(name.encode()) <= MAX_BYTES + 1
    assert not name.startswith((".", "-", " ")) and not name.endswith((".", " "))
    assert not any(unicodedata.category(c)[0] == "C" for c in name)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("unet/x.safetensors", "unet/x.safetensors"),
        ("../x", ""),
        ("unet/../../x", ""),
        ("/x", ""),
        ("unet//x", ""),
        (".git/config", ""),
        ("unet/CON", ""),
        ("", ""),
    ],
)
def test_paths_stay_below_their_folder(path, found):
    assert safe_relative(path) == found


@pytest.mark.parametrize(
    ("disposition", "address", "name"),
    [
        ('attachment; filename="a b.safetensors"', "https://h/x", "a b.safetensors"),
        ("attachment; filename=../../x.pt", "https://h/y", "x.pt"),
        ("attachment; filename*=UTF-8''%E6%A8%A1.pt", "https://h/y", "模.pt"),
        ('attachment; filename="模.pt"'.encode().decode("latin-1"), "https://h/y", "模.pt"),
        ("attachment", "https://h/a/b%20c.pt?x=1", "b c.pt"),
        ("", "https://h/..%2f..%2fx.pt", "x.pt"),
        ("", "https://h/", ""),
        ("attachment; filename*=no-such'x'%FF.pt", "https://h/y.pt", "ÿ.pt"),
    ],
)
def test_a_servers_name_is_a_wish(disposition, address, name):
    assert named_by(disposition, address) == name
