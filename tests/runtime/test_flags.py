import pytest

from modules.runtime import flags
from modules.runtime.flags import FlagError, notes, parse, words


def test_nothing_given_gives_the_defaults():
    chosen = parse([])
    assert (chosen.port, chosen.listen, chosen.data_dir, chosen.precision) == (None, False, None, "autocast")
    assert list(chosen.use_cpu) == []


def test_values_after_a_space_or_an_equals_sign():
    assert parse(["--port", "7861"]).port == parse(["--port=7861"]).port == 7861
    assert parse(["--data-dir=/a b/ü"]).data_dir == "/a b/ü"


def test_use_cpu_takes_several_names_in_any_case():
    chosen = parse(["--use-cpu", "SD", "interrogate", "--no-half"])
    assert chosen.use_cpu == ["sd", "interrogate"] and chosen.no_half


def test_a_repeated_flag_means_the_last_one():
    assert parse(["--ckpt-dir", "a", "--ckpt-dir", "b"]).ckpt_dir == "b"


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--medvarm"], "there is no flag --medvarm; did you mean --medvram?"),
        (["--prot=7861"], "there is no flag --prot; did you mean --port?"),
        (["--qqqq"], "there is no flag --qqqq; --help lists all flags"),
        (["--med"], "there is no flag --med; did you mean"),  # no abbreviations: a new flag would change their meaning
        (["picture"], "'picture' belongs to no flag"),
        (["--port"], "--port: it needs a value after it"),
        (["--port", "web"], "--port: it needs a whole number, got 'web'"),
        (["--port", "80"], "--port: ports below 1024 belong to the system"),
        (["--port", "70000"], "--port: a port is at most 65535"),
        (["--port", "٧٨٦٠"], "--port: it needs a whole number"),
        (["--precision", "double"], "--precision: there is no choice: 'double' (there are 'full'"),
        (["--data-dir", ""], "--data-dir: it needs a value"),
        (["--listen=yes"], "--listen: it takes no value"),
        (["--use-cpu"], "--use-cpu: it needs at least one value"),
    ],
)
def test_what_cannot_be_obeyed_is_said_in_one_sentence(argv, sentence):
    with pytest.raises(FlagError) as error:
        parse(argv)
    assert str(error.value).startswith(sentence)
    assert "\n" not in str(error.value)


def test_a_flag_without_effect_is_accepted_with_one_line():
    assert parse(["--use-ipex"]).use_ipex
    (line,) = notes(["--use-ipex", "--no-half"])
    assert line.startswith("--use-ipex: ") and "\n" not in line


def test_the_environment_comes_first_and_the_typed_wins():
    typed = words(["--port", "7999"], {"COMMANDLINE_ARGS": '--port 7861 --data-dir "/my data"'})
    chosen = parse(typed)
    assert (chosen.port, chosen.data_dir) == (7999, "/my data")


def test_every_flag_has_one_line_of_help():
    text = flags.help_text()
    for flag in flags.FLAGS:
        assert flag.name in text
        assert flag.does and "\n" not in flag.does and len(flag.does) < 90
    assert len({flag.name for flag in flags.FLAGS}) == len(flags.FLAGS)


def test_every_flag_of_a1111_is_known(golden):
    rows = (golden.parent / "facts" / "cmd_flags.tsv").read_text().splitlines()[1:]
    theirs = {row.split("\t")[0] for row in rows}
    assert len(theirs) > 120 and theirs <= {flag.name for flag in flags.FLAGS}
